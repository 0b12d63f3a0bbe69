//! Bytes in and out of one image. Knows no NVMe: offsets and lengths are bytes, never LBAs.
//!
//! A worker owns one [`Lane`], what its thread lends its disks; it starts operations on [`Disk`]s,
//! each of which either is done at once (memory) or handed to the lane: to the kernel's ring, or to a thread that may block.
//! What is done comes back by [`Tag`].
//!
//! Operations in flight have no order among each other: who needs one waits for the end of the one before. A
//! [`Op::Flush`] covers what was *completed* before it was submitted.

mod buf;
mod contract;
mod done;
mod error;
mod file;
mod lane;
#[cfg(any(test, feature = "testing"))]
mod layers;
mod memory;
mod sys;

#[cfg(test)]
mod tests;

pub use buf::{Buffer, IoBuf, Part, Slab, SplitBuffer};
pub use contract::{Cached, Disk, Handle, Immediate, Inline, Op, SharedDisk};
pub use done::{Done, How, Moved, Pieces, Stop, Tag, Ways};
pub use error::{DiskError, ResizeError};
pub use file::{CacheMode, FileDisk, FileOptions, OpenError, OpenFault, is_same_image};
pub use lane::{CachedRead, Inbox, Lane, LaneKind, Work, probe};
#[cfg(any(test, feature = "testing"))]
pub use layers::{Delay, Gate, Stall, VolatileLog};
pub use memory::{HugePages, MemoryDisk};
pub use sys::{Call, Tap, Waker};
