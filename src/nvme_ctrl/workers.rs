//! The workers as the control thread knows them: what each was sent and has not acknowledged.
//!
//! Whatever a host repeats as fast as it can, a worker that is late has one Reset, one Fence and one Flush in
//! its mailbox.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::config::ControllerConfig;
use super::doorbell_buffers::BufferConfig;
use super::flushes::{Asker, Flushes};
use super::pending::Pending;
use super::shared::Shared;
use super::view::WorkerState;
use super::worker::{Answer, Fence, FromWorker, Mailbox, ReplyTo, ToWorker, Token, Worker, WorkerParts};
use crate::memory::Epoch;

/// Why an acknowledgement is awaited.
#[derive(Debug)]
pub(super) enum Awaited {
    /// One worker's part of a controller reset.
    Reset(usize),
    /// One worker's part of a fence.
    Fence(usize),
    /// The flush under way.
    Flush,
    /// An admin command's.
    Admin(Pending),
}

/// What has come of it all, for the controller to go on with.
#[derive(Debug)]
pub enum News {
    /// No command is in flight since the last reset.
    Quiet,
    /// A flush has ended: whom it answers, and whether it succeeded.
    Flushed(Vec<Asker>, bool),
    /// A worker has done its part of an admin command; its answer.
    Admin(Pending, bool),
    /// The host gave a doorbell of a queue a value that this cannot have.
    InvalidDoorbell,
    /// The controller cannot go on.
    Fatal(String),
}

/// How long a worker may take for a fence before a client's eventfd is thought to hold it up.
const FENCE_TIME: Duration = Duration::from_millis(100);

/// What a worker was sent and has not acknowledged.
#[derive(Clone, Debug, Default)]
struct Unanswered {
    reset: bool,
    fence: bool,
    /// There was reason for another fence since.
    fence_again: bool,
    /// A question about what it has in hand that lies in its mailbox.
    inspect: Weak<()>,
    /// A question whether it is drained, likewise.
    drained: Weak<()>,
}

/// See the module docs.
pub struct Workers {
    workers: Vec<Worker>,
    shared: Arc<Shared>,
    messages: Receiver<FromWorker>,
    pub(super) awaited: HashMap<Token, Awaited>,
    last_token: Token,
    /// By worker.
    unanswered: Vec<Unanswered>,
    /// When to see whether they still are.
    unblock_at: Option<Instant>,
    flushes: Flushes,
    /// What they are to go by. They know it when they are fenced.
    order: Fence,
}

impl Workers {
    /// Starts them, off the bus. `parts` make each of them; `wake` wakes the control thread, which then calls
    /// [`Self::news`].
    ///
    /// # Errors
    /// A thread or an engine cannot be made.
    pub fn spawn(
        config: &ControllerConfig,
        shared: &Arc<Shared>,
        parts: &WorkerParts,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let (sender, messages) = channel();
        let out = Mailbox { sender, wake };
        let workers = (0..config.iothreads.max(1))
            .map(|index| Worker::spawn(index, Arc::clone(shared), parts.clone(), config.poll, out.clone()))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            unanswered: vec![Unanswered::default(); workers.len()],
            unblock_at: None,
            workers,
            shared: Arc::clone(shared),
            messages,
            awaited: HashMap::new(),
            last_token: 0,
            flushes: Flushes::default(),
            order: Fence { bus_master: false, buffers: None },
        })
    }

    /// Sends a message to the owner of a completion queue and of all queues that post to it.
    pub fn send(&self, cqid: u16, message: ToWorker) {
        self.send_to(self.owner(cqid), message);
    }

    /// As [`Self::send`], where the admin command `pending` completes by the acknowledgement.
    pub fn ask(&mut self, cqid: u16, pending: Pending, message: impl FnOnce(Token) -> ToWorker) {
        let token = self.token(Awaited::Admin(pending));
        self.send(cqid, message(token));
    }

    /// A doorbell of a queue was stored that is this completion queue or posts to it.
    pub fn doorbell(&self, cqid: u16) {
        if let Some(worker) = self.workers.get(self.owner(cqid)) {
            worker.doorbell();
        }
    }

    /// Queues that are created from now on, until the next reset, belong to `epoch`.
    pub fn begin(&self, epoch: &Epoch) {
        for worker in &self.workers {
            worker.send(ToWorker::Begin(Arc::clone(epoch)));
        }
    }

    /// May the device read and write guest memory and raise interrupts?
    pub fn bus_master(&self) -> bool {
        self.order.bus_master
    }

    /// For [`Self::bus_master`]. A fence follows.
    pub fn set_bus_master(&mut self, on: bool) {
        self.order.bus_master = on;
        self.fence();
    }

    /// What Doorbell Buffer Config said since the last reset.
    pub fn buffers(&self) -> Option<BufferConfig> {
        self.order.buffers
    }

    /// For [`Self::buffers`]. A fence follows.
    pub fn set_buffers(&mut self, buffers: BufferConfig) {
        self.order.buffers = Some(buffers);
        self.fence();
    }

    /// Makes all workers look at the DMA table anew, and at the rest of [`Fence`]; see [`Self::is_fenced`].
    pub fn fence(&mut self) {
        for worker in 0..self.workers.len() {
            match self.unanswered.get_mut(worker) {
                Some(unanswered) if unanswered.fence => unanswered.fence_again = true,
                _ => self.fence_one(worker),
            }
        }
    }

    /// Has every worker seen what there was at the last [`Self::fence`]?
    pub fn is_fenced(&self) -> bool {
        self.unanswered.iter().all(|worker| !worker.fence)
    }

    /// When [`Self::unblock`] wants to be called, if at all.
    pub fn deadline(&self) -> Option<Instant> {
        self.unblock_at
    }

    /// Gets workers that owe a fence for long out of what they wait in. A turn without waiting takes no
    /// notice.
    pub fn unblock(&mut self, now: Instant) {
        if self.unblock_at.is_some_and(|at| now >= at) {
            let late = self.workers.iter().zip(&self.unanswered).filter(|(_, unanswered)| unanswered.fence);
            late.for_each(|(worker, _)| worker.unblock());
            self.unblock_at = Some(now + FENCE_TIME);
        }
    }

    /// Asks every worker to end what it runs. Admin commands and buffers of the time before are forgotten.
    pub fn reset(&mut self) {
        self.awaited.retain(|_, awaited| !matches!(awaited, Awaited::Admin(_)));
        self.flushes.forget_admin();
        self.order.buffers = None;
        for worker in 0..self.workers.len() {
            // One that is under way is good for this too: until all are over there is no new queue.
            let asked =
                self.unanswered.get_mut(worker).map(|worker| std::mem::replace(&mut worker.reset, true));
            if asked == Some(false) {
                let token = self.token(Awaited::Reset(worker));
                self.send_to(worker, ToWorker::Reset(token));
            }
        }
    }

    /// Is no command in flight since the last reset?
    pub fn is_quiet(&self) -> bool {
        self.unanswered.iter().all(|worker| !worker.reset)
    }

    /// Makes all namespaces durable on behalf of `asker`.
    pub fn flush_for(&mut self, asker: Asker) {
        if self.flushes.ask(asker) {
            self.begin_flush();
        }
    }

    /// What the workers have sent, one by one.
    pub fn news(&mut self) -> Option<News> {
        loop {
            let message = self.messages.try_recv().ok()?;
            if let FromWorker::InvalidDoorbell = message {
                self.shared.invalid_doorbell.store(false, Ordering::Release);
            }
            match message {
                FromWorker::Ack(token, answer) => match self.awaited.remove(&token) {
                    Some(awaited) => {
                        if let Some(news) = self.acknowledged(awaited, answer) {
                            return Some(news);
                        }
                    }
                    None => log::debug!("acknowledgement {token} came after its command was dropped"),
                },
                // Before the acknowledgement of a reset comes only what the worker met before it: the queues
                // it speaks of are gone, with their client perhaps.
                FromWorker::InvalidDoorbell if !self.is_quiet() => {
                    log::debug!("a queue that is gone had a doorbell value it could not have");
                }
                FromWorker::Fatal(why) if !self.is_quiet() => log::info!("on the way to a reset: {why}"),
                FromWorker::InvalidDoorbell => return Some(News::InvalidDoorbell),
                FromWorker::Fatal(why) => return Some(News::Fatal(why)),
            }
        }
    }

    /// Has each worker tell `to` what it has in hand, unless it has not taken that question since it was asked last. How
    /// many there are.
    pub fn inspect(&mut self, to: &Sender<Answer<WorkerState>>) -> usize {
        let cntlid = self.shared.cntlid.get();
        for (index, worker) in self.workers.iter().enumerate() {
            if let Some(unanswered) = self.unanswered.get_mut(index)
                && unanswered.inspect.strong_count() == 0
            {
                let (reply, in_mailbox) = ReplyTo::new(to.clone(), cntlid, index);
                unanswered.inspect = in_mailbox;
                worker.send(ToWorker::Inspect(reply));
            }
        }
        self.workers.len()
    }

    /// No command is fetched until [`Self::resume`]. Each worker tells `to` when it has none in flight, unless it has
    /// not taken that question since it was asked last. How many there are.
    pub fn pause(&mut self, to: &Sender<Answer<()>>) -> usize {
        self.shared.paused.store(true, Ordering::SeqCst);
        let cntlid = self.shared.cntlid.get();
        for (index, worker) in self.workers.iter().enumerate() {
            if let Some(unanswered) = self.unanswered.get_mut(index)
                && unanswered.drained.strong_count() == 0
            {
                let (reply, in_mailbox) = ReplyTo::new(to.clone(), cntlid, index);
                unanswered.drained = in_mailbox;
                worker.send(ToWorker::Drained(reply));
            }
        }
        self.workers.len()
    }

    /// Commands are fetched again.
    pub fn resume(&self) {
        self.shared.paused.store(false, Ordering::SeqCst);
        self.workers.iter().for_each(Worker::wake);
    }

    /// What acknowledgements are awaited for, in words; not all of many.
    pub fn owed(&self) -> Vec<String> {
        self.awaited.values().take(64).map(|awaited| format!("{awaited:?}")).collect()
    }

    /// Writes what is owed, queues and commands in flight to the log.
    pub fn dump(&self) {
        log::info!("unanswered {:?}, awaited {:?}; {:?}", self.unanswered, self.awaited, self.flushes);
        for worker in &self.workers {
            worker.send(ToWorker::Dump);
        }
    }

    /// Ends them; false when one was still busy at `deadline`.
    pub fn stop(&mut self, deadline: Instant) -> bool {
        for worker in &self.workers {
            worker.send(ToWorker::Stop);
        }
        self.workers.iter_mut().all(|worker| worker.join(deadline))
    }

    fn acknowledged(&mut self, awaited: Awaited, answer: bool) -> Option<News> {
        match awaited {
            Awaited::Reset(worker) => {
                self.unanswered.iter_mut().skip(worker).take(1).for_each(|worker| worker.reset = false);
                self.is_quiet().then_some(News::Quiet)
            }
            Awaited::Fence(worker) => {
                match self.unanswered.get_mut(worker) {
                    Some(unanswered) if !unanswered.fence_again => {
                        unanswered.fence = false;
                        self.unblock_at = self.unblock_at.filter(|_| !self.is_fenced());
                    }
                    _ => self.fence_one(worker),
                }
                None
            }
            Awaited::Flush => {
                let (answered, again) = self.flushes.ended();
                if again {
                    self.begin_flush();
                }
                Some(News::Flushed(answered, answer))
            }
            Awaited::Admin(pending) => Some(News::Admin(pending, answer)),
        }
    }

    fn fence_one(&mut self, worker: usize) {
        self.unblock_at.get_or_insert_with(|| Instant::now() + FENCE_TIME);
        let Some(unanswered) = self.unanswered.get_mut(worker) else { return };
        (unanswered.fence, unanswered.fence_again) = (true, false);
        let order = self.order;
        let token = self.token(Awaited::Fence(worker));
        self.send_to(worker, ToWorker::Fence(token, order));
    }

    fn begin_flush(&mut self) {
        let token = self.token(Awaited::Flush);
        self.send_to(0, ToWorker::Flush(token));
    }

    fn token(&mut self, awaited: Awaited) -> Token {
        self.last_token += 1;
        self.awaited.insert(self.last_token, awaited);
        self.last_token
    }

    fn owner(&self, cqid: u16) -> usize {
        usize::from(cqid.saturating_sub(1)) % self.workers.len().max(1)
    }

    fn send_to(&self, worker: usize, message: ToWorker) {
        if let Some(worker) = self.workers.get(worker) {
            worker.send(message);
        }
    }
}
