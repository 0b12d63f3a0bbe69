//! Does a rule mean this command? Pure.

use super::ops::Ops;
use super::values::Window;
use crate::spec::Sqe;
use crate::spec::commands::NvmCommand;
use zerocopy::IntoBytes;

/// A command as rules look at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    /// SQID; 0 is the admin queue.
    pub sqid: u16,
    /// The command.
    pub sqe: &'a Sqe,
    /// log2 of the bytes of a block, if its NSID names a namespace.
    pub lbads: Option<u8>,
}

/// Some bits of a dword of the submission queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DwordMatch {
    /// Which dword, 0 to 15.
    pub index: usize,
    /// The bits that count.
    pub mask: u32,
    /// What they are.
    pub value: u32,
}

/// Where the blocks of a rule's window are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocks {
    /// In logical blocks of the namespace.
    Logical(Window),
    /// In the block layer's sectors of 512 bytes.
    Sectors(Window),
}

impl Blocks {
    /// In logical blocks of 1 << `lbads` bytes: all that the window touches.
    pub fn logical(self, lbads: u8) -> Window {
        match self {
            Self::Logical(window) => window,
            Self::Sectors(window) => {
                let shift = u32::from(lbads.saturating_sub(9)).min(32);
                let first = window.first >> shift;
                let last = (window.end() - 1) >> shift;
                Window { first, count: (last - first).saturating_add(1) }
            }
        }
    }
}

/// Which commands a rule means. What is not given matches all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Match {
    pub ops: Ops,
    pub queue: Option<u16>,
    pub nsid: Option<u32>,
    /// Blocks that are read or changed; of a Copy its destination.
    pub blocks: Option<Blocks>,
    /// Blocks that a Copy reads.
    pub source: Option<Blocks>,
    /// Index of a range of a Copy, which has to have it.
    pub range: Option<u8>,
    pub dwords: Vec<DwordMatch>,
}

/// What of a Copy is known only when it has passed its checks.
#[derive(Clone, Debug)]
pub(super) struct SeenCopy {
    /// Of the destination, in blocks: the first, and how many.
    pub dst: (u64, u64),
    /// log2 of the bytes of a block there.
    pub lbads: u8,
    /// The sources: first block, how many, log2 of a block's bytes.
    pub sources: Vec<(u64, u64, u8)>,
}

impl Match {
    /// Is the question put when a Copy is planned, for it depends on blocks that only its plan knows?
    pub fn waits_for_plan(&self, sqid: u16, sqe: &Sqe) -> bool {
        is_copy(sqid, sqe) && (self.blocks.is_some() || self.source.is_some())
    }

    /// All that the submission queue entry tells; for a Copy with a window, `copy` has the rest.
    pub fn meets(&self, seen: Seen<'_>, copy: Option<&SeenCopy>) -> bool {
        let Seen { sqid, sqe, lbads } = seen;
        self.ops.contains(sqid == 0, sqe.opc)
            && self.queue.is_none_or(|queue| queue == sqid)
            && self.nsid.is_none_or(|nsid| nsid == sqe.nsid.get())
            && self.dwords.iter().all(|dword| dword_of(sqe, dword.index) & dword.mask == dword.value)
            && self.range.is_none_or(|range| is_copy(sqid, sqe) && range <= sqe.cdw12.get() as u8)
            && self.meets_blocks(seen, lbads, copy)
    }

    fn meets_blocks(&self, seen: Seen<'_>, lbads: Option<u8>, copy: Option<&SeenCopy>) -> bool {
        if self.blocks.is_none() && self.source.is_none() {
            return true;
        }
        if is_copy(seen.sqid, seen.sqe) {
            return copy.is_some_and(|copy| self.meets_copy(copy));
        }
        let (Some(blocks), None, Some(lbads)) = (self.blocks, self.source, lbads) else { return false };
        let has_lba = NvmCommand::of(seen.sqe.opc).is_some_and(NvmCommand::has_lba);
        has_lba && blocks.logical(lbads).meets(seen.sqe.slba(), seen.sqe.nlb().count().into())
    }

    fn meets_copy(&self, copy: &SeenCopy) -> bool {
        let dst = |blocks: Blocks| blocks.logical(copy.lbads).meets(copy.dst.0, copy.dst.1);
        let source = |blocks: Blocks| {
            copy.sources.iter().any(|(first, count, lbads)| blocks.logical(*lbads).meets(*first, *count))
        };
        self.blocks.is_none_or(dst) && self.source.is_none_or(source)
    }
}

fn is_copy(sqid: u16, sqe: &Sqe) -> bool {
    sqid != 0 && sqe.opc == NvmCommand::Copy.opcode()
}

fn dword_of(sqe: &Sqe, index: usize) -> u32 {
    let bytes = sqe.as_bytes().get(index * 4..index * 4 + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(ops: &str) -> Match {
        Match {
            ops: Ops::parse(ops).unwrap(),
            queue: None,
            nsid: None,
            blocks: None,
            source: None,
            range: None,
            dwords: Vec::new(),
        }
    }

    fn sqe(opc: u8, slba: u64, blocks: u32) -> Sqe {
        Sqe {
            opc,
            cid: 0x1234.into(),
            nsid: 1.into(),
            cdw10: (slba as u32).into(),
            cdw11: ((slba >> 32) as u32).into(),
            cdw12: (blocks - 1).into(),
            cdw15: 0xdead_beef.into(),
            ..Sqe::default()
        }
    }

    fn meets(rule: &Match, sqid: u16, sqe: &Sqe) -> bool {
        rule.meets(Seen { sqid, sqe, lbads: Some(9) }, None)
    }

    #[test]
    fn opcode_queue_and_namespace() {
        let read = sqe(2, 0, 1);
        assert!(meets(&any("read"), 1, &read) && !meets(&any("write"), 1, &read));
        assert!(!meets(&any("read"), 0, &read), "02h is Get Log Page there");
        assert!(meets(&any("get-log-page"), 0, &read));
        let queue = Match { queue: Some(2), ..any("io") };
        assert!(meets(&queue, 2, &read) && !meets(&queue, 1, &read));
        let nsid = Match { nsid: Some(2), ..any("io") };
        assert!(!meets(&nsid, 1, &read));
    }

    #[test]
    fn blocks_that_are_touched() {
        let rule = Match { blocks: Some(Blocks::Logical(Window { first: 100, count: 8 })), ..any("io") };
        assert!(meets(&rule, 1, &sqe(2, 107, 1)) && meets(&rule, 1, &sqe(1, 90, 11)));
        assert!(!meets(&rule, 1, &sqe(2, 108, 1)) && !meets(&rule, 1, &sqe(2, 90, 10)));
        assert!(!meets(&rule, 1, &sqe(0, 100, 1)), "a Flush has no blocks");
        assert!(!meets(&rule, 1, &sqe(9, 100, 1)), "nor are a Dataset Management's in its dwords");
        let seen = Seen { sqid: 1, sqe: &sqe(2, 100, 1), lbads: None };
        assert!(!rule.meets(seen, None), "of no namespace");
    }

    #[test]
    fn sectors_are_of_512_bytes_whatever_a_block_is() {
        let sectors = |first, count| Blocks::Sectors(Window { first, count });
        assert_eq!(sectors(7, 2).logical(9), Window { first: 7, count: 2 });
        assert_eq!(sectors(7, 2).logical(12), Window { first: 0, count: 2 });
        assert_eq!(sectors(8, 8).logical(12), Window { first: 1, count: 1 });
        assert_eq!(sectors(0, u64::MAX).logical(12).end(), 1 << 61);
    }

    #[test]
    fn a_copy_is_met_by_what_its_plan_says() {
        let copy = sqe(0x19, 1000, 3);
        let planned = SeenCopy { dst: (1000, 24), lbads: 9, sources: vec![(0, 8, 9), (64, 16, 12)] };
        let by = |rule: &Match| rule.meets(Seen { sqid: 1, sqe: &copy, lbads: Some(9) }, Some(&planned));
        let window = |first, count| Some(Blocks::Logical(Window { first, count }));
        assert!(by(&Match { blocks: window(1020, 1), ..any("copy") }));
        assert!(!by(&Match { blocks: window(0, 1), ..any("copy") }), "a source is no destination");
        assert!(by(&Match { source: window(79, 1), ..any("copy") }));
        assert!(!by(&Match { source: window(80, 1), ..any("copy") }));
        let both = Match { blocks: window(1000, 1), source: window(500, 1), ..any("copy") };
        assert!(!by(&both) && both.waits_for_plan(1, &copy) && !both.waits_for_plan(1, &sqe(2, 0, 1)));
        assert!(!meets(&both, 1, &copy), "not before it is planned");
        assert!(meets(&Match { range: Some(2), ..any("copy") }, 1, &copy));
        assert!(!meets(&Match { range: Some(3), ..any("copy") }, 1, &copy), "it has ranges 0 to 2");
    }

    #[test]
    fn any_dword_under_a_mask() {
        let dword =
            |index, mask, value| Match { dwords: vec![DwordMatch { index, mask, value }], ..any("io") };
        let read = sqe(2, 0x5_0000_0007, 4);
        assert!(meets(&dword(0, 0xffff_00ff, 0x1234_0002), 1, &read));
        assert!(meets(&dword(11, !0, 5), 1, &read) && meets(&dword(15, 0xff00, 0xbe00), 1, &read));
        assert!(!meets(&dword(12, 0xf, 4), 1, &read));
    }
}
