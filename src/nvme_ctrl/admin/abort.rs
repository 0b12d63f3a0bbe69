//! Abort (08h): best effort, always successful; DW0 bit 0 says whether the command was left alone. It completes after
//! the command that it aborts, so that what it says is true: a host may take the blocks of that for its own.

use super::super::controller::Controller;
use super::super::io::Outcome;
use super::super::worker::ToWorker;
use super::{Reply, Then};
use crate::spec::{Sqe, Status};

/// Abort Command Limit, 0-based, as Identify Controller ACL reports it.
pub(super) const ACL: u8 = 3;

impl Controller {
    pub(super) fn abort(&mut self, sqe: &Sqe) -> Result<Reply, Status> {
        let (sqid, cid) = (sqe.cdw10.get() as u16, (sqe.cdw10.get() >> 16) as u16);
        if self.admin.aborts > ACL {
            return Err(Status::ABORT_LIMIT);
        }
        if sqid == 0 {
            let aborted = self.admin.events.forget(cid);
            if aborted {
                // The aborted request goes first. Its completion needs an entry beside the one this command holds;
                // a host that keeps its queue so full loses it, which Abort's best effort allows.
                self.admin_complete_unreserved(cid, Outcome::of(Status::ABORT_REQUESTED));
            }
            return Ok(Reply::Done(Outcome { status: Status::SUCCESS, dw0: u32::from(!aborted) }));
        }
        let entry = self.queues.sq(sqid).ok_or(Status::INVALID_FIELD.dnr())?;
        self.admin.aborts += 1;
        let token = self.await_admin(sqe, Then::Abort);
        self.send(self.worker_of(entry.cqid), ToWorker::Abort(sqid, cid, token));
        Ok(Reply::Later)
    }
}
