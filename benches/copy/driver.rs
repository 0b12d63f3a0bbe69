//! An NVMe host in this process: guest memory in a memfd, doorbells by a call.
//!
//! It comes in two kinds. Where the time of Copies is measured, host and worker are one thread which is now
//! the one, now the other: whom their wake-ups of each other would cost more than a short Copy, and how much,
//! depends on the host and is not what is asked (`vfio-user-nvme-bench --rw copy` measures that). Where reads
//! run beside a Copy the worker has its own thread, and the host sleeps until it is interrupted.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_host::ctrl::{ADMIN_ENTRIES, CC_EN, CC_LINUX, reg};
use nvme_host::nvme::{self, Range, io};
use nvme_host::ring::{CqRing, SqRing};
use nvme_host::{Memory, Rng, Sqe};
use rustix::event::EventfdFlags;
use vfio_user_nvme::disk::SharedDisk;
use vfio_user_nvme::disk::{Lane, LaneKind};
use vfio_user_nvme::memory::{DmaLimits, DmaSpace, Rights};
use vfio_user_nvme::namespace::{CopyLimits, CopyPolicy, Identity, Method, Namespace, Namespaces};
use vfio_user_nvme::nvme_ctrl::{Controller, ControllerConfig, InterruptSink, Lone, Poll};
use vfio_user_nvme::subsystem::Subsystem;

const RAM: usize = 16 << 20;
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
    /// Guest memory, at guest address 0.
    memory: Memory,
    _space: DmaSpace,
    pairs: [Pair; 2],
    dice: Rng,
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
    /// Register of the submission queue's doorbell; the completion queue's is 4 bytes on.
    doorbell: u64,
    sq: SqRing,
    cq: CqRing,
}

impl Pair {
    fn new(qid: u16) -> Self {
        let page = PAGE * u64::from(qid - 1);
        let (sq, cq) = (SqRing::new(SQ + page, ENTRIES), CqRing::new(CQ + page, ENTRIES));
        Self { doorbell: reg::DOORBELLS + 8 * u64::from(qid), sq, cq }
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
        let (memory, file) = Memory::shared(RAM, false).expect("guest memory");
        let mut space = DmaSpace::new(DmaLimits::default(), Arc::new(|| {}));
        space.map(0, RAM as u64, Rights::READ_WRITE, 0, Some(file.as_fd())).expect("DMA map");
        let limits = CopyLimits { mssrl: u16::MAX, mcl: u32::MAX, msrc: u8::MAX };
        let ns = Namespace::new(1, disk, lbads, limits, Identity::default())
            .with_policy(CopyPolicy { method, ..CopyPolicy::default() });
        let namespaces = Namespaces::new(vec![ns], 1);
        let pairs = [1, 2].map(Pair::new);
        let device = match host {
            Host::Lone => {
                let engine = Lane::new(engine).expect("engine");
                let [Pair { sq, cq, .. }, _] = &pairs;
                let lone = Lone::new(namespaces, space.epoch(), engine, sq.base, cq.base, ENTRIES);
                Device::Lone(Box::new(lone))
            }
            Host::Threaded => threaded(namespaces, &space, engine),
        };
        let mut this = Self { device, memory, _space: space, pairs, dice: Rng::numbered(0) };
        if host == Host::Threaded {
            this.enable();
        }
        this
    }

    fn enable(&mut self) {
        let last = u32::from(ADMIN_ENTRIES - 1);
        self.register(reg::AQA, &(last << 16 | last).to_le_bytes());
        self.register(reg::ASQ, &ASQ.to_le_bytes());
        self.register(reg::ACQ, &ACQ.to_le_bytes());
        self.register(reg::CC, &(CC_LINUX | CC_EN).to_le_bytes());
        let mut admin = (SqRing::new(ASQ, ADMIN_ENTRIES), CqRing::new(ACQ, ADMIN_ENTRIES));
        for qid in [1, 2] {
            let Pair { sq, cq, .. } = &self.pairs[usize::from(qid) - 1];
            let create_cq = nvme_host::Host::create_cq_sqe(qid, ENTRIES, cq.base, Some(1));
            let create_sq = nvme_host::Host::create_sq_sqe(qid, ENTRIES, sq.base, qid);
            self.admin_command(&mut admin, create_cq);
            self.admin_command(&mut admin, create_sq);
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

    fn admin_command(&mut self, (sq, cq): &mut (SqRing, CqRing), sqe: Sqe) {
        sq.push(&self.memory, &sqe.0);
        self.register(reg::DOORBELLS, &u32::from(sq.tail).to_le_bytes());
        loop {
            self.controller().on_messages();
            if let Some(done) = cq.take(&self.memory) {
                assert_eq!(done.status(), 0, "an admin command failed");
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

    /// Reads single blocks of 4 KiB at random places among `blocks`, `depth` in flight, and copies meanwhile
    /// if that is asked for.
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
        loop {
            if over.is_none() && !copying && start.elapsed() >= span {
                over = Some(start.elapsed());
            }
            match over {
                Some(elapsed) if free.len() == usize::from(depth) => return Reads { latencies, elapsed },
                None if !free.is_empty() => {
                    while let Some(slot) = free.pop() {
                        let slba = self.dice.below(blocks);
                        sent[usize::from(slot)] = Instant::now();
                        self.submit_read(slot, slba);
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
            Device::Lone(lone) => lone.ring(pair.sq.tail),
            Device::Threaded(controller, _) => {
                controller.bar_write(pair.doorbell, &u32::from(pair.sq.tail).to_le_bytes());
            }
        }
    }

    fn acknowledge(&mut self, pair: usize) {
        let pair = &self.pairs[pair];
        match &mut self.device {
            Device::Lone(lone) => lone.acknowledge(pair.cq.head),
            Device::Threaded(controller, _) => {
                controller.bar_write(pair.doorbell + 4, &u32::from(pair.cq.head).to_le_bytes());
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
        let ranges = copy.ranges.iter().map(|(slba, blocks)| Range::new(*slba, *blocks).bytes(0));
        for (at, range) in (list as usize..).step_by(32).zip(ranges) {
            self.memory.write_array(at, &range);
        }
        // 256 ranges are two pages, which PRP2 names as the second page.
        let sqe = nvme::copy(1, copy.sdlba, copy.ranges.len(), 0).cid(slot).prp(list, list + PAGE);
        self.pairs[COPIES].sq.push(&self.memory, &sqe.0);
    }

    fn submit_read(&mut self, slot: u16, slba: u64) {
        let data = PAGES + PAGE * u64::from(slot);
        let sqe = Sqe::new(io::READ).cid(slot).nsid(1).lba(slba, 1).prp(data, 0);
        self.pairs[READS].sq.push(&self.memory, &sqe.0);
    }

    fn take(&mut self, pair: usize) -> Option<u16> {
        let done = self.pairs[pair].cq.take(&self.memory)?;
        assert_eq!(done.status(), 0, "a command failed");
        Some(done.cid())
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
