//! Commands on a running controller: registers, admin and I/O queues, real workers, memory namespaces.
//!
//! Whatever the commands are, each of them completes exactly once and the controller stays well. That holds because
//! nothing the device can write to ever contains an address of the queues: addresses are folded into a window of data
//! pages, PRP and SGL lists lie in memory the device cannot write.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use vfio_user_nvme::disk::MemoryDisk;
use vfio_user_nvme::disk::{Lane, LaneKind};
use vfio_user_nvme::memory::{DmaLimits, DmaSpace, Rights};
use vfio_user_nvme::namespace::{CopyLimits, Identity, Namespace, Namespaces};
use vfio_user_nvme::nvme_ctrl::{Controller, ControllerConfig, InterruptSink, Poll, WorkerParts};
use vfio_user_nvme::subsystem::Subsystem;

/// Data pages, written by the device.
const DATA: u64 = 0x10_0000;
const DATA_LEN: u64 = 0x1_0000;
/// Lists, right behind the data: read only. The window of addresses ends two pages behind them.
const LISTS: u64 = DATA + DATA_LEN;
const LISTS_LEN: u64 = 0x4000;
const WINDOW: u64 = DATA_LEN + LISTS_LEN + 0x2000;
/// Queues, far away: admin SQ and CQ, I/O SQ and CQ, one page each.
const QUEUES: u64 = 0x7777_0000_0000;
const FILE: u64 = DATA_LEN + LISTS_LEN + 0x4000;

const ENTRIES: u16 = 32;
const SQE: usize = 64;
const LIMIT: Duration = Duration::from_secs(5);

struct NoInterrupts;

impl InterruptSink for NoInterrupts {
    fn raise(&self, _: u16) {}
}

struct Rig {
    controller: Controller,
    file: OwnedFd,
    space: DmaSpace,
    /// Next slot of admin and I/O SQ.
    tails: [u16; 2],
    /// Next slot of the CQs, and the phase expected there.
    heads: [(u16, bool); 2],
}

fn page(n: u64) -> u64 {
    DATA_LEN + LISTS_LEN + n * 0x1000
}

impl Rig {
    fn new() -> Rig {
        let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, FILE).expect("memfd");
        let mut space = DmaSpace::new(DmaLimits::default(), Arc::new(|| ()));
        for (iova, len, rights, offset) in [
            (DATA, DATA_LEN, Rights::READ_WRITE, 0),
            (LISTS, LISTS_LEN, Rights::READ_ONLY, DATA_LEN),
            (QUEUES, 0x4000, Rights::READ_WRITE, page(0)),
        ] {
            space.map(iova, len, rights, offset, Some(file.as_fd())).expect("a good map");
        }
        let copy = CopyLimits { mssrl: 1000, mcl: 4000, msrc: 60 };
        let ns = |nsid, lbads| {
            let image = MemoryDisk::new(1 << 20).expect("memory");
            Namespace::new(nsid, Arc::new(image), lbads, copy, Identity::default())
        };
        let config = ControllerConfig {
            serial: "fuzz".into(),
            model: "fuzz".into(),
            firmware: "1".into(),
            subnqn: "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000000".into(),
            vid: 0x1234,
            ssvid: 0x1234,
            mdts: 4,
            max_ioqpairs: 4,
            mqes: 1023,
            aerl: 3,
            vectors: 5,
            cdfe: 0xc,
            ocfs: 0xf,
            iothreads: 1,
            // The commands would move the queues' doorbells into data pages.
            doorbell_buffers: false,
            map_doorbells: false,
            poll: Poll::Adaptive,
        };
        let namespaces = Namespaces::new(vec![ns(1, 9), ns(2, 12), ns(4, 9)], 5);
        let seat = Subsystem::new(namespaces, false).join(Arc::new(|| ())).expect("a seat");
        let controller = Controller::new(
            config,
            seat,
            space.epoch(),
            Arc::new(NoInterrupts),
            &WorkerParts { lanes: Arc::new(|| Lane::new(LaneKind::Threads)), laboratory: Arc::default() },
            Arc::new(|| ()),
        )
        .expect("a controller");
        Rig { controller, file, space, tails: [0; 2], heads: [(0, true); 2] }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        assert_eq!(pwrite(&self.file, bytes, offset), Ok(bytes.len()));
    }

    fn bar(&mut self, at: u64, value: u32) {
        self.controller.bar_write(at, &value.to_le_bytes());
    }

    fn csts(&self) -> u32 {
        let mut b = [0; 4];
        self.controller.bar_read(0x1c, &mut b);
        u32::from_le_bytes(b)
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Rig) -> bool) {
        let start = Instant::now();
        let mut turns = 0;
        loop {
            self.controller.on_messages();
            if done(self) {
                return;
            }
            turns += 1;
            if turns > 50 {
                std::thread::yield_now();
            }
            assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        }
    }

    /// Function reset, enable, one I/O queue pair.
    fn start(&mut self) {
        let epoch = self.space.begin_epoch();
        self.controller.reset(epoch);
        self.controller.set_bus_master(true);
        self.until("reset", |rig| rig.controller.is_quiet());
        self.write(page(0), &[0; 0x4000]);
        self.tails = [0; 2];
        self.heads = [(0, true); 2];
        let n = u32::from(ENTRIES - 1);
        self.bar(0x24, n << 16 | n);
        for (at, v) in [(0x28, QUEUES), (0x30, QUEUES + 0x1000)] {
            self.bar(at, v as u32);
            self.bar(at + 4, (v >> 32) as u32);
        }
        self.bar(0x14, 0x0046_0001);
        self.until("enable", |rig| rig.csts() == 1);
        for (opcode, place, dw11) in [(0x05, QUEUES + 0x3000, 1), (0x01, QUEUES + 0x2000, 1 << 16 | 1)] {
            let mut sqe = [0; SQE];
            sqe[0] = opcode;
            sqe[24..32].copy_from_slice(&place.to_le_bytes());
            sqe[40..44].copy_from_slice(&(n << 16 | 1).to_le_bytes());
            sqe[44..48].copy_from_slice(&u32::to_le_bytes(dw11));
            self.submit(0, sqe, 0xfff0);
            self.ring(0);
            let mut status = None;
            self.until("queue creation", |rig| {
                status = rig.take(0);
                status.is_some()
            });
            assert_eq!(status, Some((0xfff0, 0)));
        }
    }

    fn submit(&mut self, queue: usize, mut sqe: [u8; SQE], cid: u16) {
        sqe[2..4].copy_from_slice(&cid.to_le_bytes());
        let slot = self.tails[queue];
        self.write(page(2 * queue as u64) + SQE as u64 * u64::from(slot), &sqe);
        self.tails[queue] = (slot + 1) % ENTRIES;
    }

    fn ring(&mut self, queue: usize) {
        let tail = self.tails[queue];
        self.bar(0x1000 + 8 * queue as u64, tail.into());
    }

    /// (CID, status) of the next completion.
    fn take(&mut self, queue: usize) -> Option<(u16, u16)> {
        let (head, phase) = self.heads[queue];
        let mut e = [0; 16];
        let at = page(2 * queue as u64 + 1) + 16 * u64::from(head);
        assert_eq!(pread(&self.file, &mut e, at), Ok(16));
        let word = u16::from_le_bytes([e[14], e[15]]);
        if (word & 1 != 0) != phase {
            return None;
        }
        let next = (head + 1) % ENTRIES;
        self.heads[queue] = (next, phase ^ (next == 0));
        self.bar(0x1004 + 8 * queue as u64, next.into());
        assert_eq!(u16::from_le_bytes([e[10], e[11]]), queue as u16, "SQID");
        Some((u16::from_le_bytes([e[12], e[13]]), word >> 1))
    }
}

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

/// The addresses in a command's data pointer, folded into the window.
fn fold(bytes: &mut [u8]) {
    let mut v = [0; 8];
    v.copy_from_slice(bytes);
    let v = DATA + u64::from_le_bytes(v) % WINDOW;
    bytes.copy_from_slice(&v.to_le_bytes());
}

/// Bytes 0 and 1: how often the doorbell is rung, and which commands go to the admin queue. Then up to 24 SQEs of 64
/// bytes; byte 3 of each, the place of the CID, is a hint what to make of it. The rest is lists.
pub fn run(data: &[u8]) {
    if data.len() < 2 + SQE {
        return;
    }
    let (how, rest) = data.split_at(2);
    let count = (rest.len() / SQE).min(24);
    let (sqes, lists) = rest.split_at(count * SQE);
    let lists = [lists, &[0; 64]].concat();
    let mut memory = lists.repeat((LISTS_LEN as usize).div_ceil(lists.len()));
    memory.truncate(LISTS_LEN as usize);
    for (i, word) in memory.chunks_exact_mut(8).enumerate() {
        // The second half holds SGL descriptors: only their addresses are addresses.
        if i < LISTS_LEN as usize / 16 {
            fold(word);
            word[0] &= if i % 64 == 3 { 0xff } else { 0 };
        } else if i % 2 == 0 {
            fold(word);
        } else {
            // Short lengths, and no stray address.
            word[2..7].fill(0);
        }
    }
    RIG.with_borrow_mut(|rig| {
        rig.start();
        rig.write(DATA_LEN, &memory);
        let mut waiting = [Vec::new(), Vec::new()];
        let mut events = 0;
        for (i, raw) in sqes.chunks_exact(SQE).enumerate() {
            let mut sqe = [0; SQE];
            sqe.copy_from_slice(raw);
            let hint = sqe[3];
            let queue = usize::from(hint & 3 != 0);
            if hint & 4 == 0 {
                // No fused command, PRP or SGL.
                sqe[1] &= 0x40;
                sqe[4] &= 7;
                sqe[5..8].fill(0);
            }
            if hint & 8 == 0 {
                // Few blocks, near the start.
                sqe[41] &= 7;
                sqe[42..48].fill(0);
                sqe[49] &= 0x2;
            }
            fold(&mut sqe[24..32]);
            if sqe[1] >> 6 == 0 {
                fold(&mut sqe[32..40]);
            }
            if queue == 0 {
                match sqe[0] {
                    // Nobody takes our queues away; others are made, but never rung.
                    0x00 | 0x04 if sqe[40] == 1 && sqe[41] == 0 => sqe[40] = 2,
                    // An event request waits, as it should.
                    0x0c => {
                        events += 1;
                        if events > 4 {
                            continue;
                        }
                    }
                    _ => {}
                }
            }
            let cid = i as u16 | 0x100 << (hint & 3);
            rig.submit(queue, sqe, cid);
            waiting[queue].push((cid, queue == 0 && sqe[0] == 0x0c));
            if how[0] & 1 == 0 || hint & 0x10 != 0 {
                rig.ring(queue);
            }
        }
        rig.ring(0);
        rig.ring(1);
        rig.until("completions", |rig| {
            for (queue, list) in waiting.iter_mut().enumerate() {
                while let Some((cid, status)) = rig.take(queue) {
                    let at = list.iter().position(|w| w.0 == cid);
                    let at = at.unwrap_or_else(|| panic!("CID {cid:#x} {status:#x}: nobody waits for it"));
                    list.remove(at);
                }
            }
            waiting.iter().flatten().all(|w| w.1)
        });
        assert_eq!(rig.csts(), 1, "CSTS");
    });
}
