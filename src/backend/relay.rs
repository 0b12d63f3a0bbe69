//! A bounced segment of a Copy as one job: reads of its pieces into one buffer, then one write, by a thread that may
//! block. Part of `file_job`.
//!
//! A ring hands a write that its file cannot do without waiting to threads of the kernel, and each such hand-over costs
//! more than copying 64 KiB. There a whole segment is handed to a thread of ours instead, once.
#![expect(unsafe_code, reason = "the probe is a system call")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use smallvec::SmallVec;

use super::file_job::{Call, Iovecs};
use super::image_file::ImageFile;

/// What is read one behind the other: byte offsets in the source, and bytes, none of them 0.
pub type Pieces = SmallVec<[(u64, u64); 1]>;

/// The reads of a relay.
#[derive(Debug)]
pub(super) struct Relay {
    source: Arc<ImageFile>,
    pieces: Pieces,
    /// The piece that is being read, and how many of its bytes have been.
    current: usize,
    got: u64,
    /// Bytes of the buffer that are filled.
    filled: u64,
}

impl Relay {
    /// For pieces that lie in the source and together are as long as the buffer.
    pub(super) fn new(source: Arc<ImageFile>, pieces: Pieces) -> Self {
        Relay { source, pieces, current: 0, got: 0, filled: 0 }
    }

    pub(super) fn source(&self) -> &ImageFile {
        &self.source
    }

    /// Bytes of the buffer that are filled.
    pub(super) fn filled(&self) -> u64 {
        self.filled
    }

    /// The next read, into the rest of `buf`.
    pub(super) fn next_call(&self, buf: &mut [u8], iovecs: &mut Iovecs) -> Call {
        let (offset, len) = self.pieces.get(self.current).copied().unwrap_or_default();
        // At most the length of a buffer in memory.
        let room = buf.get_mut(self.filled as usize..).unwrap_or_default();
        let want = usize::try_from(len - self.got).unwrap_or(usize::MAX).min(room.len());
        iovecs.aim_at(room.as_mut_ptr(), want);
        Call::Preadv { offset: offset + self.got }
    }

    /// The read moved so many bytes; was it the last?
    pub(super) fn moved(&mut self, count: u64) -> bool {
        let len = self.pieces.get(self.current).map_or(0, |piece| piece.1);
        let count = count.min(len - self.got);
        self.got += count;
        self.filled += count;
        if self.got == len {
            self.current += 1;
            self.got = 0;
        }
        self.current >= self.pieces.len()
    }
}

/// Is it open for O_DIRECT?
pub(super) fn is_direct(file: &File) -> bool {
    // SAFETY: no pointer is passed.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    flags != -1 && flags & libc::O_DIRECT != 0
}

/// Does a write to the file have to wait, so that a ring hands it on to a thread? Not one of O_DIRECT, nor one through
/// the page cache of XFS or btrfs; but one through that of ext4, or of a block device.
///
/// Asked with a write that cannot take place: of a byte at an address that is never mapped.
pub(super) fn writes_wait(file: &File) -> bool {
    let nowhere = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
    // SAFETY: the kernel reads the iovec, which lives through the call, and refuses the address in it.
    let answer = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const nowhere, 1, 0, libc::RWF_NOWAIT) };
    let errno = std::io::Error::last_os_error().raw_os_error();
    answer == -1 && errno == Some(libc::EOPNOTSUPP) && !is_direct(file)
}
