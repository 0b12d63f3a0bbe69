//! The device a client sees: PCI function, NVMe controller and guest memory put together.
//!
//! Control thread only. What has to wait for commands in flight (unmap, reset) is kept here until it may be
//! answered, or until its deadline, when memory is taken away from whoever still holds it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX as CONFIG_REGION;

use crate::memory::{DmaSpace, Rights, SharedPage, Unmapping};
use crate::nvme_ctrl::{Controller, InterruptSink};
use crate::pci::{self, ConfigEvent, Function};
use crate::spec::registers::offset::DOORBELLS;
use crate::vfio_user::{
    Answer, Device, DmaMap, DmaUnmap, Errno, Interrupts, IrqInfo, RegionInfo, RegionMmap, SetIrqs, SparseArea,
};

/// Longest wait for commands in flight before an unmap or reset is answered. QEMU gives up at 5 s, and with it its
/// guest.
const PATIENCE: Duration = Duration::from_secs(3);

/// What clients may map of BAR0, if anything: the doorbells. SPDK's initiator takes exactly one area.
const MAPPED: [SparseArea; 1] = [SparseArea { offset: DOORBELLS, size: SharedPage::SIZE as u64 }];

impl InterruptSink for Interrupts {
    fn raise(&self, vector: u16) {
        Interrupts::raise(self, vector);
    }
}

/// Something the client waits for.
enum Wait {
    /// DMA_UNMAP.
    Unmap(Unmapping),
    /// DEVICE_RESET.
    Reset,
}

/// See the module docs.
pub struct NvmeDevice {
    function: Function,
    /// The NVMe controller.
    pub controller: Controller,
    memory: DmaSpace,
    interrupts: Arc<Interrupts>,
    wait: Option<(Wait, Instant)>,
    /// The last client has left and a worker may not know yet; until when that is waited for.
    leaving: Option<Instant>,
}

impl NvmeDevice {
    /// A device in its power-on state.
    pub fn new(
        function: Function,
        controller: Controller,
        memory: DmaSpace,
        interrupts: Arc<Interrupts>,
    ) -> Self {
        Self { function, controller, memory, interrupts, wait: None, leaving: None }
    }

    /// The answer the client is owed, once it may be given.
    pub fn poll_answer(&mut self, now: Instant) -> Option<Result<(), Errno>> {
        let (wait, deadline) = self.wait.as_ref()?;
        let late = now >= *deadline;
        let done = match wait {
            Wait::Unmap(unmapping) => self.controller.is_fenced() && unmapping.released(),
            Wait::Reset => self.controller.is_quiet(),
        };
        if !done && !late {
            return None;
        }
        if !done {
            let revoked = match wait {
                Wait::Unmap(unmapping) => unmapping.revoke(),
                Wait::Reset => self.memory.revoke_pinned(),
            };
            let pinned = revoked.pinned;
            self.controller.fatal(&format!(
                "the image did not answer for {PATIENCE:?}; commands in flight lost {pinned} regions of guest memory"
            ));
            if revoked.held {
                log::error!("the kernel may still write to guest memory, for a direct transfer that hangs");
                self.wait = None;
                return Some(Err(Errno::IO));
            }
        }
        self.wait = None;
        Some(Ok(()))
    }

    /// When [`Self::poll_answer`] or the controller has something to do without further notice.
    pub fn deadline(&self) -> Option<Instant> {
        let answer = self.wait.as_ref().map(|(_, deadline)| *deadline);
        [answer, self.leaving, self.controller.deadline()].into_iter().flatten().min()
    }

    /// May another client come? A worker that has not heard of the last one's leaving would take the memory of the
    /// next one for its queues. Commands in flight do not count: they keep the old memory.
    pub fn is_vacant(&mut self, now: Instant) -> bool {
        if self.leaving.is_some() && self.controller.is_fenced() {
            // No worker looks at a queue of the last client any more, so none takes the zeroes for a new tail.
            self.controller.clear_doorbells();
            self.leaving = None;
        }
        self.leaving = self.leaving.filter(|until| now < *until);
        self.leaving.is_none()
    }

    /// The client has gone: no memory, no interrupts, a controller as after power-on. Images stay as they are.
    pub fn disconnect(&mut self) {
        self.wait = None;
        self.interrupts.release_all();
        self.controller.reset();
        let unmapping = self.memory.unmap_all();
        self.controller.fence();
        self.controller.renew_doorbells();
        self.leaving = Some(Instant::now() + PATIENCE);
        // Nobody is there to hand the pages to others; what is still in flight keeps them mapped until it ends.
        drop(unmapping);
        self.function.reset();
    }

    fn reset_function(&mut self) {
        self.function.reset();
        self.interrupts.clear_pending();
        self.controller.reset();
    }
}

impl Device for NvmeDevice {
    fn region_info(&self, index: u32) -> RegionInfo<'_> {
        match index {
            CONFIG_REGION => RegionInfo::trapped(pci::CONFIG_SIZE as u64),
            bar => match self.function.bar_size(bar) {
                0 => RegionInfo::ABSENT,
                size => {
                    let fd = self.controller.doorbell_file().filter(|_| bar == pci::BAR_REGISTERS);
                    let mmap = fd.map(|fd| RegionMmap { fd, offset: 0, areas: &MAPPED });
                    RegionInfo { mmap, ..RegionInfo::trapped(size) }
                }
            },
        }
    }

    fn irq_info(&self, index: u32) -> IrqInfo {
        self.interrupts.info(index)
    }

    fn region_read(&mut self, index: u32, offset: u64, data: &mut [u8]) {
        match index {
            pci::BAR_REGISTERS => self.controller.bar_read(offset, data),
            pci::BAR_MSIX => self.function.msix_read(offset, data, &self.interrupts.pending_bits()),
            CONFIG_REGION => self.function.config_read(offset, data),
            _ => {}
        }
    }

    fn region_write(&mut self, index: u32, offset: u64, data: &[u8]) {
        match index {
            pci::BAR_REGISTERS => self.controller.bar_write(offset, data),
            pci::BAR_MSIX => self.function.msix_write(offset, data),
            CONFIG_REGION => {
                let events = self.function.config_write(offset, data);
                if events.contains(&ConfigEvent::FunctionLevelReset) {
                    self.reset_function();
                }
            }
            _ => {}
        }
    }

    fn set_irqs(&mut self, request: SetIrqs<'_>) -> Result<(), Errno> {
        self.interrupts.set(request)
    }

    fn dma_map(&mut self, request: DmaMap, fd: Option<OwnedFd>) -> Result<(), Errno> {
        let rights = Rights { read: request.read, write: request.write };
        self.memory
            .map(request.iova, request.size, rights, request.offset, fd)
            .map_err(|error| refused("DMA_MAP", &request, &error))?;
        self.controller.memory_added();
        Ok(())
    }

    fn dma_unmap(&mut self, request: DmaUnmap) -> Answer {
        let unmapping = if request.all {
            self.memory.unmap_all()
        } else {
            match self.memory.unmap(request.iova, request.size) {
                Ok(unmapping) => unmapping,
                Err(error) => return Answer::Now(Err(refused("DMA_UNMAP", &request, &error))),
            }
        };
        self.controller.fence();
        self.wait = Some((Wait::Unmap(unmapping), Instant::now() + PATIENCE));
        Answer::Later
    }

    fn reset(&mut self) -> Answer {
        self.reset_function();
        self.wait = Some((Wait::Reset, Instant::now() + PATIENCE));
        Answer::Later
    }
}

fn refused(what: &str, request: &impl std::fmt::Debug, error: &crate::memory::MapError) -> Errno {
    log::warn!("{what} refused: {error}: {request:x?}");
    Errno::from_raw_os_error(error.errno())
}
