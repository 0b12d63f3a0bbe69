//! What data a command moves, and which way.

use crate::laboratory::Layout;

/// Which way the data of a command goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Read: to the host.
    ToHost,
    /// Write, Write Zeroes, Copy: to the image.
    ToImage,
    /// Compare, Verify: nowhere. Dataset Management: to places that its submission does not name.
    Nowhere,
}

/// The data of a command.
#[derive(Clone, Debug)]
pub struct Data {
    /// Which way it goes.
    pub direction: Direction,
    /// Where its first byte is in the image: of the destination, if it is a Copy.
    pub start: u64,
    /// How it is laid out.
    pub layout: Layout,
}
