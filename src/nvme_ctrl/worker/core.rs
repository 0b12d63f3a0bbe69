//! One worker's state: queues, commands in flight, lane. No thread, no waiting; [`Core::turn`] is one round.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::Cache;

use super::aborts::Aborting;
use super::by_id::ById;
use super::flushing::{FLUSH_SLOTS, Flushing};
use super::interrupt::{Coalescing, Owed, Verdict};
use super::rotation::Rotation;
use super::shadow::Shadow;
use super::slots::{Command, Slots, Taken, untag};
use super::{Fence, FromWorker, Mailbox, ToWorker, Token, fetch};
use crate::block::Issue;
use crate::block::Work;
use crate::copy::Bounce;
use crate::disk::{Done, Lane};
use crate::laboratory::{CommandId, Lab, Post};
use crate::logging::ASKED_FOR;
use crate::memory::{DmaMap, Epoch};
use crate::namespace::Cached;
use crate::nvme_ctrl::doorbells::Bell;
use crate::nvme_ctrl::io::Task;
use crate::nvme_ctrl::queue::{CompletionQueue, SubmissionQueue};
use crate::nvme_ctrl::shared::{Shared, Tally};
use crate::spec::commands::nvm_name;
use crate::spec::{Outcome, Status};

/// A submission queue and what only its worker knows of it.
#[derive(Debug)]
pub(super) struct Sq {
    pub ring: SubmissionQueue,
    /// Commands fetched and not yet ended.
    pub in_flight: Taken,
    /// The message to acknowledge when none is in flight; nothing is fetched from now on.
    pub deleting: Option<Token>,
    /// Tail.
    pub tail: Bell,
    /// The register when the shadow of the tail was last looked at.
    pub register: u32,
    /// What its event index says, if that is known.
    pub event: Option<u16>,
}

/// A completion queue and what is owed to its host.
#[derive(Debug)]
pub(super) struct Cq {
    pub ring: CompletionQueue,
    pub owed: Owed,
    /// Head. The ring has its value too.
    pub head: Bell,
    /// The register when the shadow of the head was last looked at.
    pub register: u32,
    /// What its event index says, if that is known.
    pub event: Option<u16>,
}

/// See the module docs.
pub struct Core {
    pub(super) shared: Arc<Shared>,
    /// Of the epoch that the queues belong to.
    pub(super) memory: Cache<Epoch, Arc<DmaMap>>,
    pub(super) namespaces: Cached,
    pub(super) lane: Lane,
    pub(super) shadow: Shadow,
    pub(super) sqs: ById<Sq>,
    pub(super) cqs: ById<Cq>,
    pub(super) slots: Slots,
    /// Has the queues of `sqs`.
    pub(super) rotation: Rotation,
    pub(super) out: Mailbox,
    /// Sees every command, if there is one.
    pub(super) lab: Option<Box<dyn Lab>>,
    /// Operations done but not yet told to their commands.
    pub(super) done: Vec<Done>,
    /// Commands to poll again.
    pub(super) ready: VecDeque<u32>,
    /// Commands to poll again whose polls take a while, for they move memory: few in a turn.
    moving: VecDeque<u32>,
    /// Copies that wait for bounce memory which other Copies hold.
    starved: VecDeque<u32>,
    pub(super) bounce: Bounce,
    /// Of this turn.
    pub(super) work: Work,
    /// This worker's part of the SMART log.
    pub(super) tally: Arc<Tally>,
    /// Aborts of commands that may still lie in their queues.
    pub(super) aborts: Vec<Aborting>,
    /// Aborts that the command in a slot has been told of. They are answered when it is over, for only then is it known
    /// whether it was aborted; and a host that hears so must not find the command still at work.
    pub(super) told: Vec<(u32, Token)>,
    /// The reset to acknowledge.
    resetting: Option<Token>,
    pub(super) flushing: Option<Flushing>,
    /// Begun up to now, modulo their number.
    pub(super) flushes: u32,
    /// Bus Master Enable is clear: no command is fetched or completed, no interrupt raised.
    pub(super) off_bus: bool,
    /// Commands that ended meanwhile. They are over to the host when they are posted.
    unposted: Vec<(u32, Outcome)>,
    stopping: bool,
    /// From a panic to the end of the reset that follows it.
    failed: bool,
}

/// Looks at the doorbells from one whole turn to the next, which takes as long as some of them.
const GLANCES: usize = 8;

impl Core {
    /// A worker without queues.
    pub fn new(shared: Arc<Shared>, lane: Lane, lab: Option<Box<dyn Lab>>, out: Mailbox) -> Self {
        let namespaces = shared.namespaces.cached();
        let tally = shared.counters.tally();
        Self {
            tally,
            shared,
            memory: Cache::new(Epoch::default()),
            namespaces,
            lane,
            shadow: Shadow::default(),
            sqs: ById::new(|sq| sq.ring.qid),
            cqs: ById::new(|cq| cq.ring.qid),
            slots: Slots::default(),
            rotation: Rotation::default(),
            out,
            lab,
            done: Vec::new(),
            ready: VecDeque::new(),
            moving: VecDeque::new(),
            starved: VecDeque::new(),
            aborts: Vec::new(),
            told: Vec::new(),
            bounce: Bounce::default(),
            work: Work::default(),
            resetting: None,
            flushing: None,
            flushes: 0,
            off_bus: false,
            unposted: Vec::new(),
            stopping: false,
            failed: false,
        }
    }

    /// Takes one message of the control thread.
    pub fn message(&mut self, message: ToWorker) {
        match message {
            ToWorker::Begin(epoch) => self.memory = Cache::new(epoch),
            ToWorker::CreateCq(ring) => {
                self.cqs.push(Cq {
                    ring,
                    owed: Owed::default(),
                    head: Bell::default(),
                    register: 0,
                    event: None,
                });
            }
            ToWorker::CreateSq(ring) => {
                let tail = Bell::default();
                self.rotation.push(ring.qid);
                self.sqs.push(Sq {
                    ring,
                    in_flight: Taken::default(),
                    deleting: None,
                    tail,
                    register: 0,
                    event: None,
                });
            }
            ToWorker::DeleteSq(qid, token) => match self.sqs.find(qid) {
                Some(sq) => {
                    sq.deleting = Some(token);
                    self.abort_matching(|sqid, _| sqid == qid);
                    self.end_deleted_queue(qid);
                }
                None => self.ack(token, false),
            },
            ToWorker::DeleteCq(qid, token) => {
                self.cqs.remove(qid);
                self.ack(token, true);
            }
            ToWorker::Abort(sqid, cid, token) => self.abort(sqid, cid, token),
            ToWorker::Fence(token, fence) => {
                self.fence(fence);
                self.ack(token, true);
            }
            ToWorker::Reset(token) => {
                self.forget_queues();
                self.memory = Cache::new(Epoch::default());
                self.off_bus = false;
                self.resetting = Some(token);
                self.post_unposted();
                self.abort_matching(|_, _| true);
                self.end_reset();
            }
            ToWorker::Flush(token) => self.flush(token),
            ToWorker::Dump => self.dump(),
            ToWorker::Stop => self.stopping = true,
        }
    }

    /// One round: completions in, commands on, new commands in, completions out, interrupts.
    /// True when anything happened, that is, when another round should follow before sleeping. How long it may
    /// be: see [`crate::block::work`].
    pub fn turn(&mut self) -> bool {
        self.work.reset();
        self.lane.reap(&mut self.done);
        let mut busy = !self.done.is_empty();
        if busy {
            let mut done = std::mem::take(&mut self.done);
            for completion in done.drain(..) {
                self.complete(completion);
            }
            self.done = done; // keep the allocation
        }
        if self.may_fetch() {
            busy |= fetch::fetch(self);
            self.settle_aborts();
        }
        if !self.ready.is_empty() || !self.moving.is_empty() {
            busy = true;
            self.poll_all();
        }
        if !self.off_bus {
            self.interrupt(false);
        }
        if self.failed {
            self.end_reset();
        }
        busy || self.lane.has_done() || !self.ready.is_empty() || !self.moving.is_empty()
    }

    /// Polls what is to be polled, as far as this turn goes.
    fn poll_all(&mut self) {
        let most = self.work.done() + Work::POLLS;
        while self.work.done() < most
            && let Some(index) = self.ready.pop_front()
        {
            match self.slots.get_mut(index) {
                Some(command) if command.task.moves_memory() => self.moving.push_back(index),
                Some(_) => self.poll(index),
                None => {}
            }
        }
        // Between these, commands are fetched and all others go on: nothing waits for more than a poll and a little.
        let most = self.work.done() + Work::MOVES;
        while self.work.done() < most
            && let Some(index) = self.moving.pop_front()
        {
            self.poll_moving(index);
        }
    }

    /// Waits for a completion, a doorbell or a message, or for `timeout` to pass. At most until bounce buffers are to be
    /// given back.
    pub fn sleep(&mut self, timeout: Option<Duration>) {
        let rest = self.bounce.rest(Instant::now());
        self.lane.wait(timeout.into_iter().chain(rest).min());
    }

    /// Do doorbells change without anybody waking this worker?
    pub fn must_watch(&self) -> bool {
        self.shared.doorbells.page().is_some() && !self.sqs.is_empty()
    }

    /// Has the thread nothing left to do?
    pub fn ended(&self) -> bool {
        self.stopping && self.slots.len() == 0 && self.flushing.is_none() && self.lane.in_flight() == 0
    }

    /// Has it failed, and is not reset yet?
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// May it look at its submission queues?
    pub(super) fn may_fetch(&self) -> bool {
        !self.failed && !self.off_bus
    }

    #[cold]
    fn fence(&mut self, fence: Fence) {
        self.memory.load();
        self.shadow.configure(fence.buffers);
        if !fence.bus_master {
            self.off_bus = true;
            self.leave_buffers();
            return;
        }
        self.find_buffers();
        self.off_bus = false;
        self.post_unposted();
    }

    /// Completes what ended off the bus.
    #[cold]
    fn post_unposted(&mut self) {
        for (index, outcome) in std::mem::take(&mut self.unposted) {
            self.end(index, outcome);
        }
    }

    /// After a panic: no queue is touched until a reset, which ends when the lane has done all that it was given;
    /// that ends unseen.
    pub fn abandon(&mut self) {
        self.failed = true;
        self.forget_queues();
        let indices: Vec<u32> = self.slots.iter_mut().map(|(index, _)| index).collect();
        for index in indices {
            self.slots.remove(index);
        }
        self.ready.clear();
        self.moving.clear();
        self.starved.clear();
        self.lane.take_done(&mut self.done);
        self.done.clear();
        self.unposted.clear();
        if let Some(flushing) = self.flushing.take() {
            self.ack(flushing.token, false);
        }
    }

    /// Has the command polled in this turn or the next: once, however many of its operations have ended.
    fn make_ready(&mut self, index: u32) {
        if let Some(command) = self.slots.get_mut(index)
            && !std::mem::replace(&mut command.ready, true)
        {
            self.ready.push_back(index);
        }
    }

    fn feed_starved(&mut self) {
        while let Some(index) = self.starved.pop_front() {
            self.make_ready(index);
        }
    }

    /// Writes a completion into the entry that was reserved for it.
    fn post(&mut self, sqid: u16, cqid: u16, cid: u16, outcome: Outcome) {
        let (Some(sq), Some(cq)) = (self.sqs.find(sqid), self.cqs.find(cqid)) else { return };
        if let Err(why) = fetch::post(cq, &sq.ring, cid, outcome, self.memory.load()) {
            self.fatal(&why);
        }
    }

    /// Posts a command's completion, as the laboratory would have it if there is one.
    fn conclude(&mut self, command: &Command, mut outcome: Outcome) {
        let id = CommandId { sqid: command.sqid, cid: command.cid };
        let post = self.lab.as_mut().map_or(Post::Once, |lab| lab.ended(id, &mut outcome));
        let Some(cq) = self.cqs.find(command.cqid) else { return };
        match post {
            Post::Once => {}
            Post::Never => return cq.ring.release(),
            Post::Twice if cq.ring.reserve() => self.post(command.sqid, command.cqid, command.cid, outcome),
            Post::Twice => {}
        }
        self.post(command.sqid, command.cqid, command.cid, outcome);
    }

    /// The controller cannot go on; nothing is fetched until it is reset.
    pub(super) fn fatal(&mut self, why: &str) {
        self.forget_queues();
        self.out.send(FromWorker::Fatal(why.to_owned()));
    }

    fn forget_queues(&mut self) {
        for (_, command) in self.slots.iter_mut() {
            command.orphan = true;
        }
        self.rotation.clear();
        for token in self.sqs.drain().filter_map(|sq| sq.deleting) {
            self.out.send(FromWorker::Ack(token, false));
        }
        for abort in std::mem::take(&mut self.aborts) {
            self.ack(abort.token, false);
        }
        for (_, token) in std::mem::take(&mut self.told) {
            self.ack(token, false);
        }
        self.cqs.drain();
        self.shadow.clear();
    }

    fn complete(&mut self, completion: Done) {
        let (index, part) = untag(completion.tag);
        if index >= FLUSH_SLOTS {
            self.flushed(index, completion.result.is_ok());
            return;
        }
        if let Some(command) = self.slots.get_mut(index) {
            if let Err(error) = &completion.result {
                log::debug!("operation {part} of cid {:#x} failed: {error}", command.cid);
            }
            command.task.done(part, completion.result, completion.buf);
            self.make_ready(index);
            // Whatever ended may have given bounce memory back.
            self.feed_starved();
        }
    }

    /// Polls a command that moves memory. What that did is done: if it was all, the command ends now, so that the host
    /// hears of it while the next one is under way.
    fn poll_moving(&mut self, index: u32) {
        self.poll(index);
        let mut done = std::mem::take(&mut self.done);
        self.lane.take_done(&mut done);
        for completion in done.drain(..) {
            self.complete(completion);
        }
        self.done = done;
        if self.slots.get_mut(index).is_some_and(|command| command.task.is_over()) {
            self.ready.retain(|ready| *ready != index);
            self.poll(index);
        }
    }

    fn poll(&mut self, index: u32) {
        let Some(command) = self.slots.get_mut(index) else { return };
        command.ready = false;
        let (lane, work) = (&mut self.lane, &self.work);
        work.charge(Work::COMMAND);
        let issue: &mut Issue<'_> = &mut |part, ns, op| {
            let tag = super::slots::tag(index, part);
            work.charge_op(ns, &op);
            ns.backend.start(tag, op, lane);
        };
        match command.task.poll(&self.shared, work, issue) {
            Some(outcome) if self.off_bus && !command.orphan => {
                // With its task go its pins.
                command.task = Task::Over(outcome);
                self.unposted.push((index, outcome));
            }
            Some(outcome) => self.end(index, outcome),
            None if command.task.is_starved() => self.starved.push_back(index),
            None => {}
        }
    }

    fn end(&mut self, index: u32, mut outcome: Outcome) {
        let Some(command) = self.slots.remove(index) else { return };
        let aborted = outcome.status == Status::ABORT_REQUESTED;
        if aborted && self.told.iter().all(|told| told.0 != index) {
            // Not by an Abort, then; and after a reset nobody hears of it.
            outcome.status = Status::SQ_DELETION;
        }
        if outcome.status.sct() == 2 && !matches!(outcome.status.sc(), 0x85 | 0x87) {
            self.shared.counters.media_errors.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        if !outcome.status.is_success() {
            log::debug!(
                "{} nsid {} slba {:#x} (sqid {} cid {:#x}): {:?}",
                nvm_name(command.opc),
                command.nsid,
                command.slba,
                command.sqid,
                command.cid,
                outcome.status
            );
        }
        self.feed_starved();
        if !command.orphan {
            if !outcome.status.is_success() {
                outcome.status = self.shared.errors.failed(command.failed(), outcome.status);
            }
            self.conclude(&command, outcome);
            if let Some(sq) = self.sqs.find(command.sqid) {
                sq.in_flight.commands -= 1;
                sq.in_flight.memory -= command.memory;
            }
            self.answer_aborts(index, aborted);
            self.end_deleted_queue(command.sqid);
        }
        self.end_reset();
    }

    fn end_deleted_queue(&mut self, qid: u16) {
        if let Some(sq) = self.sqs.find(qid)
            && sq.in_flight.commands == 0
            && let Some(token) = sq.deleting
        {
            self.sqs.remove(qid);
            self.rotation.remove(qid);
            self.ack(token, true);
        }
    }

    fn end_reset(&mut self) {
        // After a failure the slots do not know what is in flight. Not only would its memory be given up too early:
        // its completions would be taken for those of new commands.
        let abandoned = if self.failed { self.lane.in_flight() } else { 0 };
        if self.resetting.is_none() || self.slots.len() > 0 || abandoned > 0 {
            return;
        }
        self.failed = false;
        if let Some(token) = self.resetting.take() {
            self.ack(token, true);
        }
    }

    pub(super) fn ack(&self, token: Token, answer: bool) {
        self.out.send(FromWorker::Ack(token, answer));
    }

    /// Raises what is owed and not put off; see [`super::interrupt`]. How long the rest can wait.
    #[inline(always)]
    fn interrupt(&mut self, asleep: bool) -> Option<Duration> {
        let mut clock = None;
        let mut rest: Option<Duration> = None;
        for at in 0..self.cqs.len() {
            let Some(cq) = self.cqs.get_mut(at).filter(|cq| cq.owed.any()) else { continue };
            let Some(vector) = cq.ring.vector else {
                cq.owed.forgive();
                continue;
            };
            if cq.owed.wants_head() {
                let cqid = cq.ring.qid;
                self.look_at_head(cqid);
            }
            let Some(Cq { ring, owed, .. }) = self.cqs.get_mut(at) else { continue };
            let enabled = |cd: &AtomicBool| !cd.load(Ordering::Relaxed);
            let coalescing = Some(self.shared.coalescing.load(Ordering::Relaxed))
                .filter(|_| self.shared.vector_cd.get(usize::from(vector)).is_some_and(enabled))
                .and_then(Coalescing::from_dword);
            let now = || *clock.get_or_insert_with(Instant::now);
            match owed.verdict(ring.head(), ring.all_seen(), coalescing, asleep, now) {
                Verdict::Nothing => {}
                // A worker that is late raises none for a host that has reset the device. (That was answered without the
                // worker only after seconds: nobody counts on what happens between this look and the next call.)
                Verdict::Raise if self.memory.load().has_ended() => {}
                Verdict::Raise => self.shared.interrupts.raise(vector),
                Verdict::Later(wait) => rest = Some(rest.map_or(wait, |rest| rest.min(wait))),
            }
        }
        rest
    }

    /// Before a sleep: how long it may last for the sake of interrupts that are put off.
    pub fn settle(&mut self) -> Option<Duration> {
        if self.off_bus { None } else { self.interrupt(true) }
    }

    /// Is something in flight?
    pub fn waits(&self) -> bool {
        self.slots.len() > 0
    }

    /// Looks at the doorbells alone, a few times, where nothing else could happen. A turn follows.
    pub fn glance(&self) {
        // With something in flight the lane is to be asked as well.
        let alone = self.slots.len() == 0 && self.flushing.is_none();
        for _ in 0..GLANCES {
            if !alone || self.sqs.iter().any(|sq| self.has_rung(sq)) {
                return;
            }
            std::hint::spin_loop();
        }
    }

    fn dump(&mut self) {
        for cq in self.cqs.iter() {
            log::info!(target: ASKED_FOR, "{:?}", cq.ring);
        }
        for sq in self.sqs.iter() {
            let Sq { ring, tail, event, in_flight, .. } = sq;
            log::info!(target: ASKED_FOR, "{ring:?}, {tail:?}, event {event:?}, in flight: {in_flight:?}");
        }
        for (index, command) in self.slots.iter_mut() {
            log::info!(
                target: ASKED_FOR,
                "in flight [{index}]: {} nsid {} slba {:#x} sqid {} cid {:#x} for {:?}{}{}",
                nvm_name(command.opc),
                command.nsid,
                command.slba,
                command.sqid,
                command.cid,
                command.since.elapsed(),
                if command.task.is_starved() { ", waiting for memory" } else { "" },
                if command.orphan { ", its queue is gone" } else { "" }
            );
        }
    }
}
