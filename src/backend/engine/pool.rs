//! The blocking engine: a few threads that make the calls, one job each at a time.
#![expect(unsafe_code, reason = "system calls on iovecs")]

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libc::c_int;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Engine, FileJob, Waker};
use crate::backend::extents::extent_end;
use crate::backend::file_job::{Call, JobKind};
use crate::backend::image_file::ImageId;
use crate::backend::relay::SHORT;
use crate::backend::shortcut::{answer, clone_range, copy_range};
use crate::backend::{Completion, Tag};

/// Threads that relay beside a ring. Two for an image, three in all: one that hangs leaves others their Copies.
const RELAYS: usize = 3;
/// Relays to one image at a time: one reads while the other writes, which a file lets only one do at a time.
const RELAYS_OF_ONE: usize = 2;
/// How long a thread that has relayed looks for more before it sleeps: to wake it again costs as much.
const LOOK: Duration = Duration::from_micros(30);

/// How long a dropped engine waits for calls in progress before it abandons their threads.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module docs. At most half of the threads copy at a time, and so many relay, so that neither a long
/// [`JobKind::Copy`] nor many [`JobKind::Relay`]s keep others out.
#[derive(Debug)]
pub struct PoolEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
    /// The last look before a sleep said that it sleeps.
    slept: bool,
    /// Submitted and not handed over yet: one look at the queue and one wake-up serve for all.
    fresh: Vec<(Tag, FileJob)>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    idle: Condvar,
    done: Mutex<Done>,
    /// There are some, for the engine's thread, which looks again and again: under the lock it would be in the way of
    /// those who have something to tell.
    any_done: AtomicBool,
    waker: Waker,
    /// Jobs that can start, for those who look without the lock.
    waiting: AtomicUsize,
    /// Said under the lock of the queue too; here for those who are between two calls.
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct Done {
    list: Vec<Completion>,
    /// The engine's thread sleeps, or is about to, and wants to be woken by the next completion.
    asleep: bool,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<(Tag, FileJob)>,
    copies: Limited,
    relays: Relays,
    /// Threads that wait for work, and of those that have been told of some and do not run yet.
    idle: usize,
    called: usize,
    /// Threads that look for work and need not be told.
    looking: usize,
    alive: usize,
    stop: bool,
}

/// Jobs that not all threads may do at once.
#[derive(Debug, Default)]
struct Limited {
    jobs: VecDeque<(Tag, FileJob)>,
    /// Threads that do, and how many may.
    running: usize,
    max: usize,
}

impl Limited {
    fn of_at_most(max: usize) -> Self {
        Limited { max, ..Limited::default() }
    }

    fn pop(&mut self) -> Option<(Tag, FileJob)> {
        let job = if self.running < self.max { self.jobs.pop_front() } else { None };
        self.running += usize::from(job.is_some());
        job
    }

    /// Jobs that a thread may begin now.
    fn startable(&self) -> usize {
        self.jobs.len().min(self.max - self.running)
    }
}

/// As [`Limited`], for [`JobKind::Relay`]s.
#[derive(Debug, Default)]
struct Relays {
    jobs: VecDeque<(Tag, FileJob)>,
    /// The images to which threads relay. A short relay is alone there: two would only wait for each other in the
    /// kernel.
    running: Vec<ImageId>,
    max: usize,
}

impl Relays {
    fn next(&self) -> Option<usize> {
        if self.running.len() >= self.max {
            return None;
        }
        self.jobs.iter().position(|(_, job)| {
            let beside = self.running.iter().filter(|image| **image == job.image()).count();
            beside == 0 || (beside < RELAYS_OF_ONE && job.range().1 >= SHORT)
        })
    }

    fn pop(&mut self) -> Option<(Tag, FileJob)> {
        let job = self.jobs.remove(self.next()?)?;
        self.running.push(job.1.image());
        Some(job)
    }

    /// One at most: who begins it calls for the next.
    fn startable(&self) -> usize {
        usize::from(self.next().is_some())
    }

    fn ended(&mut self, image: ImageId) {
        if let Some(at) = self.running.iter().position(|running| *running == image) {
            self.running.swap_remove(at);
        }
    }
}

impl Queue {
    fn push(&mut self, tag: Tag, job: FileJob) {
        match job.kind() {
            JobKind::Copy => self.copies.jobs.push_back((tag, job)),
            JobKind::Relay => self.relays.jobs.push_back((tag, job)),
            _ => self.jobs.push_back((tag, job)),
        }
    }

    fn pop(&mut self) -> Option<(Tag, FileJob)> {
        self.copies.pop().or_else(|| self.relays.pop()).or_else(|| self.jobs.pop_front())
    }

    fn startable(&self) -> usize {
        self.jobs.len() + self.copies.startable() + self.relays.startable()
    }

    /// How many of the waiting threads are to be called for what can start.
    fn call(&mut self) -> usize {
        let unseen = self.startable().saturating_sub(self.called + self.looking);
        let call = unseen.min(self.idle - self.called);
        self.called += call;
        call
    }

    fn ended(&mut self, kind: JobKind, image: ImageId) {
        match kind {
            JobKind::Copy => self.copies.running -= 1,
            JobKind::Relay => self.relays.ended(image),
            _ => {}
        }
    }
}

/// Nothing panics while it holds one of the locks, and what they guard is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PoolEngine {
    /// Threads of an engine that [`super::create`] makes.
    pub const THREADS: usize = 4;

    /// An engine of `threads` threads (at least one), which sleep until there is work. Where so many cannot be made,
    /// those that could be do it all.
    ///
    /// # Errors
    /// There is not one, or no eventfd.
    pub fn new(threads: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        Self::with(threads, threads.div_ceil(2), (threads / 4).max(1), Waker::new()?)
    }

    /// Threads for the copies, relays and probes alone of an engine that sleeps by other means, and is woken by `waker`.
    /// One of them neither copies nor relays: a probe is short, and a command waits for it.
    pub(super) fn beside(waker: Waker) -> io::Result<Self> {
        Self::with(Self::THREADS + 2, Self::THREADS - 2, RELAYS, waker)
    }

    fn with(threads: usize, copies: usize, relays: usize, waker: Waker) -> io::Result<Self> {
        let (copies, relays) = (Limited::of_at_most(copies), Relays { max: relays, ..Relays::default() });
        let mut engine = PoolEngine {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue { copies, relays, ..Queue::default() }),
                work: Condvar::new(),
                idle: Condvar::new(),
                done: Mutex::default(),
                any_done: AtomicBool::new(false),
                waker,
                waiting: AtomicUsize::new(0),
                stopping: AtomicBool::new(false),
            }),
            threads: Vec::new(),
            in_flight: 0,
            slept: false,
            fresh: Vec::new(),
        };
        for n in 0..threads {
            let shared = Arc::clone(&engine.shared);
            lock(&shared.queue).alive += 1;
            let spawned = std::thread::Builder::new().name(format!("io-{n}")).spawn(move || {
                leave_the_workers_processor();
                shared.run();
            });
            match spawned {
                Ok(thread) => engine.threads.push(thread),
                Err(e) => {
                    lock(&engine.shared.queue).alive -= 1;
                    if engine.threads.is_empty() {
                        return Err(e);
                    }
                    log::warn!("{n} threads for images instead of {threads}: {e}");
                    break;
                }
            }
        }
        Ok(engine)
    }

    /// Nothing to reap? Then the next completion writes the waker. To be asked before a sleep, always: it hands over
    /// what was submitted.
    pub(super) fn may_sleep(&mut self) -> bool {
        self.hand_over();
        let mut done = lock(&self.shared.done);
        done.asleep = done.list.is_empty();
        self.slept = done.asleep;
        done.asleep
    }

    fn hand_over(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let mut queue = lock(&self.shared.queue);
        for (tag, job) in self.fresh.drain(..) {
            queue.push(tag, job);
        }
        let call = queue.call();
        self.shared.waiting.store(queue.startable(), Ordering::Relaxed);
        drop(queue);
        for _ in 0..call {
            self.shared.work.notify_one();
        }
    }

    /// Starts no call any more; dropping it then waits for those in progress.
    pub(super) fn stop(&self) {
        let mut queue = lock(&self.shared.queue);
        queue.stop = true;
        self.shared.stopping.store(true, Ordering::Relaxed);
        let unstarted = [
            std::mem::take(&mut queue.jobs),
            std::mem::take(&mut queue.copies.jobs),
            std::mem::take(&mut queue.relays.jobs),
        ];
        drop(queue);
        self.shared.work.notify_all();
        drop(unstarted);
    }
}

impl Engine for PoolEngine {
    fn submit(&mut self, tag: Tag, job: FileJob) {
        self.in_flight += 1;
        self.fresh.push((tag, job));
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        self.hand_over();
        if !self.slept && !self.shared.any_done.load(Ordering::Relaxed) {
            return;
        }
        self.slept = false;
        let mut done = lock(&self.shared.done);
        done.asleep = false;
        self.shared.any_done.store(false, Ordering::Relaxed);
        self.in_flight -= done.list.len();
        out.append(&mut done.list);
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        // An earlier wait may have taken the wake-up of completions that nobody has reaped yet.
        if !self.may_sleep() {
            return;
        }
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        let waker = &self.shared.waker;
        let mut fds = [PollFd::new(waker.fd(), PollFlags::IN)];
        if let Ok(1..) = poll(&mut fds, timeout.as_ref()) {
            waker.clear();
        }
    }

    fn waker(&self) -> Waker {
        self.shared.waker.clone()
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn may_be_passed(&self) -> bool {
        true
    }
}

impl Drop for PoolEngine {
    /// Waits for the calls in progress, but not for ever: a thread hung in the kernel is left behind with
    /// its job, whose buffer it thereby keeps.
    fn drop(&mut self) {
        self.stop();
        let queue = lock(&self.shared.queue);
        let (queue, waited) = self
            .shared
            .idle
            .wait_timeout_while(queue, PATIENCE, |queue| queue.alive > 0)
            .unwrap_or_else(PoisonError::into_inner);
        let alive = queue.alive;
        drop(queue);
        if waited.timed_out() {
            log::warn!("{alive} threads hang in calls on an image; they are left behind");
            return;
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut ended = None;
        while let Some((tag, job)) = self.take(ended) {
            ended = Some((job.kind(), job.image()));
            self.end(tag, job);
        }
        lock(&self.queue).alive -= 1;
        self.idle.notify_all();
    }

    /// Does what is left of a job.
    fn end(&self, tag: Tag, mut job: FileJob) {
        // Then nobody will hear of its end, and a copy can have many calls to go.
        while !self.stopping.load(Ordering::Relaxed)
            && let Some(call) = job.next_call()
        {
            if call == Call::Wait {
                // Who holds what it waits for is on another thread, or in another engine, and not waiting.
                job.sleep();
            } else {
                let result = make(&job, call);
                job.complete(result);
            }
        }
        let completion = job.finish(tag);
        let mut done = lock(&self.done);
        done.list.push(completion);
        self.any_done.store(true, Ordering::Relaxed);
        let wake = std::mem::take(&mut done.asleep);
        drop(done);
        if wake {
            self.waker.wake();
        }
    }

    /// The next job, once there is one, and those that are done with it; `None` at the end. `ended`: what the last one
    /// was.
    fn take(&self, ended: Option<(JobKind, ImageId)>) -> Option<(Tag, FileJob)> {
        let mut queue = lock(&self.queue);
        if let Some((kind, image)) = ended {
            queue.ended(kind, image);
        }
        // A host that waits for a short copy has the next one soon.
        if matches!(ended, Some((JobKind::Relay, _))) && queue.startable() == 0 && !queue.stop {
            queue.looking += 1;
            self.waiting.store(0, Ordering::Relaxed);
            drop(queue);
            self.look();
            queue = lock(&self.queue);
            queue.looking -= 1;
        }
        while queue.startable() == 0 && !queue.stop {
            queue.idle += 1;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            // Woken for nothing, it answers another's call; that one finds nothing and waits again.
            queue.idle -= 1;
            queue.called = queue.called.saturating_sub(1);
        }
        let job = if queue.stop { None } else { queue.pop() };
        self.waiting.store(queue.startable(), Ordering::Relaxed);
        let call = queue.call();
        drop(queue);
        for _ in 0..call {
            self.work.notify_one();
        }
        job
    }

    /// Until there is something to do, or for a moment.
    fn look(&self) {
        let since = Instant::now();
        while self.waiting.load(Ordering::Relaxed) == 0
            && !self.stopping.load(Ordering::Relaxed)
            && since.elapsed() < LOOK
        {
            std::thread::yield_now();
        }
    }
}

/// Makes one call; its result as the kernel gives it to a ring, bytes or -errno.
pub(super) fn make(job: &FileJob, call: Call) -> i64 {
    let (fd, iovecs) = (job.fd(), job.iovecs());
    // A FileJob's window has at most UIO_MAXIOV iovecs, its offsets lie in a file.
    let (iov, count) = (iovecs.as_ptr(), iovecs.len() as c_int);
    // SAFETY: the job owns the memory of its iovecs and lives on this thread's stack during the call.
    let result: i64 = unsafe {
        match call {
            Call::Preadv { offset } => libc::preadv(fd, iov, count, offset as i64) as i64,
            Call::Pwritev { offset, dsync } => {
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                libc::pwritev2(fd, iov, count, offset as i64, flags) as i64
            }
            Call::Fdatasync => i64::from(libc::fdatasync(fd)),
            Call::Fallocate { mode, offset, len } => {
                i64::from(libc::fallocate(fd, mode, offset as i64, len as i64))
            }
            Call::Wait => return 0,
            Call::Seek { whence, offset } => libc::lseek64(fd, offset as i64, whence),
            Call::ExtentEnd { offset, len } => return extent_end(fd, offset, len),
            Call::CloneRange { from, offset, len } => {
                return clone_range(job.source_fd(), from, fd, offset, len);
            }
            Call::CopyRange { from, offset, len } => {
                return copy_range(job.source_fd(), from as i64, fd, offset as i64, len as usize);
            }
        }
    };
    answer(result)
}

/// A thread inherits where it may run from the worker that starts it, which may be bound to one processor, and busy.
fn leave_the_workers_processor() {
    use rustix::thread::{sched_getaffinity, sched_setaffinity};
    // Where that is forbidden it serves there, only later.
    let _ = sched_getaffinity(Some(rustix::process::getpid()))
        .and_then(|process| sched_setaffinity(None, &process));
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;
    use crate::backend::conformance::pool;
    use crate::backend::image_file::{ImageFile, Tap};
    use crate::backend::relay::Relay;
    use crate::backend::{BackendError, MemoryBackend, Op};

    /// Calls hang until the test lets them go.
    #[derive(Debug)]
    struct Hang {
        started: SyncSender<()>,
        go: Mutex<Receiver<()>>,
    }

    impl Tap for Hang {
        fn issued(&self, _: &Call, _: &[u8]) -> u64 {
            // Where the test no longer listens it does not want it to hang either.
            if self.started.send(()).is_err() {
                return 0;
            }
            let _ = lock(&self.go).recv();
            0
        }
        fn completed(&self, _: u64, _: &Call, _: Result<u32, i32>) {}
    }

    #[test]
    fn dropped_with_a_hung_call() {
        let (started, has_started) = sync_channel(0);
        let (let_go, go) = sync_channel::<()>(0);
        let tap = Hang { started, go: Mutex::new(go) };
        let file = tempfile::tempfile().expect("a file for the test");
        let file = Arc::new(ImageFile::new(file, Some(Arc::new(tap))));
        let mut engine = PoolEngine::new(1).expect("the thread starts");
        for n in 0..3 {
            let write = Op::Write { offset: 0, buf: pool(vec![0; 512]), fua: false };
            engine.submit(Tag(n), FileJob::new(Arc::clone(&file), write));
        }
        engine.reap(&mut Vec::new());
        has_started.recv().expect("the first call starts");
        assert_eq!(engine.in_flight(), 3);
        let start = Instant::now();
        drop(engine);
        assert!(start.elapsed() < 2 * PATIENCE);
        // The hung job alone is left, with its buffer; those behind it never start.
        assert_eq!(Arc::strong_count(&file), 2);
        drop(let_go);
        while Arc::strong_count(&file) > 1 {
            std::thread::yield_now();
        }
        assert!(has_started.recv_timeout(Duration::from_millis(10)).is_err());
    }

    fn relay(target: &Arc<ImageFile>, len: usize) -> FileJob {
        let source = tempfile::tempfile().expect("a file for the test");
        source.set_len(1 << 20).expect("it has a length");
        let pieces = crate::backend::Pieces::from(&[(0, len as u64)][..]);
        let relay = Relay::new(Arc::new(ImageFile::new(source, None)), pieces.clone());
        let any = Arc::new(MemoryBackend::new(1).expect("the memory is there"));
        let op =
            Op::Relay { source: any, pieces, offset: 0, buf: pool(vec![0; len]), fua: false, offload: true };
        FileJob::relay(Arc::clone(target), op, relay)
    }

    /// Two images hang, and every relay to them that may run does; others are done meanwhile, and a probe is too.
    #[test]
    fn a_hung_relay_leaves_other_images_theirs() {
        let (started, has_started) = sync_channel(8);
        let (let_go, go) = sync_channel::<()>(0);
        let hang: Arc<dyn Tap> = Arc::new(Hang { started, go: Mutex::new(go) });
        let file = |tap| {
            let file = tempfile::tempfile().expect("a file for the test");
            Arc::new(ImageFile::new(file, tap))
        };
        let (hung, well) = (file(Some(Arc::clone(&hang))), file(None));
        let mut engine = PoolEngine::beside(Waker::new().expect("a waker")).expect("the threads start");
        // One that is short begins beside no other; long ones go two at a time.
        for n in 0..4 {
            engine.submit(Tag(n), relay(&hung, if n == 0 { 4096 } else { SHORT as usize }));
        }
        for n in 10..20 {
            engine.submit(Tag(n), relay(&well, 4096));
        }
        let mut out = Vec::new();
        while out.len() < 10 {
            engine.wait(None);
            engine.reap(&mut out);
        }
        assert!(out.iter().all(|done| done.tag.0 >= 10 && done.result.is_ok()), "{out:?}");
        has_started.recv().expect("one began");
        has_started.recv().expect("and one beside it");
        assert!(has_started.recv_timeout(Duration::from_millis(10)).is_err(), "not a third");
        drop(let_go);
        drop(has_started);
        out.clear();
        while out.len() < 4 {
            engine.wait(None);
            engine.reap(&mut out);
        }
        assert_eq!(engine.in_flight(), 0);
    }

    #[test]
    fn errors_of_the_kernel_come_through() {
        let file = File::open("/dev/null").expect("it opens");
        let file = Arc::new(ImageFile::new(file, None));
        let mut engine = PoolEngine::new(2).expect("the threads start");
        let write = Op::Write { offset: 0, buf: pool(vec![0; 512]), fua: false };
        engine.submit(Tag(1), FileJob::new(file, write));
        let mut out = Vec::new();
        while out.is_empty() {
            engine.wait(None);
            engine.reap(&mut out);
        }
        let Err(BackendError::Io(error)) = &out[0].result else { panic!("{out:?}") };
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
