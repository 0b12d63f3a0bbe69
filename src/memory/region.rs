//! One mapped range of guest memory.
#![expect(unsafe_code, reason = "maps and unmaps the client's memory and touches it through raw pointers")]

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
use vm_memory::VolatileSlice;

use super::{Access, DmaError, sigbus};

/// What the device may do with a region (DMA_MAP flags bit 0 and bit 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// The device may read guest memory.
    pub read: bool,
    /// The device may write guest memory.
    pub write: bool,
}

impl Rights {
    /// Guest RAM.
    pub const READ_WRITE: Self = Self { read: true, write: true };
    /// ROM.
    pub const READ_ONLY: Self = Self { read: true, write: false };

    /// Is `access` among them?
    pub fn allow(self, access: Access) -> bool {
        match access {
            Access::Read => self.read,
            Access::Write => self.write,
        }
    }

    fn prot(self) -> ProtFlags {
        let mut prot = ProtFlags::empty();
        prot.set(ProtFlags::READ, self.read);
        prot.set(ProtFlags::WRITE, self.write);
        prot
    }
}

/// Called when the last pin of a removed region falls; from any thread, must not block.
pub(super) type OnRelease = Arc<dyn Fn() + Send + Sync>;

/// One DMA_MAP of the client. Lives as long as a map snapshot or a pin holds it; the last one unmaps it.
pub struct Region {
    iova: u64,
    len: u64,
    rights: Rights,
    /// `None`: the map came without a descriptor.
    host: Option<Mapping>,
    /// Transfers in flight. Apart from the `Arc` count, which idle snapshots hold too.
    pins: AtomicUsize,
    /// Of these the ones in a call past the page cache: the kernel may have pinned the pages themselves.
    kernel: AtomicUsize,
    /// Out of the published table. Set before `pins` is first looked at, and looked at after `pins` was
    /// raised (both SeqCst): once removed and without pins, a region stays without pins.
    removed: AtomicBool,
    warned: AtomicBool,
    on_release: OnRelease,
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("iova", &format_args!("{:#x}", self.iova))
            .field("len", &format_args!("{:#x}", self.len))
            .field("rights", &self.rights)
            .field("shared", &self.host.is_some())
            .field("pins", &self.pins())
            .field("removed", &self.is_removed())
            .finish()
    }
}

impl Region {
    /// `len` is not 0 and `iova + len - 1` does not wrap; a mapping holds `len` bytes.
    pub(super) fn new(
        iova: u64,
        len: u64,
        rights: Rights,
        host: Option<Mapping>,
        on_release: OnRelease,
    ) -> Self {
        Self {
            iova,
            len,
            rights,
            host,
            pins: AtomicUsize::new(0),
            kernel: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            on_release,
        }
    }

    /// The same range and rights over a second mapping of the same pages; `None` when there is no mapping
    /// or it is dead already.
    pub(super) fn duplicate(&self) -> Option<Result<Self, Errno>> {
        let host = self.host.as_ref().filter(|host| !host.is_dead())?;
        Some(host.duplicate(self.rights).map(|mapping| {
            Self::new(self.iova, self.len, self.rights, Some(mapping), Arc::clone(&self.on_release))
        }))
    }

    /// First guest address.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Length in bytes, never 0.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Last guest address, inclusive: a region may end where the address space does.
    pub fn last(&self) -> u64 {
        self.iova.saturating_add(self.len - 1)
    }

    /// What the client allows.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Transfers in flight that can touch it.
    pub fn pins(&self) -> usize {
        self.pins.load(Ordering::SeqCst)
    }

    /// A call under way may have had its pages pinned by the kernel, so that [`Self::revoke`] does not take them away.
    pub(super) fn is_held(&self) -> bool {
        self.kernel.load(Ordering::SeqCst) > 0
    }

    /// Out of the published table.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    pub(super) fn set_removed(&self) {
        self.removed.store(true, Ordering::SeqCst);
    }

    /// The client's pages are gone: SIGBUS, or revoked.
    pub fn is_dead(&self) -> bool {
        self.host.as_ref().is_some_and(Mapping::is_dead)
    }

    /// May the device do `access`, and is there memory? `address` is what the error names.
    pub(super) fn check(&self, address: u64, access: Access) -> Result<&Mapping, DmaError> {
        if self.removed.load(Ordering::Acquire) {
            return Err(DmaError::Unmapped(address));
        }
        self.check_even_removed(address, access)
    }

    /// As [`check`](Self::check), also when the region has left the table. For who was not fenced since.
    pub(super) fn check_even_removed(&self, address: u64, access: Access) -> Result<&Mapping, DmaError> {
        if !self.rights.allow(access) {
            return Err(DmaError::Denied(address));
        }
        let Some(host) = &self.host else {
            self.warn_once();
            return Err(DmaError::NoDescriptor(address));
        };
        if host.is_dead() {
            return Err(DmaError::Gone(address));
        }
        Ok(host)
    }

    fn warn_once(&self) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            log::warn!(
                "DMA to guest memory {:#x}..={:#x}, which the client mapped without a descriptor, fails: give the \
                 guest shared RAM (QEMU: -object memory-backend-memfd,id=ram,size=...,share=on -machine memory-backend=ram)",
                self.iova,
                self.last()
            );
        }
    }

    /// An empty file takes the place of the client's: whoever still holds a pointer reaches none of its pages. A system
    /// call fails with EFAULT, so that a late write takes no zeroes to a disk for data. An access of our own goes on with
    /// anonymous pages, as after any SIGBUS, and finds the region dead when it is done.
    /// A transfer whose pages the kernel pinned (O_DIRECT) is beyond our reach.
    pub(super) fn revoke(&self) -> Result<(), Errno> {
        self.host.as_ref().map_or(Ok(()), Mapping::revoke)
    }
}

/// Keeps a transfer's region mapped and counted.
pub(super) struct Pin(Arc<Region>);

impl Pin {
    /// `Unmapped` when the region left the table meanwhile.
    pub(super) fn new(region: &Arc<Region>) -> Result<Self, DmaError> {
        region.pins.fetch_add(1, Ordering::SeqCst);
        let pin = Self(Arc::clone(region));
        if region.is_removed() {
            return Err(DmaError::Unmapped(region.iova));
        }
        Ok(pin)
    }

    /// Another one. This one keeps the region, so it can be had even if that has left the table.
    pub(super) fn again(&self) -> Self {
        self.0.pins.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(&self.0))
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.0
    }

    /// A call that pins pages begins or is over.
    pub(super) fn hold(&self, begins: bool) {
        if begins {
            self.0.kernel.fetch_add(1, Ordering::SeqCst);
        } else {
            self.0.kernel.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.0.pins.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.is_removed() {
            (self.0.on_release)();
        }
    }
}

/// A file that cannot be mapped a second time through its mapping (hugetlbfs: the kernel refuses), kept open
/// for that. All regions of one file share it, so that many maps do not cost many descriptors.
pub(super) type KeptFile = Arc<OwnedFd>;

/// Our own mmap of a piece of the client's file.
pub(super) struct Mapping {
    /// Of the mmap, which is rounded to what the file's pages demand.
    base: *mut u8,
    map_len: usize,
    /// Where the region begins in it.
    delta: usize,
    len: usize,
    slot: sigbus::Registration,
    /// Of the file's pages, in bytes; a power of two.
    granule: usize,
    /// For hugetlbfs alone, with the file offset of the region.
    kept: Option<(KeptFile, u64)>,
}

// SAFETY: the pointer names a mapping that this value owns; it is touched only by volatile copies, atomics and
// system calls, all of which may run on any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing behind a shared reference is changed but by atomics and the kernel.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes at `offset` of `file`, which the caller has checked to lie inside the file.
    /// `granule` is the file's page size, a power of two; `keep` as in [`KeptFile`].
    /// Errors: those of mmap; ENOSPC when the SIGBUS table is full.
    pub(super) fn new(
        file: &impl AsFd,
        offset: u64,
        len: usize,
        granule: usize,
        rights: Rights,
        keep: Option<KeptFile>,
    ) -> Result<Self, Errno> {
        let delta = usize::try_from(offset).map_err(|_| Errno::OVERFLOW)? & (granule - 1);
        let start = offset - delta as u64;
        let map_len = delta
            .checked_add(len)
            .and_then(|n| n.checked_next_multiple_of(granule))
            .ok_or(Errno::OVERFLOW)?;
        // SAFETY: the kernel chooses the address, so nothing of ours is replaced.
        let base = unsafe {
            rustix::mm::mmap(ptr::null_mut(), map_len, rights.prot(), MapFlags::SHARED, file, start)
        }?;
        Self::adopt(base.cast(), map_len, delta, len, granule, keep.map(|file| (file, offset)))
    }

    /// Takes over a fresh mmap of `map_len` bytes at `base`.
    fn adopt(
        base: *mut u8,
        map_len: usize,
        delta: usize,
        len: usize,
        granule: usize,
        kept: Option<(KeptFile, u64)>,
    ) -> Result<Self, Errno> {
        // A core dump of the daemon shall hold neither the guest's secrets nor its gigabytes. Advice only.
        // SAFETY: the range is a mapping of ours; the advice does not change its content.
        let _ = unsafe { rustix::mm::madvise(base.cast(), map_len, Advice::LinuxDontDump) };
        let Some(slot) = sigbus::register(base as usize, map_len) else {
            // SAFETY: nobody has seen this mapping yet.
            let _ = unsafe { rustix::mm::munmap(base.cast(), map_len) };
            return Err(Errno::NOSPC);
        };
        Ok(Self { base, map_len, delta, len, slot, granule, kept })
    }

    /// A second mapping of the same pages.
    fn duplicate(&self, rights: Rights) -> Result<Self, Errno> {
        if let Some((file, offset)) = &self.kept {
            let keep = Some(Arc::clone(file));
            return Self::new(file, *offset, self.len, self.granule, rights, keep);
        }
        // SAFETY: an old size of 0 leaves a shared mapping as it is and maps its pages once more, at an address
        // the kernel chooses; a private one (dead already) is refused with EINVAL.
        let base = unsafe { rustix::mm::mremap(self.base.cast(), 0, self.map_len, MremapFlags::MAYMOVE) }?;
        Self::adopt(base.cast(), self.map_len, self.delta, self.len, self.granule, None)
    }

    fn revoke(&self) -> Result<(), Errno> {
        self.slot.set_dead();
        let Some(empty) = empty_file() else {
            // SAFETY: the range is exactly the mapping this value owns; nobody holds references into it.
            return unsafe { sigbus::replace(self.base as usize, self.map_len) };
        };
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: as above; an access beyond the file's end is caught by the SIGBUS handler, which knows the range.
        unsafe { rustix::mm::mmap(self.base.cast(), self.map_len, prot, flags, empty, 0) }.map(drop)
    }

    pub(super) fn is_dead(&self) -> bool {
        self.slot.is_dead()
    }

    /// Host address of byte `offset` of the region. Valid for `self.len - offset` bytes while `self` lives.
    pub(super) fn host_ptr(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.len);
        self.base.wrapping_add(self.delta + offset)
    }

    /// `None` when `offset..offset + len` is not inside.
    fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        (offset <= self.len && len <= self.len - offset).then(|| {
            // SAFETY: the range lies in the mapping, which lives as long as `self`; the guest may change it at
            // any time, which is what a volatile slice allows.
            unsafe { VolatileSlice::new(self.host_ptr(offset), len) }
        })
    }

    /// Copies out; false when out of range or the pages are gone. The region must be readable.
    pub(super) fn read(&self, offset: usize, dst: &mut [u8]) -> bool {
        let Some(slice) = self.slice(offset, dst.len()) else {
            return false;
        };
        slice.copy_to(dst);
        !self.is_dead()
    }

    /// Copies in; false when out of range or the pages are gone. The region must be writable.
    pub(super) fn write(&self, offset: usize, src: &[u8]) -> bool {
        let Some(slice) = self.slice(offset, src.len()) else {
            return false;
        };
        slice.copy_from(src);
        !self.is_dead()
    }

    /// Stores four little-endian dwords, the last one with release order; false when out of range or not 4-byte
    /// aligned. The region must be writable.
    pub(super) fn store_entry(&self, offset: usize, dwords: [u32; 4]) -> bool {
        let Some(slice) = self.slice(offset, 16) else {
            return false;
        };
        let host = slice.ptr_guard_mut().as_ptr().cast::<u32>();
        if !host.is_aligned() {
            return false;
        }
        for (at, dword) in dwords.into_iter().enumerate() {
            let order = if at == 3 { Ordering::Release } else { Ordering::Relaxed };
            // SAFETY: in range and aligned (both checked), valid as long as `self`; other users of the memory in
            // this process access it by volatile copies only.
            unsafe { AtomicU32::from_ptr(host.add(at)) }.store(dword.to_le(), order);
        }
        true
    }

    /// `None` when out of range or not 4-byte aligned. The region must allow what is done with it.
    pub(super) fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
        let slice = self.slice(offset, 4)?;
        let host = slice.ptr_guard_mut().as_ptr();
        (host as usize).is_multiple_of(align_of::<AtomicU32>()).then(|| {
            // SAFETY: in range and aligned (both checked), valid as long as `self`; other users of the memory in
            // this process access it by volatile copies only.
            unsafe { AtomicU32::from_ptr(host.cast()) }
        })
    }
}

/// A file without a byte, which may be mapped all the same; made when it is first needed.
fn empty_file() -> Option<&'static OwnedFd> {
    static EMPTY: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let make = || rustix::fs::memfd_create("revoked", MemfdFlags::CLOEXEC).ok();
    EMPTY.get_or_init(make).as_ref()
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First out of the table: afterwards the addresses may be somebody else's.
        self.slot.release();
        // SAFETY: the range is the mapping this value owns, and whoever could reach it held a reference to it.
        if let Err(error) = unsafe { rustix::mm::munmap(self.base.cast(), self.map_len) } {
            log::error!("munmap of {:#x} bytes of guest memory: {error}", self.map_len);
        }
    }
}
