//! The driver: registers, queues, interrupts, submit and complete.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::client::{BAR0, CONFIG, irq};
use super::le::u32_at;
use super::nvme::admin;
use super::ram::PAGE;
use super::ring::{CqRing, SqRing};
use super::{Answer, Bells, Client, Cqe, DEADLINE, Daemon, Ram, Sqe};

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
    pub ring: CqRing,
    /// Interrupt vector, or polled.
    pub vector: Option<u16>,
}

pub struct Sq {
    pub ring: SqRing,
    /// As the controller last reported it.
    pub head: u16,
    pub cqid: u16,
}

impl Cq {
    fn new(base: u64, size: u16, vector: Option<u16>) -> Cq {
        Cq { ring: CqRing::new(base, size), vector }
    }
}

impl Sq {
    fn new(base: u64, size: u16, cqid: u16) -> Sq {
        Sq { ring: SqRing::new(base, size), head: 0, cqid }
    }
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
        self.cqs.insert(0, Cq::new(cq, ADMIN_ENTRIES, Some(0)));
        self.sqs.insert(0, Sq::new(sq, ADMIN_ENTRIES, 0));
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
        self.cqs.insert(qid, Cq::new(base, size, vector));
    }

    pub fn create_sq(&mut self, qid: u16, size: u16, cqid: u16) {
        let base = self.ram.pages(u64::from(size).div_ceil(PAGE / 64));
        self.create_sq_at(qid, size, cqid, base);
    }

    pub fn create_sq_at(&mut self, qid: u16, size: u16, cqid: u16, base: u64) {
        self.admin(Host::create_sq_sqe(qid, size, base, cqid)).ok();
        self.sqs.insert(qid, Sq::new(base, size, cqid));
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
        let of_admin = index < 2 && matches!(self.bells, Bells::Shadow(..));
        if !of_admin && !self.bells.ring(index as usize, value) {
            return;
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
        let tail = self.sqs[&qid].ring.tail;
        self.doorbell(2 * u64::from(qid), u32::from(tail));
    }

    pub fn ring_cq(&mut self, qid: u16) {
        let head = self.cqs[&qid].ring.head;
        self.doorbell(2 * u64::from(qid) + 1, u32::from(head));
    }

    pub fn room(&self, qid: u16) -> bool {
        let q = &self.sqs[&qid];
        (q.ring.tail + 1) % q.ring.size != q.head
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
        q.ring.push(&self.ram, &sqe.cid(cid).0);
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
        self.cqs[&cqid].ring.pending(&self.ram)
    }

    /// Takes the next entry of a CQ, without ringing its doorbell, whatever it says.
    pub fn take_entry(&mut self, cqid: u16) -> Option<Cqe> {
        Some(self.cqs.get_mut(&cqid).unwrap().ring.take(&self.ram)?.cqe(&self.ram))
    }

    /// Takes the next entry of a CQ, without ringing its doorbell.
    pub fn take(&mut self, cqid: u16) -> Option<Cqe> {
        let c = self.take_entry(cqid)?;
        let key = (c.sqid, c.cid);
        assert!(self.in_flight.remove(&key), "a completion nobody waits for: {c:?}");
        let s = self.sqs.get_mut(&c.sqid).unwrap();
        assert_eq!(s.cqid, cqid, "{c:?} in the wrong CQ");
        let (old, new, tail, size) = (s.head, c.sqhd, s.ring.tail, s.ring.size);
        assert!(new < size, "{c:?}");
        let step = |to: u16| (to + size - old) % size;
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
                let held: Vec<_> =
                    cqids.iter().map(|q| (q, self.pending(*q), self.cqs[q].ring.head)).collect();
                let sqs: Vec<_> =
                    self.sqs.iter().map(|(k, q)| (k, q.head, q.ring.tail, self.outstanding(*k))).collect();
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
