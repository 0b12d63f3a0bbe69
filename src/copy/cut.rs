//! Cuts a plan into segments (one write each) and pieces (one read each), and keeps account of what is
//! written.

use std::sync::Arc;

use super::plan::{CopyPlan, PlannedRange};
use crate::disk::Pieces;
use crate::namespace::Namespace;

/// A stretch of the destination. Bytes from the start of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub start: u64,
    pub end: u64,
}

impl Stretch {
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// At most `max` bytes of it, from its start.
    pub fn first(self, max: u64) -> Self {
        Self { start: self.start, end: self.end.min(self.start.saturating_add(max)) }
    }

    /// At most `max` bytes of it, up to its end.
    pub fn last(self, max: u64) -> Self {
        Self { start: self.start.max(self.end.saturating_sub(max)), end: self.end }
    }

    pub fn meets(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// One read: contiguous in its source.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    pub ns: &'a Arc<Namespace>,
    /// Byte offset in the source.
    pub offset: u64,
    /// What it fills.
    pub to: Stretch,
}

impl CopyPlan {
    /// The ranges that fill some of `stretch`.
    pub(super) fn ranges_in(&self, stretch: Stretch) -> impl Iterator<Item = &PlannedRange> {
        self.ranges.iter().skip(self.first_in(stretch)).take_while(move |range| range.at < stretch.end)
    }

    /// The index of the first range that fills some of `stretch`.
    fn first_in(&self, stretch: Stretch) -> usize {
        self.ranges.partition_point(|range| range.at + range.src.len <= stretch.start)
    }

    /// The part of the destination that `len` bytes from `offset` of a source lie in.
    pub(super) fn in_dst(&self, ns: &Namespace, offset: u64, len: u64) -> Option<Stretch> {
        let dst_end = self.dst.offset + self.dst.len;
        if ns.nsid != self.dst_ns.nsid || offset >= dst_end || offset + len <= self.dst.offset {
            return None;
        }
        let start = offset.max(self.dst.offset) - self.dst.offset;
        let end = (offset + len).min(dst_end) - self.dst.offset;
        Some(Stretch { start, end })
    }
}

/// The piece that starts at `pos` and goes on to `end` at most: as many ranges as continue each other in one
/// source. `None` at `end`.
pub(super) fn piece(plan: &CopyPlan, pos: u64, end: u64) -> Option<Piece<'_>> {
    pieces(plan, Stretch { start: pos, end }).next()
}

/// All pieces of a stretch. The ranges are searched for its start once.
pub(super) fn pieces(plan: &CopyPlan, stretch: Stretch) -> impl Iterator<Item = Piece<'_>> {
    let mut pos = stretch.start;
    let mut index = plan.first_in(stretch);
    std::iter::from_fn(move || {
        let first = plan.ranges.get(index).filter(|_| pos < stretch.end)?;
        let offset = first.src.offset + (pos - first.at);
        let mut to = Stretch { start: pos, end: stretch.end.min(first.at + first.src.len) };
        index += 1;
        while to.end < stretch.end
            && let Some(range) = plan.ranges.get(index)
            && range.ns.nsid == first.ns.nsid
            && range.src.offset == offset + to.len()
        {
            to.end = stretch.end.min(range.at + range.src.len);
            index += 1;
        }
        pos = to.end;
        Some(Piece { ns: &first.ns, offset, to })
    })
}

/// What one source has of a stretch: the pieces one behind the other. `None`: it comes from several.
#[inline]
pub(super) fn one_source(plan: &CopyPlan, stretch: Stretch) -> Option<(&Arc<Namespace>, Pieces)> {
    let mut all = pieces(plan, stretch);
    let Piece { ns, offset, to } = all.next()?;
    let mut read: Pieces = [(offset, to.len())].into();
    for next in all {
        if next.ns.nsid != ns.nsid {
            return None;
        }
        read.push((next.offset, next.to.len()));
    }
    Some((ns, read))
}

/// How much of each original range still has to be written.
#[derive(Debug)]
pub(super) struct Account {
    /// Bytes, by range.
    left: Vec<u64>,
    /// No range below is incomplete.
    complete: usize,
}

impl Account {
    pub fn new(plan: &CopyPlan) -> Self {
        Self { left: plan.ranges.iter().map(|range| range.src.len).collect(), complete: 0 }
    }

    /// A stretch has been written.
    pub fn written(&mut self, plan: &CopyPlan, stretch: Stretch) {
        let first = plan.first_in(stretch);
        for (range, left) in plan.ranges.iter().zip(&mut self.left).skip(first) {
            if range.at >= stretch.end {
                break;
            }
            let from = range.at.max(stretch.start);
            let to = (range.at + range.src.len).min(stretch.end);
            *left = left.saturating_sub(to - from);
        }
        while self.left.get(self.complete) == Some(&0) {
            self.complete += 1;
        }
    }

    /// The lowest-numbered range that is not completely written.
    pub fn first_incomplete(&self) -> Option<u32> {
        (self.complete < self.left.len()).then_some(self.complete as u32)
    }
}
