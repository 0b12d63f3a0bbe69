//! The device a client sees: PCI function, NVMe controller and guest memory put together.
//!
//! Control thread only. What has to wait for commands in flight (an unmap, a reset, Bus Master Enable
//! cleared) is kept here until it may be answered, or until its deadline, when memory is taken away from
//! whoever still holds it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX as CONFIG_REGION;

use crate::memory::{DmaSpace, Revoked, Rights, SharedPage, Unmapping};
use crate::nvme_ctrl::{Controller, InterruptSink};
use crate::pci::{self, ConfigEvent, Function};
use crate::spec::registers::offset::DOORBELLS;
use crate::vfio_user::{
    Answer, Device, DmaMap, DmaUnmap, Errno, Interrupts, IrqInfo, RegionInfo, RegionMmap, SetIrqs, SparseArea,
};

/// Longest wait for commands in flight before an unmap or reset is answered. QEMU gives up at 5 s, and with
/// it its guest.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long the commands of a client that has left may go on with its memory, while the next one waits at the
/// door. Nobody wants to know how they end; but what ends by itself ends well.
const GRACE: Duration = Duration::from_millis(500);

/// While the last transfers are waited for that nobody announces.
const GLANCE: Duration = Duration::from_millis(1);

/// What clients may map of BAR0, if anything: the doorbells. SPDK's initiator takes exactly one area.
const MAPPED: [SparseArea; 1] = [SparseArea { offset: DOORBELLS, size: SharedPage::SIZE as u64 }];

impl InterruptSink for Interrupts {
    fn raise(&self, vector: u16) {
        Interrupts::raise(self, vector);
    }

    fn raise_at_once(&self, vector: u16) {
        Interrupts::raise_at_once(self, vector);
    }
}

/// Something the client waits for.
enum Wait {
    /// DMA_UNMAP.
    Unmap(Unmapping),
    /// DEVICE_RESET or a function level reset.
    Reset,
    /// Bus Master Enable was cleared, or D3hot entered.
    OffBus,
}

/// A client that has left, and of whose memory somebody may not know yet that it is gone.
struct Leaving {
    memory: Unmapping,
    since: Instant,
}

/// See the module docs.
pub struct NvmeDevice {
    function: Function,
    /// The NVMe controller.
    pub controller: Controller,
    memory: DmaSpace,
    interrupts: Arc<Interrupts>,
    wait: Option<(Wait, Instant)>,
    /// An unmap has met its deadline, and what made it wait may not be over yet. Those that follow do not
    /// wait again: QEMU sends several at once, and gives up 5 s after the first.
    impatient: bool,
    leaving: Option<Leaving>,
}

impl NvmeDevice {
    /// A device in its power-on state.
    pub fn new(
        function: Function,
        controller: Controller,
        memory: DmaSpace,
        interrupts: Arc<Interrupts>,
    ) -> Self {
        Self { function, controller, memory, interrupts, wait: None, impatient: false, leaving: None }
    }

    /// The answer the client is owed, once it may be given.
    pub fn poll_answer(&mut self, now: Instant) -> Option<Result<(), Errno>> {
        let (wait, deadline) = self.wait.as_ref()?;
        let still = self.controller.is_still();
        let done = match wait {
            Wait::Unmap(unmapping) => still && unmapping.released(),
            Wait::Reset => self.controller.is_quiet(),
            Wait::OffBus => still && self.memory.is_released(),
        };
        if !done && now < *deadline {
            return None;
        }
        let (wait, _) = self.wait.take()?;
        if matches!(wait, Wait::Reset) {
            // What a worker raised until it heard of it.
            self.interrupts.clear_pending();
        }
        let revoked = if done { Revoked::default() } else { self.revoke(wait) };
        if revoked.held {
            log::error!("the kernel may still write to guest memory, for a direct transfer that hangs");
            return Some(Err(Errno::IO));
        }
        Some(Ok(()))
    }

    /// At the deadline: takes the memory that `wait` is about from commands in flight, and from workers that
    /// are late.
    fn revoke(&mut self, wait: Wait) -> Revoked {
        let late = !self.controller.is_fenced();
        let revoked = match &wait {
            Wait::Unmap(unmapping) => {
                self.impatient = true;
                unmapping.revoke()
            }
            Wait::Reset => self.memory.take_back(late),
            Wait::OffBus => {
                if late {
                    // In the middle of its turn it would go on with its queues.
                    self.controller.set_epoch(self.memory.begin_epoch());
                }
                self.memory.take_back(late)
            }
        };
        let lost = revoked.pinned;
        match wait {
            // The host asked for the end of its commands.
            Wait::Reset => {
                log::error!(
                    "reset after {PATIENCE:?}, with commands in flight that hold {lost} regions of guest memory"
                );
            }
            // No command has lost anything. Should a worker that is late touch the memory, it will say so.
            Wait::Unmap(_) if lost == 0 => {
                log::warn!("guest memory was unmapped while a worker was in the middle of something");
            }
            Wait::Unmap(_) | Wait::OffBus => self.controller.fatal(&format!(
                "commands in flight did not end for {PATIENCE:?} and lost {lost} regions of guest memory"
            )),
        }
        revoked
    }

    /// When [`Self::poll_answer`], [`Self::is_vacant`] or the controller has something to do without further
    /// notice.
    pub fn deadline(&self) -> Option<Instant> {
        let answer = self.wait.as_ref().map(|(wait, deadline)| match wait {
            Wait::OffBus => (*deadline).min(Instant::now() + GLANCE),
            Wait::Unmap(_) | Wait::Reset => *deadline,
        });
        let leaving = self.leaving.as_ref().map(|leaving| leaving.since + self.grace(leaving));
        [answer, leaving, self.controller.deadline()].into_iter().flatten().min()
    }

    /// May another client come? Not while anybody could still reach the memory of the last one, which the
    /// next one may have for its own. (Commands in flight go on without it; the controller becomes ready
    /// after them.)
    pub fn is_vacant(&mut self, now: Instant) -> bool {
        let Some(leaving) = &self.leaving else { return true };
        let reached = !self.controller.is_fenced() || !leaving.memory.released();
        if reached {
            if now < leaving.since + self.grace(leaving) {
                return false;
            }
            let Revoked { pinned, held } = leaving.memory.revoke();
            log::warn!(
                "commands of the client that has gone are still in flight; they held {pinned} regions of its memory"
            );
            if held {
                log::error!("the kernel may still write to its memory, for a direct transfer that hangs");
            }
        }
        self.leaving = None;
        // What workers did until they heard of it.
        self.interrupts.clear_pending();
        self.controller.clear_doorbells();
        true
    }

    /// How long a client that has left is waited for.
    fn grace(&self, leaving: &Leaving) -> Duration {
        // What the kernel has, and what a worker does in its turn, ends by itself or not at all.
        let short = self.controller.is_fenced() && !leaving.memory.is_held();
        if short { GRACE } else { PATIENCE }
    }

    /// The client has gone: no memory, no interrupts, a controller as after power-on. Images stay as they
    /// are.
    pub fn disconnect(&mut self) {
        self.interrupts.release_all();
        let mut memory = self.memory.unmap_all();
        if let Some((Wait::Unmap(unmapping), _)) = self.wait.take() {
            memory.add(unmapping);
        }
        self.begin_reset();
        self.controller.renew_doorbells();
        self.leaving = Some(Leaving { memory, since: Instant::now() });
    }

    /// Function and controller are as after power-on; commands in flight go on until the controller is quiet.
    pub fn begin_reset(&mut self) {
        self.function.reset();
        self.controller.reset(self.memory.begin_epoch());
    }

    /// Answers when what `wait` is for has come, perhaps now.
    fn answer_after(&mut self, wait: Wait) -> Answer {
        if self.impatient && self.controller.is_quiet() && self.controller.is_fenced() {
            self.impatient = false;
        }
        let patience = match wait {
            Wait::Unmap(_) if self.impatient => Duration::ZERO,
            _ => PATIENCE,
        };
        let now = Instant::now();
        self.wait = Some((wait, now + patience));
        self.poll_answer(now).map_or(Answer::Later, Answer::Now)
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) -> Answer {
        let events = self.function.config_write(offset, data);
        if events.contains(&ConfigEvent::FunctionLevelReset) {
            return self.reset();
        }
        let before = self.controller.is_bus_master();
        let now = self.function.config().is_bus_master();
        self.controller.set_bus_master(now);
        if before && !now { self.answer_after(Wait::OffBus) } else { Answer::Now(Ok(())) }
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

    fn region_write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer {
        match index {
            pci::BAR_REGISTERS => self.controller.bar_write(offset, data),
            pci::BAR_MSIX => self.function.msix_write(offset, data),
            CONFIG_REGION => return self.config_write(offset, data),
            _ => {}
        }
        Answer::Now(Ok(()))
    }

    fn set_irqs(&mut self, request: SetIrqs<'_>) -> Result<(), Errno> {
        self.interrupts.set(request)
    }

    fn dma_map(&mut self, request: DmaMap, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
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
        self.answer_after(Wait::Unmap(unmapping))
    }

    fn reset(&mut self) -> Answer {
        self.begin_reset();
        self.answer_after(Wait::Reset)
    }
}

fn refused(what: &str, request: &impl std::fmt::Debug, error: &crate::memory::MapError) -> Errno {
    log::warn!("{what} refused: {error}: {request:x?}");
    Errno::from_raw_os_error(error.errno())
}
