//! What a worker has in hand, for whoever wonders why a guest hangs.

use super::core::Core;
use super::slots::Command;
use crate::copy::{CopyPlan, PlannedRange};
use crate::nvme_ctrl::io::Task;
use crate::nvme_ctrl::view::{CommandState, CqState, PlanState, RangeState, SqState, WorkerState};
use crate::spec::commands::nvm_name;

/// Commands that are described; how many there are is said in any case.
const COMMANDS: usize = 256;

/// Ranges of a Copy that are described, likewise.
const RANGES: usize = 16;

impl Core {
    /// See the module docs. Takes a moment only: what it tells is bounded.
    pub(super) fn state(&mut self) -> WorkerState {
        let in_flight = self.slots.len();
        let commands = self.slots.iter_mut().take(COMMANDS).map(|(_, command)| describe(command)).collect();
        WorkerState {
            off_bus: self.off_bus,
            failed: self.failed,
            resetting: self.resetting.is_some(),
            flushing: self.flushing.is_some(),
            in_flight,
            waiting_for_memory: self.starved.len(),
            completion_queues: self
                .cqs
                .iter()
                .map(|cq| CqState {
                    qid: cq.ring.qid,
                    size: cq.ring.size(),
                    head: cq.ring.head(),
                    tail: cq.ring.tail(),
                    vector: cq.ring.vector,
                })
                .collect(),
            submission_queues: self
                .sqs
                .iter()
                .map(|sq| SqState {
                    qid: sq.ring.qid,
                    cqid: sq.ring.cqid,
                    size: sq.ring.size(),
                    head: sq.ring.head(),
                    tail: sq.tail.value(),
                    in_flight: sq.in_flight.commands,
                    deleting: sq.deleting.is_some(),
                })
                .collect(),
            commands,
        }
    }
}

fn describe(command: &Command) -> CommandState {
    CommandState {
        sqid: command.sqid,
        cid: command.cid,
        opcode: command.opc,
        name: nvm_name(command.opc),
        nsid: command.nsid,
        slba: command.slba,
        age_us: u64::try_from(command.since.elapsed().as_micros()).unwrap_or(u64::MAX),
        waits_for_memory: command.task.is_starved(),
        queue_is_gone: command.orphan,
        copy: match &command.task {
            Task::Copy(copy) => Some(plan(copy.plan())),
            _ => None,
        },
    }
}

fn plan(plan: &CopyPlan) -> PlanState {
    let dst = plan.dst_ns();
    let range = |range: &PlannedRange| RangeState {
        nsid: range.ns.nsid,
        slba: range.src.offset >> range.ns.facts.lbads,
        nlb: range.src.len >> range.ns.facts.lbads,
    };
    PlanState {
        nsid: dst.nsid,
        sdlba: plan.dst().offset >> dst.facts.lbads,
        nlb: plan.dst().len >> dst.facts.lbads,
        ranges: plan.ranges().len(),
        first_ranges: plan.ranges().iter().take(RANGES).map(range).collect(),
    }
}
