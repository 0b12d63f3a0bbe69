//! Guest memory: what the client mapped for DMA, and how a guest address becomes a host buffer.
//!
//! The control thread owns the [`DmaSpace`] and changes it; everybody else reads immutable
//! [`DmaMap`] snapshots. A command in flight pins the regions it touches through its [`GuestBuf`],
//! so that an unmap knows when nothing can reach the memory any more.
//!
//! Taking memory away, in the order a session does it:
//! 1. [`DmaSpace::unmap`] takes the region out of the published map and marks it removed: from then on
//!    no pin can be taken, not even through a stale snapshot.
//! 2. A fence makes every worker drop its cached snapshot: small unpinned accesses (SQEs, CQEs) are over.
//! 3. [`Unmapping::released`] says when the last transfer is over; the `on_release` hook announces it.
//! 4. At the deadline [`Unmapping::revoke`] puts an empty file where the client's was, whoever is late.
//!
//! A reset of the function takes nothing out of the table. It ends an [`Epoch`]: the queues of the time
//! before find an empty table, and [`DmaSpace::take_back`] is for who had looked at it earlier.
//!
//! The guest changes its memory while we look at it, and the client may take the pages away: every access is
//! a volatile copy or an atomic, and a SIGBUS inside a region kills the region, not the process (`sigbus`).

mod backing;
mod dma_map;
mod dma_space;
mod eventfd;
mod guest_buf;
mod map_error;
mod prefetch;
pub mod prp;
mod region;
pub mod sgl;
mod shared_page;
mod sigbus;
#[cfg(test)]
pub(crate) mod testing;
mod transient;
mod unblock;
mod words;

pub use dma_map::DmaMap;
pub use dma_space::{DmaLimits, DmaSpace, Epoch, Revoked, Unmapping};
pub use eventfd::EventfdSignal;
pub use guest_buf::{GuestBuf, MAX_IOVECS};
pub use map_error::MapError;
pub use prefetch::{LINE, prefetch};
pub use prp::PrpError;
pub use region::{Region, Rights};
pub use sgl::SglError;
pub use shared_page::SharedPage;
pub use transient::Transient;
pub use unblock::unblock;
pub use words::Words;

/// What the controller is about to do with guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads guest memory (host to controller: Write data, PRP lists, SQEs).
    Read,
    /// The device writes guest memory (controller to host: Read data, CQEs).
    Write,
}

/// Why a guest address range cannot be used. The range may lie across several regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// No region covers (all of) the range, or address + length wraps.
    #[error("guest address {0:#x} is not mapped")]
    Unmapped(u64),
    /// The client mapped the region without this right.
    #[error("guest address {0:#x} does not allow this access")]
    Denied(u64),
    /// The region came without a descriptor (guest RAM that is not shared with this process).
    #[error("guest address {0:#x} lies in memory that was mapped without a descriptor")]
    NoDescriptor(u64),
    /// The region's pages are gone: its file shrank under us, or it was revoked.
    #[error("the memory behind guest address {0:#x} is gone")]
    Gone(u64),
    /// The buffer would need more than [`MAX_IOVECS`] pieces; the address is the one that did not fit.
    #[error("the buffer has too many pieces at guest address {0:#x}")]
    Fragmented(u64),
}
