//! Gets a thread out of a system call in which a client's descriptor holds it up.
#![expect(unsafe_code, reason = "installs a signal handler and sends the signal to one thread")]

use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Once;
use std::thread::JoinHandle;

/// Ignored by default, so that it does no harm where nobody expects it.
const SIGNAL: libc::c_int = libc::SIGURG;

extern "C" fn nothing(_: libc::c_int) {}

/// Ends a system call in which `thread` waits, if it does, with EINTR.
pub fn unblock<T>(thread: &JoinHandle<T>) {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all zeroes are a valid sigaction: no flags (so no call is begun again by itself), an empty
        // mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = nothing as *const () as usize;
        // SAFETY: the handler does nothing at all.
        if unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) } != 0 {
            log::error!("no handler for SIGURG: {}", std::io::Error::last_os_error());
        }
    });
    // SAFETY: a thread's id is valid until it is joined, which takes its handle.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGNAL) };
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_write_that_waits_ends() {
        use rustix::event::{EventfdFlags, eventfd};
        let full = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        rustix::io::write(&*full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let own = Arc::clone(&full);
        let thread = std::thread::spawn(move || rustix::io::write(&*own, &1_u64.to_ne_bytes()));
        while !thread.is_finished() {
            unblock(&thread);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(thread.join().unwrap(), Err(rustix::io::Errno::INTR));
    }
}
