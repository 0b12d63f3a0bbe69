//! Create and Delete I/O Submission and Completion Queue (00h, 01h, 04h, 05h).
//!
//! Order of the checks: identifier, size, base, then what the queue refers to.

use super::super::controller::{Awaited, Controller};
use super::super::doorbell_buffers::Buffers;
use super::super::error_log::Failed;
use super::super::queue::{CompletionQueue, SubmissionQueue};
use super::super::queue_table::{CqEntry, SqEntry};
use super::super::worker::ToWorker;
use super::{Pending, Reply, Then};
use crate::memory::DmaError;
use crate::spec::{Sqe, Status, ZeroBased};

/// CDW11 bit 0: physically contiguous. CAP.CQR demands it.
const PC: u32 = 1;
/// CDW11 bit 1 of Create I/O Completion Queue: interrupts enabled.
const IEN: u32 = 1 << 1;

impl Controller {
    pub(super) fn create_cq(&mut self, sqe: &Sqe) -> Result<Reply, Status> {
        let (qid, size) = (qid(sqe), size(sqe));
        if !self.queues.is_valid(qid) || self.queues.cq(qid).is_some() {
            return Err(Status::INVALID_QID.dnr());
        }
        self.check_ring(sqe, size, self.regs.cc.iocqes() == 4)?;
        let vector = (sqe.cdw11.get() >> 16) as u16;
        if vector >= self.config.vectors {
            return Err(Status::INVALID_VECTOR.dnr());
        }
        let vector = (sqe.cdw11.get() & IEN != 0).then_some(vector);
        self.shared.doorbells.set_head(qid, 0);
        self.shadow(|buffers| buffers.set_head(qid, 0));
        self.queues.set_cq(qid, Some(CqEntry { size, deleting: false }));
        let ring = CompletionQueue::new(qid, vector, sqe.prp1.get(), size);
        self.send(self.worker_of(qid), ToWorker::CreateCq(ring));
        Ok(Status::SUCCESS.into())
    }

    pub(super) fn create_sq(&mut self, sqe: &Sqe) -> Result<Reply, Status> {
        let (qid, size) = (qid(sqe), size(sqe));
        if !self.queues.is_valid(qid) || self.queues.sq(qid).is_some() {
            return Err(Status::INVALID_QID.dnr());
        }
        self.check_ring(sqe, size, self.regs.cc.iosqes() == 6)?;
        let cqid = (sqe.cdw11.get() >> 16) as u16;
        if !self.queues.is_valid(cqid) {
            return Err(Status::INVALID_QID.dnr());
        }
        if self.queues.cq(cqid).is_none_or(|cq| cq.deleting) {
            return Err(Status::CQ_INVALID.dnr());
        }
        self.shared.doorbells.set_tail(qid, 0);
        self.shadow(|buffers| buffers.set_tail(qid, 0));
        self.queues.set_sq(qid, Some(SqEntry { size, cqid, deleting: false }));
        let ring = SubmissionQueue::new(qid, cqid, sqe.prp1.get(), size);
        self.send(self.worker_of(cqid), ToWorker::CreateSq(ring));
        Ok(Status::SUCCESS.into())
    }

    /// Completes when no command of the queue can complete any more. What was fetched ends normally (a long Copy
    /// with Command Aborted due to SQ Deletion); what was not is dropped.
    pub(super) fn delete_sq(&mut self, sqe: &Sqe) -> Result<Reply, Status> {
        let qid = qid(sqe);
        let entry = self.queues.sq(qid).filter(|sq| !sq.deleting).ok_or(Status::INVALID_QID.dnr())?;
        self.queues.set_sq(qid, Some(SqEntry { deleting: true, ..entry }));
        let token = self.await_admin(sqe, Then::DeleteSq(qid));
        self.send(self.worker_of(entry.cqid), ToWorker::DeleteSq(qid, token));
        Ok(Reply::Later)
    }

    pub(super) fn delete_cq(&mut self, sqe: &Sqe) -> Result<Reply, Status> {
        let qid = qid(sqe);
        let entry = self.queues.cq(qid).filter(|cq| !cq.deleting).ok_or(Status::INVALID_QID.dnr())?;
        if self.queues.is_bound(qid) {
            return Err(Status::INVALID_QUEUE_DELETION.dnr());
        }
        self.queues.set_cq(qid, Some(CqEntry { deleting: true, ..entry }));
        let token = self.await_admin(sqe, Then::DeleteCq(qid));
        self.send(self.worker_of(qid), ToWorker::DeleteCq(qid, token));
        Ok(Reply::Later)
    }

    /// A token for a worker's part of the admin command `sqe`.
    pub(super) fn await_admin(&mut self, sqe: &Sqe, then: Then) -> u64 {
        self.await_ack(Awaited::Admin(Pending { command: Failed::of(0, sqe), then }))
    }

    /// Writes to the shadow doorbells, if the host has given any. Should their memory be gone, BAR0 counts.
    fn shadow(&self, write: impl FnOnce(&Buffers) -> Result<(), DmaError>) {
        if let Some(config) = self.buffers
            && let Err(error) = config.find(&self.memory.load()).and_then(|buffers| write(&buffers))
        {
            log::debug!("shadow doorbells: {error}");
        }
    }

    fn check_ring(&self, sqe: &Sqe, size: u32, entry_size_set: bool) -> Result<(), Status> {
        if size < 2 || size > u32::from(self.config.mqes) + 1 || !entry_size_set {
            return Err(Status::INVALID_QUEUE_SIZE.dnr());
        }
        if !sqe.prp1.get().is_multiple_of(self.shared.page_size()) {
            return Err(Status::PRP_OFFSET_INVALID.dnr());
        }
        if sqe.cdw11.get() & PC == 0 {
            return Err(Status::INVALID_FIELD.dnr());
        }
        Ok(())
    }
}

fn qid(sqe: &Sqe) -> u16 {
    sqe.cdw10.get() as u16
}

fn size(sqe: &Sqe) -> u32 {
    ZeroBased((sqe.cdw10.get() >> 16) as u16).count()
}
