//! The fdatasyncs of one image: one at a time, and those that wait for the next one share it.
//!
//! One at a time, because the kernel tells one of them of lost writeback and not the others. Blocking: for a
//! thread that may.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::disk::DiskError;

/// See the module docs.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    /// Number of the last one that began.
    begun: AtomicU64,
    /// Of the last one that ended; held while one is made.
    ended: Mutex<u64>,
    /// errno of the first that failed, or 0.
    error: AtomicI32,
}

/// Names the first sync that covers what was complete when this was taken.
#[derive(Clone, Copy, Debug)]
pub(in crate::disk) struct SyncTicket(u64);

impl Syncs {
    /// To be taken when what is to be durable is complete.
    pub(super) fn ticket(&self) -> SyncTicket {
        SyncTicket(self.begun.load(Ordering::SeqCst) + 1)
    }

    /// Returns when what `ticket` was taken for is durable. `make` makes an fdatasync.
    pub(super) fn sync(
        &self,
        ticket: SyncTicket,
        make: impl FnOnce() -> Result<u64, i32>,
    ) -> Result<(), DiskError> {
        // Should `make` panic, nothing was noted, and the next one makes it.
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if *ended < ticket.0 {
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            if let Err(errno) = make() {
                self.failed(errno);
            }
            *ended = number;
        }
        self.check()
    }

    /// The kernel reports lost writeback once and marks the pages clean, so a later fdatasync would succeed
    /// over lost data. Hence all later Flush and FUA fail until the image is opened anew.
    pub(super) fn failed(&self, errno: i32) {
        let _ = self.error.compare_exchange(0, errno, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Fails if a sync failed earlier.
    pub(super) fn check(&self) -> Result<(), DiskError> {
        match self.error.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(DiskError::of_errno(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What was complete before a sync began needs no other one; what was not does.
    #[test]
    fn those_who_wait_share_one() {
        let (syncs, made) = (Syncs::default(), Cell::new(0));
        let count = || {
            made.set(made.get() + 1);
            Ok(0)
        };
        let first = syncs.ticket();
        let late = Cell::new(None);
        syncs
            .sync(first, || {
                late.set(Some(syncs.ticket()));
                count()
            })
            .expect("it succeeds");
        let late = late.get().expect("taken meanwhile");
        syncs.sync(first, count).expect("covered");
        assert_eq!(made.get(), 1);
        for _ in 0..3 {
            syncs.sync(late, count).expect("it succeeds");
        }
        assert_eq!(made.get(), 2, "the first one does not do");
    }

    #[test]
    fn a_failure_is_remembered() {
        let syncs = Syncs::default();
        assert!(syncs.sync(syncs.ticket(), || Err(libc::ENOSPC)).is_err());
        for result in [syncs.sync(syncs.ticket(), || Ok(0)), syncs.check()] {
            assert!(
                matches!(result, Err(DiskError::Io(error)) if error.raw_os_error() == Some(libc::ENOSPC))
            );
        }
    }
}
