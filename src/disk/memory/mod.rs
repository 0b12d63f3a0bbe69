//! An image in anonymous memory. What was never written costs nothing; all is lost with the process.
//!
//! Several workers may use it at once: copies are volatile, and two operations that meet in a block leave
//! there the bytes of either, as on a disk.
#![expect(unsafe_code, reason = "sysconf, and madvise on the mapping")]

mod huge_pages;
mod page_map;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mm::{MprotectFlags, mprotect};
use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;
use vm_memory::volatile_memory::VolatileSlice;

use super::{
    Disk, DiskError, Done, Handle, How, Immediate, Inline, IoBuf, Lane, Moved, Op, ResizeError, Tag, Ways,
};
use crate::memory::{LINE, Transient, prefetch};
use huge_pages::HUGE;
pub use huge_pages::HugePages;
use page_map::{GRANULE, PageMap};

/// How many times the length that it began with an image can have.
const GROWTH: usize = 8;

/// Address space for an image of so many bytes, which may not be used yet, with room to start where a huge page can.
fn reserve(room: usize) -> io::Result<MmapRegion> {
    let mapped = if room >= HUGE { room.checked_add(HUGE) } else { Some(room) };
    let mapped = mapped.ok_or(io::ErrorKind::OutOfMemory)?;
    // Private, anonymous: reading an untouched page maps the kernel's page of zeroes.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    MmapRegion::build(None, mapped, libc::PROT_NONE, flags)
        .map_err(|e| io::Error::other(format!("cannot map {room} bytes of memory: {e}")))
}

/// Bytes of a read to come that are fetched ahead.
const AHEAD: usize = 4 * LINE;

/// See the module docs.
#[derive(Debug)]
pub struct MemoryDisk {
    region: MmapRegion,
    /// Where in the region the image starts: a huge page could, too.
    start: usize,
    /// Bytes that the image can have. Beyond those that it has, the region is address space alone.
    room: usize,
    len: AtomicUsize,
    page: usize,
    /// What has been stored to. Elsewhere the image is all zero, and nobody need look.
    written: PageMap,
    /// What has become zero by a Write Zeroes or a Copy, so that it counts as allocated, without being stored to.
    zeroed: PageMap,
    read_only: bool,
}

impl MemoryDisk {
    /// An image of `len` bytes, all zero. Fails when the address space (or a strict overcommit policy) does
    /// not have it, or for 0.
    pub fn new(len: u64) -> io::Result<Self> {
        Self::with_huge_pages(len, HugePages::default())
    }

    /// As [`Self::new`], with a say in what pages it may lie on.
    ///
    /// # Errors
    /// As there.
    pub fn with_huge_pages(len: u64, huge_pages: HugePages) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let (region, room) = match len.checked_mul(GROWTH).map(|room| (reserve(room), room)) {
            Some((Ok(region), room)) => (region, room),
            // Then it keeps its length, or a smaller one.
            _ => (reserve(len)?, len),
        };
        let first = region.as_ptr().addr();
        let start = if room >= HUGE { first.next_multiple_of(HUGE) - first } else { 0 };
        huge_pages::advise(region.as_ptr(), region.size(), huge_pages);
        let disk = MemoryDisk {
            region,
            written: PageMap::new(room)?,
            zeroed: PageMap::new(room)?,
            start,
            room,
            len: AtomicUsize::new(0),
            // SAFETY: no pointer is passed. Linux knows this name on every machine.
            page: unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize,
            read_only: false,
        };
        disk.grow(len)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot map {len} bytes of memory: {e}")))?;
        Ok(disk)
    }

    /// Lends the image memory up to this length, and lets it be used. What it had before it keeps.
    fn grow(&self, len: usize) -> io::Result<()> {
        // Whole huge pages, so that the last of them can be one.
        let unit = if self.room >= HUGE { HUGE } else { self.page };
        let end = len.next_multiple_of(unit).min(self.region.size() - self.start);
        let image = self.region.get_slice(self.start, end).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let flags = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: memory of our own mapping gets more rights than it had.
        unsafe { mprotect(image.ptr_guard_mut().as_ptr().cast(), end, flags)? };
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    /// The same, refusing writes if `read_only`: it stays all zero.
    pub fn protected(self, read_only: bool) -> Self {
        MemoryDisk { read_only, ..self }
    }

    /// Acquire: memory that was lent for a new length can be used by whoever has seen that.
    #[inline]
    fn image_len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// The bytes `offset..offset + len` of the image.
    fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, DiskError> {
        if offset.checked_add(len).is_none_or(|end| end > self.image_len()) {
            return Err(DiskError::Truncated);
        }
        self.region.get_slice(self.start + offset, len).map_err(|_| DiskError::Truncated)
    }

    /// Is every page of the range allocated?
    fn is_allocated(&self, offset: usize, len: usize) -> bool {
        let runs = &mut self.written.runs(offset, len);
        runs.all(|run| run.marked || self.zeroed.is_marked(run.offset, run.len))
    }

    fn execute(&self, op: &mut Op) -> Result<Moved, DiskError> {
        let (offset, len) = op.check(self.len(), self.read_only)?;
        // The check holds both below the length of the mapping, which is a usize.
        let (offset, len) = (offset as usize, len as usize);
        match op {
            Op::Flush => {}
            Op::Probe { .. } if self.is_allocated(offset, len) => {}
            Op::Probe { .. } => return Err(DiskError::Deallocated),
            Op::Read { buf, .. } => self.transfer(offset, buf, |image, piece| {
                image.copy_to_volatile_slice(piece);
            })?,
            Op::Write { buf, .. } => {
                let result = self.transfer(offset, buf, |image, piece| {
                    piece.copy_to_volatile_slice(image);
                });
                self.written.mark(offset, len);
                result?;
            }
            Op::WriteZeroes { unmap: false, .. } => self.zero(offset, len)?,
            Op::WriteZeroes { unmap: true, .. } | Op::Discard { .. } => self.give_back(offset, len)?,
            Op::Copy { from, pieces, how: How::MemMove, .. } => {
                let source = from.handle().get::<MemoryDisk>().ok_or(DiskError::NoWay)?;
                self.move_pieces(source, pieces, offset)?;
                return Ok(Moved::MemMove);
            }
            Op::Copy { .. } => return Err(DiskError::NoWay),
        }
        Ok(Moved::Plain)
    }

    /// Calls `copy` with each piece of the image and the piece of the buffer that belongs to it.
    fn transfer(
        &self,
        offset: usize,
        buf: &mut IoBuf,
        copy: impl Fn(vm_memory::VolatileSlice<'_>, vm_memory::VolatileSlice<'_>),
    ) -> Result<(), DiskError> {
        let mut result = Ok(());
        buf.for_each_piece(|at, piece| match self.slice(offset + at, piece.len()) {
            Ok(image) => copy(image, piece),
            Err(_) => result = Err(DiskError::Truncated),
        });
        result.and(buf.check())
    }

    /// As [`transfer`](Self::transfer), for pieces that are nobody's.
    fn transfer_now(
        &self,
        offset: u64,
        data: &Transient<'_>,
        copy: impl Fn(VolatileSlice<'_>, VolatileSlice<'_>),
    ) -> Result<(), DiskError> {
        let mut at = usize::try_from(offset).map_err(|_| DiskError::Truncated)?;
        for piece in data.pieces() {
            copy(self.slice(at, piece.len())?, piece);
            at += piece.len();
        }
        Ok(())
    }

    /// Moves `len` bytes from `from` of `source`, which may be this image, to `offset`.
    fn move_piece(&self, source: &MemoryDisk, from: u64, offset: usize, len: usize) -> Result<(), DiskError> {
        let from = usize::try_from(from).map_err(|_| DiskError::Truncated)?;
        let image = source.slice(from, len)?;
        let to = self.slice(offset, len)?;
        if std::ptr::eq(self, source) && from.abs_diff(offset) < len {
            if self.written.is_clear(from.min(offset), from.abs_diff(offset) + len) {
                self.zeroed.mark(offset, len);
            } else {
                // A memmove, in one go: only that takes them in the right order.
                image.copy_to_volatile_slice(to);
                self.written.mark(offset, len);
            }
            return Ok(());
        }
        for run in source.written.runs(from, len) {
            let at = offset + (run.offset - from);
            if run.marked {
                source.slice(run.offset, run.len)?.copy_to_volatile_slice(self.slice(at, run.len)?);
                self.written.mark(at, run.len);
            } else {
                self.zero(at, run.len)?;
            }
        }
        Ok(())
    }

    /// Moves `pieces` of `source`, one behind the other, to `offset`, where none of them lies.
    fn move_pieces(
        &self,
        source: &MemoryDisk,
        pieces: &[(u64, u64)],
        mut offset: usize,
    ) -> Result<(), DiskError> {
        for &(from, len) in pieces {
            let len = usize::try_from(len).map_err(|_| DiskError::Truncated)?;
            self.move_piece(source, from, offset, len)?;
            offset += len;
        }
        Ok(())
    }

    /// Zeroes the range, which stays allocated or becomes so.
    fn zero(&self, offset: usize, len: usize) -> Result<(), DiskError> {
        self.zero_written(offset, len)?;
        self.zeroed.mark(offset, len);
        Ok(())
    }

    /// Zeroes what has been written of the range: the rest has no memory, and needs none.
    fn zero_written(&self, offset: usize, len: usize) -> Result<(), DiskError> {
        for run in self.written.runs(offset, len).filter(|run| run.marked) {
            let image = self.slice(run.offset, run.len)?;
            // SAFETY: the slice is valid for its length, and no reference to its bytes exists: everybody copies in and
            // out volatilely and finds either the old bytes or zeroes.
            unsafe { image.ptr_guard_mut().as_ptr().write_bytes(0, run.len) };
        }
        Ok(())
    }

    /// Zeroes the range; its whole pages go back to the kernel.
    fn give_back(&self, offset: usize, len: usize) -> Result<(), DiskError> {
        let end = offset + len;
        let (first, last) = (offset.next_multiple_of(self.page), end - end % self.page);
        if first >= last {
            return self.zero_written(offset, len);
        }
        self.zero_written(offset, first - offset)?;
        self.zero_written(last, end - last)?;
        let len = last - first;
        self.zeroed.clear(first, len);
        self.written.clear(first, len);
        let pages = self.slice(first, len)?;
        // SAFETY: whole pages of our own private mapping, to which no reference exists: everybody copies
        // in and out volatilely and finds either the old bytes or zeroes.
        let given_back = unsafe {
            rustix::mm::madvise(pages.ptr_guard_mut().as_ptr().cast(), len, rustix::mm::Advice::LinuxDontNeed)
        };
        if given_back.is_err() {
            // Locked pages (mlockall) do not go back. They stay written, for what is zeroed in place is not kept apart
            // from a write that found its old mark.
            self.written.mark(first, len);
            self.zero_written(first, len)?;
        }
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        self.image_len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&self, tag: Tag, mut op: Op, lane: &mut Lane) {
        let result = self.execute(&mut op);
        lane.done(Done { tag, result, buf: op.into_buf() });
    }

    fn inline(&self) -> Inline<'_> {
        Inline::Immediate(self)
    }

    fn allocation_unit(&self) -> Option<u64> {
        Some(self.page.max(GRANULE) as u64)
    }

    fn handle(&self) -> Handle<'_> {
        Handle::of(self)
    }

    fn ways_from(&self, source: &Handle<'_>) -> Ways {
        Ways { memmove: source.get::<MemoryDisk>().is_some(), ..Ways::default() }
    }

    fn resize(&self, len: u64) -> Result<(), ResizeError> {
        if self.read_only {
            return Err(ResizeError::ReadOnly);
        }
        let no_room = || ResizeError::NoRoom(self.room as u64);
        let len = usize::try_from(len).ok().filter(|len| *len <= self.room).ok_or_else(no_room)?;
        let old = self.image_len();
        if len >= old {
            return Ok(self.grow(len)?);
        }
        // Should it grow again, it reads as zeroes there: while it can still be reached.
        let given_back = self.give_back(len, old - len);
        self.len.store(len, Ordering::Release);
        given_back.map_err(|error| io::Error::other(error).into())
    }

    fn name(&self) -> &str {
        "memory"
    }
}

impl Immediate for MemoryDisk {
    fn read(&self, offset: u64, to: &Transient<'_>) -> Result<(), DiskError> {
        self.transfer_now(offset, to, |image, piece| image.copy_to_volatile_slice(piece))
    }

    fn write(&self, offset: u64, from: &Transient<'_>) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        let result = self.transfer_now(offset, from, |image, piece| piece.copy_to_volatile_slice(image));
        if let (Ok(offset), true) = (usize::try_from(offset), result.is_ok()) {
            self.written.mark(offset, from.len());
        }
        result
    }

    fn prefetch(&self, offset: u64, len: u64) {
        // The processor goes on by itself from the second line of a stream; the TLB misses are over too.
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(AHEAD);
        let Ok(offset) = usize::try_from(offset) else { return };
        if let Ok(image) = self.slice(offset, len) {
            prefetch(image.ptr_guard().as_ptr(), len);
        }
    }

    fn move_from(&self, source: &Handle<'_>, from: u64, offset: u64, len: u64) -> bool {
        let (Some(source), false) = (source.get::<MemoryDisk>(), self.read_only) else { return false };
        let (Ok(offset), Ok(len)) = (usize::try_from(offset), usize::try_from(len)) else { return false };
        self.move_piece(source, from, offset, len).is_ok()
    }
}
