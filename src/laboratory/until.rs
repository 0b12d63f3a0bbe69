//! What a command that a laboratory holds back waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Where commands are stalled until somebody says so. Shared by all threads.
#[derive(Debug, Default)]
pub struct Latch {
    releases: AtomicU64,
    held: AtomicUsize,
}

impl Latch {
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
        Stalled { since: self.releases.load(Ordering::Acquire), latch: Arc::clone(self) }
    }
}

/// A command's place at a [`Latch`].
#[derive(Debug)]
pub struct Stalled {
    latch: Arc<Latch>,
    since: u64,
}

impl Drop for Stalled {
    fn drop(&mut self) {
        self.latch.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See the module docs.
#[derive(Debug, Default)]
pub enum Until {
    /// Nothing.
    #[default]
    Now,
    /// This time.
    Time(Instant),
    /// A release.
    Release(Stalled),
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

impl Until {
    /// May it go on?
    pub fn is_over(&self, now: Instant) -> bool {
        match self {
            Self::Now => true,
            Self::Time(at) => now >= *at,
            Self::Release(Stalled { latch, since }) => latch.releases.load(Ordering::Acquire) != *since,
            Self::Others { ended, until, at_latest } => {
                ended.load(Ordering::Relaxed) >= *until || now >= *at_latest
            }
        }
    }

    /// When it is over by itself, if it ever is.
    pub fn due(&self) -> Option<Instant> {
        match self {
            Self::Now | Self::Release(_) => None,
            Self::Time(at) | Self::Others { at_latest: at, .. } => Some(*at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_release_is_for_those_who_are_there() {
        let (latch, now) = (Arc::new(Latch::default()), Instant::now());
        let held = [(); 3].map(|()| Until::Release(latch.hold()));
        assert!(held.iter().all(|until| !until.is_over(now) && until.due().is_none()));
        assert_eq!(latch.release(), 3);
        assert!(held.iter().all(|until| until.is_over(now)));
        let later = Until::Release(latch.hold());
        assert!(!later.is_over(now));
        drop(held);
        assert_eq!(latch.held(), 1);
    }

    #[test]
    fn time_and_the_ends_of_others() {
        let now = Instant::now();
        let then = now + Duration::from_secs(1);
        assert!(
            Until::Now.is_over(now) && !Until::Time(then).is_over(now) && Until::Time(then).is_over(then)
        );
        let ended = Arc::new(AtomicU64::new(4));
        let until = Until::Others { ended: Arc::clone(&ended), until: 6, at_latest: then };
        assert!(!until.is_over(now) && until.is_over(then));
        assert_eq!(until.due(), Some(then));
        ended.store(6, Ordering::Relaxed);
        assert!(until.is_over(now));
    }
}
