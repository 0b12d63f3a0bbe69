//! Module errors to what the guest sees. The only place where this translation is made; see also copy/status.rs.

use crate::disk::DiskError;
use crate::memory::DmaError;
use crate::memory::prp::PrpError;
use crate::memory::sgl::SglError;
use crate::namespace::{NoNamespace, Refusal};
use crate::spec::Status;

/// Guest memory that cannot be reached fails the command. No DNR: the mapping may be a passing state of the client.
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

/// Which way the data was going when the backend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the image.
    Read,
    /// To the image, or a change or flush of it.
    Write,
}

/// A backend's failure as a status. Media errors carry no DNR: a retry may well succeed.
pub fn backend(error: &DiskError, direction: Direction) -> Status {
    match error {
        DiskError::GuestMemory => Status::DATA_TRANSFER_ERROR,
        DiskError::NoWay => Status::INTERNAL_ERROR, // only Copy asks for one, and it has another way
        DiskError::Deallocated => Status::DEALLOCATED_BLOCK,
        DiskError::Source { error, .. } => backend(error, Direction::Read),
        DiskError::ReadOnly => Status::WRITE_PROTECTED.dnr(),
        DiskError::Io(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
            Status::CAPACITY_EXCEEDED
        }
        DiskError::Io(_) | DiskError::Truncated => match direction {
            Direction::Read => Status::UNRECOVERED_READ,
            Direction::Write => Status::WRITE_FAULT,
        },
    }
}
