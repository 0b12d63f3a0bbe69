//! An NVMe host beside a worker that has no thread: what a command costs, and nothing of wake-ups.
//!
//! Used by `instructions` and `micro`.

use std::os::fd::AsFd;
use std::sync::Arc;

use nvme_host::nvme::io;
use nvme_host::ring::{CqRing, SqRing};
use nvme_host::{Memory, Rng, Sqe};
use vfio_user_nvme::disk::SharedDisk;
use vfio_user_nvme::disk::{Lane, LaneKind};
use vfio_user_nvme::memory::{DmaLimits, DmaMap, DmaSpace, Rights};
use vfio_user_nvme::namespace::{CopyLimits, Identity, Namespace, Namespaces};
use vfio_user_nvme::nvme_ctrl::Lone;

pub const RAM: usize = 16 << 20;
pub const SQ: u64 = 0x1_0000;
pub const CQ: u64 = 0x2_0000;
pub const ENTRIES: u16 = 256;
/// Data of the commands: a page for each.
pub const DATA: u64 = 0x10_0000;
/// Opcodes.
pub const READ: u8 = io::READ;
pub const WRITE: u8 = io::WRITE;

/// Guest memory at guest address 0, with the table that maps it.
pub struct Guest {
    memory: Memory,
    pub space: DmaSpace,
}

impl Guest {
    pub fn new() -> Self {
        let (memory, file) = Memory::shared(RAM, false).expect("guest memory");
        // No page of it is touched for the first time while somebody counts.
        memory.fill(&mut Rng::numbered(1));
        let mut space = DmaSpace::new(DmaLimits::default(), Arc::new(|| {}));
        space.map(0, RAM as u64, Rights::READ_WRITE, 0, Some(file.as_fd())).expect("DMA map");
        Self { memory, space }
    }

    /// The table as it is now.
    #[allow(dead_code, reason = "not every benchmark looks")]
    pub fn map(&self) -> Arc<DmaMap> {
        self.space.epoch().load_full()
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write(at as usize, bytes);
    }
}

/// A host with one queue pair on one namespace of 4 KiB blocks.
pub struct Host {
    pub guest: Guest,
    worker: Lone,
    blocks: u64,
    sq: SqRing,
    cq: CqRing,
    dice: Rng,
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
        let (sq, cq) = (SqRing::new(SQ, ENTRIES), CqRing::new(CQ, ENTRIES));
        Self { guest, worker, blocks, sq, cq, dice: Rng::numbered(0) }
    }

    /// Submits `depth` commands of one block each, at scattered blocks, and rings.
    pub fn submit(&mut self, opc: u8, depth: u16) {
        for slot in 0..depth {
            let slba = self.dice.below(self.blocks);
            let sqe = Sqe::new(opc).cid(slot).nsid(1).lba(slba, 1).prp(DATA + 4096 * u64::from(slot), 0);
            self.sq.push(&self.guest.memory, &sqe.0);
        }
        self.worker.ring(self.sq.tail);
    }

    /// One turn of the worker.
    pub fn turn(&mut self) -> bool {
        self.worker.turn()
    }

    /// Takes the completions there are and acknowledges them. Panics on a failed command.
    pub fn reap(&mut self) -> u16 {
        let mut taken = 0;
        while let Some(done) = self.cq.take(&self.guest.memory) {
            assert_eq!(done.status(), 0, "a command failed");
            taken += 1;
        }
        self.worker.acknowledge(self.cq.head);
        taken
    }
}
