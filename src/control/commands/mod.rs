//! The commands, a file each.

pub mod copies;
pub mod drain;
pub mod fault;
pub mod inspect;
pub mod namespaces;
pub mod oracle;
pub mod resize;
pub mod set;
pub mod stats;
pub mod status;
