//! Ranges of one image that are being changed. An operation that writes a part of a block reads all of it, changes it and
//! writes it back, so nobody else may write to that block meanwhile. Blocking: for a thread that may.
//!
//! Who came first is first, so nobody waits for ever; and nobody asks for a second range while he holds one.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module docs. All workers share it.
#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    /// Number and range of each that is held or waited for, the oldest first.
    all: Mutex<Vec<(u64, Range<u64>)>>,
    released: Condvar,
}

impl RangeLocks {
    /// Waits until the range, of whole blocks, may be changed.
    pub(super) fn lock(&self, range: Range<u64>) -> Guard<'_> {
        let mut all = self.all();
        let number = all.last().map_or(0, |(last, _)| last + 1);
        all.push((number, range.clone()));
        let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
        while all.iter().any(|(older, other)| *older < number && overlaps(other)) {
            all = self.released.wait(all).unwrap_or_else(PoisonError::into_inner);
        }
        Guard { locks: self, number }
    }

    /// Nothing that panics is done under the lock.
    fn all(&self) -> MutexGuard<'_, Vec<(u64, Range<u64>)>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range that may be changed until this is dropped.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    locks: &'a RangeLocks,
    number: u64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.locks.all().retain(|(number, _)| *number != self.number);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream of short writes never lets the long one that needs the blocks of all of them through, but for its place.
    #[test]
    fn who_came_first_is_first() {
        let (locks, order) = (RangeLocks::default(), Mutex::new(Vec::new()));
        let held = locks.lock(0..4096);
        std::thread::scope(|scope| {
            for (n, range) in [(1, 0..8192), (2, 4096..8192)] {
                let (locks, order) = (&locks, &order);
                scope.spawn(move || {
                    let _guard = locks.lock(range);
                    order.lock().expect("no panic").push(n);
                });
                while locks.all().len() <= n {
                    std::thread::yield_now();
                }
            }
            // Next to all of them; and the third waits for the second, which waits.
            drop(locks.lock(8192..12288));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(order.lock().expect("no panic").is_empty());
            drop(held);
        });
        assert_eq!(order.into_inner().expect("no panic"), [1, 2]);
        assert!(locks.all().is_empty());
    }
}
