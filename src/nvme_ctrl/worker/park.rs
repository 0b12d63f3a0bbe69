//! When a worker with nothing to do looks again, and when it sleeps.
//!
//! To be woken costs the guest a trap and us two thread switches; to look costs a processor that somebody else might
//! need. So it looks for as long as a wake-up costs, and only as long as that has paid: each find within the window
//! earns what it saved, each window in vain costs itself. Rare work is never waited for, and nothing at all costs one
//! window, then zero.

use std::time::{Duration, Instant};

use crate::nvme_ctrl::doorbells::Tick;

/// How a worker waits for doorbells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// Looks while that pays, then sleeps.
    #[default]
    Adaptive,
    /// Never sleeps.
    Always,
}

/// See the module docs.
#[derive(Debug)]
pub struct Park {
    poll: Poll,
    /// What a wake-up costs, and so the longest that is worth looking for it.
    window: Duration,
    /// Nanoseconds; looking is on while it is positive.
    credit: i64,
    /// Since when there was nothing to do.
    since: Option<Instant>,
    tick: Tick,
}

/// A trapped doorbell, the control thread's wake-up and the worker's: 15 to 50 us on machines of these days. The lower
/// half, because a guest without hardware virtualization runs on the same processors.
const TRAPPED: Duration = Duration::from_micros(24);
/// With a mapped page nobody wakes the worker, and the least a tick costs is 64 us and the kernel's slack of 50.
const MAPPED: Duration = Duration::from_micros(200);
/// Windows' worth that credit goes up and down to: so much habit, and no more.
const HABIT: i64 = 4;

impl Park {
    /// `mapped`: doorbells change without anybody being told.
    pub fn new(poll: Poll, mapped: bool) -> Self {
        let window = if mapped { MAPPED } else { TRAPPED };
        Self { poll, window, credit: 0, since: None, tick: Tick::default() }
    }

    /// Something was done in this turn.
    pub fn busy(&mut self) {
        // No look at the clock in the middle of work.
        if let Some(since) = self.since.take() {
            self.found(since.elapsed());
        }
    }

    /// There was nothing to do for `gap`; whether that was looked away or slept makes no difference to what looking
    /// would have earned.
    fn found(&mut self, gap: Duration) {
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let window = nanos(self.window);
        let earned = if gap < self.window { window - nanos(gap) } else { -window };
        self.credit = (self.credit + earned).clamp(-HABIT * window, HABIT * window);
        self.tick = Tick::default();
    }

    /// Nothing was done in this turn: shall it look again at once?
    pub fn look_again(&mut self) -> Look {
        let first = self.since.is_none();
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.poll == Poll::Always || (self.credit > 0 && since.elapsed() < self.window) {
            if first { Look::First } else { Look::Again }
        } else {
            Look::Sleep
        }
    }

    /// How long to sleep at most where nobody wakes the worker.
    pub fn tick(&mut self) -> Duration {
        self.tick.pause()
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Look; the window begins.
    First,
    /// Look.
    Again,
    /// Sleep.
    Sleep,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(2);
    const LONG: Duration = Duration::from_millis(3);

    #[test]
    fn looks_only_while_that_pays() {
        let mut park = Park::new(Poll::Adaptive, false);
        assert_eq!(park.look_again(), Look::Sleep, "nothing is known yet");
        park.since = None;
        park.found(SHORT);
        assert_eq!(park.look_again(), Look::First);
        assert_eq!(park.look_again(), Look::Again);
        std::thread::sleep(TRAPPED);
        assert_eq!(park.look_again(), Look::Sleep, "the window ends");
        park.since = None;
        park.found(LONG);
        assert_eq!(park.look_again(), Look::Sleep, "it did not pay");
    }

    #[test]
    fn habits_are_limited() {
        let mut park = Park::new(Poll::Adaptive, false);
        for _ in 0..1_000_000 {
            park.found(SHORT);
        }
        for _ in 0..HABIT {
            park.found(LONG);
        }
        assert!(park.credit <= 0);
        for _ in 0..1_000_000 {
            park.found(Duration::MAX);
        }
        for _ in 0..2 * HABIT {
            park.found(SHORT);
        }
        assert!(park.credit > 0);
    }

    /// Finds and failures half and half: the finds save less than the failures cost.
    #[test]
    fn half_in_vain_does_not_pay() {
        let mut park = Park::new(Poll::Adaptive, false);
        for _ in 0..100 {
            park.found(TRAPPED / 2);
            park.found(LONG);
        }
        assert!(park.credit <= 0);
    }

    #[test]
    fn ticks_grow_and_begin_anew() {
        let mut park = Park::new(Poll::Adaptive, true);
        let pauses: Vec<_> = (0..10).map(|_| park.tick().as_micros()).collect();
        assert_eq!(pauses, [64, 128, 256, 512, 1024, 2048, 4000, 4000, 4000, 4000]);
        park.since = Some(Instant::now());
        park.busy();
        assert_eq!(park.tick().as_micros(), 64);
    }
}
