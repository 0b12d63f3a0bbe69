//! Bounce memory: a bound for all Copies of a worker together, a share of it for each, and slabs kept between
//! them. Beside it, as much again for Copies that overwrite their own sources and have to hold some of them.
//!
//! Buffers are not cleared: what an older Copy read lies in them until a read of the next one overwrites it.
//! None of it gets out, because a segment is written only after successful reads have filled all of its
//! buffer, which the executor sees to (as it must anyway: no write before its reads). Clearing would cost a
//! tenth of a Copy of short ranges, and allocating anew the page faults besides.
//!
//! What nobody has used for a second goes back to the system: a worker that is about to sleep asks for that.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::disk::{Buffer, Slab};

/// Bounce memory of one worker. Cheap to clone; all clones are the same memory.
#[derive(Clone, Debug)]
pub struct Bounce {
    total: u64,
    hold: u64,
    shelf: Arc<Mutex<Shelf>>,
    /// Segments that still go one at a time.
    crowd: Arc<AtomicU32>,
}

/// Segments after the last other command that go one at a time: some milliseconds of copying.
const CROWD: u32 = 16;

/// What no Copy holds.
#[derive(Debug)]
struct Shelf {
    /// Bytes that no Copy holds.
    left: u64,
    /// Bytes that no Copy holds of those for sources that are read long before they are written.
    hold_left: u64,
    /// What buffers are lent from; those that have no room there are allocated.
    slabs: Vec<Arc<Slab>>,
    /// When somebody who was about to sleep first saw that no buffer had been lent since the last time.
    resting: Option<Instant>,
}

/// How long slabs lie ready for the next Copy.
const REST: Duration = Duration::from_secs(1);

impl Default for Bounce {
    /// 32 MiB for segments: eight long Copies at full speed; more of them wait. And 32 MiB for sources that
    /// are held: half of the longest Copy that the default limits allow with blocks of 512 bytes, so that
    /// none of these is refused.
    fn default() -> Self {
        Self::new(32 << 20)
    }
}

impl Bounce {
    /// At most `total` bytes in buffers at any time; 64 KiB at least, so that the largest block fits. Slabs
    /// have no more than that together, so where buffers of many lengths leave room in them that no other
    /// fits, twice as much is in use at worst. As much again may be [held](Self::holding).
    pub fn new(total: u64) -> Self {
        let total = total.max(64 << 10);
        Self::holding(total, total)
    }

    /// The same, and `hold` bytes more for Copies that overwrite what they have yet to read: they hold it
    /// until all is read. Kept apart, so that who waits for one kind holds none that the other waits for.
    pub fn holding(total: u64, hold: u64) -> Self {
        let shelf = Shelf { left: total, hold_left: hold, slabs: Vec::new(), resting: None };
        Self { total, hold, shelf: Arc::new(Mutex::new(shelf)), crowd: Arc::default() }
    }

    /// Bytes of sources that one Copy may hold.
    pub(super) fn most_held(&self) -> u64 {
        self.hold
    }

    /// The worker has commands that are no Copies.
    pub fn others_are_at_work(&self) {
        if self.crowd.load(Ordering::Relaxed) != CROWD {
            self.crowd.store(CROWD, Ordering::Relaxed);
        }
    }

    /// Had it any lately? Then a Copy is to leave them a processor.
    pub(super) fn is_crowded(&self) -> bool {
        self.crowd.load(Ordering::Relaxed) > 0
    }

    fn begin_segment(&self) {
        // The worker alone writes it.
        self.crowd.store(self.crowd.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that no Copy holds.
    pub fn left(&self) -> u64 {
        self.shelf().left
    }

    /// Gives slabs back to the system if none has been used for a second; else how long that is from `now`
    /// on. `None`: there are none, or buffers of them are still in use.
    pub fn rest(&self, now: Instant) -> Option<Duration> {
        let mut shelf = self.shelf();
        if shelf.slabs.is_empty() {
            return None;
        }
        let rested = now.saturating_duration_since(*shelf.resting.get_or_insert(now));
        if rested < REST {
            return Some(REST - rested);
        }
        shelf.slabs.retain(|slab| !slab.is_idle());
        None
    }

    /// Bytes of both kinds that Copies have.
    #[cfg(test)]
    pub fn in_use(&self) -> u64 {
        let shelf = self.shelf();
        self.total - shelf.left + self.hold - shelf.hold_left
    }

    /// Bytes of slabs, lent or not.
    #[cfg(test)]
    fn kept(&self) -> u64 {
        self.shelf().slabs.len() as u64 * Slab::LEN as u64
    }

    fn take(&self, bytes: u64) -> bool {
        let mut shelf = self.shelf();
        let Some(left) = shelf.left.checked_sub(bytes) else {
            return false;
        };
        shelf.left = left;
        true
    }

    fn give(&self, bytes: u64) {
        self.shelf().left += bytes;
    }

    /// A buffer of what has been taken.
    fn buffer(&self, bytes: u64) -> Buffer {
        let (mut shelf, len) = (self.shelf(), bytes as usize);
        shelf.resting = None;
        if let Some(buf) = shelf.slabs.iter().find_map(|slab| slab.lend(len)) {
            return buf;
        }
        let more = len <= Slab::LEN && (shelf.slabs.len() as u64) < self.total / Slab::LEN as u64;
        let slab = more.then(Slab::new).and_then(Result::ok);
        let buf = slab.as_ref().and_then(|slab| slab.lend(len));
        shelf.slabs.extend(slab);
        buf.unwrap_or_else(|| Buffer::zeroed(len))
    }

    /// Nothing that panics is done under the lock.
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One Copy's share: what its segments have reserved.
#[derive(Debug)]
pub(super) struct Pool {
    bounce: Bounce,
    share: u64,
    reserved: u64,
    /// Bytes of sources that are held.
    sources: u64,
}

impl Pool {
    pub fn new(bounce: &Bounce, share: u64) -> Self {
        Self { bounce: bounce.clone(), share, reserved: 0, sources: 0 }
    }

    /// As [`Bounce::is_crowded`].
    pub fn is_crowded(&self) -> bool {
        self.bounce.is_crowded()
    }

    /// Bytes reserved for segments.
    pub fn held(&self) -> u64 {
        self.reserved
    }

    /// Bytes of both kinds.
    pub fn in_use(&self) -> u64 {
        self.reserved + self.sources
    }

    /// Bytes that all Copies have reserved together.
    pub fn held_by_all(&self) -> u64 {
        self.bounce.total() - self.bounce.left()
    }

    /// Reserves `bytes` and gives a buffer of them, which may hold what an older Copy left. `None`: not now.
    pub fn reserve(&mut self, bytes: u64) -> Option<Buffer> {
        if self.reserved.saturating_add(bytes) > self.share {
            return None;
        }
        if !self.bounce.take(bytes) {
            return None;
        }
        self.reserved += bytes;
        self.bounce.begin_segment();
        Some(self.bounce.buffer(bytes))
    }

    /// Reserves `bytes` for sources that are held, without buffers. `false`: not now.
    pub fn hold(&mut self, bytes: u64) -> bool {
        let mut shelf = self.bounce.shelf();
        let Some(left) = shelf.hold_left.checked_sub(bytes) else { return false };
        shelf.hold_left = left;
        self.sources += bytes;
        true
    }

    /// So many of them are held no more.
    pub fn let_go(&mut self, bytes: u64) {
        let bytes = bytes.min(self.sources);
        self.sources -= bytes;
        self.bounce.shelf().hold_left += bytes;
    }

    /// A buffer out of what is [held](Self::hold); it may hold what an older Copy left.
    pub fn buffer(&self, bytes: u64) -> Buffer {
        self.bounce.buffer(bytes)
    }

    /// Ends a reservation.
    pub fn release(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
        self.bounce.give(bytes);
    }

    /// No segment has anything reserved?
    pub fn is_idle(&self) -> bool {
        self.reserved == 0 && self.sources == 0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.bounce.give(self.reserved);
        self.let_go(self.sources);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    #[test]
    fn a_share_ends_before_the_whole() {
        let bounce = Bounce::new(100 * KIB);
        let mut pool = Pool::new(&bounce, 60 * KIB);
        assert!(pool.reserve(40 * KIB).is_some_and(|buf| buf.len() == 40 << 10));
        assert!(pool.reserve(21 * KIB).is_none());
        assert_eq!((pool.held(), bounce.left()), (40 * KIB, 60 * KIB));
        pool.release(20 * KIB);
        assert!(pool.reserve(40 * KIB).is_some());
        drop(pool);
        assert_eq!(bounce.left(), bounce.total());
    }

    #[test]
    fn the_whole_ends_before_a_share() {
        let bounce = Bounce::new(64 * KIB);
        let (mut one, mut two) = (Pool::new(&bounce, 64 * KIB), Pool::new(&bounce, 64 * KIB));
        assert!(one.reserve(40 * KIB).is_some());
        assert!(two.reserve(30 * KIB).is_none());
        one.release(40 * KIB);
        assert!(one.reserve(65 * KIB).is_none(), "more than its share");
        assert!(two.reserve(30 * KIB).is_some());
        assert!(one.reserve(40 * KIB).is_none(), "more than there is");
        assert_eq!((one.held(), bounce.left()), (0, 34 * KIB), "who waits holds nothing");
    }

    #[test]
    fn sources_are_held_all_or_none_and_beside_segments() {
        let bounce = Bounce::holding(100 * KIB, 90 * KIB);
        let (mut one, mut two) = (Pool::new(&bounce, 80 * KIB), Pool::new(&bounce, 80 * KIB));
        assert!(one.reserve(60 * KIB).is_some());
        assert!(one.hold(90 * KIB) && !two.hold(1));
        assert_eq!((one.held(), one.in_use(), bounce.left()), (60 * KIB, 150 * KIB, 40 * KIB));
        assert_eq!(one.buffer(30 * KIB).len(), 30 << 10, "out of what is held");
        one.let_go(50 * KIB);
        assert!(!two.hold(51 * KIB) && two.hold(50 * KIB));
        one.release(60 * KIB);
        assert!(!one.is_idle());
        drop((one, two));
        assert!(Pool::new(&bounce, 0).hold(90 * KIB));
    }

    #[test]
    fn slabs_outlive_a_copy_and_are_used_again() {
        let bounce = Bounce::default();
        let mut pool = Pool::new(&bounce, 4 << 20);
        let bufs = [0; 3].map(|_| pool.reserve(300 * KIB).expect("fits"));
        let places = bufs.each_ref().map(|buf| buf.as_ptr());
        assert_eq!(bounce.kept(), 2 << 20);
        drop((bufs, pool));
        assert_eq!((bounce.left(), bounce.kept()), (bounce.total(), 2 << 20));
        let mut next = Pool::new(&bounce, 4 << 20);
        let again = [300, 200].map(|kib| next.reserve(kib * KIB).expect("fits"));
        assert_eq!(again[0].as_ptr(), places[0]);
        assert_eq!(again[1].as_ptr(), places[1], "another length");
    }

    /// What finds no room in the slabs, of which there are no more than the bound has room for, is allocated.
    #[test]
    fn slabs_are_no_more_than_the_bound() {
        for total in [64 * KIB, 2 << 20, (4 << 20) - 1, 5 << 20] {
            let bounce = Bounce::new(total);
            let mut pool = Pool::new(&bounce, total);
            let odd = 3 * 4096 + 512;
            let bufs: Vec<_> = std::iter::from_fn(|| pool.reserve(odd)).collect();
            assert_eq!(bufs.len() as u64, total / odd);
            assert_eq!(bounce.kept(), total - total % (2 << 20));
            drop(bufs);
            pool.release(total / odd * odd);
            assert!(total < 3 << 20 || pool.reserve(3 << 20).is_some(), "longer than a slab");
        }
    }

    #[test]
    fn slabs_go_back_after_a_rest() {
        let bounce = Bounce::default();
        let start = Instant::now();
        let mut pool = Pool::new(&bounce, 4 << 20);
        assert_eq!(bounce.rest(start), None, "there are none");
        let mut once = || {
            let buf = pool.reserve(30 * KIB).expect("fits");
            pool.release(30 * KIB);
            buf
        };
        once();
        assert_eq!(bounce.rest(start), Some(REST));
        assert_eq!(bounce.rest(start + REST / 4), Some(3 * REST / 4));
        let held = once();
        let again = start + REST / 2;
        assert_eq!(bounce.rest(again), Some(REST), "used meanwhile");
        assert_eq!((bounce.rest(again + REST), bounce.kept()), (None, 2 << 20), "in use");
        drop(held);
        assert_eq!((bounce.rest(again + REST), bounce.kept()), (None, 0));
        once();
        assert_eq!(bounce.rest(again + REST), Some(REST), "it begins anew");
    }

    #[test]
    fn the_largest_block_always_fits() {
        assert_eq!(Bounce::new(0).total(), 64 * KIB);
    }
}
