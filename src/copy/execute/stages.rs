//! What is still to be begun, in its order: the next segment, and the ways and the memory that groups of segments have.

use std::collections::VecDeque;

use super::pace::Pace;
use crate::backend::{Buffer, Shortcut};
use crate::copy::bounce::Pool;
use crate::copy::cut::{Stretch, piece};
use crate::copy::ladder::{Ladder, Span, Way};
use crate::copy::order::{self, Gates, Group};
use crate::copy::plan::CopyPlan;

/// The stages of a Copy that are not complete; the first is under way.
#[derive(Debug)]
pub(super) struct Stages(VecDeque<Stage>);

/// Part of a Copy that is complete before the next one begins.
#[derive(Debug)]
enum Stage {
    /// In any order.
    Free(VecDeque<Span>),
    /// As segments read what others write.
    Ordered(Ordered),
}

#[derive(Debug)]
struct Ordered {
    groups: VecDeque<Group>,
    /// The next segment of the first group.
    next: usize,
    gates: Gates,
    /// What the first group has of its memory; `None` before it was claimed.
    claimed: Option<u64>,
    /// Refused by the shortcut, to be bounced.
    again: Vec<Stretch>,
}

/// The next segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next {
    pub to: Stretch,
    pub way: Way,
    /// Its memory is its group's.
    pub grouped: bool,
}

/// Other Copies hold it.
#[derive(Debug)]
pub(super) struct NoMemory;

impl Stages {
    /// The stages of a plan; `None` when cycles do not fit into the budget.
    pub fn new(plan: &CopyPlan, ladder: &Ladder, pace: &Pace) -> Option<Self> {
        let bounds = pace.bounds(moves_memory(plan, ladder));
        let stage = |stage: order::Stage| {
            if !stage.ordered {
                return Some(Stage::Free(ladder.spans(plan, stage.to).into()));
            }
            let groups = order::schedule(plan, stage.to, bounds)?;
            let gates = Gates::new(plan, &groups);
            Some(Stage::Ordered(Ordered { groups, next: 0, gates, claimed: None, again: Vec::new() }))
        };
        order::stages(plan).into_iter().map(stage).collect::<Option<_>>().map(Self)
    }

    /// Is any range that must be shared to go another way?
    pub fn any_slow_fco(&self, plan: &CopyPlan) -> bool {
        let free = self.0.iter().filter_map(|stage| match stage {
            Stage::Free(spans) => Some(spans),
            Stage::Ordered(_) => None,
        });
        free.flatten().any(|span| slow_fco(plan, span.to, span.way).is_some())
    }

    /// Does one bounced segment do it all?
    pub fn is_one_write(&self, ladder: &Ladder, pace: &Pace) -> bool {
        match self.0.front() {
            _ if self.0.len() != 1 => false,
            Some(Stage::Free(spans)) => matches!(
                spans.front(),
                Some(span) if spans.len() == 1
                    && span.way == Way::Bounce
                    && span.to.len() <= pace.segment(Way::Bounce, ladder)
            ),
            Some(Stage::Ordered(ordered)) => {
                ordered.groups.iter().map(Group::len).sum::<usize>() == 1 && !ladder.any_memory()
            }
            None => false,
        }
    }

    /// What comes next; [`Self::take`] says that it is under way. `None`: nothing, or nothing yet. `idle`: nothing is in
    /// flight or in memory.
    pub fn next(
        &mut self,
        plan: &CopyPlan,
        ladder: &Ladder,
        pace: &Pace,
        pool: &mut Pool,
        idle: bool,
    ) -> Result<Option<Next>, NoMemory> {
        while let Some(stage) = self.0.front_mut() {
            let next = match stage {
                Stage::Free(spans) => next_free(spans, plan, ladder, pace),
                Stage::Ordered(ordered) => ordered.next(moves_memory(plan, ladder), pool, idle)?,
            };
            if next.is_some() || !stage.is_begun() || !idle {
                return Ok(next);
            }
            self.0.pop_front();
        }
        Ok(None)
    }

    /// `next` is under way.
    #[inline]
    pub fn take(&mut self, next: Next) {
        match self.0.front_mut() {
            Some(Stage::Free(spans)) => {
                if let Some(front) = spans.front_mut() {
                    front.to.start = next.to.end;
                    if front.to.start >= front.to.end {
                        spans.pop_front();
                    }
                }
            }
            Some(Stage::Ordered(ordered)) => {
                if ordered.again.last() == Some(&next.to) {
                    ordered.again.pop();
                } else {
                    ordered.next += 1;
                }
            }
            None => {}
        }
    }

    /// A stretch that was under way is still to be copied, by reads and a write.
    pub fn bounce(&mut self, to: Stretch) {
        match self.0.front_mut() {
            Some(Stage::Free(spans)) => spans.push_front(Span { to, way: Way::Bounce }),
            Some(Stage::Ordered(ordered)) => ordered.again.push(to),
            None => {}
        }
    }

    /// The same, by the ways that are left.
    pub fn retry(&mut self, to: Stretch, plan: &CopyPlan, ladder: &Ladder) {
        match self.0.front_mut() {
            Some(Stage::Free(spans)) => put_first(spans, to, plan, ladder),
            _ => self.bounce(to),
        }
    }

    /// May segments be written in any order?
    pub fn is_free(&self) -> bool {
        matches!(self.0.front(), Some(Stage::Free(_)))
    }

    /// May a segment be written, as far as others read what it overwrites?
    pub fn is_open(&self, segment: Stretch) -> bool {
        match self.0.front() {
            Some(Stage::Ordered(ordered)) => ordered.gates.is_open(segment),
            _ => true,
        }
    }

    /// A piece of a segment needs its source no more.
    #[inline]
    pub fn was_read(&mut self, plan: &CopyPlan, segment: Stretch, to: Stretch) {
        if let Some(Stage::Ordered(ordered)) = self.0.front_mut()
            && let Some(piece) = piece(plan, to.start, to.end)
        {
            ordered.gates.read(plan, segment, &piece);
        }
    }

    /// Memory for a segment out of what its group has. `None`: not now.
    pub fn lend(&mut self, bytes: u64, pool: &Pool) -> Option<Buffer> {
        let Some(Stage::Ordered(Ordered { claimed: Some(claimed), .. })) = self.0.front_mut() else {
            return None;
        };
        *claimed = claimed.checked_sub(bytes)?;
        Some(pool.buffer(bytes))
    }

    /// And back.
    pub fn take_back(&mut self, bytes: u64) {
        if let Some(Stage::Ordered(Ordered { claimed: Some(claimed), .. })) = self.0.front_mut() {
            *claimed += bytes;
        }
    }
}

impl Stage {
    /// Has all of it been begun?
    fn is_begun(&self) -> bool {
        match self {
            Stage::Free(spans) => spans.is_empty(),
            Stage::Ordered(ordered) => ordered.groups.is_empty() && ordered.again.is_empty(),
        }
    }
}

impl Next {
    /// Where in it a range begins that must be shared and will not be.
    #[inline]
    pub fn slow_fco(self, plan: &CopyPlan) -> Option<u64> {
        slow_fco(plan, self.to, self.way)
    }
}

/// Where in a stretch that is not to be shared a range begins that must be.
fn slow_fco(plan: &CopyPlan, to: Stretch, way: Way) -> Option<u64> {
    let fco = plan.ranges_in(to).find(|range| range.fco)?;
    (way != Way::Direct(Shortcut::Reflink)).then(|| fco.at.max(to.start))
}

/// Within an ordered stage: is the destination memory that is moved directly?
fn moves_memory(plan: &CopyPlan, ladder: &Ladder) -> bool {
    ladder.allows(plan.dst_ns.nsid, Shortcut::MemMove)
}

/// The next segment of the first span. Spans whose way has been refused meanwhile get another one.
fn next_free(spans: &mut VecDeque<Span>, plan: &CopyPlan, ladder: &Ladder, pace: &Pace) -> Option<Next> {
    loop {
        let Span { to, way } = *spans.front()?;
        if let Way::Direct(how) = way
            && !piece(plan, to.start, to.end).is_some_and(|run| ladder.allows(run.ns.nsid, how))
        {
            spans.pop_front();
            put_first(spans, to, plan, ladder);
            continue;
        }
        return Some(Next { to: to.first(pace.segment(way, ladder)), way, grouped: false });
    }
}

fn put_first(spans: &mut VecDeque<Span>, to: Stretch, plan: &CopyPlan, ladder: &Ladder) {
    for span in ladder.spans(plan, to).into_iter().rev() {
        spans.push_front(span);
    }
}

impl Ordered {
    /// The next segment. `moved`: memory is moved directly. `idle`: nothing is in flight or in memory.
    fn next(&mut self, moved: bool, pool: &mut Pool, idle: bool) -> Result<Option<Next>, NoMemory> {
        if let Some(&to) = self.again.last() {
            return Ok(Some(Next { to, way: Way::Bounce, grouped: self.claimed.is_some() }));
        }
        loop {
            let Some(group) = self.groups.front() else { return Ok(None) };
            let holds = !group.held.is_empty();
            if let Some(to) = group.get(self.next) {
                if holds && self.claimed.is_none() {
                    if !idle {
                        return Ok(None);
                    }
                    if !pool.claim(group.need) {
                        return Err(NoMemory);
                    }
                    self.claimed = Some(group.need);
                }
                let direct = moved && self.next >= group.held.len();
                let way = if direct { Way::Direct(Shortcut::MemMove) } else { Way::Bounce };
                return Ok(Some(Next { to, way, grouped: holds }));
            }
            if holds {
                if !idle {
                    return Ok(None);
                }
                pool.release(group.need);
                self.claimed = None;
            }
            self.groups.pop_front();
            self.next = 0;
        }
    }
}
