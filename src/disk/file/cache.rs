//! How an image is cached: QEMU's `cache=` modes.

/// Who keeps what was written before it is durable. Names and meanings are QEMU's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// The host's page cache; Flush and FUA make durable.
    #[default]
    Writeback,
    /// No page cache (O_DIRECT); the disk's own cache is volatile, Flush and FUA make durable.
    None,
    /// The host's page cache for reading; every write is durable when it completes.
    Writethrough,
    /// No page cache, and every write is durable when it completes.
    Directsync,
    /// The host's page cache; Flush and FUA succeed and do nothing.
    Unsafe,
}

impl CacheMode {
    /// All of them with the words of `cache=`.
    pub const ALL: [(&'static str, CacheMode); 5] = [
        ("writeback", CacheMode::Writeback),
        ("none", CacheMode::None),
        ("writethrough", CacheMode::Writethrough),
        ("directsync", CacheMode::Directsync),
        ("unsafe", CacheMode::Unsafe),
    ];

    /// As `cache=` calls it.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).map_or("", |(word, _)| word)
    }

    /// Past the page cache?
    pub fn is_direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }

    /// Is what was written durable when it completes, asked for or not?
    pub fn is_write_through(self) -> bool {
        matches!(self, CacheMode::Writethrough | CacheMode::Directsync)
    }

    /// Are Flush and FUA left undone?
    pub fn is_unsafe(self) -> bool {
        self == CacheMode::Unsafe
    }
}
