//! What the commands of one namespace imply for its blocks. Pure: it is told when commands begin and end, and
//! what they carried.
//!
//! A clock counts the beginnings and ends of writes. Each block has its value when it was last touched by one,
//! so that a Read knows whether a write was in flight at any time while it was, and a write whether another
//! one was. Where two commands met of which one writes, nothing is said of the block.

use serde::Serialize;

use super::cells::{BlockState, Cell, Cells};
use super::sum::Sum;
use super::verdict::{Difference, Origin, Writers, WrittenBy};

/// Blocks on either side of one that differs that are searched for the owner of what it holds.
const NEAR: u64 = 64 << 10;

/// Consecutive blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First block.
    pub slba: u64,
    /// Blocks, 1-based.
    pub nlb: u64,
}

impl Span {
    /// Each of them; none beyond the last there can be.
    pub fn each(self) -> std::ops::Range<u64> {
        self.slba..self.slba.saturating_add(self.nlb)
    }

    /// Those of them that come before `end`.
    fn below(self, end: u64) -> std::ops::Range<u64> {
        let each = self.each();
        let end = each.end.min(end);
        each.start.min(end)..end
    }
}

/// The ledger's clock at some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

/// What has been looked at so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// Blocks that held what they should.
    pub checked: u64,
    /// Blocks of which nothing could be said: not known, or written meanwhile.
    pub unknown: u64,
    /// Blocks seen for the first time.
    pub never: u64,
    /// Blocks that held something else.
    pub differing: u64,
}

impl Judged {
    /// What was looked at besides.
    pub fn add(&mut self, other: Self) {
        self.checked += other.checked;
        self.unknown += other.unknown;
        self.never += other.never;
        self.differing += other.differing;
    }

    /// What was looked at since it was `before`.
    fn since(self, before: Self) -> Self {
        Self {
            checked: self.checked - before.checked,
            unknown: self.unknown - before.unknown,
            never: self.never - before.never,
            differing: self.differing - before.differing,
        }
    }
}

/// See the module docs.
pub struct Ledger {
    nsid: u32,
    zero: Sum,
    cells: Cells,
    clock: u64,
    writers: Writers,
    first: Option<Difference>,
    judged: Judged,
}

impl Ledger {
    /// Of a namespace of `nsze` blocks. `zero` is the sum of a block of zeroes; `zeroed`: it has only such blocks.
    pub fn new(nsid: u32, nsze: u64, zero: Sum, zeroed: bool) -> Self {
        let fresh = if zeroed { BlockState::Known(zero) } else { BlockState::Never };
        Self {
            nsid,
            zero,
            cells: Cells::new(nsze, fresh),
            clock: 0,
            writers: Writers::default(),
            first: None,
            judged: Judged::default(),
        }
    }

    /// The namespace has `nsze` blocks now.
    pub fn resize(&mut self, nsze: u64) {
        self.cells.resize(nsze);
    }

    /// Blocks that are watched, the first ones, and the bytes that this takes now.
    pub fn size(&self) -> (u64, usize) {
        (self.cells.watched(), self.cells.memory())
    }

    /// Of all that was looked at so far.
    pub fn judged(&self) -> Judged {
        self.judged
    }

    /// The first difference there was.
    pub fn first(&self) -> Option<Difference> {
        self.first
    }

    /// What a block of zeroes has.
    pub fn zero(&self) -> Sum {
        self.zero
    }

    /// A command that reads begins now.
    pub fn now(&self) -> Tick {
        Tick(self.clock)
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// What a block should hold, if that is known.
    pub fn sum(&self, lba: u64) -> Option<Sum> {
        match self.cells.get(lba).state {
            BlockState::Known(sum) => Some(sum),
            _ => None,
        }
    }

    /// Has no write of the block begun or ended since? The one that began at `since` does not count, where it
    /// is the only one in flight.
    pub fn is_calm(&self, lba: u64, since: Tick) -> bool {
        let cell = self.cells.get(lba);
        cell.stamp <= since.0 && !matches!(cell.state, BlockState::Writing { clash: true, .. })
    }

    /// A command that writes these begins. Where they overlap each other, it is not known what it leaves.
    pub fn begin(&mut self, blocks: &[Span]) -> Tick {
        let stamp = self.tick();
        let watched = self.cells.watched();
        for lba in blocks.iter().flat_map(|blocks| blocks.below(watched)) {
            let state = match self.cells.get(lba).state {
                BlockState::Writing { by, .. } => {
                    BlockState::Writing { by: by.saturating_add(1), clash: true }
                }
                _ => BlockState::Writing { by: 1, clash: false },
            };
            self.cells.set(lba, Cell { state, stamp });
        }
        Tick(stamp)
    }

    /// The command that began at `began` to write these ends. `sum` says what a block holds by its LBA, if
    /// that is known.
    pub fn end(
        &mut self,
        began: Tick,
        blocks: &[Span],
        writer: WrittenBy,
        mut sum: impl FnMut(u64) -> Option<Sum>,
    ) {
        let stamp = self.tick();
        self.writers.note(stamp, writer);
        let watched = self.cells.watched();
        for lba in blocks.iter().flat_map(|blocks| blocks.below(watched)) {
            let Cell { state: BlockState::Writing { by, clash }, stamp: since } = self.cells.get(lba) else {
                // It was resized meanwhile: what began is forgotten.
                self.cells.set(lba, Cell { state: BlockState::Unknown, stamp });
                continue;
            };
            let state = match by {
                0 | 1 if !clash && since == began.0 => {
                    sum(lba).map_or(BlockState::Unknown, BlockState::Known)
                }
                0 | 1 => BlockState::Unknown,
                _ => BlockState::Writing { by: by - 1, clash: true },
            };
            self.cells.set(lba, Cell { state, stamp });
        }
    }

    /// What was read of `blocks` by something that began at `since`, a sum for each, as far as it could be
    /// read. The first that differs, if this is the first ever.
    pub fn judge(&mut self, since: Tick, blocks: Span, found: &[Option<Sum>]) -> Option<Difference> {
        let mut first = None;
        for (lba, found) in blocks.below(self.cells.watched()).zip(found) {
            let cell = self.cells.get(lba);
            match (cell.state, found) {
                _ if cell.stamp > since.0 => self.judged.unknown += 1,
                (BlockState::Known(sum), Some(found)) if sum == *found => self.judged.checked += 1,
                (BlockState::Known(sum), Some(found)) => {
                    self.judged.differing += 1;
                    if self.first.is_none() {
                        self.first = Some(self.difference(lba, cell.stamp, sum, *found));
                        first = self.first;
                    }
                }
                (BlockState::Never, Some(found)) => {
                    self.judged.never += 1;
                    self.cells.set(lba, Cell { state: BlockState::Known(*found), ..cell });
                }
                _ => self.judged.unknown += 1,
            }
        }
        first
    }

    /// As [`Self::judge`], and what became of these blocks.
    pub fn judge_counted(
        &mut self,
        since: Tick,
        blocks: Span,
        found: &[Option<Sum>],
    ) -> (Option<Difference>, Judged) {
        let before = self.judged;
        let first = self.judge(since, blocks, found);
        (first, self.judged.since(before))
    }

    fn difference(&self, lba: u64, stamp: u64, sum: Sum, found: Sum) -> Difference {
        let is_zero = found == self.zero;
        let origin = match (stamp, self.writers.find(stamp)) {
            (0, _) => Origin::Start,
            (_, Some(writer)) => Origin::Command(writer),
            (_, None) => Origin::Older,
        };
        let near = Span { slba: lba.saturating_sub(NEAR), nlb: 2 * NEAR };
        let mut near = near.below(self.cells.watched());
        let belongs_to = if is_zero { None } else { near.find(|near| self.sum(*near) == Some(found)) };
        Difference { nsid: self.nsid, lba, origin, should_be_zero: sum == self.zero, is_zero, belongs_to }
    }
}
