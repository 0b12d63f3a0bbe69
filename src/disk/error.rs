//! Why an operation on an image failed.

/// The NVMe status is chosen elsewhere, in one place.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The kernel refused or failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A range beyond the image, or a file shorter than its namespace: it was truncated under us.
    #[error("the image ends before the range does")]
    Truncated,
    /// The guest pages of the transfer are gone (EFAULT).
    #[error("guest memory of the transfer is gone")]
    GuestMemory,
    /// A Copy by a way that does not lead from this source to this image. Nothing has changed.
    #[error("this way of copying does not lead from one image to the other")]
    NoWay,
    /// A Probe of a range with a byte that was never written, or has been given back.
    #[error("a part of the range is not allocated")]
    Deallocated,
    /// The reading side of a Copy.
    #[error("reading what is to be copied: {error}")]
    Source {
        /// Bytes that had been read.
        at: u64,
        /// Why it went no further.
        error: Box<DiskError>,
    },
    /// Write to a read-only image.
    #[error("the image is read-only")]
    ReadOnly,
}

impl DiskError {
    /// Of a call on an image.
    pub(super) fn of_errno(errno: i32) -> Self {
        Self::Io(std::io::Error::from_raw_os_error(errno))
    }
}
