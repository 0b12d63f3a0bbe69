//! SIGBUS containment: guest memory whose file shrank (or whose page the machine lost) kills its region, not
//! us.
//!
//! One process-wide handler and one fixed table of ranges, all atomics, because a signal handler may neither
//! lock nor allocate. A fault inside a registered range puts anonymous pages over the whole range and sets
//! its dead flag; the interrupted copy goes on with those pages, and looks at the flag when it is done. Any
//! other fault ends the process as it would without us. (A system call that meets such a page gets EFAULT, no
//! signal.)
#![expect(unsafe_code, reason = "installs a signal handler and maps pages at fixed addresses")]

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, compiler_fence, fence};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// Room for the maps of several clients' tables, and for removed regions that are still pinned.
const SLOTS: usize = 16384;

/// `seq` is a sequence lock, because the handler may look while another thread changes the slot: odd while it
/// is changed. A free slot has length 0.
struct Slot {
    seq: AtomicU32,
    taken: AtomicBool,
    dead: AtomicBool,
    base: AtomicUsize,
    len: AtomicUsize,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        seq: AtomicU32::new(0),
        taken: AtomicBool::new(false),
        dead: AtomicBool::new(false),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
    }
}; SLOTS];

/// Where the search for a free slot begins; only saves time.
static HINT: AtomicUsize = AtomicUsize::new(0);

impl Slot {
    /// By the slot's owner alone.
    fn set(&self, base: usize, len: usize) {
        let seq = self.seq.load(Ordering::Relaxed);
        self.seq.store(seq.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.base.store(base, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.seq.store(seq.wrapping_add(2), Ordering::Release);
    }

    /// `None` while it changes. The slot that the handler looks for cannot be changing: the thread that
    /// faulted holds its region.
    fn get(&self) -> Option<(usize, usize)> {
        let before = self.seq.load(Ordering::Acquire);
        let range = (self.base.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (before.is_multiple_of(2) && self.seq.load(Ordering::Relaxed) == before).then_some(range)
    }
}

/// A range in the table. Its owner must [`release`](Self::release) it before it unmaps the range.
pub(super) struct Registration(&'static Slot);

impl Registration {
    pub(super) fn is_dead(&self) -> bool {
        // The handler runs on the thread that copies: the copy must not sink below this look at the flag.
        compiler_fence(Ordering::SeqCst);
        self.0.dead.load(Ordering::Acquire)
    }

    pub(super) fn set_dead(&self) {
        self.0.dead.store(true, Ordering::Release);
    }

    /// Takes the range out of the table. Idempotent.
    pub(super) fn release(&mut self) {
        if self.0.len.load(Ordering::Relaxed) != 0 {
            self.0.set(0, 0);
            self.0.taken.store(false, Ordering::Release);
        }
    }
}

/// Puts a range of ours under the handler's care; `None` when the table is full. `len` is not 0.
pub(super) fn register(base: usize, len: usize) -> Option<Registration> {
    let hint = HINT.load(Ordering::Relaxed);
    for step in 0..SLOTS {
        let index = (hint + step) % SLOTS;
        let slot = &TABLE[index];
        let won = slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        if won.is_ok() {
            slot.dead.store(false, Ordering::Relaxed);
            slot.set(base, len);
            HINT.store((index + 1) % SLOTS, Ordering::Relaxed);
            return Some(Registration(slot));
        }
    }
    None
}

/// Maps private anonymous pages over `base..base + len`, whatever is there. Async-signal-safe.
///
/// # Safety
/// The range is a mapping that the caller owns, and nobody relies on its content.
pub(super) unsafe fn replace(base: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: the caller owns the range.
    unsafe {
        rustix::mm::mmap_anonymous(
            ptr::with_exposed_provenance_mut(base),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            // NORESERVE: a region may be larger than the machine's memory, and only what a late transfer
            // touches is ever used.
            MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
        )
    }?;
    Ok(())
}

/// Installs the handler, once per process. Later handlers of others (there are none) would win.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut action = empty_action();
        action.sa_sigaction = on_sigbus as *const () as usize;
        // ONSTACK: the standard library gives its threads an alternate stack, and a fault of a full stack
        // comes here first.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the action is initialised, and its handler is async-signal-safe.
        if unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } != 0 {
            log::error!(
                "no SIGBUS handler ({}): guest memory that shrinks would end the process",
                std::io::Error::last_os_error()
            );
        }
    });
}

fn empty_action() -> libc::sigaction {
    // SAFETY: all zeroes is a valid sigaction: the default action, no flags, an empty mask.
    unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo; for the codes below si_addr is filled in.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Of an access of this thread: beyond the file's end, or a page that the machine lost.
    let by_access = code == libc::BUS_ADRERR || code == libc::BUS_MCEERR_AR;
    if by_access && contain(address) {
        return;
    }
    // Not ours. With the default action back, the raised signal ends the process when this handler returns,
    // with the faulting instruction in the core dump.
    let default = empty_action();
    // SAFETY: both calls are async-signal-safe.
    unsafe {
        libc::sigaction(signal, &default, ptr::null_mut());
        libc::raise(signal);
    }
}

/// True when `address` lies in a registered range, which is dead now.
fn contain(address: usize) -> bool {
    let hit = TABLE.iter().find_map(|slot| {
        let (base, len) = slot.get()?;
        (address >= base && address - base < len).then_some((slot, base, len))
    });
    let Some((slot, base, len)) = hit else {
        return false;
    };
    slot.dead.store(true, Ordering::Release);
    // SAFETY: the range is a registered mapping that the faulting thread keeps alive; its content is lost.
    unsafe { replace(base, len) }.is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    const CHILD: &str = "VFIO_USER_NVME_TEST_SIGBUS_CHILD";

    /// Maps a page, cuts the file, touches the page. Does not return when the fault is not contained.
    fn fault(registered: bool) {
        let file = memfd_create("t", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 4096).unwrap();
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                4096,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }
        .unwrap();
        ftruncate(&file, 0).unwrap();
        let slot = registered.then(|| register(base as usize, 4096).unwrap());
        // SAFETY: the mapping is a page long.
        let byte = unsafe { base.cast::<u8>().read_volatile() };
        assert_eq!(byte, 0);
        let mut slot = slot.expect("an unregistered fault ends the process");
        assert!(slot.is_dead());
        slot.release();
        // SAFETY: the mapping made above.
        unsafe { rustix::mm::munmap(base, 4096) }.unwrap();
    }

    #[test]
    fn contained() {
        install();
        fault(true);
    }

    #[test]
    fn child() {
        if std::env::var_os(CHILD).is_some() {
            let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
            rustix::process::setrlimit(rustix::process::Resource::Core, none).unwrap();
            install();
            fault(false);
        }
    }

    #[test]
    fn other_faults_end_the_process() {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory::sigbus::tests::child", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }

    #[test]
    fn slots_are_reused() {
        let before = TABLE.iter().filter(|slot| slot.taken.load(Ordering::Relaxed)).count();
        for _ in 0..2 * SLOTS {
            let mut slot = register(1 << 60, 4096).unwrap();
            assert!(!slot.is_dead());
            slot.set_dead();
            slot.release();
        }
        let after = TABLE.iter().filter(|slot| slot.taken.load(Ordering::Relaxed)).count();
        // Other tests of this process hold some.
        assert!(after < before + SLOTS / 2);
    }
}
