//! Copy (19h): fetches the range list and hands over to [`crate::copy`], which checks, plans and executes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::copying::Copying;
use super::submission::Submission;
use super::task::Task;
use crate::block::Work;
use crate::copy::{self, Capabilities, CopyTask, ExecOptions, Reject};
use crate::nvme_ctrl::transfer;
use crate::spec::copy::CopyCommand;
use crate::spec::{Outcome, Status};

pub(super) fn copy(cmd: &Submission<'_>) -> Result<Task, Status> {
    let (shared, sqe) = (cmd.shared, cmd.sqe);
    if !shared.limits.has_copy() {
        return Err(Status::INVALID_OPCODE.dnr());
    }
    let command = CopyCommand::of(sqe);
    let capabilities = Capabilities {
        ocfs: shared.limits.ocfs(),
        cdfe: shared.cdfe.load(Ordering::SeqCst),
        cntlid: shared.cntlid,
    };
    let refuse = |reject: Reject| {
        log::debug!("Copy cid {:#x} refused: {} (range {:?})", sqe.cid.get(), reject.what, reject.range);
        if let Some(notes) = cmd.watched {
            notes.refused(reject);
        }
        reject.status
    };
    let checked = copy::check_command(&command, cmd.namespaces, capabilities).map_err(refuse)?;
    // The list is copied out once: what is checked is what is carried out, whatever the host does to its pages.
    let list = transfer::fetch(cmd.memory, sqe, checked.list_len(), shared.page_size(), true, cmd.work)
        .map_err(|status| refuse(unread(status)))?;
    let ranges = checked.decode(&list).map_err(refuse)?;
    if let Some(notes) = cmd.watched {
        notes.listed(&ranges);
    }
    cmd.work.charge(ranges.len() as u64 * Work::RANGE);
    let plan = copy::plan(&checked, &ranges, cmd.namespaces).map_err(refuse)?;
    let plan = if shared.write_cache.load(Ordering::SeqCst) { plan } else { plan.durable() };
    log::debug!("Copy cid {:#x}: {plan}", sqe.cid.get());
    if cmd.watched.is_none() && plan.move_now() {
        shared.counters.copied(plan.dst().len);
        cmd.work.charge(plan.dst().len);
        return Ok(Task::Over(Outcome::of(Status::SUCCESS)));
    }
    let volatile = (!plan.fua()).then(|| Arc::clone(plan.dst_ns()));
    let task = CopyTask::new(plan, ExecOptions::default(), cmd.bounce).map_err(refuse)?;
    Ok(Task::Copy(Box::new(Copying::new(task, volatile))))
}

/// The range list cannot be had.
fn unread(status: Status) -> Reject {
    Reject {
        status,
        range: None,
        rule: copy::rule::LIST_MEMORY,
        what: "the range list cannot be read from the host's memory",
    }
}
