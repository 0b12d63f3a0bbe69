//! Submission and completion rings, the host's side: entries, indices, phase. Who rings, and when, is
//! another's affair.

use std::sync::atomic::Ordering;

use super::memory::Memory;
use super::nvme::Cqe;
use super::ram::Ram;

/// Bytes of a submission queue entry.
pub const SQE: usize = 64;
/// Bytes of a completion queue entry.
pub const CQE: usize = 16;

/// What rings lie in, by whatever address its owner has for a byte of it.
pub trait Place {
    fn put(&self, at: u64, sqe: &[u8; SQE]);

    /// What was written before this dword is seen by who sees it.
    fn dword(&self, at: u64) -> u32;

    fn get(&self, at: u64) -> [u8; CQE];
}

impl Place for Memory {
    #[inline]
    fn put(&self, at: u64, sqe: &[u8; SQE]) {
        self.write_array(at as usize, sqe);
    }

    #[inline]
    fn dword(&self, at: u64) -> u32 {
        u32::from_le(self.word(at as usize).load(Ordering::Acquire))
    }

    fn get(&self, at: u64) -> [u8; CQE] {
        let mut bytes = [0; CQE];
        self.read(at as usize, &mut bytes);
        bytes
    }
}

impl Place for Ram {
    fn put(&self, at: u64, sqe: &[u8; SQE]) {
        self.write(at, sqe);
    }

    fn dword(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read_array(at))
    }

    fn get(&self, at: u64) -> [u8; CQE] {
        self.read_array(at)
    }
}

/// A submission ring.
#[derive(Clone, Debug)]
pub struct SqRing {
    pub base: u64,
    /// Entries, 2 or more.
    pub size: u16,
    pub tail: u16,
}

impl SqRing {
    pub fn new(base: u64, size: u16) -> SqRing {
        SqRing { base, size, tail: 0 }
    }

    /// Puts a command in; the device sees it once it is told of the new tail. The caller has to know that
    /// there is room.
    #[inline]
    pub fn push(&mut self, place: &impl Place, sqe: &[u8; SQE]) {
        place.put(self.base + SQE as u64 * u64::from(self.tail), sqe);
        self.tail = if self.tail + 1 == self.size { 0 } else { self.tail + 1 };
    }
}

/// A completion ring, which begins all zeroes.
#[derive(Clone, Debug)]
pub struct CqRing {
    pub base: u64,
    /// Entries, 2 or more.
    pub size: u16,
    pub head: u16,
    /// Phase tag of a new completion.
    phase: u32,
}

/// A completion that was taken. The rest of it is read from the ring, before its place is given back.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    at: u64,
    last: u32,
}

impl Taken {
    pub fn cid(self) -> u16 {
        self.last as u16
    }

    /// The Status field: SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14.
    pub fn status(self) -> u16 {
        (self.last >> 17) as u16
    }

    pub fn cqe(self, place: &impl Place) -> Cqe {
        Cqe::parse(&place.get(self.at))
    }
}

impl CqRing {
    pub fn new(base: u64, size: u16) -> CqRing {
        CqRing { base, size, head: 0, phase: 1 }
    }

    fn next(&self) -> u64 {
        self.base + CQE as u64 * u64::from(self.head)
    }

    /// Is there a completion that was not taken? Changes nothing.
    pub fn pending(&self, place: &impl Place) -> bool {
        place.dword(self.next() + 12) >> 16 & 1 == self.phase
    }

    /// Takes the next completion, if there is one. The device has its place again once it is told of the new
    /// head.
    #[inline]
    pub fn take(&mut self, place: &impl Place) -> Option<Taken> {
        let at = self.next();
        let last = place.dword(at + 12);
        if last >> 16 & 1 != self.phase {
            return None;
        }
        if self.head + 1 == self.size {
            self.head = 0;
            self.phase ^= 1;
        } else {
            self.head += 1;
        }
        Some(Taken { at, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HUGE, PAGE};
    use crate::nvme::{Sqe, io, st};

    /// What a device does, on memory of either kind.
    fn around(place: &impl Place, base: u64, complete: impl Fn(u64, [u32; 4])) {
        let (mut sq, mut cq) = (SqRing::new(base, 3), CqRing::new(base + PAGE as u64, 4));
        for n in 0..11_u16 {
            assert!(!cq.pending(place) && cq.take(place).is_none(), "{n}");
            sq.push(place, &Sqe::new(io::FLUSH).cid(n).0);
            assert_eq!((sq.tail, place.dword(base + 64 * u64::from(n % 3)) >> 16), ((n + 1) % 3, n.into()));
            let phase = u32::from(n / 4 % 2 == 0);
            let status = u32::from(st::COMPARE_FAILURE) << 17 | phase << 16 | u32::from(n);
            complete(base + PAGE as u64 + 16 * u64::from(n % 4), [7, 0, u32::from(n % 3), status]);
            assert!(cq.pending(place));
            let taken = cq.take(place).expect("a completion");
            assert_eq!((taken.cid(), taken.status(), cq.head), (n, st::COMPARE_FAILURE, (n + 1) % 4));
            let cqe = taken.cqe(place);
            assert_eq!((cqe.dw0, cqe.sqhd, cqe.cid, cqe.status), (7, n % 3, n, st::COMPARE_FAILURE));
        }
    }

    #[test]
    fn rings_wrap_in_a_mapping() {
        let (memory, _file) = Memory::shared(HUGE, false).unwrap();
        around(&memory, 8192, |at, dwords| {
            for (n, dword) in dwords.into_iter().enumerate() {
                memory.word(at as usize + 4 * n).store(dword.to_le(), Ordering::Release);
            }
        });
    }

    #[test]
    fn rings_wrap_in_a_file() {
        let ram = Ram::new(1 << 32, 1 << 20);
        around(&ram, ram.base(), |at, dwords| {
            ram.write(at, &dwords.map(u32::to_le_bytes).concat());
        });
    }
}
