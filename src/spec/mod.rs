//! NVMe on the wire: bytes to typed values and back. No logic, no I/O.
//!
//! Enums on the wire are open: a field with unknown values stays a number, its known values are constants.

pub mod copy;
pub mod status;

pub use status::Status;
