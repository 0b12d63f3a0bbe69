//! One rule as a checked value: which commands, when, and what they meet.

use std::time::Duration;

use super::matches::Match;
use super::values::Window;
use super::when::When;
use crate::laboratory::lands::Lands;
use crate::laboratory::script::{Bend, Edit, Post};

/// See the module docs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As it was given, for lists.
    pub(super) text: String,
    /// What it is called, if it was given a name.
    pub(super) name: Option<String>,
    pub(super) matches: Match,
    pub(super) when: When,
    pub(super) act: Act,
}

/// What a command meets for which a rule fires.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Act {
    /// It does nothing of what it says.
    pub idle: bool,
    pub ending: Bend,
    pub lands: Lands,
    pub flip: Option<FlipAt>,
    /// Blocks that cannot be read until they are written: the medium is bad, not the command.
    pub bad: Option<Window>,
    pub hold: Option<Hold>,
    /// Where it is held.
    pub place: HoldAt,
    pub post: Post,
    pub spurious: bool,
    pub busy: Option<Duration>,
    pub cfs: bool,
    pub edits: Vec<Edit>,
}

/// Bits that are flipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlipAt {
    /// From the first byte of the command that the rule is about: of its first block in the rule's window, or of the
    /// rule's range.
    pub at: u64,
    pub mask: Vec<u8>,
}

/// How long a command is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// So long.
    For(Duration),
    /// Until it is released.
    UntilReleased,
    /// Until so many others of its queue have ended, a second at most.
    Others(u32),
}

/// Where in its life a command is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HoldAt {
    /// Before it begins.
    #[default]
    Begin,
    /// When it has ended, before the host hears of it.
    End,
    /// One range of a Copy is written later than the others.
    Range(u8),
}
