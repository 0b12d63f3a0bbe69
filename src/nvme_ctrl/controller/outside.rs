//! What the controller shows to whoever runs it, and what they may do with it. On the control thread, as all of it: nothing
//! here waits, and what takes time answers by a channel.

use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use super::Controller;
use crate::nvme_ctrl::admin;
use crate::nvme_ctrl::flushes::Asker;
use crate::nvme_ctrl::settings::Settings;
use crate::nvme_ctrl::view::{ControllerState, ControllerStats, ControllerView, WorkerState};
use crate::nvme_ctrl::worker::Answer;
use crate::spec::registers::csts;

impl Controller {
    /// Identify Controller CNTLID.
    pub fn cntlid(&self) -> u16 {
        self.seat.cntlid().get()
    }

    /// What it is at, in short, and what it offers.
    pub fn view(&mut self) -> ControllerView {
        let critical_warning = self.critical_warning();
        let health = self.admin.health;
        ControllerView {
            cntlid: self.cntlid(),
            enabled: self.regs.cc.en(),
            ready: self.regs.csts & csts::RDY != 0,
            fatal: self.regs.csts & csts::CFS != 0,
            paused: self.is_paused(),
            mdts: self.config.mdts,
            mdts_after_reset: Some(self.next_mdts).filter(|mdts| *mdts != self.config.mdts),
            ocfs: format!("{:#x}", self.shared.limits.ocfs()),
            cdfe: format!("{:#x}", self.config.cdfe),
            copy: self.shared.limits.has_copy(),
            temperature: health.temperature,
            spare: health.spare,
            critical_warning: format!("{critical_warning:#04x}"),
        }
    }

    /// What it has done since it was made.
    pub fn stats(&self) -> ControllerStats {
        let (counters, counts) = (&self.shared.counters, &self.admin.counts);
        ControllerStats {
            cntlid: self.cntlid(),
            host_read_commands: counters.sum(|tally| &tally.reads),
            host_write_commands: counters.sum(|tally| &tally.writes),
            bytes_read: counters.sum(|tally| &tally.bytes_read),
            bytes_written: counters.sum(|tally| &tally.bytes_written),
            copies: counters.sum(|tally| &tally.copies),
            bytes_copied: counters.sum(|tally| &tally.bytes_copied),
            media_errors: counters.sum(|tally| &tally.media_errors),
            error_log_entries: self.shared.errors.count(),
            enabled: counts.times_enabled(),
            admin_commands: counts.commands(),
            log_pages: counts.logs(),
            events: counts.events(),
        }
    }

    /// What it has in hand. Its workers tell their part themselves, each by one message to `workers`, unless they hang.
    pub fn inspect(&mut self, workers: &Sender<Answer<WorkerState>>) -> ControllerState {
        let admin = &self.admin;
        ControllerState {
            cntlid: self.cntlid(),
            registers: self.regs.state(),
            bus_master: self.workers.bus_master(),
            quiet: self.workers.is_quiet(),
            paused: self.is_paused(),
            enable_waits: self.enable_when_quiet,
            admin_queue: admin.queue.state(),
            async_event_configuration: format!("{:#010x}", admin.features.async_event()),
            async_event_requests: admin.events.requests(),
            events_waiting: admin.events.waiting().map(|event| format!("{:#08x}", event.dw0())).collect(),
            logs_unread: admin.events.unread().to_vec(),
            namespaces_changed: admin.changed.nsids().collect(),
            cdfe_in_force: format!("{:#x}", self.shared.cdfe.load(Ordering::SeqCst)),
            write_cache: self.shared.write_cache.load(Ordering::SeqCst),
            aborts: admin.aborts,
            awaited: self.workers.owed(),
            workers: self.workers.inspect(workers),
        }
    }

    /// Sets values while it is used. All but [`Settings::mdts`] count at once: commands that are taken from now on are judged
    /// by them, and warnings that are new are reported, if the host has asked for that. No event tells of the others; a host
    /// sees them when it identifies the controller.
    pub fn set(&mut self, settings: &Settings) {
        let Settings { mdts, ocfs, cdfe, copy, temperature, spare, warnings } = *settings;
        self.next_mdts = mdts.unwrap_or(self.next_mdts);
        if !self.regs.cc.en() {
            self.config.mdts = self.next_mdts;
            self.shared.limits.set_mdts(self.next_mdts);
        }
        if let Some(ocfs) = ocfs {
            self.shared.limits.set_ocfs(ocfs);
        }
        if let Some(cdfe) = cdfe {
            self.config.cdfe = cdfe;
            self.admin.features.apply(&self.shared, cdfe);
        }
        if let Some(copy) = copy {
            self.shared.limits.set_copy(copy);
        }
        let health = &mut self.admin.health;
        health.temperature = temperature.unwrap_or(health.temperature);
        health.spare = spare.unwrap_or(health.spare);
        health.warnings = warnings.unwrap_or(health.warnings);
        self.admin(admin::report_new_warnings);
    }

    /// No I/O command is fetched until [`Self::resume`]; those in flight go on. Each worker sends one message when it has none
    /// left, unless somebody else waits for that already. How many workers there are.
    pub fn pause(&mut self, drained: &Sender<Answer<()>>) -> usize {
        self.workers.pause(drained)
    }

    /// Is that so?
    pub fn is_paused(&self) -> bool {
        self.shared.paused.load(Ordering::Relaxed)
    }

    /// Commands are fetched again.
    pub fn resume(&mut self) {
        self.workers.resume();
    }

    /// Makes all namespaces durable; tells whether that succeeded. Who asks for it while another waits takes its place.
    pub fn flush_for(&mut self, answer: Sender<bool>) {
        self.workers.flush_for(Asker::Outside(answer));
    }

    fn critical_warning(&mut self) -> u8 {
        let mut warning = 0;
        self.admin(|ctl| warning = admin::critical_warning(ctl));
        warning
    }
}
