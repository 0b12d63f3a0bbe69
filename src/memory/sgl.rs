//! The SGL of a command to a host buffer (NVMe base specification, Scatter Gather List).

use super::{Access, DmaError, DmaMap, GuestBuf};

/// Why an SGL does not describe a buffer. The codes are generic status values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SglError {
    /// Invalid SGL Segment Descriptor (0Dh): the command's descriptor is neither data block nor segment, a
    /// segment's length is 0 or no multiple of 16, or a last segment leads to another one.
    #[error("invalid SGL segment descriptor")]
    SegmentInvalid,
    /// Invalid Number of SGL Descriptors (0Eh): a segment descriptor that is not the last of its segment, or
    /// more descriptors or segments than we follow.
    #[error("invalid number of SGL descriptors")]
    NumberInvalid,
    /// Data SGL Length Invalid (0Fh): less than the command transfers, or an address + length that wraps.
    #[error("the SGL is too short, or a descriptor wraps")]
    LengthInvalid,
    /// SGL Descriptor Type Invalid (11h).
    #[error("unsupported SGL descriptor type")]
    TypeInvalid,
    /// SGL Offset Invalid (16h): a sub type other than "address", which alone exists on PCIe.
    #[error("unsupported SGL descriptor sub type")]
    OffsetInvalid,
    /// A segment or the data cannot be reached.
    #[error(transparent)]
    Dma(DmaError),
}

impl From<DmaError> for SglError {
    fn from(error: DmaError) -> Self {
        match error {
            DmaError::Fragmented(_) => Self::NumberInvalid,
            error => Self::Dma(error),
        }
    }
}

/// Descriptors of one command that we follow, in all its segments: as a buffer has
/// [`MAX_IOVECS`](super::MAX_IOVECS) pieces at most, more of them are empty or continue each other. 100 us.
pub const MAX_DESCRIPTORS: usize = 8192;

/// Segments of one command that we follow. A guest can make a cycle of them.
pub const MAX_SEGMENTS: usize = 1024;

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;

/// Descriptors fetched at a time: 4 KiB on the stack.
const CHUNK: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    DataBlock,
    BitBucket,
    Segment,
    LastSegment,
}

struct Descriptor {
    kind: Kind,
    address: u64,
    /// Bytes.
    len: u32,
}

impl Descriptor {
    fn decode(raw: &[u8; DESCRIPTOR]) -> Result<Self, SglError> {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, _, _, _, id] = *raw;
        let kind = match id >> 4 {
            0x0 => Kind::DataBlock,
            0x1 => Kind::BitBucket,
            0x2 => Kind::Segment,
            0x3 => Kind::LastSegment,
            _ => return Err(SglError::TypeInvalid),
        };
        if id & 0xf != 0 {
            return Err(SglError::OffsetInvalid);
        }
        let descriptor = Self {
            kind,
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
        };
        // The address of a bit bucket is reserved; of an empty data block it means nothing.
        let wraps = descriptor.address.checked_add(u64::from(descriptor.len.saturating_sub(1))).is_none();
        if wraps && kind != Kind::BitBucket {
            return Err(SglError::LengthInvalid);
        }
        Ok(descriptor)
    }

    fn is_link(&self) -> bool {
        matches!(self.kind, Kind::Segment | Kind::LastSegment)
    }
}

/// What has been collected, and how much of the transfer is left.
struct Walk<'a> {
    map: &'a DmaMap,
    access: Access,
    left: usize,
    buf: GuestBuf,
}

impl Walk<'_> {
    fn data(&mut self, descriptor: &Descriptor) -> Result<(), SglError> {
        let len = usize::try_from(descriptor.len).map_or(self.left, |len| len.min(self.left));
        match (descriptor.kind, self.access) {
            (Kind::DataBlock, access) => {
                self.map.append(descriptor.address, len, access, &mut self.buf)?;
            }
            (Kind::BitBucket, Access::Write) => self.buf.append_discard(len)?,
            // In a source buffer a bit bucket counts as empty.
            (Kind::BitBucket, Access::Read) => return Ok(()),
            (Kind::Segment | Kind::LastSegment, _) => return Err(SglError::NumberInvalid),
        }
        self.left -= len;
        Ok(())
    }
}

/// The guest address of `len` bytes, if `first` is a data block that has them, as almost every SGL is; else
/// [`walk`] has to be asked, and knows what is wrong.
pub fn data_block(first: [u8; DESCRIPTOR], len: usize) -> Option<u64> {
    let descriptor = Descriptor::decode(&first).ok()?;
    let enough = usize::try_from(descriptor.len).is_ok_and(|has| has >= len);
    (descriptor.kind == Kind::DataBlock && enough).then_some(descriptor.address)
}

/// The host memory of `len` bytes described by the command's descriptor `first` (DPTR). `access` says what
/// the device does with the data; bit buckets discard on [`Access::Write`] and are ignored on
/// [`Access::Read`]. An SGL may describe more than `len` bytes (SGLS bit 18): the walk stops where it has
/// enough and looks no further.
pub fn walk(map: &DmaMap, first: [u8; DESCRIPTOR], len: usize, access: Access) -> Result<GuestBuf, SglError> {
    walk_counted(map, first, len, access, &mut 0)
}

/// As [`walk`]; adds to `walked` the descriptors that were looked at, whatever came of it.
pub fn walk_counted(
    map: &DmaMap,
    first: [u8; DESCRIPTOR],
    len: usize,
    access: Access,
    walked: &mut usize,
) -> Result<GuestBuf, SglError> {
    let mut budget = MAX_DESCRIPTORS;
    let result = follow(map, first, len, access, &mut budget);
    *walked += MAX_DESCRIPTORS - budget;
    result
}

fn follow(
    map: &DmaMap,
    first: [u8; DESCRIPTOR],
    len: usize,
    access: Access,
    budget: &mut usize,
) -> Result<GuestBuf, SglError> {
    let mut walk = Walk { map, access, left: len, buf: GuestBuf::default() };
    let mut link = match Descriptor::decode(&first) {
        // In this place an unknown type is a fault of the segment, which is the command's own.
        Err(SglError::TypeInvalid) => return Err(SglError::SegmentInvalid),
        Err(error) => return Err(error),
        Ok(descriptor) if descriptor.kind == Kind::BitBucket => {
            return Err(SglError::SegmentInvalid);
        }
        Ok(descriptor) if descriptor.kind == Kind::DataBlock => {
            walk.data(&descriptor)?;
            return finish(walk);
        }
        Ok(descriptor) => descriptor,
    };
    for _ in 0..MAX_SEGMENTS {
        if walk.left == 0 {
            return finish(walk);
        }
        match segment(&mut walk, &link, budget)? {
            Some(next) if link.kind == Kind::Segment => link = next,
            Some(_) => return Err(SglError::SegmentInvalid),
            None => return finish(walk),
        }
    }
    Err(SglError::NumberInvalid)
}

fn finish(walk: Walk<'_>) -> Result<GuestBuf, SglError> {
    if walk.left > 0 {
        return Err(SglError::LengthInvalid);
    }
    Ok(walk.buf)
}

/// Takes the data of the segment that `link` leads to. Some: the descriptor at its end that leads on; None:
/// it ends the list, or the transfer has all it needs.
fn segment(
    walk: &mut Walk<'_>,
    link: &Descriptor,
    budget: &mut usize,
) -> Result<Option<Descriptor>, SglError> {
    let bytes = usize::try_from(link.len).map_err(|_| SglError::SegmentInvalid)?;
    if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR) {
        return Err(SglError::SegmentInvalid);
    }
    let mut count = bytes / DESCRIPTOR;
    let mut address = link.address;
    let mut chunk = [0; CHUNK * DESCRIPTOR];
    while count > 0 {
        let now = count.min(CHUNK).min(*budget);
        if now == 0 {
            return Err(SglError::NumberInvalid);
        }
        *budget -= now;
        count -= now;
        let chunk = &mut chunk[..now * DESCRIPTOR];
        walk.map.read(address, chunk)?;
        // No overflow before the last chunk: address + length of the segment was checked.
        address = address.wrapping_add(chunk.len() as u64);
        let (descriptors, _) = chunk.as_chunks::<DESCRIPTOR>();
        for (index, raw) in descriptors.iter().enumerate() {
            let descriptor = Descriptor::decode(raw)?;
            if descriptor.is_link() && count == 0 && index + 1 == now {
                return Ok(Some(descriptor));
            }
            walk.data(&descriptor)?;
            if walk.left == 0 {
                return Ok(None);
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::Rights;
    use crate::memory::testing::Guest;

    fn descriptor(id: u8, address: u64, len: u32) -> [u8; 16] {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        // Reserved bytes mean nothing.
        raw[12..15].fill(0xee);
        raw[15] = id;
        raw
    }

    fn data(address: u64, len: u32) -> [u8; 16] {
        descriptor(0x00, address, len)
    }

    fn bucket(len: u32) -> [u8; 16] {
        descriptor(0x10, u64::MAX, len)
    }

    fn link(address: u64, len: u32) -> [u8; 16] {
        descriptor(0x20, address, len)
    }

    fn last(address: u64, len: u32) -> [u8; 16] {
        descriptor(0x30, address, len)
    }

    fn set(guest: &Guest, at: u64, descriptors: &[[u8; 16]]) {
        guest.set(at, descriptors.as_flattened());
    }

    fn places(guest: &Guest, first: [u8; 16], len: usize) -> Result<Vec<(u64, usize)>, SglError> {
        let map = guest.dma();
        let buf = walk(&map, first, len, Access::Read)?;
        assert_eq!(buf.len(), len);
        let mut base = GuestBuf::default();
        map.append(0, 1, Access::Read, &mut base).unwrap();
        let base = base.iovecs()[0].iov_base as u64;
        let iovecs = buf.iovecs().iter();
        Ok(iovecs.map(|iovec| (iovec.iov_base as u64 - base, iovec.iov_len)).collect())
    }

    fn guest() -> Guest {
        Guest::new(0, 0x10_0000)
    }

    #[test]
    fn one_data_block() {
        let guest = guest();
        assert_eq!(places(&guest, data(0x1003, 77), 77), Ok(vec![(0x1003, 77)]));
        // Longer than the transfer: only what is needed, even if the rest is not mapped.
        assert_eq!(places(&guest, data(0xf_fff0, 0x1000), 16), Ok(vec![(0xf_fff0, 16)]));
        assert_eq!(places(&guest, data(0x1003, 76), 77), Err(SglError::LengthInvalid));
        assert_eq!(places(&guest, data(0, 0), 1), Err(SglError::LengthInvalid));
        assert_eq!(places(&guest, data(u64::MAX, 0), 0), Ok(vec![]));
        assert_eq!(places(&guest, data(u64::MAX, 2), 1), Err(SglError::LengthInvalid));
        let unmapped = SglError::Dma(DmaError::Unmapped(0x10_0000));
        assert_eq!(places(&guest, data(0xf_fff0, 0x1000), 17), Err(unmapped));
    }

    #[test]
    fn a_chain_of_segments() {
        let guest = guest();
        set(&guest, 0x1000, &[data(0x5000, 10), data(0x6000, 0), data(0x7001, 3), link(0x2010, 16)]);
        set(&guest, 0x2010, &[last(0x3008, 32)]);
        set(&guest, 0x3008, &[data(0x8000, 4), data(0x9000, 5)]);
        let expected = vec![(0x5000, 10), (0x7001, 3), (0x8000, 4), (0x9000, 5)];
        assert_eq!(places(&guest, link(0x1000, 64), 22), Ok(expected));
        assert_eq!(places(&guest, link(0x1000, 64), 23), Err(SglError::LengthInvalid));
        // Enough before the end: the rest is not looked at.
        set(&guest, 0x2010, &[descriptor(0xf0, 0, 0)]);
        let expected = vec![(0x5000, 10), (0x7001, 3)];
        assert_eq!(places(&guest, link(0x1000, 64), 13), Ok(expected));
        // A segment that ends with data ends the list, whatever the link called it.
        assert_eq!(places(&guest, link(0x3008, 32), 9), Ok(vec![(0x8000, 4), (0x9000, 5)]));
        assert_eq!(places(&guest, last(0x3008, 32), 9), Ok(vec![(0x8000, 4), (0x9000, 5)]));
    }

    #[test]
    fn the_first_descriptor() {
        let guest = guest();
        assert_eq!(places(&guest, bucket(16), 16), Err(SglError::SegmentInvalid));
        for id in (4..=15).map(|kind| kind << 4) {
            let first = descriptor(id, 0x1000, 16);
            assert_eq!(places(&guest, first, 16), Err(SglError::SegmentInvalid));
        }
        for id in [0x01, 0x2a, 0x3f] {
            let first = descriptor(id, 0x1000, 16);
            assert_eq!(places(&guest, first, 16), Err(SglError::OffsetInvalid));
        }
    }

    #[test]
    fn segment_lengths() {
        let guest = guest();
        for len in [0, 1, 8, 15, 17, 40] {
            assert_eq!(places(&guest, link(0x1000, len), 16), Err(SglError::SegmentInvalid));
            assert_eq!(places(&guest, last(0x1000, len), 16), Err(SglError::SegmentInvalid));
        }
        let wraps = link(u64::MAX - 14, 16);
        assert_eq!(places(&guest, wraps, 16), Err(SglError::LengthInvalid));
        let outside = SglError::Dma(DmaError::Unmapped(0x20_0000));
        assert_eq!(places(&guest, link(0x20_0000, 16), 16), Err(outside));
    }

    #[test]
    fn links_in_the_wrong_place() {
        let guest = guest();
        for wrong in [link(0x2000, 16), last(0x2000, 16)] {
            set(&guest, 0x2000, &[data(0x5000, 16)]);
            set(&guest, 0x1000, &[data(0x6000, 8), wrong, data(0x7000, 8)]);
            assert_eq!(places(&guest, link(0x1000, 48), 16), Err(SglError::NumberInvalid));
            // At the end it is right, but not of a last segment.
            assert_eq!(places(&guest, link(0x1000, 32), 24), Ok(vec![(0x6000, 8), (0x5000, 16)]));
            assert_eq!(places(&guest, last(0x1000, 32), 24), Err(SglError::SegmentInvalid));
            assert_eq!(places(&guest, last(0x1000, 32), 8), Ok(vec![(0x6000, 8)]));
        }
    }

    #[test]
    fn types_inside_a_segment() {
        let guest = guest();
        for id in (4..=15).map(|kind| kind << 4) {
            set(&guest, 0x1000, &[data(0x5000, 8), descriptor(id, 0x6000, 8)]);
            assert_eq!(places(&guest, link(0x1000, 32), 16), Err(SglError::TypeInvalid));
        }
        for id in [0x01, 0x11, 0x2f, 0x3a] {
            set(&guest, 0x1000, &[data(0x5000, 8), descriptor(id, 0x6000, 16)]);
            assert_eq!(places(&guest, link(0x1000, 32), 16), Err(SglError::OffsetInvalid));
        }
        set(&guest, 0x1000, &[data(0x5000, 8), data(u64::MAX - 6, 9)]);
        assert_eq!(places(&guest, link(0x1000, 32), 16), Err(SglError::LengthInvalid));
    }

    #[test]
    fn bit_buckets() {
        let guest = guest();
        let map = guest.dma();
        set(&guest, 0x1000, &[data(0x5000, 8), bucket(100), data(0x6000, 8)]);
        let buf = walk(&map, link(0x1000, 48), 116, Access::Write).unwrap();
        assert_eq!(buf.len(), 116);
        buf.copy_in(0, &[0xaa; 116]).unwrap();
        assert_eq!(guest.bytes(0x5000, 9), [[0xaa; 8].as_slice(), &[0]].concat());
        assert_eq!(guest.bytes(0x6000, 9), [[0xaa; 8].as_slice(), &[0]].concat());
        let short = walk(&map, link(0x1000, 48), 117, Access::Write).unwrap_err();
        assert_eq!(short, SglError::LengthInvalid);
        // More bucket than transfer.
        set(&guest, 0x1010, &[bucket(u32::MAX)]);
        let buf = walk(&map, link(0x1000, 48), 1000, Access::Write).unwrap();
        assert_eq!((buf.len(), buf.iovecs().len()), (1000, 2));
        // In a source it is empty.
        assert_eq!(places(&guest, link(0x1000, 48), 16), Ok(vec![(0x5000, 8), (0x6000, 8)]));
        assert_eq!(places(&guest, link(0x1000, 48), 17), Err(SglError::LengthInvalid));
    }

    #[test]
    fn cycles_end() {
        let guest = guest();
        set(&guest, 0x1000, &[data(0, 0), link(0x1000, 32)]);
        assert_eq!(places(&guest, link(0x1000, 32), 1), Err(SglError::NumberInvalid));
        // Even if each turn moves data.
        set(&guest, 0x1000, &[data(0, 1), link(0x1000, 32)]);
        assert_eq!(places(&guest, link(0x1000, 32), MAX_SEGMENTS), Ok(vec![(0, 1); MAX_SEGMENTS]));
        let more = places(&guest, link(0x1000, 32), MAX_SEGMENTS + 1);
        assert_eq!(more, Err(SglError::NumberInvalid));
    }

    #[test]
    fn descriptors_are_bounded() {
        let guest = Guest::new(0, 0x20_0000);
        // The memory is zero: empty data blocks. One beyond the bound, and the data beyond it again.
        let count = MAX_DESCRIPTORS as u32;
        let long = |extra: u32| last(0, (count + extra) * 16);
        set(&guest, u64::from(count - 1) * 16, &[data(0x5000, 8), data(0x6000, 8)]);
        assert_eq!(places(&guest, long(0), 8), Ok(vec![(0x5000, 8)]));
        assert_eq!(places(&guest, long(1), 8), Ok(vec![(0x5000, 8)]));
        assert_eq!(places(&guest, long(1), 16), Err(SglError::NumberInvalid));
        assert_eq!(places(&guest, long(0), 16), Err(SglError::LengthInvalid));
        // A length that says 4 GiB allocates nothing.
        set(&guest, u64::from(count - 1) * 16, &[data(0, 0)]);
        assert_eq!(places(&guest, last(0, u32::MAX - 15), 8), Err(SglError::NumberInvalid));
    }

    #[test]
    fn rights() {
        let mut guest = Guest::unmapped(0x2000);
        guest.map(0, 0x1000, Rights::READ_ONLY, 0);
        guest.map(0x1000, 0x1000, Rights::READ_WRITE, 0x1000);
        let map = guest.dma();
        set(&guest, 0, &[data(0x1000, 8), data(0x800, 8)]);
        assert!(walk(&map, last(0, 32), 16, Access::Read).is_ok());
        assert!(walk(&map, last(0, 32), 8, Access::Write).is_ok());
        let denied = walk(&map, last(0, 32), 16, Access::Write).unwrap_err();
        assert_eq!(denied, SglError::Dma(DmaError::Denied(0x800)));
    }

    proptest! {
        /// Random data cut into random segments reads as the plain list of its bytes.
        #[test]
        fn agrees_with_a_byte_list(
            segments in prop::collection::vec(
                prop::collection::vec((0x1_0000u64..0x1_8000, 0u32..300), 0..300),
                1..6,
            ),
            cut in 0usize..300,
        ) {
            let guest = guest();
            let pattern: Vec<u8> = (0..0x1_0000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
            guest.set(0x1_0000, &pattern);
            let mut model = Vec::new();
            let mut first = data(0, 0);
            let mut lens: Vec<usize> = Vec::new();
            for (index, segment) in segments.iter().enumerate() {
                let at = index as u64 * 0x2000;
                let is_last = index + 1 == segments.len();
                let mut raw: Vec<[u8; 16]> = Vec::new();
                for (address, len) in segment {
                    raw.push(data(*address, *len));
                    let from = (*address - 0x1_0000) as usize;
                    model.extend_from_slice(&pattern[from..from + *len as usize]);
                }
                if is_last && raw.is_empty() {
                    raw.push(data(0, 0));
                }
                lens.push(raw.len() + usize::from(!is_last));
                set(&guest, at, &raw);
            }
            for (index, len) in lens.iter().enumerate() {
                let is_last = index + 1 == lens.len();
                let at = index as u64 * 0x2000;
                let to = if is_last { last } else { link }(at, (*len * 16) as u32);
                match index.checked_sub(1) {
                    None => first = to,
                    Some(before) => {
                        set(&guest, before as u64 * 0x2000 + (lens[before] as u64 - 1) * 16, &[to]);
                    }
                }
            }
            let len = model.len().saturating_sub(cut);
            let map = guest.dma();
            let buf = walk(&map, first, len, Access::Read).unwrap();
            let mut bytes = vec![0; len];
            buf.copy_out(0, &mut bytes).unwrap();
            prop_assert_eq!(&bytes, &model[..len]);
            let more = walk(&map, first, model.len() + 1, Access::Read);
            prop_assert_eq!(more.unwrap_err(), SglError::LengthInvalid);
        }

        /// Whatever the guest says: an answer, and never more than was asked for.
        #[test]
        fn any_input_is_answered(
            raw in prop::collection::vec((0u8..0x50, 0u64..0x3000, 0u32..0x200), 1..64),
            len in 0usize..0x2000,
        ) {
            let guest = Guest::new(0, 0x2000);
            let list: Vec<_> = raw
                .iter()
                // Mostly sub type 0, mostly whole segments.
                .map(|(id, address, len)| descriptor(id & 0xf8 & !8, *address, len & !0xf))
                .collect();
            set(&guest, 0, &list);
            if let Ok(buf) = walk(&guest.dma(), list[0], len, Access::Write) {
                prop_assert_eq!(buf.len(), len);
                let sum: usize = buf.iovecs().iter().map(|iovec| iovec.iov_len).sum();
                prop_assert_eq!(sum, len);
            }
        }
    }
}
