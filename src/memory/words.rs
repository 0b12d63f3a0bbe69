//! Dwords of guest memory that are looked at again and again: shadow doorbells and their event indices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::region::Mapping;
use super::{Access, DmaError, Region};

/// An array of little-endian dwords in one region, found once and then used without the table.
///
/// It keeps the mapping alive but takes no pin: an unmap does not wait for it. From the moment the region
/// leaves the table every access answers `Unmapped`; who got an access in before that is caught by the fence
/// that an unmap waits for, as with any small access. So whoever keeps one of these drops it, at the latest,
/// when fenced.
#[derive(Clone, Debug)]
pub struct Words {
    region: Arc<Region>,
    /// Guest address of the first.
    iova: u64,
    /// Where it begins in the region, in bytes.
    offset: usize,
    count: usize,
}

impl Words {
    /// `offset` is 4-byte aligned, and `count` dwords from there lie in the region.
    pub(super) fn new(region: Arc<Region>, iova: u64, offset: usize, count: usize) -> Self {
        Self { region, iova, offset, count }
    }

    /// Is `access` possible now? Errors as [`load`](Self::load).
    pub fn check(&self, access: Access) -> Result<(), DmaError> {
        self.region.check(self.iova, access).map(drop)
    }

    /// Loads dword `index` once, with acquire order.
    ///
    /// # Errors
    /// `Unmapped` past the end or after an unmap, `Denied`, `Gone`.
    pub fn load(&self, index: usize) -> Result<u32, DmaError> {
        self.load_from(self.region.check(self.iova, Access::Read)?, index)
    }

    /// As [`load`](Self::load), but still works after an unmap: what was there last, for who is being fenced.
    pub fn last(&self, index: usize) -> Result<u32, DmaError> {
        self.load_from(self.region.check_even_removed(self.iova, Access::Read)?, index)
    }

    /// Stores dword `index` with release order. Errors as [`load`](Self::load).
    pub fn store(&self, index: usize, value: u32) -> Result<(), DmaError> {
        let host = self.region.check(self.iova, Access::Write)?;
        self.dword(host, index, |dword| dword.store(value.to_le(), Ordering::Release))
    }

    fn load_from(&self, host: &Mapping, index: usize) -> Result<u32, DmaError> {
        self.dword(host, index, |dword| u32::from_le(dword.load(Ordering::Acquire)))
    }

    fn dword<R>(
        &self,
        host: &Mapping,
        index: usize,
        each: impl FnOnce(&AtomicU32) -> R,
    ) -> Result<R, DmaError> {
        if index >= self.count {
            return Err(DmaError::Unmapped(self.iova));
        }
        let dword = host.atomic_u32(self.offset + 4 * index).ok_or(DmaError::Denied(self.iova))?;
        let result = each(dword);
        if host.is_dead() {
            return Err(DmaError::Gone(self.iova));
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::ftruncate;

    use super::*;
    use crate::memory::Rights;
    use crate::memory::testing::Guest;

    #[test]
    fn both_sides_see_the_same() {
        let guest = Guest::new(0x1_0000, 0x2000);
        let words = guest.dma().words(0x1_1000, 1024).unwrap();
        guest.set(0x1008, &[4, 3, 2, 1]);
        assert_eq!(words.load(2), Ok(0x0102_0304));
        words.store(1023, 0x0a0b_0c0d).unwrap();
        assert_eq!(guest.bytes(0x1ffc, 4), [0xd, 0xc, 0xb, 0xa]);
        assert_eq!(words.load(1024), Err(DmaError::Unmapped(0x1_1000)));
    }

    #[test]
    fn an_unmap_neither_waits_nor_is_missed() {
        let mut guest = Guest::new(0, 0x1000);
        let words = guest.dma().words(0, 8).unwrap();
        let unmapping = guest.space.unmap(0, 0x1000).unwrap();
        assert!(unmapping.released(), "no pin");
        assert_eq!(words.load(0), Err(DmaError::Unmapped(0)));
        assert_eq!(words.store(0, 1), Err(DmaError::Unmapped(0)));
        guest.set(4, &[6]);
        assert_eq!(words.last(1), Ok(6));
        // Mapped again it is another region: found anew, not through the old handle.
        guest.map(0, 0x1000, Rights::READ_WRITE, 0);
        assert_eq!(words.load(0), Err(DmaError::Unmapped(0)));
        assert_eq!(guest.dma().words(0, 8).unwrap().load(0), Ok(0));
    }

    #[test]
    fn rights_borders_and_lost_pages() {
        let mut guest = Guest::unmapped(0x3000);
        guest.map(0, 0x1000, Rights::READ_ONLY, 0);
        guest.map(0x1000, 0x1000, Rights::READ_WRITE, 0x1000);
        let map = guest.dma();
        let read_only = map.words(0, 4).unwrap();
        assert_eq!(read_only.load(0), Ok(0));
        assert_eq!(read_only.store(0, 1), Err(DmaError::Denied(0)));
        assert_eq!(map.words(0xffc, 2).unwrap_err(), DmaError::Unmapped(0xffc));
        assert_eq!(map.words(2, 1).unwrap_err(), DmaError::Denied(2));
        assert_eq!(map.words(0x2000, 1).unwrap_err(), DmaError::Unmapped(0x2000));
        let words = map.words(0x1000, 4).unwrap();
        ftruncate(&guest.file, 0).unwrap();
        assert_eq!(words.load(0), Err(DmaError::Gone(0x1000)));
        assert_eq!(words.load(0), Err(DmaError::Gone(0x1000)));
    }
}
