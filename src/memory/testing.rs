//! Guest memory for tests: a client's memfd and a table that maps it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{DmaLimits, DmaMap, DmaSpace, Rights};

/// A memfd of `size` bytes, as a client would send it.
pub(crate) fn memfd(size: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, size).unwrap();
    file
}

/// Guest RAM: one memfd, and the table it is mapped in.
pub(crate) struct Guest {
    pub(crate) file: OwnedFd,
    pub(crate) space: DmaSpace,
    released: Arc<AtomicUsize>,
}

impl Guest {
    /// RAM of `size` bytes, not mapped yet.
    pub(crate) fn unmapped(size: u64) -> Self {
        let released = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&released);
        let on_release = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        Self { file: memfd(size), space: DmaSpace::new(DmaLimits::default(), on_release), released }
    }

    /// RAM of `size` bytes, all of it mapped at `iova`.
    pub(crate) fn new(iova: u64, size: u64) -> Self {
        let mut guest = Self::unmapped(size);
        guest.map(iova, size, Rights::READ_WRITE, 0);
        guest
    }

    pub(crate) fn map(&mut self, iova: u64, size: u64, rights: Rights, offset: u64) {
        self.space.map(iova, size, rights, offset, Some(self.file.as_fd())).unwrap();
    }

    /// The table as it is now.
    pub(crate) fn dma(&self) -> Arc<DmaMap> {
        self.space.epoch().load_full()
    }

    /// How often `on_release` was called.
    pub(crate) fn releases(&self) -> usize {
        self.released.load(Ordering::SeqCst)
    }

    /// What the guest sees, by file offset.
    pub(crate) fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert_eq!(rustix::io::pread(&self.file, &mut bytes, offset).unwrap(), len);
        bytes
    }

    /// The guest writes, by file offset.
    pub(crate) fn set(&self, offset: u64, bytes: &[u8]) {
        assert_eq!(rustix::io::pwrite(&self.file, bytes, offset).unwrap(), bytes.len());
    }
}
