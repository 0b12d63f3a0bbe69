//! An immutable table of regions: translation and small accesses.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::region::Mapping;
use super::{Access, DmaError, GuestBuf, Region};

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
}

/// A part of a guest range that lies in one region.
struct Piece<'a> {
    region: &'a Arc<Region>,
    host: &'a Mapping,
    /// Guest address.
    address: u64,
    /// Where it begins in the region, in bytes.
    offset: usize,
    /// Bytes.
    len: usize,
}

impl DmaMap {
    /// `regions` come sorted by address and do not overlap.
    pub(super) fn new(regions: impl Iterator<Item = Arc<Region>>) -> Self {
        let entries =
            regions.map(|region| Entry { first: region.iova(), last: region.last(), region }).collect();
        Self { entries }
    }

    /// The regions, by address.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.entries.iter().map(|entry| &*entry.region)
    }

    /// Calls `each` for the pieces of `iova..iova + len` in order, until one fails. The access is checked piece by
    /// piece, so `each` may have seen some when a later one is refused.
    fn pieces<'a>(
        &'a self,
        iova: u64,
        len: usize,
        access: Access,
        mut each: impl FnMut(Piece<'a>) -> Result<(), DmaError>,
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
            each(Piece {
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

    /// Loads one little-endian dword with acquire order (a shadow doorbell). `iova` must be 4-byte aligned, else
    /// `Denied`.
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

    /// Appends the host memory behind `iova..iova + len` to `buf` and pins it. After an error `buf` may hold a
    /// part of the range and should be dropped.
    pub fn append(&self, iova: u64, len: usize, access: Access, buf: &mut GuestBuf) -> Result<(), DmaError> {
        self.pieces(iova, len, access, |piece| {
            buf.push(piece.region, piece.host.host_ptr(piece.offset), piece.len, piece.address)
        })
    }
}
