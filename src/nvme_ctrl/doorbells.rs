//! Doorbell values: stored by the control thread (trapped writes) or the client (mapped page), read by the
//! worker that owns the queue.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::memory::SharedPage;

/// One slot per doorbell of BAR0: SQ y tail at 2y, CQ y head at 2y + 1.
///
/// In a mapped page the client stores whatever it likes; otherwise a value gets here only after the control
/// thread has checked it. Readers do not rely on that: [`DoorbellValue`] takes values in.
#[derive(Debug)]
pub struct Doorbells {
    slots: Values,
}

#[derive(Debug)]
enum Values {
    Ours(Box<[AtomicU32]>),
    Mapped(SharedPage),
}

impl Doorbells {
    /// Doorbells of `queues` queue pairs, the admin pair included, that only this process can reach.
    pub fn new(queues: usize) -> Self {
        let slots = (0..queues.saturating_mul(2)).map(|_| AtomicU32::new(0)).collect();
        Self { slots: Values::Ours(slots) }
    }

    /// Doorbells in a page that clients map.
    pub fn mapped(page: SharedPage) -> Self {
        Self { slots: Values::Mapped(page) }
    }

    /// The page, if clients can map one: doorbells then change without notice.
    pub fn page(&self) -> Option<&SharedPage> {
        match &self.slots {
            Values::Ours(_) => None,
            Values::Mapped(page) => Some(page),
        }
    }

    /// Stores a new SQ tail. Release: what the host wrote before it is visible to who reads it.
    pub fn set_tail(&self, qid: u16, value: u16) {
        self.set(tail_slot(qid), value);
    }

    /// Stores a new CQ head.
    pub fn set_head(&self, qid: u16, value: u16) {
        self.set(head_slot(qid), value);
    }

    /// The SQ tail as last stored, read once. Acquire: see [`Self::set_tail`].
    pub fn tail(&self, qid: u16) -> u32 {
        self.get(tail_slot(qid))
    }

    /// The CQ head as last stored, read once.
    pub fn head(&self, qid: u16) -> u32 {
        self.get(head_slot(qid))
    }

    /// Slot `index` as it stands; 0 for one that is not there.
    pub fn get(&self, index: usize) -> u32 {
        self.slot(index).map_or(0, |slot| slot.load(Ordering::Acquire))
    }

    /// Takes a CQ head back to `good`, unless the host has written another one than `bad` meanwhile. A mapped
    /// page is the client's own.
    pub fn retract_head(&self, qid: u16, bad: u16, good: u16) {
        if let (Values::Ours(_), Some(slot)) = (&self.slots, self.slot(head_slot(qid))) {
            let _ = slot.compare_exchange(bad.into(), good.into(), Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    fn set(&self, slot: usize, value: u16) {
        if let Some(slot) = self.slot(slot) {
            slot.store(u32::from(value), Ordering::Release);
        }
    }

    fn slot(&self, index: usize) -> Option<&AtomicU32> {
        match &self.slots {
            Values::Ours(slots) => slots.get(index),
            Values::Mapped(page) => page.dword(index),
        }
    }
}

/// Slot of an SQ's tail; the same index in BAR0 and in the shadow doorbell and event index buffers (CAP.DSTRD
/// is 0).
pub fn tail_slot(qid: u16) -> usize {
    usize::from(qid) * 2
}

/// Slot of a CQ's head.
pub fn head_slot(qid: u16) -> usize {
    usize::from(qid) * 2 + 1
}

/// What is believed of a doorbell whose slot a host may set to anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DoorbellValue {
    /// The last good value.
    value: u16,
    /// What the slot holds cannot be, and that was reported.
    bad: bool,
}

/// A doorbell holds a value that its queue cannot have, and this is the first that is seen of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

impl DoorbellValue {
    /// The last good value.
    pub fn value(self) -> u16 {
        self.value
    }

    /// Takes in what the slot holds, read once; bits 31:16 are reserved. `check` says whether the queue can
    /// have it. A value it cannot have changes nothing, and counts once until there is a good one.
    pub fn take(&mut self, raw: u32, check: impl FnOnce(u16) -> bool) -> Result<(), Invalid> {
        let value = (raw & 0xffff) as u16;
        if value == self.value {
            self.bad = false;
            return Ok(());
        }
        if check(value) {
            *self = Self { value, bad: false };
            return Ok(());
        }
        if std::mem::replace(&mut self.bad, true) { Ok(()) } else { Err(Invalid) }
    }
}

/// The pauses of a thread that watches a mapped page while nothing comes: 64 us, then twice as long each
/// time, up to 4 ms. So an idle device wakes 250 times a second, and the first command after a rest waits up
/// to 4 ms.
#[derive(Clone, Copy, Debug)]
pub struct Tick {
    pause: Duration,
}

impl Tick {
    const FIRST: Duration = Duration::from_micros(64);
    const LONGEST: Duration = Duration::from_millis(4);

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(Self::LONGEST);
        pause
    }
}

impl Default for Tick {
    fn default() -> Self {
        Self { pause: Self::FIRST }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_are_ignored_and_told_once() {
        let mut doorbell = DoorbellValue::default();
        let below = |size| move |value| u32::from(value) < size;
        assert_eq!(doorbell.take(0xffff_0003, below(4)), Ok(()));
        assert_eq!(doorbell.value(), 3);
        assert_eq!(doorbell.take(4, below(4)), Err(Invalid));
        assert_eq!(doorbell.take(4, below(4)), Ok(()));
        assert_eq!(doorbell.take(0xffff, below(4)), Ok(()), "no flood by changing the bad value");
        assert_eq!(doorbell.value(), 3);
        assert_eq!(doorbell.take(1, below(4)), Ok(()));
        assert_eq!(doorbell.take(9, below(4)), Err(Invalid));
        assert_eq!(doorbell.value(), 1);
    }
}
