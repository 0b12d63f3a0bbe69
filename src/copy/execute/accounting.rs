//! What a Copy has achieved, and what the host is told.

use crate::copy::cut::{Account, Stretch};
use crate::copy::plan::CopyPlan;
use crate::spec::{Outcome, Status};

/// What is known so far.
///
/// FUA: when one write does it all, that write carries it; otherwise a Flush follows the last write, for one
/// barrier is cheaper than a device flush per segment. A Copy with such a barrier that fails reports range 0:
/// until the barrier nothing is known to be durable, and without that no range is done.
#[derive(Debug)]
pub(super) struct Accounting {
    account: Account,
    barrier: Barrier,
    /// The failure that lies lowest in the destination, and where.
    failure: Option<(u64, Status)>,
    aborted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barrier {
    NotNeeded,
    Pending,
    InFlight,
    Done,
}

impl Accounting {
    /// Nothing is written yet. `one_write`: one operation will do it all.
    pub fn new(plan: &CopyPlan, one_write: bool) -> Self {
        let barrier = if plan.fua && !one_write { Barrier::Pending } else { Barrier::NotNeeded };
        Self { account: Account::new(plan), barrier, failure: None, aborted: false }
    }

    pub fn written(&mut self, plan: &CopyPlan, to: Stretch) {
        self.account.written(plan, to);
    }

    /// Keeps the failure that lies lowest: it is the one DW0 speaks of.
    pub fn fail(&mut self, at: u64, status: Status) {
        if self.failure.is_none_or(|(lowest, _)| at < lowest) {
            self.failure = Some((at, status));
        }
    }

    pub fn abort(&mut self) {
        self.aborted = true;
    }

    pub fn is_aborted(&self) -> bool {
        self.aborted
    }

    /// Nothing more is to start.
    pub fn is_stopped(&self) -> bool {
        self.failure.is_some() || self.aborted
    }

    /// Nothing more is to start, or all has been done.
    pub fn is_certain(&self) -> bool {
        self.is_stopped() || self.barrier != Barrier::Pending && self.account.first_incomplete().is_none()
    }

    /// Does each write have to be durable by itself?
    pub fn writes_are_durable(&self, plan: &CopyPlan) -> bool {
        plan.fua && self.barrier == Barrier::NotNeeded
    }

    /// Is it time for the barrier? Then it is under way from now on.
    pub fn begin_barrier(&mut self) -> bool {
        let now = self.barrier == Barrier::Pending && self.account.first_incomplete().is_none();
        if now {
            self.barrier = Barrier::InFlight;
        }
        now
    }

    pub fn end_barrier(&mut self) {
        self.barrier = Barrier::Done;
    }

    /// With nothing in flight any more.
    pub fn outcome(&self) -> Outcome {
        let incomplete = match self.barrier {
            Barrier::NotNeeded | Barrier::Done => self.account.first_incomplete(),
            Barrier::Pending | Barrier::InFlight => Some(0),
        };
        match (incomplete, self.failure) {
            (None, None) => Outcome { status: Status::SUCCESS, dw0: 0 },
            (incomplete, Some((_, status))) => Outcome { status, dw0: incomplete.unwrap_or(0) },
            (Some(dw0), None) if self.aborted => Outcome { status: Status::ABORT_REQUESTED, dw0 },
            (Some(dw0), None) => Outcome { status: Status::INTERNAL_ERROR, dw0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::testing::{copy_of, namespace};

    const FIRST: Stretch = Stretch { start: 0, end: 1024 };
    const SECOND: Stretch = Stretch { start: 1024, end: 1536 };

    /// Two ranges: of two blocks, and of one.
    fn plan(fua: bool) -> CopyPlan {
        copy_of(namespace(2, 64, 9), namespace(1, 64, 9), &[(0, FIRST.len()), (4096, SECOND.len())], fua)
    }

    #[test]
    fn the_lowest_failure_and_the_lowest_gap_are_told() {
        let plan = plan(false);
        let mut accounting = Accounting::new(&plan, false);
        accounting.written(&plan, FIRST);
        assert_eq!(
            accounting.outcome(),
            Outcome { status: Status::INTERNAL_ERROR, dw0: 1 },
            "never, but no success"
        );
        accounting.abort();
        assert!(accounting.is_aborted() && accounting.is_stopped());
        assert_eq!(accounting.outcome(), Outcome { status: Status::ABORT_REQUESTED, dw0: 1 });
        accounting.fail(1024, Status::WRITE_FAULT);
        accounting.fail(512, Status::UNRECOVERED_READ);
        accounting.fail(512, Status::WRITE_FAULT);
        accounting.fail(1000, Status::WRITE_FAULT);
        assert_eq!(accounting.outcome(), Outcome { status: Status::UNRECOVERED_READ, dw0: 1 });
        accounting.written(&plan, SECOND);
        assert_eq!(accounting.outcome().status, Status::UNRECOVERED_READ);
    }

    #[test]
    fn an_abort_after_the_end_is_too_late() {
        let plan = plan(false);
        let mut accounting = Accounting::new(&plan, false);
        accounting.written(&plan, FIRST);
        assert!(!accounting.is_certain());
        accounting.written(&plan, SECOND);
        assert!(accounting.is_certain() && !accounting.is_stopped() && !accounting.begin_barrier());
        accounting.abort();
        assert_eq!(accounting.outcome(), Outcome { status: Status::SUCCESS, dw0: 0 });
    }

    #[test]
    fn one_barrier_comes_last() {
        let plan = plan(true);
        let mut accounting = Accounting::new(&plan, false);
        assert!(!accounting.writes_are_durable(&plan) && !accounting.begin_barrier());
        accounting.written(&plan, SECOND);
        accounting.written(&plan, FIRST);
        assert!(!accounting.is_certain(), "it is to be flushed");
        assert!(accounting.begin_barrier() && !accounting.begin_barrier());
        assert_eq!(accounting.outcome().dw0, 0);
        assert!(!accounting.outcome().status.is_success());
        accounting.end_barrier();
        assert!(accounting.is_certain() && !accounting.begin_barrier());
        assert_eq!(accounting.outcome(), Outcome { status: Status::SUCCESS, dw0: 0 });
    }

    #[test]
    fn the_only_write_needs_no_barrier() {
        let durable = plan(true);
        let mut accounting = Accounting::new(&durable, true);
        assert!(accounting.writes_are_durable(&durable));
        accounting.written(&durable, Stretch { start: 0, end: 1536 });
        assert!(!accounting.begin_barrier() && accounting.outcome().status.is_success());
        let volatile = plan(false);
        assert!(!Accounting::new(&volatile, true).writes_are_durable(&volatile));
    }
}
