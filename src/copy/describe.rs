//! What a plan is about to do, for people and for logs.

use super::cut::Stretch;
use super::order::{self, Direction};
use super::plan::CopyPlan;
use super::selection::{Choice, Selection};
use crate::disk::How;

/// Part of a Copy that is complete before the next one begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStep {
    /// In which order its stretches are done.
    pub order: StepOrder,
    /// Read before anything is written, and written last.
    pub held: Vec<PlannedStretch>,
    /// All else. They are cut further where they are long.
    pub stretches: Vec<PlannedStretch>,
}

/// In which order the stretches of a step are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOrder {
    /// In any, and several at once: nothing of it is a source of it.
    Any,
    /// From front to back, each written when what lies before it has been read.
    Ascending,
    /// From back to front, likewise.
    Descending,
}

impl StepOrder {
    /// Names it in logs that programs read.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Ascending => "ascending",
            Self::Descending => "descending",
        }
    }
}

/// A stretch of the destination, and the method that is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedStretch {
    /// Bytes from the start of the destination.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// `memmove`, or as the property `copy_method` has it.
    pub method: &'static str,
}

impl CopyPlan {
    /// What a task of it would do if it began now: the disks are asked which methods lead there.
    pub fn steps(&self) -> Vec<PlannedStep> {
        let selection = Selection::new(self);
        order::steps(self).into_iter().map(|step| self.step(step, &selection)).collect()
    }

    fn step(&self, step: order::Step, selection: &Selection) -> PlannedStep {
        let Some(mut order) = step.order else {
            let spans = selection.spans(self, step.to).into_iter();
            return PlannedStep {
                order: StepOrder::Any,
                held: Vec::new(),
                stretches: spans.map(|span| stretch(span.to, span.choice)).collect(),
            };
        };
        let moved = selection.allows(self.dst_ns.nsid, How::MemMove);
        if !moved {
            order.merge();
        }
        let choice = if moved { Choice::Direct(How::MemMove) } else { Choice::Bounce };
        let mut rest: Vec<_> = order.rest.iter().map(|to| stretch(*to, choice)).collect();
        let direction = match order.direction {
            Direction::Ascending => StepOrder::Ascending,
            Direction::Descending => StepOrder::Descending,
        };
        if direction == StepOrder::Descending {
            rest.reverse();
        }
        let held = order.held.iter().map(|to| stretch(*to, Choice::Bounce)).collect();
        PlannedStep { order: direction, held, stretches: rest }
    }
}

fn stretch(to: Stretch, choice: Choice) -> PlannedStretch {
    let method = match choice {
        Choice::Direct(How::MemMove) => "memmove",
        Choice::Direct(How::Reflink) => "reflink",
        Choice::Direct(How::Offload) => "offload",
        Choice::Direct(How::ReadWrite { .. }) | Choice::Bounce => "bounce",
    };
    PlannedStretch { at: to.start, len: to.len(), method }
}

#[cfg(test)]
mod tests {
    use super::super::plan::PlannedRange;
    use super::super::testing::{copy_of, namespace, special};
    use super::*;
    use crate::disk::Ways;
    use crate::namespace::{ByteRange, CopyPolicy, Method, Namespace, Overlap};

    const BLOCK: u64 = 512;
    const MEMORY: Ways = Ways {
        memmove: true,
        reflink: None,
        offload: false,
        offload_pays: false,
        offload_clones: false,
        read_write: false,
    };

    fn of(at: u64, len: u64, method: &'static str) -> PlannedStretch {
        PlannedStretch { at: at * BLOCK, len: len * BLOCK, method }
    }

    /// Within one namespace to block 100, of ranges given as first block and blocks.
    fn within(ns: Namespace, ranges: &[(u64, u64)]) -> Vec<PlannedStep> {
        let dst_ns = std::sync::Arc::new(ns);
        let mut at = 0;
        let ranges: Vec<_> = ranges
            .iter()
            .map(|&(slba, nlb)| {
                let src = ByteRange { offset: slba * BLOCK, len: nlb * BLOCK };
                at += src.len;
                PlannedRange { ns: dst_ns.clone(), src, at: at - src.len, fco: false, if_allocated: false }
            })
            .collect();
        CopyPlan { dst_ns, dst: ByteRange { offset: 100 * BLOCK, len: at }, ranges, fua: false }.steps()
    }

    #[test]
    fn free_steps_go_by_what_leads_there() {
        let copy = |ways, method| {
            let policy = CopyPolicy { method, ..CopyPolicy::default() };
            copy_of(
                namespace(2, 1024, 9),
                special(1, 1024, 9, ways, policy),
                &[(0, 8 * BLOCK), (4096 + 512, 256 * BLOCK)],
                false,
            )
            .steps()
        };
        let any = |stretches| vec![PlannedStep { order: StepOrder::Any, held: vec![], stretches }];
        assert_eq!(copy(Ways::default(), Method::Auto), any(vec![of(0, 264, "bounce")]));
        assert_eq!(copy(MEMORY, Method::Auto), any(vec![of(0, 264, "memmove")]));
        let shared = Ways { reflink: Some(4096), ..Ways::default() };
        // The second range begins one block past a boundary of its own, and not of the destination's.
        assert_eq!(copy(shared, Method::Reflink), any(vec![of(0, 8, "reflink"), of(8, 256, "bounce")]));
    }

    #[test]
    fn ordered_steps_tell_their_direction_and_what_is_held() {
        let files = || namespace(1, 1024, 9);
        let memory = || special(1, 1024, 9, MEMORY, CopyPolicy::default());
        let swap = [(108, 8), (96, 12)];
        let held = vec![of(12, 8, "bounce")];
        let step = |held: &[PlannedStretch], stretches: &[PlannedStretch], order| {
            vec![PlannedStep { order, held: held.to_vec(), stretches: stretches.to_vec() }]
        };
        assert_eq!(within(files(), &swap), step(&held, &[of(0, 12, "bounce")], StepOrder::Ascending));
        let moved = [of(0, 8, "memmove"), of(8, 4, "memmove")];
        assert_eq!(within(memory(), &swap), step(&held, &moved, StepOrder::Ascending));
        let behind = [of(4, 8, "memmove"), of(0, 4, "memmove")];
        assert_eq!(within(memory(), &[(98, 4), (0, 8)]), step(&[], &behind, StepOrder::Descending));
    }

    #[test]
    fn steps_that_follow_each_other_are_told_apart() {
        let policy = CopyPolicy { overlap: Overlap::InOrder, ..CopyPolicy::default() };
        let steps = within(special(1, 1024, 9, Ways::default(), policy), &[(0, 8), (100, 8)]);
        let stretches: Vec<_> = steps.into_iter().map(|step| (step.order, step.stretches)).collect();
        let any = StepOrder::Any;
        assert_eq!(stretches, [(any, vec![of(0, 8, "bounce")]), (any, vec![of(8, 8, "bounce")])]);
        assert_eq!(any.name(), "any");
    }
}
