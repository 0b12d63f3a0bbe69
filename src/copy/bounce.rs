//! Bounce memory: a bound for all Copies of a worker together, and a share of it for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bounce memory of one worker. Cheap to clone; all clones are the same memory.
#[derive(Clone, Debug)]
pub struct Bounce {
    total: u64,
    left: Arc<AtomicU64>,
}

impl Default for Bounce {
    /// 32 MiB: eight long Copies at full speed. More of them wait.
    fn default() -> Self {
        Self::new(32 << 20)
    }
}

impl Bounce {
    /// At most `total` bytes at any time; 64 KiB at least, so that the largest block fits.
    pub fn new(total: u64) -> Self {
        let total = total.max(64 << 10);
        Self { total, left: Arc::new(AtomicU64::new(total)) }
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes that no Copy holds.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// One Copy's share: what its segments have reserved, and buffers that lie ready for the next ones. All of it counts
/// against the share and against the whole.
#[derive(Debug)]
pub(super) struct Pool {
    bounce: Bounce,
    share: u64,
    reserved: u64,
    free: Vec<Box<[u8]>>,
}

impl Pool {
    pub fn new(bounce: &Bounce, share: u64) -> Self {
        Self { bounce: bounce.clone(), share, reserved: 0, free: Vec::new() }
    }

    /// Bytes reserved or kept.
    pub fn held(&self) -> u64 {
        self.reserved + self.free.iter().map(|buf| buf.len() as u64).sum::<u64>()
    }

    /// Reserves `bytes` and gives a buffer of `len` of them; the rest is the caller's to allocate. `None`: not now.
    ///
    /// Kept buffers make way if they must. When the whole is exhausted none is left, so that Copies which wait hold
    /// nothing that another one waits for.
    pub fn reserve(&mut self, bytes: u64, len: u64) -> Option<Box<[u8]>> {
        if self.reserved.saturating_add(bytes) > self.share {
            return None;
        }
        let kept = self.free.iter().position(|buf| buf.len() as u64 == len).map(|i| self.free.swap_remove(i));
        let kept_bytes = kept.as_ref().map_or(0, |buf| buf.len() as u64);
        while self.held() + bytes > self.share || !self.bounce.take(bytes - kept_bytes) {
            match self.free.pop() {
                Some(buf) => self.bounce.give(buf.len() as u64),
                None => {
                    self.bounce.give(kept_bytes);
                    return None;
                }
            }
        }
        self.reserved += bytes;
        Some(kept.unwrap_or_else(|| vec![0; len as usize].into_boxed_slice()))
    }

    /// Reserves `bytes` without a buffer. `false`: not now. Kept buffers make way.
    pub fn claim(&mut self, bytes: u64) -> bool {
        if self.reserved.saturating_add(bytes) > self.share {
            return false;
        }
        while self.held() + bytes > self.share || !self.bounce.take(bytes) {
            match self.free.pop() {
                Some(buf) => self.bounce.give(buf.len() as u64),
                None => return false,
            }
        }
        self.reserved += bytes;
        true
    }

    /// Ends a reservation.
    pub fn release(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
        self.bounce.give(bytes);
    }

    /// Ends the reservation of a buffer and keeps it for the next segment.
    pub fn keep(&mut self, buf: Box<[u8]>) {
        self.reserved = self.reserved.saturating_sub(buf.len() as u64);
        self.free.push(buf);
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

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    #[test]
    fn a_share_ends_before_the_whole() {
        let bounce = Bounce::new(100 * KIB);
        let mut pool = Pool::new(&bounce, 60 * KIB);
        assert!(pool.reserve(40 * KIB, 20 * KIB).is_some_and(|buf| buf.len() == 20 << 10));
        assert!(pool.reserve(21 * KIB, 21 * KIB).is_none());
        assert_eq!((pool.held(), bounce.left()), (40 * KIB, 60 * KIB));
        pool.release(20 * KIB);
        assert!(pool.reserve(40 * KIB, 40 * KIB).is_some());
        drop(pool);
        assert_eq!(bounce.left(), bounce.total());
    }

    #[test]
    fn the_whole_ends_before_a_share() {
        let bounce = Bounce::new(64 * KIB);
        let (mut one, mut two) = (Pool::new(&bounce, 64 * KIB), Pool::new(&bounce, 64 * KIB));
        let buf = one.reserve(40 * KIB, 40 * KIB).expect("all is free");
        assert!(two.reserve(30 * KIB, 30 * KIB).is_none());
        one.keep(buf);
        assert!(two.reserve(30 * KIB, 30 * KIB).is_none(), "kept is held");
        assert!(one.reserve(65 * KIB, 40 * KIB).is_none(), "more than its share");
        assert_eq!(one.held(), 40 * KIB);
        assert!(two.reserve(24 * KIB, 24 * KIB).is_some());
        assert!(one.reserve(41 * KIB, 40 * KIB).is_none(), "more than there is");
        assert_eq!((one.held(), bounce.left()), (0, 40 * KIB), "who waits holds nothing");
    }

    #[test]
    fn a_claim_is_all_or_nothing() {
        let bounce = Bounce::new(100 * KIB);
        let (mut one, mut two) = (Pool::new(&bounce, 80 * KIB), Pool::new(&bounce, 80 * KIB));
        let buf = one.reserve(60 * KIB, 60 * KIB).expect("all is free");
        assert!(!two.claim(41 * KIB) && !one.claim(21 * KIB));
        one.keep(buf);
        assert!(one.claim(80 * KIB), "a kept buffer makes way");
        assert_eq!((one.held(), bounce.left()), (80 * KIB, 20 * KIB));
        one.release(80 * KIB);
        assert!(one.is_idle() && two.claim(80 * KIB));
    }

    #[test]
    fn buffers_are_used_again_and_make_way() {
        let bounce = Bounce::new(100 * KIB);
        let mut pool = Pool::new(&bounce, 100 * KIB);
        let bufs = [0; 3].map(|_| pool.reserve(30 * KIB, 30 * KIB).expect("fits"));
        let places = bufs.each_ref().map(|buf| buf.as_ptr());
        for buf in bufs {
            pool.keep(buf);
        }
        assert!(pool.is_idle());
        let again = pool.reserve(30 * KIB, 30 * KIB).expect("kept");
        assert!(places.contains(&again.as_ptr()));
        assert_eq!(pool.held(), 90 * KIB);
        assert!(pool.reserve(40 * KIB, 40 * KIB).is_some());
        assert_eq!((pool.held(), bounce.left()), (100 * KIB, 0));
    }

    #[test]
    fn the_largest_block_always_fits() {
        assert_eq!(Bounce::new(0).total(), 64 * KIB);
    }
}
