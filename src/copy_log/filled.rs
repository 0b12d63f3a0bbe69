//! Was one copy cut into as few Copies as the limits allow?
//!
//! A block layer that fills its commands takes source after source, cuts each at MSSRL, and ends a command when MCL or the
//! number of ranges is reached. So where one command goes on with what another one ends with, that other one had no room.

use super::args::CheckArgs;
use crate::laboratory::copy_log::{CopyRecord, RangeRecord};

/// See the module docs.
#[derive(Debug)]
pub(super) struct Filled {
    given: [Option<u64>; 3],
    parts: Vec<Part>,
}

/// A Copy that succeeded.
#[derive(Debug)]
struct Part {
    nsid: u32,
    start: u64,
    end: u64,
    number: u64,
    ranges: u64,
    blocks: u64,
    limits: Limits,
    first: Source,
    last: Source,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    ranges: u64,
    range_blocks: u64,
    blocks: u64,
}

#[derive(Clone, Copy, Debug)]
struct Source {
    nsid: u32,
    start: u64,
    blocks: u64,
}

impl Source {
    fn of(range: &RangeRecord, dst: u32) -> Self {
        Self { nsid: range.snsid.unwrap_or(dst), start: range.slba, blocks: range.nlb.into() }
    }

    fn goes_on_with(self, next: Self) -> bool {
        self.nsid == next.nsid && self.start.checked_add(self.blocks) == Some(next.start)
    }
}

impl Filled {
    pub fn new(args: &CheckArgs) -> Self {
        let given = [args.max_ranges.map(u64::from), args.max_range_blocks.map(u64::from), args.max_blocks];
        Self { given, parts: Vec::new() }
    }

    /// A Copy that succeeded.
    pub fn add(&mut self, copy: &CopyRecord) {
        let dst = copy.command.nsid;
        let Some([first, .., last] | [first @ last]) = copy.ranges.as_deref() else { return };
        let Some(blocks) = copy.blocks() else { return };
        let ns = |nsid| copy.namespace(nsid);
        let [ranges, range_blocks, most] = self.given;
        let source = Source::of(last, dst);
        let limits = Limits {
            ranges: ranges.or(ns(dst).map(|ns| u64::from(ns.msrc) + 1)).unwrap_or(u64::MAX),
            range_blocks: range_blocks.or(ns(source.nsid).map(|ns| ns.mssrl.into())).unwrap_or(u64::MAX),
            blocks: most.or(ns(dst).map(|ns| ns.mcl.into())).unwrap_or(u64::MAX),
        };
        let start = copy.command.sdlba;
        self.parts.push(Part {
            nsid: dst,
            start,
            end: start.saturating_add(blocks),
            number: copy.number,
            ranges: copy.command.nr.into(),
            blocks,
            limits,
            first: Source::of(first, dst),
            last: source,
        });
    }

    /// Copies that had room for more of what another one went on with.
    pub fn faults(&mut self) -> Vec<String> {
        self.parts.sort_unstable_by_key(|part| (part.nsid, part.start, part.end));
        let pairs = self.parts.windows(2).filter_map(|pair| match pair {
            [one, next] if one.nsid == next.nsid && one.end == next.start => Some((one, next)),
            _ => None,
        });
        let faults = pairs.filter_map(|(one, next)| {
            let Part { number, ranges, blocks, limits, last, .. } = one;
            let longer = last.goes_on_with(next.first) && last.blocks < limits.range_blocks;
            let room = *blocks < limits.blocks && (*ranges < limits.ranges || longer);
            room.then(|| {
                format!(
                    "copy {number} has {ranges} ranges and {blocks} blocks, its last range {}; copy {} goes on where it \
                     ends, and at most are allowed {} ranges, {} blocks, and {} in one range",
                    last.blocks, next.number, limits.ranges, limits.blocks, limits.range_blocks
                )
            })
        });
        faults.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_args, succeeded};
    use super::*;

    /// Whether Copies given as destination and ranges pass, where namespaces have mssrl=100, mcl=128, msrc=3.
    fn passes(args: &[&str], copies: &[(u64, &[(u64, u32)])]) -> bool {
        let mut filled = Filled::new(&check_args(args));
        for (number, (sdlba, ranges)) in (1..).zip(copies) {
            filled.add(&succeeded(number, *sdlba, ranges));
        }
        filled.faults().is_empty()
    }

    /// The example of the May 2025 series: 129 blocks are 100 + 28, and 1.
    #[test]
    fn filled_to_the_brim() {
        assert!(passes(&[], &[(1000, &[(0, 100), (100, 28)]), (1128, &[(128, 1)])]));
        assert!(
            !passes(&[], &[(1000, &[(0, 100)]), (1100, &[(100, 29)])]),
            "28 more, in a range of their own"
        );
        assert!(!passes(&[], &[(1000, &[(0, 100), (100, 27)]), (1127, &[(127, 2)])]));
        // In whatever order they end.
        assert!(!passes(&[], &[(1127, &[(127, 2)]), (1000, &[(0, 100), (100, 27)])]));
        assert!(passes(&[], &[(1000, &[(0, 10)]), (2000, &[(10, 10)])]), "that is no continuation");
    }

    #[test]
    fn as_many_ranges_as_there_may_be() {
        let four: &[_] = &[(0, 1), (10, 1), (20, 1), (30, 1)];
        assert!(passes(&[], &[(1000, four), (1004, &[(40, 1)])]));
        assert!(!passes(&[], &[(1000, &four[..3]), (1003, &[(40, 1)])]));
        assert!(!passes(&["--max-ranges", "8"], &[(1000, four), (1004, &[(40, 1)])]));
        // One range for each command, as the series of April 2026 has it: filled is as long as a range may be.
        let one = ["--max-ranges", "1", "--max-range-blocks", "64"];
        assert!(passes(&one, &[(1000, &[(0, 64)]), (1064, &[(64, 5)])]));
        assert!(!passes(&one, &[(1000, &[(0, 63)]), (1063, &[(63, 6)])]));
        assert!(
            passes(&one, &[(1000, &[(0, 63)]), (1063, &[(90, 6)])]),
            "elsewhere: it needs a range of its own"
        );
    }
}
