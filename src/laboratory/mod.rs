//! The seam where a laboratory looks at commands and bends their ends.
//!
//! Each worker has a [`Lab`] of its own, or none. Without one the worker's loops do not contain it: they ask once for a
//! queue and turn. With one, every command of the worker's queues goes the long way, so that the laboratory sees it:
//! fetched, planned if it is a Copy, ended.

use std::sync::Arc;

use crate::copy::CopyPlan;
use crate::namespace::Namespace;
use crate::spec::{Outcome, Sqe, Status};

/// Names a command in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandId {
    /// SQID.
    pub sqid: u16,
    /// CID.
    pub cid: u16,
}

/// What is to become of a command that was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes its way.
    Pass,
    /// It ends with this status and does nothing.
    End(Status),
}

/// What is to become of a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Post {
    /// It is posted.
    Once,
    /// It is lost: the host never hears of the command's end.
    Never,
    /// It is posted, and once more if the completion queue has room.
    Twice,
}

/// A laboratory, as one worker's thread asks it. None of its answers may take long: the worker's other commands wait.
pub trait Lab: Send {
    /// A command was taken from its queue. `ns` is what its NSID names, if that is a namespace.
    fn fetched(&mut self, _id: CommandId, _sqe: &Sqe, _ns: Option<&Namespace>) -> Fate {
        Fate::Pass
    }

    /// A Copy passed all its checks, and this is what it is about to do.
    fn planned(&mut self, _id: CommandId, _plan: &CopyPlan) {}

    /// A command ended. The outcome is what its completion will say.
    fn ended(&mut self, _id: CommandId, _outcome: &mut Outcome) -> Post {
        Post::Once
    }
}

/// Makes a worker's laboratory.
pub type LabFactory = Arc<dyn Fn() -> Box<dyn Lab> + Send + Sync>;
