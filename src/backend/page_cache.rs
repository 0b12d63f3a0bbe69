//! Reads of what lies in the page cache, made by the worker itself: one call, nothing in flight, nothing to collect.
//!
//! A ring spends on such a read what the call costs, and a job, its buffer's pins and a slot for the command besides.
//! With RWF_NOWAIT the call refuses wherever it would have to wait for the disk; the read then goes its usual way, which
//! also says what is wrong with it if anything is.
#![expect(unsafe_code, reason = "a system call on iovecs")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::relay::is_direct;
use crate::memory::Transient;

/// Reads that are not tried after the n-th miss in a row: `2^n - 1`, `n` at most this. An image that is not in memory
/// pays one vain call in 32 reads then, far below what the disk costs; one that comes to be in memory is noticed as soon.
const PATIENCE: u32 = 5;

/// The page cache of one file, as far as it answers.
#[derive(Debug)]
pub(super) struct PageCache {
    /// There is one, and the file system can say whether it would have to wait.
    answers: AtomicBool,
    /// Misses in a row. All workers share these two; while all hits, they are only read. What a race makes of them is
    /// a vain call or one that is left out.
    misses: AtomicU32,
    /// Reads not to be tried from now on.
    skip: AtomicU32,
}

impl PageCache {
    pub(super) fn of(file: &File) -> Self {
        PageCache {
            answers: AtomicBool::new(!is_direct(file)),
            misses: AtomicU32::new(0),
            skip: AtomicU32::new(0),
        }
    }

    /// Nobody is to ask it any more.
    pub(super) fn ignore(&self) {
        self.answers.store(false, Ordering::Relaxed);
    }

    /// Is the next read worth a try? To be asked once for each.
    pub(super) fn is_worth_a_try(&self) -> bool {
        if !self.answers.load(Ordering::Relaxed) {
            return false;
        }
        match self.skip.load(Ordering::Relaxed) {
            0 => true,
            left => {
                self.skip.store(left - 1, Ordering::Relaxed);
                false
            }
        }
    }

    /// Fills `to` from byte `offset` of `file`, if that needs no waiting. `false`: not all of it was filled.
    pub(super) fn read(&self, file: &File, offset: u64, to: &Transient<'_>) -> bool {
        let iovecs = to.iovecs();
        let Ok(offset) = i64::try_from(offset) else { return false };
        if iovecs.len() > libc::UIO_MAXIOV as usize {
            return false;
        }
        // SAFETY: the iovecs lead into mappings that `to` keeps for longer than the call; the kernel alone writes there
        // for us, and the guest may at any time.
        let got = unsafe {
            libc::preadv2(file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32, offset, libc::RWF_NOWAIT)
        };
        let all = usize::try_from(got).is_ok_and(|got| got == to.len());
        if all {
            if self.misses.load(Ordering::Relaxed) != 0 {
                self.misses.store(0, Ordering::Relaxed);
            }
        } else {
            let errno = if got < 0 { std::io::Error::last_os_error().raw_os_error() } else { None };
            self.missed(errno);
        }
        all
    }

    fn missed(&self, errno: Option<i32>) {
        if matches!(errno, Some(libc::EOPNOTSUPP | libc::ENOSYS)) {
            return self.ignore();
        }
        let misses = (self.misses.load(Ordering::Relaxed) + 1).min(PATIENCE);
        self.misses.store(misses, Ordering::Relaxed);
        self.skip.store((1 << misses) - 1, Ordering::Relaxed);
    }
}
