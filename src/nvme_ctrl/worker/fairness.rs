//! What one queue may keep from another: tests of a worker's turns, one by one, so that each order of events is had on
//! purpose.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use super::{Core, FromWorker, Mailbox, ToWorker};
use crate::backend::MemoryBackend;
use crate::backend::engine::{EngineKind, create};
use crate::memory::testing::Guest;
use crate::namespace::{CopyLimits, Identity, Namespace, Namespaces};
use crate::nvme_ctrl::lone;
use crate::nvme_ctrl::queue::{CompletionQueue, SubmissionQueue};
use crate::nvme_ctrl::shared::Shared;

const RAM: u64 = 16 << 20;
const PAGE: u64 = 4096;
/// Where the commands' PRP lists lie, 128 pages each: data of up to 512 KiB at `DATA`.
const DATA: u64 = 8 << 20;
/// Places for the queues, by their id.
const SQS: u64 = 0;
const CQS: u64 = 2 << 20;
const PLACE: u64 = 128 << 10;

/// A host with a memory namespace of 4 KiB blocks, and a worker that takes a turn when it is told to.
struct Machine {
    guest: Guest,
    shared: Arc<Shared>,
    core: Core,
    _messages: Receiver<FromWorker>,
    /// By SQID: entries, tail.
    sqs: BTreeMap<u16, (u16, u16)>,
    /// By CQID: entries, head, phase.
    cqs: BTreeMap<u16, (u16, u16, u16)>,
}

impl Machine {
    fn new() -> Self {
        let guest = Guest::new(0, RAM);
        let backend = Arc::new(MemoryBackend::new(1 << 20).expect("memory"));
        let limits = CopyLimits { mssrl: u16::MAX, mcl: u32::MAX, msrc: u8::MAX };
        let ns = Namespace::new(1, backend, 12, limits, Identity::default());
        let shared = lone::shared(Namespaces::new(vec![ns], 1), 8);
        let (sender, messages) = channel();
        let engine = create(EngineKind::Threads).expect("an engine");
        let mut core =
            Core::new(Arc::clone(&shared), engine, None, Mailbox { sender, wake: Arc::new(|| {}) });
        core.message(ToWorker::Begin(guest.space.epoch()));
        let (sqs, cqs) = (BTreeMap::new(), BTreeMap::new());
        Self { guest, shared, core, _messages: messages, sqs, cqs }
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

    /// `count` Reads of `pages` pages each, and the doorbell.
    fn read(&mut self, qid: u16, count: u16, pages: u16) {
        let list = DATA - PAGE;
        let entries: Vec<u8> = (1..u64::from(pages)).flat_map(|n| (DATA + n * PAGE).to_le_bytes()).collect();
        self.guest.set(list, &entries);
        let (size, tail) = self.sqs[&qid];
        for n in 0..count {
            let mut sqe = [0; 64];
            sqe[0] = 2;
            sqe[4] = 1;
            sqe[24..32].copy_from_slice(&DATA.to_le_bytes());
            let second = if pages > 2 { list } else { DATA + PAGE };
            sqe[32..40].copy_from_slice(&second.to_le_bytes());
            sqe[48..50].copy_from_slice(&(pages - 1).to_le_bytes());
            let at = SQS + PLACE * u64::from(qid) + 64 * u64::from((tail + n) % size);
            self.guest.set(at, &sqe);
        }
        let tail = (tail + count) % size;
        self.sqs.insert(qid, (size, tail));
        self.shared.doorbells.set_tail(qid, tail);
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

/// Two queues share a completion queue that is always full; whatever the number of turns between two places in it.
#[test]
fn a_full_completion_queue_is_shared_fairly() {
    for turns in 1..=4 {
        let mut m = Machine::new();
        m.cq(1, 4);
        m.sq(1, 256, 1);
        m.sq(2, 256, 1);
        m.sq(3, 256, 1);
        for qid in 1..=3 {
            m.read(qid, 200, 1);
        }
        let mut counts = [0; 4];
        for _ in 0..90 {
            (0..turns).for_each(|_| _ = m.core.turn());
            for sqid in m.take(1, 1) {
                counts[usize::from(sqid)] += 1;
            }
        }
        // The first turn finds room for three.
        assert!(counts[1..].iter().all(|count| (28..=33).contains(count)), "{turns} turns: {counts:?}");
    }
}

/// The same beside a queue that has room for all it does.
#[test]
fn a_busy_neighbour_does_not_decide_who_is_first() {
    for turns in 1..=4 {
        let mut m = Machine::new();
        m.cq(1, 4);
        m.cq(2, 256);
        m.sq(1, 256, 1);
        m.sq(3, 256, 2);
        m.sq(2, 256, 1);
        m.read(1, 200, 1);
        m.read(2, 200, 1);
        let mut counts = [0; 4];
        for _ in 0..90 {
            for _ in 0..turns {
                m.read(3, 1, 1);
                m.core.turn();
                m.take(2, 9);
            }
            for sqid in m.take(1, 1) {
                counts[usize::from(sqid)] += 1;
            }
        }
        assert!(counts[1] >= 40 && counts[2] >= 40, "{turns} turns: {counts:?}");
    }
}

/// However deep a queue is and however large its commands: one turn serves each of the others.
#[test]
fn a_deep_queue_does_not_starve_a_shallow_one() {
    for (deep, pages) in [(1000, 1), (200, 128)] {
        let mut m = Machine::new();
        for qid in 1..=3 {
            m.cq(qid, 1024);
            m.sq(qid, 1024, qid);
        }
        m.read(1, deep, pages);
        let mut all = 0;
        for round in 0..8 {
            m.read(3, 1, 1);
            m.core.turn();
            assert_eq!(m.take(3, 9), [3], "round {round}");
            let burst = m.take(1, 1024).len();
            assert!(burst > 0 && burst <= 36, "{burst} in one turn");
            assert!(burst * usize::from(pages) <= 128 + 4 * usize::from(pages), "{burst} of {pages} pages");
            all += burst;
        }
        assert!(all < usize::from(deep), "the deep one has been deep all the time");
    }
}
