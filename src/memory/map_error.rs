//! What is answered to a DMA_MAP or DMA_UNMAP that is not carried out.

use rustix::io::Errno;

/// Why a map or unmap was refused.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Size 0, wrapping, misaligned, beyond the end of the file, or not a file that can be mapped.
    #[error("invalid DMA map: {0}")]
    Invalid(&'static str),
    /// Another map, or the same, covers some of the range.
    #[error("the range overlaps an earlier DMA map")]
    Overlap,
    /// One of [`DmaLimits`], or the process-wide table of regions.
    #[error("too many or too large DMA maps")]
    Limit,
    /// Nothing is mapped there.
    #[error("no such DMA map")]
    NotMapped,
    /// The range is not exactly one earlier map.
    #[error("the range is not exactly one earlier DMA map")]
    NotExact,
    /// A file whose pages somebody else has to bring; its file system is named.
    #[error(
        "guest memory on {0} is not used, for who serves it can hold the device up: give the guest a memfd, or files on \
         tmpfs, hugetlbfs or a local disk"
    )]
    Foreign(String),
    /// The kernel refused to map the file.
    #[error("cannot map the memory: {0}")]
    Host(#[source] Errno),
}

impl MapError {
    /// For the error reply: positive, never 0.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Invalid(_) | Self::NotExact | Self::Foreign(_) => libc::EINVAL,
            Self::Overlap => libc::EEXIST,
            Self::Limit => libc::ENOSPC,
            Self::NotMapped => libc::ENOENT,
            Self::Host(errno) => errno.raw_os_error().max(1),
        }
    }
}
