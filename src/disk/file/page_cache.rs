//! Is a read worth a try of the page cache, by what came of those before?

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::ways::is_direct;

/// Reads that are not tried after the n-th miss in a row: `2^n - 1`, `n` at most this. An image that is not
/// in memory pays one vain call in 32 reads then, far below what the disk costs; one that comes to be in
/// memory is noticed as soon.
const PATIENCE: u32 = 5;

/// The page cache of one file, as far as it answers.
#[derive(Debug)]
pub(in crate::disk) struct PageCache {
    /// There is one, and the file system can say whether it would have to wait.
    answers: AtomicBool,
    /// Misses in a row. All workers share these two; while all hits, they are only read. What a race makes of
    /// them is a vain call or one that is left out.
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
    pub(in crate::disk) fn is_worth_a_try(&self) -> bool {
        if !self.answers.load(Ordering::Relaxed) {
            return false;
        }
        match self.skip.load(Ordering::Relaxed) {
            0 => {
                // Several may be asked for before the first is tried: while all miss, one alone is.
                self.pause(self.misses.load(Ordering::Relaxed));
                true
            }
            left => {
                self.skip.store(left - 1, Ordering::Relaxed);
                false
            }
        }
    }

    pub(in crate::disk) fn hit(&self) {
        if self.misses.load(Ordering::Relaxed) != 0 {
            self.misses.store(0, Ordering::Relaxed);
            self.skip.store(0, Ordering::Relaxed);
        }
    }

    pub(in crate::disk) fn missed(&self, errno: Option<i32>) {
        if matches!(errno, Some(libc::EOPNOTSUPP | libc::ENOSYS)) {
            return self.ignore();
        }
        let misses = (self.misses.load(Ordering::Relaxed) + 1).min(PATIENCE);
        self.misses.store(misses, Ordering::Relaxed);
        self.pause(misses);
    }

    fn pause(&self, misses: u32) {
        if misses > 0 {
            self.skip.store((1 << misses) - 1, Ordering::Relaxed);
        }
    }
}
