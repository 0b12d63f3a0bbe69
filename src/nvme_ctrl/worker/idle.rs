//! When a worker with nothing to do looks again, and when it sleeps.
//!
//! To be woken costs the guest a trap and us two thread switches, each to a processor that may have halted;
//! to look costs a processor that somebody else might need. So it looks only for so long, and only as long as
//! that has paid: each find within the window earns what is left of it, each window in vain costs itself.
//! Rare work is never waited for, and nothing at all costs one window, then zero.
//!
//! While it looks it gives way every few looks: to the thread that delivers its interrupt, and to the guest's
//! processor, which by translation is a thread like ours. What these take is not time spent looking. Whoever
//! takes very much of it has more to do than there are processors: then it sleeps, for who is woken has
//! precedence and who gave way has not.
//!
//! While commands are in flight it gives way at every look, even if it never sleeps: threads of the kernel or
//! ours that do them may need this processor. However much they take, what they do is what it waits for.

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
pub struct IdlePolicy {
    poll: Poll,
    /// The longest that is worth looking.
    window: Duration,
    /// Nanoseconds; looking is on while it is positive.
    credit: i64,
    /// There was nothing to do in the last turn; kept where it never sleeps.
    idle: bool,
    /// Since when there was nothing to do; kept where it may sleep.
    since: Option<Instant>,
    /// Looks since then.
    looks: u32,
    /// When it gave way, if it has not looked at the clock since.
    gave_way: Option<Instant>,
    /// It did so while commands were in flight.
    waited: bool,
    /// What others took of the time since `since`.
    away: Duration,
    tick: Tick,
}

/// Longer than a guest by translation takes from an interrupt to its next doorbell: a command at depth 1 took
/// it 185 us on QEMU's device, 250 when the worker had to be woken. With 250 us it was caught only half of
/// the time. (KVM looks 200 us for a processor of its own that halts.)
const TRAPPED: Duration = Duration::from_micros(400);
/// With a mapped page nobody wakes the worker, and the least a tick costs is 64 us and the kernel's slack of
/// 50.
const MAPPED: Duration = Duration::from_micros(200);
/// Looks from one giving way to the next: some microseconds, of which the system call is a small part.
const PERSISTENCE: u32 = 8;
/// To give way where nobody waits takes less.
const NOBODY: Duration = Duration::from_micros(5);
/// More than one turn of an interrupt's or a guest's thread: others compute on this processor.
const CROWDED: Duration = Duration::from_millis(1);
/// Windows' worth that credit goes up and down to: so much habit, and no more.
const HABIT: i64 = 4;

impl IdlePolicy {
    /// `mapped`: doorbells change without anybody being told.
    pub fn new(poll: Poll, mapped: bool) -> Self {
        let window = if mapped { MAPPED } else { TRAPPED };
        Self {
            poll,
            window,
            credit: 0,
            idle: false,
            since: None,
            looks: 0,
            gave_way: None,
            waited: false,
            away: Duration::ZERO,
            tick: Tick::default(),
        }
    }

    /// Something was done in this turn.
    pub fn busy(&mut self) {
        self.idle = false;
        // No look at the clock in the middle of work.
        if self.since.is_some() {
            self.busy_at(Instant::now());
        }
    }

    fn busy_at(&mut self, now: Instant) {
        let Some(since) = self.since.take() else { return };
        let gap = now.saturating_duration_since(since);
        // What came while others computed was not found by looking: that was a window in vain.
        let gap = if self.is_crowded(now) { Duration::MAX } else { gap.saturating_sub(self.away) };
        self.found(gap);
    }

    /// After it gave way: did others take so much that it had better sleep? Takes note of what they took.
    fn is_crowded(&mut self, now: Instant) -> bool {
        let Some(gave_way) = self.gave_way.take() else { return false };
        let took = now.saturating_duration_since(gave_way);
        if took >= NOBODY {
            self.away += took;
        }
        took >= CROWDED && !self.waited
    }

    /// There was nothing to do for `gap`; whether that was looked away or slept makes no difference to what
    /// looking would have earned.
    fn found(&mut self, gap: Duration) {
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let window = nanos(self.window);
        let earned = if gap < self.window { window - nanos(gap) } else { -window };
        self.credit = (self.credit + earned).clamp(-HABIT * window, HABIT * window);
        self.tick = Tick::default();
    }

    /// Nothing was done in this turn: shall it look again at once? `waits`: commands are in flight.
    pub fn look_again(&mut self, waits: bool) -> Look {
        self.look_at(waits, Instant::now)
    }

    fn look_at(&mut self, waits: bool, clock: impl Fn() -> Instant) -> Look {
        if self.poll == Poll::Always {
            // What it would learn from the clock decides nothing, and at depth 1 the clock is a part of every
            // command.
            return match std::mem::replace(&mut self.idle, true) {
                false => Look::First,
                true if waits => Look::GiveWay,
                true => Look::Again,
            };
        }
        let Some(since) = self.since else {
            (self.since, self.looks, self.gave_way, self.away) = (Some(clock()), 0, None, Duration::ZERO);
            return if self.credit > 0 { Look::First } else { Look::Sleep };
        };
        if self.credit <= 0 {
            return Look::Sleep;
        }
        let now = clock();
        if self.is_crowded(now) {
            // Not to look again in this wait; what it costs is in `found`.
            self.away = Duration::ZERO;
            self.credit = 0;
            return Look::Sleep;
        }
        if now.saturating_duration_since(since).saturating_sub(self.away) >= self.window {
            return Look::Sleep;
        }
        self.looks += 1;
        if waits || self.looks.is_multiple_of(PERSISTENCE) {
            (self.gave_way, self.waited) = (Some(now), waits);
            return Look::GiveWay;
        }
        Look::Again
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
    /// Let others have the processor, then look.
    GiveWay,
    /// Sleep.
    Sleep,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(2);
    const LONG: Duration = Duration::from_millis(3);

    /// A worker with a clock of the test's own.
    struct Waiting {
        policy: IdlePolicy,
        /// Commands are in flight.
        waits: bool,
        now: Instant,
    }

    impl Waiting {
        fn new(poll: Poll) -> Self {
            Self { policy: IdlePolicy::new(poll, false), waits: false, now: Instant::now() }
        }

        /// Of one that looking has paid for as often as counts.
        fn willing() -> Self {
            let mut waiting = Self::new(Poll::Adaptive);
            (0..100).for_each(|_| waiting.policy.found(SHORT));
            waiting
        }

        fn look(&mut self) -> Look {
            self.policy.look_at(self.waits, || self.now)
        }

        /// Until it gives way; no time passes.
        fn give_way(&mut self) {
            for _ in 0..=PERSISTENCE {
                match self.look() {
                    Look::First | Look::Again => {}
                    Look::GiveWay => return,
                    Look::Sleep => panic!("sleeps"),
                }
            }
            panic!("never gives way");
        }

        fn passes(&mut self, time: Duration) {
            self.now += time;
        }
    }

    const MICRO: Duration = Duration::from_micros(1);

    #[test]
    fn looks_only_while_that_pays() {
        let mut waiting = Waiting::new(Poll::Adaptive);
        assert_eq!(waiting.look(), Look::Sleep, "nothing is known yet");
        waiting.passes(SHORT);
        waiting.policy.busy_at(waiting.now);
        assert_eq!(waiting.look(), Look::First);
        waiting.passes(TRAPPED - MICRO);
        assert_eq!(waiting.look(), Look::Again);
        waiting.passes(MICRO);
        assert_eq!(waiting.look(), Look::Sleep, "the window ends");
        waiting.passes(LONG);
        waiting.policy.busy_at(waiting.now);
        assert_eq!(waiting.look(), Look::Sleep, "it did not pay");
    }

    #[test]
    fn gives_way_every_few_looks() {
        let mut waiting = Waiting::willing();
        assert_eq!(waiting.look(), Look::First);
        for _ in 0..3 {
            for _ in 1..PERSISTENCE {
                assert_eq!(waiting.look(), Look::Again);
            }
            assert_eq!(waiting.look(), Look::GiveWay);
        }
    }

    #[test]
    fn gives_way_at_every_look_while_commands_are_in_flight() {
        for mut waiting in [Waiting::willing(), Waiting::new(Poll::Always)] {
            waiting.waits = true;
            assert_eq!(waiting.look(), Look::First);
            for _ in 0..2 * PERSISTENCE {
                assert_eq!(waiting.look(), Look::GiveWay);
            }
            waiting.waits = false;
            assert_eq!(waiting.look(), Look::Again);
        }
    }

    /// What the threads that do the commands took is theirs, and a reason to go on looking.
    #[test]
    fn what_others_took_of_every_look_is_not_time_spent_looking() {
        let mut waiting = Waiting::willing();
        waiting.waits = true;
        assert_eq!(waiting.look(), Look::First);
        for _ in 0..10 {
            assert_eq!(waiting.look(), Look::GiveWay);
            waiting.passes(CROWDED);
        }
        let before = waiting.policy.credit;
        waiting.policy.busy_at(waiting.now);
        assert!(waiting.policy.credit >= before, "nothing was in vain");
        assert_eq!(waiting.look(), Look::First);
        assert_eq!(waiting.look(), Look::GiveWay);
        waiting.passes(NOBODY - MICRO);
        for _ in 0..TRAPPED.as_micros() / (NOBODY - MICRO).as_micros() - 1 {
            assert_eq!(waiting.look(), Look::GiveWay);
            waiting.passes(NOBODY - MICRO);
        }
        assert_eq!(waiting.look(), Look::Sleep, "nobody took anything");
    }

    #[test]
    fn who_always_polls_neither_sleeps_nor_gives_way() {
        let mut waiting = Waiting::new(Poll::Always);
        for _ in 0..3 {
            assert_eq!(waiting.look(), Look::First);
            for _ in 0..10 * PERSISTENCE {
                waiting.passes(CROWDED);
                assert_eq!(waiting.look(), Look::Again);
            }
            waiting.policy.busy();
        }
    }

    /// Two looks at the clock were a twentieth of a command at depth 1.
    #[test]
    fn who_always_polls_does_not_look_at_the_clock() {
        let mut policy = IdlePolicy::new(Poll::Always, true);
        for _ in 0..3 {
            policy.look_at(false, || panic!("looks at the clock"));
            policy.busy();
            assert_eq!(policy.since, None, "busy would look at it");
        }
    }

    /// The window is for its own time: what an interrupt's thread took is not wasted.
    #[test]
    fn what_others_took_is_not_time_spent_looking() {
        let mut waiting = Waiting::willing();
        for _ in 0..10 {
            waiting.give_way();
            waiting.passes(TRAPPED / 2);
        }
        assert_ne!(waiting.look(), Look::Sleep);
        waiting.passes(TRAPPED);
        assert_eq!(waiting.look(), Look::Sleep, "its own time");
        // The same with a find at the end: the time that was not its own does not make it a bad one.
        let mut waiting = Waiting::willing();
        waiting.give_way();
        waiting.passes(CROWDED - MICRO);
        let before = waiting.policy.credit;
        waiting.policy.busy_at(waiting.now);
        assert!(waiting.policy.credit >= before);
    }

    #[test]
    fn sleeps_at_once_where_others_compute() {
        let mut waiting = Waiting::willing();
        waiting.give_way();
        waiting.passes(CROWDED);
        assert_eq!(waiting.look(), Look::Sleep);
        assert_eq!(waiting.look(), Look::Sleep, "after a wake-up for nothing, too");
        waiting.policy.busy_at(waiting.now);
        assert_eq!(waiting.look(), Look::Sleep, "to look has to pay again");
    }

    /// Where each giving way ends with work, but late, it stops giving way, and sleeps.
    #[test]
    fn work_that_waited_for_others_was_not_found_by_looking() {
        let mut waiting = Waiting::willing();
        for _ in 0..HABIT {
            waiting.give_way();
            waiting.passes(CROWDED);
            waiting.policy.busy_at(waiting.now);
        }
        assert_eq!(waiting.look(), Look::Sleep);
    }

    #[test]
    fn habits_are_limited() {
        let mut policy = IdlePolicy::new(Poll::Adaptive, false);
        for _ in 0..1_000_000 {
            policy.found(SHORT);
        }
        for _ in 0..HABIT {
            policy.found(LONG);
        }
        assert!(policy.credit <= 0);
        for _ in 0..1_000_000 {
            policy.found(Duration::MAX);
        }
        for _ in 0..2 * HABIT {
            policy.found(SHORT);
        }
        assert!(policy.credit > 0);
    }

    /// Finds and failures half and half: the finds save less than the failures cost.
    #[test]
    fn half_in_vain_does_not_pay() {
        let mut policy = IdlePolicy::new(Poll::Adaptive, false);
        for _ in 0..100 {
            policy.found(TRAPPED / 2);
            policy.found(LONG);
        }
        assert!(policy.credit <= 0);
    }

    #[test]
    fn ticks_grow_and_begin_anew() {
        let mut policy = IdlePolicy::new(Poll::Adaptive, true);
        let pauses: Vec<_> = (0..10).map(|_| policy.tick().as_micros()).collect();
        assert_eq!(pauses, [64, 128, 256, 512, 1024, 2048, 4000, 4000, 4000, 4000]);
        policy.since = Some(Instant::now());
        policy.busy();
        assert_eq!(policy.tick().as_micros(), 64);
    }
}
