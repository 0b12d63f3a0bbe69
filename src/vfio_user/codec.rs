//! Bytes to typed requests or an errno, and replies to bytes. No I/O, no state.
//!
//! Lenient where real clients are: `argsz` is believed only where it decides the reply (region
//! info), and bytes after the part a command defines are ignored (SPDK sends 4080 for a region-info
//! request). Strict where a wrong value would be executed.

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE,
    VFIO_DMA_UNMAP_FLAG_ALL, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_BOOL,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_TYPE_MASK,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::device::{DmaMap, DmaUnmap, IrqAction, IrqInfo, RegionInfo};
use super::messages::{
    DeviceInfoBody, DmaMapBody, DmaUnmapBody, FLAG_ERROR, HEADER_SIZE, Header, IrqInfoBody,
    MAX_DATA_XFER_SIZE, NUM_IRQS, NUM_REGIONS, RegionAccessBody, RegionInfoBody, SetIrqsBody,
    SparseMmapCapability, TYPE_REPLY, VersionBody, command,
};
use super::version::{self, ClientVersion};

/// A command as decoded from one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// VERSION.
    Version(ClientVersion),
    /// DMA_MAP; the descriptor, if any, is the message's only one.
    DmaMap(DmaMap),
    /// DMA_UNMAP.
    DmaUnmap(DmaUnmap),
    /// DEVICE_GET_INFO.
    GetInfo,
    /// DEVICE_GET_REGION_INFO.
    GetRegionInfo {
        /// Region index, below [`NUM_REGIONS`].
        index: u32,
        /// Bytes the client has room for, at least those of [`RegionInfoBody`].
        argsz: u32,
    },
    /// DEVICE_GET_IRQ_INFO.
    GetIrqInfo {
        /// Interrupt index, below [`NUM_IRQS`].
        index: u32,
    },
    /// DEVICE_SET_IRQS.
    SetIrqs(IrqSet<'a>),
    /// REGION_READ.
    RegionRead(RegionAccess),
    /// REGION_WRITE; as many bytes as its count says.
    RegionWrite(RegionAccess, &'a [u8]),
    /// DEVICE_RESET.
    Reset,
}

/// DEVICE_SET_IRQS before its descriptors are joined to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqSet<'a> {
    /// Interrupt index, below [`NUM_IRQS`].
    pub index: u32,
    /// First interrupt meant.
    pub start: u32,
    /// Number of interrupts meant.
    pub count: u32,
    /// What to do.
    pub action: IrqAction,
    /// With what.
    pub data: IrqSetData<'a>,
}

/// The data type of a DEVICE_SET_IRQS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqSetData<'a> {
    /// No data.
    None,
    /// `count` bytes.
    Bool(&'a [u8]),
    /// The message's descriptors: `count` of them, or none.
    Eventfds,
}

/// Where a region access goes. Only `count` has been checked, against the largest transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionAccess {
    /// Region index, any.
    pub region: u32,
    /// Offset in the region, any.
    pub offset: u64,
    /// Bytes.
    pub count: u32,
}

/// Decodes the command in `header` and `body` (all bytes after the header). `fds` is the number of
/// descriptors that came with the message; those the command does not use are ignored (SPDK attaches
/// one to DMA_UNMAP).
///
/// # Errors
/// `OPNOTSUPP` for a command this server does not have, `INVAL` for one that is malformed.
pub fn decode<'a>(header: &Header, body: &'a [u8], fds: usize) -> Result<Request<'a>, Errno> {
    match header.command {
        command::VERSION => decode_version(body),
        command::DMA_MAP => decode_dma_map(body, fds),
        command::DMA_UNMAP => decode_dma_unmap(body),
        command::GET_INFO => prefix::<DeviceInfoBody>(body).map(|_| Request::GetInfo),
        command::GET_REGION_INFO => decode_region_info(body),
        command::GET_IRQ_INFO => {
            let (info, _) = prefix::<IrqInfoBody>(body)?;
            check(info.index < NUM_IRQS)?;
            Ok(Request::GetIrqInfo { index: info.index })
        }
        command::SET_IRQS => decode_set_irqs(body, fds),
        command::REGION_READ => {
            let (access, _) = decode_access(body)?;
            Ok(Request::RegionRead(access))
        }
        command::REGION_WRITE => {
            let (access, data) = decode_access(body)?;
            check(data.len() == access.count as usize)?;
            Ok(Request::RegionWrite(access, data))
        }
        command::RESET => Ok(Request::Reset),
        _ => Err(Errno::OPNOTSUPP),
    }
}

fn check(holds: bool) -> Result<(), Errno> {
    if holds { Ok(()) } else { Err(Errno::INVAL) }
}

fn prefix<T: FromBytes + KnownLayout + Immutable>(body: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(body).map_err(|_| Errno::INVAL)
}

fn decode_version(body: &[u8]) -> Result<Request<'_>, Errno> {
    let (proposed, text) = prefix::<VersionBody>(body)?;
    check(proposed.major == version::MAJOR)?;
    Ok(Request::Version(ClientVersion {
        minor: proposed.minor.min(version::MINOR),
        capabilities: version::parse_capabilities(text)?,
    }))
}

fn decode_dma_map(body: &[u8], fds: usize) -> Result<Request<'_>, Errno> {
    let (map, _) = prefix::<DmaMapBody>(body)?;
    check(fds <= 1)?;
    check(map.flags & !(VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE) == 0)?;
    check(map.size != 0)?;
    check(map.address.checked_add(map.size).is_some())?;
    check(map.offset.checked_add(map.size).is_some())?;
    Ok(Request::DmaMap(DmaMap {
        iova: map.address,
        size: map.size,
        offset: map.offset,
        read: map.flags & VFIO_DMA_MAP_FLAG_READ != 0,
        write: map.flags & VFIO_DMA_MAP_FLAG_WRITE != 0,
    }))
}

fn decode_dma_unmap(body: &[u8]) -> Result<Request<'_>, Errno> {
    let (unmap, _) = prefix::<DmaUnmapBody>(body)?;
    // The dirty bitmap belongs to migration, which is not announced.
    check(unmap.flags & !VFIO_DMA_UNMAP_FLAG_ALL == 0)?;
    let all = unmap.flags & VFIO_DMA_UNMAP_FLAG_ALL != 0;
    if all {
        check(unmap.address == 0 && unmap.size == 0)?;
    } else {
        check(unmap.size != 0)?;
        check(unmap.address.checked_add(unmap.size).is_some())?;
    }
    Ok(Request::DmaUnmap(DmaUnmap { iova: unmap.address, size: unmap.size, all }))
}

fn decode_region_info(body: &[u8]) -> Result<Request<'_>, Errno> {
    let (info, _) = prefix::<RegionInfoBody>(body)?;
    check(info.argsz as usize >= size_of::<RegionInfoBody>())?;
    check(info.index < NUM_REGIONS)?;
    Ok(Request::GetRegionInfo { index: info.index, argsz: info.argsz })
}

fn decode_set_irqs(body: &[u8], fds: usize) -> Result<Request<'_>, Errno> {
    let (set, rest) = prefix::<SetIrqsBody>(body)?;
    check(set.index < NUM_IRQS)?;
    check(set.flags & !(VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK) == 0)?;
    let action = match set.flags & VFIO_IRQ_SET_ACTION_TYPE_MASK {
        VFIO_IRQ_SET_ACTION_MASK => IrqAction::Mask,
        VFIO_IRQ_SET_ACTION_UNMASK => IrqAction::Unmask,
        VFIO_IRQ_SET_ACTION_TRIGGER => IrqAction::Trigger,
        _ => return Err(Errno::INVAL),
    };
    let data = match set.flags & VFIO_IRQ_SET_DATA_TYPE_MASK {
        VFIO_IRQ_SET_DATA_NONE => IrqSetData::None,
        VFIO_IRQ_SET_DATA_BOOL => {
            let bytes = rest.get(..set.count as usize).ok_or(Errno::INVAL)?;
            IrqSetData::Bool(bytes)
        }
        VFIO_IRQ_SET_DATA_EVENTFD => {
            check(fds == 0 || fds == set.count as usize)?;
            IrqSetData::Eventfds
        }
        _ => return Err(Errno::INVAL),
    };
    Ok(Request::SetIrqs(IrqSet { index: set.index, start: set.start, count: set.count, action, data }))
}

fn decode_access(body: &[u8]) -> Result<(RegionAccess, &[u8]), Errno> {
    let (access, data) = prefix::<RegionAccessBody>(body)?;
    check(access.count <= MAX_DATA_XFER_SIZE)?;
    Ok((RegionAccess { region: access.region, offset: access.offset, count: access.count }, data))
}

/// Puts a reply to `request` into `out`, which is cleared first; `body` appends what follows the
/// header.
pub fn encode_reply(out: &mut Vec<u8>, request: &Header, body: impl FnOnce(&mut Vec<u8>)) {
    out.clear();
    out.resize(HEADER_SIZE, 0);
    body(out);
    let header = Header {
        id: request.id,
        command: request.command,
        // Bodies are bounded by MAX_MESSAGE_SIZE, far below 4 GiB.
        size: u32::try_from(out.len()).unwrap_or(u32::MAX),
        flags: TYPE_REPLY,
        error: 0,
    };
    out[..HEADER_SIZE].copy_from_slice(header.as_bytes());
}

/// Puts an error reply to `request` into `out`, which is cleared first. An [`Errno`] is never 0,
/// which QEMU would take for success.
pub fn encode_error(out: &mut Vec<u8>, request: &Header, errno: Errno) {
    out.clear();
    let header = Header {
        id: request.id,
        command: request.command,
        size: HEADER_SIZE as u32,
        flags: TYPE_REPLY | FLAG_ERROR,
        error: errno.raw_os_error().unsigned_abs(),
    };
    out.extend_from_slice(header.as_bytes());
}

/// Appends the body of a VERSION reply.
pub fn append_version(out: &mut Vec<u8>, minor: u16) {
    let body = VersionBody { major: version::MAJOR, minor };
    out.extend_from_slice(body.as_bytes());
    version::append_capabilities(out);
}

/// Appends the body of a DMA_UNMAP reply: the request again.
pub fn append_unmap(out: &mut Vec<u8>, unmap: &DmaUnmap) {
    let body = DmaUnmapBody {
        argsz: size_of::<DmaUnmapBody>() as u32,
        flags: if unmap.all { VFIO_DMA_UNMAP_FLAG_ALL } else { 0 },
        address: unmap.iova,
        size: unmap.size,
    };
    out.extend_from_slice(body.as_bytes());
}

/// Appends the body of a DEVICE_GET_INFO reply: a PCI device that can be reset.
pub fn append_device_info(out: &mut Vec<u8>) {
    let body = DeviceInfoBody {
        argsz: size_of::<DeviceInfoBody>() as u32,
        flags: VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET,
        num_regions: NUM_REGIONS,
        num_irqs: NUM_IRQS,
    };
    out.extend_from_slice(body.as_bytes());
}

/// Appends the body of a DEVICE_GET_REGION_INFO reply and says whether the region's descriptor
/// belongs to it.
///
/// A client whose `argsz` has no room for the capabilities gets the 32-byte structure with the size
/// to ask again with; its CAPS flag stays clear, since QEMU refuses CAPS with offset 0.
pub fn append_region_info(out: &mut Vec<u8>, index: u32, argsz: u32, info: &RegionInfo<'_>) -> bool {
    let fixed = size_of::<RegionInfoBody>();
    let areas = info.mmap.map_or(&[][..], |mmap| mmap.areas);
    let full =
        if areas.is_empty() { fixed } else { fixed + size_of::<SparseMmapCapability>() + 16 * areas.len() };
    let fits = argsz as usize >= full;
    let with_caps = !areas.is_empty() && fits;
    let mut flags = info.flags;
    if info.mmap.is_some() {
        flags |= VFIO_REGION_INFO_FLAG_MMAP;
    }
    if with_caps {
        flags |= VFIO_REGION_INFO_FLAG_CAPS;
    }
    let body = RegionInfoBody {
        argsz: full as u32,
        flags,
        index,
        cap_offset: if with_caps { fixed as u32 } else { 0 },
        size: info.size,
        offset: info.mmap.map_or(0, |mmap| mmap.offset),
    };
    out.extend_from_slice(body.as_bytes());
    if with_caps {
        let capability = SparseMmapCapability {
            id: VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16,
            version: 1,
            next: 0,
            nr_areas: areas.len() as u32,
            reserved: 0,
        };
        out.extend_from_slice(capability.as_bytes());
        for area in areas {
            out.extend_from_slice(area.offset.as_bytes());
            out.extend_from_slice(area.size.as_bytes());
        }
    }
    info.mmap.is_some() && fits
}

/// Appends the body of a DEVICE_GET_IRQ_INFO reply.
pub fn append_irq_info(out: &mut Vec<u8>, index: u32, info: IrqInfo) {
    let body =
        IrqInfoBody { argsz: size_of::<IrqInfoBody>() as u32, flags: info.flags, index, count: info.count };
    out.extend_from_slice(body.as_bytes());
}

/// Appends the fixed part of a REGION_READ or REGION_WRITE reply; for a read the data follows.
pub fn append_access(out: &mut Vec<u8>, access: &RegionAccess) {
    let body = RegionAccessBody { offset: access.offset, region: access.region, count: access.count };
    out.extend_from_slice(body.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::device::{RegionMmap, SparseArea};
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd;
    use vfio_bindings::bindings::vfio::{VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE};

    fn header(command: u16) -> Header {
        Header { id: 7, command, size: 0, flags: 0, error: 0 }
    }

    fn dwords(values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    fn quads(values: &[u64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    fn joined(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    const BAD: Result<Request<'static>, Errno> = Err(Errno::INVAL);

    #[track_caller]
    fn decodes(command: u16, body: &[u8], fds: usize, expected: Result<Request<'_>, Errno>) {
        assert_eq!(decode(&header(command), body, fds), expected, "command {command}, {body:x?}");
    }

    #[test]
    fn version() {
        use super::super::version::Capabilities;
        let plain =
            |minor| Ok(Request::Version(ClientVersion { minor, capabilities: Capabilities::default() }));
        decodes(1, &[0, 0, 0, 0], 0, plain(0));
        decodes(1, &[0, 0, 1, 0], 0, plain(1));
        decodes(1, &[0, 0, 9, 0], 0, plain(1));
        decodes(1, b"\0\0\0\0{\"capabilities\":{}}\0", 0, plain(0));
        decodes(1, b"\0\0\0\0{}", 0, plain(0));
        decodes(1, &[1, 0, 0, 0], 0, BAD);
        decodes(1, b"\0\0\0\0{", 0, BAD);
        for short in 0..4 {
            decodes(1, &[0; 4][..short], 0, BAD);
        }
    }

    #[test]
    fn dma_map() {
        let body =
            |flags, offset, address, size| joined(&[&dwords(&[32, flags]), &quads(&[offset, address, size])]);
        let map =
            |iova, size, offset, read, write| Ok(Request::DmaMap(DmaMap { iova, size, offset, read, write }));
        decodes(2, &body(3, 0x1000, 0x8000, 0x2000), 1, map(0x8000, 0x2000, 0x1000, true, true));
        decodes(2, &body(1, 0, 0xc0000, 0x4000), 0, map(0xc0000, 0x4000, 0, true, false));
        decodes(2, &body(0, 0, 0, 1), 0, map(0, 1, 0, false, false));
        let mut long = body(2, 0, 0, 1);
        long.resize(100, 0xaa);
        decodes(2, &long, 1, map(0, 1, 0, false, true));
        decodes(2, &body(3, 0, 0, 0x1000), 2, BAD);
        decodes(2, &body(4, 0, 0, 0x1000), 1, BAD);
        decodes(2, &body(3, 0, 0, 0), 1, BAD);
        decodes(2, &body(3, 0, u64::MAX - 0xfff, 0x1000), 1, BAD);
        decodes(2, &body(3, u64::MAX, 0, 0x1000), 1, BAD);
        decodes(2, &body(3, 0, 0, 0x1000)[..31], 1, BAD);
    }

    #[test]
    fn dma_unmap() {
        let body = |flags, address, size| joined(&[&dwords(&[24, flags]), &quads(&[address, size])]);
        let unmap = |iova, size, all| Ok(Request::DmaUnmap(DmaUnmap { iova, size, all }));
        decodes(3, &body(0, 0x1000, 0x2000), 0, unmap(0x1000, 0x2000, false));
        // SPDK attaches a descriptor.
        decodes(3, &body(0, 0x1000, 0x2000), 1, unmap(0x1000, 0x2000, false));
        decodes(3, &body(2, 0, 0), 0, unmap(0, 0, true));
        decodes(3, &body(2, 0x1000, 0), 0, BAD);
        decodes(3, &body(2, 0, 0x1000), 0, BAD);
        decodes(3, &body(1, 0x1000, 0x2000), 0, BAD);
        decodes(3, &body(0, 0x1000, 0), 0, BAD);
        decodes(3, &body(0, 0x1000, u64::MAX), 0, BAD);
        decodes(3, &body(0, 0, 0)[..23], 0, BAD);
    }

    #[test]
    fn getters() {
        decodes(4, &dwords(&[16, 0, 0, 0]), 0, Ok(Request::GetInfo));
        // cloud-hypervisor counts the header in.
        decodes(4, &dwords(&[32, 0, 0, 0]), 0, Ok(Request::GetInfo));
        decodes(4, &dwords(&[16, 0, 0]), 0, BAD);

        let body = |argsz, index| joined(&[&dwords(&[argsz, 0, index, 0]), &quads(&[0, 0])]);
        let info = |index, argsz| Ok(Request::GetRegionInfo { index, argsz });
        decodes(5, &body(32, 8), 0, info(8, 32));
        let mut spdk = body(4064, 0);
        spdk.resize(4064, 0);
        decodes(5, &spdk, 0, info(0, 4064));
        decodes(5, &body(31, 0), 0, BAD);
        decodes(5, &body(32, 9), 0, BAD);
        decodes(5, &body(32, u32::MAX), 0, BAD);
        decodes(5, &body(32, 0)[..31], 0, BAD);

        decodes(7, &dwords(&[16, 0, 4, 0]), 0, Ok(Request::GetIrqInfo { index: 4 }));
        decodes(7, &dwords(&[16, 0, 5, 0]), 0, BAD);
        decodes(7, &dwords(&[16, 0]), 0, BAD);
    }

    #[test]
    fn set_irqs() {
        let body = |flags, index, start, count| dwords(&[20, flags, index, start, count]);
        let set = |index, start, count, action, data| {
            Ok(Request::SetIrqs(IrqSet { index, start, count, action, data }))
        };
        use IrqAction::{Mask, Trigger, Unmask};
        use IrqSetData::{Bool, Eventfds, None};
        decodes(8, &body(0x24, 2, 0, 16), 16, set(2, 0, 16, Trigger, Eventfds));
        decodes(8, &body(0x24, 2, 0, 1), 0, set(2, 0, 1, Trigger, Eventfds));
        decodes(8, &body(0x24, 2, 0, 2), 1, BAD);
        decodes(8, &body(0x24, 2, 0, 1), 2, BAD);
        decodes(8, &body(0x21, 0, 0, 0), 0, set(0, 0, 0, Trigger, None));
        decodes(8, &body(0x14, 0, 0, 1), 1, set(0, 0, 1, Unmask, Eventfds));
        decodes(8, &body(0x09, 0, 0, 1), 0, set(0, 0, 1, Mask, None));
        let mut bools = body(0x22, 2, 3, 2);
        bools.extend([0, 1, 0xee]);
        decodes(8, &bools, 0, set(2, 3, 2, Trigger, Bool(&[0, 1])));
        decodes(8, &bools[..21], 0, BAD);
        decodes(8, &body(0x22, 2, 0, u32::MAX), 0, BAD);
        for flags in [0, 0x20, 0x01, 0x23, 0x39, 0x61, 0x8000_0021] {
            decodes(8, &body(flags, 2, 0, 1), 0, BAD);
        }
        decodes(8, &body(0x21, 5, 0, 0), 0, BAD);
        decodes(8, &body(0x21, 0, 0, 0)[..19], 0, BAD);
    }

    #[test]
    fn region_accesses() {
        let body = |offset, region, count| joined(&[&quads(&[offset]), &dwords(&[region, count])]);
        let access = |offset, region, count| RegionAccess { region, offset, count };
        decodes(9, &body(4, 7, 2), 0, Ok(Request::RegionRead(access(4, 7, 2))));
        // Where it goes is for the session to judge.
        let far = access(u64::MAX, u32::MAX, 1 << 20);
        decodes(9, &body(u64::MAX, u32::MAX, 1 << 20), 0, Ok(Request::RegionRead(far)));
        decodes(9, &body(0, 0, (1 << 20) + 1), 0, BAD);
        decodes(9, &body(0, 0, u32::MAX), 0, BAD);
        decodes(9, &body(0, 0, 4)[..15], 0, BAD);
        let write = joined(&[&body(0x1000, 0, 4), &[1, 2, 3, 4]]);
        decodes(10, &write, 0, Ok(Request::RegionWrite(access(0x1000, 0, 4), &[1, 2, 3, 4])));
        decodes(10, &write[..19], 0, BAD);
        decodes(10, &joined(&[&write, &[5]]), 0, BAD);
        decodes(10, &body(0, 0, u32::MAX), 0, BAD);
    }

    #[test]
    fn others() {
        decodes(13, &[], 0, Ok(Request::Reset));
        decodes(13, &[1, 2, 3], 4, Ok(Request::Reset));
        for command in [0, 6, 11, 12, 14, 15, 16, 17, 18, 19, u16::MAX] {
            decodes(command, &[0; 64], 0, Err(Errno::OPNOTSUPP));
        }
    }

    #[test]
    fn replies_repeat_id_and_command() {
        let mut out = vec![0xee; 100];
        encode_reply(&mut out, &header(9), |out| out.extend([1, 2, 3]));
        assert_eq!(out, joined(&[&[7, 0, 9, 0, 19, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], &[1, 2, 3]]));
        encode_error(&mut out, &header(2), Errno::EXIST);
        assert_eq!(out, [7, 0, 2, 0, 16, 0, 0, 0, 0x21, 0, 0, 0, 17, 0, 0, 0]);
    }

    #[test]
    fn version_reply_fits_into_qemus_request() {
        let mut out = Vec::new();
        encode_reply(&mut out, &header(1), |out| append_version(out, 0));
        assert!(out.len() < 214 - 40, "{} bytes", out.len());
        assert_eq!(out[16..20], [0; 4]);
    }

    #[test]
    fn region_info_in_two_steps_and_at_once() {
        let file = tempfile::tempfile().unwrap();
        let areas = [SparseArea { offset: 0x1000, size: 0x1000 }];
        let info = RegionInfo {
            mmap: Some(RegionMmap { fd: file.as_fd(), offset: 0x4000, areas: &areas }),
            ..RegionInfo::trapped(0x4000)
        };
        let access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        let mapped = access | VFIO_REGION_INFO_FLAG_MMAP;
        let caps = mapped | VFIO_REGION_INFO_FLAG_CAPS;

        for argsz in [32, 63] {
            let mut out = Vec::new();
            assert!(!append_region_info(&mut out, 0, argsz, &info));
            let expected = joined(&[&dwords(&[64, mapped, 0, 0]), &quads(&[0x4000, 0x4000])]);
            assert_eq!(out, expected);
        }
        for argsz in [64, 4064] {
            let mut out = Vec::new();
            assert!(append_region_info(&mut out, 0, argsz, &info));
            let expected = joined(&[
                &dwords(&[64, caps, 0, 32]),
                &quads(&[0x4000, 0x4000]),
                &[1, 0, 1, 0],
                &dwords(&[0, 1, 0]),
                &quads(&[0x1000, 0x1000]),
            ]);
            assert_eq!(out, expected);
        }
        // A region that may be mapped as a whole has no capability.
        let whole = RegionInfo { mmap: Some(RegionMmap { fd: file.as_fd(), offset: 0, areas: &[] }), ..info };
        let mut out = Vec::new();
        assert!(append_region_info(&mut out, 3, 32, &whole));
        assert_eq!(out, joined(&[&dwords(&[32, mapped, 3, 0]), &quads(&[0x4000, 0])]));

        let mut out = Vec::new();
        assert!(!append_region_info(&mut out, 6, 32, &RegionInfo::ABSENT));
        assert_eq!(out, joined(&[&dwords(&[32, 0, 6, 0]), &quads(&[0, 0])]));
    }

    proptest! {
        /// Any bytes decode or are refused; a request's data lies within the message by type.
        #[test]
        fn any_bytes(command in 0_u16..20, body in proptest::collection::vec(any::<u8>(), 0..200), fds in 0_usize..20) {
            match decode(&header(command), &body, fds) {
                Ok(Request::RegionWrite(access, data)) => prop_assert_eq!(access.count as usize, data.len()),
                Ok(Request::SetIrqs(IrqSet { count, data: IrqSetData::Bool(bytes), .. })) =>
                    prop_assert_eq!(count as usize, bytes.len()),
                Ok(Request::DmaMap(map)) => prop_assert!(map.iova.checked_add(map.size).is_some()),
                Ok(_) => {}
                Err(errno) => prop_assert!(errno == Errno::INVAL || errno == Errno::OPNOTSUPP),
            }
        }
    }
}
