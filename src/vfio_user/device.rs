//! What a session drives: the device behind the wire, and the values that cross the border.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE};

use super::client_fds::ClientFds;

/// A device as the client sees it. Called on the control thread only, one call at a time, in the
/// order in which the client's messages arrived.
///
/// No method may wait: a client gives up after 5 seconds, QEMU with its guest. What has to wait for
/// commands in flight answers [`Answer::Later`] and is finished with
/// [`Session::finish`](super::Session::finish).
pub trait Device {
    /// What region `index` (below [`NUM_REGIONS`](super::messages::NUM_REGIONS)) is;
    /// [`RegionInfo::ABSENT`] for one the device does not have.
    fn region_info(&self, index: u32) -> RegionInfo<'_>;

    /// What interrupt index `index` (below [`NUM_IRQS`](super::messages::NUM_IRQS)) is.
    fn irq_info(&self, index: u32) -> IrqInfo;

    /// Reads `data.len()` bytes at `offset` of a region. The session has checked that the access
    /// lies in the region. `data` comes filled with ones, what a bus gives where nobody answers.
    fn region_read(&mut self, index: u32, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` of a region. The session has checked that the access lies in the
    /// region. Also called for posted writes. A write never fails: the client is told when it is
    /// done, and no more.
    fn region_write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer;

    /// Binds, releases or triggers interrupts; [`Interrupts::set`](super::Interrupts::set) is the
    /// usual answer.
    ///
    /// # Errors
    /// What the client is to be told.
    fn set_irqs(&mut self, request: SetIrqs<'_>) -> Result<(), Errno>;

    /// Adds a range of guest memory. Without `fd` the range exists but cannot be reached (ROM, BARs
    /// of devices, RAM that is not shared). Sums of address, offset and size have been checked.
    ///
    /// # Errors
    /// What the client is to be told, e.g. `EXIST` for an overlap.
    fn dma_map(&mut self, request: DmaMap, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno>;

    /// Takes a range of guest memory away. The answer must wait until nothing touches it any more.
    fn dma_unmap(&mut self, request: DmaUnmap) -> Answer;

    /// Resets the function.
    fn reset(&mut self) -> Answer;
}

/// A range of guest memory that begins to exist. `iova + size` and `offset + size` do not overflow,
/// `size` is not 0; alignment is for the device to judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMap {
    /// First address as the device sees it.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// Offset in the descriptor's file, bytes.
    pub offset: u64,
    /// The device may read it.
    pub read: bool,
    /// The device may write it.
    pub write: bool,
}

/// A range of guest memory that ceases to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaUnmap {
    /// First address as the device sees it.
    pub iova: u64,
    /// Bytes; not 0, and `iova + size` does not overflow, unless `all`.
    pub size: u64,
    /// Every mapping is meant; `iova` and `size` are 0.
    pub all: bool,
}

/// The outcome of a request that may have to wait for commands in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Answer {
    /// Done, or refused.
    Now(Result<(), Errno>),
    /// Begun; the caller owes the session exactly one
    /// [`Session::finish`](super::Session::finish), within the client's 5 seconds.
    Later,
}

/// What the client learns of one region.
#[derive(Clone, Copy, Debug)]
pub struct RegionInfo<'a> {
    /// Bytes; 0 for a region that is not there.
    pub size: u64,
    /// `VFIO_REGION_INFO_FLAG_READ` and `_WRITE`; the flags for mapping are added by the codec.
    pub flags: u32,
    /// The part the client may map, if any.
    ///
    /// One region with a mappable part switches QEMU's posted writes off for the whole device, so
    /// this is for mapped doorbells only.
    pub mmap: Option<RegionMmap<'a>>,
}

impl RegionInfo<'_> {
    /// A region the device does not have; still answered successfully.
    pub const ABSENT: Self = RegionInfo { size: 0, flags: 0, mmap: None };

    /// A region of `size` bytes, read and written by messages only.
    pub const fn trapped(size: u64) -> Self {
        RegionInfo { size, flags: VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE, mmap: None }
    }
}

/// The mappable part of a region.
#[derive(Clone, Copy, Debug)]
pub struct RegionMmap<'a> {
    /// Mapped by the client. Must hold nothing but what the client may see and change.
    pub fd: BorrowedFd<'a>,
    /// Where the region's byte 0 would lie in the descriptor's file.
    pub offset: u64,
    /// Areas that may be mapped; SPDK's initiator takes exactly one.
    pub areas: &'a [SparseArea],
}

/// One area of a region that may be mapped; page aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseArea {
    /// Offset in the region, bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// What the client learns of one interrupt index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// `VFIO_IRQ_INFO_*`.
    pub flags: u32,
    /// Number of interrupts at this index.
    pub count: u32,
}

/// A decoded DEVICE_SET_IRQS. `start` and `count` are as the client sent them: the index's own
/// count is for the receiver to check.
#[derive(Debug)]
pub struct SetIrqs<'a> {
    /// Interrupt index.
    pub index: u32,
    /// First interrupt meant.
    pub start: u32,
    /// Number of interrupts meant.
    pub count: u32,
    /// What to do with them.
    pub action: IrqAction,
    /// With what.
    pub data: IrqData<'a>,
}

/// The action of a DEVICE_SET_IRQS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Hold interrupts back.
    Mask,
    /// Let them through again.
    Unmask,
    /// Raise, or bind what shall be raised.
    Trigger,
}

/// The data of a DEVICE_SET_IRQS.
#[derive(Debug)]
pub enum IrqData<'a> {
    /// The action is for all interrupts meant; with count 0 and Trigger: release the whole index.
    None,
    /// One byte per interrupt meant, not 0 where the action is for it.
    Bool(&'a [u8]),
    /// One descriptor per interrupt meant, or none at all: release those interrupts.
    Eventfds(ClientFds),
}
