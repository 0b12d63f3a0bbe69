//! What a command that a laboratory holds back waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Where commands are stalled until somebody says so. Shared by all threads.
#[derive(Debug, Default)]
pub struct Barrier {
    releases: AtomicU64,
    held: AtomicUsize,
}

impl Barrier {
    /// Lets go all that it holds; how many that is. What comes later is held again.
    pub fn release(&self) -> usize {
        self.releases.fetch_add(1, Ordering::Release);
        self.held()
    }

    /// What it holds, or has let go and did not go on yet.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// One more command is held.
    pub fn hold(self: &Arc<Self>) -> Stalled {
        self.held.fetch_add(1, Ordering::Relaxed);
        Stalled { since: self.releases.load(Ordering::Acquire), barrier: Arc::clone(self) }
    }
}

/// A command's place at a [`Barrier`].
#[derive(Debug)]
pub struct Stalled {
    barrier: Arc<Barrier>,
    since: u64,
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.barrier.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See the module docs.
#[derive(Debug, Default)]
pub enum Gate {
    /// Nothing.
    #[default]
    Open,
    /// This time.
    Until(Instant),
    /// A release.
    Shut(Stalled),
    /// The ends of others.
    Others {
        /// Counts them.
        ended: Arc<AtomicU64>,
        /// The count that is waited for.
        until: u64,
        /// No longer than this.
        at_latest: Instant,
    },
}

impl Gate {
    /// May it go on?
    pub fn is_open(&self, now: Instant) -> bool {
        match self {
            Self::Open => true,
            Self::Until(at) => now >= *at,
            Self::Shut(Stalled { barrier, since }) => barrier.releases.load(Ordering::Acquire) != *since,
            Self::Others { ended, until, at_latest } => {
                ended.load(Ordering::Relaxed) >= *until || now >= *at_latest
            }
        }
    }

    /// When it opens by itself, if it does.
    pub fn due(&self) -> Option<Instant> {
        match self {
            Self::Open | Self::Shut(_) => None,
            Self::Until(at) | Self::Others { at_latest: at, .. } => Some(*at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_release_is_for_those_who_are_there() {
        let (barrier, now) = (Arc::new(Barrier::default()), Instant::now());
        let gates = [(); 3].map(|()| Gate::Shut(barrier.hold()));
        assert!(gates.iter().all(|gate| !gate.is_open(now) && gate.due().is_none()));
        assert_eq!(barrier.release(), 3);
        assert!(gates.iter().all(|gate| gate.is_open(now)));
        let later = Gate::Shut(barrier.hold());
        assert!(!later.is_open(now));
        drop(gates);
        assert_eq!(barrier.held(), 1);
    }

    #[test]
    fn time_and_the_ends_of_others() {
        let now = Instant::now();
        let then = now + Duration::from_secs(1);
        assert!(
            Gate::Open.is_open(now) && !Gate::Until(then).is_open(now) && Gate::Until(then).is_open(then)
        );
        let ended = Arc::new(AtomicU64::new(4));
        let gate = Gate::Others { ended: Arc::clone(&ended), until: 6, at_latest: then };
        assert!(!gate.is_open(now) && gate.is_open(then));
        assert_eq!(gate.due(), Some(then));
        ended.store(6, Ordering::Relaxed);
        assert!(gate.is_open(now));
    }
}
