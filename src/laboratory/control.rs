//! What a laboratory is asked by the control thread: of admin commands, and of what a host does with CC.

use super::seam::Fate;
use super::until::Until;
use crate::spec::Sqe;

/// What a host does by writing CC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterEvent {
    /// EN goes from 0 to 1: until CSTS.RDY is 1.
    Enable,
    /// EN goes from 1 to 0, controller reset: until CSTS.RDY is 0.
    Disable,
    /// SHN asks for a shutdown: until CSTS.SHST says that it is complete.
    Shutdown,
}

impl RegisterEvent {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Enable, Self::Disable, Self::Shutdown];

    /// As rules and logs name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What such a write meets.
#[derive(Debug, Default)]
pub struct RegisterFate {
    /// What the answer in CSTS waits for.
    pub until: Until,
    /// The controller goes fatal instead: why.
    pub fatal: Option<String>,
}

/// One for all controllers, which may be asked by several threads at once. As a [`Lab`](super::Lab) is it
/// must be quick.
pub trait ControlLab: Send + Sync {
    /// An admin command was taken; `depth` are in flight, this one counted.
    fn fetched(&self, sqe: &Sqe, depth: usize) -> Fate;

    /// An admin command has ended.
    fn ended(&self);

    /// A host writes CC.
    fn register(&self, event: RegisterEvent) -> RegisterFate;
}
