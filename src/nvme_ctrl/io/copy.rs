//! Copy (19h): fetches the range list and hands over to [`crate::copy`], which checks, plans and executes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Outcome, Submission, Task};
use crate::block::{BlockError, Direction, Issue, Work};
use crate::copy::{self, Capabilities, CopyPlan, CopyTask, ExecOptions, Reject};
use crate::disk::{DiskError, IoBuf, Op};
use crate::namespace::Namespace;
use crate::nvme_ctrl::shared::Shared;
use crate::nvme_ctrl::transfer;
use crate::spec::Status;
use crate::spec::copy::CopyCommand;

pub(super) fn copy(cmd: &Submission<'_>) -> Result<Task, Status> {
    let (shared, sqe) = (cmd.shared, cmd.sqe);
    let command = CopyCommand {
        nsid: sqe.nsid.get(),
        cdw: [sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15].map(|dword| dword.get()),
    };
    let capabilities = Capabilities {
        ocfs: shared.limits.ocfs,
        cdfe: shared.cdfe.load(Ordering::SeqCst),
        cntlid: shared.cntlid,
    };
    let refuse = |reject: Reject| {
        log::debug!("Copy cid {:#x} refused: {} (range {:?})", sqe.cid.get(), reject.what, reject.range);
        reject.status
    };
    let checked = copy::check_command(&command, cmd.namespaces, capabilities).map_err(refuse)?;
    // The list is copied out once: what is checked is what is carried out, whatever the host does to its pages.
    let list = transfer::fetch(cmd.memory, sqe, checked.list_len(), shared.page_size(), true, cmd.work)?;
    let ranges = checked.decode(&list).map_err(refuse)?;
    cmd.work.charge(ranges.len() as u64 * Work::RANGE);
    let plan = copy::plan(&checked, &ranges, cmd.namespaces).map_err(refuse)?;
    let plan = if shared.write_cache.load(Ordering::SeqCst) { plan } else { plan.durable() };
    log::debug!("Copy cid {:#x}: {plan}", sqe.cid.get());
    if cmd.at_once && plan.move_now() {
        shared.counters.copied(plan.dst().len);
        cmd.work.charge(plan.dst().len);
        return Ok(Task::Over(Outcome::of(Status::SUCCESS)));
    }
    let volatile = (!plan.fua()).then(|| Arc::clone(plan.dst_ns()));
    let task = CopyTask::new(plan, ExecOptions::default(), cmd.bounce).map_err(refuse)?;
    Ok(Task::Copy(Box::new(Copying { task, volatile, flushing: None })))
}

/// A Copy under way.
#[derive(Debug)]
pub struct Copying {
    task: CopyTask,
    /// The destination, where the Copy does not make it durable.
    volatile: Option<Arc<Namespace>>,
    /// The write cache was turned off meanwhile: the Copy is done but for a flush, which ends like this.
    flushing: Option<Option<Outcome>>,
}

impl Copying {
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

    /// What it is about to do.
    pub fn plan(&self) -> &CopyPlan {
        self.task.plan()
    }

    pub(super) fn moves_memory(&self) -> bool {
        self.task.moves_memory()
    }

    pub(super) fn done(&mut self, part: u32, result: Result<(), DiskError>, buf: Option<IoBuf>) {
        if self.flushing.is_none() {
            return self.task.done(part, result, buf);
        }
        let status = match result {
            Ok(()) => Status::SUCCESS,
            Err(error) => BlockError::Image(error, Direction::Write).into(),
        };
        // DW0 after a failure: no range is durable.
        self.flushing = Some(Some(Outcome::of(status)));
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
