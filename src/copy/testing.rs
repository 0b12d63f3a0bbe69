//! What the tests of this room share.

use std::sync::Arc;

use zerocopy::IntoBytes;

use super::plan::{CopyPlan, PlannedRange};
use super::range::{Layout, SourceRange, Tags};
use crate::disk::{Disk, Handle, Lane, Op, Tag, Ways};
use crate::namespace::{ByteRange, CopyLimits, CopyPolicy, Identity, Namespace};
use crate::spec::copy::{CopyCommand, Range32, Range40, SOPT_FCO, ZeroBased16};

/// An image that has a size and shortcuts from all others, and nothing else: these tests do all I/O
/// themselves.
#[derive(Debug)]
struct Size {
    len: u64,
    shortcuts: Ways,
    is_direct: bool,
}

impl Disk for Size {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_only(&self) -> bool {
        false
    }
    fn submit(&self, _: Tag, _: Op, _: &mut Lane) {
        unreachable!("no test hands this image an operation")
    }
    fn allocation_unit(&self) -> Option<u64> {
        Some(512)
    }
    fn ways_from(&self, _: &Handle<'_>) -> Ways {
        self.shortcuts
    }
    fn is_direct(&self) -> bool {
        self.is_direct
    }
    fn name(&self) -> &str {
        "size"
    }
}

pub(super) const LIMITS: CopyLimits = CopyLimits { mssrl: 32768, mcl: 131_072, msrc: 255 };

pub(super) fn namespace(nsid: u32, blocks: u64, lbads: u8) -> Namespace {
    special(nsid, blocks, lbads, Ways::default(), CopyPolicy::default())
}

/// A namespace with shortcuts to it and a policy.
pub(super) fn special(nsid: u32, blocks: u64, lbads: u8, shortcuts: Ways, policy: CopyPolicy) -> Namespace {
    let image = Arc::new(Size { len: blocks << lbads, shortcuts, is_direct: false });
    Namespace::new(nsid, image, lbads, LIMITS, Identity::default()).with_policy(policy)
}

/// A namespace that is read and written past the page cache.
pub(super) fn direct(nsid: u32, blocks: u64, lbads: u8) -> Namespace {
    let image = Arc::new(Size { len: blocks << lbads, shortcuts: Ways::default(), is_direct: true });
    Namespace::new(nsid, image, lbads, LIMITS, Identity::default())
}

/// Of `ranges` (bytes: offset, length) of `source`, to the start of `dst`.
pub(super) fn copy_of(source: Namespace, dst: Namespace, ranges: &[(u64, u64)], fua: bool) -> CopyPlan {
    let (source, mut at) = (Arc::new(source), 0);
    let planned = ranges.iter().map(|&(offset, len)| {
        at += len;
        PlannedRange {
            ns: source.clone(),
            src: ByteRange { offset, len },
            at: at - len,
            fco: false,
            if_allocated: false,
        }
    });
    let ranges = planned.collect();
    CopyPlan { dst_ns: dst.into(), dst: ByteRange { offset: 0, len: at }, ranges, fua }
}

/// A Copy of `ranges` in a format; all other fields are 0.
pub(super) fn command(nsid: u32, sdlba: u64, desfmt: u8, ranges: usize) -> CopyCommand {
    let nr = u8::try_from(ranges - 1).expect("at most 256 ranges");
    CopyCommand {
        nsid,
        cdw: [sdlba as u32, (sdlba >> 32) as u32, u32::from(desfmt) << 8 | u32::from(nr), 0, 0, 0],
    }
}

impl SourceRange {
    pub(super) fn plain(snsid: Option<u32>, slba: u64, nlb: u32) -> Self {
        let tags = Tags::default();
        Self { snsid, slba, nlb, tags, fco: false, cetype: 0, cev: 0, reserved: false }
    }
}

/// The list a host would write. `reserved` sets a reserved bit.
pub(super) fn encode(desfmt: u8, ranges: &[SourceRange]) -> Vec<u8> {
    let wide = Layout::of(desfmt).expect("a known format").wide;
    let mut list = Vec::new();
    for range in ranges {
        let nlb = ZeroBased16::new(u16::try_from(range.nlb - 1).expect("at most 65536 blocks"));
        let snsid = range.snsid.unwrap_or(0).into();
        let sopt = if range.fco { SOPT_FCO } else { 0 }.into();
        let slba = range.slba.into();
        let elbt = range.tags.elbt;
        let (reserved19, cev, cetype) = (u8::from(range.reserved), range.cev.into(), range.cetype);
        let (elbat, elbatm) = (range.tags.elbat.into(), range.tags.elbatm.into());
        if wide {
            let elbt = elbt.to_be_bytes()[6..].try_into().expect("ten bytes");
            let (reserved4, reserved24) = (0.into(), 0.into());
            let wire = Range40 {
                snsid,
                reserved4,
                slba,
                nlb,
                cetype,
                reserved19,
                cev,
                sopt,
                reserved24,
                elbt,
                elbat,
                elbatm,
            };
            list.extend_from_slice(wire.as_bytes());
        } else {
            let (elbt, reserved4) = (u32::try_from(elbt).expect("32 bits").into(), 0.into());
            let wire =
                Range32 { snsid, reserved4, slba, nlb, cetype, reserved19, cev, sopt, elbt, elbat, elbatm };
            list.extend_from_slice(wire.as_bytes());
        }
    }
    list
}
