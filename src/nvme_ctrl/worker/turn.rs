//! A worker's round, and what comes before a sleep.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::core::Core;
use super::interrupt::{Coalescing, Decision};
use super::rings::Cq;
use super::{fetch, sleeper};

/// Looks at the doorbells from one whole turn to the next, which takes as long as some of them.
const GLANCES: usize = 8;

impl Core {
    /// One round: completions in, commands on, new commands in, completions out, interrupts. True when
    /// anything happened, that is, when another round should follow before sleeping. How long it may be: see
    /// [`crate::block::work`].
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
        if !self.held.is_empty() {
            self.look_at_held();
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
            match owed.decide(ring.head(), ring.all_seen(), coalescing, asleep, now) {
                Decision::Nothing => {}
                // A worker that is late raises none for a host that has reset the device. (That was answered
                // without the worker only after seconds: nobody counts on what happens between this look and
                // the next call.)
                Decision::Raise if self.memory.load().has_ended() => {}
                Decision::Raise => self.shared.interrupts.raise(vector),
                Decision::Later(wait) => rest = Some(rest.map_or(wait, |rest| rest.min(wait))),
            }
        }
        rest
    }

    /// Before a sleep: how long it may last for the sake of what is put off or held.
    pub fn settle(&mut self) -> Option<Duration> {
        let interrupt = if self.off_bus { None } else { self.interrupt(true) };
        interrupt.into_iter().chain(self.held_for()).min()
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
}

impl sleeper::Watched for Core {
    fn arm(&mut self) {
        self.set_event_indices();
    }

    fn look(&mut self) -> bool {
        self.may_fetch() && fetch::has_work(self)
    }
}
