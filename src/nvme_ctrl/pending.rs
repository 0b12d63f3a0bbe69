//! Admin commands whose completion waits for a worker.

use super::error_log::Failed;

/// An admin command that waits for a worker.
#[derive(Debug)]
pub struct Pending {
    /// The command.
    pub command: Failed,
    /// What is to be done then.
    pub then: Then,
}

/// What follows a worker's acknowledgement.
#[derive(Debug)]
pub enum Then {
    /// Delete I/O Submission Queue of this QID.
    DeleteSq(u16),
    /// Delete I/O Completion Queue of this QID.
    DeleteCq(u16),
    /// Abort: the answer says whether the command will end aborted.
    Abort,
    /// Set Features that turned the write cache off.
    CacheFlushed,
}
