//! What really moved the bytes of a Copy.

use crate::disk::Moved;

/// A part of a destination that was written, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes from the start of the destination.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// What moved them.
    pub by: By,
}

/// What moves the bytes of a Copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum By {
    /// Moved within the memory of this process.
    MemMove,
    /// Destination and source share their blocks.
    Shared,
    /// The kernel copied them (copy_file_range). A file system that can share blocks may have done that instead.
    KernelCopy,
    /// Read into a buffer of ours and written.
    ReadWrite,
}

impl By {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::MemMove, Self::Shared, Self::KernelCopy, Self::ReadWrite];

    pub(super) fn of(moved: Moved) -> Self {
        match moved {
            Moved::MemMove => Self::MemMove,
            Moved::Shared => Self::Shared,
            Moved::KernelCopy => Self::KernelCopy,
            // The write of what a read before it has brought.
            Moved::Plain | Moved::ReadWrite => Self::ReadWrite,
        }
    }

    /// The one of this word.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.word() == word)
    }

    /// Names it in logs that programs read.
    pub const fn word(self) -> &'static str {
        match self {
            Self::MemMove => "memmove",
            Self::Shared => "shared",
            Self::KernelCopy => "kernel",
            Self::ReadWrite => "read-write",
        }
    }
}
