//! A copy from one file to another. For a thread that may block.
//!
//! A way that the kernel refuses before anything has changed is no way; one refused later is finished by
//! the next: sharing by copying, copying by reading and writing. So "nothing has changed" stays true.
#![expect(unsafe_code, reason = "system calls on buffers")]

use std::io;
use std::sync::Arc;

use super::image::{Ability, ImageFile};
use super::job::FileJob;
use super::ways::{Way, is_no_way};
use crate::disk::sys::Call;
use crate::disk::sys::iovecs::Iovecs;
use crate::disk::{Buffer, DiskError, How, IoBuf, Moved, Pieces};

/// One call shares or copies at most this, however long the range: it cannot be cancelled.
pub(super) const MAX_CALL: u64 = 256 << 20;
/// What is read at once where no other way is left, and zeroed at once.
const CHUNK: u64 = 1 << 20;
/// Fewer bytes are copied by the kernel where it may. copy_file_range writes 64 KiB at a time, and each write to ext4 costs
/// the more the larger the file's folios are: so more are faster read and written in few large pieces, by two threads.
pub(super) const SHORT: u64 = 128 << 10;

/// A copy of pieces that lie in the source, to where they lie in the target.
#[derive(Debug)]
pub(super) struct FileCopy {
    pub(super) source: Arc<ImageFile>,
    pub(super) target: Arc<ImageFile>,
    /// At least one.
    pub(super) pieces: Pieces,
    pub(super) at: u64,
    /// Of all pieces together.
    pub(super) len: u64,
    pub(super) how: How,
    pub(super) durable: bool,
}

/// How long a copy takes its thread.
pub(super) fn is_short(how: How, len: u64) -> bool {
    matches!(how, How::ReadWrite { .. }) && len < SHORT
}

impl FileCopy {
    /// Copies; `buf` is that of [`How::ReadWrite`]. Stops half way when nobody will hear of the end.
    pub(super) fn run(
        &self,
        buf: Option<IoBuf>,
        is_stopped: &dyn Fn() -> bool,
    ) -> (Result<Moved, DiskError>, Option<IoBuf>) {
        let (result, buf) = self.copy(buf, is_stopped);
        if let Err(error) = &result {
            self.report(error);
        }
        (result, buf)
    }

    /// Tells the log of a failure of the host.
    fn report(&self, error: &DiskError) {
        let from = self.pieces.first().map_or(0, |piece| piece.0);
        match error {
            DiskError::Source { at, error } => {
                let mut left = *at;
                let here = self.pieces.iter().find(|piece| {
                    let here = left < piece.1;
                    left -= if here { 0 } else { piece.1 };
                    here
                });
                let place = here.map_or(from, |piece| piece.0 + left);
                self.source.failed("read", place, self.len - at, error);
            }
            // Only the source can be too short.
            DiskError::Truncated => self.source.failed("read", from, self.len, error),
            _ => self.target.failed("copy", self.at, self.len, error),
        }
    }

    fn copy(
        &self,
        mut buf: Option<IoBuf>,
        is_stopped: &dyn Fn() -> bool,
    ) -> (Result<Moved, DiskError>, Option<IoBuf>) {
        let _guard = self.target.lock(self.at, self.len);
        let from = self.pieces.first().map_or(0, |piece| piece.0);
        let range = Range { copy: self, from, is_stopped };
        let result = match (self.how, buf.take()) {
            (How::Reflink, _) => range.share(),
            (How::Offload, _) => range.offload(0, false),
            (How::ReadWrite { or_kernel }, Some(given)) => {
                let durable = self.target.is_durable(self.durable);
                if or_kernel && !durable && self.is_for_the_kernel(from) && range.by_kernel() {
                    return (Ok(Moved::KernelCopy), Some(given));
                }
                let (result, given) = self.read_and_write(given, is_stopped);
                return (result.map(|()| Moved::ReadWrite), given);
            }
            (How::MemMove | How::ReadWrite { .. }, _) => Err(DiskError::NoWay),
        };
        let result = result.and_then(|moved| {
            let durable = self.target.is_durable(self.durable);
            let synced = if durable { self.target.sync(self.target.syncs().ticket()) } else { Ok(()) };
            synced.map(|()| moved)
        });
        (result, None)
    }

    /// May the kernel copy it by itself? It must not share blocks, nor leave it to a server what becomes of holes: what is
    /// read and written is allocated afterwards.
    fn is_for_the_kernel(&self, from: u64) -> bool {
        // A tap hears of every read of its image; and the kernel refuses ranges that overlap.
        let overlap = self.source.is_same(&self.target) && from.abs_diff(self.at) < self.len;
        if self.pieces.len() > 1 || self.len >= SHORT || self.source.is_tapped() || overlap {
            return false;
        }
        let ways = self.target.ways_from(&self.source);
        ways.offload && !ways.offload_pays
    }

    /// Reads all pieces into the buffer, then writes it.
    fn read_and_write(
        &self,
        mut buf: IoBuf,
        is_stopped: &dyn Fn() -> bool,
    ) -> (Result<(), DiskError>, Option<IoBuf>) {
        let mut rest = buf.ours_mut().unwrap_or_default();
        let mut got = 0;
        for &(from, len) in &self.pieces {
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
            let (piece, later) = std::mem::take(&mut rest).split_at_mut(len);
            if let Err((read, error)) = read_all(&self.source, from, piece) {
                let at = got + read;
                return (Err(DiskError::Source { at, error: Box::new(error) }), Some(buf));
            }
            got += len as u64;
            rest = later;
        }
        FileJob::write(Arc::clone(&self.target), self.at, buf, self.durable).run(is_stopped).synced()
    }
}

/// Fills `bytes` from `offset`; else so many have been read, and why no more.
fn read_all(file: &ImageFile, offset: u64, bytes: &mut [u8]) -> Result<(), (u64, DiskError)> {
    let mut got = 0;
    while let Some(rest @ [_, ..]) = bytes.get_mut(got..) {
        let mut iovecs = Iovecs::NONE;
        iovecs.aim_at(rest.as_mut_ptr(), rest.len());
        let call = Call::Preadv { offset: offset + got as u64 };
        // SAFETY: they lead to `rest`, which is ours alone.
        match unsafe { file.make(call, file, iovecs.get(None)) } {
            Ok(0) => return Err((got as u64, DiskError::Truncated)),
            Ok(moved) => got += (moved as usize).min(rest.len()),
            Err(errno) => return Err((got as u64, DiskError::of_errno(errno))),
        }
    }
    Ok(())
}

/// One piece on its way.
struct Range<'a> {
    copy: &'a FileCopy,
    /// Byte offset in the source.
    from: u64,
    is_stopped: &'a dyn Fn() -> bool,
}

impl Range<'_> {
    fn source(&self) -> &ImageFile {
        &self.copy.source
    }

    fn target(&self) -> &ImageFile {
        &self.copy.target
    }

    /// Shares all of it, or what the kernel does not refuse.
    fn share(&self) -> Result<Moved, DiskError> {
        let (len, mut done) = (self.copy.len, 0);
        while done < len && !(self.is_stopped)() {
            let part = (len - done).min(MAX_CALL);
            match self.clone(done, part) {
                Ok(_) => done += part,
                Err(errno) => return self.share_ended(done, errno),
            }
        }
        Ok(Moved::Shared)
    }

    fn clone(&self, done: u64, len: u64) -> Result<u64, i32> {
        let call = Call::CloneRange { from: self.from + done, offset: self.copy.at + done, len };
        self.target().copy(call, self.source())
    }

    /// The kernel answered `errno` after so many bytes.
    fn share_ended(&self, done: u64, mut errno: i32) -> Result<Moved, DiskError> {
        let mut changed = done > 0;
        if errno == libc::EINVAL {
            // The source was truncated, or it shares in larger units, or it ended half way, or something else.
            if self.size()? < self.copy.len {
                return Err(DiskError::Truncated);
            }
            // One that ended half way is EINVAL too, but then a single block goes through.
            let block = self.target().ways_from(self.source()).reflink.unwrap_or(0);
            match self.clone(done, block.min(self.copy.len - done)) {
                Ok(_) => changed = true,
                Err(other) => errno = other,
            }
        }
        match errno {
            libc::EINVAL
            | libc::EOPNOTSUPP
            | libc::EXDEV
            | libc::ENOSYS
            | libc::ENOTTY
            | libc::ETXTBSY
            | libc::EPERM => {}
            // Sharing wants room for its records where copying may need none. It may have come half way.
            libc::ENOSPC | libc::EDQUOT => changed = true,
            _ => return Err(DiskError::of_errno(errno)),
        }
        self.target().refused(self.source(), Way::Clone, errno);
        if changed { self.offload(done, true) } else { Err(DiskError::NoWay) }
    }

    /// Bytes of the range that the source still has.
    fn size(&self) -> Result<u64, DiskError> {
        let size = self.source().call(Call::Seek { whence: libc::SEEK_END, offset: 0 });
        Ok(self.place(size.map_err(DiskError::of_errno)?))
    }

    /// An offset in the source, in bytes of the range.
    fn place(&self, offset: u64) -> u64 {
        offset.saturating_sub(self.from).min(self.copy.len)
    }

    /// Copies from byte `done` on, holes as holes. `changed`: the target is no more what it was.
    fn offload(&self, mut done: u64, mut changed: bool) -> Result<Moved, DiskError> {
        let mut moved = Moved::KernelCopy;
        // Of reading and writing, where the kernel does not go on.
        let mut buffer = None;
        while done < self.copy.len && !(self.is_stopped)() {
            let part = self.next_part(done)?;
            if part.is_hole {
                self.make_hole(done, part.end)?;
                (done, changed) = (part.end, true);
                continue;
            }
            if buffer.is_none() {
                match self.kernel_copy(&mut done, part.end) {
                    Ok(()) => {
                        changed = true;
                        continue;
                    }
                    Err(errno) if is_no_way(errno) => {
                        self.target().refused(self.source(), Way::CopyRange, errno);
                        // A part may have been copied before.
                        if !changed && done == 0 {
                            return Err(DiskError::NoWay);
                        }
                        moved = Moved::ReadWrite;
                        buffer = Some(Buffer::zeroed(CHUNK as usize));
                    }
                    Err(0) => return Err(DiskError::Truncated),
                    Err(errno) => return Err(DiskError::of_errno(errno)),
                }
            }
            if let Some(buffer) = &mut buffer {
                self.by_hand(&mut done, part.end, buffer)?;
                changed = true;
            }
        }
        Ok(moved)
    }

    /// Copies up to `end`, as far as the kernel goes; 0 for an errno: the source ends.
    fn kernel_copy(&self, done: &mut u64, end: u64) -> Result<(), i32> {
        while *done < end && !(self.is_stopped)() {
            let (from, offset) = (self.from + *done, self.copy.at + *done);
            let call = Call::CopyRange { from, offset, len: (end - *done).min(MAX_CALL) };
            match self.target().copy(call, self.source())? {
                0 => return Err(0),
                moved => *done = (*done + moved).min(end),
            }
        }
        Ok(())
    }

    /// All of it in one go by the kernel? Whatever is wrong with it, reading and writing will tell.
    fn by_kernel(&self) -> bool {
        let mut done = 0;
        match self.kernel_copy(&mut done, self.copy.len) {
            Ok(()) => done == self.copy.len,
            Err(errno) => {
                if is_no_way(errno) {
                    self.target().refused(self.source(), Way::CopyRange, errno);
                }
                false
            }
        }
    }

    /// The data or the hole that begins after `done` bytes.
    fn next_part(&self, done: u64) -> Result<SourcePart, DiskError> {
        let len = self.copy.len;
        let seek = |whence| self.source().call(Call::Seek { whence, offset: self.from + done });
        loop {
            match seek(libc::SEEK_HOLE).map(|hole| self.place(hole)) {
                Ok(end) if end > done => return Ok(SourcePart { end, is_hole: false }),
                Ok(_) => {}
                Err(libc::ENXIO) => return Err(DiskError::Truncated),
                // A file system that knows no holes.
                Err(libc::EINVAL | libc::EOPNOTSUPP) => return Ok(SourcePart { end: len, is_hole: false }),
                Err(errno) => return Err(DiskError::of_errno(errno)),
            }
            match seek(libc::SEEK_DATA).map(|data| self.place(data)) {
                Ok(end) if end > done => return Ok(SourcePart { end, is_hole: true }),
                // It was filled meanwhile.
                Ok(_) => {}
                // No data from here on: the last hole reaches to the end of the file.
                Err(libc::ENXIO) if self.size()? == len => return Ok(SourcePart { end: len, is_hole: true }),
                Err(libc::ENXIO) => return Err(DiskError::Truncated),
                Err(libc::EINVAL | libc::EOPNOTSUPP) => return Ok(SourcePart { end: len, is_hole: false }),
                Err(errno) => return Err(DiskError::of_errno(errno)),
            }
        }
    }

    /// Zeroes the target up to `end`, without blocks where it can do without.
    fn make_hole(&self, done: u64, end: u64) -> Result<(), DiskError> {
        let offset = self.copy.at + done;
        if self.target().fallocate(Ability::PunchHole, offset, end - done)? {
            return Ok(());
        }
        self.write_all(offset, end - done, |_, left| {
            let mut iovecs = Iovecs::NONE;
            iovecs.aim_at_zeroes(left);
            iovecs
        })
    }

    /// Reads and writes up to `end`, a buffer full at a time.
    fn by_hand(&self, done: &mut u64, end: u64, buffer: &mut Buffer) -> Result<(), DiskError> {
        while *done < end && !(self.is_stopped)() {
            let len = (end - *done).min(buffer.len() as u64);
            let chunk = buffer.get_mut(..len as usize).unwrap_or_default();
            read_all(self.source(), self.from + *done, chunk).map_err(|(_, error)| error)?;
            self.write_all(self.copy.at + *done, len, |at, _| {
                let mut iovecs = Iovecs::NONE;
                let rest = chunk.get_mut(at as usize..).unwrap_or_default();
                iovecs.aim_at(rest.as_mut_ptr(), rest.len());
                iovecs
            })?;
            *done += len;
        }
        Ok(())
    }

    /// Writes `len` bytes at `offset`: of each call `what` says, from byte and bytes left on, from where.
    fn write_all(
        &self,
        offset: u64,
        len: u64,
        mut what: impl FnMut(u64, u64) -> Iovecs,
    ) -> Result<(), DiskError> {
        let mut put = 0;
        while put < len && !(self.is_stopped)() {
            let iovecs = what(put, len - put);
            let call = Call::Pwritev { offset: offset + put, dsync: false };
            // SAFETY: they lead to zeroes or to the copy's own buffer, which are not written meanwhile.
            match unsafe { self.target().make(call, self.target(), iovecs.get(None)) } {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(moved) => put = (put + moved).min(len),
                Err(errno) => return Err(DiskError::of_errno(errno)),
            }
        }
        Ok(())
    }
}

/// Where in the range a run of data or of nothing ends.
struct SourcePart {
    end: u64,
    is_hole: bool,
}
