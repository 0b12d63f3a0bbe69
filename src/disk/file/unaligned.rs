//! Direct transfers that the kernel does not take as they are: the aligned part of the memory goes straight, the rest by
//! way of an aligned buffer; a block of which only a part is written is read, changed and written back. For a thread that
//! may block.
#![expect(unsafe_code, reason = "system calls on iovecs")]

use std::io;

use super::align::{Alignment, Piece};
use super::image::{Ability, ImageFile};
use crate::disk::sys::Call;
use crate::disk::sys::iovecs::Iovecs;
use crate::disk::{Buffer, DiskError, IoBuf};

/// Bounced at once, at most; the unit of a file is at most this.
const ROOM: usize = 64 << 10;

/// A transfer of a range that is not empty and, rounded out to whole blocks, lies in the file.
pub(super) struct Unaligned<'a> {
    file: &'a ImageFile,
    align: Alignment,
    offset: u64,
    len: u64,
    /// The operation's memory; without, zeroes are written.
    buf: Option<&'a mut IoBuf>,
    reads: bool,
    bounce: Buffer,
    /// Nobody will hear of the end.
    is_stopped: &'a dyn Fn() -> bool,
}

/// Does the kernel take all of this memory as it is?
pub(super) fn fits_memory(align: Alignment, buf: &IoBuf) -> bool {
    match (buf, buf.ours()) {
        (IoBuf::Guest(buf), _) => align.fits_memory(buf.iovecs()),
        (_, bytes) => bytes.is_some_and(|bytes| bytes.as_ptr().addr().is_multiple_of(align.memory)),
    }
}

impl<'a> Unaligned<'a> {
    /// Fills `buf` from `offset`.
    pub(super) fn read(
        file: &'a ImageFile,
        offset: u64,
        buf: &'a mut IoBuf,
        is_stopped: &'a dyn Fn() -> bool,
    ) -> Result<(), DiskError> {
        let len = buf.len() as u64;
        Self::new(file, offset, len, Some(buf), true, is_stopped)?.run()
    }

    /// Writes `buf` at `offset`.
    pub(super) fn write(
        file: &'a ImageFile,
        offset: u64,
        buf: &'a mut IoBuf,
        is_stopped: &'a dyn Fn() -> bool,
    ) -> Result<(), DiskError> {
        let len = buf.len() as u64;
        let _guard = file.lock(offset, len);
        Self::new(file, offset, len, Some(buf), false, is_stopped)?.run()
    }

    /// Makes a range zero, by holes (with `unmap`) or a call for zeroes where the file takes one.
    pub(super) fn zero(
        file: &'a ImageFile,
        offset: u64,
        len: u64,
        unmap: bool,
        is_stopped: &'a dyn Fn() -> bool,
    ) -> Result<(), DiskError> {
        let _guard = file.lock(offset, len);
        if (unmap && file.fallocate(Ability::PunchHole, offset, len)?)
            || file.fallocate(Ability::ZeroRange, offset, len)?
        {
            return Ok(());
        }
        Self::new(file, offset, len, None, false, is_stopped)?.run()
    }

    /// Gives a range back, as far as the file can.
    pub(super) fn discard(file: &ImageFile, offset: u64, len: u64) -> Result<(), DiskError> {
        let _guard = file.lock(offset, len);
        file.fallocate(Ability::PunchHole, offset, len).map(|_| ())
    }

    fn new(
        file: &'a ImageFile,
        offset: u64,
        len: u64,
        buf: Option<&'a mut IoBuf>,
        reads: bool,
        is_stopped: &'a dyn Fn() -> bool,
    ) -> Result<Self, DiskError> {
        let align = file.alignment().ok_or(DiskError::Truncated)?;
        let room = (len + 2 * align.block).next_multiple_of(align.block).min(ROOM as u64);
        let bounce = Buffer::zeroed(room as usize);
        Ok(Self { file, align, offset, len, buf, reads, bounce, is_stopped })
    }

    fn run(mut self) -> Result<(), DiskError> {
        let block = self.align.block;
        let mut done = 0;
        while done < self.len && !(self.is_stopped)() {
            let (at, left) = (self.offset + done, self.len - done);
            let before = at % block;
            let piece = if before > 0 || left < block {
                // Fits: less than a block.
                Piece::Bounce(left.min(block - before) as usize)
            } else {
                self.cut(done, left - left % block)
            };
            done += match piece {
                Piece::Direct(len) => self.direct(done, len)?,
                Piece::Bounce(len) => self.bounce(done, len)?,
            };
        }
        Ok(())
    }

    /// What to do with whole blocks, which lie at a block.
    fn cut(&self, done: u64, left: u64) -> Piece {
        let left = usize::try_from(left).unwrap_or(usize::MAX - usize::MAX % ROOM);
        match self.buf.as_deref() {
            None => Piece::Direct(left),
            Some(IoBuf::Guest(buf)) => self.align.cut(buf.iovecs(), done as usize, left, ROOM),
            Some(buf) => {
                let bytes = buf.ours().unwrap_or_default();
                let all = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
                self.align.cut(&[all], done as usize, left, ROOM)
            }
        }
    }

    /// Transfers `len` bytes, or fewer, straight between the file and their memory.
    fn direct(&mut self, done: u64, len: usize) -> Result<u64, DiskError> {
        let (at, mut iovecs) = (self.offset + done, Iovecs::NONE);
        let done = done as usize;
        match &mut self.buf {
            None => iovecs.aim_at_zeroes(len as u64),
            Some(IoBuf::Guest(buf)) => {
                iovecs.aim_at_part(buf.iovecs(), done, len);
                // The kernel has the pages themselves now.
                buf.hold(true);
            }
            Some(buf) => {
                let part = buf.ours_mut().and_then(|buf| buf.get_mut(done..done + len)).unwrap_or_default();
                iovecs.aim_at(part.as_mut_ptr(), part.len());
            }
        }
        let moved = self.transfer(self.reads, at, &iovecs);
        if let Some(IoBuf::Guest(buf)) = &mut self.buf {
            buf.hold(false);
        }
        Ok(moved?.min(len as u64))
    }

    /// Transfers `len` bytes by way of the buffer: as many as lie in its whole blocks.
    fn bounce(&mut self, done: u64, len: usize) -> Result<u64, DiskError> {
        let at = self.offset + done;
        let skip = (at % self.align.block) as usize;
        let start = at - skip as u64;
        let whole = (skip + len).next_multiple_of(self.align.block as usize);
        if self.reads || whole > len {
            self.transfer_all(true, start, whole)?;
        }
        let (done, bounced) = (done as usize, skip..skip + len);
        let bytes = self.bounce.get_mut(bounced).ok_or(DiskError::Truncated)?;
        match (&mut self.buf, self.reads) {
            (None, _) => bytes.fill(0),
            (Some(IoBuf::Guest(buf)), true) => {
                buf.copy_in(done, bytes).map_err(|_| DiskError::GuestMemory)?;
            }
            (Some(IoBuf::Guest(buf)), false) => {
                buf.copy_out(done, bytes).map_err(|_| DiskError::GuestMemory)?;
            }
            (Some(buf), reads) => {
                let own = buf.ours_mut().and_then(|own| own.get_mut(done..done + len));
                let own = own.ok_or(DiskError::Truncated)?;
                if reads { own.copy_from_slice(bytes) } else { bytes.copy_from_slice(own) }
            }
        }
        if !self.reads {
            self.transfer_all(false, start, whole)?;
        }
        Ok(len as u64)
    }

    /// Transfers the first `len` bytes of the buffer, whole blocks, from or to `start` of the file.
    fn transfer_all(&mut self, reads: bool, start: u64, len: usize) -> Result<(), DiskError> {
        let mut done = 0;
        while done < len {
            let part = self.bounce.get_mut(done..len).ok_or(DiskError::Truncated)?;
            let mut iovecs = Iovecs::NONE;
            iovecs.aim_at(part.as_mut_ptr(), part.len());
            done += self.transfer(reads, start + done as u64, &iovecs)? as usize;
        }
        Ok(())
    }

    /// One call: bytes, whole blocks and not 0.
    fn transfer(&self, reads: bool, offset: u64, iovecs: &Iovecs) -> Result<u64, DiskError> {
        let call = if reads { Call::Preadv { offset } } else { Call::Pwritev { offset, dsync: false } };
        let guest = match self.buf.as_deref() {
            Some(IoBuf::Guest(buf)) => Some(buf.iovecs()),
            _ => None,
        };
        // SAFETY: they lie in the operation's memory, in the buffer or in static zeroes, which only writes are given.
        let moved = unsafe { self.file.make(call, self.file, iovecs.get(guest)) };
        match moved {
            // What ends within a block ends with the file, or with the room on it.
            Ok(moved) if moved == 0 || self.file.ends_within_a_block(moved) => Err(match reads {
                true => DiskError::Truncated,
                false => io::Error::from(io::ErrorKind::WriteZero).into(),
            }),
            Ok(moved) => Ok(moved),
            Err(libc::EFAULT) => Err(DiskError::GuestMemory),
            Err(errno) => Err(DiskError::of_errno(errno)),
        }
    }
}
