//! A rule in force: what it counts, and what a command meets for which it fires.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::matches::{Seen, SeenCopy};
use super::rule::{Act, Hold, HoldAt, Rule};
use super::when::Tally;
use crate::laboratory::bad_blocks::BadBlocks;
use crate::laboratory::fired::Fired;
use crate::laboratory::script::{Flip, LateRange, Script};
use crate::laboratory::until::{Latch, Until};

/// The longest that a command waits for the ends of others.
const REORDER_MOST: Duration = Duration::from_secs(1);

/// See the module docs. Shared by all threads.
#[derive(Debug)]
pub(super) struct Armed {
    pub name: String,
    pub rule: Rule,
    pub tally: Tally,
    /// What it waits for.
    after: Option<Arc<Fired>>,
    /// Of a rule about a medium: the blocks.
    pub bad: Option<Arc<BadBlocks>>,
}

/// All rules there are, the first that was added first.
pub(super) type AllArmed = Vec<Arc<Armed>>;

/// The rules as they are now, for all who look at them.
pub(super) type Rules = Arc<ArcSwap<AllArmed>>;

/// A command of a queue, for the log.
struct Sighting<'a>(&'a str, Seen<'a>);

impl fmt::Display for Sighting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name, Seen { sqid, sqe, .. }) = self;
        let (nsid, slba) = (sqe.nsid.get(), sqe.slba());
        write!(f, "{name} sqid {sqid} cid {:#x} nsid {nsid:#x} cdw10 {slba:#x}", sqe.cid.get())?;
        write!(f, " cdw12 {:#x}", sqe.cdw12.get())
    }
}

impl Armed {
    /// A rule under this name. `after` counts the firings of the rule that it waits for.
    pub fn new(name: String, rule: Rule, after: Option<Arc<Fired>>) -> Self {
        let tally = Tally::new(&name);
        let bad = rule.act.bad.zip(rule.matches.nsid).map(|(window, nsid)| {
            Arc::new(BadBlocks::new(nsid, window.first, window.count, Arc::clone(&tally.fired)))
        });
        Self { name, rule, tally, after, bad }
    }

    /// Does it fire for this command, which is called `name`? `depth`: commands of its queue in flight.
    /// `copy`: what is planned, if it is asked once more for a Copy whose blocks it looks at.
    pub fn fires(&self, name: &str, seen: Seen<'_>, depth: usize, copy: Option<&SeenCopy>) -> bool {
        let matches = &self.rule.matches;
        self.bad.is_none()
            && (matches.waits_for_plan(seen.sqid, seen.sqe) == copy.is_some())
            && matches.meets(seen, copy)
            && self.rule.when.fires(&self.tally, self.after.as_deref(), depth, &Sighting(name, seen))
    }

    /// Does it fire for something else that `what` says?
    pub fn fires_for(&self, what: &dyn fmt::Display) -> bool {
        self.rule.when.fires(&self.tally, self.after.as_deref(), 1, what)
    }

    /// Is there nothing left of its limit, or no bad block?
    pub fn is_spent(&self) -> bool {
        match &self.bad {
            Some(bad) => bad.left() == 0,
            None => self.rule.when.is_spent(&self.tally),
        }
    }

    pub fn latch(&self) -> &Latch {
        &self.tally.latch
    }

    /// What a command waits for that is held now. `ended` counts the ends of its queue.
    pub fn until(&self, now: Instant, ended: &Arc<AtomicU64>) -> Until {
        match self.rule.act.hold {
            None => Until::Now,
            Some(Hold::For(time)) => Until::Time(now + time),
            Some(Hold::UntilReleased) => Until::Release(self.tally.latch.hold()),
            Some(Hold::Others(others)) => Until::Others {
                ended: Arc::clone(ended),
                until: ended.load(Ordering::Relaxed).saturating_add(others.into()),
                at_latest: now + REORDER_MOST,
            },
        }
    }

    /// What a command meets for which it fires. `first`: the first of its bytes that the rule is about.
    pub fn script(&self, now: Instant, ended: &Arc<AtomicU64>, first: u64) -> Script {
        let act: &Act = &self.rule.act;
        let range = self.rule.matches.range.map(u32::from);
        let mut script = Script {
            idle: act.idle,
            lands: act.lands.clone(),
            flip: act.flip.as_ref().map(|flip| Flip {
                at: flip.at.saturating_add(if range.is_some() { 0 } else { first }),
                range,
                mask: flip.mask.clone(),
            }),
            edits: act.edits.clone(),
            ending: act.ending,
            post: act.post,
            spurious: act.spurious,
            busy: act.busy,
            fatal: act.cfs.then(|| format!("fault {}", self.name)),
            ..Script::default()
        };
        let until = self.until(now, ended);
        match (act.hold, act.place) {
            // Those that come later are to end first.
            (Some(Hold::Others(_)), _) | (_, HoldAt::End) => script.end = until,
            (_, HoldAt::Begin) => script.begin = until,
            (_, HoldAt::Range(range)) => script.late = Some(LateRange { range: range.into(), until }),
        }
        script
    }
}
