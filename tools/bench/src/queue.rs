//! One queue pair: its rings, and its doorbells.

use std::sync::{Arc, Mutex, PoisonError};

use nvme_host::ring::{CQE, CqRing, SQE, SqRing, Taken};
use nvme_host::{Bells, Cqe, Memory};

use super::client::Client;

/// Index of the tail doorbell, and of the head doorbell.
const TAIL: usize = 0;
const HEAD: usize = 1;

/// The doorbells of one queue pair: its tail's, then its head's.
#[derive(Debug)]
pub(crate) struct QueueBells {
    pub(crate) bells: Bells,
    /// Where they are among `bells`, in dwords.
    pub(crate) words: [usize; 2],
    /// Those of BAR0; none where a store is always enough.
    pub(crate) trap: Option<Trap>,
}

/// Doorbells that are rung by a message.
#[derive(Debug)]
pub(crate) struct Trap {
    /// Shared with all queues.
    pub(crate) client: Arc<Mutex<Client>>,
    /// Offsets in BAR0.
    pub(crate) at: [u64; 2],
}

impl QueueBells {
    #[inline]
    fn ring(&self, which: usize, value: u16) -> anyhow::Result<()> {
        if !self.bells.ring(self.words[which], value.into()) {
            return Ok(());
        }
        let Some(Trap { client, at }) = &self.trap else { return Ok(()) };
        client.lock().unwrap_or_else(PoisonError::into_inner).ring(at[which], value.into())
    }
}

/// Both queues have the same number of entries.
#[derive(Debug)]
pub(crate) struct QueuePair {
    memory: Arc<Memory>,
    sq: SqRing,
    cq: CqRing,
    bells: QueueBells,
}

impl QueuePair {
    /// Rings with `entries` (2 or more) entries at offsets `sq` and `cq` of `memory`, zeroed.
    pub(crate) fn new(memory: Arc<Memory>, sq: usize, cq: usize, entries: u16, bells: QueueBells) -> Self {
        memory.clear(sq, usize::from(entries) * SQE);
        memory.clear(cq, usize::from(entries) * CQE);
        Self { memory, sq: SqRing::new(sq as u64, entries), cq: CqRing::new(cq as u64, entries), bells }
    }

    /// Puts a command into the ring; the device sees it after [`submit`](Self::submit). There must be room,
    /// which the caller sees to by having fewer commands outstanding than there are entries.
    #[inline]
    pub(crate) fn push(&mut self, sqe: &[u8; SQE]) {
        self.sq.push(&*self.memory, sqe);
    }

    /// Tells the device of what was pushed.
    pub(crate) fn submit(&self) -> anyhow::Result<()> {
        self.bells.ring(TAIL, self.sq.tail)
    }

    /// The next completion, if there is one.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Taken> {
        self.cq.take(&*self.memory)
    }

    /// All of a completion that was just taken.
    pub(crate) fn whole(&self, taken: Taken) -> Cqe {
        taken.cqe(&*self.memory)
    }

    /// Gives the entries of the completions taken back to the device.
    pub(crate) fn release(&self) -> anyhow::Result<()> {
        self.bells.ring(HEAD, self.cq.head)
    }
}
