//! The rules as one worker's laboratory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::Cache;

use super::armed::{AllArmed, Armed, Rules};
use super::matches::{Seen, SeenCopy};
use crate::copy::CopyPlan;
use crate::laboratory::bad_blocks::BadBlocks;
use crate::laboratory::script::{Post, Script};
use crate::laboratory::seam::{CommandId, Fate, Fetched, Lab};
use crate::spec::commands::{NvmCommand, nvm_name};
use crate::spec::{Outcome, Sqe};

/// See the module docs.
pub(super) struct FaultLab {
    rules: Cache<Rules, Arc<AllArmed>>,
    /// Ends of each queue's commands.
    ended: HashMap<u16, Arc<AtomicU64>>,
    /// The Copy that was fetched last, until it is planned: it, and how many of its queue were in flight.
    copy: Option<(CommandId, Sqe, usize)>,
}

impl FaultLab {
    /// Looks at these rules, whatever they become.
    pub fn new(rules: &Rules) -> Self {
        Self { rules: Cache::new(Arc::clone(rules)), ended: HashMap::new(), copy: None }
    }
}

/// Bad blocks that a command could meet.
fn bad(rules: &[Arc<Armed>], sqe: &Sqe) -> Vec<Arc<BadBlocks>> {
    let moves = |command: NvmCommand| command.has_lba() || command == NvmCommand::Dsm;
    if !NvmCommand::of(sqe.opc).is_some_and(moves) {
        return Vec::new();
    }
    // What a Copy reads may lie in another namespace.
    let any = sqe.opc == NvmCommand::Copy.opcode();
    let meets = |armed: &&Arc<Armed>| any || armed.rule.matches.nsid == Some(sqe.nsid.get());
    rules.iter().filter(meets).filter_map(|armed| armed.bad.clone()).collect()
}

/// The first byte of a command that starts at block `first` which lies in the rule's window.
fn first_byte(armed: &Armed, first: u64, lbads: u8) -> u64 {
    let window = armed.rule.matches.blocks.map(|blocks| blocks.logical(lbads));
    window.map_or(0, |window| window.first.saturating_sub(first) << lbads)
}

impl Lab for FaultLab {
    fn fetched(&mut self, id: CommandId, command: Fetched<'_>) -> Fate {
        let Fetched { sqe, ns, depth } = command;
        let lbads = ns.map(|ns| ns.facts.lbads);
        let seen = Seen { sqid: id.sqid, sqe, lbads };
        let rules = self.rules.load();
        let bad = bad(rules, sqe);
        let fires = rules.iter().find(|armed| armed.fires(nvm_name(sqe.opc), seen, depth, None));
        self.copy = None;
        match fires {
            Some(armed) => {
                let ended = self.ended.entry(id.sqid).or_default();
                let first = lbads.map_or(0, |lbads| first_byte(armed, sqe.slba(), lbads));
                Fate::Script(Box::new(Script { bad, ..armed.script(Instant::now(), ended, first) }))
            }
            None if sqe.opc == NvmCommand::Copy.opcode() => {
                self.copy = Some((id, *sqe, depth));
                Fate::Pass
            }
            None if bad.is_empty() => Fate::Pass,
            None => Fate::Script(Box::new(Script { bad, ..Script::default() })),
        }
    }

    fn planned(&mut self, id: CommandId, plan: &CopyPlan) -> Fate {
        let Some((_, sqe, depth)) = self.copy.take().filter(|(of, ..)| *of == id) else { return Fate::Pass };
        let lbads = plan.dst_ns().facts.lbads;
        let sources = plan.ranges().iter().map(|range| {
            let lbads = range.ns.facts.lbads;
            (range.src.offset >> lbads, range.src.len >> lbads, lbads)
        });
        let dst = (plan.dst().offset >> lbads, plan.dst().len >> lbads);
        let copy = SeenCopy { dst, lbads, sources: sources.collect() };
        let seen = Seen { sqid: id.sqid, sqe: &sqe, lbads: Some(lbads) };
        let rules = self.rules.load();
        let bad = bad(rules, &sqe);
        match rules.iter().find(|armed| armed.fires(nvm_name(sqe.opc), seen, depth, Some(&copy))) {
            Some(armed) => {
                let ended = self.ended.entry(id.sqid).or_default();
                let first = first_byte(armed, dst.0, lbads);
                Fate::Script(Box::new(Script { bad, ..armed.script(Instant::now(), ended, first) }))
            }
            None if bad.is_empty() => Fate::Pass,
            None => Fate::Script(Box::new(Script { bad, ..Script::default() })),
        }
    }

    fn ended(&mut self, id: CommandId, _: &mut Outcome) -> Post {
        if let Some(ended) = self.ended.get(&id.sqid) {
            ended.fetch_add(1, Ordering::Relaxed);
        }
        Post::Once
    }
}
