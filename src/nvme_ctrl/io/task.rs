//! A command under way: a state machine that emits operations on disks and takes their ends. It never waits
//! and knows no thread.

use std::sync::atomic::Ordering;

use super::account::Account;
use super::bent::{Bent, Machine};
use super::copying::Copying;
use crate::block::{BlockError, Group, Inspect, Issue, Work};
use crate::copy::Written;
use crate::disk::{DiskError, IoBuf, Moved};
use crate::nvme_ctrl::shared::Shared;
use crate::spec::{Outcome, Status};

/// See the module docs.
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
    /// One of the others, as a laboratory would have it.
    Bent(Box<Bent<Task>>),
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
            Self::Bent(task) => task.poll(shared, work, issue),
        }
    }

    /// Takes the completion of operation `part`. What of a Copy's destination was written by that.
    pub fn done(
        &mut self,
        part: u32,
        result: Result<Moved, DiskError>,
        buf: Option<IoBuf>,
    ) -> Option<Written> {
        match self {
            Self::Group(task, _) => task.done(result.map(drop)),
            Self::Inspect(task, _) => task.done(result.map(drop), buf),
            Self::Copy(task) => return task.done(part, result, buf),
            Self::Over(_) => {}
            Self::Bent(task) => return task.done(part, result, buf),
        }
        None
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
            Self::Bent(task) => task.abort(),
        }
    }

    /// Does a poll spend the worker's own time on moving bytes?
    pub fn moves_memory(&self) -> bool {
        match self {
            Self::Copy(task) => task.moves_memory(),
            Self::Group(task, _) => task.moves_memory(),
            Self::Inspect(task, _) => task.moves_memory(),
            Self::Over(_) => false,
            Self::Bent(task) => task.moves_memory(),
        }
    }

    /// Will the next poll end it, without moving anything more? `false`: perhaps not.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Copy(task) => task.is_over(),
            Self::Group(task, _) => task.is_over(),
            Self::Inspect(..) | Self::Over(_) | Self::Bent(_) => false,
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
            Self::Bent(task) => task.memory(),
        }
    }

    /// Does it wait, with nothing in flight, for bounce memory that other Copies hold?
    pub fn is_starved(&self) -> bool {
        match self {
            Self::Copy(task) => task.is_starved(),
            Self::Bent(task) => task.is_starved(),
            Self::Group(..) | Self::Inspect(..) | Self::Over(_) => false,
        }
    }

    /// What a laboratory has made of it, if one has.
    pub fn bent(&self) -> Option<&Bent<Self>> {
        match self {
            Self::Bent(task) => Some(task),
            _ => None,
        }
    }

    /// It has ended like this, and its host is told later: what it holds goes.
    pub fn end(&mut self, outcome: Outcome) {
        match self {
            Self::Bent(task) => task.let_go(Self::Over(outcome)),
            _ => *self = Self::Over(outcome),
        }
    }
}

impl Machine for Task {
    fn poll(&mut self, shared: &Shared, work: &Work, issue: &mut Issue<'_>) -> Option<Outcome> {
        Self::poll(self, shared, work, issue)
    }

    fn done(&mut self, part: u32, result: Result<Moved, DiskError>, buf: Option<IoBuf>) -> Option<Written> {
        Self::done(self, part, result, buf)
    }

    fn abort(&mut self) -> bool {
        Self::abort(self)
    }

    fn moves_memory(&self) -> bool {
        Self::moves_memory(self)
    }

    fn memory(&self) -> usize {
        Self::memory(self)
    }

    fn is_starved(&self) -> bool {
        Self::is_starved(self)
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
