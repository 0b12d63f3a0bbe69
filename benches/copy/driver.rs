//! An NVMe host in this process: guest memory in a memfd, doorbells by a call.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::event::EventfdFlags;
use vfio_user_nvme::backend::SharedBackend;
use vfio_user_nvme::backend::engine::{self, EngineKind};
use vfio_user_nvme::memory::{DmaLimits, DmaSpace, Rights};
use vfio_user_nvme::namespace::{CopyLimits, CopyPolicy, Identity, Method, Namespace, Namespaces};
use vfio_user_nvme::nvme_ctrl::{Controller, ControllerConfig, InterruptSink, Poll};

const RAM: u64 = 16 << 20;
const ASQ: u64 = 0;
const ACQ: u64 = 0x1000;
const SQ: u64 = 0x2000;
const CQ: u64 = 0x4000;
/// Range lists, 16 KiB for each command in flight.
const LISTS: u64 = 0x10_0000;
const LIST: u64 = 16 << 10;
const ENTRIES: u16 = 64;

/// Interrupts as a client gets them: an eventfd. A host that span instead would take a core from the device.
struct Bell(OwnedFd);

impl InterruptSink for Bell {
    fn raise(&self, vector: u16) {
        if vector == 1 {
            let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        }
    }
}

/// A controller with one queue pair.
pub struct Driver {
    controller: Controller,
    ram: File,
    /// The memfd mapped: completions are seen here as a guest would see them.
    map: *mut u8,
    _space: DmaSpace,
    bell: Arc<Bell>,
    admin: (u16, u16),
    tail: u16,
    head: u16,
    phase: bool,
}

/// One Copy: (source block, blocks) and the destination block.
pub struct Copy {
    pub ranges: Vec<(u64, u32)>,
    pub sdlba: u64,
}

impl Driver {
    /// A controller whose namespace 1 is `backend`.
    pub fn new(backend: SharedBackend, lbads: u8, engine: EngineKind) -> Self {
        let ram = File::from(memfd());
        ram.set_len(RAM).expect("size of guest memory");
        let map = map(&ram);
        let mut space = DmaSpace::new(DmaLimits::default(), Arc::new(|| {}));
        let fd = OwnedFd::from(ram.try_clone().expect("descriptor"));
        space.map(0, RAM, Rights::READ_WRITE, 0, Some(fd)).expect("DMA map");
        let limits = CopyLimits { mssrl: u16::MAX, mcl: u32::MAX, msrc: u8::MAX };
        let ns = Namespace::new(1, backend, lbads, limits, Identity::default())
            .with_policy(CopyPolicy { method: method(), ..CopyPolicy::default() });
        let config = ControllerConfig {
            serial: "BENCH".into(),
            model: "bench".into(),
            firmware: "1".into(),
            subnqn: "nqn.2019-08.org.bench:1".into(),
            vid: 1,
            ssvid: 1,
            mdts: 7,
            max_ioqpairs: 1,
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
        let factory: vfio_user_nvme::nvme_ctrl::EngineFactory = Arc::new(move || engine::create(engine));
        let bell = Arc::new(Bell(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd")));
        let controller = Controller::new(
            config,
            Namespaces::new(vec![ns], 1),
            space.shared(),
            bell.clone(),
            &factory,
            Arc::new(|| {}),
        )
        .expect("controller");
        let mut this =
            Self { controller, ram, map, _space: space, bell, admin: (0, 0), tail: 0, head: 0, phase: true };
        this.controller.bar_write(0x24, &0x001f_001f_u32.to_le_bytes());
        this.controller.bar_write(0x28, &ASQ.to_le_bytes());
        this.controller.bar_write(0x30, &ACQ.to_le_bytes());
        this.controller.bar_write(0x14, &0x0046_0001_u32.to_le_bytes());
        let size = u32::from(ENTRIES - 1) << 16 | 1;
        this.admin_command(0x05, CQ, size, 1 << 16 | 3); // contiguous, interrupt vector 1
        this.admin_command(0x01, SQ, size, 1 << 16 | 1);
        this
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
        self.controller.bar_write(0x1000, &u32::from(tail + 1).to_le_bytes());
        loop {
            self.controller.on_messages();
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
                self.controller.bar_write(0x1008, &u32::from(self.tail).to_le_bytes());
            }
            if in_flight == 0 {
                return;
            }
            let before = in_flight;
            while let Some(cid) = self.take() {
                free.push(cid);
                in_flight -= 1;
            }
            if in_flight < before {
                self.controller.bar_write(0x100c, &u32::from(self.head).to_le_bytes());
            } else {
                let _ = rustix::io::read(&self.bell.0, &mut [0; 8]);
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
        self.put(SQ + 64 * u64::from(self.tail), &sqe);
        self.tail = (self.tail + 1) % ENTRIES;
    }

    fn take(&mut self) -> Option<u16> {
        let status = self.status(CQ, self.head);
        if (status & 1 == 1) != self.phase {
            return None;
        }
        assert_eq!(status >> 1, 0, "Copy failed");
        let cid = self.half(CQ + 16 * u64::from(self.head) + 12);
        self.head = (self.head + 1) % ENTRIES;
        self.phase ^= self.head == 0;
        Some(cid)
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
        self.controller.stop(std::time::Instant::now() + std::time::Duration::from_secs(5));
    }
}

/// BENCH_METHOD, as `copy_method=`.
fn method() -> Method {
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
