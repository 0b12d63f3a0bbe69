//! Abort (08h): best effort, always successful; DW0 bit 0 says whether the command was left alone. It
//! completes after the command that it aborts, so that what it says is true: a host may take the blocks of
//! that for its own.

use super::ctl::{Ctl, Reply, pending};
use crate::nvme_ctrl::pending::Then;
use crate::nvme_ctrl::worker::ToWorker;
use crate::spec::{Outcome, Sqe, Status};

/// Abort Command Limit, 0-based, as Identify Controller ACL reports it.
pub(super) const ACL: u8 = 3;

pub(super) fn abort(ctl: &mut Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    let (sqid, cid) = (sqe.cdw10.get() as u16, (sqe.cdw10.get() >> 16) as u16);
    if ctl.admin.aborts > ACL {
        return Err(Status::ABORT_LIMIT);
    }
    if sqid == 0 {
        let aborted = ctl.admin.events.forget(cid);
        if aborted {
            // The aborted request goes first. Its completion needs an entry beside the one this command
            // holds; a host that keeps its queue so full loses it, which Abort's best effort allows.
            ctl.post_unreserved(cid, Outcome::of(Status::ABORT_REQUESTED));
        }
        return Ok(Reply::value(u32::from(!aborted)));
    }
    let entry = ctl.queues.sq(sqid).ok_or(Status::INVALID_FIELD.dnr())?;
    ctl.admin.aborts += 1;
    ctl.workers.ask(entry.cqid, pending(sqe, Then::Abort), |token| ToWorker::Abort(sqid, cid, token));
    Ok(Reply::Later)
}
