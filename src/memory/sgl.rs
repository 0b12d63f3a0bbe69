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

/// Descriptors of one command that we follow, in all its segments.
pub const MAX_DESCRIPTORS: usize = 65536;

/// Segments of one command that we follow. A guest can make a cycle of them.
pub const MAX_SEGMENTS: usize = 4096;

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

/// The host memory of `len` bytes described by the command's descriptor `first` (DPTR). `access` says what the
/// device does with the data; bit buckets discard on [`Access::Write`] and are ignored on [`Access::Read`]. An SGL
/// may describe more than `len` bytes (SGLS bit 18): the walk stops where it has enough and looks no further.
pub fn walk(map: &DmaMap, first: [u8; DESCRIPTOR], len: usize, access: Access) -> Result<GuestBuf, SglError> {
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
    let mut budget = MAX_DESCRIPTORS;
    for _ in 0..MAX_SEGMENTS {
        if walk.left == 0 {
            return finish(walk);
        }
        match segment(&mut walk, &link, &mut budget)? {
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

/// Takes the data of the segment that `link` leads to. Some: the descriptor at its end that leads on; None: it ends
/// the list, or the transfer has all it needs.
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
