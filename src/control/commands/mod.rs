//! The commands, a file each.

pub mod fault;
pub mod set;
pub mod status;
