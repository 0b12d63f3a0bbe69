//! A page of doorbells, as a driver sees it: plain stores and loads, at full speed.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::memory::{Memory, PAGE};

/// Doorbells in mapped memory.
#[derive(Clone, Debug)]
pub struct Page {
    memory: Arc<Memory>,
    /// Offset of the first.
    at: usize,
}

impl Page {
    /// A mapping of its own of one page of a file.
    pub fn map(fd: BorrowedFd<'_>, offset: u64) -> Page {
        let memory = Memory::map(fd, offset, PAGE).expect("map a page");
        Page::within(Arc::new(memory), 0)
    }

    /// What lies at `at` in a mapping that is there.
    pub fn within(memory: Arc<Memory>, at: usize) -> Page {
        Page { memory, at }
    }

    /// So many are mapped.
    pub fn words(&self) -> usize {
        (self.memory.size() - self.at) / 4
    }

    /// Doorbell `index`: where they lie side by side, 2 q is the tail of SQ q, 2 q + 1 the head of CQ q.
    #[inline]
    pub fn word(&self, index: usize) -> &AtomicU32 {
        self.memory.word(self.at + 4 * index)
    }
}
