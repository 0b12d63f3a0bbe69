//! A fault of ours must not end the process: QEMU would abort the guest. It ends in Controller Fatal Status.

use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::device::NvmeDevice;
use crate::vfio_user::{Answer, Device, DmaMap, DmaUnmap, Errno, IrqInfo, RegionInfo, SetIrqs};

/// Runs `work`; after a panic the controller is fatal and `None` comes back.
///
/// The state a panic leaves behind is whole in the sense that matters: every room keeps its own invariants,
/// and a fatal controller takes no command until the host resets it.
pub fn guard<R>(device: &mut NvmeDevice, work: impl FnOnce(&mut NvmeDevice) -> R) -> Option<R> {
    let result = catch_unwind(AssertUnwindSafe(|| work(device)));
    if result.is_err() {
        let fatal = AssertUnwindSafe(|| device.controller.fatal("the control thread failed"));
        let _ = catch_unwind(fatal);
    }
    result.ok()
}

/// A device every call of which is guarded.
pub struct Guarded<'a>(pub &'a mut NvmeDevice);

impl Device for Guarded<'_> {
    fn region_info(&self, index: u32) -> RegionInfo<'_> {
        self.0.region_info(index)
    }

    fn irq_info(&self, index: u32) -> IrqInfo {
        self.0.irq_info(index)
    }

    fn region_read(&mut self, index: u32, offset: u64, data: &mut [u8]) {
        guard(self.0, |device| device.region_read(index, offset, data));
    }

    fn region_write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer {
        guard(self.0, |device| device.region_write(index, offset, data)).unwrap_or(Answer::Now(Ok(())))
    }

    fn set_irqs(&mut self, request: SetIrqs<'_>) -> Result<(), Errno> {
        guard(self.0, |device| device.set_irqs(request)).unwrap_or(Err(Errno::IO))
    }

    fn dma_map(&mut self, request: DmaMap, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        guard(self.0, |device| device.dma_map(request, fd)).unwrap_or(Err(Errno::IO))
    }

    fn dma_unmap(&mut self, request: DmaUnmap) -> Answer {
        guard(self.0, |device| device.dma_unmap(request)).unwrap_or(Answer::Now(Err(Errno::IO)))
    }

    fn reset(&mut self) -> Answer {
        guard(self.0, NvmeDevice::reset).unwrap_or(Answer::Now(Err(Errno::IO)))
    }
}
