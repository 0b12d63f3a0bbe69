//! What a Copy implies for its destination, from its decoded list and the overlap policy alone: neither planner
//! nor executor is asked, for they are judged by it. Pure.

use super::ledger::{Ledger, Span, Tick};
use super::sum::Sum;

/// A source range, as the list has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopySource {
    /// The source's namespace is the destination's.
    pub own: bool,
    /// The source.
    pub blocks: Span,
    /// A source elsewhere: its ledger's clock when it was looked at.
    pub since: Tick,
}

/// A Copy in flight.
pub struct Expected {
    /// When it began, by the clock of the destination's ledger.
    pub began: Tick,
    /// Its destination.
    pub to: Span,
    from: Vec<CopySource>,
    in_order: bool,
    /// Of each block of the destination, as far as it is known.
    sums: Vec<Option<Sum>>,
}

/// Where a block of a destination comes from.
enum Source {
    /// From this block of the destination, by its index, as an earlier range has left it.
    Earlier(usize),
    /// From this LBA.
    Block(u64),
}

/// Calls `each` for every block of the destination in ascending order: its index, its range and its source.
fn sources(from: &[CopySource], to: Span, in_order: bool, mut each: impl FnMut(usize, &CopySource, Source)) {
    let mut at = 0;
    for range in from {
        let start = at;
        for lba in range.blocks.each() {
            let earlier = lba.checked_sub(to.slba).filter(|index| in_order && range.own && *index < start);
            let source = earlier.map_or(Source::Block(lba), |index| Source::Earlier(index as usize));
            each(at as usize, range, source);
            at += 1;
        }
    }
}

impl Expected {
    /// A Copy of `from` to `to`, which is as long, begins in the ledger of its destination. `elsewhere` has the
    /// sums of the ranges of other namespaces, one behind the other. In order: a range reads what those before
    /// it have written; otherwise all read what was there before.
    pub fn begin(
        ledger: &mut Ledger,
        from: Vec<CopySource>,
        to: Span,
        in_order: bool,
        elsewhere: impl IntoIterator<Item = Option<Sum>>,
    ) -> Self {
        let mut elsewhere = elsewhere.into_iter();
        let mut sums: Vec<Option<Sum>> = Vec::with_capacity(to.nlb as usize);
        sources(&from, to, in_order, |_, range, source| {
            let sum = match source {
                Source::Earlier(index) => sums.get(index).copied().flatten(),
                Source::Block(lba) if range.own => ledger.sum(lba),
                Source::Block(_) => elsewhere.next().flatten(),
            };
            sums.push(sum);
        });
        let began = ledger.begin(&[to]);
        Self { began, to, from, in_order, sums }
    }

    /// It has ended: of what came from blocks of range `index`, which lies in another namespace, and were written
    /// meanwhile, nothing is known. Comes before [`Self::doubt`].
    pub fn doubt_elsewhere(&mut self, index: usize, ledger: &Ledger) {
        let before: u64 = self.from.iter().take(index).map(|range| range.blocks.nlb).sum();
        let Some(range) = self.from.get(index) else { return };
        for (sum, lba) in self.sums.iter_mut().skip(before as usize).zip(range.blocks.each()) {
            if !ledger.is_calm(lba, range.since) {
                *sum = None;
            }
        }
    }

    /// The same of the ranges that lie in its own namespace, whose ledger this is, and of all that was copied from
    /// there in turn.
    pub fn doubt(&mut self, ledger: &Ledger) {
        let Self { began, to, from, in_order, sums } = self;
        sources(from, *to, *in_order, |index, range, source| {
            let stands = match source {
                // Another command may have written there between the two ranges.
                Source::Earlier(earlier) => {
                    ledger.is_calm(to.slba + earlier as u64, *began)
                        && sums.get(earlier).is_some_and(Option::is_some)
                }
                Source::Block(lba) => !range.own || ledger.is_calm(lba, *began),
            };
            if let (false, Some(sum)) = (stands, sums.get_mut(index)) {
                *sum = None;
            }
        });
    }

    /// Of the first `ranges` ranges alone: the others have failed, and may have been written in part.
    pub fn keep(&mut self, ranges: usize) {
        let kept: u64 = self.from.iter().take(ranges).map(|range| range.blocks.nlb).sum();
        if let Some(rest) = self.sums.get_mut(kept as usize..) {
            rest.fill(None);
        }
    }

    /// What this block should hold now.
    pub fn sum(&self, lba: u64) -> Option<Sum> {
        let index = lba.checked_sub(self.to.slba)?;
        self.sums.get(index as usize).copied().flatten()
    }
}
