//! What a command that succeeded counts as in the SMART log.

use crate::nvme_ctrl::shared::Counters;

/// See the module docs. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// A read of so many.
    Read(u64),
    /// A write of so many.
    Wrote(u64),
    /// A Verify of so many.
    Verified(u64),
    /// Not counted.
    Nothing,
}

impl Account {
    pub(super) fn count(self, counters: &Counters) {
        match self {
            Self::Read(bytes) => counters.read(bytes),
            Self::Wrote(bytes) => counters.wrote(bytes),
            Self::Verified(bytes) => counters.verified(bytes),
            Self::Nothing => {}
        }
    }
}
