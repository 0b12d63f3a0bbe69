//! What the control thread asked for and is to be answered when it is done.

use super::messages::Token;

/// An Abort of a command that has not been fetched yet, or never was.
pub(super) struct Aborting {
    pub sqid: u16,
    pub cid: u16,
    pub token: Token,
    /// The tail of the queue when the Abort came: what lies before it was rung for earlier than the Abort.
    pub tail: u16,
    /// Commands to fetch until there.
    pub left: u32,
}

/// A Flush of all namespaces on behalf of the control thread (shutdown, write cache off).
pub(super) struct Flushing {
    /// Its tags lie above all slots.
    pub id: u32,
    pub token: Token,
    pub left: usize,
    pub ok: bool,
}

/// Slot numbers from here on belong to [`Flushing`]s.
pub(super) const FLUSH_SLOTS: u32 = 1 << 31;
