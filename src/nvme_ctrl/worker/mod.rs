//! A worker: the thread that owns some completion queues, all submission queues that post to them, and a
//! lane.
//!
//! [`Core`] is its state and [`turn`] its round, a state machine; this file is the thread around it. A worker
//! never waits for anything but its lane, and takes no lock.

mod aborts;
mod asked;
mod begin;
mod by_id;
mod core;
mod doorbells;
mod fetch;
mod flushing;
mod held;
mod idle;
mod inbox;
mod inspect;
mod interrupt;
mod messages;
mod moderation;
mod polling;
mod rings;
mod rotation;
mod shadow;
mod sleeper;
mod slots;
mod sync;
#[cfg(test)]
mod tests;
mod turn;
mod watched;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::shared::Shared;
use crate::disk::{Lane, Waker};
use crate::laboratory::{Laboratory, Place};
use crate::memory;

pub use self::core::Core;
pub use self::idle::{IdlePolicy, Look, Poll};
use self::messages::Messages;
pub use self::messages::{Answer, Fence, FromWorker, Mailbox, ReplyTo, ToWorker, Token};
use self::sleeper::Sleeper;

/// Makes a lane; called on the worker's own thread, which is the only one that may use it.
pub type LaneFactory = Arc<dyn Fn() -> io::Result<Lane> + Send + Sync>;

/// What each worker is made with.
#[derive(Clone)]
pub struct WorkerParts {
    /// Its lane.
    pub lanes: LaneFactory,
    /// The laboratories that it is to have.
    pub laboratory: Arc<Laboratory>,
}

impl From<LaneFactory> for WorkerParts {
    fn from(lanes: LaneFactory) -> Self {
        Self { lanes, laboratory: Arc::default() }
    }
}

/// How messages reach a worker.
#[derive(Clone)]
struct Inbox {
    sender: Sender<ToWorker>,
    /// A message was sent since the worker last looked.
    mail: Arc<AtomicBool>,
    waker: Waker,
}

impl Inbox {
    /// Sends one message; false when the worker is no more.
    fn send(&self, message: ToWorker) -> bool {
        let sent = self.sender.send(message).is_ok();
        self.mail.store(true, Ordering::Release);
        self.waker.wake();
        sent
    }
}

/// The control thread's handle of one worker.
pub struct Worker {
    inbox: Inbox,
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
        let WorkerParts { lanes, laboratory } = parts;
        let (inbox, messages) = channel();
        let (ready, started) = channel();
        let sleeper = Arc::new(Sleeper::new());
        let own = Arc::clone(&sleeper);
        let place = Place { cntlid: shared.cntlid, worker: index };
        let mail = Arc::new(AtomicBool::new(false));
        let messages = Messages::new(messages, Arc::clone(&mail));
        let idle = IdlePolicy::new(poll, shared.doorbells.page().is_some());
        let thread = std::thread::Builder::new().name(format!("worker{index}")).spawn(move || {
            let lane = match lanes() {
                Ok(lane) => lane,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(lane.waker()));
            drop(ready);
            run(Core::new(shared, lane, out.clone()), idle, &messages, &own, &out);
        })?;
        let waker = started.recv().map_err(|_| io::Error::other("the worker ended at once"))??;
        let inbox = Inbox { sender: inbox, mail, waker };
        let station = inbox.clone();
        laboratory.join(place, Box::new(move |change| station.send(ToWorker::Laboratory(change))));
        Ok(Self { inbox, sleeper, thread: Some(thread) })
    }

    /// Sends one message.
    pub fn send(&self, message: ToWorker) {
        self.inbox.send(message);
    }

    /// A doorbell of one of the worker's queues was stored.
    pub fn doorbell(&self) {
        if self.sleeper.ring() {
            self.inbox.waker.wake();
        }
    }

    /// Has the thread look at all there is, whether it sleeps or not.
    pub fn wake(&self) {
        self.inbox.waker.wake();
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

fn run(mut core: Core, mut idle: IdlePolicy, messages: &Messages, sleeper: &Sleeper, out: &Mailbox) {
    while catch_unwind(AssertUnwindSafe(|| live(&mut core, &mut idle, messages, sleeper))).is_err() {
        // The panic message is in the log already. The controller goes to CFS; what the kernel still does for
        // this worker must end before its memory may, so go on answering without touching any queue.
        out.send(FromWorker::Fatal("a worker failed".into()));
        if core.has_failed() {
            // It failed at doing next to nothing, and would do so again and again.
            return;
        }
        core.abandon();
    }
}

fn live(core: &mut Core, idle: &mut IdlePolicy, messages: &Messages, sleeper: &Sleeper) {
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
            idle.busy();
            continue;
        }
        match idle.look_again(core.waits()) {
            Look::First => core.disarm(),
            Look::Again => core.glance(),
            Look::GiveWay => std::thread::yield_now(),
            Look::Sleep => {
                let owing = core.settle();
                // Messages always write the waker.
                if sleeper.may_sleep(core) {
                    let tick = core.must_watch().then(|| idle.tick());
                    core.sleep(owing.into_iter().chain(tick).min());
                }
                sleeper.awake();
            }
        }
    }
}
