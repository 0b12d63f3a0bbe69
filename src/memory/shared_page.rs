//! One page of ours that clients map: memory that both sides change at any time.
#![expect(unsafe_code, reason = "maps a page of a file of ours and touches it through atomics")]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// A page of a sealed memfd that holds nothing else. The seals keep clients from changing the file's size, so
/// no access here can fault.
pub struct SharedPage {
    base: *mut u8,
    /// Where it lies in the file, bytes.
    offset: u64,
}

// SAFETY: the pointer names a mapping that this value owns and that is touched by atomics only.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

impl fmt::Debug for SharedPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPage").field("base", &self.base).finish_non_exhaustive()
    }
}

impl SharedPage {
    /// Bytes.
    pub const SIZE: usize = 4096;

    /// A page of zeroes at `offset`, a multiple of [`Self::SIZE`], of a file that ends with it; and the file,
    /// for clients to map.
    ///
    /// # Errors
    /// Those of memfd_create and mmap; the latter fails where pages are larger.
    pub fn new(offset: u64) -> io::Result<(Self, OwnedFd)> {
        let file = make(offset)?;
        // SAFETY: the kernel chooses the address, so nothing of ours is replaced.
        let base = unsafe { map(ptr::null_mut(), MapFlags::SHARED, file.as_fd(), offset) }?;
        Ok((Self { base, offset }, file))
    }

    /// Puts a page of a new file in place, with the same content: whoever has mapped the old file has no part
    /// in it any more. Other threads may go on using the page meanwhile.
    ///
    /// # Errors
    /// As [`Self::new`]; the page then stays what it is.
    pub fn renew(&self) -> io::Result<OwnedFd> {
        let file = make(self.offset)?;
        let dwords = (0..Self::SIZE / 4).map_while(|index| self.dword(index));
        let content: Vec<u8> = dwords.flat_map(|dword| dword.load(Ordering::Relaxed).to_ne_bytes()).collect();
        rustix::io::pwrite(&file, &content, self.offset)?;
        // SAFETY: the fixed address is that of the mapping this value owns; it is replaced in one step, and
        // nobody holds references into it for longer than one access to an atomic, which the new page serves
        // as well.
        unsafe { map(self.base, MapFlags::SHARED | MapFlags::FIXED, file.as_fd(), self.offset) }?;
        Ok(file)
    }

    /// Dword `index`, if it lies in the page.
    pub fn dword(&self, index: usize) -> Option<&AtomicU32> {
        (index < Self::SIZE / 4).then(|| {
            // SAFETY: in the page, which is mapped while `self` lives, and aligned; all access is by atomics.
            unsafe { AtomicU32::from_ptr(self.base.add(4 * index).cast()) }
        })
    }

    /// Zeroes everywhere.
    pub fn clear(&self) {
        for dword in (0..Self::SIZE / 4).map_while(|index| self.dword(index)) {
            dword.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody can reach it any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.cast(), Self::SIZE) } {
            log::error!("munmap of a shared page: {error}");
        }
    }
}

fn make(offset: u64) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("doorbells", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, offset + SharedPage::SIZE as u64)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// # Safety
/// As mmap: with FIXED, `at` is a mapping of one page that the caller owns.
unsafe fn map(at: *mut u8, flags: MapFlags, file: BorrowedFd<'_>, offset: u64) -> io::Result<*mut u8> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the caller's.
    let base = unsafe { rustix::mm::mmap(at.cast(), SharedPage::SIZE, prot, flags, file, offset) }?;
    Ok(base.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(file: &OwnedFd) -> [u8; 4] {
        let mut bytes = [0; 4];
        rustix::io::pread(file, &mut bytes, 0x1008).unwrap();
        bytes
    }

    #[test]
    fn clients_see_the_page_until_it_is_renewed() {
        let (page, old) = SharedPage::new(0x1000).unwrap();
        page.dword(2).unwrap().store(7, Ordering::Relaxed);
        assert_eq!(seen(&old), [7, 0, 0, 0]);
        assert!(page.dword(1024).is_none());
        let new = page.renew().unwrap();
        assert_eq!(seen(&new), [7, 0, 0, 0]);
        rustix::io::pwrite(&old, &[9; 4], 0x1008).unwrap();
        assert_eq!(page.dword(2).unwrap().load(Ordering::Relaxed), 7, "an old client's page is its own");
        rustix::io::pwrite(&new, &[3, 0, 0, 0], 0x1008).unwrap();
        assert_eq!(page.dword(2).unwrap().load(Ordering::Relaxed), 3);
        page.clear();
        assert_eq!(seen(&new), [0; 4]);
    }

    #[test]
    fn the_file_keeps_its_size() {
        let (_page, file) = SharedPage::new(0x1000).unwrap();
        for size in [0, 0x1000, 0x3000] {
            rustix::fs::ftruncate(&file, size).unwrap_err();
        }
    }
}
