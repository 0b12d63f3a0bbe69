//! Queue rings: where the next submission is fetched from and the next completion written to.
//!
//! The admin pair and every I/O queue use these; they know the ring and guest memory, nothing of commands.

use zerocopy::{FromZeros, IntoBytes};

use crate::memory::{DmaError, DmaMap};
use crate::spec::command::{CQE_SIZE, SQE_SIZE};
use crate::spec::{Cqe, Sqe, Status};

/// A submission queue as its owner sees it.
#[derive(Debug)]
pub struct SubmissionQueue {
    /// SQID.
    pub qid: u16,
    /// The completion queue it posts to.
    pub cqid: u16,
    base: u64,
    size: u32,
    head: u16,
}

impl SubmissionQueue {
    /// A ring of `size` entries (1-based, at least 2) at guest address `base`.
    pub fn new(qid: u16, cqid: u16, base: u64, size: u32) -> Self {
        Self { qid, cqid, base, size, head: 0 }
    }

    /// SQHD: the entry that will be fetched next.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Entries.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Is there nothing to fetch up to `tail`?
    pub fn is_empty(&self, tail: u16) -> bool {
        self.head == tail
    }

    /// Entries from the head to `tail`.
    pub fn left(&self, tail: u16) -> u32 {
        (u32::from(tail) + self.size - u32::from(self.head)) % self.size
    }

    /// Copies the entry at the head out of guest memory. Who goes on with it calls
    /// [`advance`](Self::advance), and does not read it again.
    ///
    /// # Errors
    /// The entry's memory is not there.
    pub fn peek(&self, memory: &DmaMap) -> Result<Sqe, DmaError> {
        let mut sqe = Sqe::new_zeroed();
        memory.read(entry(self.base, self.head, SQE_SIZE)?, sqe.as_mut_bytes())?;
        Ok(sqe)
    }

    /// Begins to bring entries near that are fetched soon, `count` at most: the host has just written them,
    /// on another processor.
    pub fn prefetch(&self, memory: &DmaMap, count: u32) {
        // Those behind the ring's end come with the next batch.
        let count = count.min(self.size - u32::from(self.head));
        if count > 0
            && let Ok(first) = entry(self.base, self.head, SQE_SIZE)
        {
            memory.prefetch(first, count as usize * SQE_SIZE);
        }
    }

    /// Moves the head past the entry it is at.
    pub fn advance(&mut self) {
        self.head = next(self.head, self.size);
    }

    /// Copies the entry at the head out of guest memory, once, and moves the head on.
    ///
    /// # Errors
    /// The entry's memory is not there.
    pub fn fetch(&mut self, memory: &DmaMap) -> Result<Sqe, DmaError> {
        let sqe = self.peek(memory)?;
        self.advance();
        Ok(sqe)
    }
}

/// A completion queue as its owner sees it.
#[derive(Debug)]
pub struct CompletionQueue {
    /// CQID.
    pub qid: u16,
    /// Interrupt vector, when interrupts are enabled.
    pub vector: Option<u16>,
    base: u64,
    size: u32,
    tail: u16,
    head: u16,
    phase: bool,
    reserved: u32,
}

/// What a completion says beside its queue.
#[derive(Clone, Copy, Debug)]
pub struct Post {
    /// SQID.
    pub sqid: u16,
    /// SQHD.
    pub sqhd: u16,
    /// CID.
    pub cid: u16,
    /// Status.
    pub status: Status,
    /// DW0.
    pub dw0: u32,
}

/// The host moved a CQ head past the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadPastTail;

impl CompletionQueue {
    /// A ring of `size` entries (1-based, at least 2) at guest address `base`. The first pass writes phase 1.
    pub fn new(qid: u16, vector: Option<u16>, base: u64, size: u32) -> Self {
        Self { qid, vector, base, size, tail: 0, head: 0, phase: true, reserved: 0 }
    }

    /// Takes over the host's head.
    ///
    /// # Errors
    /// `head` is past the tail: the host cannot have consumed what was not posted. Nothing changes.
    pub fn set_head(&mut self, head: u16) -> Result<(), HeadPastTail> {
        if head == self.head {
            return Ok(());
        }
        if u32::from(head) >= self.size || self.distance(self.head, head) > self.used() {
            return Err(HeadPastTail);
        }
        self.head = head;
        Ok(())
    }

    /// Entries.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Has the host consumed all that was posted?
    pub fn all_seen(&self) -> bool {
        self.head == self.tail
    }

    /// The host's head as last taken over.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Where the next completion goes.
    pub fn tail(&self) -> u16 {
        self.tail
    }

    /// Can another entry be set aside?
    pub fn has_room(&self) -> bool {
        self.reserved < self.size - 1 - self.used()
    }

    /// Sets an entry aside for a command that is about to be fetched, so that its completion always has room.
    pub fn reserve(&mut self) -> bool {
        let ok = self.has_room();
        if ok {
            self.reserved += 1;
        }
        ok
    }

    /// Gives a reservation back unused.
    pub fn release(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// Writes one completion into a reserved entry: the dword with the phase tag last, released.
    ///
    /// # Errors
    /// The entry's memory is not there; the queue is then useless to the host.
    pub fn post(&mut self, memory: &DmaMap, post: &Post) -> Result<(), DmaError> {
        self.release();
        let cqe = Cqe {
            dw0: post.dw0.into(),
            dw1: 0.into(),
            sqhd: post.sqhd.into(),
            sqid: post.sqid.into(),
            cid: post.cid.into(),
            status: Cqe::status_word(post.status, self.phase).into(),
        };
        let at = entry(self.base, self.tail, CQE_SIZE)?;
        memory.store_cqe(at, zerocopy::transmute!(cqe))?;
        self.tail = next(self.tail, self.size);
        if self.tail == 0 {
            self.phase = !self.phase;
        }
        Ok(())
    }

    fn used(&self) -> u32 {
        self.distance(self.head, self.tail)
    }

    /// Both are below the size.
    fn distance(&self, from: u16, to: u16) -> u32 {
        let (from, to) = (u32::from(from), u32::from(to));
        // Not by a remainder: this is asked more than once for each command.
        if to >= from { to - from } else { to + self.size - from }
    }
}

fn entry(base: u64, index: u16, size: usize) -> Result<u64, DmaError> {
    base.checked_add(u64::from(index) * size as u64).ok_or(DmaError::Unmapped(base))
}

fn next(index: u16, size: u32) -> u16 {
    let next = u32::from(index) + 1;
    if next >= size { 0 } else { next as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_wrap_at_the_size() {
        assert_eq!(next(0, 2), 1);
        assert_eq!(next(1, 2), 0);
        assert_eq!(next(65534, 65536), 65535);
        assert_eq!(next(65535, 65536), 0);
    }

    #[test]
    fn a_reservation_counts_against_the_free_entries() {
        let mut cq = CompletionQueue::new(1, None, 0, 4);
        assert!(cq.reserve() && cq.reserve() && cq.reserve());
        assert!(!cq.reserve(), "one entry of a ring stays empty");
        cq.release();
        assert!(cq.reserve());
    }

    #[test]
    fn the_head_never_passes_the_tail() {
        let mut cq = CompletionQueue::new(1, None, 0, 4);
        assert_eq!(cq.set_head(1), Err(HeadPastTail));
        cq.tail = 2;
        assert_eq!(cq.set_head(3), Err(HeadPastTail));
        assert_eq!(cq.set_head(2), Ok(()));
        assert_eq!(cq.used(), 0);
        assert_eq!(cq.set_head(1), Err(HeadPastTail), "heads do not move back");
    }
}
