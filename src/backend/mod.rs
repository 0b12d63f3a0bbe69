//! Bytes in and out of one image. Knows no NVMe: offsets and lengths are bytes, never LBAs.
//!
//! A worker owns one [`engine::Engine`]; it hands an operation to a [`Backend`], which either does it at
//! once (memory) or gives the engine a job for the kernel (file). Completions come back by [`Tag`].
//!
//! Operations in flight have no order among each other: who needs one waits for the completion. A
//! [`Op::Flush`] covers what was *completed* before it was submitted.

pub mod engine;
mod file_job;
mod image_file;
mod io_buf;
mod lock;
mod memory;
mod raw;
mod stall;
mod volatile;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod durability;

use std::fmt::Debug;
use std::sync::Arc;

pub use file_job::{Call, FileJob, JobKind};
pub use image_file::Tap;
pub use io_buf::IoBuf;
pub use memory::MemoryBackend;
pub use raw::{OpenError, RawBackend, RawOptions};
pub use stall::{Gate, StallEngine};
pub use volatile::VolatileLog;

/// Names an operation in flight; chosen by the submitter, unique among its operations in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// One operation on one image. Offsets and lengths in bytes, of any alignment; a range that does not lie
/// in the image fails with [`BackendError::Truncated`].
#[derive(Debug)]
pub enum Op {
    /// Fills `buf` from `offset`.
    Read {
        /// Byte offset in the image.
        offset: u64,
        /// Destination.
        buf: IoBuf,
    },
    /// Writes `buf` at `offset`; with `fua` it is durable before completion.
    Write {
        /// Byte offset in the image.
        offset: u64,
        /// Source.
        buf: IoBuf,
        /// Durable before completion (RWF_DSYNC).
        fua: bool,
    },
    /// All that was completed before is durable when this completes.
    Flush,
    /// Makes the range read as zeroes. `unmap`: blocks may be given back.
    WriteZeroes {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
        /// May punch a hole.
        unmap: bool,
        /// Durable before completion.
        fua: bool,
    },
    /// Gives the range back; afterwards it reads as zeroes, or as before where the image cannot punch holes.
    Discard {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Op {
    /// Does it change the image (so that a read-only one must refuse it)?
    pub fn is_write(&self) -> bool {
        matches!(self, Op::Write { .. } | Op::WriteZeroes { .. } | Op::Discard { .. })
    }

    /// First byte and number of bytes touched; nothing for a Flush.
    fn range(&self) -> (u64, u64) {
        match self {
            Op::Read { offset, buf } | Op::Write { offset, buf, .. } => (*offset, buf.len() as u64),
            Op::WriteZeroes { offset, len, .. } | Op::Discard { offset, len } => (*offset, *len),
            Op::Flush => (0, 0),
        }
    }

    /// The checks every backend makes before it touches a byte.
    fn check(&self, len: u64, read_only: bool) -> Result<(), BackendError> {
        if read_only && self.is_write() {
            return Err(BackendError::ReadOnly);
        }
        let (offset, count) = self.range();
        match offset.checked_add(count) {
            Some(end) if end <= len => Ok(()),
            _ => Err(BackendError::Truncated),
        }
    }

    /// The buffer, for a completion that was refused.
    fn into_buf(self) -> Option<IoBuf> {
        match self {
            Op::Read { buf, .. } | Op::Write { buf, .. } => Some(buf),
            _ => None,
        }
    }
}

/// Why an operation failed. The NVMe status is chosen elsewhere, in one place.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The kernel refused or failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A range beyond the image, or a file shorter than its namespace: it was truncated under us.
    #[error("the image ends before the range does")]
    Truncated,
    /// The guest pages of the transfer are gone (EFAULT).
    #[error("guest memory of the transfer is gone")]
    GuestMemory,
    /// Write to a read-only image.
    #[error("the image is read-only")]
    ReadOnly,
}

/// The end of one operation; the buffer comes back to its submitter.
#[derive(Debug)]
pub struct Completion {
    /// The tag of the submission.
    pub tag: Tag,
    /// Success, or why not. After a failed write the range's content is undefined.
    pub result: Result<(), BackendError>,
    /// The buffer of a Read or Write.
    pub buf: Option<IoBuf>,
}

/// One image: a length and operations on it.
pub trait Backend: Send + Sync + Debug {
    /// Length in bytes.
    fn len(&self) -> u64;
    /// No byte at all? (No backend here opens an empty image.)
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Writes are refused.
    fn read_only(&self) -> bool;
    /// Starts `op`. `Some` when it was done at once; otherwise the engine completes it later.
    fn submit(&self, tag: Tag, op: Op, engine: &mut dyn engine::Engine) -> Option<Completion>;
    /// For people: path or kind, as errors and logs name it.
    fn name(&self) -> &str;
}

/// A shared image.
pub type SharedBackend = Arc<dyn Backend>;
