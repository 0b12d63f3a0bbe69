//! What a worker's thread lends its disks: a ring for what the kernel does by itself, threads for what may block, an inbox
//! for what comes from elsewhere, reads of the page cache.
//!
//! All of it is made at the start. It may be made on another thread than the one that uses it, but from the first `reap`
//! or `wait` on it stays with its thread.

mod cached;
mod kind;
mod nowait;
mod pool;
mod ring;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use cached::CachedRead;
pub use kind::{LaneKind, probe};
pub(super) use pool::Class;
pub use pool::Work;

use super::file::job::FileJob;
use super::{Done, Stop, Tag, Waker};
use nowait::Batch;
use pool::Pool;
use ring::Ring;

/// Threads of a lane that has nothing else.
const THREADS: usize = 4;
/// And beside a ring: as many for copies, and some for what a command waits for.
const THREADS_BESIDE: usize = 6;

/// See the module docs.
pub struct Lane {
    /// Without, threads make the calls of jobs.
    ring: Option<Ring>,
    /// Many reads of page caches with one call.
    batch: Option<Batch>,
    pool: Pool,
    inbox: Inbox,
    done: Vec<Done>,
    /// Operations started and not reaped.
    in_flight: usize,
    /// The last look at the inbox before a sleep said that the thread sleeps.
    slept: bool,
    #[cfg(any(test, feature = "testing"))]
    look: Option<Look>,
}

/// Looks at what was reaped.
#[cfg(any(test, feature = "testing"))]
type Look = Box<dyn FnMut(&[Done]) + Send>;

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Lane {
    /// A lane for one worker.
    ///
    /// # Errors
    /// The kernel has no ring or no eventfd for us.
    pub fn new(kind: LaneKind) -> io::Result<Self> {
        let waker = Waker::new()?;
        match kind.resolve() {
            LaneKind::Threads => Ok(Self::with(None, None, THREADS, waker)),
            LaneKind::Auto | LaneKind::IoUring => {
                let ring = Ring::new(waker.clone())?;
                let batch = Batch::new()
                    .inspect_err(|error| {
                        log::info!("no ring for reads of the page cache ({error}): a call each");
                    })
                    .ok();
                Ok(Self::with(Some(ring), batch, THREADS_BESIDE, waker))
            }
        }
    }

    fn with(ring: Option<Ring>, batch: Option<Batch>, threads: usize, waker: Waker) -> Self {
        let inbox = Inbox(Arc::new(Events { list: Mutex::default(), any: AtomicBool::new(false), waker }));
        let report = inbox.clone();
        let pool = Pool::new(threads, move |done| report.done(done));
        Lane {
            ring,
            batch,
            pool,
            inbox,
            done: Vec::new(),
            in_flight: 0,
            slept: false,
            #[cfg(any(test, feature = "testing"))]
            look: None,
        }
    }

    /// One more operation was started.
    pub(super) fn begin(&mut self) {
        self.in_flight += 1;
    }

    /// Gives a job to the kernel.
    pub(super) fn ring(&mut self, tag: Tag, job: FileJob) {
        match &mut self.ring {
            Some(ring) => ring.submit(tag, job),
            None => self.rest(tag, job),
        }
    }

    /// Has a thread do what is left of a job.
    fn rest(&mut self, tag: Tag, job: FileJob) {
        let class = if job.is_moved() { Class::Sync } else { Class::Short };
        self.block(tag, Work::new(job.file().id(), class, move |stop| job.run(stop)));
    }

    /// Gives work to a thread that may block.
    pub fn block(&mut self, tag: Tag, work: Work) {
        self.pool.submit(tag, work);
    }

    /// An operation is over.
    pub fn done(&mut self, done: Done) {
        self.done.push(done);
    }

    /// Where ends come in from other threads, and what else is to be done on this one.
    pub fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// Tries reads of what may lie in page caches; all of them are over when this returns, and none has waited.
    pub fn read_cached(&mut self, reads: &mut [CachedRead<'_>]) {
        match &mut self.batch {
            Some(batch) if reads.len() >= nowait::WORTH => {
                if let Err(error) = batch.try_reads(reads) {
                    log::warn!("a ring for reads of the page cache failed: {error}");
                    self.batch = None;
                }
            }
            _ => cached::try_each(reads),
        }
    }

    /// Takes what is over already, without a look at anything else.
    pub fn take_done(&mut self, out: &mut Vec<Done>) {
        self.in_flight -= self.done.len();
        out.append(&mut self.done);
    }

    /// Is something over that [`Self::take_done`] would take?
    pub fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Hands over what was submitted and collects what is complete, without waiting.
    #[inline]
    pub fn reap(&mut self, out: &mut Vec<Done>) {
        self.pool.hand_over();
        if self.ring.is_some() {
            self.reap_ring();
        }
        if self.slept || self.inbox.0.any.load(Ordering::Relaxed) {
            self.open_inbox();
        }
        if !self.done.is_empty() {
            self.take_done(out);
        }
        #[cfg(any(test, feature = "testing"))]
        if let Some(look) = &mut self.look {
            look(out);
        }
    }

    fn reap_ring(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let mut left = Vec::new();
        for (tag, job) in ring.reap() {
            if job.is_over() {
                let (result, buf) = job.run(&Stop::default());
                self.done.push(Done { tag, result, buf });
            } else {
                left.push((tag, job));
            }
        }
        if !left.is_empty() {
            left.into_iter().for_each(|(tag, job)| self.rest(tag, job));
            self.pool.hand_over();
        }
    }

    fn open_inbox(&mut self) {
        self.slept = false;
        for event in self.inbox.take() {
            match event {
                Event::Done(done) => self.done.push(done),
                Event::Run(run) => run(self),
            }
        }
    }

    /// Has `look` called at the end of each reap: a seam at which tests hold a worker up.
    #[cfg(any(test, feature = "testing"))]
    pub fn look_at_done(&mut self, look: impl FnMut(&[Done]) + Send + 'static) {
        self.look = Some(Box::new(look));
    }

    /// Sleeps until an operation completes, the waker fires or `timeout` passes. May return early.
    pub fn wait(&mut self, timeout: Option<Duration>) {
        self.pool.hand_over();
        if !self.done.is_empty() || !self.inbox.may_sleep() {
            return;
        }
        self.slept = true;
        match &mut self.ring {
            Some(ring) => ring.wait(timeout),
            None => {
                let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
                let waker = &self.inbox.0.waker;
                let mut fds = [PollFd::new(waker.fd(), PollFlags::IN)];
                if let Ok(1..) = poll(&mut fds, timeout.as_ref()) {
                    waker.clear();
                }
            }
        }
    }

    /// Ends a sleep from any thread, now or the next one to come.
    pub fn waker(&self) -> Waker {
        self.inbox.0.waker.clone()
    }

    /// Operations started and not yet reaped.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Its work ends while the calls of the ring do.
        self.pool.stop();
    }
}

/// What comes to a lane from other threads.
enum Event {
    Done(Done),
    Run(Box<dyn FnOnce(&mut Lane) + Send>),
}

/// Where other threads leave what a lane's thread is to see. Cheap to clone.
#[derive(Clone)]
pub struct Inbox(Arc<Events>);

struct Events {
    list: Mutex<List>,
    /// There are some, for the lane's thread, which looks again and again: under the lock it would be in the way of
    /// those who have something to tell.
    any: AtomicBool,
    waker: Waker,
}

#[derive(Default)]
struct List {
    events: Vec<Event>,
    /// The lane's thread sleeps, or is about to, and wants to be woken by the next event.
    asleep: bool,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbox")
    }
}

impl Inbox {
    /// An operation is over.
    pub fn done(&self, done: Done) {
        self.send(Event::Done(done));
    }

    /// Has something done on the lane's thread: an operation submitted, for instance, whose time has come.
    pub fn run(&self, run: impl FnOnce(&mut Lane) + Send + 'static) {
        self.send(Event::Run(Box::new(run)));
    }

    fn send(&self, event: Event) {
        let mut list = self.list();
        list.events.push(event);
        self.0.any.store(true, Ordering::Relaxed);
        let wake = std::mem::take(&mut list.asleep);
        drop(list);
        if wake {
            self.0.waker.wake();
        }
    }

    /// Nothing there? Then the next event writes the waker.
    fn may_sleep(&self) -> bool {
        let mut list = self.list();
        list.asleep = list.events.is_empty();
        list.asleep
    }

    fn take(&self) -> Vec<Event> {
        let mut list = self.list();
        list.asleep = false;
        self.0.any.store(false, Ordering::Relaxed);
        std::mem::take(&mut list.events)
    }

    /// Nothing that panics is done under the lock.
    fn list(&self) -> MutexGuard<'_, List> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
