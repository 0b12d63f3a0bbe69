//! Doorbell Buffer Config (7Ch).

use super::super::controller::Controller;
use super::super::doorbell_buffers::BufferConfig;
use super::Reply;
use crate::memory::DmaMap;
use crate::spec::command::Psdt;
use crate::spec::{Sqe, Status};

impl Controller {
    pub(super) fn offers_doorbell_buffers(&self) -> bool {
        self.config.doorbell_buffers && self.shared.doorbells.page().is_none()
    }

    /// I/O queues use the buffers from now on, those that exist and those to come, until the controller is reset. The
    /// admin queue never does.
    ///
    /// Not offered with mapped doorbells: what would have to be trapped there, to wake a worker, is a plain store.
    pub(super) fn doorbell_buffer_config(&mut self, memory: &DmaMap, sqe: &Sqe) -> Result<Reply, Status> {
        let config = BufferConfig { shadow: sqe.prp1.get(), events: sqe.prp2.get() };
        let aligned = |address: u64| address.is_multiple_of(self.shared.page_size());
        if sqe.psdt() != Psdt::Prp
            || !aligned(config.shadow)
            || !aligned(config.events)
            || config.shadow == config.events
        {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let buffers = config.find(memory)?;
        // Doorbells were authoritative up to now, or other buffers, whose memory may be gone by now.
        let earlier = self.buffers.and_then(|earlier| earlier.find(memory).ok());
        let doorbells = &self.shared.doorbells;
        for qid in 1..=self.config.max_ioqpairs {
            if self.queues.sq(qid).is_some() {
                let known = earlier.as_ref().and_then(|earlier| earlier.tail(qid).ok());
                buffers.set_tail(qid, known.unwrap_or_else(|| doorbells.tail(qid)) as u16)?;
            }
            if self.queues.cq(qid).is_some() {
                let known = earlier.as_ref().and_then(|earlier| earlier.head(qid).ok());
                buffers.set_head(qid, known.unwrap_or_else(|| doorbells.head(qid)) as u16)?;
            }
        }
        self.buffers = Some(config);
        self.fence();
        Ok(Status::SUCCESS.into())
    }
}
