//! In which order a Copy is done whose sources overlap its destination, so that no source is read after it
//! was overwritten.
//!
//! Where every range reads at its own place or behind it, going through the destination from front to back
//! does that: what is overwritten has been read. Where every range reads at its own place or before it, going
//! from back to front does. Of a list that has both kinds, the one of fewer bytes is read into memory before
//! anything is written, and written last. So a list of 256 ranges is put in order by looking at each of them
//! once, and what must be held in memory is known before anything is moved.

use std::collections::VecDeque;

use super::cut::Stretch;
use super::plan::{CopyPlan, PlannedRange};
use crate::namespace::Overlap;

/// Part of a Copy that is done before the next one begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub to: Stretch,
    /// The order it is done in; `None`: any, for none of it is a source of it.
    pub order: Option<Order>,
}

/// Which end of a stage comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ascending,
    Descending,
}

/// How a stage is done that overwrites some of its sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// Read before anything is written, and written last. Ascending, without neighbours.
    pub held: VecDeque<Stretch>,
    /// All else, in ascending order, no stretch with more than one range. Each part is written when all that
    /// comes before it in `direction` has been read.
    pub rest: VecDeque<Stretch>,
    pub direction: Direction,
}

/// The plan in stages: one, but for ranges that must follow each other and do not fit into one.
///
/// Under [`Overlap::InOrder`] a range begins a new stage when it reads what an earlier one of its stage
/// writes. Within a stage no range does, so that to the stage a snapshot of the sources is what they hold in
/// list order.
pub(super) fn steps(plan: &CopyPlan) -> Vec<Step> {
    let source = |range: &PlannedRange| plan.in_dst(&range.ns, range.src.offset, range.src.len);
    let mut stretches = Vec::new();
    let mut to = Stretch { start: 0, end: 0 };
    for range in &plan.ranges {
        if plan.dst_ns.facts.policy.overlap == Overlap::InOrder
            && source(range).is_some_and(|read| read.meets(to))
        {
            stretches.push(to);
            to = Stretch { start: range.at, end: range.at };
        }
        to.end = range.at + range.src.len;
    }
    stretches.push(to);
    stretches.into_iter().map(|to| Step { to, order: Order::of(plan, to) }).collect()
}

impl Order {
    /// The order of a stage, whose ranges lie in it as a whole.
    fn of(plan: &CopyPlan, to: Stretch) -> Option<Self> {
        let (mut ahead, mut behind, mut any) = (Vec::new(), Vec::new(), false);
        for range in plan.ranges_in(to) {
            let Some((read, place)) = overlapped(plan, range, to) else { continue };
            any = true;
            match read.start.cmp(&place.start) {
                std::cmp::Ordering::Greater => ahead.push(place),
                std::cmp::Ordering::Less => behind.push(place),
                std::cmp::Ordering::Equal => {}
            }
        }
        if !any {
            return None;
        }
        let bytes = |stretches: &[Stretch]| stretches.iter().map(|stretch| stretch.len()).sum::<u64>();
        let (held, direction) = if bytes(&behind) <= bytes(&ahead) {
            (behind, Direction::Ascending)
        } else {
            (ahead, Direction::Descending)
        };
        let mut rest = VecDeque::new();
        let mut skip = held.iter().peekable();
        for range in plan.ranges_in(to) {
            let mut start = range.at;
            let end = range.at + range.src.len;
            if let Some(held) = skip.next_if(|held| held.start < end) {
                rest.push_back(Stretch { start, end: held.start });
                start = held.end;
            }
            rest.push_back(Stretch { start, end });
        }
        rest.retain(|stretch| stretch.len() > 0);
        let mut merged = VecDeque::new();
        held.into_iter().for_each(|stretch| append(&mut merged, stretch));
        Some(Self { held: merged, rest, direction })
    }

    /// Bytes that are held in memory.
    pub fn held_bytes(&self) -> u64 {
        self.held.iter().map(|stretch| stretch.len()).sum()
    }

    /// Neighbours of the rest as one stretch: for who gathers several ranges in one buffer.
    pub fn merge(&mut self) {
        let mut merged = VecDeque::new();
        self.rest.drain(..).for_each(|stretch| append(&mut merged, stretch));
        self.rest = merged;
    }

    /// At most `max` bytes that come next of the rest.
    pub fn next(&self, max: u64) -> Option<Stretch> {
        match self.direction {
            Direction::Ascending => Some(self.rest.front()?.first(max)),
            Direction::Descending => Some(self.rest.back()?.last(max)),
        }
    }

    /// What [`Self::next`] gave is under way.
    pub fn take(&mut self, next: Stretch) {
        let Self { rest, direction, .. } = self;
        let of = match direction {
            Direction::Ascending => rest.front_mut(),
            Direction::Descending => rest.back_mut(),
        };
        let Some(of) = of else { return };
        match direction {
            Direction::Ascending => of.start = next.end,
            Direction::Descending => of.end = next.start,
        }
        if of.start >= of.end {
            match direction {
                Direction::Ascending => rest.pop_front(),
                Direction::Descending => rest.pop_back(),
            };
        }
    }
}

/// The part of a range's source that `to` overwrites, and the place it goes to.
fn overlapped(plan: &CopyPlan, range: &PlannedRange, to: Stretch) -> Option<(Stretch, Stretch)> {
    let read = plan.in_dst(&range.ns, range.src.offset, range.src.len)?;
    let read = Stretch { start: read.start.max(to.start), end: read.end.min(to.end) };
    if read.start >= read.end {
        return None;
    }
    let start = range.at + (plan.dst.offset + read.start - range.src.offset);
    Some((read, Stretch { start, end: start + read.len() }))
}

fn append(stretches: &mut VecDeque<Stretch>, stretch: Stretch) {
    match stretches.back_mut() {
        Some(last) if last.end == stretch.start => last.end = stretch.end,
        _ => stretches.push_back(stretch),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{namespace, special};
    use super::*;
    use crate::disk::Ways;
    use crate::namespace::{ByteRange, CopyPolicy, Namespace};

    const BLOCK: u64 = 512;

    fn bytes(start: u64, end: u64) -> Stretch {
        Stretch { start: start * BLOCK, end: end * BLOCK }
    }

    /// A Copy within one namespace to block `sdlba`, of ranges given as first block and blocks.
    fn planned(ns: Namespace, sdlba: u64, ranges: &[(u64, u64)]) -> CopyPlan {
        let dst_ns = Arc::new(ns);
        let mut at = 0;
        let ranges: Vec<_> = ranges
            .iter()
            .map(|&(slba, nlb)| {
                let src = ByteRange { offset: slba * BLOCK, len: nlb * BLOCK };
                at += src.len;
                PlannedRange { ns: dst_ns.clone(), src, at: at - src.len, fco: false, if_allocated: false }
            })
            .collect();
        let dst = ByteRange { offset: sdlba * BLOCK, len: at };
        CopyPlan { dst_ns, dst, ranges, fua: false }
    }

    /// In list order a stage ends where one reads what another has written, and nowhere else: not where they
    /// touch.
    #[test]
    fn stages_end_where_they_must() {
        let stages = |ranges: &[(u64, u64)]| -> Vec<_> {
            let policy = CopyPolicy { overlap: Overlap::InOrder, ..CopyPolicy::default() };
            let plan = planned(special(1, 400, 9, Ways::default(), policy), 100, ranges);
            steps(&plan).into_iter().map(|stage| (stage.to, stage.order.is_some())).collect()
        };
        assert_eq!(stages(&[(0, 8), (20, 8)]), [(bytes(0, 16), false)]);
        assert_eq!(stages(&[(0, 8), (100, 8)]), [(bytes(0, 8), false), (bytes(8, 16), false)]);
        assert_eq!(stages(&[(0, 8), (107, 8)]), [(bytes(0, 8), false), (bytes(8, 16), true)]);
        // Its own place, or what comes behind it.
        for slba in [108, 110, 116] {
            assert_eq!(stages(&[(0, 8), (slba, 8), (0, 8)]), [(bytes(0, 24), true)], "{slba}");
        }
        assert_eq!(stages(&[(100, 8), (0, 8)]), [(bytes(0, 16), true)]);
        // Just before the destination and just behind it.
        assert_eq!(stages(&[(92, 8), (116, 8)]), [(bytes(0, 16), false)]);
        assert_eq!(
            stages(&[(0, 8), (100, 4), (108, 4), (104, 4)]),
            [(bytes(0, 8), false), (bytes(8, 12), false), (bytes(12, 20), false)]
        );
    }

    /// What is held, the rest, and the direction, of a Copy to block 100.
    fn order(ranges: &[(u64, u64)]) -> Option<(Vec<Stretch>, Vec<Stretch>, Direction)> {
        let plan = planned(namespace(1, 1 << 20, 9), 100, ranges);
        let [Step { order, .. }] = &steps(&plan)[..] else { panic!("one step") };
        let Order { held, rest, direction } = order.clone()?;
        Some((held.into(), rest.into(), direction))
    }

    #[test]
    fn what_reads_one_way_needs_no_memory() {
        let ahead = [(101, 4), (110, 2), (130, 8), (106, 1)];
        let places = [bytes(0, 4), bytes(4, 6), bytes(6, 14), bytes(14, 15)];
        assert_eq!(order(&ahead[..3]), Some((vec![], places[..3].to_vec(), Direction::Ascending)));
        // The last one reads before its place, and only it is held.
        assert_eq!(order(&ahead), Some((vec![bytes(14, 15)], places[..3].to_vec(), Direction::Ascending)));
        let behind = [(98, 4), (101, 2), (0, 8)];
        assert_eq!(order(&behind), Some((vec![], places[..3].to_vec(), Direction::Descending)));
        assert_eq!(order(&[(0, 8), (200, 8)]), None, "nothing overlaps");
        assert_eq!(order(&[(100, 8)]), Some((vec![], vec![bytes(0, 8)], Direction::Ascending)), "itself");
    }

    /// Of a range that lies half in the destination, that half.
    #[test]
    fn only_what_is_overwritten_is_held() {
        // Two halves that change places, where the second one begins before the destination.
        assert_eq!(
            order(&[(108, 8), (96, 12)]),
            Some((vec![bytes(12, 20)], vec![bytes(0, 8), bytes(8, 12)], Direction::Ascending))
        );
        assert_eq!(
            order(&[(101, 15), (98, 3)]),
            Some((vec![bytes(17, 18)], vec![bytes(0, 15), bytes(15, 17)], Direction::Ascending))
        );
        // What ends beyond it.
        assert_eq!(
            order(&[(106, 5), (100, 5)]),
            Some((vec![bytes(0, 4)], vec![bytes(4, 5), bytes(5, 10)], Direction::Descending))
        );
    }

    #[test]
    fn neighbours_are_merged_and_cut_from_the_end_that_is_due() {
        let plan = planned(namespace(1, 1 << 20, 9), 100, &[(98, 4), (101, 2), (0, 8)]);
        let mut order = steps(&plan).remove(0).order.expect("it overlaps");
        order.merge();
        assert_eq!(order.rest, [bytes(0, 14)]);
        let mut cut = Vec::new();
        while let Some(next) = order.next(6 * BLOCK) {
            order.take(next);
            cut.push(next);
        }
        assert_eq!(cut, [bytes(8, 14), bytes(2, 8), bytes(0, 2)]);
    }

    /// The largest list, in which everything depends on everything: each range is looked at once.
    #[test]
    fn the_order_of_a_list_is_no_longer_than_the_list() {
        let ranges: Vec<(u64, u64)> = (0..256).map(|n| (100 + (n * 167 + 5) % 256 * 128, 128)).collect();
        let (held, rest, _) = order(&ranges).expect("it overlaps");
        assert!(held.len() <= 128 && rest.len() <= 256, "{} and {}", held.len(), rest.len());
    }
}
