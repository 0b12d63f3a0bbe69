//! Host iovecs of one data transfer, with pins on the regions they lie in.
#![expect(unsafe_code, reason = "copies through the raw pointers of iovecs that its pins keep mapped")]

use std::cell::UnsafeCell;
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use super::region::Pin;
use super::{DmaError, Region};

/// Pieces of one buffer, at most: twice as many as the longest transfer that MDTS can allow has pages, and 32
/// times as many as Linux makes. A hostile list costs 64 KiB. (More than IOV_MAX: the engines hand them to
/// the kernel in portions.)
pub const MAX_IOVECS: usize = 4096;

/// Where discarded data goes, from all threads at once. Nobody reads it.
struct Scratch(UnsafeCell<[u8; SCRATCH_LEN]>);

/// Trades memory (touched only by transfers that discard) for iovecs: 4 GiB of bit bucket are 4096 pieces.
const SCRATCH_LEN: usize = 1 << 20;

// SAFETY: only the kernel writes there, through iovecs; no reference to the bytes is ever made.
unsafe impl Sync for Scratch {}

static SCRATCH: Scratch = Scratch(UnsafeCell::new([0; SCRATCH_LEN]));

/// What a walk puts the pieces of a transfer into.
pub trait Target<'m> {
    /// Makes room for `pieces` more, at most [`MAX_IOVECS`].
    fn reserve(&mut self, pieces: usize);
    /// Appends `len` bytes of `region` at `host`, not 0; `address` is their guest address.
    fn push(
        &mut self,
        region: &'m Arc<Region>,
        host: *mut u8,
        len: usize,
        address: u64,
    ) -> Result<(), DmaError>;
}

fn is_scratch(iovec: &libc::iovec) -> bool {
    (iovec.iov_base as usize).wrapping_sub(SCRATCH.0.get() as usize) < SCRATCH_LEN
}

/// Host memory of one data transfer (PRP or SGL resolved), pinned.
///
/// While it lives the memory stays mapped; the pages behind may still be revoked, and then the copies here
/// fail with [`DmaError::Gone`] and the kernel's with EFAULT. Whoever hands the iovecs to the kernel asks
/// [`check`](Self::check) when the transfer is over.
#[derive(Default)]
pub struct GuestBuf {
    /// Few in place: the value is moved several times on its way to an engine.
    iovecs: SmallVec<[libc::iovec; 4]>,
    pins: SmallVec<[Pin; 1]>,
    len: usize,
    /// A piece lies in a region that the device may not read.
    no_read: bool,
    /// A piece lies in a region that the device may not write.
    no_write: bool,
    /// In a call that pins pages.
    held: bool,
}

// SAFETY: the iovecs point into mappings that the pins hold, or into the scratch area; both may be used from
// any thread, and nothing in them belongs to one.
unsafe impl Send for GuestBuf {}

impl fmt::Debug for GuestBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestBuf")
            .field("len", &self.len)
            .field("pieces", &self.iovecs.len())
            .field("pins", &self.pins.len())
            .finish()
    }
}

impl Drop for GuestBuf {
    fn drop(&mut self) {
        self.hold(false);
    }
}

impl GuestBuf {
    /// Length in bytes of all pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No byte at all?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces in order, none of them empty, at most [`MAX_IOVECS`]. Valid while the buffer lives.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// Is any of it lost ([`Self::append_discard`])?
    pub fn discards(&self) -> bool {
        self.iovecs.iter().any(is_scratch)
    }

    /// Bytes that it has allocated.
    pub fn heap(&self) -> usize {
        let iovecs = if self.iovecs.spilled() { self.iovecs.capacity() } else { 0 };
        let pins = if self.pins.spilled() { self.pins.capacity() } else { 0 };
        iovecs * size_of::<libc::iovec>() + pins * size_of::<Pin>()
    }

    /// `Gone` (with the region's first guest address) when the pages of a region it lies in were lost.
    pub fn check(&self) -> Result<(), DmaError> {
        match self.pins.iter().find(|pin| pin.region().is_dead()) {
            None => Ok(()),
            Some(pin) => Err(DmaError::Gone(pin.region().iova())),
        }
    }

    /// Takes the first `len` bytes off, all of them if there are no more: a buffer of its own with the same pins.
    pub fn split_front(&mut self, len: usize) -> Self {
        let (mut left, mut whole) = (len.min(self.len), 0);
        while let Some(piece) = self.iovecs.get(whole).filter(|piece| piece.iov_len <= left) {
            left -= piece.iov_len;
            whole += 1;
        }
        let mut iovecs: SmallVec<[libc::iovec; 4]> = self.iovecs.drain(..whole).collect();
        if let Some(cut) = self.iovecs.first_mut().filter(|_| left > 0) {
            iovecs.push(libc::iovec { iov_base: cut.iov_base, iov_len: left });
            cut.iov_base = cut.iov_base.cast::<u8>().wrapping_add(left).cast();
            cut.iov_len -= left;
        }
        let len = len.min(self.len);
        self.len -= len;
        let pins = self.pins.iter().map(Pin::again).collect();
        Self { iovecs, pins, len, no_read: self.no_read, no_write: self.no_write, held: false }
    }

    /// The memory is about to be handed to the kernel for a transfer past the page cache, or that is over.
    /// Meanwhile the kernel reaches the pages themselves: they cannot be taken away under the call.
    pub fn hold(&mut self, begins: bool) {
        if self.held != begins {
            self.held = begins;
            self.pins.iter().for_each(|pin| pin.hold(begins));
        }
    }

    fn push_iovec(&mut self, host: *mut u8, len: usize, address: u64) -> Result<(), DmaError> {
        let total = self.len.checked_add(len).ok_or(DmaError::Fragmented(address))?;
        let piece = libc::iovec { iov_base: host.cast(), iov_len: len };
        let full = self.iovecs.len() >= MAX_IOVECS;
        match self.iovecs.last_mut() {
            Some(last)
                if (last.iov_base as usize).wrapping_add(last.iov_len) == host as usize
                    && !is_scratch(last)
                    && !is_scratch(&piece) =>
            {
                last.iov_len += len;
            }
            _ if full => return Err(DmaError::Fragmented(address)),
            _ => self.iovecs.push(piece),
        }
        self.len = total;
        Ok(())
    }

    /// Appends `len` bytes of nothing (SGL bit bucket): what is transferred there is lost.
    /// `Fragmented(0)` beyond [`MAX_IOVECS`].
    pub fn append_discard(&mut self, len: usize) -> Result<(), DmaError> {
        let mut left = len;
        while left > 0 {
            let now = left.min(SCRATCH_LEN);
            self.push_iovec(SCRATCH.0.get().cast(), now, 0)?;
            left -= now;
        }
        Ok(())
    }

    /// Guest to us: copies `dst.len()` bytes from byte `offset` of the buffer. Discarded parts read as
    /// zeroes. Errors: `Gone`; `Denied` when a region may not be read; `Unmapped(offset)` when the buffer is
    /// shorter. After an error `dst` holds anything.
    pub fn copy_out(&self, offset: usize, dst: &mut [u8]) -> Result<(), DmaError> {
        if self.no_read {
            return Err(self.denied());
        }
        let mut rest = &mut *dst;
        let len = rest.len();
        self.pieces(offset, len, |piece| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(piece.len());
            rest = later;
            match piece {
                Piece::Guest(slice) => {
                    slice.copy_to(now);
                }
                Piece::Scratch(_) => now.fill(0),
            }
        })
    }

    /// Us to guest: copies `src` to byte `offset` of the buffer. Errors: `Gone`; `Denied` when a region may
    /// not be written; `Unmapped(offset)` when the buffer is shorter. After an error some of it may have been
    /// written.
    pub fn copy_in(&self, offset: usize, src: &[u8]) -> Result<(), DmaError> {
        if self.no_write {
            return Err(self.denied());
        }
        let mut rest = src;
        self.pieces(offset, src.len(), |piece| {
            let (now, later) = rest.split_at(piece.len());
            rest = later;
            if let Piece::Guest(slice) = piece {
                slice.copy_from(now);
            }
        })
    }

    /// Zeroes to the guest: `len` bytes at byte `offset` of the buffer. Errors as [`copy_in`](Self::copy_in).
    pub fn zero(&self, offset: usize, len: usize) -> Result<(), DmaError> {
        if self.no_write {
            return Err(self.denied());
        }
        self.pieces(offset, len, |piece| {
            if let Piece::Guest(slice) = piece {
                // SAFETY: the slice is valid for its length. The guest may look meanwhile; no reference into
                // the memory exists in this process.
                unsafe {
                    slice.ptr_guard_mut().as_ptr().write_bytes(0, slice.len());
                }
            }
        })
    }

    fn denied(&self) -> DmaError {
        let refuses = |pin: &&Pin| {
            let rights = pin.region().rights();
            !(rights.read && rights.write)
        };
        let pin = self.pins.iter().find(refuses);
        DmaError::Denied(pin.map_or(0, |pin| pin.region().iova()))
    }

    /// Calls `each` for the parts of `offset..offset + len` in order; together they are `len` bytes long.
    fn pieces<'a>(
        &'a self,
        offset: usize,
        len: usize,
        mut each: impl FnMut(Piece<'a>),
    ) -> Result<(), DmaError> {
        if offset > self.len || len > self.len - offset {
            return Err(DmaError::Unmapped(offset as u64));
        }
        let mut skip = offset;
        let mut left = len;
        for iovec in &self.iovecs {
            if left == 0 {
                break;
            }
            if skip >= iovec.iov_len {
                skip -= iovec.iov_len;
                continue;
            }
            let now = left.min(iovec.iov_len - skip);
            if is_scratch(iovec) {
                each(Piece::Scratch(now));
            } else {
                let host = iovec.iov_base.cast::<u8>().wrapping_add(skip);
                // SAFETY: `skip + now` is within the piece, which the pins keep mapped while `self` lives;
                // the guest may change it at any time, which is what a volatile slice allows.
                each(Piece::Guest(unsafe { VolatileSlice::new(host, now) }));
            }
            left -= now;
            skip = 0;
        }
        self.check()
    }
}

impl<'m> Target<'m> for GuestBuf {
    fn reserve(&mut self, pieces: usize) {
        self.iovecs.reserve(pieces.min(MAX_IOVECS));
    }

    fn push(
        &mut self,
        region: &'m Arc<Region>,
        host: *mut u8,
        len: usize,
        address: u64,
    ) -> Result<(), DmaError> {
        // A few pins back is as far as it pays to look: a second pin on a region is harmless.
        let pinned = self.pins.iter().rev().take(4);
        if !pinned.into_iter().any(|pin| Arc::ptr_eq(pin.region(), region)) {
            let pin = Pin::new(region).map_err(|_| DmaError::Unmapped(address))?;
            self.pins.push(pin);
        }
        self.push_iovec(host, len, address)?;
        self.no_read |= !region.rights().read;
        self.no_write |= !region.rights().write;
        Ok(())
    }
}

enum Piece<'a> {
    Guest(VolatileSlice<'a>),
    /// Bytes.
    Scratch(usize),
}

impl Piece<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Guest(slice) => slice.len(),
            Self::Scratch(len) => *len,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::Guest;
    use crate::memory::{Access, DmaMap};

    /// Pieces of 16 bytes each, in the order of `addresses`.
    fn gather(map: &DmaMap, addresses: &[u64]) -> GuestBuf {
        let mut buf = GuestBuf::default();
        for address in addresses {
            map.append(*address, 16, Access::Write, &mut buf).unwrap();
        }
        buf
    }

    #[test]
    fn copies_at_any_offset() {
        let guest = Guest::new(0, 0x2000);
        let map = guest.dma();
        let buf = gather(&map, &[0x1000, 0x800, 0x20]);
        assert_eq!((buf.len(), buf.iovecs().len()), (48, 3));
        let data: Vec<u8> = (1..=48).collect();
        buf.copy_in(0, &data).unwrap();
        assert_eq!(guest.bytes(0x1000, 16), data[..16]);
        assert_eq!(guest.bytes(0x800, 16), data[16..32]);
        assert_eq!(guest.bytes(0x20, 16), data[32..]);
        for offset in 0..=48 {
            for len in 0..=48 - offset {
                let mut out = vec![0; len];
                buf.copy_out(offset, &mut out).unwrap();
                assert_eq!(out, data[offset..offset + len]);
            }
        }
        buf.zero(15, 18).unwrap();
        assert_eq!(guest.bytes(0x100f, 2), [0, 0]);
        assert_eq!(guest.bytes(0x100e, 1), [15]);
        assert_eq!(guest.bytes(0x800, 16), [0; 16]);
        assert_eq!(guest.bytes(0x20, 2), [0, 34]);
    }

    #[test]
    fn ranges_beyond_the_end_are_refused() {
        let guest = Guest::new(0, 0x1000);
        let buf = gather(&guest.dma(), &[0]);
        let beyond = |offset| Err(DmaError::Unmapped(offset));
        assert_eq!(buf.copy_in(16, &[1]), beyond(16));
        assert_eq!(buf.copy_out(0, &mut [0; 17]), beyond(0));
        assert_eq!(buf.zero(usize::MAX, 1), beyond(u64::MAX));
        assert_eq!(buf.zero(1, usize::MAX), beyond(1));
        assert_eq!(buf.zero(16, 0), Ok(()));
        assert_eq!(GuestBuf::default().copy_in(0, &[]), Ok(()));
    }

    #[test]
    fn discarded_parts_reach_nobody() {
        let guest = Guest::new(0, 0x1000);
        let map = guest.dma();
        let mut buf = gather(&map, &[0]);
        buf.append_discard(SCRATCH_LEN + 5).unwrap();
        map.append(0x100, 16, Access::Write, &mut buf).unwrap();
        assert_eq!(buf.len(), 16 + SCRATCH_LEN + 5 + 16);
        assert_eq!(buf.iovecs().len(), 4);
        let data: Vec<u8> = (0..buf.len()).map(|n| n as u8 | 1).collect();
        buf.copy_in(0, &data).unwrap();
        assert_eq!(guest.bytes(0, 16), data[..16]);
        assert_eq!(guest.bytes(16, 0xf0), [0; 0xf0]);
        assert_eq!(guest.bytes(0x100, 16), data[data.len() - 16..]);
        let mut out = vec![0xff; 32];
        buf.copy_out(8, &mut out).unwrap();
        assert_eq!(out[..8], data[8..16]);
        assert_eq!(out[8..], [0; 24]);
        buf.append_discard(0).unwrap();
        assert_eq!(buf.iovecs().len(), 4);
    }

    #[test]
    fn it_is_cut_at_any_place_and_both_parts_keep_their_memory() {
        let guest = Guest::new(0, 0x2000);
        let map = guest.dma();
        let data: Vec<u8> = (1..=48).collect();
        for at in 0..=50 {
            let mut rest = gather(&map, &[0x1000, 0x800, 0x20]);
            rest.copy_in(0, &data).unwrap();
            let front = rest.split_front(at);
            let at = at.min(48);
            assert_eq!((front.len(), rest.len()), (at, 48 - at));
            let read = |buf: &GuestBuf| {
                let mut bytes = vec![0; buf.len()];
                buf.copy_out(0, &mut bytes).unwrap();
                assert_eq!(buf.iovecs().iter().map(|piece| piece.iov_len).sum::<usize>(), buf.len());
                assert!(buf.iovecs().iter().all(|piece| piece.iov_len > 0));
                bytes
            };
            assert_eq!([read(&front), read(&rest)].concat(), data);
            assert_eq!(map.regions().next().unwrap().pins(), 2);
            drop(rest);
            assert_eq!(map.regions().next().unwrap().pins(), 1, "the other part needs it");
        }
    }

    #[test]
    fn pieces_are_bounded() {
        let guest = Guest::new(0, 0x1000);
        let map = guest.dma();
        let mut buf = GuestBuf::default();
        for _ in 0..MAX_IOVECS {
            map.append(0, 16, Access::Read, &mut buf).unwrap();
        }
        let more = map.append(0x40, 16, Access::Read, &mut buf);
        assert_eq!(more, Err(DmaError::Fragmented(0x40)));
        assert_eq!(buf.append_discard(1), Err(DmaError::Fragmented(0)));
        assert_eq!(buf.len(), 16 * MAX_IOVECS);
        // What continues the last piece needs no other.
        map.append(0x10, 16, Access::Read, &mut buf).unwrap();
        assert_eq!(map.regions().next().unwrap().pins(), 1);
    }

    #[test]
    fn goes_to_other_threads() {
        let guest = Guest::new(0, 0x1000);
        let buf = gather(&guest.dma(), &[0x10]);
        std::thread::spawn(move || buf.copy_in(0, &[3]).unwrap()).join().unwrap();
        assert_eq!(guest.bytes(0x10, 1), [3]);
    }
}
