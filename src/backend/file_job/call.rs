//! The system calls that jobs are made of, and what jobs are for.

use crate::backend::Op;

/// One system call of a job; its buffers are [`FileJob::iovecs`](super::FileJob::iovecs), its file
/// [`FileJob::fd`](super::FileJob::fd).
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
    /// lseek; on the source file of a copy, or the file of a probe.
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
    /// FICLONERANGE from [`FileJob::source_fd`](super::FileJob::source_fd).
    CloneRange {
        /// Byte offset in the source file.
        from: u64,
        /// Byte offset in the file.
        offset: u64,
        /// Bytes, never 0.
        len: u64,
    },
    /// copy_file_range from [`FileJob::source_fd`](super::FileJob::source_fd).
    CopyRange {
        /// Byte offset in the source file.
        from: u64,
        /// Byte offset in the file.
        offset: u64,
        /// Bytes, never 0; it may move less.
        len: u64,
    },
    /// No call: another operation on the image goes first. The waker of `FileJob::waked_by` tells when to ask for the next
    /// call again; or `FileJob::sleep` does, on a thread that may.
    Wait,
}

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// [`Op::Read`](crate::backend::Op::Read)
    Read,
    /// [`Op::Write`](crate::backend::Op::Write)
    Write,
    /// [`Op::Flush`](crate::backend::Op::Flush)
    Flush,
    /// [`Op::WriteZeroes`](crate::backend::Op::WriteZeroes)
    WriteZeroes,
    /// [`Op::Discard`](crate::backend::Op::Discard)
    Discard,
    /// [`Op::CopyFrom`](crate::backend::Op::CopyFrom)
    Copy,
    /// [`Op::Probe`](crate::backend::Op::Probe)
    Probe,
    /// [`Op::Relay`](crate::backend::Op::Relay)
    Relay,
}

impl JobKind {
    /// What a job for this operation is for.
    pub(in crate::backend) fn of(op: &Op) -> Self {
        match op {
            Op::Read { .. } => JobKind::Read,
            Op::Write { .. } => JobKind::Write,
            Op::Flush => JobKind::Flush,
            Op::WriteZeroes { .. } => JobKind::WriteZeroes,
            Op::Discard { .. } => JobKind::Discard,
            Op::CopyFrom { .. } | Op::MoveFrom { .. } => JobKind::Copy,
            Op::Probe { .. } => JobKind::Probe,
            Op::Relay { .. } => JobKind::Relay,
        }
    }

    /// Made for a thread: of calls for which a ring has no opcode, or that it would hand to one anyway.
    pub(in crate::backend) fn is_beside_a_ring(self) -> bool {
        matches!(self, JobKind::Copy | JobKind::Probe | JobKind::Relay)
    }
}
