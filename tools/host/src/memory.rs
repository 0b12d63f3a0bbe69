//! Mapped memory: what a device reads and writes, doorbells, working sets.
#![expect(
    unsafe_code,
    reason = "maps memory that the device changes meanwhile, and touches it at full speed"
)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::Rng;

/// Bytes that DMA mappings are a multiple of: SPDK leaves smaller ones out.
pub const HUGE: usize = 2 << 20;
/// Bytes of a page, the controller's and the host's.
pub const PAGE: usize = 4096;

/// A mapping of its own. All access is by copies and atomics within its bounds; nobody gets a reference to
/// its bytes, because the device may change them at any time.
#[derive(Debug)]
pub struct Memory {
    base: *mut u8,
    size: usize,
}

// SAFETY: the pointer names a mapping that this value owns; access is by atomics and raw copies only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// A file in memory and a mapping of it, zeroes. `size` is in bytes and a multiple of [`HUGE`].
    ///
    /// # Errors
    /// The kernel has no such memory: huge pages have to be reserved.
    pub fn shared(size: usize, hugetlb: bool) -> io::Result<(Self, OwnedFd)> {
        let kind = if hugetlb { MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB } else { MemfdFlags::empty() };
        let file = rustix::fs::memfd_create("nvme-host", MemfdFlags::CLOEXEC | kind)?;
        rustix::fs::ftruncate(&file, size as u64)?;
        let memory = Self::map(file.as_fd(), 0, size)?;
        Ok((memory, file))
    }

    /// Maps `size` bytes of a file from `offset`, both whole pages. The file must not shrink while the
    /// mapping lives.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn map(file: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so nothing of ours is replaced.
        let base = unsafe { rustix::mm::mmap(ptr::null_mut(), size, prot, MapFlags::SHARED, file, offset) }?;
        Ok(Self { base: base.cast(), size })
    }

    /// Private memory of zeroes, in huge pages where the kernel has some and `huge` asks for them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn private(size: usize, huge: bool) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as in `map`.
        let base = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), size, prot, MapFlags::PRIVATE) }?;
        let memory = Self { base: base.cast(), size };
        let advice = if huge { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        // SAFETY: the range is the mapping just made; the advice changes no content. A kernel without huge
        // pages refuses, and then there is nothing to ask for.
        let _ = unsafe { rustix::mm::madvise(base, size, advice) };
        Ok(memory)
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Address of byte `at`, of which `len` follow in the mapping: for the kernel's ring.
    #[track_caller]
    pub fn pointer(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.size), "{at}+{len} of {}", self.size);
        // SAFETY: within the mapping, as just checked.
        unsafe { self.base.add(at) }
    }

    /// Copies `bytes` in at `at`.
    #[track_caller]
    pub fn write(&self, at: usize, bytes: &[u8]) {
        let to = self.pointer(at, bytes.len());
        // SAFETY: `to` has room for the bytes and lies in a mapping of its own, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// As [`write`](Self::write), of a size the compiler knows.
    #[inline]
    #[track_caller]
    pub fn write_array<const N: usize>(&self, at: usize, bytes: &[u8; N]) {
        let to = self.pointer(at, N);
        // SAFETY: as in `write`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, N) }
    }

    /// Copies bytes from `at` out.
    #[track_caller]
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        let from = self.pointer(at, bytes.len());
        // SAFETY: `from` has that many bytes, in a mapping of its own.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// memcpy of `len` bytes from `from` at `source` to `at`; the two may be one mapping, and may overlap
    /// then.
    #[track_caller]
    pub fn copy(&self, at: usize, from: &Memory, source: usize, len: usize) {
        let (to, from) = (self.pointer(at, len), from.pointer(source, len));
        // SAFETY: both have `len` bytes; `copy` takes overlap.
        unsafe { ptr::copy(from, to, len) }
    }

    /// The dword at `at`, a multiple of 4.
    #[inline]
    #[track_caller]
    pub fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4));
        let word = self.pointer(at, 4);
        // SAFETY: in the mapping, which lives as long as `self`, and aligned: mappings begin with a page.
        unsafe { AtomicU32::from_ptr(word.cast()) }
    }

    /// Zeroes `len` bytes from `at`.
    #[track_caller]
    pub fn clear(&self, at: usize, len: usize) {
        // SAFETY: the pointer has `len` bytes.
        unsafe { ptr::write_bytes(self.pointer(at, len), 0, len) }
    }

    /// Writes to every page, so that none is missing when it counts. The content is noise, not zeroes: no
    /// kernel or file system can make less of it.
    pub fn fill(&self, rng: &mut Rng) {
        for at in (0..self.size & !7).step_by(8) {
            self.write_array(at, &rng.next().to_le_bytes());
        }
        fence(Ordering::SeqCst);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody can reach it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_in_the_file() {
        let (memory, file) = Memory::shared(HUGE, false).unwrap();
        memory.write(4096, b"four");
        memory.word(4).store(7, Ordering::Relaxed);
        let mut bytes = [0; 4];
        rustix::io::pread(&file, &mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"four");
        memory.copy(0, &memory, 4096, 8);
        memory.read(0, &mut bytes);
        assert_eq!(&bytes, b"four");
        assert_eq!(memory.word(4).load(Ordering::Relaxed), 0);
    }

    #[test]
    #[should_panic(expected = "4093+4 of 4096")]
    fn no_access_past_the_end() {
        Memory::private(4096, false).unwrap().write(4093, b"four");
    }
}
