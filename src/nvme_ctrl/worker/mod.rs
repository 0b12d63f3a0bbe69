//! A worker: the thread that owns some completion queues, all submission queues that post to them, and a lane.
//!
//! [`core`] is the state machine of one turn; this file is the thread around it. A worker never waits for anything
//! but its lane, and takes no lock.

mod aborts;
mod by_id;
mod core;
mod fetch;
mod flushing;
mod interrupt;
mod park;
mod rotation;
mod shadow;
mod sleeper;
mod slots;
mod streak;
#[cfg(test)]
mod tests;
mod watched;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::doorbell_buffers::BufferConfig;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::shared::Shared;
use crate::disk::{Lane, Waker};
use crate::laboratory::LabFactory;
use crate::memory::{self, Epoch};

pub use self::core::Core;
pub use self::park::{Look, Park, Poll};
use self::sleeper::Sleeper;

/// What `sleeper` is made of; its test has others in this place.
mod sync {
    pub use std::sync::atomic::{AtomicBool, Ordering, fence};
}

/// Names a message that wants an acknowledgement.
pub type Token = u64;

/// Control thread to worker.
///
/// Who makes the control thread send the same again and again does not fill the mailbox of a worker that is late: of
/// Fence, Reset and Flush the next one is sent when the last one is acknowledged, and the others answer an admin command
/// or come after a Reset that is acknowledged.
#[derive(Debug)]
pub enum ToWorker {
    /// Queues that are created from now on, until the next Reset, belong to this epoch.
    Begin(Epoch),
    /// Own this completion queue from now on.
    CreateCq(CompletionQueue),
    /// Own this submission queue, whose completion queue is yours.
    CreateSq(SubmissionQueue),
    /// Fetch no more from the queue; acknowledge when none of its commands can complete any more.
    DeleteSq(u16, Token),
    /// Forget the queue; nothing posts to it any more.
    DeleteCq(u16, Token),
    /// Abort a command (SQID, CID); acknowledge with whether it will end aborted.
    Abort(u16, u16, Token),
    /// Go by this from now on; acknowledge at once.
    Fence(Token, Fence),
    /// Forget all queues; acknowledge when no command is in flight. Nothing is posted, and no guest memory found, from now
    /// on.
    Reset(Token),
    /// Make everything completed durable; acknowledge with whether that succeeded.
    Flush(Token),
    /// Describe queues and commands in flight in the log.
    Dump,
    /// End the thread once nothing is in flight.
    Stop,
}

/// What a worker is to know as soon as it can; what it knew before is over when it acknowledges.
#[derive(Clone, Copy, Debug)]
pub struct Fence {
    /// The device may read and write guest memory and raise interrupts. Commands in flight go on in any case; while it is
    /// false, none is fetched and none completes.
    ///
    /// And always: look at the DMA table anew. No new transfer uses an older one.
    pub bus_master: bool,
    /// Doorbell Buffer Config: queues use these buffers, if they can be found in guest memory.
    pub buffers: Option<BufferConfig>,
}

/// Worker to control thread.
#[derive(Debug)]
pub enum FromWorker {
    /// The message with this token is done; the flag is its answer.
    Ack(Token, bool),
    /// The host gave a doorbell of a queue a value that this cannot have.
    InvalidDoorbell,
    /// The controller cannot go on: queue memory is gone, or the worker failed.
    Fatal(String),
}

/// The worker's end of its messages.
struct Messages {
    queue: Receiver<ToWorker>,
    mail: Arc<AtomicBool>,
}

impl Messages {
    /// The next one, if there is one. In most turns there is none, and a look at the channel costs a fence.
    fn next(&self) -> Option<ToWorker> {
        if !self.mail.load(Ordering::Relaxed) {
            return None;
        }
        self.queue.try_recv().ok().or_else(|| {
            // An exchange, so that what was sent before the flag was raised is seen by the last look; and there may be
            // more where that came from.
            self.mail.swap(false, Ordering::AcqRel);
            let last = self.queue.try_recv().ok()?;
            self.mail.store(true, Ordering::Relaxed);
            Some(last)
        })
    }
}

/// Carries a worker's messages to the control thread and wakes it.
#[derive(Clone)]
pub struct Mailbox {
    /// The channel.
    pub sender: Sender<FromWorker>,
    /// Wakes the control thread.
    pub wake: Arc<dyn Fn() + Send + Sync>,
}

impl Mailbox {
    /// Sends one message. After the control thread has gone nobody needs it.
    pub fn send(&self, message: FromWorker) {
        let _ = self.sender.send(message);
        (self.wake)();
    }
}

/// Makes a lane; called on the worker's own thread, which is the only one that may use it.
pub type LaneFactory = Arc<dyn Fn() -> io::Result<Lane> + Send + Sync>;

/// What each worker is made with.
#[derive(Clone)]
pub struct WorkerParts {
    /// Its lane.
    pub lanes: LaneFactory,
    /// Its laboratory, if it is to have one.
    pub lab: Option<LabFactory>,
}

impl From<LaneFactory> for WorkerParts {
    fn from(lanes: LaneFactory) -> Self {
        Self { lanes, lab: None }
    }
}

/// The control thread's handle of one worker.
pub struct Worker {
    inbox: Sender<ToWorker>,
    /// A message was sent since the worker last looked.
    mail: Arc<AtomicBool>,
    waker: Waker,
    sleeper: Arc<Sleeper>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread and waits until its lane stands.
    ///
    /// # Errors
    /// The thread or the lane cannot be made.
    pub fn spawn(
        index: usize,
        shared: Arc<Shared>,
        parts: WorkerParts,
        poll: Poll,
        out: Mailbox,
    ) -> io::Result<Self> {
        let (inbox, messages) = channel();
        let (ready, started) = channel();
        let sleeper = Arc::new(Sleeper::new());
        let own = Arc::clone(&sleeper);
        let mail = Arc::new(AtomicBool::new(false));
        let messages = Messages { queue: messages, mail: Arc::clone(&mail) };
        let park = Park::new(poll, shared.doorbells.page().is_some());
        let thread = std::thread::Builder::new().name(format!("worker{index}")).spawn(move || {
            let lane = match (parts.lanes)() {
                Ok(lane) => lane,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(lane.waker()));
            drop(ready);
            let lab = parts.lab.map(|lab| lab());
            run(Core::new(shared, lane, lab, out.clone()), park, &messages, &own, &out);
        })?;
        let waker = started.recv().map_err(|_| io::Error::other("the worker ended at once"))??;
        Ok(Self { inbox, mail, waker, sleeper, thread: Some(thread) })
    }

    /// Sends one message.
    pub fn send(&self, message: ToWorker) {
        let _ = self.inbox.send(message);
        self.mail.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// A doorbell of one of the worker's queues was stored.
    pub fn doorbell(&self) {
        if self.sleeper.ring() {
            self.waker.wake();
        }
    }

    /// Ends a system call in which the thread waits, if it does. It never should, but a client's eventfd can make it.
    pub fn unblock(&self) {
        if let Some(thread) = &self.thread {
            memory::unblock(thread);
        }
    }

    /// Waits for the thread's end, which [`ToWorker::Stop`] brings about; false when it did not come in time.
    pub fn join(&mut self, deadline: std::time::Instant) -> bool {
        while let Some(thread) = &self.thread {
            if thread.is_finished() {
                break;
            }
            if std::time::Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        true
    }
}

impl Drop for Worker {
    /// A thread that outlives its controller, for the sake of a hung command, ends with that command.
    fn drop(&mut self) {
        self.send(ToWorker::Stop);
    }
}

fn run(mut core: Core, mut park: Park, messages: &Messages, sleeper: &Sleeper, out: &Mailbox) {
    while catch_unwind(AssertUnwindSafe(|| live(&mut core, &mut park, messages, sleeper))).is_err() {
        // The panic message is in the log already. The controller goes to CFS; what the kernel still does for this
        // worker must end before its memory may, so go on answering without touching any queue.
        out.send(FromWorker::Fatal("a worker failed".into()));
        if core.has_failed() {
            // It failed at doing next to nothing, and would do so again and again.
            return;
        }
        core.abandon();
    }
}

fn live(core: &mut Core, park: &mut Park, messages: &Messages, sleeper: &Sleeper) {
    loop {
        let mut busy = false;
        while let Some(message) = messages.next() {
            core.message(message);
            busy = true;
        }
        busy |= core.turn();
        if core.ended() {
            return;
        }
        if busy {
            park.busy();
            continue;
        }
        match park.look_again(core.waits()) {
            Look::First => core.disarm(),
            Look::Again => core.glance(),
            Look::GiveWay => std::thread::yield_now(),
            Look::Sleep => {
                let owing = core.settle();
                // Messages always write the waker.
                if sleeper.may_sleep(core) {
                    let tick = core.must_watch().then(|| park.tick());
                    core.sleep(owing.into_iter().chain(tick).min());
                }
                sleeper.awake();
            }
        }
    }
}
