//! Operations that do not depend on each other and must all succeed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::{Issue, Outcome};
use crate::disk::{DiskError, IoBuf, Op};
use crate::namespace::{ByteRange, Namespace};
use crate::nvme_ctrl::shared::Shared;
use crate::nvme_ctrl::status::{self, Direction};
use crate::nvme_ctrl::work::{self, Work};
use crate::spec::Status;

/// What a group counts as in the SMART log once it has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// A read of so many bytes.
    Read(u64),
    /// A write of so many bytes.
    Wrote(u64),
    /// Not counted.
    Nothing,
}

/// Operations in flight at once: enough to keep a disk busy, few enough that 256 ranges of one Dataset
/// Management leave room for others.
const WINDOW: u32 = 32;

/// See the module docs.
#[derive(Debug)]
pub struct Group {
    todo: SmallVec<[(Arc<Namespace>, Op); 1]>,
    in_flight: u32,
    window: u32,
    status: Status,
    direction: Direction,
    account: Account,
    /// Where it changes data that it does not make durable.
    volatile: Option<Arc<Namespace>>,
}

impl Group {
    /// A group of `ops`; they are issued from the last to the first.
    pub fn new(ops: SmallVec<[(Arc<Namespace>, Op); 1]>, direction: Direction, account: Account) -> Self {
        Self {
            todo: ops,
            in_flight: 0,
            window: WINDOW,
            status: Status::SUCCESS,
            direction,
            account,
            volatile: None,
        }
    }

    /// Changes data of `ns` without making it durable: should the volatile write cache be off when it ends, a
    /// flush comes before its completion.
    pub fn volatile(mut self, ns: &Arc<Namespace>) -> Self {
        self.volatile = Some(Arc::clone(ns));
        self
    }

    /// Fails with Deallocated or Unwritten Logical Block, and does nothing, unless all of `range` is
    /// allocated.
    pub fn if_allocated(mut self, ns: &Arc<Namespace>, range: ByteRange) -> Self {
        // The last is the first, and the others wait for it.
        self.todo.push((Arc::clone(ns), Op::Probe { offset: range.offset, len: range.len }));
        self.window = 1;
        self
    }

    /// A group of one.
    pub fn one(ns: &Arc<Namespace>, op: Op, direction: Direction, account: Account) -> Self {
        Self::new(SmallVec::from_buf([(Arc::clone(ns), op)]), direction, account)
    }

    pub(super) fn poll(&mut self, shared: &Shared, work: &Work, issue: &mut Issue<'_>) -> Option<Outcome> {
        let most = work.done().saturating_add(Work::SLICE);
        while self.in_flight < self.window && work.done() < most {
            let Some((ns, mut op)) = self.todo.pop() else { break };
            self.in_flight += 1;
            match work::slice(&ns, &mut op) {
                Some(slice) => {
                    issue(0, &ns, slice);
                    self.todo.push((ns, op));
                }
                None => issue(0, &ns, op),
            }
        }
        if self.in_flight > 0 {
            return None;
        }
        if self.status.is_success() {
            if let Some(ns) = self.volatile.take()
                && !shared.write_cache.load(Ordering::SeqCst)
            {
                self.in_flight = 1;
                issue(0, &ns, Op::Flush);
                return None;
            }
            match self.account {
                Account::Read(bytes) => shared.counters.read(bytes),
                Account::Wrote(bytes) => shared.counters.wrote(bytes),
                Account::Nothing => {}
            }
        }
        Some(Outcome::of(self.status))
    }

    /// Nothing more begins; what has begun ends by itself, as quickly as it could be cancelled. True if
    /// something is left undone.
    pub(super) fn abort(&mut self) -> bool {
        let stops = !self.todo.is_empty();
        if stops {
            self.todo.clear();
            if self.status.is_success() {
                self.status = Status::ABORT_REQUESTED;
            }
        }
        stops
    }

    /// Is it done, but for its outcome?
    pub(super) fn is_over(&self) -> bool {
        self.in_flight == 0 && self.todo.is_empty()
    }

    /// Is what it has still to do done in the worker's own time?
    pub(super) fn moves_memory(&self) -> bool {
        self.todo.last().is_some_and(|(ns, _)| ns.backend.is_immediate())
    }

    pub(super) fn memory(&self) -> usize {
        let list =
            if self.todo.spilled() { self.todo.capacity() * size_of::<(Arc<Namespace>, Op)>() } else { 0 };
        let pieces = self.todo.iter().map(|(_, op)| match op {
            Op::Read { buf: IoBuf::Guest(buf), .. } | Op::Write { buf: IoBuf::Guest(buf), .. } => buf.heap(),
            _ => 0,
        });
        list + pieces.sum::<usize>()
    }

    pub(super) fn done(&mut self, result: Result<(), DiskError>) {
        self.in_flight -= 1;
        if let Err(error) = result {
            self.todo.clear();
            if self.status.is_success() {
                self.status = status::backend(&error, self.direction);
            }
        }
    }
}
