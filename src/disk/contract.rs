//! What a disk promises, and what is asked of it.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use super::{CachedRead, DiskError, How, IoBuf, Lane, Pieces, ResizeError, Tag, Ways};
use crate::memory::Transient;

/// One operation on one image. Offsets and lengths in bytes, of any alignment; a range that does not lie
/// in the image fails with [`DiskError::Truncated`]. With `fua` or `durable` what it changes is durable before completion.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "`offset` and `len` are bytes in the image, `buf` the memory of the transfer"
)]
pub enum Op {
    /// Fills `buf` from `offset`.
    Read { offset: u64, buf: IoBuf },
    /// Writes `buf` at `offset`.
    Write { offset: u64, buf: IoBuf, fua: bool },
    /// All that was completed before is durable when this completes.
    Flush,
    /// Makes the range read as zeroes. `unmap`: blocks may be given back, as a hole.
    WriteZeroes { offset: u64, len: u64, unmap: bool, fua: bool },
    /// Gives the range back; afterwards it reads as zeroes, or as before where the image cannot punch holes.
    Discard { offset: u64, len: u64 },
    /// Succeeds when every byte of the range is allocated; [`DiskError::Deallocated`] otherwise, but only where
    /// [`Disk::allocation_unit`] says that this is known. Changes nothing.
    Probe { offset: u64, len: u64 },
    /// Copies `pieces` of `from`, one behind the other, to `at`. [`DiskError::NoWay`] when `how` does not work here: the
    /// next way is to copy all of it, for some of it may have been copied. Where it is the pair of images that lacks the
    /// way for good and not these ranges (unaligned, overlapping), [`Disk::ways_from`] leaves it out from now on. A
    /// failure on the reading side of [`How::ReadWrite`] is [`DiskError::Source`].
    Copy {
        /// The image to copy from; may be this one, but then the ranges must not overlap, unless it is one piece and
        /// `how` is [`How::MemMove`].
        from: SharedDisk,
        /// What to copy: one piece alone by [`How::Reflink`] or [`How::Offload`].
        pieces: Pieces,
        at: u64,
        how: How,
        /// Of [`How::ReadWrite`], as long as all pieces together.
        buf: Option<IoBuf>,
        durable: bool,
    },
}

impl Op {
    /// Does it change the image (so that a read-only one must refuse it)?
    pub fn is_write(&self) -> bool {
        !matches!(self, Op::Read { .. } | Op::Flush | Op::Probe { .. })
    }

    /// First byte and number of bytes touched; nothing for a Flush. `None`: more than there can be.
    pub fn range(&self) -> Option<(u64, u64)> {
        Some(match self {
            Op::Read { offset, buf } | Op::Write { offset, buf, .. } => (*offset, buf.len() as u64),
            Op::WriteZeroes { offset, len, .. } | Op::Discard { offset, len } | Op::Probe { offset, len } => {
                (*offset, *len)
            }
            Op::Copy { pieces, at, .. } => {
                (*at, pieces.iter().try_fold(0_u64, |sum, piece| sum.checked_add(piece.1))?)
            }
            Op::Flush => (0, 0),
        })
    }

    /// The checks every disk makes before it touches a byte: against its length, and whether it may be written. What is
    /// returned is [`Self::range`].
    ///
    /// # Errors
    /// `ReadOnly` or `Truncated`.
    pub fn check(&self, len: u64, read_only: bool) -> Result<(u64, u64), DiskError> {
        if read_only && self.is_write() {
            return Err(DiskError::ReadOnly);
        }
        let within = |(start, count): (u64, u64), len| start.checked_add(count).is_some_and(|end| end <= len);
        let range = self.range().filter(|range| within(*range, len)).ok_or(DiskError::Truncated)?;
        if let Op::Copy { from, pieces, how, buf, .. } = self {
            let source = from.len();
            let fits = buf.as_ref().is_none_or(|buf| buf.len() as u64 == range.1);
            let has_buf = buf.is_some() == matches!(how, How::ReadWrite { .. });
            if !fits || !has_buf || !pieces.iter().all(|piece| piece.1 > 0 && within(*piece, source)) {
                return Err(DiskError::Truncated);
            }
        }
        Ok(range)
    }

    /// The buffer, for one that is over.
    pub fn into_buf(self) -> Option<IoBuf> {
        match self {
            Op::Read { buf, .. } | Op::Write { buf, .. } => Some(buf),
            Op::Copy { buf, .. } => buf,
            _ => None,
        }
    }
}

/// Data about what an image is made of, for disks that can do more with their own kind than read it.
#[derive(Clone, Copy, Debug)]
pub struct Handle<'a>(Option<&'a dyn Any>);

impl<'a> Handle<'a> {
    /// Nothing that could be passed by: the bytes are to be had by [`Op::Read`] alone.
    pub const OPAQUE: Handle<'static> = Handle(None);

    /// What others of the kind know how to use.
    pub fn of(data: &'a impl Any) -> Self {
        Handle(Some(data))
    }

    /// The data, if it is of this type.
    pub fn get<T: Any>(self) -> Option<&'a T> {
        self.0?.downcast_ref()
    }
}

/// One image: a length and operations on it.
///
/// The contract. Who starts an operation (`start`) checks nothing; the disk checks ranges and protection
/// ([`Op::check`]) and refuses, with nothing changed. Each operation ends exactly once, through the lane it was submitted
/// with. A disk never blocks the thread that submits: what may block it gives to [`Lane::block`]. Several threads submit
/// to one disk at once, each with its own lane. Flush covers what was completed before, on any lane.
pub trait Disk: Send + Sync + Debug {
    /// Length in bytes. Only [`Self::resize`] changes it.
    fn len(&self) -> u64;
    /// No byte at all? (No disk here is.)
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Writes are refused.
    fn read_only(&self) -> bool;
    /// Starts `op`. Its end comes through `lane`: by [`Lane::done`] before this returns, or later.
    fn submit(&self, tag: Tag, op: Op, lane: &mut Lane);
    /// I/O that is over when the call returns.
    fn inline(&self) -> Inline<'_> {
        Inline::None
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
    /// What it is made of. A layer that must see every read leaves it opaque; one that need not answers for the disk
    /// inside.
    fn handle(&self) -> Handle<'_> {
        Handle::OPAQUE
    }
    /// Do both lie in one place, as two that are open on the same file or device do?
    fn is_same_place(&self, other: &Handle<'_>) -> bool {
        let _ = other;
        false
    }
    /// Bytes of a unit in which the image is allocated and given back (a unit written in part counts as a whole), if
    /// [`Op::Probe`] can tell what is; `None` where all of it counts as allocated. Never changes.
    fn allocation_unit(&self) -> Option<u64> {
        None
    }
    /// Ways to copy from what `source` is made of to this image. Cheap: asked for every Copy command.
    fn ways_from(&self, source: &Handle<'_>) -> Ways {
        let _ = source;
        Ways::default()
    }
    /// Gives it another length in bytes, a positive multiple of 512, in the caller's time, which it may take. What is added
    /// reads as zeroes. What is cut off is lost: whoever asks sees to it that no operation is under way there, and that none
    /// follows. One resize at a time.
    ///
    /// # Errors
    /// Why its length stays what it is.
    fn resize(&self, len: u64) -> Result<(), ResizeError> {
        let _ = len;
        Err(ResizeError::Fixed)
    }
    /// Makes all durable that was completed before, as [`Op::Flush`], but in the caller's time, which it may take.
    ///
    /// # Errors
    /// Something may not be.
    fn sync(&self) -> Result<(), DiskError> {
        Ok(())
    }
    /// For people: path or kind, as errors and logs name it.
    fn name(&self) -> &str;
}

impl dyn Disk {
    /// Is all of its I/O done at once?
    pub fn is_immediate(&self) -> bool {
        matches!(self.inline(), Inline::Immediate(_))
    }

    /// Starts an operation: to be called by whoever reaps `lane`, which counts it as in flight until then.
    pub fn start(&self, tag: Tag, op: Op, lane: &mut Lane) {
        self.submit(tag, op, lane);
        // Not before: should that panic, nothing is under way that would ever end.
        lane.begin();
    }
}

/// A shared disk.
pub type SharedDisk = Arc<dyn Disk>;

/// I/O in the caller's time that is over when the call returns, if a disk has some.
#[derive(Clone, Copy)]
pub enum Inline<'a> {
    /// None: all is to be submitted.
    None,
    /// All reads and writes. Then every write is as durable at once as it ever gets.
    Immediate(&'a dyn Immediate),
    /// Reads of what lies in a cache. What does not is to be submitted.
    Cached(&'a dyn Cached),
}

/// Reads and writes that never wait. The caller has checked nothing.
pub trait Immediate: Sync {
    /// Reads from `offset` into all of `to`, which is checked by the caller, afterwards.
    ///
    /// # Errors
    /// `Truncated` where the image ends before.
    fn read(&self, offset: u64, to: &Transient<'_>) -> Result<(), DiskError>;
    /// Writes all of `from` at `offset`; else as [`read`](Self::read).
    ///
    /// # Errors
    /// As there, or `ReadOnly`.
    fn write(&self, offset: u64, from: &Transient<'_>) -> Result<(), DiskError>;
    /// A [`read`](Self::read) of `len` bytes at `offset` follows soon. Does nothing but save time.
    fn prefetch(&self, offset: u64, len: u64);
    /// Moves `len` bytes from `from` of `source` to `offset`, if that is of the same kind. `false` if that did not
    /// happen, or not to its end: then a Copy is to be submitted.
    fn move_from(&self, source: &Handle<'_>, from: u64, offset: u64, len: u64) -> bool;
}

/// Reads of a cache, which fail where they would have to wait.
pub trait Cached: Sync {
    /// May the next read succeed? To be asked once for each, before it.
    fn is_worth_a_try(&self) -> bool;
    /// A read from `offset` into all of `to`, for [`Lane::read_cached`]. `to` is checked by the caller, afterwards.
    fn read<'a>(&'a self, offset: u64, to: &'a Transient<'_>) -> CachedRead<'a>;
}
