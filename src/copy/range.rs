//! Source range descriptors of every format to one shape.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::spec::copy::{Range32, Range40, SOPT_FCO, ZeroBased8};

/// Expected protection information of a source range; means nothing for a namespace without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Expected initial logical block tag (storage and reference tag): 32 bits in formats 0 and 2, 80 in 1
    /// and 3.
    pub elbt: u128,
    /// Expected application tag.
    pub elbat: u16,
    /// Expected application tag mask.
    pub elbatm: u16,
}

/// One source range, whatever the format of its descriptor was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRange {
    /// Source namespace; `None`: the destination's own (formats 0 and 1 cannot name one).
    pub snsid: Option<u32>,
    /// First block.
    pub slba: u64,
    /// Blocks, 1-based: 1..=65536.
    pub nlb: u32,
    /// Expected protection information.
    pub tags: Tags,
    /// Fast Copy Only (SOPT bit 15).
    pub fco: bool,
    /// Command extension type, 0 for none.
    pub cetype: u8,
    /// Command extension value; means nothing while `cetype` is 0.
    pub cev: u16,
    /// Some bit is set that this format reserves.
    pub reserved: bool,
}

/// A descriptor format: one row of the decoder table.
#[derive(Debug)]
pub(super) struct Layout {
    /// DESFMT.
    pub desfmt: u8,
    /// Bytes of one descriptor.
    entry: usize,
    /// Formats that name a source namespace exist only once the host enabled them (CDFE).
    pub cross: bool,
    /// For namespaces with 32- or 64-bit guards; the others are for no protection or 16-bit guards.
    pub wide: bool,
    decode: fn(&Layout, &[u8]) -> Option<Vec<SourceRange>>,
}

/// The decoder table. Format 4 (memory namespaces) and 5 to F (reserved) have no row and are refused.
static LAYOUTS: [Layout; 4] = [
    Layout { desfmt: 0, entry: 32, cross: false, wide: false, decode: entries::<Range32> },
    Layout { desfmt: 1, entry: 40, cross: false, wide: true, decode: entries::<Range40> },
    Layout { desfmt: 2, entry: 32, cross: true, wide: false, decode: entries::<Range32> },
    Layout { desfmt: 3, entry: 40, cross: true, wide: true, decode: entries::<Range40> },
];

/// Formats that are decoded, as Identify Controller OCFS says it: bit n for format n.
pub const OCFS: u16 = 0x000f;

/// Bytes of a list of `nr` descriptors: what the caller must fetch. `None` for a format without a decoder.
pub fn list_len(desfmt: u8, nr: ZeroBased8) -> Option<usize> {
    Some(Layout::of(desfmt)?.list_len(nr))
}

impl Layout {
    pub fn of(desfmt: u8) -> Option<&'static Self> {
        LAYOUTS.iter().find(|layout| layout.desfmt == desfmt)
    }

    pub fn list_len(&self, nr: ZeroBased8) -> usize {
        self.entry * usize::from(nr.count())
    }

    /// The first `nr` descriptors of `list`, which may be longer; `None` when it is shorter.
    pub fn decode(&self, nr: ZeroBased8, list: &[u8]) -> Option<Vec<SourceRange>> {
        (self.decode)(self, list.get(..self.list_len(nr))?)
    }
}

/// A descriptor on the wire.
trait Descriptor: FromBytes + Immutable + KnownLayout + Unaligned {
    fn range(&self, layout: &Layout) -> SourceRange;
}

fn entries<D: Descriptor>(layout: &Layout, list: &[u8]) -> Option<Vec<SourceRange>> {
    let descriptors = <[D]>::ref_from_bytes(list).ok()?;
    Some(descriptors.iter().map(|descriptor| descriptor.range(layout)).collect())
}

/// What SNSID and SOPT say: source namespace, FCO, and whether a reserved bit is set.
fn cross(layout: &Layout, snsid: u32, sopt: u16) -> (Option<u32>, bool, bool) {
    if layout.cross {
        (Some(snsid), sopt & SOPT_FCO != 0, sopt & !SOPT_FCO != 0)
    } else {
        (None, false, snsid != 0 || sopt != 0)
    }
}

impl Descriptor for Range32 {
    fn range(&self, layout: &Layout) -> SourceRange {
        let (snsid, fco, reserved) = cross(layout, self.snsid.get(), self.sopt.get());
        SourceRange {
            snsid,
            slba: self.slba.get(),
            nlb: self.nlb.count(),
            tags: Tags {
                elbt: u128::from(self.elbt.get()),
                elbat: self.elbat.get(),
                elbatm: self.elbatm.get(),
            },
            fco,
            cetype: self.cetype & 0xf,
            cev: self.cev.get(),
            reserved: reserved
                || self.cetype & 0xf0 != 0
                || self.reserved4.get() != 0
                || self.reserved19 != 0,
        }
    }
}

impl Descriptor for Range40 {
    fn range(&self, layout: &Layout) -> SourceRange {
        let (snsid, fco, reserved) = cross(layout, self.snsid.get(), self.sopt.get());
        SourceRange {
            snsid,
            slba: self.slba.get(),
            nlb: self.nlb.count(),
            tags: Tags {
                elbt: self.elbt.iter().fold(0, |tag, byte| tag << 8 | u128::from(*byte)),
                elbat: self.elbat.get(),
                elbatm: self.elbatm.get(),
            },
            fco,
            cetype: self.cetype & 0xf,
            cev: self.cev.get(),
            reserved: reserved
                || self.cetype & 0xf0 != 0
                || self.reserved4.get() != 0
                || self.reserved19 != 0
                || self.reserved24.get() != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::testing::encode;

    fn bytes(range: std::ops::Range<u8>) -> Vec<u8> {
        range.collect()
    }

    fn decode(desfmt: u8, nr: u8, list: &[u8]) -> Option<Vec<SourceRange>> {
        Layout::of(desfmt).and_then(|layout| layout.decode(ZeroBased8(nr), list))
    }

    #[test]
    fn table_lengths_are_those_of_the_descriptors() {
        assert_eq!(list_len(0, ZeroBased8(0)), Some(32));
        assert_eq!(list_len(2, ZeroBased8(0xff)), Some(256 * 32));
        assert_eq!(list_len(1, ZeroBased8(1)), Some(80));
        assert_eq!(list_len(3, ZeroBased8(0xff)), Some(256 * 40));
        for desfmt in 4..=15 {
            assert_eq!(list_len(desfmt, ZeroBased8(0)), None, "format {desfmt}");
        }
        for layout in &LAYOUTS {
            assert_eq!(OCFS >> layout.desfmt & 1, 1);
        }
        assert_eq!(OCFS.count_ones() as usize, LAYOUTS.len());
    }

    /// Every byte of a descriptor is its own offset, so that a field out of place shows.
    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let narrow = SourceRange {
            snsid: Some(0x0302_0100),
            slba: 0x0f0e_0d0c_0b0a_0908,
            nlb: 0x1110 + 1,
            tags: Tags { elbt: 0x1b1a_1918, elbat: 0x1d1c, elbatm: 0x1f1e },
            fco: false,
            cetype: 2,
            cev: 0x1514,
            reserved: true,
        };
        assert_eq!(decode(2, 0, &bytes(0..32)), Some(vec![narrow]));
        assert_eq!(decode(0, 0, &bytes(0..32)), Some(vec![SourceRange { snsid: None, ..narrow }]));
        let wide = SourceRange {
            tags: Tags { elbt: 0x1a1b_1c1d_1e1f_2021_2223, elbat: 0x2524, elbatm: 0x2726 },
            ..narrow
        };
        assert_eq!(decode(3, 0, &bytes(0..40)), Some(vec![wide]));
        assert_eq!(decode(1, 0, &bytes(0..40)), Some(vec![SourceRange { snsid: None, ..wide }]));
    }

    /// Which bits are reserved, bit by bit over a zeroed descriptor.
    #[test]
    fn reserved_bits_are_noticed_and_no_others() {
        for layout in &LAYOUTS {
            for bit in 0..layout.entry * 8 {
                let mut list = vec![0; layout.entry];
                list[bit / 8] = 1 << (bit % 8);
                let range = decode(layout.desfmt, 0, &list).expect("long enough")[0];
                let reserved = match bit / 8 {
                    0..=3 => !layout.cross,
                    4..=7 | 19 => true,
                    18 => bit % 8 >= 4,
                    22 => true,
                    23 => !(layout.cross && bit % 8 == 7),
                    24 | 25 => layout.wide,
                    _ => false,
                };
                assert_eq!(range.reserved, reserved, "format {} bit {bit}", layout.desfmt);
                assert_eq!(
                    range.fco,
                    layout.cross && bit == 23 * 8 + 7,
                    "format {} bit {bit}",
                    layout.desfmt
                );
            }
        }
    }

    #[test]
    fn lists_may_be_longer_but_not_shorter() {
        for desfmt in 0..4 {
            let len = list_len(desfmt, ZeroBased8(2)).expect("known");
            assert_eq!(decode(desfmt, 2, &vec![0; len]).map(|r| r.len()), Some(3));
            assert_eq!(decode(desfmt, 2, &vec![0; 4096]).map(|r| r.len()), Some(3));
            assert_eq!(decode(desfmt, 2, &vec![0; len - 1]), None);
        }
        assert_eq!(decode(0, 0, &[]), None);
    }

    #[test]
    fn widest_counts_decode() {
        let range = SourceRange { nlb: 65536, slba: u64::MAX, ..SourceRange::plain(None, 0, 1) };
        assert_eq!(decode(0, 255, &encode(0, &[range; 256])), Some(vec![range; 256]));
    }

    #[test]
    fn encode_of_the_tests_is_the_inverse() {
        for desfmt in 0..4 {
            let cross = desfmt >= 2;
            let ranges: Vec<_> = (0..5u8)
                .map(|i| SourceRange {
                    tags: Tags { elbt: 0x0102_0304, elbat: 0x55aa, elbatm: 0x1234 },
                    fco: cross && i % 2 == 0,
                    cetype: i,
                    cev: 77,
                    ..SourceRange::plain(cross.then_some(u32::from(i)), u64::from(i) << 40, 1 << i)
                })
                .collect();
            assert_eq!(decode(desfmt, 4, &encode(desfmt, &ranges)), Some(ranges));
        }
    }
}
