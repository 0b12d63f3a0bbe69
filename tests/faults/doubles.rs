//! Engines and backends that misbehave on demand.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vfio_user_nvme::backend::engine::{Engine, EngineKind, Waker, create};
use vfio_user_nvme::backend::{
    Backend, BackendError, Call, Completion, FileJob, Gate, MemoryBackend, Op, RawBackend, SharedBackend,
    StallEngine, Tag,
};
use vfio_user_nvme::memory::Transient;
use vfio_user_nvme::nvme_ctrl::EngineFactory;

use crate::host::DEADLINE;

/// The real thing.
pub fn plain(kind: EngineKind) -> EngineFactory {
    Arc::new(move || create(kind))
}

/// A disk that hangs in some jobs while its gate is shut.
#[derive(Clone, Default)]
pub struct Hang {
    gate: Gate,
    held: Arc<AtomicUsize>,
}

impl Hang {
    pub fn engine(&self, kind: EngineKind, holds: fn(&FileJob) -> bool) -> EngineFactory {
        let Hang { gate, held } = self.clone();
        Arc::new(move || {
            let held = Arc::clone(&held);
            let count = move |job: &FileJob| {
                let holds = holds(job);
                held.fetch_add(holds.into(), Ordering::SeqCst);
                holds
            };
            Ok(Box::new(StallEngine::new(create(kind)?, gate.clone(), count)))
        })
    }

    /// Waits until so many jobs have hung.
    pub fn wait_held(&self, count: usize) {
        let start = Instant::now();
        while self.held.load(Ordering::SeqCst) < count {
            assert!(start.elapsed() < DEADLINE, "the job never came");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    pub fn end(&self) {
        self.gate.open();
    }
}

/// What a [`Faulty`] engine does with a job.
pub enum Fault {
    /// A fault of ours.
    Panic,
    /// Every call of the job ends with this errno.
    Errno(i32),
    /// The first call of the job moves no byte.
    Nothing,
    /// The first call of the job is interrupted a few times, and then moves no more than so many bytes.
    Short(usize),
    /// This one, but in the write of a relay, whose reads succeed.
    Writing(Box<Fault>),
}

type Plan = Arc<dyn Fn(&FileJob) -> Option<Fault> + Send + Sync>;

/// Works, but for the jobs that its plan names.
pub struct Faulty {
    inner: Box<dyn Engine>,
    plan: Plan,
    done: Vec<Completion>,
}

impl Faulty {
    /// On top of what `inner` makes.
    pub fn over(
        inner: EngineFactory,
        plan: impl Fn(&FileJob) -> Option<Fault> + Send + Sync + 'static,
    ) -> EngineFactory {
        let plan: Plan = Arc::new(plan);
        Arc::new(move || Ok(Box::new(Faulty { inner: inner()?, plan: Arc::clone(&plan), done: Vec::new() })))
    }
}

impl Engine for Faulty {
    fn submit(&mut self, tag: Tag, mut job: FileJob) {
        match (self.plan)(&job) {
            None => {}
            Some(Fault::Panic) => panic!("a fault of ours, as the test wants it"),
            Some(Fault::Errno(errno)) => {
                while job.next_call().is_some() {
                    job.complete(i64::from(-errno));
                }
            }
            Some(Fault::Nothing) => {
                job.next_call();
                job.complete(0);
            }
            Some(Fault::Short(bytes)) => {
                for _ in 0..3 {
                    job.next_call();
                    job.complete(i64::from(-libc::EINTR));
                }
                short(&mut job, bytes);
            }
            Some(Fault::Writing(fault)) => {
                read(&mut job);
                match *fault {
                    Fault::Nothing => job.complete(0),
                    Fault::Errno(errno) => loop {
                        job.complete(i64::from(-errno));
                        if job.next_call().is_none() {
                            break;
                        }
                    },
                    _ => panic!("no test wants it"),
                }
            }
        }
        if job.is_done() {
            self.done.push(job.finish(tag));
        } else {
            self.inner.submit(tag, job);
        }
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.done);
        self.inner.reap(out);
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        let timeout = if self.done.is_empty() { timeout } else { Some(Duration::ZERO) };
        self.inner.wait(timeout);
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.done.len()
    }
}

/// Makes the reads of a relay; its write is the call in progress then.
#[expect(unsafe_code, reason = "a system call on iovecs")]
fn read(job: &mut FileJob) {
    while let Some(Call::Preadv { offset }) = job.next_call() {
        let iovecs = job.iovecs();
        let (fd, iov, count) = (job.fd(), iovecs.as_ptr(), iovecs.len() as i32);
        // SAFETY: the job owns the memory of its iovecs, and stays where it is until the call is complete.
        let moved = unsafe { libc::preadv(fd, iov, count, offset as i64) };
        job.complete(moved as i64);
    }
}

/// Makes the next call of a job, which is a transfer, for its first `bytes` bytes only.
#[expect(unsafe_code, reason = "a system call on iovecs")]
fn short(job: &mut FileJob, bytes: usize) {
    let call = job.next_call();
    let mut left = bytes;
    let mut iovecs = job.iovecs().to_vec();
    for iovec in &mut iovecs {
        iovec.iov_len = iovec.iov_len.min(left);
        left -= iovec.iov_len;
    }
    let (fd, iov, count) = (job.fd(), iovecs.as_ptr(), iovecs.len() as i32);
    // SAFETY: the job owns the memory of its iovecs, and stays where it is until the call is complete.
    let moved = unsafe {
        match call {
            Some(Call::Preadv { offset }) => libc::preadv(fd, iov, count, offset as i64),
            Some(Call::Pwritev { offset, dsync: false }) => libc::pwritev(fd, iov, count, offset as i64),
            other => panic!("{other:?} is no transfer"),
        }
    };
    assert_eq!(moved, bytes as isize, "the file takes and gives what it is asked");
    job.complete(moved as i64);
}

/// Puts the worker of a [`Drowsy`] engine to sleep.
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

    pub fn engine(&self, kind: EngineKind) -> EngineFactory {
        let nap = self.clone();
        Arc::new(move || Ok(Box::new(Drowsy(create(kind)?, nap.clone()))))
    }
}

struct Drowsy(Box<dyn Engine>, Nap);

impl Engine for Drowsy {
    fn submit(&mut self, tag: Tag, job: FileJob) {
        self.0.submit(tag, job);
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        self.0.reap(out);
        let length = std::mem::take(&mut *self.1.0.lock().expect("no panic"));
        std::thread::sleep(length);
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.0.wait(timeout);
    }

    fn waker(&self) -> Waker {
        self.0.waker()
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }
}

/// Which syncs an [`Unsynced`] image leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    pub flush: bool,
    pub fua: bool,
}

/// An image whose backend forgets to make things durable: what the durability check must find.
#[derive(Debug)]
pub struct Unsynced {
    pub image: RawBackend,
    pub without: LeftOut,
}

impl Backend for Unsynced {
    fn len(&self) -> u64 {
        self.image.len()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&self, tag: Tag, mut op: Op, engine: &mut dyn Engine) -> Option<Completion> {
        match &mut op {
            Op::Flush if self.without.flush => {
                return Some(Completion { tag, result: Ok(()), buf: None });
            }
            Op::Write { fua, .. } | Op::WriteZeroes { fua, .. } => *fua &= !self.without.fua,
            _ => {}
        }
        self.image.submit(tag, op, engine)
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

    /// An engine whose worker is held in the middle of a turn: before it looks at its queues, and `with` completions that
    /// it has not posted yet, or whatever it has.
    pub fn engine(&self, inner: EngineFactory, with: bool) -> EngineFactory {
        let halt = self.clone();
        Arc::new(move || Ok(Box::new(HaltEngine { inner: inner()?, halt: halt.clone(), with })))
    }

    /// Memory whose reads are held before they move anything.
    pub fn memory(&self, len: u64) -> SharedBackend {
        Arc::new(HaltMemory {
            inner: MemoryBackend::new(len).expect("the memory is there"),
            halt: self.clone(),
        })
    }
}

struct HaltEngine {
    inner: Box<dyn Engine>,
    halt: Halt,
    with: bool,
}

impl Engine for HaltEngine {
    fn submit(&mut self, tag: Tag, job: FileJob) {
        self.inner.submit(tag, job);
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        self.inner.reap(out);
        if !self.with || !out.is_empty() {
            self.halt.pass();
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.inner.wait(timeout);
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
}

#[derive(Debug)]
struct HaltMemory {
    inner: MemoryBackend,
    halt: Halt,
}

impl std::fmt::Debug for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Halt")
    }
}

impl Backend for HaltMemory {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&self, tag: Tag, op: Op, engine: &mut dyn Engine) -> Option<Completion> {
        self.inner.submit(tag, op, engine)
    }

    fn is_immediate(&self) -> bool {
        true
    }

    fn read_now(&self, offset: u64, to: &Transient<'_>) -> Result<(), BackendError> {
        self.halt.pass();
        self.inner.read_now(offset, to)
    }

    fn write_now(&self, offset: u64, from: &Transient<'_>) -> Result<(), BackendError> {
        self.inner.write_now(offset, from)
    }

    fn name(&self) -> &str {
        self.inner.name()
    }
}
