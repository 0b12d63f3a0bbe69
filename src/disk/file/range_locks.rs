//! Ranges of one image that are being changed. An operation that writes a part of a block reads all of it, changes it and
//! writes it back, so nobody else may write to that block meanwhile. Blocking: for a thread that may.
//!
//! Who came first is first, so nobody waits for ever; and nobody asks for a second range while he holds one.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module docs. All workers share it.
#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    requests: Mutex<Requests>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Requests {
    last: u64,
    /// Held and waiting, the oldest first.
    all: Vec<Request>,
}

#[derive(Debug)]
struct Request {
    id: u64,
    range: Range<u64>,
    exclusive: bool,
}

impl Request {
    /// May both be under way? Whole blocks may overlap: their hosts take what comes of it.
    fn is_compatible(&self, other: &Request) -> bool {
        let apart = self.range.end <= other.range.start || other.range.end <= self.range.start;
        apart || !(self.exclusive || other.exclusive)
    }
}

impl Requests {
    /// Is there nobody before this one that it must wait for?
    fn is_granted(&self, id: u64) -> bool {
        let Some(at) = self.all.iter().position(|request| request.id == id) else { return true };
        let (older, rest) = self.all.split_at(at);
        rest.first().is_none_or(|own| older.iter().all(|older| older.is_compatible(own)))
    }
}

impl RangeLocks {
    /// Waits until the range, of whole blocks, may be changed. `exclusive`: parts of its blocks are written.
    pub(super) fn lock(&self, range: Range<u64>, exclusive: bool) -> Guard<'_> {
        let mut requests = self.requests();
        requests.last += 1;
        let id = requests.last;
        requests.all.push(Request { id, range, exclusive });
        while !requests.is_granted(id) {
            requests = self.released.wait(requests).unwrap_or_else(PoisonError::into_inner);
        }
        Guard { locks: self, id }
    }

    /// Nothing that panics is done under the lock.
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range that may be changed until this is dropped.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    locks: &'a RangeLocks,
    id: u64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.locks.requests().all.retain(|request| request.id != self.id);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_blocks_are_kept_apart_and_nothing_else() {
        let locks = RangeLocks::default();
        let held = locks.lock(4096..16384, true);
        let compatible = |range: Range<u64>, exclusive| {
            let request = Request { id: 0, range, exclusive };
            locks.requests().all.iter().all(|held| held.is_compatible(&request))
        };
        assert!(
            !compatible(4096..8192, false) && !compatible(0..8192, true) && !compatible(12288..20480, false)
        );
        assert!(compatible(0..4096, true) && compatible(16384..20480, true));
        drop(held);
        let _whole = locks.lock(0..8192, false);
        let _blocks = locks.lock(4096..12288, false);
        assert!(!compatible(8192..16384, true));
    }

    /// A stream of short writes never lets the long one that needs the blocks of all of them through, but for its place.
    #[test]
    fn who_came_first_is_first() {
        let (locks, order) = (RangeLocks::default(), Mutex::new(Vec::new()));
        let held = locks.lock(0..4096, true);
        std::thread::scope(|scope| {
            for (n, range) in [(1, 0..8192), (2, 4096..8192)] {
                let (locks, order) = (&locks, &order);
                scope.spawn(move || {
                    let _guard = locks.lock(range, true);
                    order.lock().expect("no panic").push(n);
                });
                while locks.requests().all.len() <= n {
                    std::thread::yield_now();
                }
            }
            assert!(!locks.requests().is_granted(3), "it waits for the one that waits");
            drop(locks.lock(8192..12288, true));
            assert!(order.lock().expect("no panic").is_empty());
            drop(held);
        });
        assert_eq!(order.into_inner().expect("no panic"), [1, 2]);
        assert!(locks.requests().all.is_empty());
    }
}
