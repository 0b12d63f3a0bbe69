//! An NVMe host beside a worker that has no thread: what a command costs, and nothing of wake-ups.
//!
//! Used by `instructions` and `micro`.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vfio_user_nvme::disk::SharedDisk;
use vfio_user_nvme::disk::{Lane, LaneKind};
use vfio_user_nvme::memory::{DmaLimits, DmaMap, DmaSpace, Rights};
use vfio_user_nvme::namespace::{CopyLimits, Identity, Namespace, Namespaces};
use vfio_user_nvme::nvme_ctrl::Lone;

pub const RAM: u64 = 16 << 20;
pub const SQ: u64 = 0x1_0000;
pub const CQ: u64 = 0x2_0000;
pub const ENTRIES: u16 = 256;
/// Data of the commands: a page for each.
pub const DATA: u64 = 0x10_0000;
/// Opcodes.
pub const READ: u8 = 0x02;
pub const WRITE: u8 = 0x01;

/// Guest memory at guest address 0, with the table that maps it.
pub struct Guest {
    pub ram: File,
    pub space: DmaSpace,
}

impl Guest {
    pub fn new() -> Self {
        let fd = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
        let ram = File::from(fd);
        ram.set_len(RAM).expect("size of guest memory");
        // No page of it is touched for the first time while somebody counts.
        for at in (0..RAM).step_by(1 << 20) {
            ram.write_all_at(&vec![0xa5; 1 << 20], at).expect("guest memory");
        }
        let mut space = DmaSpace::new(DmaLimits::default(), Arc::new(|| {}));
        space.map(0, RAM, Rights::READ_WRITE, 0, Some(ram.as_fd())).expect("DMA map");
        Self { ram, space }
    }

    /// The table as it is now.
    #[allow(dead_code, reason = "not every benchmark looks")]
    pub fn map(&self) -> Arc<DmaMap> {
        self.space.epoch().load_full()
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write_all_at(bytes, at).expect("guest memory");
    }

    fn half(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.ram.read_exact_at(&mut bytes, at).expect("guest memory");
        u16::from_le_bytes(bytes)
    }
}

/// A host with one queue pair on one namespace of 4 KiB blocks.
pub struct Host {
    pub guest: Guest,
    worker: Lone,
    blocks: u64,
    tail: u16,
    head: u16,
    phase: u16,
    dice: u64,
}

impl Host {
    pub fn new(disk: SharedDisk, kind: LaneKind) -> Self {
        let guest = Guest::new();
        let limits = CopyLimits { mssrl: u16::MAX, mcl: u32::MAX, msrc: u8::MAX };
        let ns = Namespace::new(1, disk, 12, limits, Identity::default());
        let blocks = ns.facts.nsze;
        guest.put(CQ, &[0; 16 * ENTRIES as usize]);
        let lane = Lane::new(kind).expect("lane");
        let namespaces = Namespaces::new(vec![ns], 1);
        let worker = Lone::new(namespaces, guest.space.epoch(), lane, SQ, CQ, ENTRIES);
        Self { guest, worker, blocks, tail: 0, head: 0, phase: 1, dice: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Submits `depth` commands of one block each, at scattered blocks, and rings.
    pub fn submit(&mut self, opc: u8, depth: u16) {
        for slot in 0..depth {
            self.dice = self.dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let slba = (self.dice >> 24) % self.blocks;
            let mut sqe = [0; 64];
            sqe[0] = opc;
            sqe[2..4].copy_from_slice(&slot.to_le_bytes());
            sqe[4] = 1;
            sqe[24..32].copy_from_slice(&(DATA + 4096 * u64::from(slot)).to_le_bytes());
            sqe[40..48].copy_from_slice(&slba.to_le_bytes());
            self.guest.put(SQ + 64 * u64::from(self.tail), &sqe);
            self.tail = (self.tail + 1) % ENTRIES;
        }
        self.worker.ring(self.tail);
    }

    /// One turn of the worker.
    pub fn turn(&mut self) -> bool {
        self.worker.turn()
    }

    /// Takes the completions there are and acknowledges them. Panics on a failed command.
    pub fn reap(&mut self) -> u16 {
        let mut taken = 0;
        loop {
            let status = self.guest.half(CQ + 16 * u64::from(self.head) + 14);
            if status & 1 != self.phase {
                self.worker.acknowledge(self.head);
                return taken;
            }
            assert_eq!(status >> 1, 0, "a command failed");
            self.head = (self.head + 1) % ENTRIES;
            self.phase ^= u16::from(self.head == 0);
            taken += 1;
        }
    }
}
