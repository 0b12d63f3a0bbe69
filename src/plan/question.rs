//! A question that can be answered.

use super::imagined::{Assume, Imagined};
use crate::copy::{Capabilities, SourceRange};
use crate::spec::copy::CopyCommand;

/// A Copy, and all that its fate depends on.
#[derive(Debug)]
pub struct Question {
    pub(super) command: CopyCommand,
    pub(super) is_fused: bool,
    /// `None`: they are not known.
    pub(super) ranges: Option<Vec<SourceRange>>,
    pub(super) namespaces: Vec<Imagined>,
    pub(super) capabilities: Capabilities,
    pub(super) assume: Assume,
    pub(super) json: bool,
}

/// Why there is no question.
#[derive(Debug, thiserror::Error)]
pub enum NoQuestion {
    /// What was said on the command line cannot be.
    #[error("{0}")]
    Usage(String),
    /// What was to be read cannot be had, or is none.
    #[error("{0}")]
    Input(String),
}

impl NoQuestion {
    /// Process exit code: 2 for a mistake in the words, 4 where what was to be looked at is not there.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Input(_) => 4,
        }
    }
}
