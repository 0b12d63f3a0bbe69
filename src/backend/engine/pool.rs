//! The blocking engine: a few threads that make the calls, one job each at a time.
#![expect(unsafe_code, reason = "system calls on iovecs")]

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use libc::c_int;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Engine, FileJob, Waker};
use crate::backend::file_job::{Call, JobKind};
use crate::backend::shortcut::{answer, clone_range, copy_range};
use crate::backend::{Completion, Tag};

/// How long a dropped engine waits for calls in progress before it abandons their threads.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module docs. At most half of the threads copy at a time, so that a long [`JobKind::Copy`] leaves
/// others their turn.
#[derive(Debug)]
pub struct PoolEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    idle: Condvar,
    done: Mutex<Vec<Completion>>,
    waker: Waker,
    /// Said under the lock of the queue too; here for those who are between two calls.
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<(Tag, FileJob)>,
    copies: VecDeque<(Tag, FileJob)>,
    /// Threads that copy, and how many may.
    copying: usize,
    max_copying: usize,
    alive: usize,
    stop: bool,
}

impl Queue {
    fn pop(&mut self) -> Option<(Tag, FileJob)> {
        if self.copying < self.max_copying
            && let Some(copy) = self.copies.pop_front()
        {
            self.copying += 1;
            return Some(copy);
        }
        self.jobs.pop_front()
    }
}

/// Nothing panics while it holds one of the locks, and what they guard is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PoolEngine {
    /// Threads of an engine that [`super::create`] makes.
    pub const THREADS: usize = 4;

    /// An engine of `threads` threads (at least one), which sleep until there is work.
    pub fn new(threads: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        Self::with(threads, threads.div_ceil(2), Waker::new()?)
    }

    /// Threads for the copies alone of an engine that sleeps by other means, and is woken by `waker`.
    pub(super) fn beside(waker: Waker) -> io::Result<Self> {
        Self::with(Self::THREADS, Self::THREADS, waker)
    }

    fn with(threads: usize, max_copying: usize, waker: Waker) -> io::Result<Self> {
        let mut engine = PoolEngine {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue { max_copying, ..Queue::default() }),
                work: Condvar::new(),
                idle: Condvar::new(),
                done: Mutex::default(),
                waker,
                stopping: AtomicBool::new(false),
            }),
            threads: Vec::new(),
            in_flight: 0,
        };
        for n in 0..threads {
            let shared = Arc::clone(&engine.shared);
            lock(&shared.queue).alive += 1;
            let spawned = std::thread::Builder::new().name(format!("io-{n}")).spawn(move || shared.run());
            match spawned {
                Ok(thread) => engine.threads.push(thread),
                Err(e) => {
                    lock(&engine.shared.queue).alive -= 1;
                    return Err(e);
                }
            }
        }
        Ok(engine)
    }

    /// Nothing to reap?
    pub(super) fn none_done(&self) -> bool {
        lock(&self.shared.done).is_empty()
    }

    /// Starts no call any more; dropping it then waits for those in progress.
    pub(super) fn stop(&self) {
        let mut queue = lock(&self.shared.queue);
        queue.stop = true;
        self.shared.stopping.store(true, Ordering::Relaxed);
        let unstarted = (std::mem::take(&mut queue.jobs), std::mem::take(&mut queue.copies));
        drop(queue);
        self.shared.work.notify_all();
        drop(unstarted);
    }
}

impl Engine for PoolEngine {
    fn submit(&mut self, tag: Tag, job: FileJob) {
        self.in_flight += 1;
        let mut queue = lock(&self.shared.queue);
        match job.kind() {
            JobKind::Copy => queue.copies.push_back((tag, job)),
            _ => queue.jobs.push_back((tag, job)),
        }
        drop(queue);
        self.shared.work.notify_one();
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        let mut done = lock(&self.shared.done);
        self.in_flight -= done.len();
        out.append(&mut done);
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        // An earlier wait may have taken the wake-up of completions that nobody has reaped yet.
        if !self.none_done() {
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
        while let Some((tag, mut job)) = self.take() {
            while let Some(call) = job.next_call() {
                if call == Call::Wait {
                    // Who holds what it waits for is on another thread, or in another engine, and not waiting.
                    job.sleep();
                } else {
                    let result = make(&job, call);
                    job.complete(result);
                }
                // Nobody will hear of its end, and a copy can have many calls to go.
                if self.stopping.load(Ordering::Relaxed) {
                    break;
                }
            }
            if job.kind() == JobKind::Copy {
                self.copy_ended();
            }
            let mut done = lock(&self.done);
            let first = done.is_empty();
            done.push(job.finish(tag));
            drop(done);
            // Whoever finds others there came after the wake-up for the first.
            if first {
                self.waker.wake();
            }
        }
        lock(&self.queue).alive -= 1;
        self.idle.notify_all();
    }

    fn take(&self) -> Option<(Tag, FileJob)> {
        let mut queue = self
            .work
            .wait_while(lock(&self.queue), |queue| {
                let copies = !queue.copies.is_empty() && queue.copying < queue.max_copying;
                queue.jobs.is_empty() && !copies && !queue.stop
            })
            .unwrap_or_else(PoisonError::into_inner);
        if queue.stop { None } else { queue.pop() }
    }

    /// This thread looks for work again itself, and finds the copy that waited for it, if there is one.
    fn copy_ended(&self) {
        lock(&self.queue).copying -= 1;
    }
}

/// Makes one call; its result as the kernel gives it to a ring, bytes or -errno.
fn make(job: &FileJob, call: Call) -> i64 {
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::time::Instant;

    use super::*;
    use crate::backend::conformance::pool;
    use crate::backend::image_file::{ImageFile, Tap};
    use crate::backend::{BackendError, Op};

    /// Calls hang until the test lets them go.
    #[derive(Debug)]
    struct Hang {
        started: SyncSender<()>,
        go: Mutex<Receiver<()>>,
    }

    impl Tap for Hang {
        fn issued(&self, _: &Call, _: &[u8]) -> u64 {
            self.started.send(()).expect("the test listens");
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
