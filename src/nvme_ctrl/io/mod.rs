//! I/O commands: decoded and checked completely, then run as state machines.
//!
//! [`start`] turns a submission into a [`Task`] or into the status it is refused with; nothing has changed by
//! then, unless the task says that it is over. A task emits backend operations and takes their completions;
//! it never waits and knows no thread.

mod account;
mod compare;
mod copy;
mod dsm;
mod flush;
mod now;
mod rw;
mod write_zeroes;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::copy::Bounce;
use crate::disk::{DiskError, IoBuf, Moved};
use crate::memory::DmaMap;
use crate::namespace::{self, Access, Extent, Lbas, Namespace, Namespaces};
pub use crate::spec::Outcome;
use crate::spec::commands::NvmCommand;
use crate::spec::{Sqe, Status};

use super::shared::Shared;
use crate::block::{BlockError, Group, Inspect, Issue, Work};
use account::Account;
use copy::Copying;
pub use now::{Now, now};

/// A command under way.
#[derive(Debug)]
pub enum Task {
    /// Independent operations, all of which must succeed: Read, Write, Flush, Write Zeroes, Dataset
    /// Management.
    Group(Group, Account),
    /// Data read into our memory and looked at: Compare, Verify.
    Inspect(Inspect, Account),
    /// Copy.
    Copy(Box<Copying>),
    /// Nothing is left to do: a Copy that was done when it was started. How it ended.
    Over(Outcome),
}

impl Task {
    /// Issues what can be issued now. `Some` once everything has ended; the task is then over. What of it
    /// takes the caller's own time is charged to `work`, but for the operations: who takes them does that.
    pub fn poll(&mut self, shared: &Shared, work: &Work, issue: &mut Issue<'_>) -> Option<Outcome> {
        match self {
            Self::Group(task, account) => {
                let write_cache = shared.write_cache.load(Ordering::SeqCst);
                Some(ended(task.poll(write_cache, work, issue)?, *account, shared))
            }
            Self::Inspect(task, account) => Some(ended(task.poll(work, issue)?, *account, shared)),
            Self::Copy(task) => task.poll(shared, issue),
            Self::Over(outcome) => Some(*outcome),
        }
    }

    /// Takes the completion of operation `part`.
    pub fn done(&mut self, part: u32, result: Result<Moved, DiskError>, buf: Option<IoBuf>) {
        let result = result.map(|moved| log::trace!("operation {part}: {moved:?}"));
        match self {
            Self::Group(task, _) => task.done(result),
            Self::Inspect(task, _) => task.done(result, buf),
            Self::Copy(task) => task.done(part, result, buf),
            Self::Over(_) => {}
        }
    }

    /// Asks the task to end early. True when it may: then it ends with Command Abort Requested, unless it was
    /// past that.
    pub fn abort(&mut self) -> bool {
        match self {
            Self::Copy(task) => {
                task.abort();
                true
            }
            Self::Group(task, _) => task.abort(),
            Self::Inspect(task, _) => task.abort(),
            Self::Over(_) => false,
        }
    }

    /// Does a poll spend the worker's own time on moving bytes?
    pub fn moves_memory(&self) -> bool {
        match self {
            Self::Copy(task) => task.moves_memory(),
            Self::Group(task, _) => task.moves_memory(),
            Self::Inspect(task, _) => task.moves_memory(),
            Self::Over(_) => false,
        }
    }

    /// Will the next poll end it, without moving anything more? `false`: perhaps not.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Copy(task) => task.is_over(),
            Self::Group(task, _) => task.is_over(),
            Self::Inspect(..) | Self::Over(_) => false,
        }
    }

    /// Bytes that it has allocated, or will have: for its lists, for the pieces of guest memory it reaches,
    /// and for what it reads to look at; not the bounce memory of a Copy, which has a bound of its own.
    pub fn memory(&self) -> usize {
        match self {
            Self::Group(task, _) => task.memory(),
            Self::Inspect(task, _) => task.memory(),
            Self::Copy(task) => task.memory(),
            Self::Over(_) => 0,
        }
    }

    /// Does it wait, with nothing in flight, for bounce memory that other Copies hold?
    pub fn is_starved(&self) -> bool {
        matches!(self, Self::Copy(task) if task.is_starved())
    }
}

fn ended(result: Result<(), BlockError>, account: Account, shared: &Shared) -> Outcome {
    Outcome::of(match result {
        Ok(()) => {
            account.count(&shared.counters);
            Status::SUCCESS
        }
        Err(error) => error.into(),
    })
}

/// What every command is looked at with.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Its controller.
    pub shared: &'a Shared,
    /// The namespaces there are as it is fetched.
    pub namespaces: &'a Namespaces,
    /// Guest memory as it is mapped then.
    pub memory: &'a DmaMap,
    /// What is quickly done may be done as it is started, so that nobody sees it under way.
    pub at_once: bool,
}

/// Decodes and checks one I/O command. A short Copy within memory is done by then ([`Task::Over`]). What it
/// took is charged to `work`.
///
/// # Errors
/// The status it is refused with.
pub fn start(context: Context<'_>, bounce: &Bounce, work: &Work, sqe: &Sqe) -> Result<Task, Status> {
    let Context { shared, namespaces, memory, at_once } = context;
    let cmd = Submission { shared, namespaces, memory, bounce, work, at_once, sqe };
    if sqe.fuse() != 0 {
        return Err(Status::INVALID_FIELD.dnr()); // FUSES is 0: no fused operation is supported
    }
    match NvmCommand::of(sqe.opc).ok_or(Status::INVALID_OPCODE.dnr())? {
        NvmCommand::Read => rw::read(&cmd),
        NvmCommand::Write => rw::write(&cmd),
        NvmCommand::Flush => flush::flush(&cmd),
        NvmCommand::Compare => compare::compare(&cmd),
        NvmCommand::Verify => compare::verify(&cmd),
        NvmCommand::WriteZeroes => write_zeroes::write_zeroes(&cmd),
        NvmCommand::Dsm => dsm::dsm(&cmd),
        NvmCommand::Copy => copy::copy(&cmd),
    }
}

/// A submission with all that its checks look at.
struct Submission<'a> {
    shared: &'a Shared,
    namespaces: &'a Namespaces,
    memory: &'a DmaMap,
    bounce: &'a Bounce,
    at_once: bool,
    work: &'a Work,
    sqe: &'a Sqe,
}

impl Submission<'_> {
    fn namespace(&self) -> Result<&Arc<Namespace>, Status> {
        Ok(self.namespaces.get(self.sqe.nsid.get())?)
    }

    /// The blocks that SLBA and NLB name, if the gate lets the command do this to them.
    fn admit(&self, ns: &Namespace, access: Access) -> Result<Extent, Status> {
        let lbas = Lbas { slba: self.sqe.slba(), nlb: self.sqe.nlb().count().into() };
        Ok(namespace::admit(ns, access, lbas, self.shared.cntlid)?)
    }

    /// NLB in bytes must not exceed MDTS.
    fn check_transfer(&self, ns: &Namespace) -> Result<(), Status> {
        let bytes = u64::from(self.sqe.nlb().count()) << ns.facts.lbads;
        if bytes > self.shared.limits.max_transfer {
            return Err(Status::INVALID_FIELD.dnr());
        }
        Ok(())
    }

    /// Must the command be durable before it completes: FUA, or the volatile write cache is off?
    fn durable(&self) -> bool {
        self.sqe.fua() || !self.shared.write_cache.load(Ordering::Relaxed)
    }
}
