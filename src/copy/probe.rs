//! DULBE: the stage before the first read or write, in which every range whose source has it enabled is asked
//! for.
//!
//! What a host writes to a source meanwhile may be seen or not, as with a Read that it does not wait for.

use super::plan::{CopyPlan, PlannedRange};

/// Which ranges are still to be asked for.
#[derive(Debug)]
pub(super) struct Probes {
    next: usize,
}

impl Probes {
    /// `None` when there is nothing to ask, which costs a look at each range.
    pub fn of(plan: &CopyPlan) -> Option<Self> {
        plan.ranges.iter().any(|range| range.if_allocated).then_some(Self { next: 0 })
    }

    /// The next range to ask for, in list order.
    pub fn next<'a>(&mut self, plan: &'a CopyPlan) -> Option<&'a PlannedRange> {
        let rest = plan.ranges.get(self.next..)?;
        let skip = rest.iter().position(|range| range.if_allocated)?;
        self.next += skip + 1;
        rest.get(skip)
    }
}
