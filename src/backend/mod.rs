//! Bytes in and out of one image. Knows no NVMe: offsets and lengths are bytes, never LBAs.
//!
//! A worker owns one [`engine::Engine`]; it hands an operation to a [`Backend`], which either does it at
//! once (memory) or gives the engine a job for the kernel (file). Completions come back by [`Tag`].
//!
//! Operations in flight have no order among each other: who needs one waits for the completion. A
//! [`Op::Flush`] covers what was *completed* before it was submitted.

mod align;
mod backing;
mod buffer;
mod cache;
mod copy_steps;
pub mod engine;
mod extents;
mod failures;
mod file_job;
mod format;
mod gather;
mod huge_pages;
mod image_file;
mod io_buf;
mod lock;
mod memory;
mod open;
mod page_cache;
mod page_map;
mod raw;
mod relay;
mod shortcut;
mod slab;
mod stall;
mod turns;
mod uneven;
mod volatile;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod copying;
#[cfg(test)]
mod durability;
#[cfg(test)]
mod places;

use std::fmt::Debug;
use std::sync::Arc;

use crate::memory::Transient;
pub use buffer::Buffer;
pub use cache::CacheMode;

pub use file_job::{Call, FileJob, JobKind};
pub use gather::{Gather, Part};
pub use huge_pages::HugePages;
pub use image_file::Tap;
pub use io_buf::IoBuf;
pub use memory::MemoryBackend;
pub use open::{OpenError, RawOptions, is_same_image};
pub use page_cache::TryRead;
pub use raw::RawBackend;
pub use relay::Pieces;
pub use slab::Slab;
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
    /// Succeeds when every byte of the range is allocated; [`BackendError::Deallocated`] otherwise, but only where
    /// [`Backend::allocation_unit`] says that this is known. Changes nothing.
    Probe {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Copies from `source` without passing through a buffer of ours; [`BackendError::NoShortcut`] when that
    /// does not work here. Nothing has changed then, and where it is the pair of images that lacks the way and
    /// not these ranges (unaligned, overlapping), [`Backend::shortcuts_from`] leaves it out from now on.
    CopyFrom {
        /// The image to copy from; may be this one, but then the ranges must not overlap, unless `how` is
        /// [`Shortcut::MemMove`].
        source: SharedBackend,
        /// Byte offset in `source`.
        from: u64,
        /// Byte offset in this image.
        offset: u64,
        /// Bytes.
        len: u64,
        /// By which way.
        how: Shortcut,
    },
    /// [`Op::CopyFrom`] by [`Shortcut::MemMove`] of several pieces, one behind the other: what is between two of them costs
    /// more than a short piece does. None of them may overlap the destination.
    MoveFrom {
        /// The image to copy from; may be this one.
        source: SharedBackend,
        /// What to move: `len` bytes together.
        pieces: Pieces,
        /// Byte offset in this image.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Reads `pieces` of `source` into `buf`, one behind the other, then writes `buf` at `offset`: all in one go, where
    /// that costs less than a [`Op::Read`] and a [`Op::Write`] ([`Shortcuts::relay`]); or has the kernel copy them, where
    /// `offload` allows it and that costs still less. A failure on the reading side is [`BackendError::Source`]; what lies
    /// at `offset` is undefined then, as after any other.
    Relay {
        /// The image to read from; may be this one.
        source: SharedBackend,
        /// What to read: together as long as `buf`.
        pieces: Pieces,
        /// Byte offset in this image.
        offset: u64,
        /// On the way.
        buf: IoBuf,
        /// Durable before completion.
        fua: bool,
        /// The kernel may copy them without `buf`.
        offload: bool,
    },
}

/// A way to copy between two images without passing through a buffer of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortcut {
    /// Within the memory of this process; done at once, in the submitter's time: the caller cuts it into slices.
    /// Overlapping ranges are moved as memmove does.
    MemMove,
    /// The file system shares the blocks (FICLONERANGE). Offsets and length must be aligned, except that the
    /// length may end with both files. The kernel writes dirty pages of the source back first, which takes its
    /// time and cannot be cancelled: the caller caps the length. It also drops the destination's page cache,
    /// so reads through that and O_DIRECT ones both see the new blocks.
    Reflink,
    /// copy_file_range, holes of the source made holes of the destination. A file system that can share
    /// blocks does so here as well, for the aligned part of a range: see [`Shortcuts::offload_clones`].
    Offload,
}

/// Which shortcuts lead from one image to another, as far as is known; what was refused once is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortcuts {
    /// [`Shortcut::MemMove`] works.
    pub memmove: bool,
    /// [`Shortcut::Reflink`] works for ranges aligned to so many bytes.
    pub reflink: Option<u64>,
    /// [`Shortcut::Offload`] works.
    pub offload: bool,
    /// And is worth more than reading and writing (it clones, or a server does it).
    pub offload_pays: bool,
    /// And shares blocks wherever the ranges are aligned: the kernel cannot be asked to copy instead. What was
    /// moved by it is then to be reported as shared, not as copied.
    pub offload_clones: bool,
    /// [`Op::Relay`] works, and costs less than reading and writing.
    pub relay: bool,
}

/// What an image is made of, as far as another one may copy from it without a buffer.
#[derive(Clone, Copy, Debug)]
pub enum Nature<'a> {
    /// Memory of this process.
    Memory(&'a MemoryBackend),
    /// A file, byte for byte.
    File(&'a RawBackend),
    /// Nothing that could be passed by: its bytes are to be had by [`Op::Read`] alone.
    Opaque,
}

impl Op {
    /// Does it change the image (so that a read-only one must refuse it)?
    pub fn is_write(&self) -> bool {
        !matches!(self, Op::Read { .. } | Op::Flush | Op::Probe { .. })
    }

    /// First byte and number of bytes touched; nothing for a Flush.
    fn range(&self) -> (u64, u64) {
        match self {
            Op::Read { offset, buf } | Op::Write { offset, buf, .. } | Op::Relay { offset, buf, .. } => {
                (*offset, buf.len() as u64)
            }
            Op::WriteZeroes { offset, len, .. }
            | Op::Discard { offset, len }
            | Op::Probe { offset, len }
            | Op::CopyFrom { offset, len, .. }
            | Op::MoveFrom { offset, len, .. } => (*offset, *len),
            Op::Flush => (0, 0),
        }
    }

    /// The checks every backend makes before it touches a byte.
    fn check(&self, len: u64, read_only: bool) -> Result<(), BackendError> {
        if read_only && self.is_write() {
            return Err(BackendError::ReadOnly);
        }
        let (offset, count) = self.range();
        let lies_within = |from: u64, len: u64| from.checked_add(count).is_some_and(|end| end <= len);
        let source_has_it = match self {
            Op::CopyFrom { source, from, .. } => lies_within(*from, source.len()),
            Op::Relay { source, pieces, .. } | Op::MoveFrom { source, pieces, .. } => {
                let (source, mut sum) = (source.len(), 0_u64);
                let inside = |&(from, len): &(u64, u64)| {
                    len > 0 && from.checked_add(len).is_some_and(|end| end <= source)
                };
                let mut add = |len| sum.checked_add(len).map(|more| sum = more).is_some();
                pieces.iter().all(|piece| inside(piece) && add(piece.1)) && sum == count
            }
            _ => true,
        };
        if source_has_it && lies_within(offset, len) { Ok(()) } else { Err(BackendError::Truncated) }
    }

    /// The buffer, for a completion that was refused.
    fn into_buf(self) -> Option<IoBuf> {
        match self {
            Op::Read { buf, .. } | Op::Write { buf, .. } | Op::Relay { buf, .. } => Some(buf),
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
    /// [`Op::CopyFrom`] or [`Op::Relay`] by a way that does not lead from this source to this image. Nothing has changed.
    #[error("there is no such shortcut between the two images")]
    NoShortcut,
    /// [`Op::Probe`] of a range with a byte that was never written, or has been given back.
    #[error("a part of the range is not allocated")]
    Deallocated,
    /// The reading side of [`Op::Relay`].
    #[error("reading what is to be copied: {error}")]
    Source {
        /// Bytes that had been read.
        at: u64,
        /// Why it went no further.
        error: Box<BackendError>,
    },
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
    /// The buffer of a Read, Write or Relay.
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
    /// Does it do [`read_now`](Self::read_now) and [`write_now`](Self::write_now)? Then every write is as durable at
    /// once as it ever gets.
    fn is_immediate(&self) -> bool {
        false
    }
    /// Reads from `offset` into all of `to` before it returns. `Truncated` where the image ends before; `to` is checked
    /// by the caller, afterwards. Called only where [`is_immediate`](Self::is_immediate).
    fn read_now(&self, offset: u64, to: &Transient<'_>) -> Result<(), BackendError> {
        let _ = (offset, to);
        Err(BackendError::Truncated)
    }
    /// Writes all of `from` at `offset` before it returns; else as [`read_now`](Self::read_now).
    fn write_now(&self, offset: u64, from: &Transient<'_>) -> Result<(), BackendError> {
        let _ = (offset, from);
        Err(BackendError::Truncated)
    }
    /// May a read of [`to_try`](Self::to_try) succeed? To be asked once for each, before it.
    fn may_try_read(&self) -> bool {
        false
    }
    /// A read from `offset` into all of `to`, to be tried: it fails where it would have to wait for anything, or where
    /// anything is wrong with it, and is then to be submitted. `to` is checked by the caller, afterwards.
    fn to_try<'a>(&'a self, offset: u64, to: &'a Transient<'_>) -> Option<TryRead<'a>> {
        let _ = (offset, to);
        None
    }
    /// A [`read_now`](Self::read_now) of `len` bytes at `offset` follows soon. Does nothing but save time.
    fn prefetch(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }

    /// Moves `len` bytes from `from` of `source` to `offset` before it returns, as [`Op::CopyFrom`] in memory would, if
    /// both are memory. `false` if that did not happen, or not to its end: then the operation is to be submitted.
    fn move_now(&self, source: &dyn Backend, from: u64, offset: u64, len: u64) -> bool {
        let _ = (source, from, offset, len);
        false
    }

    /// May what was written be lost with the power until a Flush?
    fn volatile_cache(&self) -> bool {
        true
    }
    /// Do its transfers go past the page cache? Then the kernel moves no byte of them in the submitter's time.
    fn is_direct(&self) -> bool {
        false
    }
    /// Does [`Op::Discard`] leave zeroes, and may [`Op::WriteZeroes`] give blocks back?
    fn unmaps(&self) -> bool {
        true
    }
    /// What it is made of. A decorator that must see every read leaves it [`Nature::Opaque`]; one that need not
    /// answers for the image inside.
    fn nature(&self) -> Nature<'_> {
        Nature::Opaque
    }
    /// Do both lie in one place, as two that are open on the same file or device do?
    fn is_same_image(&self, other: &dyn Backend) -> bool {
        let _ = other;
        false
    }
    /// Bytes of a unit in which the image is allocated and given back (a unit written in part counts as a whole), if
    /// [`Op::Probe`] can tell what is; `None` where all of it counts as allocated. Never changes.
    fn allocation_unit(&self) -> Option<u64> {
        None
    }
    /// Ways to copy from `source` to this image ([`Op::CopyFrom`]). Cheap: asked for every Copy command.
    fn shortcuts_from(&self, source: &dyn Backend) -> Shortcuts {
        let _ = source;
        Shortcuts::default()
    }
    /// For people: path or kind, as errors and logs name it.
    fn name(&self) -> &str;
}

/// A shared image.
pub type SharedBackend = Arc<dyn Backend>;
