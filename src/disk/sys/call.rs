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
#[expect(missing_docs, reason = "byte offsets in the file, `from` in the source; `len` in bytes, never 0")]
pub enum Call {
    Preadv {
        offset: u64,
    },
    /// pwritev2; `dsync`: with RWF_DSYNC.
    Pwritev {
        offset: u64,
        dsync: bool,
    },
    Fdatasync,
    /// `mode`: FALLOC_FL_* bits.
    Fallocate {
        mode: i32,
        offset: u64,
        len: u64,
    },
    /// lseek; `whence`: SEEK_DATA or SEEK_HOLE.
    Seek {
        whence: i32,
        offset: u64,
    },
    /// FIEMAP of so many bytes: where the extent ends that holds the first; `offset` itself if there is none.
    ExtentEnd {
        offset: u64,
        len: u64,
    },
    /// FICLONERANGE.
    CloneRange {
        from: u64,
        offset: u64,
        len: u64,
    },
    /// copy_file_range, which may move less.
    CopyRange {
        from: u64,
        offset: u64,
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
