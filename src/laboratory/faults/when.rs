//! When a rule that means a command fires. The n-th command that a rule meets is the n-th whichever worker has it, so
//! the same commands and the same seed give the same firings.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::laboratory::fired::Fired;
use crate::laboratory::lands::mix;
use crate::laboratory::until::Latch;

/// Conditions beside what the command is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct When {
    /// It fires so often at most.
    pub limit: Option<u64>,
    /// It lets so many commands pass first.
    pub skip: u64,
    /// Then it takes the last of so many; 1 or more.
    pub every: u64,
    /// It takes one where a number of 64 bits that follows from the seed is below this.
    pub below: Option<u64>,
    /// For that.
    pub seed: u64,
    /// So many commands of the queue are in flight at least, this one counted.
    pub depth: usize,
    /// This file exists.
    pub file: Option<PathBuf>,
    /// This rule has fired.
    pub after: Option<String>,
}

impl Default for When {
    fn default() -> Self {
        Self { limit: None, skip: 0, every: 1, below: None, seed: 0, depth: 0, file: None, after: None }
    }
}

/// What is counted of a rule, by all threads.
#[derive(Debug)]
pub(super) struct Tally {
    /// Commands that it met while the rest of its conditions held.
    matched: AtomicU64,
    pub fired: Arc<Fired>,
    pub latch: Arc<Latch>,
}

impl Tally {
    /// Of a new rule of this name.
    pub fn new(name: &str) -> Self {
        Self {
            matched: AtomicU64::new(0),
            fired: Arc::new(Fired::of(name)),
            latch: Arc::new(Latch::default()),
        }
    }

    /// How many commands it met.
    pub fn matched(&self) -> u64 {
        self.matched.load(Ordering::Relaxed)
    }
}

impl When {
    /// Is there nothing left of its limit?
    pub fn is_spent(&self, tally: &Tally) -> bool {
        self.limit.is_some_and(|limit| tally.fired.count() >= limit)
    }

    /// The rule meets a command, with `depth` of the queue's in flight: does it fire, for `what`? `after` counts the
    /// firings of the rule that is waited for.
    pub fn fires(&self, tally: &Tally, after: Option<&Fired>, depth: usize, what: &dyn fmt::Display) -> bool {
        if self.is_spent(tally)
            || depth < self.depth
            || after.is_some_and(|fired| fired.count() == 0)
            || self.file.as_ref().is_some_and(|file| !file.exists())
        {
            return false;
        }
        let n = tally.matched.fetch_add(1, Ordering::Relaxed) + 1;
        self.takes(n) && tally.fired.fires_up_to(self.limit, what)
    }

    /// Is the `n`-th command that is met one to be taken?
    fn takes(&self, n: u64) -> bool {
        let Some(n) = n.checked_sub(self.skip).filter(|n| *n > 0) else { return false };
        n.is_multiple_of(self.every) && self.below.is_none_or(|below| mix(self.seed, n) < below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn firings(when: &When, commands: u64) -> Vec<u64> {
        let tally = Tally::new("1");
        (1..=commands).filter(|_| when.fires(&tally, None, 1, &"a test")).collect::<Vec<_>>()
    }

    #[test]
    fn the_nth() {
        let of = |skip, every, limit| firings(&When { skip, every, limit, ..When::default() }, 10);
        assert_eq!(of(0, 1, None).len(), 10);
        assert_eq!(of(0, 3, None), [3, 6, 9]);
        assert_eq!(of(4, 1, Some(1)), [5]);
        assert_eq!(of(1, 2, Some(2)), [3, 5]);
        assert_eq!(of(0, 1, Some(0)), Vec::<u64>::new());
    }

    #[test]
    fn what_is_waited_for() {
        let (tally, other) = (Tally::new("1"), Fired::of("2"));
        let deep = When { depth: 4, ..When::default() };
        assert!(!deep.fires(&tally, None, 3, &"") && deep.fires(&tally, None, 4, &""));
        let after = When { after: Some("2".into()), ..When::default() };
        assert!(!after.fires(&tally, Some(&other), 1, &""));
        other.fires(&"");
        assert!(after.fires(&tally, Some(&other), 1, &""));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("on");
        let while_there = When { file: Some(file.clone()), ..When::default() };
        assert!(!while_there.fires(&tally, None, 1, &""));
        std::fs::write(&file, "").unwrap();
        assert!(while_there.fires(&tally, None, 1, &""));
        assert_eq!(tally.matched(), 3, "what is not waited for any more is met");
    }

    #[test]
    fn about_as_many_as_the_chance_says() {
        let one_in_ten = When { below: Some(u64::MAX / 10), seed: 1, ..When::default() };
        let count = firings(&one_in_ten, 10_000).len();
        assert!((800..1200).contains(&count), "{count}");
    }

    proptest! {
        #[test]
        fn a_seed_says_which(seed in any::<u64>(), below in any::<u64>()) {
            let when = When { below: Some(below), seed, ..When::default() };
            prop_assert_eq!(firings(&when, 50), firings(&when, 50));
        }

        /// Threads meet commands in any order; how many fire does not depend on it.
        #[test]
        fn threads_change_no_count(skip in 0u64..20, every in 1u64..5, limit in 0u64..40, seed in any::<u64>()) {
            let when = When { skip, every, limit: Some(limit), below: Some(u64::MAX / 2), seed, ..When::default() };
            let alone = firings(&when, 200).len();
            let tally = Tally::new("1");
            let count = AtomicU64::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..50 {
                            count.fetch_add(u64::from(when.fires(&tally, None, 1, &"")), Ordering::Relaxed);
                        }
                    });
                }
            });
            prop_assert_eq!(count.into_inner(), alone as u64);
            prop_assert_eq!(tally.fired.count(), alone as u64);
        }
    }
}
