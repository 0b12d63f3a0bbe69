//! Asynchronous Event Request (0Ch).

use super::ctl::{Ctl, Reply};
use crate::spec::{Outcome, Sqe, Status};

pub(super) fn async_event_request(ctl: &mut Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    if ctl.admin.events.request(sqe.cid.get()) {
        Ok(Reply::Outstanding)
    } else {
        Err(Status::AER_LIMIT.dnr())
    }
}

/// Completes requests with events while there are both and the queue has room.
pub(super) fn deliver(ctl: &mut Ctl<'_>) {
    while let Some((cid, event)) = ctl.admin.events.deliverable() {
        if !ctl.post_unreserved(cid, Outcome { status: Status::SUCCESS, dw0: event.dw0() }) {
            return;
        }
        ctl.admin.events.delivered(event);
        ctl.admin.counts.event(event);
    }
}
