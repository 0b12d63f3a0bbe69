//! Create and Delete I/O Submission and Completion Queue (00h, 01h, 04h, 05h).
//!
//! Order of the checks: identifier, size, base, then what the queue refers to.

use super::ctl::{Ctl, Reply, pending};
use crate::memory::DmaError;
use crate::nvme_ctrl::doorbell_buffers::Buffers;
use crate::nvme_ctrl::pending::Then;
use crate::nvme_ctrl::queue::{CompletionQueue, SubmissionQueue};
use crate::nvme_ctrl::queue_table::{CqEntry, SqEntry};
use crate::nvme_ctrl::worker::ToWorker;
use crate::spec::{Sqe, Status, ZeroBased};

/// CDW11 bit 0: physically contiguous. CAP.CQR demands it.
const PC: u32 = 1;
/// CDW11 bit 1 of Create I/O Completion Queue: interrupts enabled.
const IEN: u32 = 1 << 1;

pub(super) fn create_cq(ctl: &mut Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    let (qid, size) = (qid(sqe), size(sqe));
    if !ctl.queues.is_valid(qid) || ctl.queues.cq(qid).is_some() {
        return Err(Status::INVALID_QID.dnr());
    }
    check_ring(ctl, sqe, size, ctl.cc.iocqes() == 4)?;
    let vector = (sqe.cdw11.get() >> 16) as u16;
    if vector >= ctl.config.vectors {
        return Err(Status::INVALID_VECTOR.dnr());
    }
    let vector = (sqe.cdw11.get() & IEN != 0).then_some(vector);
    ctl.shared.doorbells.set_head(qid, 0);
    shadow(ctl, |buffers| buffers.set_head(qid, 0));
    ctl.queues.set_cq(qid, Some(CqEntry { size, deleting: false }));
    let ring = CompletionQueue::new(qid, vector, sqe.prp1.get(), size);
    ctl.workers.send(qid, ToWorker::CreateCq(ring));
    Ok(Status::SUCCESS.into())
}

pub(super) fn create_sq(ctl: &mut Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    let (qid, size) = (qid(sqe), size(sqe));
    if !ctl.queues.is_valid(qid) || ctl.queues.sq(qid).is_some() {
        return Err(Status::INVALID_QID.dnr());
    }
    check_ring(ctl, sqe, size, ctl.cc.iosqes() == 6)?;
    let cqid = (sqe.cdw11.get() >> 16) as u16;
    if !ctl.queues.is_valid(cqid) {
        return Err(Status::INVALID_QID.dnr());
    }
    if ctl.queues.cq(cqid).is_none_or(|cq| cq.deleting) {
        return Err(Status::CQ_INVALID.dnr());
    }
    ctl.shared.doorbells.set_tail(qid, 0);
    shadow(ctl, |buffers| buffers.set_tail(qid, 0));
    ctl.queues.set_sq(qid, Some(SqEntry { size, cqid, deleting: false }));
    let ring = SubmissionQueue::new(qid, cqid, sqe.prp1.get(), size);
    ctl.workers.send(cqid, ToWorker::CreateSq(ring));
    Ok(Status::SUCCESS.into())
}

/// Completes when no command of the queue can complete any more. What was fetched ends normally (a long Copy
/// with Command Aborted due to SQ Deletion); what was not is dropped.
pub(super) fn delete_sq(ctl: &mut Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    let qid = qid(sqe);
    let entry = ctl.queues.sq(qid).filter(|sq| !sq.deleting).ok_or(Status::INVALID_QID.dnr())?;
    ctl.queues.set_sq(qid, Some(SqEntry { deleting: true, ..entry }));
    let pending = pending(sqe, Then::DeleteSq(qid));
    ctl.workers.ask(entry.cqid, pending, |token| ToWorker::DeleteSq(qid, token));
    Ok(Reply::Later)
}

pub(super) fn delete_cq(ctl: &mut Ctl<'_>, sqe: &Sqe) -> Result<Reply, Status> {
    let qid = qid(sqe);
    let entry = ctl.queues.cq(qid).filter(|cq| !cq.deleting).ok_or(Status::INVALID_QID.dnr())?;
    if ctl.queues.is_bound(qid) {
        return Err(Status::INVALID_QUEUE_DELETION.dnr());
    }
    ctl.queues.set_cq(qid, Some(CqEntry { deleting: true, ..entry }));
    ctl.workers.ask(qid, pending(sqe, Then::DeleteCq(qid)), |token| ToWorker::DeleteCq(qid, token));
    Ok(Reply::Later)
}

/// Writes to the shadow doorbells, if the host has given any. Should their memory be gone, BAR0 counts.
fn shadow(ctl: &Ctl<'_>, write: impl FnOnce(&Buffers) -> Result<(), DmaError>) {
    if let Some(config) = ctl.workers.buffers()
        && let Err(error) = config.find(ctl.memory).and_then(|buffers| write(&buffers))
    {
        log::debug!("shadow doorbells: {error}");
    }
}

fn check_ring(ctl: &Ctl<'_>, sqe: &Sqe, size: u32, entry_size_set: bool) -> Result<(), Status> {
    if size < 2 || size > u32::from(ctl.config.mqes) + 1 || !entry_size_set {
        return Err(Status::INVALID_QUEUE_SIZE.dnr());
    }
    if !sqe.prp1.get().is_multiple_of(ctl.shared.page_size()) {
        return Err(Status::PRP_OFFSET_INVALID.dnr());
    }
    if sqe.cdw11.get() & PC == 0 {
        return Err(Status::INVALID_FIELD.dnr());
    }
    Ok(())
}

fn qid(sqe: &Sqe) -> u16 {
    sqe.cdw10.get() as u16
}

fn size(sqe: &Sqe) -> u32 {
    ZeroBased((sqe.cdw10.get() >> 16) as u16).count()
}
