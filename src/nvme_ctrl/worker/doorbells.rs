//! A worker's doorbells: where it reads them, what it believes of them, and when hosts are to ring.
//!
//! With Doorbell Buffer Config the shadow buffer is the truth for I/O queues, and a write to BAR0 is a hint
//! that ends a sleep. When the buffer's memory goes, BAR0 takes over with the values last seen.

use super::core::Core;
use super::messages::FromWorker;
use super::rings::{Cq, Sq};
use crate::memory::DmaError;

impl Core {
    /// Looks the buffers up in the newest table: theirs may be another region now, or none.
    pub(super) fn find_buffers(&mut self) {
        let Some(config) = self.shadow.config else { return };
        match config.find(self.memory.load()) {
            Ok(buffers) => {
                self.shadow.buffers = Some(buffers);
                // What stands in the event indices is not known.
                self.sqs.iter_mut().for_each(|sq| sq.event = None);
                self.cqs.iter_mut().for_each(|cq| cq.event = None);
            }
            Err(error) => self.lose_buffers(error),
        }
    }

    /// From now on BAR0 counts, whose registers may be far behind.
    ///
    /// When the memory was unmapped they get what the shadows held last, which is no older than any write
    /// trapped up to now: an unmap is answered, and the next message read, only after this. When its pages
    /// are gone (the client shrank the file), they get what was seen last, unless a write was trapped since.
    #[cold]
    fn lose_buffers(&mut self, error: DmaError) {
        if self.shadow.buffers.is_some() {
            log::warn!("shadow doorbells are gone ({error}); doorbells in BAR0 count until they are back");
            self.leave_buffers();
        }
    }

    /// Goes back to BAR0, as when their memory is gone: until they are found again no guest memory is looked
    /// at.
    #[cold]
    pub(super) fn leave_buffers(&mut self) {
        let Some(buffers) = self.shadow.buffers.take() else { return };
        let doorbells = &self.shared.doorbells;
        let mut invalid = false;
        for Sq { ring, tail, register, .. } in self.sqs.iter_mut() {
            let last = buffers.last_tail(ring.qid);
            let size = ring.size();
            invalid |= last.is_ok_and(|raw| tail.take(raw, |tail| u32::from(tail) < size).is_err());
            if last.is_ok() || doorbells.tail(ring.qid) == *register {
                doorbells.set_tail(ring.qid, tail.value());
            }
        }
        for Cq { ring, head, register, .. } in self.cqs.iter_mut() {
            let last = buffers.last_head(ring.qid);
            invalid |= last.is_ok_and(|raw| head.take(raw, |head| ring.set_head(head).is_ok()).is_err());
            if last.is_ok() || doorbells.head(ring.qid) == *register {
                doorbells.set_head(ring.qid, ring.head());
            }
        }
        if invalid {
            self.tell_invalid();
        }
    }

    /// Takes in the tail of the SQ at `at`.
    pub(super) fn look_at_tail(&mut self, at: usize) {
        let Some(sq) = self.sqs.get_mut(at) else { return };
        let (qid, size) = (sq.ring.qid, sq.ring.size());
        let mut raw = self.shared.doorbells.tail(qid);
        match self.shadow.buffers.as_ref().map(|buffers| buffers.tail(qid)) {
            Some(Ok(shadow)) => sq.register = std::mem::replace(&mut raw, shadow),
            Some(Err(error)) => {
                self.lose_buffers(error);
                raw = self.shared.doorbells.tail(qid);
            }
            None => {}
        }
        let Some(sq) = self.sqs.get_mut(at) else { return };
        if sq.tail.take(raw, |tail| u32::from(tail) < size).is_err() {
            self.tell_invalid();
        }
    }

    /// Does the tail's slot hold something else than what was taken in last?
    pub(super) fn has_rung(&self, sq: &Sq) -> bool {
        let raw = match &self.shadow.buffers {
            Some(buffers) => buffers.tail(sq.ring.qid).unwrap_or(u32::MAX),
            None => self.shared.doorbells.tail(sq.ring.qid),
        };
        raw as u16 != sq.tail.value()
    }

    /// Takes in the head of the CQ `cqid`.
    pub(super) fn look_at_head(&mut self, cqid: u16) {
        let mut raw = self.shared.doorbells.head(cqid);
        let shadow = self.shadow.buffers.as_ref().map(|buffers| buffers.head(cqid));
        if let Some(Err(error)) = shadow {
            self.lose_buffers(error);
            raw = self.shared.doorbells.head(cqid);
        }
        let Some(Cq { ring, head, register, .. }) = self.cqs.find(cqid) else { return };
        if let Some(Ok(shadow)) = shadow {
            *register = std::mem::replace(&mut raw, shadow);
        }
        if head.take(raw, |head| ring.set_head(head).is_ok()).is_err() {
            if self.shadow.buffers.is_none() {
                // Taken back, so that the same value is told again if it is written again.
                self.shared.doorbells.retract_head(cqid, raw as u16, ring.head());
            }
            self.tell_invalid();
        }
    }

    /// One message at a time: a host that writes bad values as fast as it can does not fill the mailbox.
    fn tell_invalid(&self) {
        if !self.shared.invalid_doorbell.swap(true, std::sync::atomic::Ordering::AcqRel) {
            self.out.send(FromWorker::InvalidDoorbell);
        }
    }

    /// Tells hosts not to ring, where they would: this worker looks by itself for a while.
    ///
    /// An index that the host has passed does so, until a lap later; so there is nothing to do for a queue
    /// that moves.
    pub(super) fn disarm(&mut self) {
        let Some(buffers) = &self.shadow.buffers else { return };
        let mut result = Ok(());
        for sq in self.sqs.iter_mut() {
            let tail = sq.tail.value();
            if sq.event == Some(tail) {
                let passed = tail.wrapping_sub(1);
                result = result.and(buffers.set_tail_event(sq.ring.qid, passed));
                sq.event = Some(passed);
            }
        }
        if let Err(error) = result {
            self.lose_buffers(error);
        }
    }

    /// EventIdx of each SQ is the tail last seen; of a CQ, the head last seen if something waits for room
    /// there. (The others are left alone: their hosts ring once a lap at most.)
    pub(super) fn set_event_indices(&mut self) {
        let Some(buffers) = &self.shadow.buffers else { return };
        let mut result = Ok(());
        for sq in self.sqs.iter_mut() {
            let tail = sq.tail.value();
            if sq.event != Some(tail) {
                result = result.and(buffers.set_tail_event(sq.ring.qid, tail));
                sq.event = Some(tail);
            }
            if sq.ring.is_empty(tail) {
                continue;
            }
            if let Some(cq) = self.cqs.find(sq.ring.cqid).filter(|cq| !cq.ring.has_room()) {
                let head = cq.ring.head();
                if cq.event != Some(head) {
                    result = result.and(buffers.set_head_event(cq.ring.qid, head));
                    cq.event = Some(head);
                }
            }
        }
        if let Err(error) = result {
            // The look that follows reads BAR0.
            self.lose_buffers(error);
        }
    }
}
