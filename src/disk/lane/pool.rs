//! Threads that may block: one piece of work each at a time.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::disk::file::job::Finished;
use crate::disk::file::ways::ImageId;
use crate::disk::{Done, Stop, Tag};

/// How long a thread that has copied looks for more before it sleeps: to wake it again costs as much as a short copy.
const LOOK: Duration = Duration::from_micros(30);

/// How long a dropped pool waits for work in progress before it abandons its threads.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);

/// The remedy, for the log.
pub(super) const MORE_THREADS: &str =
    "allow this process more threads (ulimit -u, TasksMax= of its unit, pids.max)";

/// What kind of work it is, for the sake of others: how much of it may be under way at once for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::disk) enum Class {
    /// Calls that a command waits for: any number.
    Short,
    /// An fdatasync: a second one would only wait for the first.
    Sync,
    /// Zeroes and holes, which a file makes one at a time; and what may wait for another's blocks.
    Change,
    /// A copy that is over soon: alone, for two would only wait for each other in the kernel.
    ShortCopy,
    /// Two: one reads while the other writes, which a file lets only one do at a time.
    LongCopy,
}

impl Class {
    fn at_once(self) -> usize {
        match self {
            Class::Short => usize::MAX,
            Class::Sync | Class::ShortCopy => 1,
            Class::Change | Class::LongCopy => 2,
        }
    }

    fn is_copy(self) -> bool {
        matches!(self, Class::ShortCopy | Class::LongCopy)
    }
}

type Code = Box<dyn FnOnce(&Stop) -> Finished + Send>;

/// Something to be done by a thread that may block: straight code.
pub struct Work {
    image: ImageId,
    class: Class,
    run: Code,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("image", &self.image).field("class", &self.class).finish_non_exhaustive()
    }
}

impl Work {
    /// For an image, of a class.
    pub(in crate::disk) fn new(
        image: ImageId,
        class: Class,
        run: impl FnOnce(&Stop) -> Finished + Send + 'static,
    ) -> Self {
        Work { image, class, run: Box::new(run) }
    }

    /// Does it on this thread. A fault of ours is an error of this operation alone.
    pub(super) fn run(self, tag: Tag, stop: &Stop) -> Done {
        let run = self.run;
        let ended = catch_unwind(AssertUnwindSafe(|| run(stop)));
        let (result, buf) =
            ended.unwrap_or_else(|_| (Err(io::Error::other("a fault of the server").into()), None));
        Done { tag, result, buf }
    }
}

/// Takes the ends, on the thread that made them.
type Report = Box<dyn Fn(Done) + Send + Sync>;

/// See the module docs. At most half of the threads copy at a time, so that copies do not keep others out.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Submitted and not handed over yet: one look at the queue and one wake-up serve for all.
    fresh: Vec<(Tag, Work)>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    idle: Condvar,
    report: Report,
    /// There is work that can start, for those who look without the lock.
    startable: AtomicBool,
    /// Said under the lock of the queue too.
    stop: Stop,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("queue", &self.queue).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(Tag, Work)>,
    /// What threads are at.
    running: Vec<(ImageId, Class)>,
    /// Threads that may copy at a time.
    copies: usize,
    /// Threads that wait for work, and that look for it and need not be told.
    idle: usize,
    looking: usize,
    alive: usize,
}

impl Queue {
    /// The oldest that may begin now.
    fn next(&self) -> Option<usize> {
        let copying = self.running.iter().filter(|(_, class)| class.is_copy()).count();
        self.waiting.iter().position(|(_, work)| {
            let beside = self.running.iter().filter(|running| **running == (work.image, work.class)).count();
            beside < work.class.at_once() && (copying < self.copies || !work.class.is_copy())
        })
    }

    fn pop(&mut self) -> Option<(Tag, Work)> {
        let work = self.waiting.remove(self.next()?)?;
        self.running.push((work.1.image, work.1.class));
        Some(work)
    }

    fn ended(&mut self, what: (ImageId, Class)) {
        if let Some(at) = self.running.iter().position(|running| *running == what) {
            self.running.swap_remove(at);
        }
    }

    /// Is a thread to be woken for what can start? It wakes the next one, if there is more.
    fn calls(&self) -> bool {
        self.idle > 0 && self.looking == 0 && self.next().is_some()
    }
}

/// Nothing panics while it holds the lock, and what it guards is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// So many threads, which sleep until there is work. Where not all can be made, those that could be do it all; where
    /// none can, whoever hands work over does it.
    pub(super) fn new(threads: usize, report: impl Fn(Done) + Send + Sync + 'static) -> Self {
        let mut pool = Pool {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue { copies: threads.div_ceil(2), ..Queue::default() }),
                work: Condvar::new(),
                idle: Condvar::new(),
                report: Box::new(report),
                startable: AtomicBool::new(false),
                stop: Stop::default(),
            }),
            threads: Vec::new(),
            fresh: Vec::new(),
        };
        for n in 0..threads {
            let shared = Arc::clone(&pool.shared);
            lock(&shared.queue).alive += 1;
            let spawned = std::thread::Builder::new().name(format!("io-{n}")).spawn(move || {
                leave_the_workers_processor();
                shared.run();
            });
            match spawned {
                Ok(thread) => pool.threads.push(thread),
                Err(e) => {
                    lock(&pool.shared.queue).alive -= 1;
                    log::warn!("{n} threads for images instead of {threads}: {e}; {MORE_THREADS}");
                    break;
                }
            }
        }
        pool
    }

    /// Takes work; it may begin at the next [`Self::hand_over`].
    pub(super) fn submit(&mut self, tag: Tag, work: Work) {
        self.fresh.push((tag, work));
    }

    /// Makes what was submitted known to the threads. To be called before a sleep, always.
    #[inline]
    pub(super) fn hand_over(&mut self) {
        if !self.fresh.is_empty() {
            self.hand_over_fresh();
        }
    }

    fn hand_over_fresh(&mut self) {
        if self.threads.is_empty() {
            // Late is better than failed.
            for (tag, work) in self.fresh.drain(..) {
                (self.shared.report)(work.run(tag, &self.shared.stop));
            }
            return;
        }
        let mut queue = lock(&self.shared.queue);
        queue.waiting.extend(self.fresh.drain(..));
        self.shared.tell(queue);
    }

    /// Starts nothing any more; dropping it then waits for what is in progress.
    pub(super) fn stop(&self) {
        let mut queue = lock(&self.shared.queue);
        self.shared.stop.set();
        let unstarted = std::mem::take(&mut queue.waiting);
        drop(queue);
        self.shared.work.notify_all();
        drop(unstarted);
    }
}

impl Drop for Pool {
    /// Waits for the work in progress, but not for ever: a thread hung in the kernel is left behind with
    /// its work, whose buffer it thereby keeps.
    fn drop(&mut self) {
        self.stop();
        let queue = lock(&self.shared.queue);
        let (queue, waited) = self
            .shared
            .idle
            .wait_timeout_while(queue, DROP_TIMEOUT, |queue| queue.alive > 0)
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
        let mut queue = lock(&self.queue);
        while !self.stop.is_set() {
            let Some((tag, work)) = queue.pop() else {
                queue.idle += 1;
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
                continue;
            };
            self.tell(queue);
            let what = (work.image, work.class);
            (self.report)(work.run(tag, &self.stop));
            queue = lock(&self.queue);
            queue.ended(what);
            // A host that waits for a short copy has the next one soon.
            if what.1.is_copy() && queue.next().is_none() {
                queue.looking += 1;
                self.startable.store(false, Ordering::Relaxed);
                drop(queue);
                self.look();
                queue = lock(&self.queue);
                queue.looking -= 1;
            }
        }
        queue.alive -= 1;
        drop(queue);
        self.idle.notify_all();
    }

    /// The queue has changed: those who look see it, and one who sleeps is woken if nobody does.
    fn tell(&self, queue: MutexGuard<'_, Queue>) {
        self.startable.store(queue.next().is_some(), Ordering::Relaxed);
        let calls = queue.calls();
        drop(queue);
        if calls {
            self.work.notify_one();
        }
    }

    /// Until there is something to do, or for a moment.
    fn look(&self) {
        let since = Instant::now();
        while !self.startable.load(Ordering::Relaxed) && !self.stop.is_set() && since.elapsed() < LOOK {
            std::thread::yield_now();
        }
    }
}

/// A thread inherits where it may run from the worker that starts it, which may be bound to one processor, and busy.
fn leave_the_workers_processor() {
    use rustix::thread::{sched_getaffinity, sched_setaffinity};
    // Where that is forbidden it serves there, only later.
    let _ = sched_getaffinity(Some(rustix::process::getpid()))
        .and_then(|process| sched_setaffinity(None, &process));
}
