//! A Copy under way, and the flush that follows it where the write cache was turned off meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::block::{BlockError, Direction, Issue};
use crate::copy::{Bounce, CopyPlan, CopyTask, ExecOptions, Reject, Written};
use crate::disk::{DiskError, IoBuf, Moved, Op};
use crate::namespace::Namespace;
use crate::nvme_ctrl::shared::Shared;
use crate::spec::{Outcome, Status};

/// See the module docs.
#[derive(Debug)]
pub struct Copying {
    task: CopyTask,
    /// The destination, where the Copy does not make it durable.
    volatile: Option<Arc<Namespace>>,
    /// The write cache was turned off meanwhile: the Copy is done but for a flush, which ends like this.
    flushing: Option<Option<Outcome>>,
}

impl Copying {
    /// Of a task. `volatile`: its destination, where it does not make that durable itself.
    pub(super) fn new(task: CopyTask, volatile: Option<Arc<Namespace>>) -> Self {
        Self { task, volatile, flushing: None }
    }

    pub(super) fn poll(&mut self, shared: &Shared, issue: &mut Issue<'_>) -> Option<Outcome> {
        if let Some(flushing) = self.flushing {
            return Some(self.counted(shared, flushing?));
        }
        let outcome = self.task.poll(&mut |part, ns: &Arc<_>, op| issue(part, ns, op))?;
        if outcome.status.is_success()
            && let Some(ns) = self.volatile.take()
            && !shared.write_cache.load(Ordering::SeqCst)
        {
            self.flushing = Some(None);
            issue(0, &ns, Op::Flush);
            return None;
        }
        Some(self.counted(shared, outcome))
    }

    /// What succeeded is counted.
    fn counted(&self, shared: &Shared, outcome: Outcome) -> Outcome {
        if outcome.status.is_success() {
            shared.counters.copied(self.task.len());
        }
        outcome
    }

    /// The same, by reads and writes alone. It must not have begun.
    ///
    /// # Errors
    /// That takes more memory than there is.
    pub(super) fn bounced(self, bounce: &Bounce) -> Result<Self, Reject> {
        let plan = self.task.plan().clone().bounced();
        Ok(Self { task: CopyTask::new(plan, ExecOptions::default(), bounce)?, ..self })
    }

    /// What it is about to do.
    pub fn plan(&self) -> &CopyPlan {
        self.task.plan()
    }

    pub(super) fn moves_memory(&self) -> bool {
        self.task.moves_memory()
    }

    pub(super) fn done(
        &mut self,
        part: u32,
        result: Result<Moved, DiskError>,
        buf: Option<IoBuf>,
    ) -> Option<Written> {
        if self.flushing.is_none() {
            return self.task.done(part, result, buf);
        }
        let status = match result {
            Ok(_) => Status::SUCCESS,
            Err(error) => BlockError::Image(error, Direction::Write).into(),
        };
        // DW0 after a failure: no range is durable.
        self.flushing = Some(Some(Outcome::of(status)));
        None
    }

    pub(super) fn memory(&self) -> usize {
        size_of::<Self>() + self.task.heap()
    }

    pub(super) fn abort(&mut self) {
        self.task.abort();
    }

    pub(super) fn is_over(&self) -> bool {
        self.flushing.is_none() && self.task.is_over()
    }

    pub(super) fn is_starved(&self) -> bool {
        self.task.is_starved()
    }
}
