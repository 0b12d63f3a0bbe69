//! The checksum of a block.

use std::hash::{BuildHasher, Hasher};
use std::num::NonZeroU64;

use foldhash::quality::FixedState;

/// 63 bits of a hash of a block's data. Equal data has equal sums, within one run of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum(NonZeroU64);

impl Sum {
    /// The bit that all sums have: what lies beside them in a cell has it not.
    const MARK: u64 = 1 << 63;

    /// Of the data of one block.
    pub fn of(block: &[u8]) -> Self {
        let mut hasher = FixedState::with_seed(0).build_hasher();
        hasher.write(block);
        // Not zero, for the mark is in it.
        Self(NonZeroU64::new(hasher.finish() | Self::MARK).unwrap_or(NonZeroU64::MAX))
    }

    /// What [`Self::bits`] gave; `None` for anything that cannot be of it.
    pub(super) fn of_bits(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).filter(|bits| bits.get() & Self::MARK != 0).map(Self)
    }

    pub(super) fn bits(self) -> u64 {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_of_a_block_counts() {
        let mut block = [0; 512];
        let zero = Sum::of(&block);
        for bit in 0..block.len() * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Sum::of(&block), zero, "bit {bit}");
            block[bit / 8] = 0;
        }
        assert_eq!(Sum::of(&block), zero);
        assert_eq!(Sum::of_bits(zero.bits()), Some(zero));
        assert_eq!(Sum::of_bits(0), None);
    }
}
