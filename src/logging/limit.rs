//! How often lines of one kind are written.
//!
//! A kind is a place in the source. Whatever a guest or a client does in a loop is logged from a few places,
//! and each of them costs a handful of lines a minute, however fast the loop.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use log::Level;

/// Lines of one kind that are written as they come.
const BURST: u32 = 10;
/// Lines of a kind are counted together for so long: at first, and at last while there are always more.
const FIRST_PERIOD: Duration = Duration::from_secs(1);
const LAST_PERIOD: Duration = Duration::from_secs(64);

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) file: &'static str,
    pub(super) line: u32,
}

/// The first line of a period that is not written at once, and how many came after it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) at: SystemTime,
    pub(super) level: Level,
    pub(super) text: String,
    pub(super) more: u64,
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Write,
    /// To be formatted and given to [`Limits::hold`].
    Hold,
    /// It counts as one more, and need not be formatted.
    Count,
}

#[derive(Debug)]
struct Kind {
    until: Instant,
    period: Duration,
    /// Lines that may still be written in this period.
    left: u32,
    held: Option<Held>,
}

impl Kind {
    fn fresh(now: Instant) -> Self {
        Self { until: now + FIRST_PERIOD, period: FIRST_PERIOD, left: BURST, held: None }
    }
}

/// All kinds that were seen; there are no more than places that log.
#[derive(Debug, Default)]
pub(super) struct Limits {
    kinds: HashMap<Place, Kind>,
}

impl Limits {
    /// May a line of this kind be written now?
    pub(super) fn judge(&mut self, place: Place, now: Instant) -> Verdict {
        let kind = self.kinds.entry(place).or_insert_with(|| Kind::fresh(now));
        if kind.held.is_none() && now >= kind.until {
            *kind = Kind::fresh(now);
        }
        if let Some(held) = &mut kind.held {
            held.more += 1;
            return Verdict::Count;
        }
        if kind.left == 0 {
            return Verdict::Hold;
        }
        kind.left -= 1;
        Verdict::Write
    }

    /// Keeps the first line for the end of its period.
    pub(super) fn hold(&mut self, place: Place, line: Held) {
        let Some(kind) = self.kinds.get_mut(&place) else { return };
        match &mut kind.held {
            // Another thread was faster.
            Some(held) => held.more += 1,
            None => kind.held = Some(line),
        }
    }

    /// When the next period ends that has something to say.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.kinds.values().filter(|kind| kind.held.is_some()).map(|kind| kind.until).min()
    }

    /// Takes what was held in periods that are over. The next one of such a kind is twice as long, and none
    /// of its lines is written as it comes: the kind begins anew after a period without any.
    pub(super) fn take_ended(&mut self, now: Instant) -> Vec<Held> {
        self.take(|kind| kind.until <= now, now)
    }

    /// Takes all that is held, for the end of the process.
    pub(super) fn take_all(&mut self, now: Instant) -> Vec<Held> {
        self.take(|_| true, now)
    }

    fn take(&mut self, over: impl Fn(&Kind) -> bool, now: Instant) -> Vec<Held> {
        let mut taken = Vec::new();
        for kind in self.kinds.values_mut().filter(|kind| over(kind)) {
            let Some(held) = kind.held.take() else { continue };
            kind.period = (2 * kind.period).min(LAST_PERIOD);
            kind.until = now + kind.period;
            taken.push(held);
        }
        taken.sort_by_key(|held| held.at);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place = Place { file: "here", line: 1 };
    const THERE: Place = Place { file: "here", line: 2 };

    fn line() -> Held {
        Held { at: SystemTime::UNIX_EPOCH, level: Level::Warn, text: "again".into(), more: 0 }
    }

    /// What [`Limits::judge`] says of `count` lines, the ones to be held being held.
    fn flood(limits: &mut Limits, place: Place, now: Instant, count: usize) -> Vec<Verdict> {
        let one = |_| {
            let verdict = limits.judge(place, now);
            if verdict == Verdict::Hold {
                limits.hold(place, line());
            }
            verdict
        };
        (0..count).map(one).collect()
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_burst_is_written_and_the_rest_is_counted() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let verdicts = flood(&mut limits, HERE, start, 100);
        assert!(verdicts[..10].iter().all(|verdict| *verdict == Verdict::Write));
        assert_eq!(verdicts[10], Verdict::Hold);
        assert!(verdicts[11..].iter().all(|verdict| *verdict == Verdict::Count));
        // Another kind is none of its business.
        assert_eq!(limits.judge(THERE, start), Verdict::Write);
        assert_eq!(limits.next_end(), Some(start + FIRST_PERIOD));
        assert_eq!(limits.take_ended(start), []);
        assert_eq!(limits.take_ended(start + FIRST_PERIOD), [Held { more: 89, ..line() }]);
        assert_eq!(limits.next_end(), None);
    }

    #[test]
    fn what_goes_on_is_said_ever_more_seldom_until_there_is_peace() {
        let (mut limits, mut now) = (Limits::default(), Instant::now());
        flood(&mut limits, HERE, now, 11);
        for period in [1, 2, 4, 8, 16, 32, 64, 64] {
            now += seconds(period);
            assert_eq!(limits.take_ended(now - Duration::from_nanos(1)), []);
            assert_eq!(limits.take_ended(now).len(), 1, "after {period} s");
            assert_eq!(flood(&mut limits, HERE, now, 2), [Verdict::Hold, Verdict::Count]);
        }
        assert_eq!(limits.take_all(now), [Held { more: 1, ..line() }]);
        now += seconds(63);
        assert_eq!(flood(&mut limits, HERE, now, 1), [Verdict::Hold], "not yet");
        now += seconds(1);
        limits.take_ended(now);
        now += seconds(64);
        assert_eq!(flood(&mut limits, HERE, now, 1), [Verdict::Write]);
    }

    /// Two threads that were both told to hold their line: none is lost.
    #[test]
    fn who_comes_second_counts() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        flood(&mut limits, HERE, now, 10);
        assert_eq!((limits.judge(HERE, now), limits.judge(HERE, now)), (Verdict::Hold, Verdict::Hold));
        limits.hold(HERE, line());
        limits.hold(HERE, line());
        assert_eq!(limits.take_all(now), [Held { more: 1, ..line() }]);
    }
}
