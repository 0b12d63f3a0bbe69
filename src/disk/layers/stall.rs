//! A disk that holds operations back until a gate opens: a hung one, for tests of unmap and reset.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, DiskError, Handle, Inbox, Lane, Op, ResizeError, SharedDisk, Tag, Ways};

/// Opens and shuts for any number of [`Stall`]s, from any thread. Starts shut.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Mutex<GateState>>);

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    held: Vec<HeldOp>,
}

#[derive(Debug)]
struct HeldOp {
    inbox: Inbox,
    disk: SharedDisk,
    tag: Tag,
    op: Op,
}

impl Gate {
    /// A shut gate.
    pub fn new() -> Self {
        Gate::default()
    }

    /// Lets go what is held and holds nothing more.
    pub fn open(&self) {
        let mut state = self.state();
        state.open = true;
        for HeldOp { inbox, disk, tag, op } in state.held.drain(..) {
            inbox.run(move |lane| disk.submit(tag, op, lane));
        }
    }

    /// Holds operations from now on.
    pub fn shut(&self) {
        self.state().open = false;
    }

    /// Operations that are held.
    pub fn held(&self) -> usize {
        self.state().held.len()
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module docs. A held operation counts as in flight and keeps its buffer, as one hung in the kernel
/// does.
pub struct Stall {
    disk: SharedDisk,
    gate: Gate,
    holds: Box<dyn Fn(&Op) -> bool + Send + Sync>,
}

impl fmt::Debug for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stall").field("disk", &self.disk).field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl Stall {
    /// While `gate` is shut, operations for which `holds` is true go no further.
    pub fn over(disk: SharedDisk, gate: Gate, holds: impl Fn(&Op) -> bool + Send + Sync + 'static) -> Self {
        Stall { disk, gate, holds: Box::new(holds) }
    }
}

impl Disk for Stall {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn submit(&self, tag: Tag, op: Op, lane: &mut Lane) {
        let mut state = self.gate.state();
        if !state.open && (self.holds)(&op) {
            state.held.push(HeldOp { inbox: lane.inbox(), disk: Arc::clone(&self.disk), tag, op });
        } else {
            drop(state);
            self.disk.submit(tag, op, lane);
        }
    }

    fn volatile_cache(&self) -> bool {
        self.disk.volatile_cache()
    }

    fn is_direct(&self) -> bool {
        self.disk.is_direct()
    }

    fn unmaps(&self) -> bool {
        self.disk.unmaps()
    }

    fn handle(&self) -> Handle<'_> {
        self.disk.handle()
    }

    fn is_same_place(&self, other: &Handle<'_>) -> bool {
        self.disk.is_same_place(other)
    }

    fn allocation_unit(&self) -> Option<u64> {
        self.disk.allocation_unit()
    }

    fn ways_from(&self, source: &Handle<'_>) -> Ways {
        self.disk.ways_from(source)
    }

    fn resize(&self, len: u64) -> Result<(), ResizeError> {
        self.disk.resize(len)
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.disk.sync()
    }

    fn name(&self) -> &str {
        self.disk.name()
    }
}
