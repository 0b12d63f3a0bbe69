//! Bounce memory: a bound for all Copies of a worker together, a share of it for each, and buffers kept between them.
//!
//! Kept buffers are not cleared: what an older Copy read lies in them until a read of the next one overwrites it. None
//! of it gets out, because a segment is written only after successful reads have filled all of its buffer, which the
//! executor sees to (as it must anyway: no write before its reads). Clearing would cost a tenth of a Copy of short
//! ranges, and allocating anew the page faults besides.
//!
//! What nobody has used for a second goes back to the system: a worker that is about to sleep asks for that.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::Buffer;

/// Bounce memory of one worker. Cheap to clone; all clones are the same memory.
#[derive(Clone, Debug)]
pub struct Bounce {
    total: u64,
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
    /// Of these the buffers that lie ready; the one used last is the last.
    kept: VecDeque<Buffer>,
    /// Bytes in `kept`, at most `left`.
    kept_bytes: u64,
    /// When somebody who was about to sleep first saw that nothing had been kept since the last time.
    resting: Option<Instant>,
}

/// How long buffers lie ready for the next Copy.
const REST: Duration = Duration::from_secs(1);

/// Buffers kept at most, so that a search among them is short: for the whole default in slices of memory.
const KEPT: usize = 256;

impl Shelf {
    /// Kept buffers make way, the longest unused first.
    fn trim(&mut self) {
        while self.kept_bytes > self.left || self.kept.len() > KEPT {
            match self.kept.pop_front() {
                Some(buf) => self.kept_bytes -= buf.len() as u64,
                None => return,
            }
        }
    }
}

impl Default for Bounce {
    /// 32 MiB: eight long Copies at full speed. More of them wait.
    fn default() -> Self {
        Self::new(32 << 20)
    }
}

impl Bounce {
    /// At most `total` bytes at any time, those kept for reuse included; 64 KiB at least, so that the largest block
    /// fits.
    pub fn new(total: u64) -> Self {
        let total = total.max(64 << 10);
        let shelf = Shelf { left: total, kept: VecDeque::new(), kept_bytes: 0, resting: None };
        Self { total, shelf: Arc::new(Mutex::new(shelf)), crowd: Arc::default() }
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

    /// Gives the buffers back to the system if they have not been used for a second; else how long that is from `now` on.
    /// `None`: there are none.
    pub fn rest(&self, now: Instant) -> Option<Duration> {
        let mut shelf = self.shelf();
        if shelf.kept.is_empty() {
            return None;
        }
        let rested = now.saturating_duration_since(*shelf.resting.get_or_insert(now));
        if rested < REST {
            return Some(REST - rested);
        }
        let kept = std::mem::take(&mut shelf.kept);
        shelf.kept_bytes = 0;
        drop(shelf);
        drop(kept);
        None
    }

    /// Bytes of buffers that lie ready for the next Copy; part of what is left.
    pub fn kept(&self) -> u64 {
        self.shelf().kept_bytes
    }

    fn take(&self, bytes: u64) -> bool {
        let mut shelf = self.shelf();
        let Some(left) = shelf.left.checked_sub(bytes) else {
            return false;
        };
        shelf.left = left;
        shelf.trim();
        true
    }

    fn give(&self, bytes: u64) {
        self.shelf().left += bytes;
    }

    /// A kept buffer of this length.
    fn find(&self, len: u64) -> Option<Buffer> {
        let mut shelf = self.shelf();
        let at = shelf.kept.iter().rposition(|buf| buf.len() as u64 == len)?;
        let buf = shelf.kept.remove(at)?;
        shelf.kept_bytes -= len;
        Some(buf)
    }

    fn keep(&self, buf: Buffer) {
        let mut shelf = self.shelf();
        shelf.kept_bytes += buf.len() as u64;
        shelf.resting = None;
        shelf.kept.push_back(buf);
        shelf.trim();
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
}

impl Pool {
    pub fn new(bounce: &Bounce, share: u64) -> Self {
        Self { bounce: bounce.clone(), share, reserved: 0 }
    }

    /// As [`Bounce::is_crowded`].
    pub fn is_crowded(&self) -> bool {
        self.bounce.is_crowded()
    }

    /// Bytes reserved.
    pub fn held(&self) -> u64 {
        self.reserved
    }

    /// Reserves `bytes` and gives a buffer of them, which may hold what an older Copy left. `None`: not now.
    pub fn reserve(&mut self, bytes: u64) -> Option<Buffer> {
        if self.reserved.saturating_add(bytes) > self.share {
            return None;
        }
        // Found before the taking, which could make it give way.
        let kept = self.bounce.find(bytes);
        if !self.bounce.take(bytes) {
            if let Some(buf) = kept {
                self.bounce.keep(buf);
            }
            return None;
        }
        self.reserved += bytes;
        self.bounce.begin_segment();
        Some(kept.unwrap_or_else(|| fresh(bytes)))
    }

    /// Reserves `bytes` without a buffer. `false`: not now.
    pub fn claim(&mut self, bytes: u64) -> bool {
        if self.reserved.saturating_add(bytes) > self.share || !self.bounce.take(bytes) {
            return false;
        }
        self.reserved += bytes;
        true
    }

    /// A buffer out of what has been claimed; it may hold what an older Copy left.
    pub fn buffer(&self, bytes: u64) -> Buffer {
        self.bounce.find(bytes).unwrap_or_else(|| fresh(bytes))
    }

    /// Ends a reservation.
    pub fn release(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
        self.bounce.give(bytes);
    }

    /// Keeps a buffer whose bytes are no longer used for the next segment, of this Copy or another, if there is room.
    pub fn keep(&self, buf: Buffer) {
        self.bounce.keep(buf);
    }

    /// No segment has anything reserved?
    pub fn is_idle(&self) -> bool {
        self.reserved == 0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.bounce.give(self.held());
    }
}

fn fresh(bytes: u64) -> Buffer {
    Buffer::zeroed(bytes as usize)
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
        let buf = one.reserve(40 * KIB).expect("all is free");
        assert!(two.reserve(30 * KIB).is_none());
        one.release(40 * KIB);
        one.keep(buf);
        assert!(one.reserve(65 * KIB).is_none(), "more than its share");
        assert!(two.reserve(30 * KIB).is_some(), "kept is nobody's");
        assert!(one.reserve(40 * KIB).is_none(), "more than there is");
        assert_eq!((one.held(), bounce.left()), (0, 34 * KIB), "who waits holds nothing");
    }

    #[test]
    fn a_claim_is_all_or_nothing() {
        let bounce = Bounce::new(100 * KIB);
        let (mut one, mut two) = (Pool::new(&bounce, 80 * KIB), Pool::new(&bounce, 80 * KIB));
        let buf = one.reserve(60 * KIB).expect("all is free");
        assert!(!two.claim(41 * KIB) && !one.claim(21 * KIB));
        one.release(60 * KIB);
        one.keep(buf);
        assert!(one.claim(80 * KIB));
        assert_eq!((one.held(), bounce.left(), bounce.kept()), (80 * KIB, 20 * KIB, 0), "kept makes way");
        let buf = one.buffer(30 * KIB);
        one.keep(buf);
        assert_eq!(bounce.kept(), 0, "no room while it is claimed");
        one.release(80 * KIB);
        assert!(one.is_idle() && two.claim(80 * KIB));
    }

    #[test]
    fn buffers_outlive_their_copy_and_make_way() {
        let bounce = Bounce::new(100 * KIB);
        let mut pool = Pool::new(&bounce, 100 * KIB);
        let bufs = [0; 3].map(|_| pool.reserve(30 * KIB).expect("fits"));
        let places = bufs.each_ref().map(|buf| buf.as_ptr());
        for buf in bufs {
            pool.release(30 * KIB);
            pool.keep(buf);
        }
        assert!(pool.is_idle());
        drop(pool);
        assert_eq!((bounce.left(), bounce.kept()), (100 * KIB, 90 * KIB));
        let mut next = Pool::new(&bounce, 100 * KIB);
        let again = next.reserve(30 * KIB).expect("fits");
        assert_eq!(again.as_ptr(), places[2], "the one whose pages are most likely in the cache");
        assert!(next.reserve(40 * KIB).is_some(), "another length");
        assert_eq!((bounce.left(), bounce.kept()), (30 * KIB, 30 * KIB));
        assert!(next.claim(10 * KIB));
        assert_eq!((bounce.left(), bounce.kept()), (20 * KIB, 0));
    }

    #[test]
    fn a_refused_reservation_loses_no_buffer() {
        let bounce = Bounce::new(100 * KIB);
        let (mut one, mut two) = (Pool::new(&bounce, 100 * KIB), Pool::new(&bounce, 100 * KIB));
        let buf = one.reserve(30 * KIB).expect("fits");
        one.release(30 * KIB);
        one.keep(buf);
        assert!(two.claim(70 * KIB));
        assert_eq!(bounce.kept(), 30 * KIB);
        assert!(two.reserve(31 * KIB).is_none());
        assert_eq!(bounce.kept(), 30 * KIB);
        assert!(one.reserve(30 * KIB).is_some());
        assert_eq!((bounce.left(), bounce.kept()), (0, 0));
    }

    #[test]
    fn few_small_buffers_are_kept() {
        let bounce = Bounce::default();
        let mut pool = Pool::new(&bounce, 4 << 20);
        let bufs: Vec<_> = (0..KEPT + 10).map(|_| pool.reserve(512).expect("fits")).collect();
        for buf in bufs {
            pool.release(512);
            pool.keep(buf);
        }
        assert_eq!(bounce.kept(), KEPT as u64 * 512);
    }

    #[test]
    fn buffers_go_back_after_a_rest() {
        let bounce = Bounce::new(100 * KIB);
        let start = Instant::now();
        let mut pool = Pool::new(&bounce, 100 * KIB);
        assert_eq!(bounce.rest(start), None, "there are none");
        let mut once = || {
            let buf = pool.reserve(30 * KIB).expect("fits");
            pool.release(30 * KIB);
            pool.keep(buf);
        };
        once();
        assert_eq!(bounce.rest(start), Some(REST));
        assert_eq!(bounce.rest(start + REST / 4), Some(3 * REST / 4));
        once();
        let again = start + REST / 2;
        assert_eq!(bounce.rest(again), Some(REST), "used meanwhile");
        assert_eq!(bounce.kept(), 30 * KIB);
        assert_eq!(bounce.rest(again + REST), None);
        assert_eq!((bounce.kept(), bounce.left()), (0, 100 * KIB));
        once();
        assert_eq!(bounce.rest(again + REST), Some(REST), "it begins anew");
    }

    #[test]
    fn the_largest_block_always_fits() {
        assert_eq!(Bounce::new(0).total(), 64 * KIB);
    }
}
