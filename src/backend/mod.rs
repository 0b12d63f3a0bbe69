//! Bytes in and out of one image. Knows no NVMe: offsets and lengths are bytes, never LBAs.
//!
//! A worker owns one [`engine::Engine`]; it hands an operation to a [`Backend`], which either does it at
//! once (memory) or gives the engine a job for the kernel (file). Completions come back by [`Tag`].

pub mod engine;

use std::fmt::Debug;
use std::sync::Arc;

use crate::memory::GuestBuf;

/// Names an operation in flight; chosen by the submitter, unique among its operations in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// Memory of a transfer: the guest's own, or ours. The operation owns it until it completes.
#[derive(Debug)]
pub enum IoBuf {
    /// Guest memory, pinned.
    Guest(GuestBuf),
    /// A bounce buffer; the transfer covers all of it.
    Pool(Box<[u8]>),
}

/// One operation on one image. Offsets and lengths in bytes, already checked against [`Backend::len`].
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

/// Why an operation failed. The NVMe status is chosen elsewhere, in one place.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The kernel refused or failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A file shorter than its namespace: it was truncated under us.
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
    /// Writes are refused.
    fn read_only(&self) -> bool;
    /// Starts `op`. `Some` when it was done at once; otherwise the engine completes it later.
    fn submit(&self, tag: Tag, op: Op, engine: &mut dyn engine::Engine) -> Option<Completion>;
    /// For people: path or kind, as errors and logs name it.
    fn name(&self) -> &str;
}

/// A shared image.
pub type SharedBackend = Arc<dyn Backend>;
