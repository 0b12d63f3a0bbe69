//! An immutable table of regions: translation and small accesses.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::guest_buf::Target;
use super::prefetch::prefetch;
use super::region::Mapping;
use super::{Access, DmaError, Region, Words};

/// One region's address range beside its pointer, so that a lookup touches the table alone.
#[derive(Debug)]
struct Entry {
    first: u64,
    /// Inclusive.
    last: u64,
    region: Arc<Region>,
}

/// An immutable snapshot of the DMA table. Guest addresses are what the client calls IOVA.
#[derive(Debug, Default)]
pub struct DmaMap {
    /// Sorted, without overlap.
    entries: Vec<Entry>,
    /// The last one of its epoch.
    ended: bool,
}

/// A part of a guest range that lies in one region.
struct Translated<'a> {
    region: &'a Arc<Region>,
    host: &'a Mapping,
    /// Guest address.
    address: u64,
    /// Where it begins in the region, in bytes.
    offset: usize,
    /// Bytes.
    len: usize,
}

/// One region, looked up and checked once for several pieces of one transfer.
pub(super) struct Window<'m> {
    region: &'m Arc<Region>,
    first: u64,
    /// Inclusive.
    last: u64,
    host: *mut u8,
}

impl<'m> Window<'m> {
    /// Appends `len` bytes at `iova`, not 0, to `target`; `None` when they do not all lie in the region.
    pub(super) fn append(
        &self,
        iova: u64,
        len: usize,
        target: &mut impl Target<'m>,
    ) -> Option<Result<(), DmaError>> {
        let offset = iova.checked_sub(self.first)?;
        let inside = iova <= self.last && (len as u64).checked_sub(1)? <= self.last - iova;
        // It fits: a region with a mapping lies in our address space.
        inside.then(|| target.push(self.region, self.host.wrapping_add(offset as usize), len, iova))
    }
}

impl DmaMap {
    /// `regions` come sorted by address and do not overlap.
    pub(super) fn new(regions: impl Iterator<Item = Arc<Region>>) -> Self {
        let entries =
            regions.map(|region| Entry { first: region.iova(), last: region.last(), region }).collect();
        Self { entries, ended: false }
    }

    /// What is left when an epoch is over: no memory, and no newer table.
    pub(super) fn end() -> Self {
        Self { entries: Vec::new(), ended: true }
    }

    /// Is its epoch over? Then nothing of it may reach the host any more, interrupts neither.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The regions, by address.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.entries.iter().map(|entry| &*entry.region)
    }

    /// Calls `each` for the pieces of `iova..iova + len` in order, until one fails. The access is checked
    /// piece by piece, so `each` may have seen some when a later one is refused.
    fn pieces<'a>(
        &'a self,
        iova: u64,
        len: usize,
        access: Access,
        mut each: impl FnMut(Translated<'a>) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        let Some(more) = len.checked_sub(1) else {
            return Ok(());
        };
        let last = iova.checked_add(more as u64).ok_or(DmaError::Unmapped(iova))?;
        let mut address = iova;
        let mut index = self.entries.partition_point(|entry| entry.last < iova);
        loop {
            let entry = self
                .entries
                .get(index)
                .filter(|entry| entry.first <= address)
                .ok_or(DmaError::Unmapped(address))?;
            let host = entry.region.check(address, access)?;
            let end = last.min(entry.last);
            each(Translated {
                region: &entry.region,
                host,
                address,
                // Both fit: a region with a mapping lies in our address space.
                offset: (address - entry.first) as usize,
                len: (end - address + 1) as usize,
            })?;
            if end == last {
                return Ok(());
            }
            // No overflow: `end` is below `last`.
            address = end + 1;
            index += 1;
        }
    }

    /// Begins to bring guest memory near that is read soon. Does nothing but save time.
    pub fn prefetch(&self, iova: u64, len: usize) {
        let _ = self.pieces(iova, len, Access::Read, |piece| {
            prefetch(piece.host.host_ptr(piece.offset), piece.len);
            Ok(())
        });
    }

    /// Copies guest memory at `iova` into `dst`. After an error `dst` holds anything.
    pub fn read(&self, iova: u64, dst: &mut [u8]) -> Result<(), DmaError> {
        let mut rest = &mut *dst;
        let len = rest.len();
        self.pieces(iova, len, Access::Read, |piece| {
            let (now, later) = std::mem::take(&mut rest)
                .split_at_mut_checked(piece.len)
                .ok_or(DmaError::Unmapped(piece.address))?;
            rest = later;
            if piece.host.read(piece.offset, now) { Ok(()) } else { Err(DmaError::Gone(piece.address)) }
        })
    }

    /// Copies `src` to guest memory at `iova`. After an error some of it may have been written.
    pub fn write(&self, iova: u64, src: &[u8]) -> Result<(), DmaError> {
        let mut rest = src;
        self.pieces(iova, src.len(), Access::Write, |piece| {
            let (now, later) = rest.split_at_checked(piece.len).ok_or(DmaError::Unmapped(piece.address))?;
            rest = later;
            if piece.host.write(piece.offset, now) { Ok(()) } else { Err(DmaError::Gone(piece.address)) }
        })
    }

    /// Stores one little-endian dword with release order (the last dword of a CQE: who sees it sees what was
    /// written before). `iova` must be 4-byte aligned, else `Denied`.
    pub fn store_u32(&self, iova: u64, value: u32) -> Result<(), DmaError> {
        self.dword(iova, Access::Write, |dword| {
            dword.store(value.to_le(), Ordering::Release);
        })
    }

    /// Writes a completion queue entry: three dwords, then the last one with release order (who sees its
    /// phase tag sees the others). `iova` must be 16-byte aligned, else `Denied`. One look at the table
    /// instead of two.
    pub fn store_cqe(&self, iova: u64, dwords: [u32; 4]) -> Result<(), DmaError> {
        let mut result = Err(DmaError::Denied(iova));
        if iova.is_multiple_of(16) {
            // Regions with memory begin and end at page borders, so an aligned entry is one piece.
            self.pieces(iova, 16, Access::Write, |piece| {
                if piece.host.store_entry(piece.offset, dwords) {
                    result = if piece.host.is_dead() { Err(DmaError::Gone(iova)) } else { Ok(()) };
                }
                Ok(())
            })?;
        }
        result
    }

    /// Loads one little-endian dword with acquire order (a shadow doorbell). `iova` must be 4-byte aligned,
    /// else `Denied`.
    pub fn load_u32(&self, iova: u64) -> Result<u32, DmaError> {
        let mut value = 0;
        self.dword(iova, Access::Read, |dword| {
            value = u32::from_le(dword.load(Ordering::Acquire));
        })?;
        Ok(value)
    }

    fn dword(
        &self,
        iova: u64,
        access: Access,
        mut each: impl FnMut(&std::sync::atomic::AtomicU32),
    ) -> Result<(), DmaError> {
        if !iova.is_multiple_of(4) {
            return Err(DmaError::Denied(iova));
        }
        self.pieces(iova, 4, access, |piece| {
            // Regions with memory begin and end at page borders, so an aligned dword is one piece.
            let dword = piece.host.atomic_u32(piece.offset).ok_or(DmaError::Denied(iova))?;
            each(dword);
            if piece.host.is_dead() {
                return Err(DmaError::Gone(iova));
            }
            Ok(())
        })
    }

    /// `count` dwords at `iova` (4-byte aligned, else `Denied`) for repeated use. Rights are checked at each
    /// use. `Unmapped` unless all of them lie in one region.
    pub fn words(&self, iova: u64, count: usize) -> Result<Words, DmaError> {
        if !iova.is_multiple_of(4) {
            return Err(DmaError::Denied(iova));
        }
        let index = self.entries.partition_point(|entry| entry.last < iova);
        let entry = self.entries.get(index).filter(|entry| entry.first <= iova);
        let entry = entry.ok_or(DmaError::Unmapped(iova))?;
        let last = count.checked_mul(4).and_then(|len| iova.checked_add((len as u64).checked_sub(1)?));
        if last.is_none_or(|last| last > entry.last) {
            return Err(DmaError::Unmapped(iova));
        }
        let offset = usize::try_from(iova - entry.first).map_err(|_| DmaError::Unmapped(iova))?;
        Ok(Words::new(Arc::clone(&entry.region), iova, offset, count))
    }

    /// The region around `iova`, for pages that follow each other; nothing where the access is refused.
    pub(super) fn window(&self, iova: u64, access: Access) -> Option<Window<'_>> {
        let index = self.entries.partition_point(|entry| entry.last < iova);
        let entry = self.entries.get(index).filter(|entry| entry.first <= iova)?;
        let host = entry.region.check(iova, access).ok()?;
        Some(Window { region: &entry.region, first: entry.first, last: entry.last, host: host.host_ptr(0) })
    }

    /// Appends the host memory behind `iova..iova + len` to `target`; a [`GuestBuf`](super::GuestBuf) pins
    /// it. After an error `target` may hold a part of the range and should be dropped.
    pub fn append<'m>(
        &'m self,
        iova: u64,
        len: usize,
        access: Access,
        target: &mut impl Target<'m>,
    ) -> Result<(), DmaError> {
        self.pieces(iova, len, access, |piece| {
            target.push(piece.region, piece.host.host_ptr(piece.offset), piece.len, piece.address)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::fs::ftruncate;

    use std::os::fd::AsFd;

    use super::*;
    use crate::memory::testing::Guest;
    use crate::memory::{GuestBuf, Rights};

    /// Two adjacent regions whose file pages lie the other way round, then a hole, then a third.
    fn three() -> Guest {
        let mut guest = Guest::unmapped(0x4000);
        guest.map(0x1_0000, 0x1000, Rights::READ_WRITE, 0x1000);
        guest.map(0x1_1000, 0x1000, Rights::READ_WRITE, 0);
        guest.map(0x1_3000, 0x1000, Rights::READ_WRITE, 0x3000);
        guest
    }

    #[test]
    fn read_and_write_cross_region_borders() {
        let guest = three();
        let map = guest.dma();
        map.write(0x1_0ffe, &[1, 2, 3, 4]).unwrap();
        assert_eq!(guest.bytes(0x1ffe, 2), [1, 2]);
        assert_eq!(guest.bytes(0, 2), [3, 4]);
        guest.set(1, &[9]);
        let mut bytes = [0; 4];
        map.read(0x1_0ffe, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 9]);
    }

    #[test]
    fn holes_and_wraps_are_unmapped() {
        let guest = three();
        let map = guest.dma();
        let mut two = [0; 2];
        assert_eq!(map.read(0xffff, &mut two), Err(DmaError::Unmapped(0xffff)));
        assert_eq!(map.read(0x1_1fff, &mut two), Err(DmaError::Unmapped(0x1_2000)));
        assert_eq!(map.write(0x1_3fff, &two), Err(DmaError::Unmapped(0x1_4000)));
        assert_eq!(map.read(u64::MAX, &mut two), Err(DmaError::Unmapped(u64::MAX)));
        assert_eq!(map.read(u64::MAX, &mut []), Ok(()));
        assert_eq!(DmaMap::default().read(0, &mut two), Err(DmaError::Unmapped(0)));
    }

    #[test]
    fn the_last_page_of_the_address_space() {
        let top = u64::MAX - 0xfff;
        let guest = Guest::new(top, 0x1000);
        let map = guest.dma();
        map.write(u64::MAX - 1, &[5, 6]).unwrap();
        assert_eq!(guest.bytes(0xffe, 2), [5, 6]);
        assert_eq!(map.write(u64::MAX, &[5, 6]), Err(DmaError::Unmapped(u64::MAX)));
    }

    #[test]
    fn rights_are_honoured() {
        let mut guest = Guest::unmapped(0x4000);
        guest.map(0, 0x1000, Rights::READ_ONLY, 0);
        let write_only = Rights { read: false, write: true };
        guest.map(0x1000, 0x1000, write_only, 0x1000);
        let nothing = Rights { read: false, write: false };
        guest.map(0x2000, 0x1000, nothing, 0x2000);
        let map = guest.dma();
        let mut byte = [0];
        map.read(0, &mut byte).unwrap();
        assert_eq!(map.write(0, &byte), Err(DmaError::Denied(0)));
        assert_eq!(map.store_u32(0, 1), Err(DmaError::Denied(0)));
        map.write(0x1000, &[7]).unwrap();
        assert_eq!(guest.bytes(0x1000, 1), [7]);
        assert_eq!(map.read(0x1000, &mut byte), Err(DmaError::Denied(0x1000)));
        assert_eq!(map.load_u32(0x1000), Err(DmaError::Denied(0x1000)));
        assert_eq!(map.read(0x2000, &mut byte), Err(DmaError::Denied(0x2000)));
        assert_eq!(map.write(0x2000, &byte), Err(DmaError::Denied(0x2000)));

        let mut buf = GuestBuf::default();
        let across = map.append(0xff0, 0x20, Access::Read, &mut buf);
        assert_eq!(across, Err(DmaError::Denied(0x1000)));
        let mut buf = GuestBuf::default();
        map.append(0x10, 16, Access::Read, &mut buf).unwrap();
        assert_eq!(buf.copy_in(0, &[1]), Err(DmaError::Denied(0)));
        assert_eq!(buf.zero(0, 1), Err(DmaError::Denied(0)));
        let mut buf = GuestBuf::default();
        map.append(0x1010, 16, Access::Write, &mut buf).unwrap();
        assert_eq!(buf.copy_out(0, &mut byte), Err(DmaError::Denied(0x1000)));
        buf.copy_in(0, &[1]).unwrap();
    }

    #[test]
    fn a_map_without_descriptor_has_no_memory() {
        let mut guest = Guest::new(0, 0x1000);
        guest.space.map(0x1000, 0x4000, Rights::READ_WRITE, 0, None).unwrap();
        let map = guest.dma();
        let mut two = [0; 2];
        assert_eq!(map.read(0xfff, &mut two), Err(DmaError::NoDescriptor(0x1000)));
        assert_eq!(map.write(0x1ffc, &two), Err(DmaError::NoDescriptor(0x1ffc)));
        let mut buf = GuestBuf::default();
        let appended = map.append(0x2000, 1, Access::Write, &mut buf);
        assert_eq!(appended, Err(DmaError::NoDescriptor(0x2000)));
    }

    #[test]
    fn dwords() {
        let guest = three();
        let map = guest.dma();
        map.store_u32(0x1_0ffc, 0x0403_0201).unwrap();
        assert_eq!(guest.bytes(0x1ffc, 4), [1, 2, 3, 4]);
        assert_eq!(map.load_u32(0x1_0ffc), Ok(0x0403_0201));
        assert_eq!(map.store_u32(0x1_0ffe, 0), Err(DmaError::Denied(0x1_0ffe)));
        assert_eq!(map.load_u32(0x1_2000), Err(DmaError::Unmapped(0x1_2000)));
    }

    #[test]
    fn a_file_that_shrinks_costs_the_region_only() {
        let mut guest = Guest::unmapped(0x3000);
        guest.map(0, 0x3000, Rights::READ_WRITE, 0);
        let other = crate::memory::testing::memfd(0x1000);
        guest.space.map(0x8000, 0x1000, Rights::READ_WRITE, 0, Some(other.as_fd())).unwrap();
        let map = guest.dma();
        let mut buf = GuestBuf::default();
        map.append(0x2000, 0x100, Access::Write, &mut buf).unwrap();
        let mut bytes = [0; 16];
        map.read(0x2ff0, &mut bytes).unwrap();

        ftruncate(&guest.file, 0x1000).unwrap();
        assert_eq!(map.read(0x2ff0, &mut bytes), Err(DmaError::Gone(0x2ff0)));
        // From now on all of it, by every way in.
        assert_eq!(map.read(0, &mut bytes), Err(DmaError::Gone(0)));
        assert_eq!(map.write(0, &bytes), Err(DmaError::Gone(0)));
        assert_eq!(map.store_u32(0, 0), Err(DmaError::Gone(0)));
        assert_eq!(map.append(0, 1, Access::Read, &mut GuestBuf::default()), Err(DmaError::Gone(0)));
        assert_eq!(buf.check(), Err(DmaError::Gone(0)));
        assert_eq!(buf.copy_in(0, &bytes), Err(DmaError::Gone(0)));
        assert_eq!(buf.copy_out(0, &mut bytes), Err(DmaError::Gone(0)));
        assert_eq!(buf.zero(0, 16), Err(DmaError::Gone(0)));
        map.write(0x8000, &bytes).unwrap();
    }

    #[test]
    fn shrinking_is_noticed_by_every_first_touch() {
        type Touch = fn(&DmaMap, &GuestBuf) -> Result<(), DmaError>;
        let touches: [Touch; 6] = [
            |map, _| map.write(0x1000, &[1; 64]),
            |map, _| map.store_u32(0x1000, 1),
            |map, _| map.load_u32(0x1000).map(drop),
            |_, buf| buf.copy_in(0, &[1; 64]),
            |_, buf| buf.copy_out(0, &mut [0; 64]),
            |_, buf| buf.zero(0, 64),
        ];
        for touch in touches {
            let guest = Guest::new(0, 0x2000);
            let map = guest.dma();
            let mut buf = GuestBuf::default();
            map.append(0x1000, 0x1000, Access::Write, &mut buf).unwrap();
            ftruncate(&guest.file, 0x1000).unwrap();
            let error = touch(&map, &buf).unwrap_err();
            assert!(matches!(error, DmaError::Gone(_)), "{error:?}");
        }
    }

    #[test]
    fn append_cuts_and_merges() {
        let mut guest = Guest::unmapped(0x4000);
        guest.map(0x1000, 0x2000, Rights::READ_WRITE, 0);
        guest.map(0x3000, 0x1000, Rights::READ_WRITE, 0x3000);
        let map = guest.dma();
        let mut buf = GuestBuf::default();
        map.append(0x1000, 0x800, Access::Read, &mut buf).unwrap();
        map.append(0x1800, 0x1000, Access::Read, &mut buf).unwrap();
        assert_eq!(buf.iovecs().len(), 1);
        assert_eq!(buf.len(), 0x1800);
        // Backwards: nothing to merge.
        map.append(0x1000, 0x10, Access::Read, &mut buf).unwrap();
        assert_eq!(buf.iovecs().len(), 2);
        map.append(0x2ff0, 0, Access::Read, &mut buf).unwrap();
        assert_eq!(buf.iovecs().len(), 2);
        let before = buf.len();
        map.append(0x2ff0, 0x20, Access::Read, &mut buf).unwrap();
        assert_eq!(buf.len(), before + 0x20);
        let pins: Vec<_> = map.regions().map(Region::pins).collect();
        assert_eq!(pins, [1, 1]);
        drop(buf);
        assert!(map.regions().all(|region| region.pins() == 0));
    }

    proptest! {
        /// Any table, any range: bytes come from where the table says, or the range is refused.
        #[test]
        fn translation_follows_the_table(
            pages in prop::collection::vec(prop::option::of(0u64..8), 1..12),
            start in 0u64..0xd000,
            len in 0usize..0x4000,
        ) {
            let mut guest = Guest::unmapped(0x8000);
            for page in 0..8u8 {
                guest.set(u64::from(page) * 0x1000, &[page; 0x1000]);
            }
            for (index, page) in pages.iter().enumerate() {
                if let Some(page) = page {
                    guest.map(index as u64 * 0x1000, 0x1000, Rights::READ_WRITE, page * 0x1000);
                }
            }
            let model: Option<Vec<u8>> = (start..start + len as u64)
                .map(|at| pages.get((at / 0x1000) as usize).copied().flatten().map(|page| page as u8))
                .collect();
            let map = guest.dma();
            let mut bytes = vec![0xff; len];
            let read = map.read(start, &mut bytes).ok().map(|()| bytes.clone());
            prop_assert_eq!(&read, &model);
            let mut buf = GuestBuf::default();
            let appended = map.append(start, len, Access::Read, &mut buf);
            prop_assert_eq!(appended.is_ok(), model.is_some());
            if let Some(model) = model {
                prop_assert_eq!(buf.len(), len);
                buf.copy_out(0, &mut bytes).unwrap();
                prop_assert_eq!(bytes, model);
            }
        }
    }
}
