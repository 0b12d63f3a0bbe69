//! Signals as something the control thread can poll.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

/// Exit code of a second SIGTERM or SIGINT.
const IMPATIENT: i32 = 1;

/// SIGTERM and SIGINT ask to stop, a second one ends the process at once; SIGUSR1 asks for a dump.
#[derive(Debug)]
pub struct Signals {
    terminate: Arc<AtomicBool>,
    dump: Arc<AtomicBool>,
    wake: UnixStream,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// Those of sigaction and socketpair.
    pub fn install() -> std::io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let (terminate, dump) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for signal in [SIGTERM, SIGINT] {
            // In this order: the first signal finds the flag clear and sets it, the second one finds it set.
            signal_hook::flag::register_conditional_shutdown(signal, IMPATIENT, Arc::clone(&terminate))?;
            signal_hook::flag::register(signal, Arc::clone(&terminate))?;
        }
        signal_hook::flag::register(SIGUSR1, Arc::clone(&dump))?;
        for signal in [SIGTERM, SIGINT, SIGUSR1] {
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Self { terminate, dump, wake })
    }

    /// Has a signal asked to stop?
    pub fn terminate(&self) -> bool {
        self.terminate.load(Ordering::SeqCst)
    }

    /// Has a signal asked for a dump since the last call? Also takes what made [`Self::fd`] readable.
    pub fn dump(&self) -> bool {
        let mut bytes = [0; 64];
        while (&self.wake).read(&mut bytes).is_ok_and(|count| count > 0) {}
        self.dump.swap(false, Ordering::SeqCst)
    }

    /// Readable after a signal.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
