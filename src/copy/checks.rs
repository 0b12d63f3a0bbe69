//! Every check of a Copy command that needs no data, in the order in which they are made.

use std::sync::Arc;

use super::capabilities::Capabilities;
use super::range::{Layout, SourceRange};
use super::ways::shares_whole;
use crate::namespace::{Access, Facts, Namespace, NoNamespace, Overlap, Refusal, gate};
use crate::spec::Status;
use crate::spec::copy::CopyCommand;

/// One row of the table.
#[derive(Debug)]
pub struct Check {
    /// Names the row in logs that programs read: it stays as it is.
    pub rule: &'static str,
    /// What is wrong with the command, for logs.
    pub what: &'static str,
    /// What the host is told, DNR included.
    pub status: Status,
    pub(super) fails: Fails,
}

/// When a row is asked, and of what.
#[derive(Debug)]
pub(super) enum Fails {
    /// Before the list is fetched.
    Command(fn(&CommandView) -> bool),
    /// With the list, once.
    List(fn(&ListView) -> bool),
    /// With the list: the index of the first range that fails. A row at a time, not a range: a call through a pointer for
    /// each would cost more than the check.
    Range(fn(&ListView, &[RangeView]) -> Option<usize>),
}

/// A row that is asked of each range in turn.
macro_rules! range {
    (|$list:pat_param, $range:ident| $fails:expr) => {
        Fails::Range(|$list, ranges| ranges.iter().position(|$range| $fails))
    };
}

/// What is known before the list is.
pub(super) struct CommandView<'a> {
    pub command: &'a CopyCommand,
    /// The destination.
    pub dst: Result<&'a Namespace, NoNamespace>,
    pub layout: Option<&'static Layout>,
    pub capabilities: &'a Capabilities,
}

/// What is known with the list.
pub(super) struct ListView<'a> {
    pub command: &'a CopyCommand,
    pub dst: &'a Namespace,
    /// The format names source namespaces (2h, 3h).
    pub cross: bool,
    /// Blocks of all ranges together: at most 256 x 65536.
    pub total: u64,
}

/// One range and the namespace it names.
pub(super) struct RangeView<'a> {
    pub range: &'a SourceRange,
    pub source: Result<&'a Arc<Namespace>, NoNamespace>,
    /// Where it goes: blocks from the start of the destination.
    pub at: u64,
}

/// The order of checks: the first row that fails decides, and a row is asked of all ranges before the next row is
/// asked of any. CQE DW0 is 0 in every row, for nothing has been written yet: the specification wants 0 then, and
/// the number of a refused range would claim that those before it were copied.
///
/// Checked elsewhere: opcode, FUSE and the state of the controller before this table; the data pointer and its
/// length between the last row on the command and the first on the list; deallocated or unwritten blocks of a source
/// that has DULBE enabled after the last row and before the first read or write (probe.rs: Deallocated or Unwritten
/// Logical Block, 287h without DNR, and DW0 is 0 for it too); media errors while copying (status.rs).
/// FUA and LR are always taken. PRINFOR, PRINFOW, STCR, STCW and tags mean nothing without protection information.
/// DSPEC and CEV mean nothing while DTYPE and CETYPE are 0.
pub static TABLE: &[Check] = &[
    // The command.
    Check {
        rule: "nsid-invalid",
        what: "NSID is 0, FFFFFFFFh or beyond NN",
        status: Status::INVALID_NAMESPACE.dnr(),
        fails: Fails::Command(|v| matches!(v.dst, Err(NoNamespace::Invalid))),
    },
    Check {
        rule: "nsid-inactive",
        what: "NSID is inactive",
        status: Status::INVALID_FIELD.dnr(),
        fails: Fails::Command(|v| matches!(v.dst, Err(NoNamespace::Inactive))),
    },
    Check {
        rule: "format",
        what: "the descriptor format is not supported (OCFS) or not enabled by the host (CDFE)",
        status: Status::INVALID_FIELD.dnr(),
        fails: Fails::Command(|v| !v.layout.is_some_and(|layout| v.capabilities.allow(layout))),
    },
    Check {
        rule: "directive",
        what: "a directive, and none is supported",
        status: Status::INVALID_FIELD.dnr(),
        fails: Fails::Command(|v| v.command.dtype() != 0),
    },
    Check {
        rule: "extension",
        what: "a command extension, and none is supported",
        status: Status::INVALID_FIELD.dnr(),
        fails: Fails::Command(|v| v.command.cetype() != 0),
    },
    Check {
        rule: "msrc",
        what: "more ranges than MSRC allows",
        status: Status::COMMAND_SIZE_LIMIT.dnr(),
        fails: Fails::Command(|v| v.dst.is_ok_and(|dst| v.command.nr().0 > dst.facts.copy.msrc)),
    },
    // Invalid Namespace or Format is what the specification names for this (NVM Command Set 1.2, 3.3.2). QEMU returns
    // Invalid Format (10Ah), which is for Format NVM and Namespace Management. No host depends on that: nvme-cli's copy
    // test skips these formats where the namespace has no protection information, and Linux knows none of the two apart.
    Check {
        rule: "format-guard",
        what: "the descriptor format is not the one for the destination's protection information",
        status: Status::INVALID_NAMESPACE.dnr(),
        fails: Fails::Command(|v| {
            v.dst.is_ok_and(|dst| v.layout.is_some_and(|layout| layout.wide != wide_guard(&dst.facts)))
        }),
    },
    // Namespace is Write Protected, as for a Write: the namespace is read-only as a whole (NSATTR bit 0). The other
    // candidate, Attempted Write to Read Only Range, speaks of single blocks within a writable namespace.
    Check {
        rule: "write-protected",
        what: "the destination is write protected",
        status: Status::WRITE_PROTECTED.dnr(),
        fails: Fails::Command(|v| {
            v.dst.is_ok_and(|dst| gate(dst, Access::Write) == Err(Refusal::WriteProtected))
        }),
    },
    // The list. A malformed descriptor first: its numbers may not mean what they seem to.
    Check {
        rule: "range-reserved",
        what: "a reserved bit of a source range is set",
        status: Status::INVALID_FIELD.dnr(),
        fails: range!(|_, r| r.range.reserved),
    },
    Check {
        rule: "range-extension",
        what: "a source range has a command extension, and none is supported",
        status: Status::INVALID_FIELD.dnr(),
        fails: range!(|_, r| r.range.cetype != 0),
    },
    Check {
        rule: "snsid-invalid",
        what: "SNSID is 0, FFFFFFFFh or beyond NN",
        status: Status::INVALID_NAMESPACE.dnr(),
        fails: range!(|_, r| matches!(r.source, Err(NoNamespace::Invalid))),
    },
    Check {
        rule: "snsid-inactive",
        what: "SNSID is inactive",
        status: Status::INVALID_FIELD.dnr(),
        fails: range!(|_, r| matches!(r.source, Err(NoNamespace::Inactive))),
    },
    Check {
        rule: "incompatible",
        what: "source and destination differ in block or metadata size",
        status: Status::INCOMPATIBLE_NAMESPACE.dnr(),
        fails: range!(|v, r| r.source.is_ok_and(|source| !compatible(&source.facts, &v.dst.facts))),
    },
    Check {
        rule: "mssrl",
        what: "a source range is longer than its namespace's MSSRL",
        status: Status::COMMAND_SIZE_LIMIT.dnr(),
        fails: range!(|_, r| {
            r.source.is_ok_and(|source| r.range.nlb > u32::from(source.facts.copy.mssrl))
        }),
    },
    Check {
        rule: "mcl",
        what: "all ranges together are longer than MCL",
        status: Status::COMMAND_SIZE_LIMIT.dnr(),
        fails: Fails::List(|v| v.total > u64::from(v.dst.facts.copy.mcl)),
    },
    Check {
        rule: "destination-bounds",
        what: "the destination ends outside its namespace",
        status: Status::LBA_OUT_OF_RANGE.dnr(),
        fails: Fails::List(|v| out_of_range(v.dst, v.command.sdlba(), v.total)),
    },
    Check {
        rule: "source-bounds",
        what: "a source range ends outside its namespace",
        status: Status::LBA_OUT_OF_RANGE.dnr(),
        fails: range!(|_, r| {
            r.source.is_ok_and(|source| out_of_range(source, r.range.slba, r.range.nlb.into()))
        }),
    },
    // What formats 2h and 3h must be refused for has no status of its own in formats 0h and 1h: there the namespace's policy
    // decides, for hosts may expect what QEMU does, which is to copy.
    Check {
        rule: "overlap",
        what: "a source range overlaps the destination",
        status: Status::OVERLAPPING_RANGE.dnr(),
        fails: range!(|v, r| {
            (v.cross || v.dst.facts.policy.overlap == Overlap::Reject)
                && r.source.is_ok_and(|source| overlaps(v, r.range) && is_one_place(source, v.dst))
        }),
    },
    // A fast copy is one that shares blocks: nothing else is sure to be faster than the host's own reads and writes.
    // DNR: whether two images share blocks does not change.
    Check {
        rule: "fast-copy",
        what: "fast copy only, and no fast copy is possible",
        status: Status::FAST_COPY_NOT_POSSIBLE.dnr(),
        fails: range!(|v, r| r.range.fco && !r.source.is_ok_and(|source| fast(v, r, source))),
    },
];

/// Rules by which a Copy is refused elsewhere than in [`TABLE`].
pub mod rule {
    /// The list lies in memory that cannot be read.
    pub const LIST_MEMORY: &str = "list-memory";
    /// The list is shorter than its number of ranges.
    pub const LIST_LENGTH: &str = "list-length";
    /// It overlaps itself in a way that takes too much memory.
    pub const OVERLAP_MEMORY: &str = "overlap-memory";
    /// Fast copy only, and it is not possible: here as in the table.
    pub const FAST_COPY: &str = "fast-copy";
    /// It is fused.
    pub const FUSED: &str = "fused";
    /// A laboratory refused it.
    pub const LABORATORY: &str = "laboratory";
    /// What is asked of every command.
    pub const OTHER: &str = "other";
    /// A fault of ours.
    pub const INTERNAL: &str = "internal";
    /// All of these.
    pub const ALL: [&str; 8] =
        [LIST_MEMORY, LIST_LENGTH, OVERLAP_MEMORY, FAST_COPY, FUSED, LABORATORY, OTHER, INTERNAL];
}

/// The names of all rules by which a Copy may be refused, each once.
pub fn rules() -> impl Iterator<Item = &'static str> {
    let table = TABLE.iter().map(|check| check.rule);
    table.chain(rule::ALL.into_iter().filter(|name| TABLE.iter().all(|check| check.rule != *name)))
}

/// A namespace with a 32- or 64-bit guard (PIF 1 or 2). No namespace has protection information yet.
fn wide_guard(_facts: &Facts) -> bool {
    false
}

fn out_of_range(ns: &Namespace, slba: u64, nlb: u64) -> bool {
    ns.facts.bytes(slba, nlb).is_none()
}

fn compatible(source: &Facts, dst: &Facts) -> bool {
    (source.lbads, source.ms) == (dst.lbads, dst.ms)
}

/// Half-open intersection with the whole destination, not with the range's own share of it: a range that reads what
/// another one overwrites is an overlap too. Saturation cannot hide one, for both ends are in bounds by now.
fn overlaps(v: &ListView, range: &SourceRange) -> bool {
    let sdlba = v.command.sdlba();
    range.slba < sdlba.saturating_add(v.total) && sdlba < range.slba.saturating_add(u64::from(range.nlb))
}

/// Are blocks of the same number the same blocks? They have one size by now. Of two namespaces only where locking=off
/// has let both onto one image: what the executor puts in order is within one namespace, so that must not get as far.
fn is_one_place(source: &Namespace, dst: &Namespace) -> bool {
    source.nsid == dst.nsid || dst.disk.is_same_place(&source.disk.handle())
}

/// Can the whole range be shared?
fn fast(v: &ListView, r: &RangeView, source: &Namespace) -> bool {
    let src = source.facts.bytes(r.range.slba, u64::from(r.range.nlb));
    let dst = v.command.sdlba().checked_add(r.at);
    let dst = dst.and_then(|lba| v.dst.facts.bytes(lba, u64::from(r.range.nlb)));
    src.zip(dst).is_some_and(|(src, dst)| shares_whole(source, src.offset, v.dst, dst))
}
