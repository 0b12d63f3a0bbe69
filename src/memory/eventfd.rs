//! Adds to a client's eventfd without ever waiting.
//!
//! write() waits while the counter is full, unless the file is non-blocking; and the client, which shares the
//! open file, can fill the one and change the other at any time. What the kernel itself adds to an eventfd
//! when asynchronous I/O is over never waits. It costs three times a write, so that workers write all the
//! same: a thread can be got out of that ([`unblock`](super::unblock)), but for the one that does so for all
//! others.
#![expect(unsafe_code, reason = "system calls that rustix does not have")]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// Requests that may be over before anybody asks; all are over when io_submit() returns.
const DEPTH: usize = 64;

/// An I/O context whose requests are over at once.
#[derive(Debug)]
pub struct EventfdSignal {
    context: libc::c_ulong,
    /// /dev/null, which takes no bytes at no cost.
    null: OwnedFd,
}

impl EventfdSignal {
    /// Nothing where the kernel has no asynchronous I/O, or no more of it.
    pub fn new() -> Option<Self> {
        let null = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: `context` is zero, as io_setup(2) wants it, and takes the new context.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut context) };
        (made == 0).then_some(Self { context, null })
    }

    /// Adds 1 to `eventfd`; false when that failed, e.g. for a descriptor of another kind. A full counter
    /// stays as it is.
    pub fn add_one(&self, eventfd: BorrowedFd<'_>) -> bool {
        if self.submit(eventfd) {
            return true;
        }
        // What is over and was not asked for fills the context.
        let mut over = [const { MaybeUninit::<[u64; 4]>::uninit() }; DEPTH];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: there is room for DEPTH events of 32 bytes each, and none is waited for.
        unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, 0, DEPTH, over.as_mut_ptr(), &raw const now)
        };
        self.submit(eventfd)
    }

    fn submit(&self, eventfd: BorrowedFd<'_>) -> bool {
        let mut request = Iocb {
            opcode: PWRITE,
            file: self.null.as_raw_fd() as u32,
            flags: RESFD,
            eventfd: eventfd.as_raw_fd() as u32,
            ..Iocb::default()
        };
        let list = [&raw mut request];
        // SAFETY: one request, which names no memory of ours and is over, or refused, when the call returns.
        let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_ptr()) };
        taken == 1
    }
}

/// `struct iocb` of the kernel; all but these are 0.
#[derive(Default)]
#[repr(C)]
struct Iocb {
    data: u64,
    key_and_rw_flags: u64,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// IOCB_CMD_PWRITE.
const PWRITE: u16 = 1;
/// IOCB_FLAG_RESFD.
const RESFD: u32 = 1;

impl Drop for EventfdSignal {
    fn drop(&mut self) {
        // SAFETY: the context is this value's own; no request is under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn take(eventfd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(eventfd, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn adds_one_each_time_and_never_waits() {
        let Some(signal) = EventfdSignal::new() else {
            eprintln!("skipped: no asynchronous I/O");
            return;
        };
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        for _ in 0..1000 {
            assert!(signal.add_one(eventfd.as_fd()));
        }
        assert_eq!(take(&eventfd), 1000);
        // A blocking one that is full.
        rustix::io::write(&eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        for _ in 0..3 {
            assert!(signal.add_one(eventfd.as_fd()));
        }
        assert!(take(&eventfd) >= u64::MAX - 1);
        let (_reader, writer) = std::io::pipe().unwrap();
        assert!(!signal.add_one(writer.as_fd()), "no eventfd");
    }
}
