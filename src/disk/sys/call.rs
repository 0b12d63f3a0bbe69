//! The system calls on images, as values, and how the kernel is asked.
#![expect(
    unsafe_code,
    reason = "system calls on iovecs; FICLONERANGE and copy_file_range on ranges have no wrapper"
)]

use std::os::fd::RawFd;

use libc::iovec;

use super::answer;
use super::fiemap::extent_end;

/// One system call on an image. What it transfers, and from which file it copies, is told beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// preadv at a byte offset.
    Preadv {
        /// Byte offset in the file.
        offset: u64,
    },
    /// pwritev2 at a byte offset.
    Pwritev {
        /// Byte offset in the file.
        offset: u64,
        /// With RWF_DSYNC.
        dsync: bool,
    },
    /// fdatasync of the whole file.
    Fdatasync,
    /// fallocate of a range.
    Fallocate {
        /// FALLOC_FL_* bits.
        mode: i32,
        /// Byte offset in the file.
        offset: u64,
        /// Bytes, never 0.
        len: u64,
    },
    /// lseek.
    Seek {
        /// SEEK_DATA, SEEK_HOLE or SEEK_END.
        whence: i32,
        /// Byte offset in the file.
        offset: u64,
    },
    /// FIEMAP: where the extent ends that holds this byte; `offset` itself if there is none.
    ExtentEnd {
        /// Byte offset in the file.
        offset: u64,
        /// Bytes to look at, never 0.
        len: u64,
    },
    /// FICLONERANGE from the source file.
    CloneRange {
        /// Byte offset in the source file.
        from: u64,
        /// Byte offset in the file.
        offset: u64,
        /// Bytes, never 0.
        len: u64,
    },
    /// copy_file_range from the source file.
    CopyRange {
        /// Byte offset in the source file.
        from: u64,
        /// Byte offset in the file.
        offset: u64,
        /// Bytes, never 0; it may move less.
        len: u64,
    },
}

/// Makes one call on `fd`: bytes, an offset or 0, or -errno. `source`: the file a copy comes from.
///
/// # Safety
/// Each iovec leads to memory that stays there during the call; to be written if the call is a read.
pub(in crate::disk) unsafe fn make(call: Call, fd: RawFd, source: RawFd, iovecs: &[iovec]) -> i64 {
    // At most UIO_MAXIOV iovecs; offsets lie in a file.
    let (iov, count) = (iovecs.as_ptr(), iovecs.len() as libc::c_int);
    // SAFETY: the caller answers for the iovecs; other calls are given no memory.
    let result: i64 = unsafe {
        match call {
            Call::Preadv { offset } => libc::preadv(fd, iov, count, offset as i64) as i64,
            Call::Pwritev { offset, dsync } => {
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                libc::pwritev2(fd, iov, count, offset as i64, flags) as i64
            }
            Call::Fdatasync => i64::from(libc::fdatasync(fd)),
            Call::Fallocate { mode, offset, len } => {
                i64::from(libc::fallocate(fd, mode, offset as i64, len as i64))
            }
            Call::Seek { whence, offset } => libc::lseek64(fd, offset as i64, whence),
            Call::ExtentEnd { offset, len } => return extent_end(fd, offset, len),
            Call::CloneRange { from, offset, len } => return clone_range(source, from, fd, offset, len),
            Call::CopyRange { from, offset, len } => {
                return copy_range(source, from as i64, fd, offset as i64, len as usize);
            }
        }
    };
    answer(result)
}

/// FICLONERANGE: 0 or -errno. A length of 0 would mean "to the end": never passed.
pub(in crate::disk) fn clone_range(source: RawFd, from: u64, target: RawFd, offset: u64, len: u64) -> i64 {
    let range = libc::file_clone_range {
        src_fd: i64::from(source),
        src_offset: from,
        src_length: len,
        dest_offset: offset,
    };
    // SAFETY: the kernel reads the struct during the call; no other memory is passed.
    answer(i64::from(unsafe { libc::ioctl(target, libc::FICLONERANGE, &raw const range) }))
}

/// copy_file_range: bytes or -errno.
fn copy_range(source: RawFd, mut from: i64, target: RawFd, mut offset: i64, len: usize) -> i64 {
    // SAFETY: the kernel writes the offsets during the call; no other memory is passed.
    answer(unsafe { libc::copy_file_range(source, &raw mut from, target, &raw mut offset, len, 0) } as i64)
}
