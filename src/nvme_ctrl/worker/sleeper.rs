//! How a worker goes to sleep without losing a wake-up.
//!
//! Two threads each store one thing and look at another: the worker stores "I sleep" (and, with shadow
//! doorbells, the event indices that ask the host to ring) and looks at the doorbells; who rings stores a
//! doorbell and looks at "I sleep" (the host: at the event index). With a full fence between store and look
//! on both sides, at least one sees the other. Acquire and release are not enough: they let a load overtake
//! the store before it.
//!
//! `tests/sleeper.rs` compiles this file against loom's atomics and tries all interleavings.

use super::sync::{AtomicBool, Ordering, fence};

/// What a worker has to do with its doorbells before it sleeps.
pub trait Watched {
    /// Asks hosts that watch event indices to ring from now on.
    fn arm(&mut self);
    /// The last look: is there something to do after all?
    fn look(&mut self) -> bool;
}

/// The flag between one worker and who rings its doorbells.
#[derive(Debug)]
pub struct Sleeper {
    sleeping: AtomicBool,
}

impl Sleeper {
    /// Of a worker that is awake.
    pub fn new() -> Self {
        Self { sleeping: AtomicBool::new(false) }
    }

    /// Worker: announces sleep. True when it may sleep until it is woken; after that, or at once when false,
    /// it calls [`Self::awake`].
    pub fn may_sleep(&self, doorbells: &mut impl Watched) -> bool {
        doorbells.arm();
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        !doorbells.look()
    }

    /// Worker: it is awake, and looks at its doorbells by itself.
    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// Who rings, after it has stored the doorbell: must the worker be woken?
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        // Of several ringers one does the waking. (An exchange that writes only on success: a swap could put
        // its false behind a later announcement in the order that loom grants.)
        self.sleeping.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
