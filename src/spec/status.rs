//! Status codes (Completion Queue Entry, Status field).

use std::fmt;

/// A completion status as it is written into the CQE's upper half-word without the phase bit: SC in 7:0,
/// SCT in 10:8, CRD in 12:11, More in 13, DNR in 14. `Status(0x4183)` reads as SCT 1, SC 83h, DNR.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

impl Status {
    /// Do Not Retry: the command would fail again as it stands.
    pub const DNR: u16 = 0x4000;

    /// More: the Error Information log has an entry of the command.
    const MORE: u16 = 0x2000;

    /// The same status with DNR set.
    pub const fn dnr(self) -> Self {
        Self(self.0 | Self::DNR)
    }

    /// The same status with More set.
    pub const fn more(self) -> Self {
        Self(self.0 | Self::MORE)
    }

    /// The same status with More or without.
    pub const fn with_more(self, more: bool) -> Self {
        if more { self.more() } else { Self(self.0 & !Self::MORE) }
    }

    /// The same status with this Command Retry Delay (0 to 3).
    pub const fn retry_delay(self, crd: u8) -> Self {
        Self(self.0 | (crd as u16 & 3) << 11)
    }

    /// Status Code Type and Status Code alone.
    pub const fn code(self) -> Self {
        Self(self.0 & 0x7ff)
    }

    /// Status Code, 7:0.
    pub const fn sc(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Status Code Type, 10:8.
    pub const fn sct(self) -> u8 {
        ((self.0 >> 8) & 7) as u8
    }

    /// Successful Completion?
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// The Error Information log has an entry of the command?
    pub const fn has_more(self) -> bool {
        self.0 & Self::MORE != 0
    }

    /// Command Retry Delay, 12:11.
    pub const fn crd(self) -> u8 {
        ((self.0 >> 11) & 3) as u8
    }

    /// The host is told not to retry?
    pub const fn has_dnr(self) -> bool {
        self.0 & Self::DNR != 0
    }
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Status {
            $(#[doc = $text] $(#[$doc])* pub const $name: Self = Self($value);)*

            /// All that have a name here.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The specification's name, if it is one we know.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 & 0x7ff {
                    $($value => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

// Figures "Status Code - Generic / Command Specific / Media and Data Integrity Errors".
statuses! {
    SUCCESS = 0x000, "Successful Completion";
    INVALID_OPCODE = 0x001, "Invalid Command Opcode";
    INVALID_FIELD = 0x002, "Invalid Field in Command";
    CID_CONFLICT = 0x003, "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0x004, "Data Transfer Error";
    INTERNAL_ERROR = 0x006, "Internal Error";
    ABORT_REQUESTED = 0x007, "Command Abort Requested";
    SQ_DELETION = 0x008, "Command Aborted due to SQ Deletion";
    INVALID_NAMESPACE = 0x00b, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = 0x00c, "Command Sequence Error";
    INVALID_SGL_SEGMENT = 0x00d, "Invalid SGL Segment Descriptor";
    INVALID_SGL_COUNT = 0x00e, "Invalid Number of SGL Descriptors";
    INVALID_SGL_LENGTH = 0x00f, "Data SGL Length Invalid";
    INVALID_SGL_TYPE = 0x011, "SGL Descriptor Type Invalid";
    PRP_OFFSET_INVALID = 0x013, "PRP Offset Invalid";
    SGL_OFFSET_INVALID = 0x016, "SGL Offset Invalid";
    SGL_GRANULARITY = 0x01e, "SGL Data Block Granularity Invalid";
    SANITIZE_IN_PROGRESS = 0x01d, "Sanitize In Progress";
    WRITE_PROTECTED = 0x020, "Namespace is Write Protected";
    LBA_OUT_OF_RANGE = 0x080, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0x081, "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0x082, "Namespace Not Ready";
    FORMAT_IN_PROGRESS = 0x084, "Format In Progress";
    CQ_INVALID = 0x100, "Completion Queue Invalid";
    INVALID_QID = 0x101, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 0x102, "Invalid Queue Size";
    ABORT_LIMIT = 0x103, "Abort Command Limit Exceeded";
    AER_LIMIT = 0x105, "Asynchronous Event Request Limit Exceeded";
    INVALID_VECTOR = 0x108, "Invalid Interrupt Vector";
    INVALID_LOG_PAGE = 0x109, "Invalid Log Page";
    INVALID_QUEUE_DELETION = 0x10c, "Invalid Queue Deletion";
    FEATURE_NOT_SAVEABLE = 0x10d, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 0x10e, "Feature Not Changeable";
    FEATURE_NOT_NS_SPECIFIC = 0x10f, "Feature Not Namespace Specific";
    CONFLICTING_ATTRIBUTES = 0x180, "Conflicting Attributes";
    INVALID_PROTECTION_INFO = 0x181, "Invalid Protection Information";
    READ_ONLY_RANGE = 0x182, "Attempted Write to Read Only Range";
    COMMAND_SIZE_LIMIT = 0x183, "Command Size Limit Exceeded";
    INCOMPATIBLE_NAMESPACE = 0x185, "Incompatible Namespace or Format";
    FAST_COPY_NOT_POSSIBLE = 0x186, "Fast Copy Not Possible";
    OVERLAPPING_RANGE = 0x187, "Overlapping I/O Range";
    INSUFFICIENT_RESOURCES = 0x189, "Insufficient Resources";
    WRITE_FAULT = 0x280, "Write Fault";
    UNRECOVERED_READ = 0x281, "Unrecovered Read Error";
    COMPARE_FAILURE = 0x285, "Compare Failure";
    DEALLOCATED_BLOCK = 0x287, "Deallocated or Unwritten Logical Block";
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#05x}", self.0)?;
        match self.name() {
            Some(name) => write!(f, " ({name})"),
            None => Ok(()),
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Status.
    pub status: Status,
    /// DW0 of the completion.
    pub dw0: u32,
}

impl Outcome {
    /// An outcome without command-specific result.
    pub fn of(status: Status) -> Self {
        Self { status, dw0: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_apart() {
        let status = Status::COMMAND_SIZE_LIMIT.dnr();
        assert_eq!(status.0, 0x4183);
        assert_eq!((status.sct(), status.sc(), status.has_dnr()), (1, 0x83, true));
        assert!(!status.is_success() && Status::SUCCESS.is_success());
        assert_eq!(format!("{status:?}"), "0x4183 (Command Size Limit Exceeded)");
        assert_eq!(Status::WRITE_FAULT.retry_delay(2).more().0, 0x3280);
        assert_eq!(Status::WRITE_FAULT.more().with_more(false), Status::WRITE_FAULT);
        assert!(Status::ALL.iter().all(|status| status.name().is_some() && status.code() == *status));
    }
}
