//! One mapped range of guest memory.
/// One mapped range of guest memory.
#[derive(Debug)]
pub struct Region {}
