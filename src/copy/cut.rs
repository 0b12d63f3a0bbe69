//! Cuts a plan into segments (one write each) and pieces (one read each), lazily.

use std::sync::Arc;

use super::plan::CopyPlan;
use crate::namespace::Namespace;

/// A stretch of the destination that is written at once. Bytes from the start of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub start: u64,
    pub end: u64,
}

impl Stretch {
    pub fn len(self) -> u64 {
        self.end - self.start
    }
}

/// One read: contiguous in its source, inside one segment.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    pub ns: &'a Arc<Namespace>,
    /// Byte offset in the source.
    pub offset: u64,
    /// What it fills.
    pub to: Stretch,
}

/// Where the cutting has come to. Goes forward only.
#[derive(Clone, Debug, Default)]
pub(super) struct Cutter {
    /// Next byte that has no piece yet, from the start of the destination.
    pos: u64,
    /// The range `pos` lies in.
    range: usize,
}

impl Cutter {
    /// The segment that starts here; `None` at the end. `max` bytes at most.
    pub fn segment(&self, plan: &CopyPlan, max: u64) -> Option<Stretch> {
        (self.pos < plan.dst.len)
            .then(|| Stretch { start: self.pos, end: plan.dst.len.min(self.pos.saturating_add(max)) })
    }

    /// Can the segment `to`, which starts here, be read at once?
    pub fn is_one_piece(&self, plan: &CopyPlan, to: Stretch) -> bool {
        self.clone().piece(plan, to.end).is_some_and(|piece| piece.to == to)
    }

    /// The next read of a segment that ends at `end`: as many ranges as continue each other in one source. `None` when
    /// the segment is complete.
    pub fn piece<'a>(&mut self, plan: &'a CopyPlan, end: u64) -> Option<Piece<'a>> {
        if self.pos >= end {
            return None;
        }
        let first = plan.ranges.get(self.range)?;
        let start = self.pos;
        let offset = first.src.offset + (start - first.at);
        while let Some(range) = plan.ranges.get(self.range) {
            let continues = range.ns.nsid == first.ns.nsid
                && range.src.offset + (self.pos - range.at) == offset + (self.pos - start);
            if self.pos >= end || !continues {
                break;
            }
            let range_end = range.at + range.src.len;
            self.pos = range_end.min(end);
            if self.pos == range_end {
                self.range += 1;
            }
        }
        Some(Piece { ns: &first.ns, offset, to: Stretch { start, end: self.pos } })
    }
}

/// How much of each original range still has to be written.
#[derive(Debug)]
pub(super) struct Account {
    /// Bytes, by range.
    left: Vec<u64>,
}

impl Account {
    pub fn new(plan: &CopyPlan) -> Self {
        Self { left: plan.ranges.iter().map(|range| range.src.len).collect() }
    }

    /// A stretch has been written.
    pub fn written(&mut self, plan: &CopyPlan, stretch: Stretch) {
        let first = plan.ranges.partition_point(|range| range.at + range.src.len <= stretch.start);
        for (range, left) in plan.ranges.iter().zip(&mut self.left).skip(first) {
            if range.at >= stretch.end {
                break;
            }
            let from = range.at.max(stretch.start);
            let to = (range.at + range.src.len).min(stretch.end);
            *left = left.saturating_sub(to - from);
        }
    }

    /// The lowest-numbered range that is not completely written.
    pub fn first_incomplete(&self) -> Option<u32> {
        self.left.iter().position(|&left| left > 0).map(|index| index as u32)
    }
}
