//! Tests of a worker's turns, one by one, so that each order of events is had on purpose.

mod bounds;
mod fairness;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use tempfile::TempDir;

use super::{Core, FromWorker, Mailbox, ToWorker};
use crate::disk::{
    Buffer, Disk, Done, FileDisk, FileOptions, Gate, IoBuf, Lane, LaneKind, MemoryDisk, Op, SharedDisk,
    Stall, Tag,
};
use crate::memory::testing::Guest;
use crate::namespace::{CopyLimits, Identity, Namespace, Namespaces};
use crate::nvme_ctrl::lone;
use crate::nvme_ctrl::queue::{CompletionQueue, SubmissionQueue};
use crate::nvme_ctrl::shared::Shared;

const RAM: u64 = 32 << 20;
const PAGE: u64 = 4096;
/// Where the commands' PRP lists lie, 128 pages each: data of up to 512 KiB at `DATA`.
const DATA: u64 = 8 << 20;
/// Places for the queues, by their id.
const SQS: u64 = 0;
const CQS: u64 = 4 << 20;
const PLACE: u64 = 128 << 10;
/// Room for lists of descriptors and ranges.
const LISTS: u64 = 16 << 20;

/// A host with two namespaces of 4 KiB blocks, 1 in memory and 2 in a file whose reads hang, and a worker
/// that takes a turn when it is told to.
struct Machine {
    guest: Guest,
    shared: Arc<Shared>,
    core: Core,
    image: Arc<MemoryDisk>,
    _file: TempDir,
    _messages: Receiver<FromWorker>,
    /// By SQID: entries, tail.
    sqs: BTreeMap<u16, (u16, u16)>,
    /// By CQID: entries, head, phase.
    cqs: BTreeMap<u16, (u16, u16, u16)>,
}

impl Machine {
    fn new() -> Self {
        Self::with_images(1 << 20)
    }

    /// Two images of so many bytes.
    fn with_images(len: u64) -> Self {
        let guest = Guest::new(0, RAM);
        let image = Arc::new(MemoryDisk::new(len).expect("memory"));
        let dir = tempfile::tempdir().expect("a directory");
        let options = FileOptions { size: Some(len), ..FileOptions::new(dir.path().join("image")) };
        let file = Arc::new(FileDisk::open(options).expect("an image"));
        let limits = CopyLimits { mssrl: u16::MAX, mcl: u32::MAX, msrc: u8::MAX };
        let namespaces = vec![
            Namespace::new(1, Arc::clone(&image) as _, 12, limits, Identity::default()),
            Namespace::new(
                2,
                Arc::new(Stall::over(file, Gate::new(), |_| true)),
                12,
                limits,
                Identity::default(),
            ),
        ];
        let shared = lone::shared(Namespaces::new(namespaces, 2), 32);
        let (sender, messages) = channel();
        let lane = Lane::new(LaneKind::Threads).expect("a lane");
        let mut core = Core::new(Arc::clone(&shared), lane, Mailbox { sender, wake: Arc::new(|| {}) });
        core.message(ToWorker::Begin(guest.space.epoch()));
        let (sqs, cqs) = (BTreeMap::new(), BTreeMap::new());
        Self { guest, shared, core, image, _file: dir, _messages: messages, sqs, cqs }
    }

    /// Writes bytes that are not zero all over the image in memory.
    fn fill(&self) {
        for offset in (0..self.image.len()).step_by(1 << 20) {
            let mut buf = Buffer::zeroed(1 << 20);
            buf.fill(0xab);
            let op = Op::Write { offset, buf: IoBuf::Pool(buf), fua: false };
            self.at_once(op).result.expect("a write");
        }
    }

    fn at_once(&self, op: Op) -> Done {
        let mut lane = Lane::new(LaneKind::Threads).expect("a lane");
        let image: SharedDisk = self.image.clone();
        image.start(Tag(0), op, &mut lane);
        let mut done = Vec::new();
        lane.take_done(&mut done);
        done.pop().expect("at once")
    }

    /// A byte of the image in memory.
    fn byte(&self, offset: u64) -> u8 {
        let op = Op::Read { offset, buf: IoBuf::Pool(Buffer::zeroed(1)) };
        self.at_once(op).buf.and_then(|buf| buf.ours().map(|bytes| bytes[0])).expect("a byte")
    }

    fn cq(&mut self, qid: u16, entries: u16) {
        let base = CQS + PLACE * u64::from(qid);
        self.core.message(ToWorker::CreateCq(CompletionQueue::new(qid, None, base, entries.into())));
        self.cqs.insert(qid, (entries, 0, 1));
    }

    fn sq(&mut self, qid: u16, entries: u16, cqid: u16) {
        let base = SQS + PLACE * u64::from(qid);
        self.core.message(ToWorker::CreateSq(SubmissionQueue::new(qid, cqid, base, entries.into())));
        self.sqs.insert(qid, (entries, 0));
    }

    /// `count` times the same command, and the doorbell.
    fn submit(&mut self, qid: u16, count: u16, sqe: [u8; 64]) {
        let (size, tail) = self.sqs[&qid];
        for n in 0..count {
            let at = SQS + PLACE * u64::from(qid) + 64 * u64::from((tail + n) % size);
            self.guest.set(at, &sqe);
        }
        let tail = (tail + count) % size;
        self.sqs.insert(qid, (size, tail));
        self.shared.doorbells.set_tail(qid, tail);
    }

    /// `count` Reads of `pages` pages each, and the doorbell.
    fn read(&mut self, qid: u16, count: u16, pages: u16) {
        let sqe = self.transfer(2, pages);
        self.submit(qid, count, sqe);
    }

    /// A command of namespace 1 that moves `pages` pages.
    fn transfer(&self, opcode: u8, pages: u16) -> [u8; 64] {
        let list = DATA - PAGE;
        let entries: Vec<u8> = (1..u64::from(pages)).flat_map(|n| (DATA + n * PAGE).to_le_bytes()).collect();
        self.guest.set(list, &entries);
        let mut sqe = [0; 64];
        sqe[0] = opcode;
        sqe[4] = 1;
        sqe[24..32].copy_from_slice(&DATA.to_le_bytes());
        let second = if pages > 2 { list } else { DATA + PAGE };
        sqe[32..40].copy_from_slice(&second.to_le_bytes());
        sqe[48..50].copy_from_slice(&(pages - 1).to_le_bytes());
        sqe
    }

    /// Takes up to `most` completions: their SQIDs. They must be successes.
    fn take(&mut self, cqid: u16, most: usize) -> Vec<u16> {
        let (size, mut head, mut phase) = self.cqs[&cqid];
        let mut from = Vec::new();
        while from.len() < most {
            let cqe = self.guest.bytes(CQS + PLACE * u64::from(cqid) + 16 * u64::from(head), 16);
            let half = |at: usize| u16::from_le_bytes([cqe[at], cqe[at + 1]]);
            if half(14) & 1 != phase {
                break;
            }
            assert_eq!(half(14) >> 1, 0, "status");
            from.push(half(10));
            head = (head + 1) % size;
            phase ^= u16::from(head == 0);
        }
        self.cqs.insert(cqid, (size, head, phase));
        self.shared.doorbells.set_head(cqid, head);
        from
    }
}
