//! A worker without its thread, for benchmarks: whoever calls it decides when it takes a turn, so that what a command
//! costs can be counted to the instruction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::doorbells::Doorbells;
use super::error_log::ErrorLog;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::shared::{Counters, InterruptSink, Limits, Shared};
use super::worker::{Core, FromWorker, IdlePolicy, Look, Mailbox, Poll, ToWorker};
use crate::disk::Lane;
use crate::memory::Epoch;
use crate::namespace::{Cntlid, Namespaces, Table};

/// Interrupts that nobody waits for.
struct Nobody;

impl InterruptSink for Nobody {
    fn raise(&self, _vector: u16) {}
}

/// What a controller shares with its workers that was given all this, and has as many I/O queue pairs.
pub(super) fn shared(namespaces: Namespaces, queues: usize) -> Arc<Shared> {
    Arc::new(Shared {
        doorbells: Doorbells::new(1 + queues),
        cntlid: Cntlid::default(),
        is_shared: false,
        namespaces: Table::new(namespaces),
        interrupts: Arc::new(Nobody),
        write_cache: AtomicBool::new(true),
        cdfe: AtomicU16::new(0),
        mps: AtomicU16::new(0),
        coalescing: AtomicU32::new(0),
        vector_cd: Box::default(),
        invalid_doorbell: AtomicBool::new(false),
        counters: Counters::default(),
        errors: ErrorLog::default(),
        limits: Limits::new(7, crate::copy::OCFS),
        paused: AtomicBool::new(false),
    })
}

/// See the module docs. It has one queue pair, with QID 1 for both.
pub struct Lone {
    core: Core,
    idle: IdlePolicy,
    shared: Arc<Shared>,
    messages: Receiver<FromWorker>,
}

impl Lone {
    /// A worker whose queues of `entries` entries (1-based, at least 2) lie at the guest addresses `sq` and `cq`. It
    /// finds guest memory in `memory`.
    pub fn new(namespaces: Namespaces, memory: Epoch, lane: Lane, sq: u64, cq: u64, entries: u16) -> Self {
        let shared = shared(namespaces, 1);
        let (sender, messages) = channel();
        let mut core = Core::new(Arc::clone(&shared), lane, Mailbox { sender, wake: Arc::new(|| {}) });
        core.message(ToWorker::Begin(memory));
        core.message(ToWorker::CreateCq(CompletionQueue::new(1, Some(1), cq, entries.into())));
        core.message(ToWorker::CreateSq(SubmissionQueue::new(1, 1, sq, entries.into())));
        Self { core, idle: IdlePolicy::new(Poll::Adaptive, false), shared, messages }
    }

    /// Rings the tail doorbell of the submission queue.
    pub fn ring(&self, tail: u16) {
        self.shared.doorbells.set_tail(1, tail);
    }

    /// Rings the head doorbell of the completion queue.
    pub fn acknowledge(&self, head: u16) {
        self.shared.doorbells.set_head(1, head);
    }

    /// One turn of the worker; false when there was nothing to do.
    ///
    /// # Panics
    /// The worker has something to tell the control thread, which with a sound host it never has.
    pub fn turn(&mut self) -> bool {
        let busy = self.core.turn();
        if let Ok(message) = self.messages.try_recv() {
            panic!("{message:?}");
        }
        busy
    }

    /// One turn, and if there was nothing to do the rest that a worker's thread takes then: it looks again for a while,
    /// then sleeps until something completes, a millisecond at most.
    ///
    /// # Panics
    /// As [`turn`](Self::turn).
    pub fn work(&mut self) {
        if self.turn() {
            return self.idle.busy();
        }
        match self.idle.look_again(self.core.waits()) {
            Look::First | Look::Again => {}
            Look::GiveWay => std::thread::yield_now(),
            Look::Sleep => self.core.sleep(Some(Duration::from_millis(1))),
        }
    }
}
