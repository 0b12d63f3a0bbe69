//! Guest memory: what the client mapped for DMA, and how a guest address becomes a host buffer.
//!
//! The control thread owns the [`DmaSpace`] and changes it; everybody else reads immutable
//! [`DmaMap`] snapshots. A command in flight pins the regions it touches through its [`GuestBuf`],
//! so that an unmap knows when nothing can reach the memory any more.

mod dma_map;
mod dma_space;
mod guest_buf;
mod region;

pub use dma_map::DmaMap;
pub use dma_space::DmaSpace;
pub use guest_buf::GuestBuf;
pub use region::Region;

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
}
