//! Module errors to what an NVMe host sees: the only place where this translation is made.

use std::io::ErrorKind;

use crate::block::{BlockError, Direction};
use crate::disk::DiskError;
use crate::memory::DmaError;
use crate::memory::prp::PrpError;
use crate::memory::sgl::SglError;
use crate::namespace::{NoNamespace, Refusal};
use crate::spec::Status;

/// Guest memory that cannot be reached fails the command. No DNR: the mapping may be a passing state of the
/// client.
impl From<DmaError> for Status {
    fn from(_: DmaError) -> Self {
        Self::DATA_TRANSFER_ERROR
    }
}

impl From<PrpError> for Status {
    fn from(error: PrpError) -> Self {
        match error {
            PrpError::Offset => Self::PRP_OFFSET_INVALID.dnr(),
            PrpError::Dma(error) => error.into(),
        }
    }
}

impl From<SglError> for Status {
    fn from(error: SglError) -> Self {
        match error {
            SglError::SegmentInvalid => Self::INVALID_SGL_SEGMENT.dnr(),
            SglError::NumberInvalid => Self::INVALID_SGL_COUNT.dnr(),
            SglError::LengthInvalid => Self::INVALID_SGL_LENGTH.dnr(),
            SglError::TypeInvalid => Self::INVALID_SGL_TYPE.dnr(),
            SglError::OffsetInvalid => Self::SGL_OFFSET_INVALID.dnr(),
            SglError::Dma(error) => error.into(),
        }
    }
}

impl From<NoNamespace> for Status {
    fn from(error: NoNamespace) -> Self {
        match error {
            NoNamespace::Invalid => Self::INVALID_NAMESPACE.dnr(),
            NoNamespace::Inactive => Self::INVALID_FIELD.dnr(),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::WriteProtected => Self::WRITE_PROTECTED.dnr(),
            Refusal::OutOfRange => Self::LBA_OUT_OF_RANGE.dnr(),
        }
    }
}

impl From<BlockError> for Status {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Image(error, direction) => image(&error, direction),
            BlockError::Memory(error) => error.into(),
            BlockError::Miscompare => Self::COMPARE_FAILURE.dnr(),
            BlockError::Aborted => Self::ABORT_REQUESTED,
            BlockError::Internal => Self::INTERNAL_ERROR,
        }
    }
}

/// An image's failure. Media errors carry no DNR: a retry may well succeed.
pub fn image(error: &DiskError, direction: Direction) -> Status {
    match error {
        DiskError::GuestMemory => Status::DATA_TRANSFER_ERROR,
        DiskError::NoWay => Status::INTERNAL_ERROR, // only Copy asks for one, and it has another
        // Of the probes that come before the first read or write; no other operation asks.
        DiskError::Deallocated => Status::DEALLOCATED_BLOCK,
        DiskError::Source { error, .. } => image(error, Direction::Read),
        DiskError::ReadOnly => Status::WRITE_PROTECTED.dnr(),
        // A sparse image on a full file system is a thin namespace out of capacity; a host knows what to do
        // about that.
        DiskError::Io(error)
            if direction == Direction::Write
                && matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            Status::CAPACITY_EXCEEDED
        }
        DiskError::Io(_) | DiskError::Truncated => match direction {
            Direction::Read => Status::UNRECOVERED_READ,
            Direction::Write => Status::WRITE_FAULT,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn every_failure_of_an_image_has_its_status() {
        let kind = |kind: ErrorKind| DiskError::Io(kind.into());
        let errno = |errno| DiskError::Io(io::Error::from_raw_os_error(errno));
        for (error, read, write) in [
            (kind(ErrorKind::Other), 0x281, 0x280),
            (errno(libc::EIO), 0x281, 0x280),
            (errno(libc::ENOSPC), 0x281, 0x081),
            (errno(libc::EDQUOT), 0x281, 0x081),
            (kind(ErrorKind::StorageFull), 0x281, 0x081),
            (DiskError::Truncated, 0x281, 0x280),
            (DiskError::Deallocated, 0x287, 0x287),
            (DiskError::ReadOnly, 0x4020, 0x4020),
            (DiskError::GuestMemory, 0x004, 0x004),
        ] {
            let seen = [Direction::Read, Direction::Write].map(|direction| image(&error, direction));
            assert_eq!(seen, [Status(read), Status(write)], "{error:?}");
        }
    }
}
