//! The rules that are in force, for whoever adds, lists and clears them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::armed::{Armed, Rules};
use super::control_lab::FaultControl;
use super::error::RuleError;
use super::rule::Rule;
use super::worker_lab::FaultLab;
use crate::laboratory::tools::{Laboratory, Tool};

/// Rules at most.
pub const RULES_MAX: usize = 256;

/// The name of the tool.
const TOOL: &str = "faults";

/// See the module docs. No lock of it is ever taken by who runs commands.
pub struct Faults {
    laboratory: Arc<Laboratory>,
    rules: Rules,
    /// Held while they are changed: the number of the last rule without a name.
    last: Mutex<u64>,
}

/// What is to be told of a rule.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct RuleReport {
    /// What it is called.
    pub name: String,
    /// Its line.
    pub rule: String,
    /// Where its random numbers begin, if it has any.
    pub seed: Option<u64>,
    /// Commands that it met while its other conditions held.
    pub matched: u64,
    /// How often it fired.
    pub fired: u64,
    /// Commands that it holds now.
    pub held: usize,
    /// Blocks that are still bad, if it is about any.
    pub bad_blocks: Option<u64>,
    /// It will not fire again.
    pub spent: bool,
}

impl Faults {
    /// None yet.
    pub fn new(laboratory: Arc<Laboratory>) -> Arc<Self> {
        Arc::new(Self { laboratory, rules: Rules::default(), last: Mutex::new(0) })
    }

    /// Puts a rule into force, behind those that are. Its name. Commands that are rung for when this has
    /// returned meet it, unless a worker has not answered within `patience`.
    ///
    /// # Errors
    /// The name is taken, it waits for a rule that is not there, or there are too many.
    pub fn add(&self, rule: Rule, patience: Duration) -> Result<String, RuleError> {
        let mut last = self.locked();
        let rules = self.rules.load_full();
        if rules.len() >= RULES_MAX {
            let problem = format!("there are {RULES_MAX} rules already");
            return Err(RuleError::new("the rule", problem, "clear some of them"));
        }
        let find = |name: &str| rules.iter().find(|armed| armed.name == name);
        let name = match &rule.name {
            Some(name) if find(name).is_some() => {
                let word = format!("name={name}");
                return Err(RuleError::new(&word, "is the name of a rule already", "choose another one"));
            }
            Some(name) => name.clone(),
            None => loop {
                *last += 1;
                let name = last.to_string();
                if find(&name).is_none() {
                    break name;
                }
            },
        };
        let after = match &rule.when.after {
            None => None,
            Some(other) => {
                Some(find(other).map(|armed| Arc::clone(&armed.tally.fired)).ok_or_else(|| {
                    let word = format!("after={other}");
                    RuleError::new(&word, "is the name of no rule", "add that one first, with name=")
                })?)
            }
        };
        let armed = Armed::new(name.clone(), rule, after);
        log::info!("fault {name}: {}", armed.rule.text);
        if let Some(seed) = armed.seed() {
            log::info!("fault {name}: seed={seed}");
        }
        let mut all = Vec::clone(&rules);
        all.push(Arc::new(armed));
        self.rules.store(Arc::new(all));
        if rules.is_empty() && !self.laboratory.put(self.tool(), patience) {
            log::warn!("a worker has not yet heard of the first fault rule");
        }
        Ok(name)
    }

    /// All rules, in the order in which they are asked.
    pub fn list(&self) -> Vec<RuleReport> {
        self.rules.load().iter().map(|armed| armed.report()).collect()
    }

    /// Takes the rule of this name, or all, out of force. What it holds goes on. How many there were.
    pub fn clear(&self, name: Option<&str>, patience: Duration) -> usize {
        let _changing = self.locked();
        let rules = self.rules.load_full();
        let (gone, left): (Vec<_>, Vec<_>) =
            rules.iter().cloned().partition(|armed| name.is_none_or(|name| armed.name == name));
        let is_empty = left.is_empty();
        self.rules.store(Arc::new(left));
        gone.iter().for_each(|armed| _ = armed.latch().release());
        if is_empty {
            self.laboratory.take(TOOL, patience);
        } else {
            self.laboratory.wake(patience);
        }
        gone.len()
    }

    /// Lets go what the rule of this name, or each, holds: how many commands. `None`: there is no such rule.
    pub fn release(&self, name: Option<&str>, patience: Duration) -> Option<usize> {
        let _changing = self.locked();
        let rules = self.rules.load();
        let mut meant = rules.iter().filter(|armed| name.is_none_or(|name| armed.name == name)).peekable();
        if name.is_some() {
            meant.peek()?;
        }
        let held = meant.map(|armed| armed.latch().release()).sum();
        self.laboratory.wake(patience);
        Some(held)
    }

    fn tool(&self) -> Tool {
        let rules = Arc::clone(&self.rules);
        let control = FaultControl::new(&rules);
        Tool {
            name: TOOL,
            make: Arc::new(move |_| Box::new(FaultLab::new(&rules))),
            control: Some(Arc::new(control)),
        }
    }

    fn locked(&self) -> MutexGuard<'_, u64> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Armed {
    /// Where its random numbers begin, if it has any.
    fn seed(&self) -> Option<u64> {
        self.rule.when.below.map(|_| self.rule.when.seed)
    }

    fn report(&self) -> RuleReport {
        RuleReport {
            name: self.name.clone(),
            rule: self.rule.text.clone(),
            seed: self.seed(),
            matched: self.tally.matched(),
            fired: self.tally.fired.count(),
            held: self.latch().held(),
            bad_blocks: self.bad.as_ref().map(|bad| bad.left()),
            spent: self.is_spent(),
        }
    }
}
