//! One worker's state: queues, commands in flight, lane; and how a command ends. No thread, no waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::Cache;

use super::asked::{Aborting, Flushing};
use super::by_id::ById;
use super::messages::{FromWorker, Mailbox, ReplyTo, Token};
use super::rings::{Cq, Sq};
use super::rotation::Rotation;
use super::shadow::Shadow;
use super::slots::{Command, Slots};
use crate::block::Work;
use crate::copy::Bounce;
use crate::disk::{Done, Lane};
use crate::laboratory::{Lab, Labs, Post};
use crate::memory::{DmaMap, Epoch};
use crate::namespace::Cached;
use crate::nvme_ctrl::io::Bent;
use crate::nvme_ctrl::shared::{Shared, Tally};
use crate::spec::commands::nvm_name;
use crate::spec::{Outcome, Status};

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
    /// They see every command, if there are any.
    pub(super) labs: Option<Labs>,
    /// Commands that they have seen fetched.
    pub(super) serial: u64,
    /// Operations done but not yet told to their commands.
    pub(super) done: Vec<Done>,
    /// Commands to poll again.
    pub(super) ready: VecDeque<u32>,
    /// Commands to poll again whose polls take a while, for they move memory: few in a turn.
    pub(super) moving: VecDeque<u32>,
    /// Copies that wait for bounce memory which other Copies hold.
    pub(super) starved: VecDeque<u32>,
    /// Commands that laboratories hold.
    pub(super) held: Vec<u32>,
    pub(super) bounce: Bounce,
    /// Of this turn.
    pub(super) work: Work,
    /// This worker's part of the SMART log.
    pub(super) tally: Arc<Tally>,
    /// Aborts of commands that may still lie in their queues.
    pub(super) aborts: Vec<Aborting>,
    /// Aborts that the command in a slot has been told of. They are answered when it is over, for only then
    /// is it known whether it was aborted; and a host that hears so must not find the command still at work.
    pub(super) told: Vec<(u32, Token)>,
    /// The reset to acknowledge.
    pub(super) resetting: Option<Token>,
    /// Who wants to know when no command is in flight.
    pub(super) draining: Option<ReplyTo<()>>,
    pub(super) flushing: Option<Flushing>,
    /// Begun up to now, modulo their number.
    pub(super) flushes: u32,
    /// Bus Master Enable is clear: no command is fetched or completed, no interrupt raised.
    pub(super) off_bus: bool,
    /// Commands that ended meanwhile. They are over to the host when they are posted.
    pub(super) unposted: Vec<(u32, Outcome)>,
    pub(super) stopping: bool,
    /// From a panic to the end of the reset that follows it.
    pub(super) failed: bool,
}

impl Core {
    /// A worker without queues.
    pub fn new(shared: Arc<Shared>, lane: Lane, out: Mailbox) -> Self {
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
            labs: None,
            serial: 0,
            done: Vec::new(),
            ready: VecDeque::new(),
            moving: VecDeque::new(),
            starved: VecDeque::new(),
            held: Vec::new(),
            aborts: Vec::new(),
            told: Vec::new(),
            bounce: Bounce::default(),
            work: Work::default(),
            resetting: None,
            draining: None,
            flushing: None,
            flushes: 0,
            off_bus: false,
            unposted: Vec::new(),
            stopping: false,
            failed: false,
        }
    }

    /// Waits for a completion, a doorbell or a message, or for `timeout` to pass. At most until bounce
    /// buffers are to be given back.
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
        !self.failed && !self.off_bus && !self.shared.paused.load(Ordering::Relaxed)
    }

    /// After a panic: no queue is touched until a reset, which ends when the lane has done all that it was
    /// given; that ends unseen.
    pub fn abandon(&mut self) {
        self.failed = true;
        self.forget_queues();
        let indices: Vec<u32> = self.slots.iter_mut().map(|(index, _)| index).collect();
        for index in indices {
            self.slots.remove(index);
        }
        if let Some(labs) = &mut self.labs {
            labs.failed();
        }
        self.ready.clear();
        self.moving.clear();
        self.starved.clear();
        self.held.clear();
        self.lane.take_done(&mut self.done);
        self.done.clear();
        self.unposted.clear();
        if let Some(flushing) = self.flushing.take() {
            self.ack(flushing.token, false);
        }
        self.end_drain();
    }

    /// Has the command polled in this turn or the next: once, however many of its operations have ended.
    pub(super) fn make_ready(&mut self, index: u32) {
        if let Some(command) = self.slots.get_mut(index)
            && !std::mem::replace(&mut command.ready, true)
        {
            self.ready.push_back(index);
        }
    }

    pub(super) fn feed_starved(&mut self) {
        while let Some(index) = self.starved.pop_front() {
            self.make_ready(index);
        }
    }

    /// Writes a completion into the entry that was reserved for it.
    fn post(&mut self, sqid: u16, cqid: u16, cid: u16, outcome: Outcome) {
        let (Some(sq), Some(cq)) = (self.sqs.find(sqid), self.cqs.find(cqid)) else { return };
        if let Err(why) = cq.post(&sq.ring, cid, outcome, self.memory.load()) {
            self.fatal(&why);
        }
    }

    /// Posts a command's completion, as laboratories would have it if there are any.
    fn conclude(&mut self, command: &Command, mut outcome: Outcome) {
        let bent = command.task.bent();
        if let Some(more) = bent.and_then(Bent::more) {
            outcome.status = outcome.status.with_more(more);
        }
        let scripted = bent.map_or(Post::Once, Bent::post);
        let post = self.labs.as_mut().map_or(scripted, |labs| {
            let post = scripted.or(labs.ended(command.id(), &mut outcome));
            labs.over(command.id(), &outcome, Some(post));
            post
        });
        let Some(cq) = self.cqs.find(command.cqid) else { return };
        match post {
            Post::Once => {}
            Post::Never => return cq.ring.release(),
            Post::Twice if cq.ring.reserve() => self.post(command.sqid, command.cqid, command.cid, outcome),
            Post::Twice => {}
            Post::As(cid) => return self.post(command.sqid, command.cqid, cid, outcome),
            Post::Unannounced => return self.post_unannounced(command, outcome),
        }
        self.post(command.sqid, command.cqid, command.cid, outcome);
    }

    /// Writes a completion as [`Self::post`] does, and owes its host no interrupt for it.
    fn post_unannounced(&mut self, command: &Command, outcome: Outcome) {
        let (Some(sq), Some(cq)) = (self.sqs.find(command.sqid), self.cqs.find(command.cqid)) else { return };
        if let Err(why) = cq.write(&sq.ring, command.cid, outcome, self.memory.load()) {
            self.fatal(&why);
        }
    }

    /// The controller cannot go on; nothing is fetched until it is reset.
    pub(super) fn fatal(&mut self, why: &str) {
        self.forget_queues();
        self.out.send(FromWorker::Fatal(why.to_owned()));
    }

    pub(super) fn forget_queues(&mut self) {
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

    pub(super) fn end(&mut self, index: u32, mut outcome: Outcome) {
        let Some(command) = self.slots.remove(index) else { return };
        let forced = command.task.bent().is_some_and(Bent::is_forced);
        let aborted = outcome.status == Status::ABORT_REQUESTED && !forced;
        if aborted && self.told.iter().all(|told| told.0 != index) {
            // Not by an Abort, then; and after a reset nobody hears of it.
            outcome.status = Status::SQ_DELETION;
        }
        if outcome.status.sct() == 2 && !matches!(outcome.status.sc(), 0x85 | 0x87) {
            self.shared.counters.media_errors.fetch_add(1, Ordering::Relaxed);
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
        } else if let Some(labs) = &mut self.labs {
            labs.over(command.id(), &outcome, None);
        }
        self.end_reset();
        self.end_drain();
    }

    /// The command in slot `index` is over: was it aborted?
    fn answer_aborts(&mut self, index: u32, aborted: bool) {
        let Self { told, out, .. } = self;
        told.retain(|&(of, token)| {
            if of == index {
                out.send(FromWorker::Ack(token, aborted));
            }
            of != index
        });
    }

    pub(super) fn end_deleted_queue(&mut self, qid: u16) {
        if let Some(sq) = self.sqs.find(qid)
            && sq.in_flight.commands == 0
            && let Some(token) = sq.deleting
        {
            self.sqs.remove(qid);
            self.rotation.remove(qid);
            self.ack(token, true);
        }
    }

    pub(super) fn end_drain(&mut self) {
        if self.draining.is_some()
            && self.slots.len() == 0
            && let Some(reply) = self.draining.take()
        {
            reply.send(());
        }
    }

    pub(super) fn end_reset(&mut self) {
        // After a failure the slots do not know what is in flight. Not only would its memory be given up too
        // early: its completions would be taken for those of new commands.
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

    /// Is something in flight?
    pub fn waits(&self) -> bool {
        self.slots.len() > 0
    }
}
