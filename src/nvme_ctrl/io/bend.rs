//! A command that was started, and what a laboratory makes of it.

use super::bent::{Bent, Data, Direction};
use super::task::Task;
use crate::copy::{Bounce, CopyPlan};
use crate::laboratory::{Layout, Script};
use crate::namespace::Namespace;
use crate::spec::commands::NvmCommand;
use crate::spec::{Outcome, Sqe};

/// `task`, which has not begun, carries out `sqe` and is to meet `script`. `ns` is what its NSID names.
pub fn bend(task: Task, script: Script, sqe: &Sqe, ns: Option<&Namespace>, bounce: &Bounce) -> Task {
    let (task, data) = match task {
        Task::Copy(copy) => {
            let data = of_copy(copy.plan());
            let copy = if script.bends_data() { copy.bounced(bounce).map(Box::new) } else { Ok(copy) };
            let task = copy.map_or_else(|reject| Task::Over(Outcome::of(reject.status)), Task::Copy);
            (task, Some(data))
        }
        task => (task, ns.and_then(|ns| of_blocks(ns, sqe))),
    };
    Task::Bent(Box::new(Bent::new(task, script, data)))
}

fn of_copy(plan: &CopyPlan) -> Data {
    let ends = plan.ranges().iter().map(|range| range.at + range.src.len).collect();
    let layout = Layout::of_ranges(plan.dst_ns().facts.block_size(), ends);
    Data { direction: Direction::ToImage, start: plan.dst().offset, layout }
}

fn of_blocks(ns: &Namespace, sqe: &Sqe) -> Option<Data> {
    let direction = match NvmCommand::of(sqe.opc)? {
        NvmCommand::Read => Direction::ToHost,
        NvmCommand::Write | NvmCommand::WriteZeroes => Direction::ToImage,
        NvmCommand::Compare | NvmCommand::Verify => Direction::Nowhere,
        NvmCommand::Dsm => {
            let layout = Layout::plain(ns.facts.block_size(), 0);
            return Some(Data { direction: Direction::Nowhere, start: 0, layout });
        }
        NvmCommand::Flush | NvmCommand::Copy => return None,
    };
    let range = ns.facts.bytes(sqe.slba(), sqe.nlb().count().into())?;
    Some(Data { direction, start: range.offset, layout: Layout::plain(ns.facts.block_size(), range.len) })
}
