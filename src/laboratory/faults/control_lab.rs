//! The rules as the control threads' laboratory: admin commands, and what a host does with CC.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::armed::{Armed, Rules};
use super::matches::Seen;
use crate::laboratory::control::{ControlLab, RegisterEvent, RegisterFate};
use crate::laboratory::seam::Fate;
use crate::spec::Sqe;
use crate::spec::commands::AdminCommand;

/// See the module docs.
pub(super) struct FaultControl {
    rules: Rules,
    /// Ends of admin commands.
    ended: Arc<AtomicU64>,
}

impl FaultControl {
    /// Looks at these rules, whatever they become.
    pub fn new(rules: &Rules) -> Self {
        Self { rules: Arc::clone(rules), ended: Arc::default() }
    }
}

impl ControlLab for FaultControl {
    fn fetched(&self, sqe: &Sqe, depth: usize) -> Fate {
        let seen = Seen { sqid: 0, sqe, lbads: None };
        let name = AdminCommand::of(sqe.opc).map_or("unknown", AdminCommand::name);
        let rules = self.rules.load();
        match rules.iter().find(|armed| armed.fires(name, seen, depth, None)) {
            Some(armed) => Fate::Script(Box::new(armed.script(Instant::now(), &self.ended, 0))),
            None => Fate::Pass,
        }
    }

    fn ended(&self) {
        self.ended.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn register(&self, event: RegisterEvent) -> RegisterFate {
        let means = |armed: &&Arc<Armed>| armed.rule.matches.ops.contains_event(event);
        let rules = self.rules.load();
        match rules.iter().filter(means).find(|armed| armed.fires_for(&event.name())) {
            Some(armed) => RegisterFate {
                until: armed.until(Instant::now(), &self.ended),
                fatal: armed.rule.act.cfs.then(|| format!("fault {}", armed.name)),
            },
            None => RegisterFate::default(),
        }
    }
}
