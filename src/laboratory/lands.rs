//! Which part of a command's data lands where the command says, when a laboratory wants less than all of it.
//! Pure: the same answer for each byte, in whatever pieces and order it is asked.

/// How a command's data is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a block.
    pub block: u64,
    /// Of a Copy: where each of its ranges ends in the destination, in bytes; ascending, the last one is the
    /// length. Of others nothing: there each block stands for itself.
    pub ends: Vec<u64>,
    /// Bytes in all.
    pub len: u64,
}

impl Layout {
    /// Of a command without ranges.
    pub fn plain(block: u64, len: u64) -> Self {
        Self { block, ends: Vec::new(), len }
    }

    /// Of a Copy.
    pub fn of_ranges(block: u64, ends: Vec<u64>) -> Self {
        let len = ends.last().copied().unwrap_or(0);
        Self { block, ends, len }
    }

    /// Where range `index` of a Copy begins and ends.
    pub fn range(&self, index: u32) -> Option<(u64, u64)> {
        let index = index as usize;
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        Some((start, end))
    }

    /// Where the first `units` end: ranges, or blocks where there are none.
    fn end_of(&self, units: u64) -> u64 {
        if self.ends.is_empty() {
            return units.saturating_mul(self.block).min(self.len);
        }
        let before = usize::try_from(units).ok().and_then(|units| units.checked_sub(1));
        match before {
            None if units == 0 => 0,
            None => self.len,
            Some(before) => self.ends.get(before).copied().unwrap_or(self.len),
        }
    }
}

/// See the module docs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Lands {
    /// All of it.
    #[default]
    All,
    /// Nothing.
    Nothing,
    /// The first `units` (ranges of a Copy, blocks of others), and `blocks` of what follows.
    Prefix {
        /// Ranges or blocks.
        units: u64,
        /// Blocks beyond.
        blocks: u64,
    },
    /// Half of the blocks, as this seed says which.
    Scattered(u64),
    /// The first bytes: a torn write.
    Torn(u64),
    /// All ranges of a Copy but one, of which the first bytes.
    TornRange {
        /// Which.
        range: u32,
        /// Bytes of it.
        bytes: u64,
    },
}

impl Lands {
    /// The bytes `from..to` of the data as stretches that land or do not, in order, without gaps.
    pub fn stretches(&self, layout: &Layout, from: u64, to: u64) -> Vec<(u64, u64, bool)> {
        let mut out: Vec<(u64, u64, bool)> = Vec::new();
        let mut at = from;
        while at < to {
            let (next, lands) = self.at(layout, at);
            let end = next.max(at + 1).min(to);
            match out.last_mut() {
                Some(last) if last.2 == lands => last.1 = end,
                _ => out.push((at, end, lands)),
            }
            at = end;
        }
        out
    }

    /// How many ranges of a Copy, from the first one on, land as a whole: what DW0 says of it.
    pub fn complete_ranges(&self, layout: &Layout) -> u32 {
        let mut start = 0;
        for (index, end) in layout.ends.iter().enumerate() {
            if self.stretches(layout, start, *end).iter().any(|stretch| !stretch.2) {
                return u32::try_from(index).unwrap_or(u32::MAX);
            }
            start = *end;
        }
        // A Copy that is complete says 0.
        0
    }

    /// Does the byte land, and up to where do those behind it do as it does?
    fn at(&self, layout: &Layout, at: u64) -> (u64, bool) {
        let prefix = |cut: u64| if at < cut { (cut, true) } else { (u64::MAX, false) };
        match self {
            Self::All => (u64::MAX, true),
            Self::Nothing => (u64::MAX, false),
            Self::Prefix { units, blocks } => {
                prefix(layout.end_of(*units).saturating_add(blocks.saturating_mul(layout.block)))
            }
            Self::Scattered(seed) => {
                let block = at / layout.block.max(1);
                ((block + 1).saturating_mul(layout.block), mix(*seed, block) & 1 == 1)
            }
            Self::Torn(bytes) => prefix(*bytes),
            Self::TornRange { range, bytes } => match layout.range(*range) {
                Some((start, end)) => {
                    let cut = start.saturating_add(*bytes).min(end);
                    match at {
                        at if at < cut => (cut, true),
                        at if at < end => (end, false),
                        _ => (u64::MAX, true),
                    }
                }
                None => (u64::MAX, true),
            },
        }
    }
}

/// A number that depends on both, and looks as if it did not: SplitMix64. Nothing here needs more of it.
pub(super) fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ranges of 2, 1 and 3 blocks of 512 bytes.
    fn copy() -> Layout {
        Layout::of_ranges(512, vec![1024, 1536, 3072])
    }

    #[test]
    fn a_prefix_counts_ranges_of_a_copy_and_blocks_of_others() {
        let two = Lands::Prefix { units: 2, blocks: 0 };
        assert_eq!(two.stretches(&copy(), 0, 3072), [(0, 1536, true), (1536, 3072, false)]);
        assert_eq!(two.complete_ranges(&copy()), 2);
        let plain = Layout::plain(512, 3072);
        assert_eq!(two.stretches(&plain, 0, 3072), [(0, 1024, true), (1024, 3072, false)]);
        let more = Lands::Prefix { units: 2, blocks: 1 };
        assert_eq!(more.stretches(&copy(), 1000, 3072), [(1000, 2048, true), (2048, 3072, false)]);
        assert_eq!(more.complete_ranges(&copy()), 2);
        assert_eq!(Lands::Nothing.complete_ranges(&copy()), 0);
        assert_eq!(Lands::All.complete_ranges(&copy()), 0, "a complete Copy says 0");
    }

    #[test]
    fn what_is_torn_ends_within_a_block() {
        assert_eq!(Lands::Torn(700).stretches(&copy(), 0, 1024), [(0, 700, true), (700, 1024, false)]);
        let range = Lands::TornRange { range: 1, bytes: 100 };
        assert_eq!(
            range.stretches(&copy(), 0, 3072),
            [(0, 1124, true), (1124, 1536, false), (1536, 3072, true)]
        );
        assert_eq!(range.complete_ranges(&copy()), 1);
        assert_eq!(Lands::TornRange { range: 9, bytes: 0 }.stretches(&copy(), 0, 5), [(0, 5, true)]);
    }

    fn any_lands() -> impl Strategy<Value = Lands> {
        prop_oneof![
            Just(Lands::All),
            Just(Lands::Nothing),
            (0u64..6, 0u64..4).prop_map(|(units, blocks)| Lands::Prefix { units, blocks }),
            any::<u64>().prop_map(Lands::Scattered),
            (0u64..6000).prop_map(Lands::Torn),
            (0u32..5, 0u64..3000).prop_map(|(range, bytes)| Lands::TornRange { range, bytes }),
        ]
    }

    fn any_layout() -> impl Strategy<Value = Layout> {
        let copy = prop::collection::vec(1u64..5, 1..5).prop_map(|blocks| {
            let ends = blocks.iter().scan(0, |at, len| {
                *at += len * 512;
                Some(*at)
            });
            Layout::of_ranges(512, ends.collect())
        });
        prop_oneof![(1u64..12).prop_map(|blocks| Layout::plain(512, blocks * 512)), copy]
    }

    proptest! {
        /// However an extent is cut, the same bytes land.
        #[test]
        fn pieces_agree_with_the_whole(lands in any_lands(), layout in any_layout(), cut in 0u64..6000) {
            let cut = cut % (layout.len + 1);
            let bytes = |stretches: Vec<(u64, u64, bool)>| -> Vec<bool> {
                stretches.into_iter().flat_map(|(from, to, lands)| (from..to).map(move |_| lands)).collect()
            };
            let whole = bytes(lands.stretches(&layout, 0, layout.len));
            prop_assert_eq!(whole.len() as u64, layout.len);
            let mut parts = bytes(lands.stretches(&layout, 0, cut));
            parts.extend(bytes(lands.stretches(&layout, cut, layout.len)));
            prop_assert_eq!(&parts, &whole);
            // DW0 counts the ranges before the first byte that is missing.
            let first = whole.iter().position(|lands| !lands).map(|at| at as u64);
            let before = first.map_or(0, |at| layout.ends.iter().filter(|end| **end <= at).count());
            prop_assert_eq!(lands.complete_ranges(&layout) as usize, before);
        }
    }
}
