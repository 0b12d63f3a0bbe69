//! The operations of a Copy that are in flight.

use super::slots::Slots;
use crate::copy::cut::Stretch;
use crate::disk::How;

/// What an operation was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Asks whether the source of the range that goes to `at` is allocated.
    Probe {
        at: u64,
    },
    /// Fills `to` of the segment in a slot.
    Read {
        slot: usize,
        to: Stretch,
    },
    /// Writes the segment in a slot.
    Write {
        slot: usize,
        to: Stretch,
    },
    Direct {
        how: How,
        to: Stretch,
    },
    /// Of a source.
    PoolCopy {
        nsid: u32,
        to: Stretch,
    },
    Flush,
}

/// What is in flight, by part number.
#[derive(Debug, Default)]
pub(super) struct Parts(Slots<Part>);

impl Part {
    /// What of the destination is written when it has ended well.
    pub fn writes(self) -> Option<Stretch> {
        match self {
            Part::Write { to, .. } | Part::Direct { to, .. } | Part::PoolCopy { to, .. } => Some(to),
            Part::Probe { .. } | Part::Read { .. } | Part::Flush => None,
        }
    }
}

impl Parts {
    /// The number of a part that starts: below the count of those in flight at one time.
    #[inline]
    pub fn begin(&mut self, part: Part) -> u32 {
        self.0.insert(part) as u32
    }

    /// What has come back; `None`: nothing of that number was in flight.
    pub fn end(&mut self, number: u32) -> Option<Part> {
        self.0.remove(number as usize)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn in_flight(&self) -> u32 {
        self.0.len() as u32
    }

    /// Is any of them done without a buffer of ours? Until it is over it may read its source, or be refused.
    pub fn any_direct(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Direct { .. }))
    }

    /// Of these, copies by the file system.
    pub fn by_file_system(&self) -> usize {
        let is = |part: &&Part| matches!(part, Part::Direct { how, .. } if *how != How::MemMove);
        self.0.iter().filter(is).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_file_system_does_is_counted() {
        let to = Stretch { start: 0, end: 512 };
        let mut parts = Parts::default();
        let direct = |how| Part::Direct { how, to };
        let all = [
            direct(How::Reflink),
            direct(How::MemMove),
            Part::PoolCopy { nsid: 1, to },
            direct(How::Offload),
        ];
        assert_eq!(all.map(|part| parts.begin(part)), [0, 1, 2, 3]);
        assert_eq!((parts.in_flight(), parts.by_file_system()), (4, 2));
        assert_eq!((parts.end(0), parts.end(0), parts.end(9)), (Some(all[0]), None, None));
        assert_eq!((parts.in_flight(), parts.by_file_system()), (3, 1));
    }
}
