//! A mapped page of doorbells, as a driver sees it: plain stores and loads, at full speed.
#![allow(unsafe_code, reason = "maps a file and touches it through atomics, as a guest touches its memory")]

use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU32;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const SIZE: usize = 4096;

pub struct Page(*mut u8);

// SAFETY: only atomics reach the mapping.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    pub fn map(fd: BorrowedFd<'_>, offset: u64) -> Page {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address.
        let base = unsafe { mmap(std::ptr::null_mut(), SIZE, prot, MapFlags::SHARED, fd, offset) };
        Page(base.expect("map a page").cast())
    }

    /// Doorbell `index`: 2 q is the tail of SQ q, 2 q + 1 the head of CQ q.
    pub fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < SIZE / 4);
        // SAFETY: inside the mapping, aligned.
        unsafe { AtomicU32::from_ptr(self.0.add(4 * index).cast()) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { munmap(self.0.cast(), SIZE) }.expect("unmap");
    }
}
