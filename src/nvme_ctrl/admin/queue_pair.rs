//! The admin queue pair: its rings and doorbells. It knows no command.

use std::fmt;
use std::time::Instant;

use zerocopy::IntoBytes as _;

use crate::memory::DmaMap;
use crate::nvme_ctrl::doorbells::{DoorbellValue, Doorbells, Tick};
use crate::nvme_ctrl::queue::{CompletionQueue, Post, SubmissionQueue};
use crate::nvme_ctrl::registers::AdminQueues;
use crate::nvme_ctrl::shared::InterruptSink;
use crate::nvme_ctrl::view::AdminQueueState;
use crate::spec::{Outcome, Sqe};

/// A doorbell has a value that its queue cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidValue;

/// See the module docs.
#[derive(Debug, Default)]
pub struct QueuePair {
    /// They exist while the controller is enabled.
    rings: Option<Rings>,
    /// When to look at the doorbells again, where nobody is told that they change.
    watch: Option<Watch>,
    /// Completions whose entries are reserved, for when the device is on the bus again.
    unposted: Vec<(u16, Outcome)>,
    /// Its memory is gone: why the controller cannot go on.
    lost: Option<String>,
}

#[derive(Debug)]
struct Rings {
    sq: SubmissionQueue,
    cq: CompletionQueue,
    tail: DoorbellValue,
    head: DoorbellValue,
}

#[derive(Clone, Copy, Debug)]
struct Watch {
    at: Instant,
    tick: Tick,
    /// What the doorbells were at the last look.
    seen: (DoorbellValue, DoorbellValue),
}

impl fmt::Display for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rings {
            Some(Rings { sq, cq, .. }) => write!(f, "admin {sq:?}, {cq:?}"),
            None => write!(f, "no admin queues"),
        }
    }
}

impl QueuePair {
    /// The queues exist from now on. Their doorbells are watched if they can change unseen.
    pub fn start(&mut self, queues: &AdminQueues, doorbells: &Doorbells) {
        self.rings = Some(Rings {
            sq: SubmissionQueue::new(0, 0, queues.asq, queues.asq_size),
            cq: CompletionQueue::new(0, Some(0), queues.acq, queues.acq_size),
            tail: DoorbellValue::default(),
            head: DoorbellValue::default(),
        });
        self.watch_again(doorbells);
    }

    /// No command is taken any more.
    pub fn stop(&mut self) {
        *self = Self { lost: self.lost.take(), ..Self::default() };
    }

    /// Why the controller cannot go on, if it cannot: the memory of a queue was not there. Told once.
    pub fn take_loss(&mut self) -> Option<String> {
        self.lost.take()
    }

    /// A doorbell was written; it is stored if its queue can have the value.
    pub fn ring(&mut self, doorbells: &Doorbells, is_head: bool, value: u16) -> Result<(), InvalidValue> {
        let Some(rings) = &mut self.rings else { return Ok(()) };
        let size = if is_head { rings.cq.size() } else { rings.sq.size() };
        if u32::from(value) >= size || (is_head && rings.cq.set_head(value).is_err()) {
            return Err(InvalidValue);
        }
        if is_head {
            doorbells.set_head(0, value);
        } else {
            doorbells.set_tail(0, value);
        }
        Ok(())
    }

    /// Takes in what the doorbells hold.
    pub fn look(&mut self, doorbells: &Doorbells) -> Result<(), InvalidValue> {
        let Some(Rings { sq, cq, tail, head }) = &mut self.rings else { return Ok(()) };
        let size = sq.size();
        let good = tail.take(doorbells.tail(0), |tail| u32::from(tail) < size).is_ok()
            & head.take(doorbells.head(0), |head| cq.set_head(head).is_ok()).is_ok();
        if good { Ok(()) } else { Err(InvalidValue) }
    }

    /// Where its rings are, while they exist.
    pub fn state(&self) -> Option<AdminQueueState> {
        let Rings { sq, cq, tail, head: _ } = self.rings.as_ref()?;
        Some(AdminQueueState {
            sq_size: sq.size(),
            sq_head: sq.head(),
            sq_tail: tail.value(),
            cq_size: cq.size(),
            cq_head: cq.head(),
            cq_tail: cq.tail(),
        })
    }

    /// When to look at the doorbells without having been told.
    pub fn watch_deadline(&self) -> Option<Instant> {
        self.watch.map(|watch| watch.at)
    }

    /// Is it time to do so?
    pub fn watch_due(&self, now: Instant) -> bool {
        self.watch.is_some_and(|watch| now >= watch.at)
    }

    /// They were looked at: when to look again.
    pub fn watch_again(&mut self, doorbells: &Doorbells) {
        let Some(rings) = self.rings.as_ref().filter(|_| doorbells.page().is_some()) else {
            self.watch = None;
            return;
        };
        let seen = (rings.tail, rings.head);
        let tick = self.watch.filter(|watch| watch.seen == seen).map(|watch| watch.tick);
        let mut tick = tick.unwrap_or_default();
        self.watch = Some(Watch { at: Instant::now() + tick.pause(), tick, seen });
    }

    /// The next command, with an entry reserved for its completion.
    pub fn fetch(&mut self, memory: &DmaMap) -> Option<Sqe> {
        let rings = self.rings.as_mut()?;
        if rings.sq.is_empty(rings.tail.value()) || !rings.cq.reserve() {
            return None;
        }
        match rings.sq.fetch(memory) {
            Ok(sqe) => {
                // Where the host's writes do not reach us, the first command is what such memory holds. No
                // driver begins by deleting queue 0.
                if rings.sq.head() == 1 && sqe.as_bytes().iter().all(|byte| *byte == 0) {
                    log::warn!(
                        "an admin command of nothing but zeroes: guest memory seems not to be shared with this process; \
                         give QEMU's memory object share=on, cloud-hypervisor's --memory shared=on"
                    );
                }
                Some(sqe)
            }
            Err(error) => {
                self.lose(format!("admin submission queue: {error}"));
                None
            }
        }
    }

    /// Reserves an entry for a completion that has none.
    #[must_use]
    pub fn reserve(&mut self) -> bool {
        self.rings.as_mut().is_some_and(|rings| rings.cq.reserve())
    }

    /// Gives an entry back unused.
    pub fn release(&mut self) {
        if let Some(rings) = &mut self.rings {
            rings.cq.release();
        }
    }

    /// Posts a completion whose entry is reserved.
    pub fn post(&mut self, memory: &DmaMap, interrupts: &dyn InterruptSink, cid: u16, outcome: Outcome) {
        let Some(rings) = &mut self.rings else { return };
        let post = Post { sqid: 0, sqhd: rings.sq.head(), cid, status: outcome.status, dw0: outcome.dw0 };
        match rings.cq.post(memory, &post) {
            Ok(()) => interrupts.raise_at_once(0),
            Err(error) => self.lose(format!("admin completion queue: {error}")),
        }
    }

    /// As [`Self::post`], once the device is on the bus again.
    pub fn post_later(&mut self, cid: u16, outcome: Outcome) {
        self.unposted.push((cid, outcome));
    }

    /// What was put off: it can be posted now.
    pub fn take_unposted(&mut self) -> Vec<(u16, Outcome)> {
        std::mem::take(&mut self.unposted)
    }

    /// The controller cannot go on: why. To be seen by [`Self::take_loss`].
    pub fn lose(&mut self, why: String) {
        self.stop();
        self.lost = Some(why);
    }
}
