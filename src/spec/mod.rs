//! NVMe on the wire: bytes to typed values and back. No logic, no I/O.
//!
//! Enums on the wire are open: a field with unknown values stays a number, its known values are constants.

pub mod command;
pub mod commands;
pub mod copy;
pub mod feature;
pub mod identify;
pub mod log_page;
pub mod registers;
pub mod status;

pub use command::{Cqe, Sqe};
pub use status::{Outcome, Status};

/// The NSID that stands for all namespaces (and for none, where one is asked for).
pub const NSID_BROADCAST: u32 = 0xffff_ffff;

/// Bytes of every Identify data structure.
pub const IDENTIFY_SIZE: usize = 4096;

/// A count stored as itself minus one. The stored value leaves only widened, so that adding one cannot wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroBased(pub u16);

impl ZeroBased {
    /// The count itself, 1 to 65536.
    pub const fn count(self) -> u32 {
        self.0 as u32 + 1
    }
}
