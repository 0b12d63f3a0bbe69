//! Why an operation on an image failed, or its length stays what it is.

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
    /// A Copy by a way that does not lead from this source to this image.
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

/// Why an image keeps its length, for people: what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ResizeError {
    #[error("an image of this kind keeps its length; give it a file or memory")]
    Fixed,
    #[error("it was opened for reading only; open it with readonly=off")]
    ReadOnly,
    #[error("it has room for {0} bytes at most; make it larger from the start")]
    NoRoom(u64),
    #[error("it is a device of {0} bytes; resize that first, then say its new size here")]
    Device(u64),
    #[error("direct access asks for a multiple of {0} bytes; give one")]
    Uneven(u64),
    #[error("{0}; make room, or allow larger files (ulimit -f)")]
    Io(#[from] std::io::Error),
}

impl DiskError {
    /// Of a call on an image.
    pub(super) fn of_errno(errno: i32) -> Self {
        Self::Io(std::io::Error::from_raw_os_error(errno))
    }
}
