//! Interrupts out: the client's eventfds, raised from any thread.
//!
//! The control thread binds and releases; workers raise without a lock. Nothing is lost in between:
//! an interrupt without an eventfd becomes a pending bit, which the next eventfd bound to its vector
//! delivers, and one that meets an exchange of eventfds (QEMU does that whenever the guest masks a
//! vector) is delivered again to the new one. An interrupt too many costs a driver one look at its
//! queue; one too few costs it a time-out.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
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

use crate::memory::EventfdSignal;

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
    /// `None` where the kernel has no such thing: then the control thread writes as workers do.
    signal: Option<EventfdSignal>,
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
            signal: EventfdSignal::new(),
        }
    }

    /// Number of MSI-X vectors.
    pub fn vectors(&self) -> u16 {
        self.msix.len() as u16
    }

    /// Raises an MSI-X vector. From any thread; takes no lock. A vector that does not exist is ignored.
    ///
    /// It waits only if the client has made its eventfd blocking again, and filled it; and then until the
    /// thread is interrupted.
    pub fn raise(&self, vector: u16) {
        if let Some(line) = self.msix.get(usize::from(vector)) {
            line.raise(write);
        }
    }

    /// As [`Self::raise`], and never waits. For the control thread, which nobody could interrupt; it costs
    /// three times as much.
    pub fn raise_at_once(&self, vector: u16) {
        if let Some(line) = self.msix.get(usize::from(vector)) {
            line.raise(|eventfd| self.add(eventfd));
        }
    }

    fn add(&self, eventfd: &OwnedFd) {
        if !self.signal.as_ref().is_some_and(|signal| signal.add_one(eventfd.as_fd())) {
            write(eventfd);
        }
    }

    /// What the client is told of an interrupt index.
    ///
    /// MSI-X is not NORESIZE: with it QEMU releases all vectors to add one.
    pub fn info(&self, index: u32) -> IrqInfo {
        let count = self.lines(index).len() as u32;
        IrqInfo { flags: if count > 0 { VFIO_IRQ_INFO_EVENTFD } else { 0 }, count }
    }

    /// Executes a DEVICE_SET_IRQS.
    ///
    /// # Errors
    /// `INVAL` for a range outside the index, a number of descriptors that is neither the count nor
    /// 0, descriptors that are no eventfds, and for Mask and Unmask, which no index here
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
            IrqData::None => lines.iter().for_each(|line| line.raise(|eventfd| self.add(eventfd))),
            IrqData::Bool(wanted) => {
                if wanted.len() != lines.len() {
                    return Err(Errno::INVAL);
                }
                for (line, _) in lines.iter().zip(wanted).filter(|(_, byte)| **byte != 0) {
                    line.raise(|eventfd| self.add(eventfd));
                }
            }
            IrqData::Eventfds(fds) if fds.is_empty() => lines.iter().for_each(Line::release),
            IrqData::Eventfds(fds) => {
                if fds.len() != lines.len() {
                    return Err(Errno::INVAL);
                }
                for fd in fds.iter() {
                    check_eventfd(fd)?;
                    make_nonblocking(fd)?;
                }
                // Closing an eventfd does not wait.
                for (line, fd) in lines.iter().zip(fds.into_inner()) {
                    line.bind(fd, |eventfd| self.add(eventfd));
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
    fn raise(&self, signal: impl Fn(&OwnedFd)) {
        self.raise_with(signal, || {});
    }

    /// `loaded` runs between each look and what is done by it: where a bind hurts most.
    fn raise_with(&self, signal: impl Fn(&OwnedFd), mut loaded: impl FnMut()) {
        let mut seen = self.eventfd.load();
        loop {
            loaded();
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

    fn bind(&self, eventfd: OwnedFd, signal: impl Fn(&OwnedFd)) {
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

/// Adds 1 to an eventfd. A full counter (EAGAIN; EINTR if it waited) means that the client has plenty to
/// notice, and every other failure is the client's own descriptor: neither may stop a worker.
fn write(eventfd: &OwnedFd) {
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

/// A pipe takes no more than it has room for, and what another file makes of eight bytes nobody knows.
fn check_eventfd(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    if name.is_ok_and(|name| name.as_os_str() == "anon_inode:[eventfd]") {
        return Ok(());
    }
    log::warn!("an interrupt was to be raised by a descriptor that is no eventfd");
    Err(Errno::INVAL)
}

/// A blocking eventfd whose counter is full would hang the raising thread.
fn make_nonblocking(fd: impl AsFd) -> Result<(), Errno> {
    let flags = fcntl_getfl(&fd).map_err(|_| Errno::INVAL)?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(|_| Errno::INVAL)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio_user::ClientFds;
    use rustix::event::{EventfdFlags, eventfd};
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    const MSIX: u32 = VFIO_PCI_MSIX_IRQ_INDEX;

    /// An eventfd for the client and its copy for the server.
    fn pair() -> (OwnedFd, OwnedFd) {
        let ours = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        let theirs = ours.try_clone().unwrap();
        (ours, theirs)
    }

    /// How often it was signalled since the last look.
    fn drain(fd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(fd, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(errno) => {
                assert_eq!(errno, Errno::AGAIN);
                0
            }
        }
    }

    fn set(irqs: &Interrupts, index: u32, start: u32, count: u32, data: IrqData<'_>) -> Result<(), Errno> {
        irqs.set(SetIrqs { index, start, count, action: IrqAction::Trigger, data })
    }

    fn bind(irqs: &Interrupts, start: u32, fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let count = fds.len() as u32;
        set(irqs, MSIX, start, count, IrqData::Eventfds(fds.into_iter().collect()))
    }

    fn release(irqs: &Interrupts, start: u32, count: u32) -> Result<(), Errno> {
        set(irqs, MSIX, start, count, IrqData::Eventfds(ClientFds::default()))
    }

    #[test]
    fn what_is_announced() {
        let irqs = Interrupts::new(17);
        let counts: Vec<u32> = (0..6).map(|index| irqs.info(index).count).collect();
        assert_eq!(counts, [0, 0, 17, 1, 1, 0]);
        assert_eq!(irqs.info(MSIX).flags, VFIO_IRQ_INFO_EVENTFD, "not NORESIZE");
        assert_eq!(irqs.info(0).flags, 0);
    }

    #[test]
    fn bound_vectors_are_signalled_others_pend() {
        let irqs = Interrupts::new(70);
        let (ours, theirs) = pair();
        bind(&irqs, 3, vec![theirs]).unwrap();
        irqs.raise(3);
        irqs.raise(3);
        assert_eq!(drain(&ours), 2);
        irqs.raise(2);
        irqs.raise(69);
        irqs.raise(70);
        irqs.raise(u16::MAX);
        assert_eq!(irqs.pending_bits().as_slice(), [1 << 2, 1 << 5]);
    }

    #[test]
    fn pending_is_delivered_once_when_bound() {
        let irqs = Interrupts::new(4);
        irqs.raise(1);
        irqs.raise(1);
        let (ours, theirs) = pair();
        bind(&irqs, 1, vec![theirs]).unwrap();
        assert_eq!(drain(&ours), 1);
        assert_eq!(irqs.pending_bits().as_slice(), [0]);
        // QEMU releases and binds again when it adds vectors; the gap loses nothing.
        set(&irqs, MSIX, 0, 0, IrqData::None).unwrap();
        irqs.raise(1);
        let (ours, theirs) = pair();
        bind(&irqs, 1, vec![theirs]).unwrap();
        assert_eq!(drain(&ours), 1);
        irqs.raise(0);
        irqs.clear_pending();
        assert_eq!(irqs.pending_bits().as_slice(), [0]);
    }

    #[test]
    fn releasing_one_vector_releases_that_one() {
        let irqs = Interrupts::new(4);
        let (clients, servers): (Vec<_>, Vec<_>) = (0..4).map(|_| pair()).unzip();
        bind(&irqs, 0, servers).unwrap();
        release(&irqs, 2, 1).unwrap();
        (0..4).for_each(|vector| irqs.raise(vector));
        let signalled: Vec<u64> = clients.iter().map(drain).collect();
        assert_eq!(signalled, [1, 1, 0, 1]);
        set(&irqs, MSIX, 0, 0, IrqData::None).unwrap();
        (0..4).for_each(|vector| irqs.raise(vector));
        assert!(clients.iter().all(|client| drain(client) == 0));
        assert_eq!(irqs.pending_bits().as_slice(), [0b1111]);
    }

    #[test]
    fn client_triggers() {
        let irqs = Interrupts::new(4);
        let (clients, servers): (Vec<_>, Vec<_>) = (0..4).map(|_| pair()).unzip();
        bind(&irqs, 0, servers).unwrap();
        set(&irqs, MSIX, 1, 2, IrqData::None).unwrap();
        set(&irqs, MSIX, 0, 4, IrqData::Bool(&[0, 1, 0, 0xff])).unwrap();
        let signalled: Vec<u64> = clients.iter().map(drain).collect();
        assert_eq!(signalled, [0, 2, 1, 1]);
    }

    #[test]
    fn ranges_and_forms() {
        let irqs = Interrupts::new(4);
        // INTx and MSI have no interrupt, but machine reset releases them.
        for index in [0, 1, 2, 3, 4] {
            assert_eq!(set(&irqs, index, 0, 0, IrqData::None), Ok(()));
        }
        assert_eq!(set(&irqs, MSIX, 1, 0, IrqData::None), Err(Errno::INVAL));
        assert_eq!(set(&irqs, MSIX, 0, 0, IrqData::Bool(&[])), Err(Errno::INVAL));
        assert_eq!(release(&irqs, 0, 0), Err(Errno::INVAL));
        for (start, count) in [(4, 1), (0, 5), (3, 2), (u32::MAX, 1), (1, u32::MAX)] {
            assert_eq!(release(&irqs, start, count), Err(Errno::INVAL), "{start}, {count}");
            assert_eq!(set(&irqs, MSIX, start, count, IrqData::None), Err(Errno::INVAL));
        }
        assert_eq!(set(&irqs, 0, 0, 1, IrqData::None), Err(Errno::INVAL));
        assert_eq!(set(&irqs, MSIX, 0, 2, IrqData::Bool(&[1])), Err(Errno::INVAL));
        let fds = IrqData::Eventfds(ClientFds::from_iter([pair().1]));
        assert_eq!(set(&irqs, MSIX, 0, 2, fds), Err(Errno::INVAL));
        for action in [IrqAction::Mask, IrqAction::Unmask] {
            let request = SetIrqs { index: MSIX, start: 0, count: 1, action, data: IrqData::None };
            assert_eq!(irqs.set(request), Err(Errno::INVAL));
        }
        for index in [VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX] {
            let fds = IrqData::Eventfds(ClientFds::from_iter([pair().1]));
            assert_eq!(set(&irqs, index, 0, 1, fds), Ok(()));
        }
    }

    #[test]
    fn a_full_blocking_eventfd_does_not_block() {
        let irqs = Interrupts::new(1);
        let ours = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        bind(&irqs, 0, vec![ours.try_clone().unwrap()]).unwrap();
        rustix::io::write(&ours, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        irqs.raise(0);
        assert_eq!(drain(&ours), u64::MAX - 1);
        irqs.raise(0);
        assert_eq!(drain(&ours), 1);
    }

    #[test]
    fn release_all_closes_every_descriptor() {
        let irqs = Interrupts::new(2);
        let (reader, writer) = std::io::pipe().unwrap();
        irqs.msix[0].bind(writer.try_clone().unwrap().into(), write);
        irqs.error[0].bind(writer.into(), write);
        irqs.raise(1);
        irqs.release_all();
        assert_eq!(irqs.pending_bits().as_slice(), [0]);
        assert_eq!(std::io::read_to_string(reader).unwrap(), "", "end of file: no writer is left");
    }

    /// Raises `line` with `exchange` happening once in the gap.
    fn raise_across(line: &Line, exchange: impl FnOnce()) {
        let mut exchange = Some(exchange);
        line.raise_with(write, || {
            if let Some(exchange) = exchange.take() {
                exchange();
            }
        });
    }

    #[test]
    fn no_interrupt_is_lost_in_the_gap() {
        let (old, new) = (pair(), pair());
        let line = Line::default();
        line.bind(old.1, write);
        raise_across(&line, || line.bind(new.1, write));
        assert_eq!((drain(&old.0), drain(&new.0)), (1, 1), "exchanged");

        raise_across(&line, || line.release());
        assert!(line.pending.load(Ordering::Acquire), "released");

        let line = Line::default();
        let (ours, theirs) = pair();
        raise_across(&line, || line.bind(theirs, write));
        assert_eq!(drain(&ours), 1, "bound");
        assert!(!line.pending.load(Ordering::Acquire));

        let line = Line::default();
        let (ours, theirs) = pair();
        raise_across(&line, || {
            line.bind(theirs, write);
            line.release();
        });
        assert_eq!(drain(&ours), 0, "bound and released");
        assert!(line.pending.load(Ordering::Acquire));
    }

    /// The same with real threads. Whoever looks at the old eventfd once it is replaced, and at the
    /// new one in the end, must have seen the interrupt.
    #[test]
    fn no_interrupt_is_lost_between_threads() {
        const ROUNDS: usize = 4000;
        /// Lets the other thread run to its end when this one fails.
        struct Release<'a>(&'a AtomicUsize);
        impl Drop for Release<'_> {
            fn drop(&mut self) {
                self.0.store(usize::MAX, Ordering::Release);
            }
        }
        let irqs = Interrupts::new(1);
        let (go, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            let _release = Release(&go);
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    while go.load(Ordering::Acquire) < round {
                        thread::yield_now();
                    }
                    irqs.raise(0);
                    done.store(round, Ordering::Release);
                }
            });
            for round in 1..=ROUNDS {
                let (old, theirs) = pair();
                if round % 2 == 0 {
                    bind(&irqs, 0, vec![theirs]).unwrap();
                }
                let (new, theirs) = pair();
                go.store(round, Ordering::Release);
                // Shifts the exchange against the raise from round to round.
                for _ in 0..round % 64 {
                    std::hint::spin_loop();
                }
                if round % 3 == 0 {
                    release(&irqs, 0, 1).unwrap();
                }
                bind(&irqs, 0, vec![theirs]).unwrap();
                let early = drain(&old);
                while done.load(Ordering::Acquire) < round {
                    thread::yield_now();
                }
                assert!(early + drain(&new) > 0, "round {round}");
                release(&irqs, 0, 1).unwrap();
                irqs.clear_pending();
            }
        });
    }
}
