//! A direct transfer that the kernel does not take as it is: the aligned part of its memory goes straight, the rest by
//! way of an aligned buffer; a block of which only a part is written is read, changed and written back.
//!
//! That nobody else changes such a block meanwhile is for `turns` to see to.

use std::io;

use super::align::{Alignment, Piece};
use super::buffer::Buffer;
use super::file_job::Call;
use super::{BackendError, IoBuf};

/// Bounced at once, at most; the unit of a file is at most this.
pub(super) const ROOM: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Read,
    Write,
    /// A write of zeroes: there is no buffer.
    Zeroes,
}

/// What is under way. `start` is the byte offset in the file of the first byte of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The next part is to be chosen.
    Choose,
    /// So many bytes between the file and the memory they belong to.
    Direct(usize),
    /// File to buffer, `len` bytes, `at` of them done; then to the memory, or (a write) changed and written back.
    Get { start: u64, len: usize, at: usize },
    /// Buffer to file.
    Put { start: u64, len: usize, at: usize },
}

/// What the next call transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// So many bytes of the operation's own memory, or zeroes, from those that are done.
    Own(usize),
    /// These bytes of the buffer.
    Buffer(*mut u8, usize),
}

/// See the module docs.
#[derive(Debug)]
pub(super) struct Uneven {
    align: Alignment,
    way: Way,
    offset: u64,
    len: u64,
    /// Bytes of the operation that are in place.
    done: u64,
    step: Step,
    buffer: Buffer,
}

impl Uneven {
    /// For a range that is not empty and, rounded out to whole blocks, lies in the file.
    pub(super) fn new(align: Alignment, way: Way, offset: u64, len: u64) -> Self {
        Uneven { align, way, offset, len, done: 0, step: Step::Choose, buffer: Buffer::default() }
    }

    /// Bytes of the operation that are in place.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// The next call, and what it transfers.
    pub(super) fn next_call(&mut self, buf: Option<&IoBuf>) -> Result<(Call, Target), BackendError> {
        if self.step == Step::Choose {
            self.choose(buf)?;
        }
        let call = |reads: bool, offset| {
            if reads { Call::Preadv { offset } } else { Call::Pwritev { offset, dsync: false } }
        };
        Ok(match self.step {
            Step::Choose => return Err(BackendError::Truncated),
            Step::Direct(len) => (call(self.way == Way::Read, self.offset + self.done), Target::Own(len)),
            Step::Get { start, len, at } => (call(true, start + at as u64), self.target(at, len)?),
            Step::Put { start, len, at } => (call(false, start + at as u64), self.target(at, len)?),
        })
    }

    fn target(&mut self, at: usize, len: usize) -> Result<Target, BackendError> {
        let part = self.buffer.get_mut(at..len).ok_or(BackendError::Truncated)?;
        Ok(Target::Buffer(part.as_mut_ptr(), part.len()))
    }

    fn choose(&mut self, buf: Option<&IoBuf>) -> Result<(), BackendError> {
        let block = self.align.block;
        let (at, left) = (self.offset + self.done, self.len - self.done);
        let before = at % block;
        let piece = if before > 0 || left < block {
            // Fits: less than a block.
            Piece::Bounce(left.min(block - before) as usize)
        } else {
            let left = usize::try_from(left - left % block).unwrap_or(usize::MAX - usize::MAX % ROOM);
            self.cut(buf, left)
        };
        let len = match piece {
            Piece::Direct(len) => {
                self.step = Step::Direct(len);
                return Ok(());
            }
            Piece::Bounce(len) => len,
        };
        let start = at - before;
        let whole = (before + len as u64).next_multiple_of(block) as usize;
        if self.buffer.is_empty() {
            let most = (self.len + 2 * block).next_multiple_of(block).min(ROOM as u64);
            self.buffer = Buffer::zeroed(most as usize);
        }
        if self.way == Way::Read || whole > len {
            self.step = Step::Get { start, len: whole, at: 0 };
            return Ok(());
        }
        self.fill(buf, 0, len)?;
        self.step = Step::Put { start, len: whole, at: 0 };
        Ok(())
    }

    fn cut(&self, buf: Option<&IoBuf>, left: usize) -> Piece {
        let done = self.done as usize;
        match buf {
            None => Piece::Direct(left),
            Some(IoBuf::Guest(buf)) => self.align.cut(buf.iovecs(), done, left, ROOM),
            Some(buf) => {
                let bytes = buf.ours().unwrap_or_default();
                let all = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
                self.align.cut(&[all], done, left, ROOM)
            }
        }
    }

    /// The next `len` bytes of what is written, to byte `at` of the buffer.
    fn fill(&mut self, buf: Option<&IoBuf>, at: usize, len: usize) -> Result<(), BackendError> {
        let done = self.done as usize;
        let to = self.buffer.get_mut(at..at + len).ok_or(BackendError::Truncated)?;
        match buf {
            None => to.fill(0),
            Some(IoBuf::Guest(buf)) => buf.copy_out(done, to).map_err(|_| BackendError::GuestMemory)?,
            Some(buf) => {
                let bytes = buf.ours().and_then(|bytes| bytes.get(done..done + len));
                to.copy_from_slice(bytes.ok_or(BackendError::Truncated)?);
            }
        }
        Ok(())
    }

    /// `moved` bytes were transferred. True when all of the operation is in place.
    pub(super) fn succeeded(&mut self, moved: u64, buf: Option<&mut IoBuf>) -> Result<bool, BackendError> {
        let nothing = || match self.way {
            Way::Read => BackendError::Truncated,
            _ => io::Error::from(io::ErrorKind::WriteZero).into(),
        };
        // What ends within a block ends with the file, or with the room on it.
        if moved == 0 || !moved.is_multiple_of(self.align.block) {
            return Err(nothing());
        }
        let moved = usize::try_from(moved).unwrap_or(usize::MAX);
        match self.step {
            Step::Choose => {}
            Step::Direct(len) => self.moved(moved.min(len)),
            Step::Get { start, len, at } if moved < len - at => {
                self.step = Step::Get { start, len, at: at + moved };
            }
            Step::Get { start, len: whole, .. } => {
                // Fits: less than a block.
                let skip = (self.offset + self.done - start) as usize;
                let len = ((self.len - self.done).min((whole - skip) as u64)) as usize;
                if self.way == Way::Read {
                    self.deliver(skip, len, buf)?;
                    self.moved(len);
                } else {
                    self.fill(buf.as_deref(), skip, len)?;
                    self.step = Step::Put { start, len: whole, at: 0 };
                }
            }
            Step::Put { start, len, at } if moved < len - at => {
                self.step = Step::Put { start, len, at: at + moved };
            }
            Step::Put { start, len, .. } => {
                let end = (start + len as u64).min(self.offset + self.len);
                self.moved((end - self.offset - self.done) as usize);
            }
        }
        Ok(self.done == self.len)
    }

    fn moved(&mut self, len: usize) {
        self.done += len as u64;
        self.step = Step::Choose;
    }

    /// Bytes of the buffer to the memory they were read for.
    fn deliver(&mut self, skip: usize, len: usize, buf: Option<&mut IoBuf>) -> Result<(), BackendError> {
        let done = self.done as usize;
        let from = self.buffer.get(skip..skip + len).ok_or(BackendError::Truncated)?;
        match buf {
            Some(IoBuf::Guest(buf)) => buf.copy_in(done, from).map_err(|_| BackendError::GuestMemory),
            Some(buf) => {
                let to = buf.ours_mut().and_then(|bytes| bytes.get_mut(done..done + len));
                to.ok_or(BackendError::Truncated)?.copy_from_slice(from);
                Ok(())
            }
            None => Ok(()),
        }
    }
}
