//! One submission queue and its completion queue, the host's side.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::doorbell::{Doorbells, HEAD, TAIL};
use super::memory::Memory;
use crate::spec::Status;
use crate::spec::command::{CQE_SIZE, SQE_SIZE};

/// A completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) cid: u16,
    pub(super) status: Status,
}

/// Both queues have the same number of entries.
#[derive(Debug)]
pub(super) struct QueuePair {
    memory: Arc<Memory>,
    /// Offsets of the entries in `memory`.
    sq: usize,
    cq: usize,
    entries: u16,
    tail: u16,
    head: u16,
    /// Phase tag of a new completion.
    phase: u32,
    doorbells: Doorbells,
}

impl QueuePair {
    /// Rings with `entries` (2 or more) entries at `sq` and `cq`, zeroed.
    pub(super) fn new(memory: Arc<Memory>, sq: usize, cq: usize, entries: u16, doorbells: Doorbells) -> Self {
        memory.clear(sq, usize::from(entries) * SQE_SIZE);
        memory.clear(cq, usize::from(entries) * CQE_SIZE);
        Self { memory, sq, cq, entries, tail: 0, head: 0, phase: 1, doorbells }
    }

    /// Puts a command into the ring; the device sees it after [`submit`](Self::submit). There must be room,
    /// which the caller sees to by having fewer commands outstanding than there are entries.
    pub(super) fn push(&mut self, sqe: &[u8; SQE_SIZE]) {
        self.memory.write_sqe(self.sq + usize::from(self.tail) * SQE_SIZE, sqe);
        self.tail = if self.tail + 1 == self.entries { 0 } else { self.tail + 1 };
    }

    /// Tells the device of what was pushed.
    pub(super) fn submit(&self) -> anyhow::Result<()> {
        self.doorbells.ring(TAIL, self.tail)
    }

    /// The next completion, if there is one.
    pub(super) fn pop(&mut self) -> Option<Done> {
        let at = self.cq + usize::from(self.head) * CQE_SIZE + 12;
        let dword = u32::from_le(self.memory.word(at).load(Ordering::Acquire));
        if dword >> 16 & 1 != self.phase {
            return None;
        }
        if self.head + 1 == self.entries {
            self.head = 0;
            self.phase ^= 1;
        } else {
            self.head += 1;
        }
        Some(Done { cid: dword as u16, status: Status((dword >> 17) as u16) })
    }

    /// Dword 0 of the completion that [`pop`](Self::pop) gave last.
    pub(super) fn last_dword(&self) -> u32 {
        let slot = if self.head == 0 { self.entries - 1 } else { self.head - 1 };
        u32::from_le(self.memory.word(self.cq + usize::from(slot) * CQE_SIZE).load(Ordering::Relaxed))
    }

    /// Gives the entries of the completions taken back to the device.
    pub(super) fn release(&self) -> anyhow::Result<()> {
        self.doorbells.ring(HEAD, self.head)
    }
}
