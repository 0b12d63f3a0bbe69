//! What admin commands work on, and how they end.

use super::state::Admin;
use crate::block::Work;
use crate::laboratory::Laboratory;
use crate::memory::{Access, DmaMap};
use crate::nvme_ctrl::config::ControllerConfig;
use crate::nvme_ctrl::error_log::Failed;
use crate::nvme_ctrl::pending::{Pending, Then};
use crate::nvme_ctrl::queue_table::QueueTable;
use crate::nvme_ctrl::shared::{InterruptSink, Shared};
use crate::nvme_ctrl::transfer;
use crate::nvme_ctrl::workers::Workers;
use crate::spec::commands::{AdminCommand, NvmCommand};
use crate::spec::registers::Cc;
use crate::spec::{Outcome, Sqe, Status};

/// The parts of a controller that its admin commands see, borrowed while they run.
pub struct Ctl<'a> {
    /// What it was made of.
    pub config: &'a ControllerConfig,
    /// What it shares with its workers.
    pub shared: &'a Shared,
    /// Guest memory.
    pub memory: &'a DmaMap,
    /// CC.
    pub cc: Cc,
    /// State of the admin queue and of what admin commands set.
    pub admin: &'a mut Admin,
    /// The I/O queues.
    pub queues: &'a mut QueueTable,
    /// Who serves them.
    pub workers: &'a mut Workers,
    /// What laboratories there are.
    pub laboratory: &'a Laboratory,
}

/// What came of an admin command.
pub enum Reply {
    /// It is complete.
    Done(Outcome),
    /// It completes later and keeps its completion entry.
    Later,
    /// It completes some day, without holding an entry: Asynchronous Event Request.
    Outstanding,
}

impl From<Status> for Reply {
    fn from(status: Status) -> Self {
        Self::Done(Outcome::of(status))
    }
}

impl Reply {
    /// Success, with this in DW0.
    pub fn value(dw0: u32) -> Self {
        Self::Done(Outcome { status: Status::SUCCESS, dw0 })
    }
}

impl Ctl<'_> {
    /// Has this controller the command, as it is configured?
    pub fn offers(&self, command: AdminCommand) -> bool {
        // Not with mapped doorbells: what would have to be trapped there, to wake a worker, is a plain store.
        command != AdminCommand::DoorbellBuffer
            || (self.config.doorbell_buffers && self.shared.doorbells.page().is_none())
    }

    /// Has it the I/O command, as it is now?
    pub fn offers_nvm(&self, command: NvmCommand) -> bool {
        command != NvmCommand::Copy || self.shared.limits.has_copy()
    }

    /// Sends `data` to the host through the command's data pointer.
    pub fn send_data(&self, sqe: &Sqe, data: &[u8]) -> Result<Reply, Status> {
        let page_size = self.shared.page_size();
        let work = Work::default();
        let buf = transfer::resolve(self.memory, sqe, data.len(), page_size, Access::Write, false, &work)?;
        buf.copy_in(0, &self.admin.scripted.edit(sqe, data))?;
        Ok(Status::SUCCESS.into())
    }

    /// Takes `len` bytes from the host through the command's data pointer.
    pub fn take_data(&self, sqe: &Sqe, len: usize) -> Result<Vec<u8>, Status> {
        transfer::fetch(self.memory, sqe, len, self.shared.page_size(), false, &Work::default())
    }

    /// Makes the workers see what the features say.
    pub fn apply_features(&self) {
        self.admin.features.apply(self.shared, self.config.cdfe);
    }

    /// Posts a completion whose entry is reserved, when the device may.
    pub fn post(&mut self, cid: u16, outcome: Outcome) {
        if self.workers.bus_master() {
            self.admin.queue.post(self.memory, &*self.shared.interrupts, cid, outcome);
        } else {
            self.admin.queue.post_later(cid, outcome);
        }
    }

    /// As [`Self::post`], without the interrupt.
    pub fn post_unannounced(&mut self, cid: u16, outcome: Outcome) {
        if self.workers.bus_master() {
            self.admin.queue.post(self.memory, &Silent, cid, outcome);
        } else {
            self.admin.queue.post_later(cid, outcome);
        }
    }

    /// Posts a completion whose entry is not reserved; false when there is no room.
    pub fn post_unreserved(&mut self, cid: u16, outcome: Outcome) -> bool {
        let reserved = self.admin.queue.reserve();
        if reserved {
            self.post(cid, outcome);
        }
        reserved
    }
}

/// Raises nothing.
struct Silent;

impl InterruptSink for Silent {
    fn raise(&self, _: u16) {}
}

/// The admin command `sqe`, which goes on with `then` when a worker has done its part.
pub fn pending(sqe: &Sqe, then: Then) -> Pending {
    Pending { command: Failed::of(0, sqe), then }
}
