//! An engine that holds jobs back until a gate opens: a hung disk, for tests of unmap and reset.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::engine::{Engine, Waker};
use super::{Completion, FileJob, Tag};

/// Opens and shuts for any number of [`StallEngine`]s, from any thread. Starts shut.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    inner: Arc<GateInner>,
}

#[derive(Debug, Default)]
struct GateInner {
    open: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Gate {
    /// A shut gate.
    pub fn new() -> Self {
        Gate::default()
    }

    /// Lets go what is held and holds nothing more.
    pub fn open(&self) {
        self.inner.open.store(true, Ordering::Release);
        let wakers = self.inner.wakers.lock();
        for waker in wakers.unwrap_or_else(PoisonError::into_inner).iter() {
            waker.wake();
        }
    }

    /// Holds jobs from now on.
    pub fn shut(&self) {
        self.inner.open.store(false, Ordering::Release);
    }

    pub(super) fn is_open(&self) -> bool {
        self.inner.open.load(Ordering::Acquire)
    }

    fn register(&self, waker: Waker) {
        self.inner.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(waker);
    }
}

type Predicate = Box<dyn Fn(&FileJob) -> bool + Send>;

/// See the module docs. A held job counts as in flight and keeps its buffer, as one hung in the kernel does.
pub struct StallEngine {
    inner: Box<dyn Engine>,
    gate: Gate,
    holds: Predicate,
    held: Vec<(Tag, FileJob)>,
}

impl fmt::Debug for StallEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StallEngine")
            .field("gate", &self.gate)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

impl StallEngine {
    /// While `gate` is shut, jobs for which `holds` is true go no further.
    pub fn new(
        inner: Box<dyn Engine>,
        gate: Gate,
        holds: impl Fn(&FileJob) -> bool + Send + 'static,
    ) -> Self {
        gate.register(inner.waker());
        StallEngine { inner, gate, holds: Box::new(holds), held: Vec::new() }
    }

    fn release(&mut self) {
        if self.gate.is_open() {
            for (tag, job) in self.held.drain(..) {
                self.inner.submit(tag, job);
            }
        }
    }
}

impl Engine for StallEngine {
    fn submit(&mut self, tag: Tag, job: FileJob) {
        if !self.gate.is_open() && (self.holds)(&job) {
            self.held.push((tag, job));
        } else {
            self.inner.submit(tag, job);
        }
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        self.release();
        self.inner.reap(out);
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.release();
        // A gate that opens after this has woken the inner engine.
        self.inner.wait(timeout);
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held.len()
    }
}
