//! Admin commands and the admin queue pair, on the control thread.

mod abort;
mod changed;
mod doorbell_buffer;
mod events;
mod features;
mod identify;
mod keep_alive;
mod log_pages;
mod queues;

use std::fmt;
use std::time::Instant;

use zerocopy::IntoBytes as _;

use super::controller::{Controller, ControllerConfig};
use super::doorbells::{Bell, Tick};
use super::error_log::Failed;
use super::io::Outcome;
use super::queue::{CompletionQueue, Post, SubmissionQueue};
use super::registers::AdminQueues;
use super::transfer;
use super::work::Work;
use crate::memory::{Access, DmaMap};
use crate::spec::commands::AdminCommand;
use crate::spec::{Sqe, Status};

use changed::ChangedNamespaces;
use events::Events;
use features::Features;
use keep_alive::KeepAlive;

/// State of the admin queue and of what admin commands set.
#[derive(Debug)]
pub struct Admin {
    rings: Option<Rings>,
    pub(super) features: Features,
    pub(super) events: Events,
    changed: ChangedNamespaces,
    keep_alive: KeepAlive,
    /// When to look at the admin doorbells again, where nobody is told that they change.
    watch: Option<(Instant, Tick)>,
    started: Instant,
    aborts: u8,
    /// Completions whose entries are reserved, for when the device is on the bus again.
    unposted: Vec<(u16, Outcome)>,
}

#[derive(Debug)]
struct Rings {
    sq: SubmissionQueue,
    cq: CompletionQueue,
    tail: Bell,
    head: Bell,
}

/// An admin command that waits for a worker.
#[derive(Debug)]
pub struct Pending {
    /// The command.
    pub command: Failed,
    /// What is to be done then.
    pub then: Then,
}

/// What follows a worker's acknowledgement.
#[derive(Debug)]
pub enum Then {
    /// Delete I/O Submission Queue of this QID.
    DeleteSq(u16),
    /// Delete I/O Completion Queue of this QID.
    DeleteCq(u16),
    /// Abort: the answer says whether the command will end aborted.
    Abort,
    /// Set Features that turned the write cache off.
    CacheFlushed,
}

/// What came of an admin command.
pub(super) enum Reply {
    /// It is complete.
    Done(Outcome),
    /// It completes later and keeps its completion entry.
    Later,
    /// It completes some day, without holding an entry: Asynchronous Event Request.
    Parked,
}

impl From<Status> for Reply {
    fn from(status: Status) -> Self {
        Self::Done(Outcome::of(status))
    }
}

/// For the log: queues and what the host waits for.
impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rings {
            Some(Rings { sq, cq, .. }) => write!(f, "admin {sq:?}, {cq:?}")?,
            None => write!(f, "no admin queues")?,
        }
        write!(f, "; {:?}; aborts in flight {}", self.events, self.aborts)
    }
}

impl Admin {
    /// Admin state of a disabled controller.
    pub fn new(config: &ControllerConfig) -> Self {
        Self {
            rings: None,
            features: Features::new(config),
            events: Events::new(config.aerl),
            changed: ChangedNamespaces::default(),
            keep_alive: KeepAlive::default(),
            watch: None,
            started: Instant::now(),
            aborts: 0,
            unposted: Vec::new(),
        }
    }

    /// The admin queues exist from now on.
    pub fn start(&mut self, queues: &AdminQueues) {
        self.rings = Some(Rings {
            sq: SubmissionQueue::new(0, 0, queues.asq, queues.asq_size),
            cq: CompletionQueue::new(0, Some(0), queues.acq, queues.acq_size),
            tail: Bell::default(),
            head: Bell::default(),
        });
    }

    /// No admin command is taken any more.
    pub fn stop(&mut self) {
        self.rings = None;
        self.watch = None;
        self.unposted.clear();
    }

    /// Controller reset: queues, events and current feature values go.
    pub fn reset(&mut self, config: &ControllerConfig) {
        self.stop();
        self.features = Features::new(config);
        self.events = Events::new(config.aerl);
        self.changed.clear();
        self.keep_alive = KeepAlive::default();
        self.aborts = 0;
    }

    /// When the Keep Alive timer expires, if it runs.
    pub fn keep_alive_deadline(&self) -> Option<Instant> {
        self.keep_alive.deadline()
    }

    /// Stops the Keep Alive timer.
    pub fn disarm_keep_alive(&mut self) {
        self.keep_alive = KeepAlive::default();
    }
}

impl Controller {
    pub(super) fn admin_doorbell(&mut self, is_head: bool, value: u16) {
        let Some(rings) = &mut self.admin.rings else { return };
        let size = if is_head { rings.cq.size() } else { rings.sq.size() };
        if u32::from(value) >= size || (is_head && rings.cq.set_head(value).is_err()) {
            return self.invalid_doorbell_value();
        }
        if is_head {
            self.shared.doorbells.set_head(0, value);
        } else {
            self.shared.doorbells.set_tail(0, value);
        }
        self.run_admin();
    }

    /// When to look at the admin doorbells without having been told.
    pub(super) fn watch_deadline(&self) -> Option<Instant> {
        self.admin.watch.map(|(at, _)| at)
    }

    /// The admin queues have begun: their doorbells are watched, if they can change unseen.
    pub(super) fn begin_watch(&mut self) {
        self.watch_again(Tick::default());
    }

    /// Looks at the admin doorbells, if that is due.
    pub(super) fn watch(&mut self, now: Instant) {
        let Some((_, tick)) = self.admin.watch.filter(|(at, _)| now >= *at) else { return };
        let before = self.admin.rings.as_ref().map(|rings| (rings.tail, rings.head));
        self.run_admin();
        let after = self.admin.rings.as_ref().map(|rings| (rings.tail, rings.head));
        self.watch_again(if before == after { tick } else { Tick::default() });
    }

    fn watch_again(&mut self, mut tick: Tick) {
        let watched = self.shared.doorbells.page().is_some() && self.admin.rings.is_some();
        self.admin.watch = watched.then(|| (Instant::now() + tick.pause(), tick));
    }

    /// Takes in what the admin doorbells hold.
    fn look_at_admin(&mut self) {
        let Some(Rings { sq, cq, tail, head }) = &mut self.admin.rings else { return };
        let size = sq.size();
        let good = tail.take(self.shared.doorbells.tail(0), |tail| u32::from(tail) < size).is_ok()
            & head.take(self.shared.doorbells.head(0), |head| cq.set_head(head).is_ok()).is_ok();
        if !good {
            self.invalid_doorbell_value();
        }
    }

    /// Takes admin commands while there are any and their completions have room.
    pub(super) fn run_admin(&mut self) {
        self.look_at_admin();
        if !self.bus_master {
            return;
        }
        let memory = self.memory.load_full();
        self.deliver_events();
        while let Some(rings) = &mut self.admin.rings {
            if rings.sq.is_empty(rings.tail.value()) || !rings.cq.reserve() {
                break;
            }
            let sqe = match rings.sq.fetch(&memory) {
                Ok(sqe) => sqe,
                Err(error) => return self.fatal(&format!("admin submission queue: {error}")),
            };
            // Where the host's writes do not reach us, the first command is what such memory holds. No driver begins by
            // deleting queue 0.
            if rings.sq.head() == 1 && sqe.as_bytes().iter().all(|byte| *byte == 0) {
                log::warn!(
                    "an admin command of nothing but zeroes: guest memory seems not to be shared with this process; \
                     give QEMU's memory object share=on, cloud-hypervisor's --memory shared=on"
                );
            }
            match self.admin_command(&memory, &sqe).unwrap_or_else(Reply::from) {
                Reply::Done(outcome) => {
                    if !outcome.status.is_success() {
                        log::debug!("admin {:#04x}: {:?}: {sqe:x?}", sqe.opc, outcome.status);
                    }
                    self.admin_complete(Failed::of(0, &sqe), outcome);
                }
                Reply::Later => {}
                Reply::Parked => {
                    if let Some(rings) = &mut self.admin.rings {
                        rings.cq.release();
                    }
                    self.deliver_events();
                }
            }
        }
    }

    /// Posts the completion of a command whose entry is reserved.
    pub(super) fn admin_complete(&mut self, command: Failed, mut outcome: Outcome) {
        if !outcome.status.is_success() {
            outcome.status = self.shared.errors.failed(command, outcome.status);
        }
        self.admin_post(command.cid, outcome);
    }

    fn admin_post(&mut self, cid: u16, outcome: Outcome) {
        if !self.bus_master {
            self.admin.unposted.push((cid, outcome));
            return;
        }
        let memory = self.memory.load_full();
        let Some(rings) = &mut self.admin.rings else { return };
        let post = Post { sqid: 0, sqhd: rings.sq.head(), cid, status: outcome.status, dw0: outcome.dw0 };
        match rings.cq.post(&memory, &post) {
            Ok(()) => self.shared.interrupts.raise_at_once(0),
            Err(error) => self.fatal(&format!("admin completion queue: {error}")),
        }
    }

    /// The device is on the bus again: posts what ended and takes what was asked meanwhile.
    pub(super) fn resume_admin(&mut self) {
        for (cid, outcome) in std::mem::take(&mut self.admin.unposted) {
            self.admin_post(cid, outcome);
        }
        self.run_admin();
    }

    /// Posts a completion whose entry is not reserved; false when there is no room.
    fn admin_complete_unreserved(&mut self, cid: u16, outcome: Outcome) -> bool {
        let reserved = self.admin.rings.as_mut().is_some_and(|rings| rings.cq.reserve());
        if reserved {
            self.admin_post(cid, outcome);
        }
        reserved
    }

    /// A worker has done its part of an admin command.
    pub(super) fn admin_acknowledged(&mut self, pending: Pending, answer: bool) {
        let outcome = match pending.then {
            Then::DeleteSq(qid) => {
                self.queues.set_sq(qid, None);
                Outcome::of(Status::SUCCESS)
            }
            Then::DeleteCq(qid) => {
                self.queues.set_cq(qid, None);
                Outcome::of(Status::SUCCESS)
            }
            Then::Abort => {
                self.admin.aborts = self.admin.aborts.saturating_sub(1);
                Outcome { status: Status::SUCCESS, dw0: u32::from(!answer) }
            }
            Then::CacheFlushed if answer => Outcome::of(Status::SUCCESS),
            Then::CacheFlushed => {
                // A command that fails changes nothing.
                self.admin.features.write_cache = true;
                self.apply_features();
                Outcome::of(Status::WRITE_FAULT)
            }
        };
        self.admin_complete(pending.command, outcome);
    }

    fn admin_command(&mut self, memory: &DmaMap, sqe: &Sqe) -> Result<Reply, Status> {
        if sqe.fuse() != 0 {
            return Err(Status::INVALID_FIELD.dnr());
        }
        self.admin.keep_alive.touch();
        let command = AdminCommand::of(sqe.opc).filter(|command| self.offers(*command));
        match command.ok_or(Status::INVALID_OPCODE.dnr())? {
            AdminCommand::DeleteSq => self.delete_sq(sqe),
            AdminCommand::CreateSq => self.create_sq(sqe),
            AdminCommand::GetLogPage => self.get_log_page(memory, sqe),
            AdminCommand::DeleteCq => self.delete_cq(sqe),
            AdminCommand::CreateCq => self.create_cq(sqe),
            AdminCommand::Identify => self.identify(memory, sqe),
            AdminCommand::Abort => self.abort(sqe),
            AdminCommand::SetFeatures => self.set_features(memory, sqe),
            AdminCommand::GetFeatures => self.get_features(memory, sqe),
            AdminCommand::AsyncEvent => self.async_event_request(sqe),
            AdminCommand::KeepAlive => Ok(Status::SUCCESS.into()),
            AdminCommand::DoorbellBuffer => self.doorbell_buffer_config(memory, sqe),
        }
    }

    /// Has this controller the command, as it is configured?
    fn offers(&self, command: AdminCommand) -> bool {
        command != AdminCommand::DoorbellBuffer || self.offers_doorbell_buffers()
    }

    /// Sends `data` to the host through the command's data pointer.
    fn send_data(&self, memory: &DmaMap, sqe: &Sqe, data: &[u8]) -> Result<Reply, Status> {
        let page_size = self.shared.page_size();
        let buf =
            transfer::resolve(memory, sqe, data.len(), page_size, Access::Write, false, &Work::default())?;
        buf.copy_in(0, data)?;
        Ok(Status::SUCCESS.into())
    }

    /// Takes `len` bytes from the host through the command's data pointer.
    fn take_data(&self, memory: &DmaMap, sqe: &Sqe, len: usize) -> Result<Vec<u8>, Status> {
        transfer::fetch(memory, sqe, len, self.shared.page_size(), false, &Work::default())
    }
}
