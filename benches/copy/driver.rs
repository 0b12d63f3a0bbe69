//! An NVMe host in this process: guest memory in a memfd, doorbells by a call.
//!
//! It comes in two kinds. Where the time of Copies is measured, host and worker are one thread which is now the one, now
//! the other: whom their wake-ups of each other would cost more than a short Copy, and how much, depends on the host and
//! is not what is asked (`vfio-user-nvme bench --rw copy` measures that). Where reads run beside a Copy the worker has
//! its own thread, and the host sleeps until it is interrupted.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use vfio_user_nvme::disk::SharedDisk;
use vfio_user_nvme::disk::{Lane, LaneKind};
use vfio_user_nvme::memory::{DmaLimits, DmaSpace, Rights};
use vfio_user_nvme::namespace::{CopyLimits, CopyPolicy, Identity, Method, Namespace, Namespaces};
use vfio_user_nvme::nvme_ctrl::{Controller, ControllerConfig, InterruptSink, Lone, Poll};
use vfio_user_nvme::subsystem::Subsystem;

const RAM: u64 = 16 << 20;
const ASQ: u64 = 0;
const ACQ: u64 = 0x1000;
/// Of queue pair 1; the second's is the page behind.
const SQ: u64 = 0x2000;
const CQ: u64 = 0x4000;
/// Range lists, 16 KiB for each command in flight.
const LISTS: u64 = 0x10_0000;
const LIST: u64 = 16 << 10;
/// Where reads go, a page for each in flight.
const PAGES: u64 = 0x40_0000;
const PAGE: u64 = 4096;
const ENTRIES: u16 = 64;
/// Indices of [`Driver::pairs`].
const COPIES: usize = 0;
const READS: usize = 1;

/// Interrupts as a client gets them: an eventfd.
struct Bell(OwnedFd);

impl InterruptSink for Bell {
    fn raise(&self, vector: u16) {
        if vector == 1 {
            let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        }
    }
}

/// Two queue pairs: one for Copies, one for reads beside them. One worker serves both.
pub struct Driver {
    device: Device,
    ram: File,
    /// The memfd mapped: completions are seen here as a guest would see them.
    map: *mut u8,
    _space: DmaSpace,
    admin: (u16, u16),
    pairs: [Pair; 2],
}

/// What the host is connected to.
enum Device {
    /// A worker that works when the host has nothing to do. The first queue pair only.
    Lone(Box<Lone>),
    /// A controller with a worker on its own thread, and its interrupts.
    Threaded(Box<Controller>, Arc<Bell>),
}

/// Who takes the worker's turns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// The host.
    Lone,
    /// A thread of its own.
    Threaded,
}

struct Pair {
    qid: u16,
    tail: u16,
    head: u16,
    phase: bool,
}

impl Pair {
    fn new(qid: u16) -> Self {
        Self { qid, tail: 0, head: 0, phase: true }
    }

    fn sq(&self) -> u64 {
        SQ + PAGE * u64::from(self.qid - 1)
    }

    fn cq(&self) -> u64 {
        CQ + PAGE * u64::from(self.qid - 1)
    }

    /// The register of the submission queue's doorbell; the completion queue's is 4 bytes on.
    fn doorbell(&self) -> u64 {
        0x1000 + 8 * u64::from(self.qid)
    }
}

/// What became of the reads of one run.
pub struct Reads {
    /// Of each that ended in time, unsorted.
    pub latencies: Vec<Duration>,
    pub elapsed: Duration,
}

/// How long to read.
pub enum Until<'a> {
    Elapsed(Duration),
    /// Until all of these have ended, one after the other.
    Copied(&'a [Copy]),
}

/// One Copy: (source block, blocks) and the destination block.
pub struct Copy {
    pub ranges: Vec<(u64, u32)>,
    pub sdlba: u64,
}

impl Driver {
    /// A device whose namespace 1 is `disk`.
    pub fn new(disk: SharedDisk, lbads: u8, engine: LaneKind, method: Method, host: Host) -> Self {
        let ram = File::from(memfd());
        ram.set_len(RAM).expect("size of guest memory");
        let map = map(&ram);
        let mut space = DmaSpace::new(DmaLimits::default(), Arc::new(|| {}));
        space.map(0, RAM, Rights::READ_WRITE, 0, Some(ram.as_fd())).expect("DMA map");
        let limits = CopyLimits { mssrl: u16::MAX, mcl: u32::MAX, msrc: u8::MAX };
        let ns = Namespace::new(1, disk, lbads, limits, Identity::default())
            .with_policy(CopyPolicy { method, ..CopyPolicy::default() });
        let namespaces = Namespaces::new(vec![ns], 1);
        let pairs = [1, 2].map(Pair::new);
        let device = match host {
            Host::Lone => {
                let engine = Lane::new(engine).expect("engine");
                let lone =
                    Lone::new(namespaces, space.epoch(), engine, pairs[0].sq(), pairs[0].cq(), ENTRIES);
                Device::Lone(Box::new(lone))
            }
            Host::Threaded => threaded(namespaces, &space, engine),
        };
        let mut this = Self { device, ram, map, _space: space, admin: (0, 0), pairs };
        if host == Host::Threaded {
            this.enable();
        }
        this
    }

    fn enable(&mut self) {
        self.register(0x24, &0x001f_001f_u32.to_le_bytes());
        self.register(0x28, &ASQ.to_le_bytes());
        self.register(0x30, &ACQ.to_le_bytes());
        self.register(0x14, &0x0046_0001_u32.to_le_bytes());
        for (qid, page) in [(1, 0), (2, PAGE)] {
            let size = u32::from(ENTRIES - 1) << 16 | qid;
            self.admin_command(0x05, CQ + page, size, 1 << 16 | 3); // contiguous, interrupt vector 1
            self.admin_command(0x01, SQ + page, size, qid << 16 | 1);
        }
    }

    fn controller(&mut self) -> &mut Controller {
        match &mut self.device {
            Device::Threaded(controller, _) => controller,
            Device::Lone(_) => panic!("only a worker with a thread has a controller"),
        }
    }

    fn register(&mut self, offset: u64, bytes: &[u8]) {
        self.controller().bar_write(offset, bytes);
    }

    fn admin_command(&mut self, opc: u8, prp1: u64, cdw10: u32, cdw11: u32) {
        let mut sqe = [0; 64];
        sqe[0] = opc;
        sqe[24..32].copy_from_slice(&prp1.to_le_bytes());
        sqe[40..44].copy_from_slice(&cdw10.to_le_bytes());
        sqe[44..48].copy_from_slice(&cdw11.to_le_bytes());
        let (tail, head) = self.admin;
        self.ram.write_all_at(&sqe, ASQ + 64 * u64::from(tail)).expect("admin command");
        self.admin = (tail + 1, head + 1);
        self.register(0x1000, &u32::from(tail + 1).to_le_bytes());
        loop {
            self.controller().on_messages();
            let status = self.status(ACQ, head);
            if status & 1 == 1 {
                assert_eq!(status >> 1, 0, "admin command {opc:#x}");
                return;
            }
        }
    }

    /// Runs all of `copies`, `depth` in flight; panics unless every one succeeds.
    pub fn run<'a>(&mut self, depth: u16, copies: impl IntoIterator<Item = &'a Copy>) {
        let mut copies = copies.into_iter();
        let mut free: Vec<u16> = (0..depth).collect();
        let mut in_flight = 0;
        loop {
            let mut rung = false;
            while let Some(slot) = free.pop() {
                let Some(copy) = copies.next() else {
                    free.push(slot);
                    break;
                };
                self.submit(slot, copy);
                in_flight += 1;
                rung = true;
            }
            if rung {
                self.ring(COPIES);
            }
            if in_flight == 0 {
                return;
            }
            let before = in_flight;
            while let Some(cid) = self.take(COPIES) {
                free.push(cid);
                in_flight -= 1;
            }
            if in_flight < before {
                self.acknowledge(COPIES);
            } else {
                self.wait();
            }
        }
    }

    /// Reads single blocks of 4 KiB at random places among `blocks`, `depth` in flight, and copies meanwhile if
    /// that is asked for.
    pub fn reads(&mut self, depth: u16, blocks: u64, until: &Until<'_>) -> Reads {
        let (copies, span) = match until {
            Until::Elapsed(span) => (&[][..], *span),
            Until::Copied(copies) => (*copies, Duration::ZERO),
        };
        let mut copies = copies.iter();
        let mut copying = self.start_next(&mut copies);
        let mut free: Vec<u16> = (0..depth).collect();
        let start = Instant::now();
        let mut sent = vec![start; usize::from(depth)];
        let mut latencies = Vec::new();
        let mut over = None;
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        loop {
            if over.is_none() && !copying && start.elapsed() >= span {
                over = Some(start.elapsed());
            }
            match over {
                Some(elapsed) if free.len() == usize::from(depth) => return Reads { latencies, elapsed },
                None if !free.is_empty() => {
                    while let Some(slot) = free.pop() {
                        dice = dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                        sent[usize::from(slot)] = Instant::now();
                        self.submit_read(slot, (dice >> 24) % blocks);
                    }
                    self.ring(READS);
                }
                _ => {}
            }
            let before = free.len();
            while let Some(slot) = self.take(READS) {
                free.push(slot);
                if over.is_none() {
                    latencies.push(sent[usize::from(slot)].elapsed());
                }
            }
            if free.len() > before {
                self.acknowledge(READS);
            }
            if self.take(COPIES).is_some() {
                self.acknowledge(COPIES);
                copying = self.start_next(&mut copies);
            } else if free.len() == before {
                self.wait();
            }
        }
    }

    fn start_next<'a>(&mut self, copies: &mut impl Iterator<Item = &'a Copy>) -> bool {
        let Some(copy) = copies.next() else { return false };
        self.submit(0, copy);
        self.ring(COPIES);
        true
    }

    fn ring(&mut self, pair: usize) {
        let pair = &self.pairs[pair];
        match &mut self.device {
            Device::Lone(lone) => lone.ring(pair.tail),
            Device::Threaded(controller, _) => {
                controller.bar_write(pair.doorbell(), &u32::from(pair.tail).to_le_bytes());
            }
        }
    }

    fn acknowledge(&mut self, pair: usize) {
        let pair = &self.pairs[pair];
        match &mut self.device {
            Device::Lone(lone) => lone.acknowledge(pair.head),
            Device::Threaded(controller, _) => {
                controller.bar_write(pair.doorbell() + 4, &u32::from(pair.head).to_le_bytes());
            }
        }
    }

    /// Until something may have completed on either queue, or has since it was last looked at.
    fn wait(&mut self) {
        match &mut self.device {
            Device::Lone(lone) => lone.work(),
            Device::Threaded(_, bell) => {
                let _ = rustix::io::read(&bell.0, &mut [0; 8]);
            }
        }
    }

    fn submit(&mut self, slot: u16, copy: &Copy) {
        let list = LISTS + u64::from(slot) * LIST;
        let mut bytes = vec![0; copy.ranges.len() * 32];
        for (entry, (slba, nlb)) in bytes.chunks_exact_mut(32).zip(&copy.ranges) {
            entry[8..16].copy_from_slice(&slba.to_le_bytes());
            entry[16..18].copy_from_slice(&((nlb - 1) as u16).to_le_bytes());
        }
        self.put(list, &bytes);
        let mut sqe = [0; 64];
        sqe[0] = 0x19;
        sqe[2..4].copy_from_slice(&slot.to_le_bytes());
        sqe[4] = 1;
        sqe[24..32].copy_from_slice(&list.to_le_bytes());
        // 256 ranges are two pages, which PRP2 names as the second page.
        sqe[32..40].copy_from_slice(&(list + 4096).to_le_bytes());
        sqe[40..48].copy_from_slice(&copy.sdlba.to_le_bytes());
        sqe[48..52].copy_from_slice(&(copy.ranges.len() as u32 - 1).to_le_bytes());
        self.push(COPIES, &sqe);
    }

    fn submit_read(&mut self, slot: u16, slba: u64) {
        let mut sqe = [0; 64];
        sqe[0] = 0x02;
        sqe[2..4].copy_from_slice(&slot.to_le_bytes());
        sqe[4] = 1;
        sqe[24..32].copy_from_slice(&(PAGES + PAGE * u64::from(slot)).to_le_bytes());
        sqe[40..48].copy_from_slice(&slba.to_le_bytes());
        self.push(READS, &sqe);
    }

    fn push(&mut self, pair: usize, sqe: &[u8; 64]) {
        let (sq, tail) = (self.pairs[pair].sq(), self.pairs[pair].tail);
        self.put(sq + 64 * u64::from(tail), sqe);
        self.pairs[pair].tail = (tail + 1) % ENTRIES;
    }

    fn take(&mut self, pair: usize) -> Option<u16> {
        let (cq, head) = (self.pairs[pair].cq(), self.pairs[pair].head);
        let status = self.status(cq, head);
        let pair = &mut self.pairs[pair];
        if (status & 1 == 1) != pair.phase {
            return None;
        }
        assert_eq!(status >> 1, 0, "a command failed");
        pair.head = (head + 1) % ENTRIES;
        pair.phase ^= pair.head == 0;
        Some(self.half(cq + 16 * u64::from(head) + 12))
    }

    fn status(&self, cq: u64, index: u16) -> u16 {
        self.half(cq + 16 * u64::from(index) + 14)
    }

    fn half(&self, at: u64) -> u16 {
        // SAFETY: inside the mapping of RAM bytes, aligned to 2; the worker writes it atomically as part of a dword.
        unsafe { AtomicU16::from_ptr(self.map.add(at as usize).cast()) }.load(Ordering::Acquire)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= RAM);
        // SAFETY: inside the mapping; the worker reads it only after the doorbell.
        unsafe { self.map.add(at as usize).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Device::Threaded(controller, _) = &mut self.device {
            controller.stop(Instant::now() + Duration::from_secs(5));
        }
    }
}

fn threaded(namespaces: Namespaces, space: &DmaSpace, engine: LaneKind) -> Device {
    let config = ControllerConfig {
        serial: "BENCH".into(),
        model: "bench".into(),
        firmware: "1".into(),
        subnqn: "nqn.2019-08.org.bench:1".into(),
        vid: 1,
        ssvid: 1,
        mdts: 7,
        max_ioqpairs: 2,
        mqes: 1023,
        aerl: 3,
        vectors: 2,
        cdfe: 0,
        ocfs: 0xf,
        iothreads: 1,
        doorbell_buffers: true,
        map_doorbells: false,
        poll: Poll::Adaptive,
    };
    let factory: vfio_user_nvme::nvme_ctrl::LaneFactory = Arc::new(move || Lane::new(engine));
    let bell = Arc::new(Bell(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd")));
    let wake = Arc::new(|| {});
    let seat = Subsystem::new(namespaces, false).join(wake.clone()).expect("a seat");
    let mut controller = Controller::new(config, seat, space.epoch(), bell.clone(), &factory.into(), wake)
        .expect("controller");
    controller.set_bus_master(true);
    Device::Threaded(Box::new(controller), bell)
}

/// BENCH_METHOD, as `copy_method=`.
pub fn method() -> Method {
    match std::env::var("BENCH_METHOD").as_deref() {
        Ok("reflink") => Method::Reflink,
        Ok("offload") => Method::Offload,
        Ok("bounce") => Method::Bounce,
        _ => Method::Auto,
    }
}

fn memfd() -> OwnedFd {
    rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd")
}

fn map(file: &File) -> *mut u8 {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    // SAFETY: a fresh mapping of our own file, kept until the process ends.
    unsafe {
        mmap(
            std::ptr::null_mut(),
            RAM as usize,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            file,
            0,
        )
    }
    .expect("mmap")
    .cast()
}
