//! Blocks that cannot be read until they are written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::fired::Fired;

/// Blocks of one namespace, shared by all threads.
#[derive(Debug)]
pub struct BadBlocks {
    nsid: u32,
    first: u64,
    count: u64,
    /// One bit a block, set where it is bad.
    bits: Box<[AtomicU64]>,
    hits: Arc<Fired>,
}

impl BadBlocks {
    /// Blocks of one rule at most: 128 KiB of bits.
    pub const MOST: u64 = 1 << 20;

    /// `count` bad blocks from `first`, at most [`Self::MOST`]. Each read that meets them is counted in
    /// `hits`.
    pub fn new(nsid: u32, first: u64, count: u64, hits: Arc<Fired>) -> Self {
        let count = count.min(Self::MOST);
        let bits: Box<[AtomicU64]> = (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let bad = Self { nsid, first, count, bits, hits };
        bad.each(first, count, |word, mask| word.fetch_or(mask, Ordering::Relaxed));
        bad
    }

    /// Is there a bad one among `count` blocks from `first`? Then somebody has read it.
    pub fn is_read(&self, nsid: u32, first: u64, count: u64) -> bool {
        let mut any = false;
        if nsid == self.nsid {
            self.each(first, count, |word, mask| {
                any |= word.load(Ordering::Relaxed) & mask != 0;
                0
            });
        }
        if any {
            self.hits.fires(&format_args!("a read of {count} blocks from {first} of namespace {nsid}"));
        }
        any
    }

    /// They were written.
    pub fn heal(&self, nsid: u32, first: u64, count: u64) {
        if nsid == self.nsid {
            self.each(first, count, |word, mask| word.fetch_and(!mask, Ordering::Relaxed));
        }
    }

    /// How many are still bad.
    pub fn left(&self) -> u64 {
        self.bits.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// Does something to the bits of all of `count` blocks from `first` that are among ours.
    fn each(&self, first: u64, count: u64, mut act: impl FnMut(&AtomicU64, u64) -> u64) {
        let from = first.max(self.first) - self.first;
        let to = first.saturating_add(count).saturating_sub(self.first).min(self.count);
        let mut at = from;
        while at < to {
            let end = to.min((at / 64 + 1) * 64);
            let mask = (u64::MAX >> (64 - (end - at))) << (at % 64);
            if let Some(word) = usize::try_from(at / 64).ok().and_then(|index| self.bits.get(index)) {
                act(word, mask);
            }
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn as_a_set_of_blocks_does(
            first in 0u64..100,
            count in 1u64..200,
            steps in prop::collection::vec((0u64..300, 0u64..100, any::<bool>()), 0..30),
        ) {
            let bad = BadBlocks::new(1, first, count, Arc::default());
            let mut set: BTreeSet<u64> = (first..first + count).collect();
            for (at, len, heals) in steps {
                bad.heal(2, at, len);
                prop_assert!(!bad.is_read(2, at, len));
                if heals {
                    bad.heal(1, at, len);
                    set.retain(|block| !(at..at + len).contains(block));
                }
                prop_assert_eq!(bad.is_read(1, at, len), set.range(at..at + len).next().is_some());
                prop_assert_eq!(bad.left(), set.len() as u64);
            }
        }
    }

    #[test]
    fn the_ends_of_the_address_space() {
        let bad = BadBlocks::new(1, u64::MAX - 10, u64::MAX, Arc::default());
        assert!(bad.is_read(1, u64::MAX - 1, u64::MAX) && !bad.is_read(1, 0, u64::MAX - 10));
        bad.heal(1, 0, u64::MAX);
        assert!(!bad.is_read(1, u64::MAX - 10, 9));
    }
}
