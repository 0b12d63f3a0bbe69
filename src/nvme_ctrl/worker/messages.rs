//! What the control thread and its workers tell each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Weak};

use crate::laboratory::Change;
use crate::memory::Epoch;
use crate::nvme_ctrl::doorbell_buffers::BufferConfig;
use crate::nvme_ctrl::queue::{CompletionQueue, SubmissionQueue};
use crate::nvme_ctrl::view::WorkerState;

/// Names a message that wants an acknowledgement.
pub type Token = u64;

/// Control thread to worker.
///
/// Who makes the control thread send the same again and again does not fill the mailbox of a worker that is late: of
/// Fence, Reset and Flush the next one is sent when the last one is acknowledged, of Inspect and Drained when the last one
/// is taken, and the others answer an admin command or come after a Reset that is acknowledged.
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
    /// Forget all queues; acknowledge when no command is in flight. Nothing is posted, and no guest memory
    /// found, from now on.
    Reset(Token),
    /// Make everything completed durable; acknowledge with whether that succeeded.
    Flush(Token),
    /// Put a laboratory on, or take it off.
    Laboratory(Change),
    /// Describe queues and commands in flight in the log.
    Dump,
    /// Describe them to whoever asks.
    Inspect(ReplyTo<WorkerState>),
    /// Answer when no command is in flight. One that was to be answered before is dropped.
    Drained(ReplyTo<()>),
    /// End the thread once nothing is in flight.
    Stop,
}

/// What a worker is to know as soon as it can; what it knew before is over when it acknowledges.
#[derive(Clone, Copy, Debug)]
pub struct Fence {
    /// The device may read and write guest memory and raise interrupts. Commands in flight go on in any case;
    /// while it is false, none is fetched and none completes.
    ///
    /// And always: look at the DMA table anew. No new transfer uses an older one.
    pub bus_master: bool,
    /// Doorbell Buffer Config: queues use these buffers, if they can be found in guest memory.
    pub buffers: Option<BufferConfig>,
}

/// What a worker answers.
#[derive(Debug)]
pub struct Answer<T> {
    /// CNTLID of its controller.
    pub cntlid: u16,
    /// Which of its workers, from 0.
    pub worker: usize,
    /// The answer.
    pub what: T,
}

/// The way of an answer to whoever asked, past the control thread. Who asked waits for it no longer than they like.
#[derive(Debug)]
pub struct ReplyTo<T> {
    to: Sender<Answer<T>>,
    cntlid: u16,
    worker: usize,
    /// As long as this lives the question lies in the mailbox, and there is no other of its kind.
    _question: Option<Arc<()>>,
}

impl<T> ReplyTo<T> {
    /// For the answer of this worker. Also what lives as long as the worker has not taken the question.
    pub fn new(to: Sender<Answer<T>>, cntlid: u16, worker: usize) -> (Self, Weak<()>) {
        let question = Arc::new(());
        let in_mailbox = Arc::downgrade(&question);
        (Self { to, cntlid, worker, _question: Some(question) }, in_mailbox)
    }

    /// The worker has taken the question, and answers later.
    pub fn taken(self) -> Self {
        Self { _question: None, ..self }
    }

    /// Sends the answer. Who asked may have given up.
    pub fn send(self, what: T) {
        let _ = self.to.send(Answer { cntlid: self.cntlid, worker: self.worker, what });
    }
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
pub(super) struct Messages {
    queue: Receiver<ToWorker>,
    mail: Arc<AtomicBool>,
}

impl Messages {
    /// Those that come by `queue`. Who sent some raises `mail` after it.
    pub fn new(queue: Receiver<ToWorker>, mail: Arc<AtomicBool>) -> Self {
        Self { queue, mail }
    }

    /// The next one, if there is one. In most turns there is none, and a look at the channel costs a fence.
    pub fn next(&self) -> Option<ToWorker> {
        if !self.mail.load(Ordering::Relaxed) {
            return None;
        }
        self.queue.try_recv().ok().or_else(|| {
            // An exchange, so that what was sent before the flag was raised is seen by the last look; and
            // there may be more where that came from.
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
