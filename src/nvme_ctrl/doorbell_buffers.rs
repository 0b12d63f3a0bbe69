//! The buffers of Doorbell Buffer Config (7Ch): shadow doorbells, which the host writes, and event indices,
//! which tell the host when to ring all the same.

use super::doorbells::{head_slot, tail_slot};
use crate::memory::{Access, DmaError, DmaMap, Words};

/// Doorbells of one buffer: a page of 4 KiB, whatever CC.MPS is. It holds those of 512 queue pairs, more than
/// there are.
const SLOTS: usize = 1024;

/// Where the host has put them, as guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferConfig {
    /// PRP1.
    pub shadow: u64,
    /// PRP2.
    pub events: u64,
}

impl BufferConfig {
    /// Finds both in guest memory.
    ///
    /// # Errors
    /// One of them is not there, or does not allow what is done with it.
    pub fn find(self, memory: &DmaMap) -> Result<Buffers, DmaError> {
        let shadow = memory.words(self.shadow, SLOTS)?;
        let events = memory.words(self.events, SLOTS)?;
        shadow.check(Access::Read)?;
        shadow.check(Access::Write)?;
        events.check(Access::Write)?;
        Ok(Buffers { shadow, events })
    }
}

/// Both buffers as found in guest memory; to be dropped when fenced ([`Words`]).
#[derive(Debug)]
pub struct Buffers {
    shadow: Words,
    events: Words,
}

impl Buffers {
    /// The shadow of SQ `qid`'s tail, read once; the host may have written anything.
    pub fn tail(&self, qid: u16) -> Result<u32, DmaError> {
        self.shadow.load(tail_slot(qid))
    }

    /// The shadow of CQ `qid`'s head, read once.
    pub fn head(&self, qid: u16) -> Result<u32, DmaError> {
        self.shadow.load(head_slot(qid))
    }

    /// As [`Self::tail`], and what was there last if the memory was unmapped but this thread is not fenced
    /// yet.
    pub fn last_tail(&self, qid: u16) -> Result<u32, DmaError> {
        self.shadow.last(tail_slot(qid))
    }

    /// As [`Self::last_tail`], of the CQ's head.
    pub fn last_head(&self, qid: u16) -> Result<u32, DmaError> {
        self.shadow.last(head_slot(qid))
    }

    /// Writes the shadow of SQ `qid`'s tail. The specification leaves that to the host; but hosts are about
    /// that leave the values of earlier queues behind, so it is set whenever a queue begins to use it.
    pub fn set_tail(&self, qid: u16, value: u16) -> Result<(), DmaError> {
        self.shadow.store(tail_slot(qid), value.into())
    }

    /// Writes the shadow of CQ `qid`'s head; see [`Self::set_tail`].
    pub fn set_head(&self, qid: u16, value: u16) -> Result<(), DmaError> {
        self.shadow.store(head_slot(qid), value.into())
    }

    /// EventIdx of SQ `qid`: the host rings BAR0 when it moves the tail on from `value`.
    pub fn set_tail_event(&self, qid: u16, value: u16) -> Result<(), DmaError> {
        self.events.store(tail_slot(qid), value.into())
    }

    /// EventIdx of CQ `qid`: the host rings BAR0 when it moves the head on from `value`.
    pub fn set_head_event(&self, qid: u16, value: u16) -> Result<(), DmaError> {
        self.events.store(head_slot(qid), value.into())
    }
}
