//! Operations that do not depend on each other and must all succeed.

use std::sync::Arc;

use smallvec::SmallVec;

use super::work::{self, Work};
use super::{BlockError, Direction, Issue};
use crate::disk::{DiskError, IoBuf, Op};
use crate::namespace::{ByteRange, Namespace};

/// Operations in flight at once: enough to keep a disk busy, few enough that 256 ranges of one Dataset
/// Management leave room for others.
const WINDOW: u32 = 32;

/// See the module docs.
#[derive(Debug)]
pub struct Group {
    todo: SmallVec<[(Arc<Namespace>, Op); 1]>,
    in_flight: u32,
    window: u32,
    direction: Direction,
    error: Option<BlockError>,
    /// Where it changes data that it does not make durable.
    volatile: Option<Arc<Namespace>>,
    /// The value that what is in flight was admitted with. Kept, for it tells that somebody still goes by it.
    under: Option<Arc<Namespace>>,
}

impl Group {
    /// A group of `ops`; they are issued from the last to the first.
    pub fn new(ops: SmallVec<[(Arc<Namespace>, Op); 1]>, direction: Direction) -> Self {
        Self { todo: ops, in_flight: 0, window: WINDOW, direction, error: None, volatile: None, under: None }
    }

    /// Changes data of `ns` without making it durable: should the volatile write cache be off when it ends, a
    /// flush comes before its end.
    pub fn volatile(mut self, ns: &Arc<Namespace>) -> Self {
        self.volatile = Some(Arc::clone(ns));
        self
    }

    /// Fails with [`DiskError::Deallocated`], and does nothing, unless all of `range` is allocated.
    pub fn if_allocated(mut self, ns: &Arc<Namespace>, range: ByteRange) -> Self {
        // The last is the first, and the others wait for it.
        self.todo.push((Arc::clone(ns), Op::Probe { offset: range.offset, len: range.len }));
        self.window = 1;
        self
    }

    /// A group of one.
    pub fn one(ns: &Arc<Namespace>, op: Op, direction: Direction) -> Self {
        Self::new(SmallVec::from_buf([(Arc::clone(ns), op)]), direction)
    }

    /// Issues what can be issued now; how it ended, once everything has. `write_cache`: whether the volatile
    /// write cache is on.
    pub fn poll(
        &mut self,
        write_cache: bool,
        work: &Work,
        issue: &mut Issue<'_>,
    ) -> Option<Result<(), BlockError>> {
        let most = work.done().saturating_add(Work::SLICE);
        while self.in_flight < self.window && work.done() < most {
            let Some((ns, mut op)) = self.todo.pop() else { break };
            self.in_flight += 1;
            match work::slice(&ns, &mut op) {
                Some(slice) => {
                    issue(0, &ns, slice);
                    self.todo.push((ns, op));
                }
                None => {
                    issue(0, &ns, op);
                    self.under = Some(ns);
                }
            }
        }
        if self.in_flight > 0 {
            return None;
        }
        if let Some(error) = self.error.take() {
            return Some(Err(error));
        }
        if let Some(ns) = self.volatile.take()
            && !write_cache
        {
            self.in_flight = 1;
            issue(0, &ns, Op::Flush);
            return None;
        }
        Some(Ok(()))
    }

    /// Nothing more begins; what has begun ends by itself, as quickly as it could be cancelled. True if
    /// something is left undone.
    pub fn abort(&mut self) -> bool {
        let stops = !self.todo.is_empty();
        if stops {
            self.todo.clear();
            self.error.get_or_insert(BlockError::Aborted);
        }
        stops
    }

    /// Is it done, but for its outcome?
    pub fn is_over(&self) -> bool {
        self.in_flight == 0 && self.todo.is_empty()
    }

    /// Is what it has still to do done in the worker's own time?
    pub fn moves_memory(&self) -> bool {
        self.todo.last().is_some_and(|(ns, _)| ns.disk.is_immediate())
    }

    /// Bytes that it has allocated.
    pub fn memory(&self) -> usize {
        let list =
            if self.todo.spilled() { self.todo.capacity() * size_of::<(Arc<Namespace>, Op)>() } else { 0 };
        let pieces = self.todo.iter().map(|(_, op)| match op {
            Op::Read { buf: IoBuf::Guest(buf), .. } | Op::Write { buf: IoBuf::Guest(buf), .. } => buf.heap(),
            _ => 0,
        });
        list + pieces.sum::<usize>()
    }

    /// Takes the completion of an operation.
    pub fn done(&mut self, result: Result<(), DiskError>) {
        self.in_flight -= 1;
        if let Err(error) = result {
            self.todo.clear();
            self.error.get_or_insert(BlockError::Image(error, self.direction));
        }
    }
}
