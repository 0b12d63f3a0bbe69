//! Disks and lanes that misbehave on demand.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vfio_user_nvme::disk::{
    Call, Disk, DiskError, Done, FileDisk, Gate, Handle, How, Immediate, Inline, Lane, LaneKind, MemoryDisk,
    Moved, Op, SharedDisk, Stall, Tag, Tap,
};
use vfio_user_nvme::memory::Transient;
use vfio_user_nvme::nvme_ctrl::{LaneFactory, WorkerParts};

use crate::host::DEADLINE;

/// What a device is made with: its lanes, and what comes over each of its disks.
#[derive(Clone)]
pub struct Doubles {
    pub parts: WorkerParts,
    pub over: Arc<dyn Fn(SharedDisk) -> SharedDisk + Send + Sync>,
}

impl From<WorkerParts> for Doubles {
    fn from(parts: WorkerParts) -> Self {
        Doubles { parts, over: Arc::new(|disk| disk) }
    }
}

impl Doubles {
    /// Each worker looks so at what it has reaped, before all else.
    fn looking(mut self, look: impl Fn(&[Done]) + Clone + Send + Sync + 'static) -> Self {
        let inner = self.parts.lanes;
        self.parts.lanes = Arc::new(move || {
            let mut lane = inner()?;
            lane.look_at_done(look.clone());
            Ok(lane)
        });
        self
    }
}

/// The real thing.
pub fn plain(kind: LaneKind) -> Doubles {
    let lanes: LaneFactory = Arc::new(move || Lane::new(kind));
    WorkerParts::from(lanes).into()
}

/// What an operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Flush,
    WriteZeroes,
    Discard,
    Probe,
    /// A Copy by reads and writes of a thread.
    ReadWrite,
    Copy,
}

/// An operation, as far as doubles choose by it.
pub struct Job {
    pub kind: Kind,
    /// First byte, and bytes.
    pub range: (u64, u64),
}

impl Job {
    fn of(op: &Op) -> Self {
        let kind = match op {
            Op::Read { .. } => Kind::Read,
            Op::Write { .. } => Kind::Write,
            Op::Flush => Kind::Flush,
            Op::WriteZeroes { .. } => Kind::WriteZeroes,
            Op::Discard { .. } => Kind::Discard,
            Op::Probe { .. } => Kind::Probe,
            Op::Copy { how: How::ReadWrite { .. }, .. } => Kind::ReadWrite,
            Op::Copy { .. } => Kind::Copy,
        };
        Job { kind, range: op.range().expect("it lies in the image") }
    }
}

/// A disk that hangs in some operations while its gate is shut.
#[derive(Clone, Default)]
pub struct Hang {
    gate: Gate,
    held: Arc<AtomicUsize>,
}

impl Hang {
    /// Files, not memory.
    pub fn disks(&self, kind: LaneKind, holds: fn(&Job) -> bool) -> Doubles {
        let Hang { gate, held } = self.clone();
        let over = move |disk: SharedDisk| -> SharedDisk {
            if disk.name() == "memory" {
                return disk;
            }
            let held = Arc::clone(&held);
            let count = move |op: &Op| {
                let holds = holds(&Job::of(op));
                held.fetch_add(holds.into(), Ordering::SeqCst);
                holds
            };
            Arc::new(Stall::over(disk, gate.clone(), count))
        };
        Doubles { over: Arc::new(over), ..plain(kind) }
    }

    /// Waits until so many operations have hung.
    pub fn wait_held(&self, count: usize) {
        let start = Instant::now();
        while self.held.load(Ordering::SeqCst) < count {
            assert!(start.elapsed() < DEADLINE, "the operation never came");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    pub fn end(&self) {
        self.gate.open();
    }
}

/// On top of what `inner` has, a fault of ours in the operations of which `panics` says so: the worker panics.
pub fn panicking(inner: Doubles, panics: impl Fn(&Job) -> bool + Clone + Send + Sync + 'static) -> Doubles {
    let Doubles { parts, over } = inner;
    let over = move |disk| -> SharedDisk {
        let panics = panics.clone();
        let bomb = move |op: &Op| panics(&Job::of(op)) && panic!("a fault of ours, as the test wants it");
        Arc::new(Stall::over(over(disk), Gate::new(), bomb))
    };
    Doubles { parts, over: Arc::new(over) }
}

/// What a call on an image comes to.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It fails with this errno.
    Errno(i32),
    /// It moves no byte.
    Nothing,
    /// It is interrupted three times before it is made.
    Interrupted,
}

/// The fault of the calls of one kind that touch one byte of an image, until the next one is set.
#[derive(Clone, Debug, Default)]
pub struct Bad(Arc<Mutex<Option<Spot>>>, Arc<AtomicU64>);

type Spot = (Kind, u64, Fault);

impl Bad {
    /// At this byte.
    pub fn set(&self, kind: Kind, at: u64, fault: Fault) {
        *self.0.lock().expect("no panic") = Some((kind, at, fault));
    }

    pub fn clear(&self) {
        *self.0.lock().expect("no panic") = None;
    }

    /// How often it struck.
    pub fn strikes(&self) -> u64 {
        self.1.load(Ordering::SeqCst)
    }
}

impl Tap for Bad {
    fn issued(&self, _: &Call, _: &[u8], _: &std::fs::File) -> u64 {
        0
    }

    fn answer(&self, call: &Call, len: u64) -> Option<i64> {
        let (kind, at, fault) = (*self.0.lock().expect("no panic"))?;
        let hit = match (kind, *call) {
            (Kind::Read, Call::Preadv { offset }) | (Kind::Write, Call::Pwritev { offset, .. }) => {
                (offset..offset + len).contains(&at)
            }
            (Kind::WriteZeroes, Call::Fallocate { offset, len, .. }) => (offset..offset + len).contains(&at),
            // It does not say how far it wants to know.
            (Kind::Probe, Call::Seek { offset, .. }) => (offset..offset + 4096).contains(&at),
            (Kind::Flush, Call::Fdatasync) => true,
            _ => false,
        };
        let before = hit.then(|| self.1.fetch_add(1, Ordering::SeqCst))?;
        match fault {
            Fault::Errno(errno) => Some(-i64::from(errno)),
            Fault::Nothing => Some(0),
            Fault::Interrupted => (before % 4 < 3).then_some(-i64::from(libc::EINTR)),
        }
    }

    fn completed(&self, _: u64, _: &Call, _: Result<u32, i32>) {}
}

/// Puts a worker to sleep.
#[derive(Clone, Default)]
pub struct Nap(Arc<Mutex<Duration>>);

impl Nap {
    /// The worker sleeps so long in the middle of its next turn, before it looks at its queues.
    pub fn take(&self, length: Duration) {
        *self.0.lock().expect("no panic") = length;
    }

    /// Waits until it sleeps.
    pub fn wait(&self) {
        let start = Instant::now();
        while !self.0.lock().expect("no panic").is_zero() {
            assert!(start.elapsed() < DEADLINE, "the worker does not turn");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    pub fn lanes(&self, kind: LaneKind) -> Doubles {
        let nap = Arc::clone(&self.0);
        plain(kind).looking(move |_| {
            let length = std::mem::take(&mut *nap.lock().expect("no panic"));
            std::thread::sleep(length);
        })
    }
}

/// Which syncs an [`Unsynced`] image leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    pub flush: bool,
    pub fua: bool,
}

/// An image that forgets to make things durable: what the durability check must find.
#[derive(Debug)]
pub struct Unsynced {
    pub image: FileDisk,
    pub without: LeftOut,
}

impl Disk for Unsynced {
    fn len(&self) -> u64 {
        self.image.len()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&self, tag: Tag, mut op: Op, lane: &mut Lane) {
        match &mut op {
            Op::Flush if self.without.flush => {
                return lane.done(Done { tag, result: Ok(Moved::Plain), buf: None });
            }
            Op::Write { fua, .. } | Op::WriteZeroes { fua, .. } => *fua &= !self.without.fua,
            _ => {}
        }
        self.image.submit(tag, op, lane);
    }

    fn name(&self) -> &str {
        self.image.name()
    }
}

/// Holds up a thread of the device at a point of its way, once, until it is let go.
#[derive(Clone, Default)]
pub struct Halt(Arc<(Mutex<Halting>, Condvar)>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Halting {
    /// Nobody is held.
    #[default]
    Idle,
    /// Who comes next is.
    Armed,
    /// Somebody is.
    Held,
}

impl Halt {
    pub fn arm(&self) {
        self.set(Halting::Armed);
    }

    /// The point.
    fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().expect("no panic");
        if *state == Halting::Armed {
            *state = Halting::Held;
            changed.notify_all();
            drop(changed.wait_while(state, |state| *state == Halting::Held).expect("no panic"));
        }
    }

    pub fn wait_held(&self) {
        let (state, changed) = &*self.0;
        let state = state.lock().expect("no panic");
        let waited = changed.wait_timeout_while(state, DEADLINE, |state| *state != Halting::Held);
        assert!(!waited.expect("no panic").1.timed_out(), "nobody came");
    }

    pub fn let_go(&self) {
        self.set(Halting::Idle);
    }

    fn set(&self, to: Halting) {
        *self.0.0.lock().expect("no panic") = to;
        self.0.1.notify_all();
    }

    /// Lanes whose worker is held in the middle of a turn: before it looks at its queues, and `with` completions that
    /// it has not posted yet, or whatever it has.
    pub fn lanes(&self, inner: Doubles, with: bool) -> Doubles {
        let halt = self.clone();
        let look = move |done: &[Done]| {
            if !with || !done.is_empty() {
                halt.pass();
            }
        };
        inner.looking(look)
    }

    /// Memory whose reads are held before they move anything.
    pub fn memory(&self, len: u64) -> SharedDisk {
        Arc::new(HaltMemory { inner: MemoryDisk::new(len).expect("the memory is there"), halt: self.clone() })
    }
}

#[derive(Debug)]
struct HaltMemory {
    inner: MemoryDisk,
    halt: Halt,
}

impl std::fmt::Debug for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Halt")
    }
}

impl Disk for HaltMemory {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&self, tag: Tag, op: Op, lane: &mut Lane) {
        self.inner.submit(tag, op, lane);
    }

    fn inline(&self) -> Inline<'_> {
        Inline::Immediate(self)
    }

    fn name(&self) -> &str {
        self.inner.name()
    }
}

impl Immediate for HaltMemory {
    fn read(&self, offset: u64, to: &Transient<'_>) -> Result<(), DiskError> {
        self.halt.pass();
        self.memory().read(offset, to)
    }

    fn write(&self, offset: u64, from: &Transient<'_>) -> Result<(), DiskError> {
        self.memory().write(offset, from)
    }

    fn prefetch(&self, _: u64, _: u64) {}

    fn move_from(&self, _: &Handle<'_>, _: u64, _: u64, _: u64) -> bool {
        false
    }
}

impl HaltMemory {
    fn memory(&self) -> &dyn Immediate {
        let Inline::Immediate(memory) = self.inner.inline() else { panic!("memory never waits") };
        memory
    }
}
