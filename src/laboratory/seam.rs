//! What a laboratory is asked and told.

use std::sync::Arc;

use super::script::{Post, Script};
use crate::copy::{CopyPlan, Reject, SourceRange, Written};
use crate::namespace::{Lbas, Namespace};
use crate::spec::{Outcome, Sqe, Status};

/// Names a command in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId {
    /// Which command it is of those that laboratories of this worker have seen fetched, from 1 on; 0 for one
    /// that was fetched before. Hosts may give two commands in flight one CID, this tells them apart.
    pub serial: u64,
    /// SQID.
    pub sqid: u16,
    /// CID.
    pub cid: u16,
}

/// What is to become of a command that was fetched.
#[derive(Debug, Default)]
pub enum Fate {
    /// It goes its way.
    #[default]
    Pass,
    /// It ends with this status and does nothing.
    End(Status),
    /// It meets this.
    Script(Box<Script>),
}

impl Fate {
    /// This one, unless it lets the command pass: then `next`.
    #[must_use]
    pub fn or(self, next: Self) -> Self {
        if matches!(self, Self::Pass) { next } else { self }
    }
}

/// A command that was taken from its queue.
#[derive(Clone, Copy, Debug)]
pub struct Fetched<'a> {
    /// The command.
    pub sqe: &'a Sqe,
    /// What its NSID names, if that is a namespace.
    pub ns: Option<&'a Namespace>,
    /// Commands of its queue in flight, this one counted.
    pub depth: usize,
}

/// The host's memory of a command's transfer.
pub trait HostData: Send {
    /// Reads it from byte `offset` on; false when it cannot be.
    fn read(&self, offset: usize, into: &mut [u8]) -> bool;
}

/// A command that passed its checks and has yet to move its first byte.
#[derive(Clone, Copy)]
pub struct Accepted<'a> {
    /// The command.
    pub sqe: &'a Sqe,
    /// Its namespace.
    pub ns: &'a Arc<Namespace>,
    /// Of a Read and a Write: the host's memory. It stays mapped while this is held, so no longer than the command
    /// is in flight. `None` when there is none that can be looked at.
    pub data: &'a dyn Fn() -> Option<Box<dyn HostData>>,
    /// Of a Dataset Management: what is deallocated.
    pub freed: &'a [Lbas],
}

/// A laboratory, as one worker's thread asks it. None of its answers may take long: the worker's other
/// commands wait.
///
/// It may be put on and taken off while commands are in flight. So the end of a command may come that it
/// never saw fetched, and the end of one that it saw may never come.
pub trait Lab: Send {
    /// A command was taken from its queue.
    fn fetched(&mut self, _id: CommandId, _command: Fetched<'_>) -> Fate {
        Fate::Pass
    }

    /// The source ranges of a Copy were read. What is wrong with them has yet to be found out.
    fn listed(&mut self, _id: CommandId, _ranges: &[SourceRange]) {}

    /// A Copy passed all its checks, and this is what it is about to do. Comes before the next command is
    /// fetched. The answer counts where [`Self::fetched`] let it pass.
    fn planned(&mut self, _id: CommandId, _plan: &CopyPlan) -> Fate {
        Fate::Pass
    }

    /// A command is about to begin: it was not refused, and no laboratory ends it. Comes after [`Self::planned`]
    /// and before anything of it has moved. Its end is told by [`Self::over`].
    fn accepted(&mut self, _id: CommandId, _command: Accepted<'_>) {}

    /// A Copy was refused, and has changed nothing. `why` names the rule.
    fn refused(&mut self, _id: CommandId, _why: &Reject) {}

    /// A part of a Copy was written.
    fn moved(&mut self, _id: CommandId, _part: Written) {}

    /// A command ended. The outcome is what its completion will say.
    fn ended(&mut self, _id: CommandId, _outcome: &mut Outcome) -> Post {
        Post::Once
    }

    /// Nothing more comes of a command. The outcome is what its host was told, and `post` how; `None`: nobody
    /// was, its queue is gone.
    fn over(&mut self, _id: CommandId, _outcome: &Outcome, _post: Option<Post>) {}

    /// The worker has failed. Nothing is heard any more of the commands that it had in flight, which may still go on.
    fn failed(&mut self) {}
}
