//! Method selection: which way the bytes of a Copy go, of those that lead from each source to the destination
//! and have not been refused.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use super::cut::{Stretch, pieces};
use super::plan::CopyPlan;
use super::ways::{aligned, is_memory};
use crate::disk::{How, Ways};
use crate::namespace::{ByteRange, Method, Namespace};

/// From here on one operation of the file system costs less than what it saves: 256 scattered copies of 4 KiB
/// took six times as long by copy_file_range as by one copy of their sum, by reads and one write 1.6 times.
const WORTH_IT: u64 = 64 << 10;

/// How a stretch is copied: one of the ways that lead there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Without a buffer of ours; the stretch is one piece, or several of one source where it is moved in
    /// memory.
    Direct(How),
    /// By reads and one write.
    Bounce,
}

/// A stretch of the destination and what was chosen for it. It is cut into segments later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub to: Stretch,
    pub choice: Choice,
}

/// What leads from one source to the destination.
#[derive(Debug)]
struct Source {
    nsid: u32,
    shortcuts: Ways,
    memory: bool,
}

/// What may be chosen for one Copy. What the disk refuses on the way is taken out.
#[derive(Debug)]
pub(super) struct Selection {
    method: Method,
    /// Some host has DULBE enabled for the destination: what is copied must be allocated afterwards, but the
    /// file system makes holes of zeroes. It is left out but for ranges that are Fast Copy Only.
    no_holes: bool,
    dst_memory: bool,
    sources: SmallVec<[Source; 2]>,
}

impl Selection {
    pub fn new(plan: &CopyPlan) -> Self {
        let dst = &plan.dst_ns;
        let mut sources: SmallVec<[Source; 2]> = SmallVec::new();
        for range in &plan.ranges {
            if sources.iter().all(|source| source.nsid != range.ns.nsid) {
                sources.push(Source {
                    nsid: range.ns.nsid,
                    shortcuts: dst.disk.ways_from(&range.ns.disk.handle()),
                    memory: is_memory(&range.ns),
                });
            }
        }
        let (method, no_holes) = (dst.facts.policy.method, dst.life.any_dulbe());
        Self { method, no_holes, dst_memory: is_memory(dst), sources }
    }

    fn source(&self, nsid: u32) -> Option<&Source> {
        self.sources.iter().find(|source| source.nsid == nsid)
    }

    /// Is an operation on this namespace done in the worker's own time, byte by byte?
    pub fn is_memory(&self, nsid: u32, is_dst: bool) -> bool {
        if is_dst { self.dst_memory } else { self.source(nsid).is_some_and(|source| source.memory) }
    }

    /// Does the Copy touch memory at all?
    pub fn any_memory(&self) -> bool {
        self.dst_memory || self.sources.iter().any(|source| source.memory)
    }

    /// Does the way still lead from the source `nsid`?
    pub fn allows(&self, nsid: u32, how: How) -> bool {
        let Some(Source { shortcuts, .. }) = self.source(nsid) else { return false };
        match (how, self.method) {
            (How::MemMove, Method::Auto) => shortcuts.memmove,
            (How::Reflink, Method::Auto | Method::Reflink) => shortcuts.reflink.is_some(),
            (How::Offload, Method::Auto) => shortcuts.offload && shortcuts.offload_pays,
            (How::Offload, Method::Reflink | Method::Offload) => shortcuts.offload,
            _ => false,
        }
    }

    /// The best way from the source `nsid`, in words for a person. What copy_file_range does is named as what
    /// it is: a file system that can share blocks cannot be asked to copy them.
    fn best(&self, nsid: u32) -> &'static str {
        let clones = self.source(nsid).is_some_and(|source| source.shortcuts.offload_clones);
        let allows = |how| self.allows(nsid, how);
        match () {
            () if allows(How::MemMove) => "memmove",
            () if allows(How::Reflink) => "FICLONERANGE: blocks are shared",
            () if allows(How::Offload) && clones => {
                "copy_file_range, which shares blocks on this file system"
            }
            () if allows(How::Offload) => "copy_file_range",
            () => "read and write",
        }
    }

    /// Is a bounce from the source `nsid` one operation, its reads and its write?
    pub fn is_pool_copy(&self, nsid: u32) -> bool {
        self.source(nsid).is_some_and(|source| source.shortcuts.read_write)
    }

    /// May a bounce be left to the kernel? Who asks for `bounce` wants no copy_file_range.
    pub fn may_offload(&self) -> bool {
        self.method != Method::Bounce
    }

    /// Is every bounce one operation? Not with several sources: what comes from two of them is not.
    pub fn are_pool_copies(&self) -> bool {
        matches!(&self.sources[..], [source] if source.shortcuts.read_write)
    }

    /// The disk has refused it.
    pub fn refuse(&mut self, nsid: u32, how: How) {
        let Some(source) = self.sources.iter_mut().find(|source| source.nsid == nsid) else { return };
        match how {
            How::MemMove => source.shortcuts.memmove = false,
            How::Reflink => source.shortcuts.reflink = None,
            How::Offload => source.shortcuts.offload = false,
            How::ReadWrite { .. } => source.shortcuts.read_write = false,
        }
    }

    /// `stretch` in spans, in order, without gaps: for each run of ranges that continue each other the best
    /// way that still leads there. Neighbouring bounces are one span, so that short ranges are gathered, and
    /// so are those that are moved in memory from one source.
    pub fn spans(&self, plan: &CopyPlan, stretch: Stretch) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        let any_fco = plan.ranges_in(stretch).any(|range| range.fco);
        // The source of the last span.
        let mut source = None;
        for run in pieces(plan, stretch) {
            let fco = any_fco && plan.ranges_in(run.to).any(|range| range.fco);
            for span in self.choices(plan, run.ns, run.offset, run.to, fco) {
                let together = match span.choice {
                    Choice::Bounce => true,
                    Choice::Direct(How::MemMove) => source == Some(run.ns.nsid),
                    Choice::Direct(_) => false,
                };
                match spans.last_mut() {
                    Some(last) if together && last.choice == span.choice => last.to.end = span.to.end,
                    _ => spans.push(span),
                }
                source = Some(run.ns.nsid);
            }
        }
        spans
    }

    /// What is chosen for one run.
    fn choices(
        &self,
        plan: &CopyPlan,
        ns: &Arc<Namespace>,
        from: u64,
        to: Stretch,
        fco: bool,
    ) -> SmallVec<[Span; 3]> {
        let mut spans = SmallVec::new();
        if self.allows(ns.nsid, How::MemMove) && !fco {
            spans.push(Span { to, choice: Choice::Direct(How::MemMove) });
            return spans;
        }
        let shared = self.shared(plan, ns, from, to, fco).unwrap_or(Stretch { start: to.end, end: to.end });
        let mut push = |start, end, choice| {
            if start < end {
                spans.push(Span { to: Stretch { start, end }, choice });
            }
        };
        push(to.start, shared.start, self.below_reflink(ns.nsid, shared.start - to.start));
        push(shared.start, shared.end, Choice::Direct(How::Reflink));
        push(shared.end, to.end, self.below_reflink(ns.nsid, to.end - shared.end));
        spans
    }

    /// What of a run is shared: as much of it as is aligned, if the method is in force and it is long enough.
    fn shared(
        &self,
        plan: &CopyPlan,
        ns: &Arc<Namespace>,
        from: u64,
        to: Stretch,
        fco: bool,
    ) -> Option<Stretch> {
        if !self.allows(ns.nsid, How::Reflink) || (self.no_holes && !fco) {
            return None;
        }
        let align = self.source(ns.nsid)?.shortcuts.reflink?;
        if self.method == Method::Auto && !fco && to.len() < WORTH_IT {
            return None;
        }
        let dst = ByteRange { offset: plan.dst.offset + to.start, len: to.len() };
        let (head, end) = aligned(align, ns, from, &plan.dst_ns, dst)?;
        Some(Stretch { start: to.start + head, end: to.start + end })
    }

    fn below_reflink(&self, nsid: u32, len: u64) -> Choice {
        let long = self.method != Method::Auto || len >= WORTH_IT;
        if long && !self.no_holes && self.allows(nsid, How::Offload) {
            Choice::Direct(How::Offload)
        } else {
            Choice::Bounce
        }
    }
}

/// How a long, aligned Copy within a namespace goes, in words for a person.
pub fn best_method(ns: &Namespace) -> &'static str {
    let shortcuts = ns.disk.ways_from(&ns.disk.handle());
    let source = Source { nsid: ns.nsid, shortcuts, memory: shortcuts.memmove };
    let method = ns.facts.policy.method;
    let selection = Selection {
        method,
        no_holes: false,
        dst_memory: source.memory,
        sources: [source].into_iter().collect(),
    };
    selection.best(ns.nsid)
}

/// What an accepted Copy is to do, for the log, in blocks: destination, and each source range with the way
/// that is tried first for ranges that are long and aligned enough for it.
impl fmt::Display for CopyPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dst = &self.dst_ns;
        let to = self.dst.offset >> dst.facts.lbads;
        let durable = if self.fua { ", durable" } else { "" };
        write!(f, "{} bytes to nsid {} lba {to}{durable}, from", self.dst.len, dst.nsid)?;
        let selection = Selection::new(self);
        let mut before = None;
        for range in &self.ranges {
            let (nsid, lbads) = (range.ns.nsid, range.ns.facts.lbads);
            if before != Some(nsid) {
                write!(f, " nsid {nsid} by {}:", selection.best(nsid))?;
                before = Some(nsid);
            }
            let fast = if range.fco { " fast" } else { "" };
            write!(f, " {}+{}{fast}", range.src.offset >> lbads, range.src.len >> lbads)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::PlannedRange;
    use super::super::testing::special;
    use super::*;
    use crate::namespace::{Cntlid, CopyPolicy};

    const BLOCK: u64 = 4096;
    const MIB: u64 = 1 << 20;

    const FILES: Ways = Ways {
        memmove: false,
        reflink: Some(BLOCK),
        offload: true,
        offload_pays: true,
        offload_clones: false,
        read_write: false,
    };

    fn ns(nsid: u32, method: Method, shortcuts: Ways) -> Arc<Namespace> {
        let policy = CopyPolicy { method, ..CopyPolicy::default() };
        Arc::new(special(nsid, (64 * MIB) >> 9, 9, shortcuts, policy))
    }

    /// One range from namespace 2 to namespace 1, which knows no other way than `shortcuts`.
    struct Run {
        method: Method,
        shortcuts: Ways,
        from: u64,
        to: u64,
        len: u64,
        fco: bool,
        dulbe: bool,
    }

    impl Run {
        /// Both sides begin with a block.
        fn of(method: Method, len: u64) -> Self {
            Run { method, shortcuts: FILES, from: 8 * MIB, to: 24 * MIB, len, fco: false, dulbe: false }
        }

        fn spans(&self) -> Vec<(u64, Choice)> {
            let dst_ns = ns(1, self.method, self.shortcuts);
            dst_ns.set_dulbe(Cntlid::default(), self.dulbe);
            assert_eq!(dst_ns.life.any_dulbe(), self.dulbe);
            let src = ByteRange { offset: self.from, len: self.len };
            let source = ns(2, Method::Auto, Ways::default());
            let plan = CopyPlan {
                dst_ns,
                dst: ByteRange { offset: self.to, len: self.len },
                ranges: vec![PlannedRange { ns: source, src, at: 0, fco: self.fco, if_allocated: false }],
                fua: false,
            };
            let spans = Selection::new(&plan).spans(&plan, Stretch { start: 0, end: self.len });
            let mut end = 0;
            for span in &spans {
                assert!(span.to.start == end && end < span.to.end, "{spans:?}");
                end = span.to.end;
            }
            assert_eq!(end, self.len);
            spans.into_iter().map(|span| (span.to.len(), span.choice)).collect()
        }
    }

    const SHARED: Choice = Choice::Direct(How::Reflink);
    const OFFLOADED: Choice = Choice::Direct(How::Offload);

    #[test]
    fn short_runs_are_not_worth_it() {
        for (len, choice) in [(WORTH_IT - BLOCK, Choice::Bounce), (WORTH_IT, SHARED)] {
            assert_eq!(Run::of(Method::Auto, len).spans(), [(len, choice)]);
        }
        let unshared = Ways { reflink: None, ..FILES };
        for (len, choice) in [(WORTH_IT - 512, Choice::Bounce), (WORTH_IT, OFFLOADED)] {
            assert_eq!(Run { shortcuts: unshared, ..Run::of(Method::Auto, len) }.spans(), [(len, choice)]);
        }
        // But who asks for a way has it.
        assert_eq!(Run::of(Method::Reflink, BLOCK).spans(), [(BLOCK, SHARED)]);
        assert_eq!(Run::of(Method::Offload, BLOCK).spans(), [(BLOCK, OFFLOADED)]);
        assert_eq!(Run { fco: true, ..Run::of(Method::Auto, BLOCK) }.spans(), [(BLOCK, SHARED)]);
    }

    /// With large blocks they may be long themselves, and each goes the way that is best for its length.
    #[test]
    fn what_lies_before_and_behind_shared_blocks() {
        let large = Ways { reflink: Some(MIB), ..FILES };
        let run = |before, behind| {
            let run = Run::of(Method::Auto, before + 2 * MIB + behind);
            Run { shortcuts: large, from: 8 * MIB - before, to: 24 * MIB - before, ..run }.spans()
        };
        let (short, long) = (WORTH_IT - 512, WORTH_IT);
        let shared = (2 * MIB, SHARED);
        assert_eq!(run(short, short), [(short, Choice::Bounce), shared, (short, Choice::Bounce)]);
        assert_eq!(run(long, short), [(long, OFFLOADED), shared, (short, Choice::Bounce)]);
        assert_eq!(run(short, long), [(short, Choice::Bounce), shared, (long, OFFLOADED)]);
        assert_eq!(run(0, long), [shared, (long, OFFLOADED)]);
    }

    /// It is not cut at the block's end that it crosses.
    #[test]
    fn a_run_without_a_whole_block() {
        let run = Run::of(Method::Reflink, BLOCK);
        assert_eq!(Run { from: run.from + 512, to: run.to + 512, ..run }.spans(), [(BLOCK, OFFLOADED)]);
    }

    /// The file system would make holes of zeroes, where DULBE tells the difference; but to share is what
    /// Fast Copy Only is.
    #[test]
    fn what_is_copied_is_allocated() {
        let run = |fco| Run { fco, dulbe: true, ..Run::of(Method::Auto, MIB) }.spans();
        assert_eq!(run(false), [(MIB, Choice::Bounce)]);
        assert_eq!(run(true), [(MIB, SHARED)]);
    }

    #[test]
    fn either_side_may_be_memory() {
        let memory = Ways { memmove: true, ..Ways::default() };
        for (dst, source) in [(true, true), (true, false), (false, true), (false, false)] {
            let [dst_ns, source_ns] = [(1, dst), (2, source)]
                .map(|(nsid, memmove)| ns(nsid, Method::Bounce, if memmove { memory } else { FILES }));
            let range = ByteRange { offset: 0, len: MIB };
            let plan = CopyPlan {
                dst_ns,
                dst: range,
                ranges: vec![PlannedRange {
                    ns: source_ns,
                    src: range,
                    at: 0,
                    fco: false,
                    if_allocated: false,
                }],
                fua: false,
            };
            let selection = Selection::new(&plan);
            assert_eq!(selection.any_memory(), dst || source);
            assert_eq!((selection.is_memory(1, true), selection.is_memory(2, false)), (dst, source));
            assert!(!selection.is_memory(3, false), "of whom nothing is known");
        }
    }
}
