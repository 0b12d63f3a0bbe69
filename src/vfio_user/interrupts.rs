//! Interrupts out: the client's eventfds, raised from any thread.
//!
//! The control thread binds and releases; workers raise without a lock. Nothing is lost in between:
//! an interrupt without an eventfd becomes a pending bit, which the next eventfd bound to its vector
//! delivers, and one that meets an exchange of eventfds (QEMU does that whenever the guest masks a
//! vector) is delivered again to the new one. An interrupt too many costs a driver one look at its
//! queue; one too few costs it a time-out.

use std::os::fd::{AsFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use arc_swap::{ArcSwapOption, Guard};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use smallvec::SmallVec;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
};

use super::device::{IrqAction, IrqData, IrqInfo, SetIrqs};

/// Pending bits of all vectors, 64 a word, vector 0 in bit 0 of word 0: the layout of a PBA. Held
/// inline for the 2048 vectors MSI-X can have.
pub type PendingBits = SmallVec<[u64; 32]>;

/// The interrupts of one function: MSI-X vectors, and the error and request lines, which clients
/// bind but this device never raises. There is no INTx and no MSI: both have count 0.
pub struct Interrupts {
    msix: Box<[Line]>,
    error: [Line; 1],
    request: [Line; 1],
}

/// One interrupt.
#[derive(Default)]
struct Line {
    eventfd: ArcSwapOption<OwnedFd>,
    /// Raised while no eventfd was bound.
    pending: AtomicBool,
}

impl Interrupts {
    /// Interrupts with `vectors` MSI-X vectors, none of them bound.
    pub fn new(vectors: u16) -> Self {
        Interrupts {
            msix: (0..vectors).map(|_| Line::default()).collect(),
            error: Default::default(),
            request: Default::default(),
        }
    }

    /// Number of MSI-X vectors.
    pub fn vectors(&self) -> u16 {
        self.msix.len() as u16
    }

    /// Raises an MSI-X vector. From any thread; takes no lock and never waits. A vector that does
    /// not exist is ignored.
    pub fn raise(&self, vector: u16) {
        if let Some(line) = self.msix.get(usize::from(vector)) {
            line.raise();
        }
    }

    /// What the client is told of an interrupt index.
    ///
    /// MSI-X is not NORESIZE: with it QEMU releases all vectors to add one (vfio-user.md 1.5, 14).
    pub fn info(&self, index: u32) -> IrqInfo {
        let count = self.lines(index).len() as u32;
        IrqInfo { flags: if count > 0 { VFIO_IRQ_INFO_EVENTFD } else { 0 }, count }
    }

    /// Executes a DEVICE_SET_IRQS.
    ///
    /// # Errors
    /// `INVAL` for a range outside the index, a number of descriptors that is neither the count nor
    /// 0, descriptors that cannot be made non-blocking, and for Mask and Unmask, which no index here
    /// announces. Nothing has changed then.
    pub fn set(&self, request: SetIrqs<'_>) -> Result<(), Errno> {
        if request.action != IrqAction::Trigger {
            return Err(Errno::INVAL);
        }
        let all = self.lines(request.index);
        if request.count == 0 {
            // "Release the whole index" is also sent for INTx, which has no interrupt at all.
            return match request.data {
                IrqData::None if request.start == 0 => {
                    all.iter().for_each(Line::release);
                    Ok(())
                }
                _ => Err(Errno::INVAL),
            };
        }
        let end = request.start.saturating_add(request.count) as usize;
        let lines = all.get(request.start as usize..end).ok_or(Errno::INVAL)?;
        match request.data {
            IrqData::None => lines.iter().for_each(Line::raise),
            IrqData::Bool(wanted) => {
                if wanted.len() != lines.len() {
                    return Err(Errno::INVAL);
                }
                for (line, _) in lines.iter().zip(wanted).filter(|(_, byte)| **byte != 0) {
                    line.raise();
                }
            }
            IrqData::Eventfds(fds) if fds.is_empty() => lines.iter().for_each(Line::release),
            IrqData::Eventfds(fds) => {
                if fds.len() != lines.len() {
                    return Err(Errno::INVAL);
                }
                for fd in &fds {
                    make_nonblocking(fd)?;
                }
                for (line, fd) in lines.iter().zip(fds) {
                    line.bind(fd);
                }
            }
        }
        Ok(())
    }

    /// The pending bits of all MSI-X vectors, for the PBA.
    pub fn pending_bits(&self) -> PendingBits {
        self.msix
            .chunks(64)
            .map(|lines| {
                lines.iter().enumerate().fold(0, |word, (bit, line)| {
                    word | u64::from(line.pending.load(Ordering::Acquire)) << bit
                })
            })
            .collect()
    }

    /// Forgets what is pending: for a reset of the function. Not for a release of the vectors, which
    /// some clients do for a moment only, to bind more of them.
    pub fn clear_pending(&self) {
        for line in &self.msix {
            line.pending.store(false, Ordering::Release);
        }
    }

    /// Drops every eventfd and every pending bit: for a client that has gone.
    pub fn release_all(&self) {
        for line in self.msix.iter().chain(&self.error).chain(&self.request) {
            line.release();
            line.pending.store(false, Ordering::Release);
        }
    }

    fn lines(&self, index: u32) -> &[Line] {
        match index {
            VFIO_PCI_MSIX_IRQ_INDEX => &self.msix,
            VFIO_PCI_ERR_IRQ_INDEX => &self.error,
            VFIO_PCI_REQ_IRQ_INDEX => &self.request,
            _ => &[],
        }
    }
}

impl Line {
    /// Either this thread sees what [`Self::bind`] stored, or `bind` sees the pending bit: both
    /// store, fence, then load.
    fn raise(&self) {
        let mut seen = self.eventfd.load();
        loop {
            match seen.as_deref() {
                Some(eventfd) => signal(eventfd),
                None => self.pending.store(true, Ordering::Release),
            }
            fence(Ordering::SeqCst);
            let now = self.eventfd.load();
            if same(&seen, &now) {
                return;
            }
            if seen.is_none() && !self.pending.swap(false, Ordering::AcqRel) {
                // Whoever bound the eventfd has found the bit and delivered it.
                return;
            }
            seen = now;
        }
    }

    fn bind(&self, eventfd: OwnedFd) {
        let eventfd = Arc::new(eventfd);
        self.eventfd.store(Some(Arc::clone(&eventfd)));
        fence(Ordering::SeqCst);
        if self.pending.swap(false, Ordering::AcqRel) {
            signal(&eventfd);
        }
    }

    fn release(&self) {
        self.eventfd.store(None);
    }
}

type Bound = Guard<Option<Arc<OwnedFd>>>;

/// `a` is held, so its address cannot have been given to another eventfd.
fn same(a: &Bound, b: &Bound) -> bool {
    match (a.as_ref(), b.as_ref()) {
        (None, None) => true,
        (Some(a), Some(b)) => ptr::eq(Arc::as_ptr(a), Arc::as_ptr(b)),
        _ => false,
    }
}

/// Adds 1 to an eventfd. A full counter (EAGAIN) means that the client has plenty to notice, and
/// every other failure is the client's own descriptor: neither may stop a worker.
fn signal(eventfd: &OwnedFd) {
    while rustix::io::write(eventfd, &1_u64.to_ne_bytes()) == Err(Errno::INTR) {}
}

/// A blocking eventfd whose counter is full, or a pipe nobody reads, would hang the raising thread.
fn make_nonblocking(fd: impl AsFd) -> Result<(), Errno> {
    let flags = fcntl_getfl(&fd).map_err(|_| Errno::INVAL)?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(|_| Errno::INVAL)?;
    }
    Ok(())
}
