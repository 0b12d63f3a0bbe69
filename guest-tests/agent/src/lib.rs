//! What host and guest share: the messages between them, and the patterns both can compute.

pub mod pattern;
pub mod wire;
