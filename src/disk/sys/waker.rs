//! An eventfd that ends a worker's sleep.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// Wakes a worker out of `Lane::wait`. Cheap to clone; callable from any thread.
///
/// The eventfd counts, so a wake-up that comes before the sleep ends that sleep: none is lost.
#[derive(Clone, Debug)]
pub struct Waker {
    fd: Arc<OwnedFd>,
}

impl Waker {
    /// Blocking: a ring answers a read of a non-blocking eventfd with EAGAIN instead of waiting for it.
    pub(in crate::disk) fn new() -> io::Result<Self> {
        Ok(Waker { fd: Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?) })
    }

    /// Ends the worker's sleep, now or the next one to come.
    pub fn wake(&self) {
        // Fails only when 2^64 - 2 wake-ups are pending: then one more is not missed.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, &1u64.to_ne_bytes()));
    }

    /// Takes the pending wake-ups; only after poll said that there are any, else it blocks.
    pub(in crate::disk) fn clear(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut count));
    }

    pub(in crate::disk) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}
