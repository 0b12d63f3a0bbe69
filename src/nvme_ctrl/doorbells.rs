//! Doorbell values: stored by the control thread, read by the worker that owns the queue.

use std::sync::atomic::{AtomicU32, Ordering};

/// One slot per doorbell of BAR0: SQ y tail at 2y, CQ y head at 2y + 1.
///
/// A value gets here only after the control thread has checked it against the queue's size.
#[derive(Debug)]
pub struct Doorbells {
    slots: Box<[AtomicU32]>,
}

impl Doorbells {
    /// Doorbells of `queues` queue pairs, the admin pair included.
    pub fn new(queues: usize) -> Self {
        Self { slots: (0..queues.saturating_mul(2)).map(|_| AtomicU32::new(0)).collect() }
    }

    /// Stores a new SQ tail. Release: what the host wrote before it is visible to who reads it.
    pub fn set_tail(&self, qid: u16, value: u16) {
        self.set(usize::from(qid) * 2, value);
    }

    /// Stores a new CQ head.
    pub fn set_head(&self, qid: u16, value: u16) {
        self.set(usize::from(qid) * 2 + 1, value);
    }

    /// The SQ tail as last stored.
    pub fn tail(&self, qid: u16) -> u16 {
        self.get(usize::from(qid) * 2)
    }

    /// The CQ head as last stored.
    pub fn head(&self, qid: u16) -> u16 {
        self.get(usize::from(qid) * 2 + 1)
    }

    /// Takes a CQ head back to `good`, unless the host has written another one than `bad` meanwhile.
    pub fn retract_head(&self, qid: u16, bad: u16, good: u16) {
        if let Some(slot) = self.slots.get(usize::from(qid) * 2 + 1) {
            let _ = slot.compare_exchange(bad.into(), good.into(), Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    // SeqCst on both sides: a sleeping worker's "I sleep" flag and the doorbell are a store-load pair in each
    // thread, and neither may overtake the other or a wake-up is lost.
    fn set(&self, slot: usize, value: u16) {
        if let Some(slot) = self.slots.get(slot) {
            slot.store(u32::from(value), Ordering::SeqCst);
        }
    }

    fn get(&self, slot: usize) -> u16 {
        self.slots.get(slot).map_or(0, |slot| slot.load(Ordering::SeqCst) as u16)
    }
}
