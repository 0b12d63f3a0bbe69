//! The laboratory of the copy log: puts together what a worker says of each Copy.

use std::collections::BTreeMap;
use std::time::Instant;

use super::queue::Outlet;
use super::record::{
    CommandRecord, CopyRecord, MovedRecord, NamespaceRecord, PlanRecord, Posted, StepRecord, StretchRecord,
};
use super::text::{Stamp, Word};
use crate::copy::{By, CopyPlan, PlannedStretch, Reject, SourceRange, Written};
use crate::laboratory::script::Post;
use crate::laboratory::seam::{CommandId, Fate, Fetched, Lab};
use crate::laboratory::tools::Place;
use crate::spec::Outcome;
use crate::spec::commands::NvmCommand;

/// Copies of one worker that may be on their way. A worker has fewer; more of them are such whose end never came, for it
/// failed, and the oldest of these is given up.
const OPEN: usize = 4096;

/// See the module docs.
pub(super) struct Recorder {
    place: Place,
    /// By serial number.
    open: BTreeMap<u64, Open>,
    out: Outlet,
}

/// A Copy under way.
struct Open {
    since: Instant,
    record: Box<CopyRecord>,
    /// Where in the destination its ranges begin, and where the last one ends.
    bounds: Vec<u64>,
    moved: Moves,
}

impl Recorder {
    pub fn new(place: Place, out: Outlet) -> Self {
        Self { place, open: BTreeMap::new(), out }
    }

    fn open(&mut self, id: CommandId) -> Option<&mut Open> {
        self.open.get_mut(&id.serial)
    }
}

impl Lab for Recorder {
    fn fetched(&mut self, id: CommandId, Fetched { sqe, ns, .. }: Fetched<'_>) -> Fate {
        if sqe.opc == NvmCommand::Copy.opcode() {
            if self.open.len() >= OPEN {
                self.open.pop_first();
                self.out.lost();
            }
            let record = CopyRecord {
                time: Stamp::now(),
                controller: self.place.cntlid.get(),
                sqid: id.sqid,
                cid: id.cid,
                command: CommandRecord::of(sqe),
                namespaces: ns.map(NamespaceRecord::from).into_iter().collect(),
                ..CopyRecord::default()
            };
            let open = Open {
                since: Instant::now(),
                record: Box::new(record),
                bounds: Vec::new(),
                moved: Moves::default(),
            };
            self.open.insert(id.serial, open);
        }
        Fate::Pass
    }

    fn listed(&mut self, id: CommandId, ranges: &[SourceRange]) {
        if let Some(open) = self.open(id) {
            open.record.ranges = Some(ranges.iter().map(Into::into).collect());
        }
    }

    fn planned(&mut self, id: CommandId, plan: &CopyPlan) -> Fate {
        let Some(Open { record, bounds, .. }) = self.open(id) else { return Fate::Pass };
        for range in plan.ranges() {
            if record.namespace(range.ns.nsid).is_none() {
                record.namespaces.push((&*range.ns).into());
            }
        }
        bounds.extend(plan.ranges().iter().map(|range| range.at).chain([plan.dst().len]));
        record.plan = Some(plan.into());
        Fate::Pass
    }

    fn refused(&mut self, id: CommandId, why: &Reject) {
        if let Some(open) = self.open(id) {
            open.record.refused = Some(why.into());
        }
    }

    fn moved(&mut self, id: CommandId, part: Written) {
        if let Some(open) = self.open(id) {
            open.moved.add(part);
        }
    }

    fn over(&mut self, id: CommandId, outcome: &Outcome, post: Option<Post>) {
        let Some(Open { since, mut record, bounds, moved }) = self.open.remove(&id.serial) else { return };
        record.moved = moved.by_range(&bounds);
        record.status = outcome.status.into();
        record.dw0 = outcome.dw0;
        record.posted = match post {
            Some(Post::Once) => Posted::Once,
            Some(Post::Never) => Posted::Never,
            Some(Post::Twice) => Posted::Twice,
            Some(Post::As(_)) => Posted::OtherCid,
            Some(Post::Unannounced) => Posted::Unannounced,
            None => Posted::QueueGone,
        };
        record.latency_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.out.send(record);
    }
}

impl From<&CopyPlan> for PlanRecord {
    fn from(plan: &CopyPlan) -> Self {
        let stretch =
            |of: PlannedStretch| StretchRecord { at: of.at, len: of.len, method: of.method.to_owned() };
        let stretches = |all: Vec<PlannedStretch>| all.into_iter().map(stretch).collect();
        let steps = plan.steps().into_iter().map(|step| StepRecord {
            order: step.order.name().to_owned(),
            held: stretches(step.held),
            stretches: stretches(step.stretches),
        });
        Self { bytes: plan.dst().len, durable: plan.fua(), steps: steps.collect() }
    }
}

/// What moved which bytes of a destination. Neighbours that the same moved are one.
#[derive(Default)]
struct Moves(BTreeMap<u64, (u64, By)>);

impl Moves {
    fn add(&mut self, Written { mut at, mut len, by }: Written) {
        if let Some((&before, &(bytes, same))) = self.0.range(..at).next_back()
            && before + bytes == at
            && same == by
        {
            (at, len) = (before, bytes + len);
        }
        if let Some(&(bytes, same)) = self.0.get(&(at + len))
            && same == by
        {
            self.0.remove(&(at + len));
            len += bytes;
        }
        self.0.insert(at, (len, by));
    }

    /// Cut where the ranges are. `bounds`: where they begin, and where the last one ends.
    fn by_range(self, bounds: &[u64]) -> Vec<MovedRecord> {
        let mut ranges = (0..).zip(bounds.windows(2)).filter_map(|(index, of)| match of {
            [start, end] => Some((index, *start, *end)),
            _ => None,
        });
        let mut cut = Vec::new();
        let mut range = ranges.next();
        for (at, (len, by)) in self.0 {
            let (mut from, end) = (at, at + len);
            while let Some((index, start, stop)) = range.filter(|(_, start, _)| *start < end) {
                from = from.max(start);
                let to = end.min(stop);
                if from < to {
                    cut.push(MovedRecord { range: index, at: from, len: to - from, by: Word(by) });
                    from = to;
                }
                if stop > end {
                    break;
                }
                range = ranges.next();
            }
        }
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moves(parts: &[(u64, u64, By)], bounds: &[u64]) -> Vec<(u16, u64, u64, By)> {
        let mut moves = Moves::default();
        for &(at, len, by) in parts {
            moves.add(Written { at, len, by });
        }
        let all = moves.by_range(bounds).into_iter();
        all.map(|MovedRecord { range, at, len, by }| (range, at, len, by.0)).collect()
    }

    #[test]
    fn what_the_same_moved_is_told_once_for_each_range() {
        use By::{MemMove, ReadWrite, Shared};
        // In any order, and cut otherwise than the ranges are.
        let parts = [(8, 8, MemMove), (0, 8, MemMove), (24, 8, MemMove), (16, 8, MemMove)];
        let whole = [(0, 0, 10, MemMove), (1, 10, 22, MemMove)];
        assert_eq!(moves(&parts, &[0, 10, 32]), whole);
        let mixed = [(20, 12, ReadWrite), (0, 4, ReadWrite), (4, 16, Shared)];
        assert_eq!(
            moves(&mixed, &[0, 10, 32]),
            [(0, 0, 4, ReadWrite), (0, 4, 6, Shared), (1, 10, 10, Shared), (1, 20, 12, ReadWrite)]
        );
        // Some of it is not there: the Copy failed.
        assert_eq!(
            moves(&[(2, 2, MemMove), (30, 2, MemMove)], &[0, 10, 20, 32]),
            [(0, 2, 2, MemMove), (2, 30, 2, MemMove)]
        );
        assert_eq!(moves(&[(0, 8, MemMove)], &[]), [], "without a plan there are no ranges");
        assert_eq!(moves(&[], &[0, 8]), []);
    }
}
