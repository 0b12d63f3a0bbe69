//! The commands, a file each.

pub mod set;
pub mod status;
