//! What the host is told when an operation of a Copy fails: the one place where a backend's error becomes a status.

use std::io::ErrorKind;

use crate::disk::DiskError;
use crate::spec::Status;

/// Which part of the Copy an operation belonged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// A read of a source range.
    Source,
    /// A write to the destination, or its barrier.
    Destination,
}

/// The status for `error`. No DNR where another try may succeed.
pub(super) fn status(side: Side, error: &DiskError) -> Status {
    match (side, error) {
        (Side::Source, DiskError::Io(_) | DiskError::Truncated) => Status::UNRECOVERED_READ,
        // Of the probes that come before the first write, no other operation asks.
        (_, DiskError::Deallocated) => Status::DEALLOCATED_BLOCK,
        // A sparse image on a full file system is a thin namespace out of capacity; a host knows what to do about that.
        (Side::Destination, DiskError::Io(e))
            if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            Status::CAPACITY_EXCEEDED
        }
        (Side::Destination, DiskError::Io(_) | DiskError::Truncated) => Status::WRITE_FAULT,
        (_, DiskError::Source { error, .. }) => status(Side::Source, error),
        (Side::Destination, DiskError::ReadOnly) => Status::WRITE_PROTECTED.dnr(),
        // A bounce buffer is not guest memory, and a read needs no leave to write.
        // A shortcut that is not there is replaced by another way before it gets here.
        (Side::Source, DiskError::ReadOnly) | (_, DiskError::GuestMemory | DiskError::NoWay) => {
            Status::INTERNAL_ERROR
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_status() {
        let io = |kind: ErrorKind| DiskError::Io(kind.into());
        for (side, error, expected) in [
            (Side::Source, io(ErrorKind::Other), 0x281),
            (Side::Source, io(ErrorKind::StorageFull), 0x281),
            (Side::Source, DiskError::Truncated, 0x281),
            (Side::Source, DiskError::Deallocated, 0x287),
            (Side::Source, DiskError::ReadOnly, 0x006),
            (Side::Source, DiskError::GuestMemory, 0x006),
            (Side::Destination, io(ErrorKind::Other), 0x280),
            (Side::Destination, DiskError::Io(std::io::Error::from_raw_os_error(libc::EIO)), 0x280),
            (Side::Destination, DiskError::Io(std::io::Error::from_raw_os_error(libc::ENOSPC)), 0x081),
            (Side::Destination, DiskError::Io(std::io::Error::from_raw_os_error(libc::EDQUOT)), 0x081),
            (Side::Destination, DiskError::Truncated, 0x280),
            (Side::Destination, DiskError::ReadOnly, 0x4020),
            (Side::Destination, DiskError::GuestMemory, 0x006),
        ] {
            assert_eq!(status(side, &error), Status(expected), "{side:?} {error:?}");
        }
    }
}
