//! The control thread's half of the controller: registers, doorbells, the admin queue, and the workers' messages.
//!
//! Nothing here waits. What takes time (draining, flushing, deleting a queue) is a message to the workers whose
//! acknowledgement continues it in [`Controller::on_messages`].

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::admin::Admin;
use super::doorbell_buffers::BufferConfig;
use super::doorbells::Doorbells;
use super::error_log::ErrorLog;
use super::flushes::{Asker, Flushes};
use super::queue_table::QueueTable;
use super::registers::{Registers, Requests};
use super::shared::{Counters, InterruptSink, Limits, Shared};
use super::worker::{Fence, FromWorker, Mailbox, Poll, ToWorker, Token, Worker, WorkerParts};
use crate::memory::{Epoch, SharedPage};
use crate::spec::registers::{DOORBELL_STRIDE, csts, offset};
use crate::subsystem::Seat;

/// What one controller is made of. Counts are 1-based unless they say otherwise.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// Identify Controller SN.
    pub serial: String,
    /// Identify Controller MN.
    pub model: String,
    /// Identify Controller FR.
    pub firmware: String,
    /// Identify Controller SUBNQN.
    pub subnqn: String,
    /// PCI vendor and subsystem vendor.
    pub vid: u16,
    /// PCI subsystem vendor.
    pub ssvid: u16,
    /// Largest transfer: 2^mdts pages of 4 KiB, at least 1.
    pub mdts: u8,
    /// I/O queue pairs.
    pub max_ioqpairs: u16,
    /// CAP.MQES, 0-based.
    pub mqes: u16,
    /// Asynchronous Event Request Limit, 0-based.
    pub aerl: u8,
    /// MSI-X vectors.
    pub vectors: u16,
    /// Identify Controller OCFS: Copy descriptor formats offered.
    pub ocfs: u16,
    /// Copy descriptor formats enabled whatever the host has set (bits of CDFE).
    pub cdfe: u16,
    /// Worker threads.
    pub iothreads: usize,
    /// Doorbell Buffer Config is offered.
    pub doorbell_buffers: bool,
    /// Clients may map the doorbells: they are polled, and Doorbell Buffer Config is not offered.
    pub map_doorbells: bool,
    /// How workers wait for doorbells.
    pub poll: Poll,
}

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
    Admin(super::admin::Pending),
}

/// How long a worker may take for a fence before a client's eventfd is thought to hold it up.
const FENCE_TIME: Duration = Duration::from_millis(100);

/// What a worker was sent and has not acknowledged.
#[derive(Clone, Copy, Debug, Default)]
struct Unanswered {
    reset: bool,
    fence: bool,
    /// There was reason for another fence since.
    fence_again: bool,
}

/// See the module docs.
pub struct Controller {
    pub(super) config: ControllerConfig,
    /// Its place in the subsystem, until it goes.
    pub(super) seat: Seat,
    pub(super) regs: Registers,
    pub(super) shared: Arc<Shared>,
    pub(super) workers: Vec<Worker>,
    pub(super) queues: QueueTable,
    pub(super) admin: Admin,
    /// What Doorbell Buffer Config said since the last reset.
    pub(super) buffers: Option<BufferConfig>,
    /// The file of the doorbells' page, if clients may map it.
    doorbell_file: Option<OwnedFd>,
    /// Guest memory of the queues that are created from now on, and of the admin queue.
    pub(super) memory: Epoch,
    /// Workers may have queues of that epoch.
    begun: bool,
    /// Guest memory may be read and written, and interrupts raised.
    pub(super) bus_master: bool,
    messages: Receiver<FromWorker>,
    awaited: HashMap<Token, Awaited>,
    last_token: Token,
    /// By worker.
    unanswered: Vec<Unanswered>,
    /// When to see whether they still are.
    unblock_at: Option<Instant>,
    flushes: Flushes,
    /// EN was set while workers still drained.
    enable_when_quiet: bool,
    /// The host's CC.EN 1 to 0 is being carried out.
    disabling: bool,
    final_flush: Option<bool>,
}

impl Controller {
    /// A disabled controller with its workers running, off the bus.
    ///
    /// `parts` make each of its workers; `wake` wakes the control thread, which then calls [`Self::on_messages`].
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
            limits: Limits { max_transfer: 4096 << config.mdts, ocfs: config.ocfs & crate::copy::OCFS },
        });
        let (sender, messages) = channel();
        let out = Mailbox { sender, wake };
        let workers = (0..config.iothreads.max(1))
            .map(|index| Worker::spawn(index, Arc::clone(&shared), parts.clone(), config.poll, out.clone()))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            unanswered: vec![Unanswered::default(); workers.len()],
            unblock_at: None,
            flushes: Flushes::default(),
            memory,
            begun: false,
            bus_master: false,
            regs: Registers::new(config.mqes),
            queues: QueueTable::new(config.max_ioqpairs),
            admin: Admin::new(&config),
            buffers: None,
            doorbell_file,
            seat,
            config,
            shared,
            workers,
            messages,
            awaited: HashMap::new(),
            last_token: 0,
            enable_when_quiet: false,
            disabling: false,
            final_flush: None,
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

    /// The file that a client may map: from [`offset::DOORBELLS`] on for [`SharedPage::SIZE`] bytes it is what BAR0 is
    /// there.
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
        // The page with the shadow doorbells may be back. Whatever a worker finds there then, it has seen before it sleeps.
        if self.buffers.is_some() {
            self.fence();
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
                // It never was ready, or is being reset already: the host has nothing to wait for, and does not.
                self.regs.csts &= !csts::CFS;
            }
            self.disabling = true;
            self.enable_when_quiet = false;
            self.drain();
        }
        if enable {
            self.enable();
        }
        if shutdown {
            // A disabled controller is flushed all the same: the host is about to cut the power.
            self.regs.csts = self.regs.csts & !csts::SHST | csts::SHST_OCCURRING;
            self.flush_for(Asker::Shutdown);
        }
    }

    /// Forgets all queues and commands and returns registers and features to their power-on values. Transfers in
    /// flight go on until [`Self::is_quiet`]. Queues of the time to come belong to `epoch`; it is off the bus until
    /// [`Self::set_bus_master`].
    pub fn reset(&mut self, epoch: Epoch) {
        self.regs.reset();
        self.memory = epoch;
        self.begun = false;
        self.bus_master = false;
        self.disabling = false;
        self.enable_when_quiet = false;
        self.drain();
        self.fence();
    }

    /// May the device read and write guest memory and raise interrupts? When it may not, that is true once the workers
    /// are fenced and no transfer in flight touches guest memory; what is asked of it meanwhile is done afterwards.
    pub fn set_bus_master(&mut self, on: bool) {
        if std::mem::replace(&mut self.bus_master, on) != on {
            self.fence();
            if on {
                self.resume_admin();
            }
        }
    }

    /// As [`Self::set_bus_master`] said last.
    pub fn is_bus_master(&self) -> bool {
        self.bus_master
    }

    /// Queues that are created from now on belong to `epoch`. Those that exist have lost theirs, so the caller goes on to
    /// [`Self::fatal`].
    pub fn set_epoch(&mut self, epoch: Epoch) {
        self.memory = epoch;
        self.begun = false;
    }

    /// Is no command in flight since the last reset?
    pub fn is_quiet(&self) -> bool {
        self.unanswered.iter().all(|worker| !worker.reset)
    }

    /// Makes all workers look at the DMA table anew, and at the rest of [`Fence`]; see [`Self::is_fenced`].
    pub fn fence(&mut self) {
        for worker in 0..self.workers.len() {
            match self.unanswered.get_mut(worker) {
                Some(unanswered) if unanswered.fence => unanswered.fence_again = true,
                _ => self.fence_worker(worker),
            }
        }
    }

    fn fence_worker(&mut self, worker: usize) {
        self.unblock_at.get_or_insert_with(|| Instant::now() + FENCE_TIME);
        let Some(unanswered) = self.unanswered.get_mut(worker) else { return };
        *unanswered = Unanswered { fence: true, fence_again: false, ..*unanswered };
        let fence = Fence { bus_master: self.bus_master, buffers: self.buffers };
        let token = self.await_ack(Awaited::Fence(worker));
        self.send(worker, ToWorker::Fence(token, fence));
    }

    /// Has every worker seen the DMA table as it was at the last [`Self::fence`]?
    pub fn is_fenced(&self) -> bool {
        self.unanswered.iter().all(|worker| !worker.fence)
    }

    /// Is no worker in the middle of anything with guest memory as it was before the last [`Self::fence`]? A worker that is
    /// late from an earlier epoch is no matter: that has another memory.
    pub fn is_still(&self) -> bool {
        !self.begun || self.is_fenced()
    }

    /// Controller Fatal Status: nothing is processed until the host resets the controller.
    pub fn fatal(&mut self, why: &str) {
        log::error!("controller fatal status: {why}");
        self.regs.csts |= csts::CFS;
        // An enable that still waits for a hung command is part of what has failed.
        self.enable_when_quiet = false;
        self.admin.stop();
        self.drain();
    }

    /// Starts a flush of all namespaces for the end of service; see [`Self::flushed`].
    pub fn flush(&mut self) {
        self.final_flush = None;
        self.flush_for(Asker::Farewell);
    }

    pub(super) fn flush_for(&mut self, asker: Asker) {
        if self.flushes.ask(asker) {
            self.begin_flush();
        }
    }

    fn begin_flush(&mut self) {
        let token = self.await_ack(Awaited::Flush);
        self.send(0, ToWorker::Flush(token));
    }

    /// How [`Self::flush`] ended; `None` while it has not.
    pub fn flushed(&self) -> Option<bool> {
        self.final_flush
    }

    /// Ends the workers; false when one was still busy at `deadline`.
    pub fn stop(&mut self, deadline: Instant) -> bool {
        for worker in &self.workers {
            worker.send(ToWorker::Stop);
        }
        self.workers.iter_mut().all(|worker| worker.join(deadline))
    }

    /// Takes what the workers have sent.
    pub fn on_messages(&mut self) {
        self.take_notices();
        while let Ok(message) = self.messages.try_recv() {
            match message {
                FromWorker::Ack(token, answer) => match self.awaited.remove(&token) {
                    Some(awaited) => self.acknowledged(awaited, answer),
                    None => log::debug!("acknowledgement {token} came after its command was dropped"),
                },
                // Before the acknowledgement of a reset comes only what the worker met before it: the queues it speaks
                // of are gone, with their client perhaps.
                FromWorker::InvalidDoorbell if !self.is_quiet() => {
                    self.shared.invalid_doorbell.store(false, Ordering::Release);
                    log::debug!("a queue that is gone had a doorbell value it could not have");
                }
                FromWorker::Fatal(why) if !self.is_quiet() => {
                    log::info!("on the way to a reset: {why}");
                }
                FromWorker::InvalidDoorbell => {
                    self.shared.invalid_doorbell.store(false, Ordering::Release);
                    self.invalid_doorbell_value();
                }
                FromWorker::Fatal(why) => self.fatal(&why),
            }
        }
    }

    /// When [`Self::on_time`] wants to be called, if at all.
    pub fn deadline(&self) -> Option<Instant> {
        [self.admin.keep_alive_deadline(), self.watch_deadline(), self.unblock_at].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: Instant) {
        self.watch(now);
        self.unblock(now);
        if self.admin.keep_alive_deadline().is_some_and(|at| now >= at) {
            self.admin.disarm_keep_alive();
            self.fatal("the Keep Alive timer expired");
        }
    }

    /// Gets workers that owe a fence for long out of what they wait in. A turn without waiting takes no notice.
    pub fn unblock(&mut self, now: Instant) {
        if self.unblock_at.is_some_and(|at| now >= at) {
            let late = self.workers.iter().zip(&self.unanswered).filter(|(_, unanswered)| unanswered.fence);
            late.for_each(|(worker, _)| worker.unblock());
            self.unblock_at = Some(now + FENCE_TIME);
        }
    }

    /// Writes registers, queues and commands in flight to the log.
    pub fn dump(&self) {
        log::info!("{}", self.regs);
        log::info!("{}", self.admin);
        log::info!("unanswered {:?}, awaited {:?}; {:?}", self.unanswered, self.awaited, self.flushes);
        for worker in &self.workers {
            worker.send(ToWorker::Dump);
        }
    }

    pub(super) fn await_ack(&mut self, awaited: Awaited) -> Token {
        self.last_token += 1;
        self.awaited.insert(self.last_token, awaited);
        self.last_token
    }

    pub(super) fn send(&self, worker: usize, message: ToWorker) {
        if let Some(worker) = self.workers.get(worker) {
            worker.send(message);
        }
    }

    /// The worker that owns a completion queue and all that post to it.
    pub(super) fn worker_of(&self, cqid: u16) -> usize {
        usize::from(cqid.saturating_sub(1)) % self.workers.len()
    }

    fn acknowledged(&mut self, awaited: Awaited, answer: bool) {
        match awaited {
            Awaited::Reset(worker) => {
                self.unanswered.iter_mut().skip(worker).take(1).for_each(|worker| worker.reset = false);
                if self.is_quiet() {
                    self.drained();
                }
            }
            Awaited::Fence(worker) => match self.unanswered.get_mut(worker) {
                Some(unanswered) if !unanswered.fence_again => {
                    unanswered.fence = false;
                    self.unblock_at = self.unblock_at.filter(|_| !self.is_fenced());
                }
                _ => self.fence_worker(worker),
            },
            Awaited::Flush => {
                let (answered, again) = self.flushes.ended();
                if again {
                    self.begin_flush();
                }
                for asker in answered {
                    self.flushed_for(asker, answer);
                }
            }
            Awaited::Admin(pending) => {
                self.admin_acknowledged(pending, answer);
                self.run_admin();
            }
        }
    }

    fn flushed_for(&mut self, asker: Asker, success: bool) {
        match asker {
            Asker::Shutdown => {
                // Whether the flush succeeded or not: the host has no other sign to wait for. A failure is logged.
                if !success {
                    log::error!("flush at shutdown failed");
                }
                if self.regs.csts & csts::SHST == csts::SHST_OCCURRING {
                    self.regs.csts = self.regs.csts & !csts::SHST | csts::SHST_COMPLETE;
                }
            }
            Asker::Farewell => self.final_flush = Some(success),
            Asker::Admin(pending) => self.acknowledged(Awaited::Admin(pending), success),
        }
    }

    /// Forgets queues, features and events, and asks every worker to end what it runs.
    fn drain(&mut self) {
        // Admin commands whose worker part is under way vanish with their queue.
        self.awaited.retain(|_, awaited| !matches!(awaited, Awaited::Admin(_)));
        self.flushes.forget_admin();
        self.admin.reset(&self.config);
        self.apply_features();
        self.queues.clear();
        self.buffers = None;
        for worker in 0..self.workers.len() {
            // One that is under way is good for this too: until all are over there is no new queue.
            let asked =
                self.unanswered.get_mut(worker).map(|worker| std::mem::replace(&mut worker.reset, true));
            if asked == Some(false) {
                let token = self.await_ack(Awaited::Reset(worker));
                self.send(worker, ToWorker::Reset(token));
            }
        }
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
        self.clear_doorbells();
        // Not before: until now a worker may have failed a command of the time before.
        self.shared.errors.clear();
        if std::mem::take(&mut self.disabling) {
            // A shutdown that was asked for with the reset, or during it, goes on.
            self.regs.csts &= if self.regs.cc.shn() == 0 { 0 } else { csts::SHST };
        } else if !self.regs.cc.en() {
            // It became fatal while it was reset, and that reset is over now. A host that finds EN clear already does
            // not reset again.
            self.regs.csts &= !csts::CFS;
        }
        if std::mem::take(&mut self.enable_when_quiet) {
            self.enable();
        }
    }

    fn enable(&mut self) {
        if !self.is_quiet() {
            // No command of the time before may meet the new queues, however long a disk keeps it.
            self.enable_when_quiet = true;
            return;
        }
        match self.regs.check_enable() {
            Ok(queues) => {
                self.shared.mps.store(self.regs.cc.mps().into(), Ordering::Relaxed);
                // Not while a worker still had queues: it would have taken a zero for a tail.
                self.clear_doorbells();
                self.begun = true;
                for worker in &self.workers {
                    worker.send(ToWorker::Begin(Arc::clone(&self.memory)));
                }
                self.admin.start(&queues);
                self.begin_watch();
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
            return self.invalid_doorbell();
        }
        let value = (value & 0xffff) as u16; // 31:16 are reserved
        let Ok(qid) = u16::try_from(index / 2) else { return self.invalid_doorbell() };
        let is_head = index % 2 == 1;
        if qid == 0 {
            return self.admin_doorbell(is_head, value);
        }
        let known = if is_head {
            self.queues.cq(qid).map(|cq| (cq.size, qid))
        } else {
            self.queues.sq(qid).map(|sq| (sq.size, sq.cqid))
        };
        let Some((size, cqid)) = known else { return self.invalid_doorbell() };
        if u32::from(value) >= size {
            return self.invalid_doorbell_value();
        }
        if is_head {
            self.shared.doorbells.set_head(qid, value);
        } else {
            self.shared.doorbells.set_tail(qid, value);
        }
        if let Some(worker) = self.workers.get(self.worker_of(cqid)) {
            worker.doorbell();
        }
    }
}

#[cfg(test)]
mod tests;
