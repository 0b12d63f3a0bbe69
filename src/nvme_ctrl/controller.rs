//! The control thread's half of the controller: registers, doorbells, the admin queue, and the workers'
//! messages.
//!
//! Nothing here waits. What takes time (draining, flushing, deleting a queue) is a message to the workers
//! whose acknowledgement continues it in [`Controller::on_messages`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::time::Instant;

use super::admin::{self, Admin, Ctl, Event, KeepAlive};
use super::config::ControllerConfig;
use super::doorbells::Doorbells;
use super::error_log::ErrorLog;
use super::flushes::Asker;
use super::late::LateAnswers;
use super::queue_table::QueueTable;
use super::registers::{Registers, Requests};
use super::shared::{Counters, InterruptSink, Limits, Shared};
use super::worker::WorkerParts;
use super::workers::{News, Workers};
use crate::laboratory::{Laboratory, RegisterEvent, RegisterFate, Until};
use crate::memory::{Epoch, SharedPage};
use crate::spec::registers::{DOORBELL_STRIDE, csts, offset};
use crate::subsystem::Seat;

/// See the module docs.
pub struct Controller {
    config: ControllerConfig,
    /// MDTS from the next enable on.
    next_mdts: u8,
    /// Its place in the subsystem, until it goes.
    seat: Seat,
    regs: Registers,
    shared: Arc<Shared>,
    workers: Workers,
    queues: QueueTable,
    admin: Admin,
    /// The file of the doorbells' page, if clients may map it.
    doorbell_file: Option<OwnedFd>,
    /// Guest memory of the queues that are created from now on, and of the admin queue.
    memory: Epoch,
    /// Workers may have queues of that epoch.
    begun: bool,
    /// EN was set while workers still drained.
    enable_when_quiet: bool,
    /// The host's CC.EN 1 to 0 is being carried out.
    disabling: bool,
    final_flush: Option<bool>,
    /// What laboratories there are.
    laboratory: Arc<Laboratory>,
    /// What they have the host wait for.
    late: LateAnswers,
}

impl Controller {
    /// A disabled controller with its workers running, off the bus.
    ///
    /// `parts` make each of its workers; `wake` wakes the control thread, which then calls
    /// [`Self::on_messages`].
    ///
    /// # Errors
    /// A worker's thread or lane cannot be made.
    pub fn new(
        config: ControllerConfig,
        seat: Seat,
        memory: Epoch,
        interrupts: Arc<dyn InterruptSink>,
        parts: &WorkerParts,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let (doorbells, doorbell_file) = if config.map_doorbells {
            // The file is laid out as BAR0 is; registers are not in it.
            let (page, file) = SharedPage::new(offset::DOORBELLS)?;
            (Doorbells::mapped(page), Some(file))
        } else {
            (Doorbells::new(usize::from(config.max_ioqpairs) + 1), None)
        };
        let shared = Arc::new(Shared {
            doorbells,
            cntlid: seat.cntlid(),
            is_shared: seat.is_shared(),
            namespaces: seat.table().clone(),
            interrupts,
            write_cache: AtomicBool::new(true),
            cdfe: AtomicU16::new(config.cdfe),
            mps: AtomicU16::new(0),
            coalescing: AtomicU32::new(0),
            vector_cd: (0..config.vectors).map(|_| AtomicBool::new(true)).collect(),
            invalid_doorbell: AtomicBool::new(false),
            counters: Counters::default(),
            errors: ErrorLog::default(),
            limits: Limits::new(config.mdts, config.ocfs),
            paused: AtomicBool::new(false),
        });
        let laboratory = Arc::clone(&parts.laboratory);
        laboratory.watch(Arc::clone(&wake));
        let workers = Workers::spawn(&config, &shared, parts, wake)?;
        Ok(Self {
            memory,
            begun: false,
            regs: Registers::new(config.mqes),
            queues: QueueTable::new(config.max_ioqpairs),
            admin: Admin::new(&config),
            doorbell_file,
            seat,
            next_mdts: config.mdts,
            config,
            shared,
            workers,
            enable_when_quiet: false,
            disabling: false,
            final_flush: None,
            laboratory,
            late: LateAnswers::default(),
        })
    }

    /// Reads BAR0. Doorbells read as 0, or as what is in their page if clients may map it.
    pub fn bar_read(&self, at: u64, data: &mut [u8]) {
        let Some(at) = at.checked_sub(offset::DOORBELLS) else { return self.regs.read(at, data) };
        data.fill(0);
        if self.doorbell_file.is_some() {
            for (byte, at) in data.iter_mut().zip(at..) {
                let index = usize::try_from(at / DOORBELL_STRIDE).unwrap_or(usize::MAX);
                *byte = (self.shared.doorbells.get(index) >> (8 * (at % DOORBELL_STRIDE))) as u8;
            }
        }
    }

    /// The file that a client may map: from [`offset::DOORBELLS`] on for [`SharedPage::SIZE`] bytes it is
    /// what BAR0 is there.
    pub fn doorbell_file(&self) -> Option<BorrowedFd<'_>> {
        self.doorbell_file.as_ref().map(AsFd::as_fd)
    }

    /// The client has gone, or is about to come: what it has mapped is not what the next one will map.
    pub fn renew_doorbells(&mut self) {
        if let Some(page) = self.shared.doorbells.page() {
            match page.renew() {
                Ok(file) => self.doorbell_file = Some(file),
                Err(error) => log::error!("the last client keeps its part in the doorbells: {error}"),
            }
        }
    }

    /// Guest memory was added.
    pub fn memory_added(&mut self) {
        // The page with the shadow doorbells may be back. Whatever a worker finds there then, it has seen
        // before it sleeps.
        if self.workers.buffers().is_some() {
            self.workers.fence();
        }
    }

    /// Writes BAR0.
    pub fn bar_write(&mut self, at: u64, data: &[u8]) {
        if at >= offset::DOORBELLS {
            self.doorbell(at - offset::DOORBELLS, data);
            return;
        }
        let Requests { enable, disable, shutdown } = self.regs.write(at, data);
        if disable {
            if self.regs.csts & csts::RDY == 0 {
                // It never was ready, or is being reset already: the host has nothing to wait for, and does
                // not.
                self.regs.csts &= !csts::CFS;
            }
            self.disabling = true;
            self.enable_when_quiet = false;
            let RegisterFate { until, fatal } = self.meets(RegisterEvent::Disable);
            self.late = LateAnswers { disable: until, ..LateAnswers::default() };
            match fatal {
                // It is reset, but for what the host sees of that.
                Some(why) => {
                    (self.disabling, self.late.broken) = (false, true);
                    self.fatal(&why);
                }
                None => self.drain(),
            }
        }
        if enable {
            let RegisterFate { until, fatal } = self.meets(RegisterEvent::Enable);
            self.late.enable = until;
            match fatal {
                Some(why) => self.fatal(&why),
                None => self.enable(),
            }
        }
        if shutdown {
            let RegisterFate { until, fatal } = self.meets(RegisterEvent::Shutdown);
            (self.late.shutdown, self.late.flushed) = (until, None);
            if let Some(why) = fatal {
                self.fatal(&why);
            }
            // A disabled controller is flushed all the same: the host is about to cut the power.
            self.regs.csts = self.regs.csts & !csts::SHST | csts::SHST_OCCURRING;
            self.workers.flush_for(Asker::Shutdown);
        }
    }

    /// Forgets all queues and commands and returns registers and features to their power-on values. Transfers
    /// in flight go on until [`Self::is_quiet`]. Queues of the time to come belong to `epoch`; it is off the
    /// bus until [`Self::set_bus_master`].
    pub fn reset(&mut self, epoch: Epoch) {
        self.regs.reset();
        self.memory = epoch;
        self.begun = false;
        self.disabling = false;
        self.enable_when_quiet = false;
        self.late = LateAnswers::default();
        self.drain();
        self.workers.set_bus_master(false);
    }

    /// May the device read and write guest memory and raise interrupts? When it may not, that is true once
    /// the workers are fenced and no transfer in flight touches guest memory; what is asked of it meanwhile
    /// is done afterwards.
    pub fn set_bus_master(&mut self, on: bool) {
        if self.workers.bus_master() != on {
            self.workers.set_bus_master(on);
            if on {
                self.admin(admin::resume);
            }
        }
    }

    /// As [`Self::set_bus_master`] said last.
    pub fn is_bus_master(&self) -> bool {
        self.workers.bus_master()
    }

    /// Queues that are created from now on belong to `epoch`. Those that exist have lost theirs, so the
    /// caller goes on to [`Self::fatal`].
    pub fn set_epoch(&mut self, epoch: Epoch) {
        self.memory = epoch;
        self.begun = false;
    }

    /// Is no command in flight since the last reset?
    pub fn is_quiet(&self) -> bool {
        self.workers.is_quiet()
    }

    /// Makes all workers look at the DMA table anew; see [`Self::is_fenced`].
    pub fn fence(&mut self) {
        self.workers.fence();
    }

    /// Has every worker seen the DMA table as it was at the last [`Self::fence`]?
    pub fn is_fenced(&self) -> bool {
        self.workers.is_fenced()
    }

    /// Is no worker in the middle of anything with guest memory as it was before the last [`Self::fence`]? A
    /// worker that is late from an earlier epoch is no matter: that has another memory.
    pub fn is_still(&self) -> bool {
        !self.begun || self.is_fenced()
    }

    /// Controller Fatal Status: nothing is processed until the host resets the controller.
    pub fn fatal(&mut self, why: &str) {
        log::error!("controller fatal status: {why}");
        self.regs.csts |= csts::CFS;
        // An enable that still waits for a hung command is part of what has failed.
        self.enable_when_quiet = false;
        self.admin.queue.stop();
        self.drain();
    }

    /// Starts a flush of all namespaces for the end of service; see [`Self::flushed`].
    pub fn flush(&mut self) {
        self.final_flush = None;
        self.workers.flush_for(Asker::Farewell);
    }

    /// How [`Self::flush`] ended; `None` while it has not.
    pub fn flushed(&self) -> Option<bool> {
        self.final_flush
    }

    /// Ends the workers; false when one was still busy at `deadline`.
    pub fn stop(&mut self, deadline: Instant) -> bool {
        self.workers.stop(deadline)
    }

    /// Takes what the subsystem and the workers have to tell.
    pub fn on_messages(&mut self) {
        self.take_notices();
        while let Some(news) = self.workers.news() {
            match news {
                News::Quiet => self.drained(),
                News::Flushed(askers, success) => {
                    askers.into_iter().for_each(|asker| self.flushed_for(asker, success));
                }
                News::Admin(pending, answer) => {
                    self.admin(|ctl| admin::acknowledged(ctl, pending, answer));
                }
                News::InvalidDoorbell => self.invalid_doorbell(Event::INVALID_DOORBELL_VALUE),
                News::Fatal(why) => self.fatal(&why),
            }
        }
        if self.any_held() {
            self.look_at_held(Instant::now());
        }
    }

    /// What laboratories want of `event`.
    fn meets(&self, event: RegisterEvent) -> RegisterFate {
        let labs = self.laboratory.control().unwrap_or_default();
        let mut fates = labs.iter().map(|lab| lab.register(event));
        fates.find(|fate| !matches!(fate.until, Until::Now) || fate.fatal.is_some()).unwrap_or_default()
    }

    /// Does a laboratory hold anything back?
    fn any_held(&self) -> bool {
        self.admin.scripted.any_held()
            || self.late.drained
            || self.late.flushed.is_some()
            || self.enable_when_quiet
    }

    /// Goes on with what they hold no longer.
    #[cold]
    fn look_at_held(&mut self, now: Instant) {
        if self.admin.scripted.any_held() {
            self.admin(admin::look_at_held);
        }
        if self.late.drained && self.late.disable.is_over(now) {
            self.drained();
        }
        if self.enable_when_quiet && self.workers.is_quiet() && !self.late.drained {
            self.enable_when_quiet = false;
            self.enable();
        }
        if self.late.shutdown.is_over(now)
            && let Some(success) = self.late.flushed.take()
        {
            self.flushed_for(Asker::Shutdown, success);
        }
    }

    /// When [`Self::on_time`] wants to be called, if at all.
    pub fn deadline(&self) -> Option<Instant> {
        let admin = &self.admin;
        let deadlines = [
            admin.keep_alive.deadline(),
            admin.queue.watch_deadline(),
            self.workers.deadline(),
            admin.scripted.due(),
            self.late.due(Instant::now()),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Gets workers that owe a fence for long out of what they wait in.
    pub fn unblock(&mut self, now: Instant) {
        self.workers.unblock(now);
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: Instant) {
        if self.admin.queue.watch_due(now) {
            self.admin(admin::run);
            self.admin.queue.watch_again(&self.shared.doorbells);
        }
        self.unblock(now);
        if self.admin.keep_alive.deadline().is_some_and(|at| now >= at) {
            self.admin.keep_alive = KeepAlive::default();
            self.fatal("the Keep Alive timer expired");
        }
    }

    /// Writes registers, queues and commands in flight to the log.
    pub fn dump(&self) {
        log::info!("{}", self.regs);
        log::info!("{}", self.admin);
        self.workers.dump();
    }

    /// Runs something of the admin queue over what it may see of this.
    fn admin(&mut self, run: impl FnOnce(&mut Ctl<'_>)) {
        let memory = self.memory.load_full();
        run(&mut Ctl {
            config: &self.config,
            shared: &self.shared,
            memory: &memory,
            cc: self.regs.cc,
            admin: &mut self.admin,
            queues: &mut self.queues,
            workers: &mut self.workers,
            laboratory: &self.laboratory,
        });
        if let Some(why) = self.admin.queue.take_loss() {
            self.fatal(&why);
        }
    }

    fn invalid_doorbell(&mut self, event: Event) {
        self.admin(|ctl| admin::invalid_doorbell(ctl, event));
    }

    /// Takes what the subsystem has to tell: namespaces that are new, other or gone.
    fn take_notices(&mut self) {
        let nsids = self.seat.changed();
        if nsids.is_empty() {
            return;
        }
        log::info!("namespaces changed: {nsids:?}");
        // A namespace that is new here has not been told what the host set for its NSID.
        self.admin.features.apply(&self.shared, self.config.cdfe);
        self.admin.changed.extend(nsids);
        self.admin(|ctl| {
            admin::report(ctl, Event::NAMESPACE_CHANGED);
            admin::report_new_warnings(ctl);
        });
    }

    fn flushed_for(&mut self, asker: Asker, success: bool) {
        match asker {
            Asker::Shutdown if !self.late.shutdown.is_over(Instant::now()) => {
                self.late.flushed = Some(success);
            }
            Asker::Shutdown => {
                // Whether the flush succeeded or not: the host has no other sign to wait for. A failure is
                // logged.
                if !success {
                    log::error!("flush at shutdown failed");
                }
                if self.regs.csts & csts::SHST == csts::SHST_OCCURRING {
                    self.regs.csts = self.regs.csts & !csts::SHST | csts::SHST_COMPLETE;
                }
            }
            Asker::Farewell => self.final_flush = Some(success),
            // Who asked may have given up.
            Asker::Outside(answer) => drop(answer.send(success)),
            Asker::Admin(pending) => self.admin(|ctl| admin::acknowledged(ctl, pending, success)),
        }
    }

    /// Forgets queues, features and events, and asks every worker to end what it runs.
    fn drain(&mut self) {
        self.admin.reset(&self.config);
        self.admin.features.apply(&self.shared, self.config.cdfe);
        self.queues.clear();
        self.workers.reset();
    }

    /// Zeroes in every doorbell that the next host or client may see.
    pub fn clear_doorbells(&self) {
        match self.shared.doorbells.page() {
            Some(page) => page.clear(),
            // The others are set when their queues are created.
            None => {
                self.shared.doorbells.set_tail(0, 0);
                self.shared.doorbells.set_head(0, 0);
            }
        }
    }

    fn drained(&mut self) {
        self.late.drained = self.disabling && !self.late.disable.is_over(Instant::now());
        if self.late.drained {
            return;
        }
        self.clear_doorbells();
        // Not before: until now a worker may have failed a command of the time before.
        self.shared.errors.clear();
        if std::mem::take(&mut self.disabling) {
            // A shutdown that was asked for with the reset, or during it, goes on.
            self.regs.csts &= if self.regs.cc.shn() == 0 { 0 } else { csts::SHST };
        } else if !self.regs.cc.en() && !self.late.broken {
            // It became fatal while it was reset, and that reset is over now. A host that finds EN clear
            // already does not reset again.
            self.regs.csts &= !csts::CFS;
        }
        if std::mem::take(&mut self.enable_when_quiet) {
            self.enable();
        }
    }

    fn enable(&mut self) {
        let held = self.late.drained || !self.late.enable.is_over(Instant::now());
        if held || !self.workers.is_quiet() {
            // No command of the time before may meet the new queues, however long a disk keeps it.
            self.enable_when_quiet = true;
            return;
        }
        match self.regs.check_enable() {
            Ok(queues) => {
                self.shared.mps.store(self.regs.cc.mps().into(), Ordering::Relaxed);
                // Not while a worker still had queues: it would have taken a zero for a tail.
                self.clear_doorbells();
                // Whoever enables it has not identified it yet, or does so anew.
                self.config.mdts = self.next_mdts;
                self.shared.limits.set_mdts(self.next_mdts);
                self.begun = true;
                self.admin.counts.enabled();
                self.workers.begin(&self.memory);
                self.admin.queue.start(&queues, &self.shared.doorbells);
                // EN went from 0 to 1: what was fatal before is over.
                self.regs.csts = self.regs.csts & !csts::CFS | csts::RDY;
            }
            Err(error) => {
                log::warn!("guest enables the controller with bad values: {error}");
                self.regs.csts |= csts::CFS;
            }
        }
    }

    fn doorbell(&mut self, at: u64, data: &[u8]) {
        let index = at / DOORBELL_STRIDE;
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else {
            log::warn!("guest wrote {} bytes to doorbell offset {at:#x}", data.len());
            return;
        };
        if !at.is_multiple_of(DOORBELL_STRIDE) {
            return self.invalid_doorbell(Event::INVALID_DOORBELL);
        }
        let value = (value & 0xffff) as u16; // 31:16 are reserved
        let Ok(qid) = u16::try_from(index / 2) else {
            return self.invalid_doorbell(Event::INVALID_DOORBELL);
        };
        let is_head = index % 2 == 1;
        if qid == 0 {
            return self.admin(|ctl| admin::doorbell(ctl, is_head, value));
        }
        let known = if is_head {
            self.queues.cq(qid).map(|cq| (cq.size, qid))
        } else {
            self.queues.sq(qid).map(|sq| (sq.size, sq.cqid))
        };
        let Some((size, cqid)) = known else {
            return self.invalid_doorbell(Event::INVALID_DOORBELL);
        };
        if u32::from(value) >= size {
            return self.invalid_doorbell(Event::INVALID_DOORBELL_VALUE);
        }
        if is_head {
            self.shared.doorbells.set_head(qid, value);
        } else {
            self.shared.doorbells.set_tail(qid, value);
        }
        self.workers.doorbell(cqid);
    }
}

mod outside;
#[cfg(test)]
mod tests;
