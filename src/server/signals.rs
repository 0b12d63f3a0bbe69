//! What asks the control thread to stop or to describe itself, as something it can poll.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPIPE, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXFSZ,
};

/// Exit code of a second signal that asks to stop.
const IMPATIENT: i32 = 1;

/// They ask to stop. SIGHUP too: a terminal that closes sends it, and there is nothing to load anew.
const STOP: [i32; 4] = [SIGTERM, SIGINT, SIGQUIT, SIGHUP];
/// They would end the process, and tell it nothing. With SIGXFSZ handled, a write past the limit of a file's
/// size fails with EFBIG, which the guest hears as a status.
const MEANINGLESS: [i32; 7] = [SIGXFSZ, SIGPIPE, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO];

/// SIGTERM and its like ask to stop, a second one ends the process at once; SIGUSR1 asks for a dump.
#[derive(Debug)]
pub struct Signals {
    terminate: Arc<AtomicBool>,
    dump: Arc<AtomicBool>,
    wake: UnixStream,
    waker: UnixStream,
}

impl Signals {
    /// No handlers: for a server that lives in somebody else's process and is stopped by [`Self::stop`].
    ///
    /// # Errors
    /// Those of socketpair.
    pub fn unbound() -> std::io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        Ok(Self { terminate: Arc::default(), dump: Arc::default(), wake, waker })
    }

    /// Installs the handlers.
    ///
    /// # Errors
    /// Those of sigaction and socketpair.
    pub fn install() -> std::io::Result<Self> {
        let this = Self::unbound()?;
        let stop = STOP.into_iter().filter(|signal| *signal != SIGHUP || !is_ignored(SIGHUP));
        for signal in stop.clone() {
            // In this order: the first signal finds the flag clear and sets it, the second one finds it set.
            signal_hook::flag::register_conditional_shutdown(signal, IMPATIENT, Arc::clone(&this.terminate))?;
            signal_hook::flag::register(signal, Arc::clone(&this.terminate))?;
        }
        signal_hook::flag::register(SIGUSR1, Arc::clone(&this.dump))?;
        for signal in MEANINGLESS {
            signal_hook::flag::register(signal, Arc::default())?;
        }
        for signal in stop.chain([SIGUSR1]) {
            signal_hook::low_level::pipe::register(signal, this.waker.try_clone()?)?;
        }
        Ok(this)
    }

    /// Asks to stop, from any thread.
    pub fn stop(&self) {
        self.terminate.store(true, Ordering::SeqCst);
        let _ = (&self.waker).write(&[0]); // a full socket wakes just as well
    }

    /// Has anybody asked to stop?
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

/// Did whoever started us have the signal ignored, as nohup does with SIGHUP? Not, where that cannot be told.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (signal - 1) != 0
}
