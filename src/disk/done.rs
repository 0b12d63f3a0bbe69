//! The end of an operation, and by what way bytes go from one image to another.

use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;

use super::{DiskError, IoBuf};

/// Names an operation in flight; chosen by the submitter, unique among its operations in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// The end of one operation; the buffer comes back to its submitter.
#[derive(Debug)]
pub struct Done {
    /// The tag of the submission.
    pub tag: Tag,
    /// Success and how it came about, or why not. After a failed write the range's content is undefined.
    pub result: Result<Moved, DiskError>,
    /// The buffer of a Read, Write or Copy.
    pub buf: Option<IoBuf>,
}

/// Is a lane given up? Then nobody will hear of the end of what its threads do.
#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// To be asked between two calls that may take long.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What an operation that succeeded did with its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Just what it was asked for: no Copy.
    Plain,
    /// Moved within the memory of this process.
    MemMove,
    /// Now share blocks with their source.
    Shared,
    /// Copied by the kernel, with copy_file_range. A file system that can share blocks may have done that instead.
    KernelCopy,
    /// Read into a buffer and written.
    ReadWrite,
}

/// Byte offsets in a source, and bytes, none of them 0: what is copied, one behind the other.
pub type Pieces = SmallVec<[(u64, u64); 1]>;

/// A way to copy from one image to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Within the memory of this process; done at once, in the submitter's time: the caller cuts it into slices.
    /// Overlapping ranges are moved as memmove does.
    MemMove,
    /// The file system shares the blocks (FICLONERANGE). Offsets and length must be aligned, except that the
    /// length may end with both files. The kernel writes dirty pages of the source back first, which takes its
    /// time and cannot be cancelled: the caller caps the length. It also drops the destination's page cache,
    /// so reads through that and O_DIRECT ones both see the new blocks.
    Reflink,
    /// copy_file_range, holes of the source made holes of the destination. A file system that can share
    /// blocks does so here as well, for the aligned part of a range: see [`Ways::offload_clones`].
    Offload,
    /// Read into the Copy's buffer and written, by a thread that may block: one operation where a Read and a Write
    /// would cost more. What it leaves is allocated. Where `or_kernel` allows it and that costs less, copy_file_range
    /// does it without the buffer.
    ReadWrite {
        /// The kernel may copy it instead.
        or_kernel: bool,
    },
}

/// Which ways lead from one image to another, as far as is known; what was refused for good is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// [`How::MemMove`] works.
    pub memmove: bool,
    /// [`How::Reflink`] works for ranges aligned to so many bytes.
    pub reflink: Option<u64>,
    /// [`How::Offload`] works.
    pub offload: bool,
    /// And is worth more than reading and writing (it clones, or a server does it).
    pub offload_pays: bool,
    /// And shares blocks wherever the ranges are aligned: the kernel cannot be asked to copy instead.
    pub offload_clones: bool,
    /// [`How::ReadWrite`] works, and costs less than a Read and a Write.
    pub read_write: bool,
}
