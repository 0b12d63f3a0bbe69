//! Copy (19h): fetches the range list and hands over to [`crate::copy`], which checks, plans and executes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Command, Issue, Outcome, Task};
use crate::copy::{self, Capabilities, CopyTask, ExecOptions, Reject};
use crate::nvme_ctrl::shared::Shared;
use crate::nvme_ctrl::transfer;
use crate::spec::Status;
use crate::spec::copy::CopyCommand;

pub(super) fn copy(cmd: &Command<'_>) -> Result<Task, Status> {
    let (shared, sqe) = (cmd.shared, cmd.sqe);
    let command = CopyCommand {
        nsid: sqe.nsid.get(),
        cdw: [sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15].map(|dword| dword.get()),
    };
    let capabilities = Capabilities { ocfs: shared.limits.ocfs, cdfe: shared.cdfe.load(Ordering::SeqCst) };
    let refuse = |reject: Reject| {
        log::debug!("Copy cid {:#x} refused: {} (range {:?})", sqe.cid.get(), reject.what, reject.range);
        reject.status
    };
    let checked = copy::check_command(&command, &shared.namespaces, capabilities).map_err(refuse)?;
    // The list is copied out once: what is checked is what is carried out, whatever the host does to its pages.
    let list = transfer::fetch(cmd.memory, sqe, checked.list_len(), shared.page_size(), true)?;
    let ranges = checked.decode(&list).map_err(refuse)?;
    let plan = copy::plan(&checked, &ranges, &shared.namespaces).map_err(refuse)?;
    let plan = if shared.write_cache.load(Ordering::SeqCst) { plan } else { plan.durable() };
    let task = CopyTask::new(plan, ExecOptions::default(), cmd.bounce).map_err(refuse)?;
    Ok(Task::Copy(Box::new(task)))
}

pub(super) fn poll(task: &mut CopyTask, shared: &Shared, issue: &mut Issue<'_>) -> Option<Outcome> {
    let outcome = task.poll(&mut |part, ns: &Arc<_>, op| issue(part, ns, op))?;
    if outcome.status.is_success() {
        shared.counters.copied(task.len());
    }
    Some(Outcome { status: outcome.status, dw0: outcome.dw0 })
}
