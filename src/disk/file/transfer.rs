//! A read or write that goes on until all is moved. For a thread that may block.
//!
//! Short ones go on where they ended; what the kernel cannot make durable with the write itself is left to a sync.
#![expect(unsafe_code, reason = "system calls on iovecs")]

use std::io;

use libc::iovec;

use super::image::{Ability, ImageFile};
use crate::disk::sys::Call;
use crate::disk::sys::iovecs::{window, zeroes};
use crate::disk::{DiskError, Stop};

/// What the kernel said to a call: bytes, or errno.
pub(super) type Answered = Result<u64, i32>;

/// Between a file and memory.
pub(super) struct Transfer<'a> {
    pub(super) file: &'a ImageFile,
    pub(super) writes: bool,
    /// Byte offset in the file.
    pub(super) offset: u64,
    pub(super) memory: &'a [iovec],
    /// What is written is to be durable.
    pub(super) durable: bool,
}

impl Transfer<'_> {
    /// The call that it begins with.
    pub(super) fn first(&self) -> Call {
        self.call(0, self.dsync())
    }

    /// When so many bytes are moved.
    fn call(&self, done: u64, dsync: bool) -> Call {
        let offset = self.offset + done;
        if self.writes { Call::Pwritev { offset, dsync } } else { Call::Preadv { offset } }
    }

    /// Does the write itself make durable what is to be?
    fn dsync(&self) -> bool {
        self.durable && self.file.can(Ability::DsyncWrite)
    }

    /// Moves all, or less when nobody will hear of it. `answered`: a call that was made before, which may be the first.
    /// True if a sync is to follow. A failure comes with the bytes that were moved before.
    ///
    /// # Safety
    /// The memory is there as long as this takes, and to be written if it reads.
    pub(super) unsafe fn run(
        &self,
        mut answered: Option<(Call, Answered)>,
        stop: &Stop,
    ) -> Result<bool, (u64, DiskError)> {
        let len: u64 = self.memory.iter().map(|iov| iov.iov_len as u64).sum();
        let (mut done, mut dsync, mut built) = (0, self.dsync(), Vec::new());
        // A dsync write met this: whose it was shows when the write alone is tried.
        let mut full = None;
        while done < len && !stop.is_set() {
            let call = self.call(done, dsync);
            let answer = match answered.take() {
                Some((made, answer)) if made == call => answer,
                _ => {
                    let iovecs = window(self.memory, done as usize, &mut built);
                    // SAFETY: the caller's promise.
                    unsafe { self.file.make(call, self.file, iovecs) }
                }
            };
            let error = match answer {
                // A direct one that ends within a block has met the end of the file, or of the room on the disk.
                Ok(moved) if moved == 0 || self.file.ends_within_a_block(moved) => {
                    let full = io::Error::from(io::ErrorKind::WriteZero);
                    if self.writes { full.into() } else { DiskError::Truncated }
                }
                Ok(moved) => {
                    done += moved.min(len - done);
                    continue;
                }
                Err(libc::EFAULT) => DiskError::GuestMemory,
                Err(libc::EOPNOTSUPP) if dsync => {
                    self.file.remember_lack(Ability::DsyncWrite);
                    dsync = false;
                    continue;
                }
                // No room for this write, or for older data that the dsync wrote back? Only the latter costs the image
                // its word of honour.
                Err(errno @ (libc::ENOSPC | libc::EDQUOT)) if dsync => {
                    full = Some(errno);
                    dsync = false;
                    continue;
                }
                Err(errno) => {
                    if dsync && errno == libc::EIO {
                        self.file.syncs().failed(errno);
                    }
                    DiskError::of_errno(errno)
                }
            };
            return Err((done, error));
        }
        match full {
            // The write had room after all: the refusal was of older data's writeback.
            Some(errno) => {
                self.file.syncs().failed(errno);
                Err((done, DiskError::of_errno(errno)))
            }
            None => Ok(self.durable && !dsync),
        }
    }
}

/// Fills `bytes` from `offset`; else so many have been read, and why no more.
pub(super) fn read_all(file: &ImageFile, offset: u64, bytes: &mut [u8]) -> Result<(), (u64, DiskError)> {
    let memory = &[iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
    let transfer = Transfer { file, writes: false, offset, memory, durable: false };
    // SAFETY: it is ours alone.
    unsafe { transfer.run(None, &Stop::default()) }.map(|_| ())
}

/// Writes `bytes` at `offset`.
pub(super) fn write_all(file: &ImageFile, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
    let memory = &[iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }];
    let transfer = Transfer { file, writes: true, offset, memory, durable: false };
    // SAFETY: nobody writes to it meanwhile.
    unsafe { transfer.run(None, &Stop::default()) }.map(|_| ()).map_err(|(_, error)| error)
}

/// Writes so many zeroes at `offset`.
pub(super) fn write_zeroes(file: &ImageFile, offset: u64, len: u64, stop: &Stop) -> Result<(), DiskError> {
    let mut done = 0;
    while done < len && !stop.is_set() {
        let memory = &*zeroes(len - done);
        let transfer = Transfer { file, writes: true, offset: offset + done, memory, durable: false };
        // SAFETY: they are there for ever, and nobody writes to them.
        unsafe { transfer.run(None, stop) }.map_err(|(_, error)| error)?;
        done += memory.iter().map(|iov| iov.iov_len as u64).sum::<u64>();
    }
    Ok(())
}
