//! A Copy command to a plain value that says what goes where, or to the reason why not. Pure.

use std::sync::Arc;

use smallvec::SmallVec;

use super::capabilities::Capabilities;
use super::checks::{Check, CommandView, Fails, ListView, RangeView, TABLE, rule};
use super::range::{Layout, SourceRange};
use crate::disk::Inline;
use crate::namespace::{
    Access, ByteRange, Cntlid, CopyPolicy, Extent, Lbas, Method, Namespace, Namespaces, admit,
};
use crate::spec::Status;
use crate::spec::copy::CopyCommand;

/// Bytes that [`CopyPlan::move_now`] moves at most: some 8 us.
const AT_ONCE: u64 = 64 << 10;

/// A refusal. Nothing was written, so CQE DW0 is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// For the host, with DNR where it belongs.
    pub status: Status,
    /// The range to blame, for logs: never for DW0.
    pub range: Option<u8>,
    /// Which rule made it: of a row of [`TABLE`], or of what is checked elsewhere. A name for programs.
    pub rule: &'static str,
    /// For logs.
    pub what: &'static str,
}

impl Reject {
    /// Of a Copy that is fused, which is asked before all that is asked of Copies.
    pub const FUSED: Self = Self {
        status: Status::INVALID_FIELD.dnr(),
        range: None,
        rule: rule::FUSED,
        what: "it is fused, and no fused operation is supported",
    };

    fn by(check: &Check, range: Option<u8>) -> Self {
        Self { status: check.status, range, rule: check.rule, what: check.what }
    }
}

/// A command that passed every check which needs no list.
#[derive(Clone, Debug)]
pub struct Checked {
    command: CopyCommand,
    dst: Arc<Namespace>,
    layout: &'static Layout,
    cntlid: Cntlid,
}

/// Makes the checks that come before the list is fetched: the rows of [`TABLE`] on the command.
pub fn check_command(
    command: &CopyCommand,
    namespaces: &Namespaces,
    capabilities: Capabilities,
) -> Result<Checked, Reject> {
    let dst = namespaces.get(command.nsid);
    let layout = Layout::of(command.desfmt());
    let view = CommandView { command, dst: dst.map(|ns| &**ns), layout, capabilities: &capabilities };
    for check in TABLE {
        if let Fails::Command(fails) = check.fails
            && fails(&view)
        {
            return Err(Reject::by(check, None));
        }
    }
    match (dst, layout) {
        (Ok(dst), Some(layout)) => {
            Ok(Checked { command: *command, dst: dst.clone(), layout, cntlid: capabilities.cntlid })
        }
        _ => Err(Reject {
            status: Status::INTERNAL_ERROR,
            range: None,
            rule: rule::INTERNAL,
            what: "the table of checks has a hole",
        }),
    }
}

impl Checked {
    /// Bytes of range list to fetch: at most 256 x 40.
    pub fn list_len(&self) -> usize {
        self.layout.list_len(self.command.nr())
    }

    /// The ranges in `list`, of which [`Self::list_len`] bytes are looked at. A shorter one is refused with Data SGL
    /// Length Invalid.
    pub fn decode(&self, list: &[u8]) -> Result<Vec<SourceRange>, Reject> {
        self.layout.decode(self.command.nr(), list).ok_or(Reject {
            status: Status::INVALID_SGL_LENGTH.dnr(),
            range: None,
            rule: rule::LIST_LENGTH,
            what: "the range list is shorter than its number of ranges",
        })
    }

    /// The destination.
    pub fn dst(&self) -> &Arc<Namespace> {
        &self.dst
    }
}

/// One source range and its share of the destination.
#[derive(Clone, Debug)]
pub struct PlannedRange {
    /// The source.
    pub ns: Arc<Namespace>,
    /// Where it lies there.
    pub src: ByteRange,
    /// Where it goes: bytes from the start of the destination, the sum of all ranges before it.
    pub at: u64,
    /// Fast Copy Only: it is copied by a reflink as a whole, or the Copy fails.
    pub fco: bool,
    /// The Copy fails unless all of it is allocated (DULBE): asked before the first write.
    pub if_allocated: bool,
}

/// A Copy that may run: everything about it has been checked.
#[derive(Clone, Debug)]
pub struct CopyPlan {
    pub(super) dst_ns: Arc<Namespace>,
    pub(super) dst: ByteRange,
    pub(super) ranges: Vec<PlannedRange>,
    pub(super) fua: bool,
}

impl CopyPlan {
    /// The destination namespace.
    pub fn dst_ns(&self) -> &Arc<Namespace> {
        &self.dst_ns
    }

    /// The destination in bytes; never empty.
    pub fn dst(&self) -> ByteRange {
        self.dst
    }

    /// The ranges in list order: together they tile the destination. At least one, none empty.
    pub fn ranges(&self) -> &[PlannedRange] {
        &self.ranges
    }

    /// The destination must be durable before the completion.
    pub fn fua(&self) -> bool {
        self.fua
    }

    /// Does it, where it is one short move within memory; else nothing is lost, and a [task](super::CopyTask) is to do
    /// it. Tasks take turns with all other work, but at this size they cost as much as the move.
    pub fn move_now(&self) -> bool {
        let [PlannedRange { ns, src, fco: false, if_allocated: false, .. }] = self.ranges.as_slice() else {
            return false;
        };
        let dst = &self.dst_ns;
        let plain = !self.fua && dst.facts.policy.method == Method::Auto;
        let (true, Inline::Immediate(disk)) = (plain && src.len <= AT_ONCE, dst.disk.inline()) else {
            return false;
        };
        disk.move_from(&ns.disk.handle(), src.offset, self.dst.offset, src.len)
    }

    /// The same plan, carried out by reads and writes alone, whatever that costs: all bytes come through memory of ours. Fast
    /// Copy Only is forgotten, for it was promised of another way.
    pub fn bounced(mut self) -> Self {
        let policy = CopyPolicy { method: Method::Bounce, ..self.dst_ns.facts.policy };
        self.dst_ns = Arc::new(Namespace::clone(&self.dst_ns).with_policy(policy));
        self.ranges.iter_mut().for_each(|range| range.fco = false);
        self
    }

    /// The same plan with the destination durable before the completion, whatever FUA says: for a controller whose
    /// volatile write cache is off.
    pub fn durable(mut self) -> Self {
        self.fua = true;
        self
    }
}

/// Makes all remaining checks: the rows of [`TABLE`] on the list, and lays the ranges out.
///
/// `ranges` as decoded by [`Checked::decode`]; a source that is the destination is taken from `checked`, so that
/// both are one namespace even if `namespaces` has changed in between.
pub fn plan(checked: &Checked, ranges: &[SourceRange], namespaces: &Namespaces) -> Result<CopyPlan, Reject> {
    let Checked { command, dst, .. } = checked;
    let mut total = 0;
    let source = |range: &SourceRange| match range.snsid {
        None => Ok(dst),
        Some(snsid) if snsid == dst.nsid => Ok(dst),
        Some(snsid) => namespaces.get(snsid),
    };
    let mut views: SmallVec<[_; 4]> = SmallVec::with_capacity(ranges.len());
    for range in ranges {
        views.push(RangeView { range, source: source(range), at: total });
        total += u64::from(range.nlb);
    }
    let view = ListView { command, dst, cross: checked.layout.cross, total };
    for check in TABLE {
        match check.fails {
            Fails::Command(_) => {}
            Fails::List(fails) => {
                if fails(&view) {
                    return Err(Reject::by(check, None));
                }
            }
            Fails::Range(fails) => {
                if let Some(index) = fails(&view, &views) {
                    return Err(Reject::by(check, u8::try_from(index).ok()));
                }
            }
        }
    }
    lay_out(checked, &views, total).ok_or(Reject {
        status: Status::INTERNAL_ERROR,
        range: None,
        rule: rule::INTERNAL,
        what: "the table of checks has a hole",
    })
}

fn lay_out(checked: &Checked, views: &[RangeView<'_>], total: u64) -> Option<CopyPlan> {
    let mut at = 0;
    let mut planned = Vec::with_capacity(views.len());
    for RangeView { range, source, .. } in views {
        let ns = (*source).ok()?.clone();
        let lbas = Lbas { slba: range.slba, nlb: range.nlb.into() };
        let Extent { data: src, if_allocated } = admit(&ns, Access::Read, lbas, checked.cntlid).ok()?;
        planned.push(PlannedRange { ns, src, at, fco: range.fco, if_allocated });
        at += src.len;
    }
    let lbas = Lbas { slba: checked.command.sdlba(), nlb: total };
    let dst = admit(&checked.dst, Access::Write, lbas, checked.cntlid).ok()?.data;
    (dst.len == at && at > 0).then(|| CopyPlan {
        dst_ns: checked.dst.clone(),
        dst,
        ranges: planned,
        fua: checked.command.fua(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{command, namespace};
    use super::*;

    /// Should a check be missing, a plan that does not tile its destination is none.
    #[test]
    fn a_plan_tiles_its_destination() {
        let namespaces = Namespaces::new(vec![namespace(1, 1000, 9), namespace(2, 1000, 12)], 2);
        let capabilities = Capabilities { ocfs: 4, cdfe: 4, ..Capabilities::default() };
        let checked = check_command(&command(1, 8, 2, 1), &namespaces, capabilities).expect("sound");
        let lay_out = |nsid, nlb| {
            let range = SourceRange { nlb, ..SourceRange::plain(Some(nsid), 16, 1) };
            let view = RangeView { range: &range, source: namespaces.get(nsid), at: 0 };
            lay_out(&checked, &[view], u64::from(nlb)).map(|plan| plan.dst)
        };
        assert_eq!(lay_out(1, 2), Some(ByteRange { offset: 8 * 512, len: 1024 }));
        assert_eq!(lay_out(2, 2), None, "larger blocks");
        assert_eq!(lay_out(1, 0), None, "nothing");
    }
}
