//! vfio-user messages as bytes.

use super::le::{put16, put32, put64, u16_at, u32_at, u64_at};

pub mod cmd {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const RESET: u16 = 13;
}

/// What QEMU 11.1 sends.
pub const QEMU_VERSION_JSON: &str = concat!(
    r#"{"capabilities":{"migration":{"max-bitmap-size":268435456,"pgsize":4096},"#,
    r#""max_data_xfer_size":1048576,"max_dma_maps":65535,"max_msg_fds":16,"pgsizes":4096,"#,
    r#""write_multiple":true}}"#
);

pub const BAR0: u32 = 0;
pub const CONFIG: u32 = 7;

pub const HEADER: usize = 16;
/// Bits of a header's flags: what kind of message it is.
pub const KIND: u32 = 0xf;
pub const REPLY: u32 = 1;
pub const NO_REPLY: u32 = 0x10;
pub const ERROR: u32 = 0x20;
/// No message is longer: the data of a transfer, and what stands before it.
pub const LONGEST: usize = (1 << 20) + 64;

/// Rights of a DMA mapping.
pub const READ_WRITE: u32 = 3;

/// SET_IRQS flags.
pub mod irq {
    pub const NONE: u32 = 1;
    pub const BOOL: u32 = 2;
    pub const EVENTFD: u32 = 4;
    pub const MASK: u32 = 8;
    pub const TRIGGER: u32 = 32;
    pub const MSIX: u32 = 2;
}

pub fn header(id: u16, command: u16, flags: u32, body: usize) -> [u8; HEADER] {
    let mut h = [0; HEADER];
    put16(&mut h, 0, id);
    put16(&mut h, 2, command);
    put32(&mut h, 4, (HEADER + body) as u32);
    put32(&mut h, 8, flags);
    h
}

pub fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    [&header(id, command, flags, body.len())[..], body].concat()
}

pub fn version_body(minor: u16, json: Option<&str>) -> Vec<u8> {
    let mut b = vec![0; 4];
    put16(&mut b, 2, minor);
    if let Some(j) = json {
        b.extend_from_slice(j.as_bytes());
        b.push(0);
    }
    b
}

/// DEVICE_GET_INFO.
pub fn info_body() -> [u8; 16] {
    let mut b = [0; 16];
    put32(&mut b, 0, 16);
    b
}

/// DEVICE_GET_REGION_INFO, and room for a reply of `argsz` bytes.
pub fn region_body(index: u32, argsz: u32) -> Vec<u8> {
    let mut b = vec![0; argsz.max(32) as usize];
    put32(&mut b, 0, argsz);
    put32(&mut b, 8, index);
    b
}

/// What stands before the data of REGION_READ and REGION_WRITE.
pub fn access(region: u32, offset: u64, count: u32) -> [u8; 16] {
    let mut b = [0; 16];
    put64(&mut b, 0, offset);
    put32(&mut b, 8, region);
    put32(&mut b, 12, count);
    b
}

/// `offset` in the file that comes with the message.
pub fn map_body(iova: u64, len: u64, rights: u32, offset: u64) -> [u8; 32] {
    let mut b = [0; 32];
    put32(&mut b, 0, 32);
    put32(&mut b, 4, rights);
    put64(&mut b, 8, offset);
    put64(&mut b, 16, iova);
    put64(&mut b, 24, len);
    b
}

pub fn unmap_body(iova: u64, len: u64) -> [u8; 24] {
    let mut b = [0; 24];
    put32(&mut b, 0, 24);
    put64(&mut b, 8, iova);
    put64(&mut b, 16, len);
    b
}

/// Region flag: it can be mapped, as a whole or in the areas that it names.
const MMAP: u32 = 4;
const SPARSE_MMAP: u16 = 1;
/// Capabilities in a list, at most: more of them run in a circle.
const CAPABILITIES: usize = 16;

/// A reply to DEVICE_GET_REGION_INFO.
#[derive(Debug)]
pub struct Region {
    pub argsz: u32,
    pub flags: u32,
    pub index: u32,
    pub cap_offset: u32,
    pub size: u64,
    /// In the file that came with it.
    pub offset: u64,
}

impl Region {
    /// Nothing where the reply is too short.
    pub fn parse(reply: &[u8]) -> Option<Region> {
        let b = reply.get(..32)?;
        Some(Region {
            argsz: u32_at(b, 0),
            flags: u32_at(b, 4),
            index: u32_at(b, 8),
            cap_offset: u32_at(b, 12),
            size: u64_at(b, 16),
            offset: u64_at(b, 24),
        })
    }

    /// (offset in the region, bytes) of all that can be mapped, by the same reply. Nothing where its
    /// capabilities lie outside of it.
    pub fn areas(&self, reply: &[u8]) -> Option<Vec<(u64, u64)>> {
        if self.flags & MMAP == 0 {
            return Some(Vec::new());
        }
        let mut at = self.cap_offset as usize;
        for _ in 0..CAPABILITIES {
            if at == 0 {
                break;
            }
            let list = reply.get(at..).filter(|list| list.len() >= 16)?;
            if u16_at(list, 0) == SPARSE_MMAP {
                let count = u32_at(list, 8) as usize;
                let areas = list.get(16..count.checked_mul(16)?.checked_add(16)?)?;
                return Some(areas.chunks_exact(16).map(|a| (u64_at(a, 0), u64_at(a, 8))).collect());
            }
            at = u32_at(list, 4) as usize;
        }
        Some(vec![(0, self.size)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its ID, where the next one is, and the areas (offset, size) that it names.
    type Capability<'a> = (u16, u32, &'a [(u64, u64)]);

    fn reply(flags: u32, capabilities: &[Capability<'_>]) -> Vec<u8> {
        let mut b = region_body(0, 32);
        put32(&mut b, 4, flags);
        put64(&mut b, 16, 0x4000);
        put64(&mut b, 24, 0x10_0000);
        if !capabilities.is_empty() {
            put32(&mut b, 12, 32);
        }
        for (id, next, areas) in capabilities {
            let mut head = [0; 16];
            put16(&mut head, 0, *id);
            put32(&mut head, 4, *next);
            put32(&mut head, 8, areas.len() as u32);
            b.extend(head);
            b.extend(areas.iter().flat_map(|(at, size)| [at.to_le_bytes(), size.to_le_bytes()].concat()));
        }
        b
    }

    #[test]
    fn what_of_a_region_can_be_mapped() {
        let area = [(0x1000, 0x1000), (0x3000, 0x1000)];
        for (reply, areas) in [
            (reply(3, &[]), Some(vec![])),
            (reply(7, &[]), Some(vec![(0, 0x4000)])),
            (reply(7, &[(1, 0, &area)]), Some(area.to_vec())),
            (reply(7, &[(9, 48, &[]), (1, 0, &area)]), Some(area.to_vec())),
            // In a circle; outside; less than it says.
            (reply(7, &[(9, 32, &[])]), Some(vec![(0, 0x4000)])),
            (reply(7, &[(9, 1000, &[])]), None),
            (reply(7, &[(1, 0, &area)])[..70].to_vec(), None),
            (reply(7, &[(1, 0, &area)])[..40].to_vec(), None),
        ] {
            let region = Region::parse(&reply).unwrap();
            assert_eq!((region.size, region.offset), (0x4000, 0x10_0000));
            assert_eq!(region.areas(&reply), areas, "{reply:02x?}");
        }
        assert!(Region::parse(&[0; 31]).is_none());
    }
}
