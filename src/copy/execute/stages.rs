//! What is still to be begun, in its order: the next segment, and the ways and the memory that groups of
//! segments have.

use std::collections::VecDeque;

use super::pace::Pace;
use crate::copy::bounce::Pool;
use crate::copy::cut::{Stretch, piece};
use crate::copy::order::{self, Order};
use crate::copy::plan::CopyPlan;
use crate::copy::selection::{Choice, Selection, Span};
use crate::disk::How;

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
    order: Order,
    /// There is memory for all that the order holds.
    claimed: bool,
    /// Refused by the shortcut, to be bounced.
    again: Option<Stretch>,
}

/// The next segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next {
    pub to: Stretch,
    pub choice: Choice,
    /// It is read now and written when its stage has been read, in memory that was claimed for that.
    pub held: bool,
}

/// Other Copies have it.
#[derive(Debug)]
pub(super) struct NoMemory;

/// Which segments may be written, as far as others read what they overwrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writable {
    /// All that have been read.
    All,
    /// Of those that are not held, each whose predecessors have been read.
    InTurn,
    /// The same, and when all has been read, what is held too: all of the stage has been begun.
    Last,
}

impl Stages {
    /// The stages of a plan.
    pub fn new(plan: &CopyPlan, selection: &Selection) -> Self {
        let stage = |order::Step { to, order }| match order {
            None => Stage::Free(selection.spans(plan, to).into()),
            Some(mut order) => {
                if !moves_memory(plan, selection) {
                    order.merge();
                }
                Stage::Ordered(Ordered { order, claimed: false, again: None })
            }
        };
        Self(order::steps(plan).into_iter().map(stage).collect())
    }

    /// Bytes of sources that a stage holds in memory, at most.
    pub fn most_held(&self) -> u64 {
        let held = |stage: &Stage| match stage {
            Stage::Free(_) => 0,
            Stage::Ordered(ordered) => ordered.order.held_bytes(),
        };
        self.0.iter().map(held).max().unwrap_or(0)
    }

    /// Is any range that must be shared to go another way?
    pub fn any_slow_fco(&self, plan: &CopyPlan) -> bool {
        let free = self.0.iter().filter_map(|stage| match stage {
            Stage::Free(spans) => Some(spans),
            Stage::Ordered(_) => None,
        });
        free.flatten().any(|span| slow_fco(plan, span.to, span.choice).is_some())
    }

    /// Does one bounced segment do it all?
    pub fn is_one_write(&self, selection: &Selection, pace: &Pace) -> bool {
        match self.0.front() {
            _ if self.0.len() != 1 => false,
            Some(Stage::Free(spans)) => matches!(
                spans.front(),
                Some(span) if spans.len() == 1
                    && span.choice == Choice::Bounce
                    && span.to.len() <= pace.segment(Choice::Bounce, selection)
            ),
            Some(Stage::Ordered(Ordered { order, .. })) => {
                let fits = |to: &Stretch| to.len() <= pace.segment(Choice::Bounce, selection);
                order.held.len() + order.rest.len() == 1
                    && order.rest.front().is_some_and(fits)
                    && !selection.any_memory()
            }
            None => false,
        }
    }

    /// What comes next; [`Self::take`] says that it is under way. `None`: nothing, or nothing yet. `idle`:
    /// nothing is in flight or in memory.
    pub fn next(
        &mut self,
        plan: &CopyPlan,
        selection: &Selection,
        pace: &Pace,
        pool: &mut Pool,
        idle: bool,
    ) -> Result<Option<Next>, NoMemory> {
        while let Some(stage) = self.0.front_mut() {
            let next = match stage {
                Stage::Free(spans) => next_free(spans, plan, selection, pace),
                Stage::Ordered(ordered) => ordered.next(moves_memory(plan, selection), pace, pool, idle)?,
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
                let Ordered { order, again, .. } = ordered;
                match order.held.front_mut() {
                    _ if again.take_if(|again| *again == next.to).is_some() => {}
                    Some(held) if next.held => {
                        held.start = next.to.end;
                        if held.start >= held.end {
                            order.held.pop_front();
                        }
                    }
                    _ => order.take(next.to),
                }
            }
            None => {}
        }
    }

    /// A stretch that was under way is still to be copied, by reads and a write.
    pub fn bounce(&mut self, to: Stretch) {
        match self.0.front_mut() {
            Some(Stage::Free(spans)) => spans.push_front(Span { to, choice: Choice::Bounce }),
            Some(Stage::Ordered(ordered)) => ordered.again = Some(to),
            None => {}
        }
    }

    /// The same, by the ways that are left.
    pub fn retry(&mut self, to: Stretch, plan: &CopyPlan, selection: &Selection) {
        match self.0.front_mut() {
            Some(Stage::Free(spans)) => put_first(spans, to, plan, selection),
            _ => self.bounce(to),
        }
    }

    /// May segments be written in any order?
    pub fn is_free(&self) -> bool {
        matches!(self.0.front(), Some(Stage::Free(_)))
    }

    /// Which segments may be written.
    pub fn writable(&self) -> Writable {
        match self.0.front() {
            Some(stage @ Stage::Ordered(_)) if stage.is_begun() => Writable::Last,
            Some(Stage::Ordered(_)) => Writable::InTurn,
            _ => Writable::All,
        }
    }
}

impl Stage {
    /// Has all of it been begun?
    fn is_begun(&self) -> bool {
        match self {
            Stage::Free(spans) => spans.is_empty(),
            Stage::Ordered(Ordered { order, again, .. }) => {
                order.held.is_empty() && order.rest.is_empty() && again.is_none()
            }
        }
    }
}

impl Next {
    /// Where in it a range begins that must be shared and will not be.
    #[inline]
    pub fn slow_fco(self, plan: &CopyPlan) -> Option<u64> {
        slow_fco(plan, self.to, self.choice)
    }
}

/// Where in a stretch that is not to be shared a range begins that must be.
fn slow_fco(plan: &CopyPlan, to: Stretch, choice: Choice) -> Option<u64> {
    let fco = plan.ranges_in(to).find(|range| range.fco)?;
    (choice != Choice::Direct(How::Reflink)).then(|| fco.at.max(to.start))
}

/// Within an ordered stage: is the destination memory that is moved directly?
fn moves_memory(plan: &CopyPlan, selection: &Selection) -> bool {
    selection.allows(plan.dst_ns.nsid, How::MemMove)
}

/// The next segment of the first span. Spans whose choice has been refused meanwhile get another one.
fn next_free(
    spans: &mut VecDeque<Span>,
    plan: &CopyPlan,
    selection: &Selection,
    pace: &Pace,
) -> Option<Next> {
    loop {
        let Span { to, choice } = *spans.front()?;
        if let Choice::Direct(how) = choice
            && !piece(plan, to.start, to.end).is_some_and(|run| selection.allows(run.ns.nsid, how))
        {
            spans.pop_front();
            put_first(spans, to, plan, selection);
            continue;
        }
        return Some(Next { to: to.first(pace.segment(choice, selection)), choice, held: false });
    }
}

fn put_first(spans: &mut VecDeque<Span>, to: Stretch, plan: &CopyPlan, selection: &Selection) {
    for span in selection.spans(plan, to).into_iter().rev() {
        spans.push_front(span);
    }
}

impl Ordered {
    /// The next segment. `moved`: memory is moved directly. `idle`: nothing is in flight or in memory.
    fn next(
        &mut self,
        moved: bool,
        pace: &Pace,
        pool: &mut Pool,
        idle: bool,
    ) -> Result<Option<Next>, NoMemory> {
        let most = pace.ordered_segment();
        if let Some(to) = self.again {
            return Ok(Some(Next { to, choice: Choice::Bounce, held: false }));
        }
        if let Some(held) = self.order.held.front() {
            if !self.claimed {
                if !idle {
                    return Ok(None);
                }
                self.claimed = pool.hold(self.order.held_bytes());
                if !self.claimed {
                    return Err(NoMemory);
                }
            }
            return Ok(Some(Next { to: held.first(most), choice: Choice::Bounce, held: true }));
        }
        let choice = if moved { Choice::Direct(How::MemMove) } else { Choice::Bounce };
        Ok(self.order.next(most).map(|to| Next { to, choice, held: false }))
    }
}
