//! What is measured: a load, and what no server can beat at it.

use std::path::PathBuf;

use super::pattern::Rw;

/// One row: a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) rw: Rw,
    pub(crate) bytes: u64,
    pub(crate) depth: u16,
    pub(crate) queues: u16,
    pub(crate) mix: u8,
    pub(crate) limits: Vec<Limit>,
}

/// Rows measured one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Suite {
    /// For a memory namespace: beside memcpy and the floor.
    Memory,
    /// For a raw image: beside io_uring on the same file.
    File(FileLimit),
}

/// What no server can beat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// memcpy of the same blocks by one thread.
    Memory {
        /// Huge pages under the working set.
        huge: bool,
    },
    /// An io_uring loop on a file.
    File(FileLimit),
    /// Two threads that hand over a command and an answer.
    Floor,
}

/// A file, and how it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileLimit {
    pub(crate) path: PathBuf,
    /// O_DIRECT.
    pub(crate) direct: bool,
}
