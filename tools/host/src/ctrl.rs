//! The driver: registers, queues, interrupts, submit and complete.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::client::{BAR0, CONFIG, irq};
use super::le::{u16_at, u32_at};
use super::nvme::{admin, io};
use super::ram::PAGE;
use super::{Answer, Client, Cqe, DEADLINE, Daemon, Data, Ns, Page, Ram, Sqe};

pub mod reg {
    pub const CAP: u64 = 0x00;
    pub const VS: u64 = 0x08;
    pub const INTMS: u64 = 0x0c;
    pub const INTMC: u64 = 0x10;
    pub const CC: u64 = 0x14;
    pub const CSTS: u64 = 0x1c;
    pub const AQA: u64 = 0x24;
    pub const ASQ: u64 = 0x28;
    pub const ACQ: u64 = 0x30;
    pub const CMBSZ: u64 = 0x3c;
    pub const DOORBELLS: u64 = 0x1000;
}

/// What Linux writes: IOCQES 4, IOSQES 6, 4 KiB pages, NVM command set.
pub const CC_LINUX: u32 = 0x0046_0000;
pub const CC_EN: u32 = 1;
pub const RDY: u32 = 1;
pub const CFS: u32 = 2;

pub const ADMIN_ENTRIES: u16 = 32;

pub struct Cq {
    pub base: u64,
    pub size: u16,
    pub head: u16,
    phase: bool,
    /// Interrupt vector, or polled.
    pub vector: Option<u16>,
}

pub struct Sq {
    pub base: u64,
    pub size: u16,
    pub tail: u16,
    /// As the controller last reported it.
    pub head: u16,
    pub cqid: u16,
}

/// How doorbells are rung.
pub enum Bells {
    /// By messages.
    Registers,
    /// Doorbell Buffer Config: shadow doorbells, event indices. The admin queue goes by messages.
    Shadow(Page, Page),
    /// By plain stores to the mapped registers.
    Mapped(Page),
}

/// Does a doorbell that goes from `old` to `new` have to be rung in BAR0? As the specification's hosts decide it.
pub fn must_ring(new: u32, old: u32, event: u32) -> bool {
    let (new, old, event) = (new as u16, old as u16, event as u16);
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

pub struct Host {
    pub client: Client,
    pub ram: Ram,
    pub cqs: BTreeMap<u16, Cq>,
    pub sqs: BTreeMap<u16, Sq>,
    pub vectors: Vec<OwnedFd>,
    in_flight: HashSet<(u16, u16)>,
    done: HashMap<(u16, u16), Cqe>,
    next_cid: u16,
    /// Doorbells as posted writes (as QEMU sends them) or with a reply.
    pub posted: bool,
    pub bells: Bells,
    /// Doorbells rung by message.
    pub rung: u64,
}

impl Host {
    /// Attached, memory mapped, interrupts connected; the controller is not enabled.
    pub fn cold(path: &Path) -> Host {
        Host::with_client(Client::attach_when_free(path))
    }

    pub fn with_client(mut client: Client) -> Host {
        let ram = Ram::new(0x1_4000_0000, 256 << 20);
        client.map_ram(&ram);
        let mut h = Host {
            client,
            ram,
            cqs: BTreeMap::new(),
            sqs: BTreeMap::new(),
            vectors: Vec::new(),
            in_flight: HashSet::new(),
            done: HashMap::new(),
            // The controller must not take the CID for an index.
            next_cid: 0xeffe,
            posted: true,
            bells: Bells::Registers,
            rung: 0,
        };
        h.connect_interrupts();
        h
    }

    /// Attached and enabled, admin queue ready.
    pub fn attach(daemon: &Daemon) -> Host {
        let mut h = Host::cold(&daemon.socket());
        h.enable();
        h
    }

    /// As [`Host::attach`], with its doorbells mapped if the device offers that.
    pub fn attach_any(daemon: &Daemon) -> Host {
        let mut h = Host::cold(&daemon.socket());
        if let Some(page) = h.client.map_doorbells() {
            h.bells = Bells::Mapped(page);
        }
        h.enable();
        h
    }

    /// As [`Host::attach`], with I/O queues 1..=`pairs` of `size` entries, each with its interrupt.
    pub fn with_queues(daemon: &Daemon, pairs: u16, size: u16) -> Host {
        let mut h = Host::attach(daemon);
        h.io_queues(pairs, size);
        h
    }

    /// As QEMU with a Linux guest: memory and bus master on, MSI-X on, an eventfd for each vector.
    pub fn connect_interrupts(&mut self) {
        let command = self.client.config16(4) | 0x406;
        self.client.write(CONFIG, 4, &command.to_le_bytes());
        let cap = find_capability(&mut self.client, 0x11).expect("MSI-X");
        let control = self.client.config16(cap + 2) | 0x8000;
        self.client.write(CONFIG, cap + 2, &control.to_le_bytes());
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let count = self.client.irq_info(irq::MSIX).count.min(16);
        self.vectors = (0..count).map(|_| eventfd(0, flags).unwrap()).collect();
        for (i, fd) in self.vectors.iter().enumerate() {
            let a = self.client.set_irqs(irq::MSIX, irq::EVENTFD | irq::TRIGGER, i as u32, 1, &[fd.as_fd()]);
            assert!(matches!(a, Answer::Done(..)), "{a:?}");
        }
    }

    pub fn csts(&mut self) -> u32 {
        self.client.r32(reg::CSTS)
    }

    pub fn wait_csts(&mut self, mask: u32, want: u32) -> u32 {
        let start = Instant::now();
        loop {
            let v = self.csts();
            if v & mask == want {
                return v;
            }
            assert!(start.elapsed() < DEADLINE, "CSTS is {v:#x}, wanted {want:#x} under {mask:#x}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits for the answer to an enable: RDY or CFS.
    pub fn wait_csts_any(&mut self) -> u32 {
        let start = Instant::now();
        loop {
            let v = self.csts();
            if v & (RDY | CFS) != 0 {
                return v;
            }
            assert!(start.elapsed() < DEADLINE, "neither RDY nor CFS");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub fn disable(&mut self) {
        self.client.w32(reg::CC, 0);
        self.wait_csts(RDY, 0);
        if matches!(self.bells, Bells::Shadow(..)) {
            self.bells = Bells::Registers;
        }
        self.cqs.clear();
        self.sqs.clear();
        self.in_flight.clear();
        self.done.clear();
    }

    /// Resets and enables with a fresh admin queue.
    pub fn enable(&mut self) {
        self.disable();
        self.admin_queue();
        self.client.w32(reg::CC, CC_LINUX);
        self.client.w32(reg::CC, CC_LINUX | CC_EN);
        let v = self.wait_csts(RDY, RDY);
        assert_eq!(v, RDY, "CSTS");
    }

    /// Memory and registers of the admin queue.
    pub fn admin_queue(&mut self) {
        let sq = self.ram.pages(1);
        let cq = self.ram.pages(1);
        let n = u32::from(ADMIN_ENTRIES - 1);
        self.client.w32(reg::AQA, n << 16 | n);
        self.client.w64(reg::ASQ, sq);
        self.client.w64(reg::ACQ, cq);
        self.cqs.insert(0, new_cq(cq, ADMIN_ENTRIES, Some(0)));
        self.sqs.insert(0, new_sq(sq, ADMIN_ENTRIES, 0));
    }

    // Queues.

    pub fn set_queue_count(&mut self, pairs: u16) {
        let n = u32::from(pairs - 1);
        let c = self.set_feature(0x07, n << 16 | n);
        c.ok();
        assert!(c.dw0 & 0xffff >= n && c.dw0 >> 16 >= n, "{c:?}");
    }

    pub fn io_queues(&mut self, pairs: u16, size: u16) {
        self.set_queue_count(pairs);
        for q in 1..=pairs {
            let vector = usize::from(q) % self.vectors.len();
            self.create_cq(q, size, Some(vector as u16));
            self.create_sq(q, size, q);
        }
    }

    pub fn create_cq_sqe(qid: u16, size: u16, base: u64, vector: Option<u16>) -> Sqe {
        Sqe::new(admin::CREATE_CQ)
            .prp(base, 0)
            .cdw(10, u32::from(size.wrapping_sub(1)) << 16 | u32::from(qid))
            .cdw(11, vector.map_or(1, |v| u32::from(v) << 16 | 3))
    }

    pub fn create_sq_sqe(qid: u16, size: u16, base: u64, cqid: u16) -> Sqe {
        Sqe::new(admin::CREATE_SQ)
            .prp(base, 0)
            .cdw(10, u32::from(size.wrapping_sub(1)) << 16 | u32::from(qid))
            .cdw(11, u32::from(cqid) << 16 | 1)
    }

    pub fn create_cq(&mut self, qid: u16, size: u16, vector: Option<u16>) {
        let base = self.ram.pages(u64::from(size).div_ceil(PAGE / 16));
        self.create_cq_at(qid, size, vector, base);
    }

    pub fn create_cq_at(&mut self, qid: u16, size: u16, vector: Option<u16>, base: u64) {
        self.admin(Host::create_cq_sqe(qid, size, base, vector)).ok();
        self.cqs.insert(qid, new_cq(base, size, vector));
    }

    pub fn create_sq(&mut self, qid: u16, size: u16, cqid: u16) {
        let base = self.ram.pages(u64::from(size).div_ceil(PAGE / 64));
        self.create_sq_at(qid, size, cqid, base);
    }

    pub fn create_sq_at(&mut self, qid: u16, size: u16, cqid: u16, base: u64) {
        self.admin(Host::create_sq_sqe(qid, size, base, cqid)).ok();
        self.sqs.insert(qid, new_sq(base, size, cqid));
    }

    pub fn delete_sq(&mut self, qid: u16) -> Cqe {
        let c = self.admin(Sqe::new(admin::DELETE_SQ).cdw(10, u32::from(qid)));
        if c.status == 0 {
            self.sqs.remove(&qid);
            self.forget(qid);
        }
        c
    }

    pub fn delete_cq(&mut self, qid: u16) -> Cqe {
        let c = self.admin(Sqe::new(admin::DELETE_CQ).cdw(10, u32::from(qid)));
        if c.status == 0 {
            self.cqs.remove(&qid);
        }
        c
    }

    pub fn doorbell(&mut self, index: u64, value: u32) {
        match &self.bells {
            Bells::Mapped(page) => return page.word(index as usize).store(value, Ordering::Release),
            Bells::Shadow(shadow, events) if index >= 2 => {
                let old = shadow.word(index as usize).swap(value, Ordering::AcqRel);
                fence(Ordering::SeqCst);
                let event = events.word(index as usize).load(Ordering::Relaxed);
                if !must_ring(value, old, event) {
                    return;
                }
            }
            _ => {}
        }
        self.rung += 1;
        let at = reg::DOORBELLS + 4 * index;
        if self.posted {
            self.client.post(BAR0, at, &value.to_le_bytes());
        } else {
            self.client.w32(at, value);
        }
    }

    pub fn ring_sq(&mut self, qid: u16) {
        let tail = self.sqs[&qid].tail;
        self.doorbell(2 * u64::from(qid), u32::from(tail));
    }

    pub fn ring_cq(&mut self, qid: u16) {
        let head = self.cqs[&qid].head;
        self.doorbell(2 * u64::from(qid) + 1, u32::from(head));
    }

    pub fn room(&self, qid: u16) -> bool {
        let q = &self.sqs[&qid];
        (q.tail + 1) % q.size != q.head
    }

    /// Puts an entry into the queue without ringing; returns its CID.
    pub fn queue(&mut self, qid: u16, sqe: Sqe) -> u16 {
        loop {
            self.next_cid = self.next_cid.wrapping_add(1);
            let key = (qid, self.next_cid);
            if self.next_cid != 0xffff && !self.in_flight.contains(&key) && !self.done.contains_key(&key) {
                break;
            }
        }
        let cid = self.next_cid;
        assert!(self.room(qid), "SQ {qid} is full");
        let q = self.sqs.get_mut(&qid).unwrap();
        self.ram.write(q.base + 64 * u64::from(q.tail), &sqe.cid(cid).0);
        q.tail = (q.tail + 1) % q.size;
        self.in_flight.insert((qid, cid));
        cid
    }

    pub fn submit(&mut self, qid: u16, sqe: Sqe) -> u16 {
        let cid = self.queue(qid, sqe);
        self.ring_sq(qid);
        cid
    }

    // Completions.

    /// Is there an entry the host has not taken? Changes nothing.
    pub fn pending(&self, cqid: u16) -> bool {
        let q = &self.cqs[&cqid];
        let at = q.base + 16 * u64::from(q.head);
        (u16_at(&self.ram.read(at + 14, 2), 0) & 1 != 0) == q.phase
    }

    /// Takes the next entry of a CQ, without ringing its doorbell, whatever it says.
    pub fn take_entry(&mut self, cqid: u16) -> Option<Cqe> {
        if !self.pending(cqid) {
            return None;
        }
        let q = self.cqs.get_mut(&cqid).unwrap();
        // A second look for the rest: the phase bit was read alone, first.
        let c = Cqe::parse(&self.ram.read(q.base + 16 * u64::from(q.head), 16));
        q.head += 1;
        if q.head == q.size {
            q.head = 0;
            q.phase = !q.phase;
        }
        Some(c)
    }

    /// Takes the next entry of a CQ, without ringing its doorbell.
    pub fn take(&mut self, cqid: u16) -> Option<Cqe> {
        let c = self.take_entry(cqid)?;
        let key = (c.sqid, c.cid);
        assert!(self.in_flight.remove(&key), "a completion nobody waits for: {c:?}");
        let s = self.sqs.get_mut(&c.sqid).unwrap();
        assert_eq!(s.cqid, cqid, "{c:?} in the wrong CQ");
        assert!(c.sqhd < s.size, "{c:?}");
        let (old, new, tail) = (s.head, c.sqhd, s.tail);
        let step = |to: u16| (to + s.size - old) % s.size;
        assert!(step(new) <= step(tail), "SQHD {new} is not between {old} and {tail}: {c:?}");
        s.head = new;
        assert!(self.done.insert(key, c).is_none());
        Some(c)
    }

    /// Takes all entries of a CQ and rings once.
    pub fn drain(&mut self, cqid: u16) -> usize {
        let mut n = 0;
        while self.take(cqid).is_some() {
            n += 1;
        }
        if n > 0 {
            self.ring_cq(cqid);
        }
        n
    }

    /// Sleeps until the CQ's interrupt comes (the only way to learn of completions then), or a little.
    fn nap(&mut self, cqid: u16, limit: Duration) -> bool {
        let Some(v) = self.cqs[&cqid].vector else {
            std::thread::sleep(Duration::from_micros(50));
            return true;
        };
        let fd = &self.vectors[usize::from(v)];
        let t = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        let n = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&t)).unwrap_or(0);
        if n > 0 {
            let mut b = [0; 8];
            let _ = rustix::io::read(fd, &mut b);
        }
        n > 0
    }

    /// How often a vector fired since it was last asked.
    pub fn fired(&self, vector: usize) -> u64 {
        let mut b = [0; 8];
        match rustix::io::read(&self.vectors[vector], &mut b) {
            Ok(_) => u64::from_ne_bytes(b),
            Err(_) => 0,
        }
    }

    pub fn try_wait(&mut self, qid: u16, cid: u16, limit: Duration) -> Option<Cqe> {
        let cqid = self.sqs[&qid].cqid;
        let start = Instant::now();
        loop {
            if let Some(c) = self.done.remove(&(qid, cid)) {
                return Some(c);
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return None;
            }
            if self.nap(cqid, left) {
                // The interrupt may have been another queue's that shares the vector.
                let vector = self.cqs[&cqid].vector;
                let same = |(k, q): (&u16, &Cq)| {
                    (*k == cqid || vector.is_some() && q.vector == vector).then_some(*k)
                };
                let queues: Vec<u16> = self.cqs.iter().filter_map(same).collect();
                for q in queues {
                    self.drain(q);
                }
            }
        }
    }

    #[track_caller]
    pub fn wait(&mut self, qid: u16, cid: u16) -> Cqe {
        match self.try_wait(qid, cid, DEADLINE) {
            Some(c) => c,
            None => {
                let cqid = self.sqs[&qid].cqid;
                let there = self.pending(cqid);
                let csts = self.csts();
                panic!("no completion of {cid:#x} on SQ {qid} (entry in the CQ: {there}, CSTS {csts:#x})");
            }
        }
    }

    /// Any completion of these SQs' CQs that nobody has asked for yet.
    pub fn wait_any(&mut self, cqids: &[u16]) -> Cqe {
        let start = Instant::now();
        loop {
            let mut n = 0;
            for &q in cqids {
                n += self.drain(q);
            }
            let key = self.done.keys().find(|k| k.0 != 0 && cqids.contains(&self.sqs[&k.0].cqid)).copied();
            if let Some(k) = key {
                return self.done.remove(&k).unwrap();
            }
            if start.elapsed() > DEADLINE {
                let held: Vec<_> = cqids.iter().map(|q| (q, self.pending(*q), &self.cqs[q].head)).collect();
                let sqs: Vec<_> =
                    self.sqs.iter().map(|(k, q)| (k, q.head, q.tail, self.outstanding(*k))).collect();
                panic!("nothing completes any more: CQs {held:?}, SQs (head, tail, outstanding) {sqs:?}");
            }
            if n == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// Gives up what was submitted to a queue that is gone.
    pub fn forget(&mut self, qid: u16) {
        self.in_flight.retain(|k| k.0 != qid);
        self.done.retain(|k, _| k.0 != qid);
    }

    /// Gives up the completions of a queue that were taken and that nobody waits for.
    pub fn forget_taken(&mut self, qid: u16) {
        self.done.retain(|k, _| k.0 != qid);
    }

    pub fn outstanding(&self, qid: u16) -> usize {
        self.in_flight.iter().filter(|k| k.0 == qid).count()
    }

    #[track_caller]
    pub fn exec(&mut self, qid: u16, sqe: Sqe) -> Cqe {
        let cid = self.submit(qid, sqe);
        self.wait(qid, cid)
    }

    #[track_caller]
    pub fn admin(&mut self, sqe: Sqe) -> Cqe {
        self.exec(0, sqe)
    }

    // Admin commands.

    /// Doorbell Buffer Config with fresh pages, used from now on. As Linux: zeroed first.
    pub fn use_shadow_doorbells(&mut self) -> (u64, u64) {
        let (shadow, events) = (self.ram.pages(1), self.ram.pages(1));
        self.admin(Sqe::new(admin::DOORBELL_BUFFER).prp(shadow, events)).ok();
        self.bells = Bells::Shadow(self.ram.page(shadow), self.ram.page(events));
        (shadow, events)
    }

    pub fn identify_sqe(&mut self, cns: u8, nsid: u32) -> (Sqe, Data) {
        let d = Data::prp(&mut self.ram, 4096);
        d.put(&self.ram, &[0xee; 4096]);
        let s = Sqe::new(admin::IDENTIFY).nsid(nsid).cdw(10, u32::from(cns)).data(&d);
        (s, d)
    }

    #[track_caller]
    pub fn identify(&mut self, cns: u8, nsid: u32) -> Vec<u8> {
        let mark = self.ram.mark();
        let (s, d) = self.identify_sqe(cns, nsid);
        self.admin(s).is(0, &format!("Identify {cns:#x} of {nsid}"));
        let v = d.get(&self.ram);
        self.ram.release(mark);
        v
    }

    pub fn identify_status(&mut self, cns: u8, nsid: u32) -> u16 {
        let mark = self.ram.mark();
        let (s, _) = self.identify_sqe(cns, nsid);
        let c = self.admin(s);
        self.ram.release(mark);
        c.status
    }

    pub fn log_sqe(lid: u8, nsid: u32, offset: u64, data: &Data) -> Sqe {
        let dwords = data.len() as u32 / 4 - 1;
        Sqe::new(admin::GET_LOG)
            .nsid(nsid)
            .cdw(10, (dwords & 0xffff) << 16 | u32::from(lid))
            .cdw(11, dwords >> 16)
            .cdw(12, offset as u32)
            .cdw(13, (offset >> 32) as u32)
            .data(data)
    }

    pub fn log(&mut self, lid: u8, nsid: u32, offset: u64, len: usize) -> (Cqe, Vec<u8>) {
        let mark = self.ram.mark();
        let d = Data::prp(&mut self.ram, len);
        d.put(&self.ram, &vec![0xee; len]);
        let c = self.admin(Host::log_sqe(lid, nsid, offset, &d));
        let v = d.get(&self.ram);
        self.ram.release(mark);
        (c, v)
    }

    #[track_caller]
    pub fn set_feature(&mut self, fid: u8, cdw11: u32) -> Cqe {
        self.admin(Sqe::new(admin::SET_FEATURES).cdw(10, u32::from(fid)).cdw(11, cdw11))
    }

    #[track_caller]
    pub fn get_feature(&mut self, fid: u8) -> Cqe {
        self.admin(Sqe::new(admin::GET_FEATURES).cdw(10, u32::from(fid)))
    }

    /// Host Behavior Support: the 512 bytes.
    pub fn host_behavior(&mut self) -> Vec<u8> {
        let mark = self.ram.mark();
        let d = Data::prp(&mut self.ram, 512);
        self.admin(Sqe::new(admin::GET_FEATURES).cdw(10, 0x16).data(&d)).ok();
        let v = d.get(&self.ram);
        self.ram.release(mark);
        v
    }

    /// Enables Copy descriptor formats (bit n = format n) through Set Features 16h.
    pub fn set_cdfe(&mut self, mask: u16) -> Cqe {
        let mut b = [0; 512];
        b[4..6].copy_from_slice(&mask.to_le_bytes());
        let mark = self.ram.mark();
        let d = Data::prp(&mut self.ram, 512);
        d.put(&self.ram, &b);
        let c = self.admin(Sqe::new(admin::SET_FEATURES).cdw(10, 0x16).data(&d));
        self.ram.release(mark);
        c
    }

    pub fn cdfe(&mut self) -> u16 {
        u16_at(&self.host_behavior(), 4)
    }

    // I/O commands.

    /// Runs a command that moves `bytes` to the device.
    #[track_caller]
    pub fn send(&mut self, qid: u16, sqe: Sqe, bytes: &[u8]) -> Cqe {
        let mark = self.ram.mark();
        let d = Data::prp(&mut self.ram, bytes.len());
        d.put(&self.ram, bytes);
        let c = self.exec(qid, sqe.data(&d));
        self.ram.release(mark);
        c
    }

    pub fn rw(opcode: u8, ns: &Ns, slba: u64, blocks: u32) -> Sqe {
        Sqe::new(opcode).nsid(ns.nsid).lba(slba, blocks)
    }

    /// Writes a pattern and notes it in the shadow.
    #[track_caller]
    pub fn write(&mut self, qid: u16, ns: &mut Ns, slba: u64, blocks: u32, salt: u64) {
        let bytes = ns.pattern(slba, blocks, salt);
        self.send(qid, Host::rw(io::WRITE, ns, slba, blocks), &bytes)
            .is(0, &format!("write {slba}+{blocks}"));
        if !ns.shadow.is_empty() {
            ns.set(slba, &bytes);
        }
    }

    /// Fills the whole namespace.
    #[track_caller]
    pub fn fill(&mut self, qid: u16, ns: &mut Ns, salt: u64) {
        let step = (128 * 1024 / ns.lba) as u64;
        let mut at = 0;
        while at < ns.nsze {
            let n = step.min(ns.nsze - at);
            self.write(qid, ns, at, n as u32, salt);
            at += n;
        }
    }

    #[track_caller]
    pub fn read(&mut self, qid: u16, ns: &Ns, slba: u64, blocks: u32) -> Vec<u8> {
        let mark = self.ram.mark();
        let len = ns.lba * blocks as usize;
        let d = Data::prp(&mut self.ram, len);
        d.put(&self.ram, &vec![0xee; len]);
        self.exec(qid, Host::rw(io::READ, ns, slba, blocks).data(&d)).is(0, &format!("read {slba}+{blocks}"));
        let v = d.get(&self.ram);
        self.ram.release(mark);
        v
    }
}

fn new_cq(base: u64, size: u16, vector: Option<u16>) -> Cq {
    Cq { base, size, head: 0, phase: true, vector }
}

fn new_sq(base: u64, size: u16, cqid: u16) -> Sq {
    Sq { base, size, tail: 0, head: 0, cqid }
}

/// Offset of a PCI capability. Fails on a list that runs in a circle.
pub fn find_capability(client: &mut Client, id: u8) -> Option<u64> {
    let config = client.read(CONFIG, 0, 256);
    assert_ne!(config[6] & 0x10, 0, "no capability list");
    let mut at = usize::from(config[0x34]);
    for _ in 0..48 {
        if at == 0 {
            return None;
        }
        assert!((0x40..=0xf8).contains(&at) && at % 4 == 0, "capability at {at:#x}");
        if config[at] == id {
            return Some(at as u64);
        }
        at = usize::from(config[at + 1]);
    }
    panic!("the capability list has no end");
}

/// BDF-independent identity as QEMU reads it: vendor and device.
pub fn pci_ids(client: &mut Client) -> (u16, u16) {
    let v = client.read(CONFIG, 0, 4);
    let v = u32_at(&v, 0);
    (v as u16, (v >> 16) as u16)
}
