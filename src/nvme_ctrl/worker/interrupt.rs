//! When the interrupt of a completion queue is raised: once for all that a turn posted, unless the host asked for fewer
//! (Interrupt Coalescing) or is visibly at that queue anyway.
//!
//! "Visibly at it" is: it has consumed all there is; or it is sending commands in a row ([`super::moderation`]), and will not
//! look before it has sent them; or it has not yet moved the head since the last interrupt, so that the handler which that
//! one started finds the new entries too. The last may be wrong, for the handler may have looked for the last time just
//! before, and so may the second. So an interrupt is only ever put off, by [`PATIENCE`] or [`ROW`] at most and never
//! across a sleep, and is dropped only when the head has reached the tail.

use std::time::{Duration, Instant};

use super::moderation::Moderation;

/// How long a host that was interrupted and has not moved the head is believed to be on its way.
const PATIENCE: Duration = Duration::from_micros(20);
/// The longest that a completion waits for others of a row: all of one by translation.
const ROW: Duration = Duration::from_micros(600);

/// What the host asked for in the features Interrupt Coalescing and Interrupt Vector Configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Coalescing {
    /// Completions that are worth an interrupt.
    entries: u32,
    /// The longest that a completion waits for others.
    time: Duration,
}

impl Coalescing {
    /// From CDW11 of the feature: aggregation time in 15:8, in 100 us, 0 for none; threshold in 7:0, 0-based. Nothing
    /// where it changes nothing.
    pub(super) fn from_dword(cdw11: u32) -> Option<Self> {
        let (time, threshold) = (cdw11 >> 8 & 0xff, cdw11 & 0xff);
        (time > 0 && threshold > 0)
            .then(|| Self { entries: threshold + 1, time: Duration::from_micros(100) * time })
    }
}

/// The interrupt that a completion queue owes its host.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Completions posted since the last one.
    posted: u32,
    /// When it was first put off.
    since: Option<Instant>,
    /// The host's head when the last one was raised, as long as it stands there.
    told: Option<u16>,
    moderation: Moderation,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing is owed.
    Nothing,
    /// Raise it.
    Raise,
    /// Look again, after so long at the latest.
    Later(Duration),
}

impl Owed {
    /// A completion was posted.
    pub(super) fn post(&mut self) {
        self.posted += 1;
    }

    /// The host sent commands while its head stood at `head`.
    pub(super) fn sent(&mut self, head: u16, now: impl FnOnce() -> Instant) {
        self.moderation.came(self.told == Some(head), now);
    }

    /// Is anything owed?
    pub(super) fn any(&self) -> bool {
        self.posted > 0
    }

    /// Does the decision depend on where the host's head stands by now?
    pub(super) fn wants_head(&self) -> bool {
        self.told.is_some() || self.since.is_some() || self.moderation.is_longer(self.posted)
    }

    /// Nobody wants it: the queue has no interrupt.
    pub(super) fn forgive(&mut self) {
        self.posted = 0;
    }

    /// `all_seen`: the head has reached the tail. `asleep`: nobody will look again before something happens.
    #[inline]
    pub(super) fn decide(
        &mut self,
        head: u16,
        all_seen: bool,
        coalescing: Option<Coalescing>,
        asleep: bool,
        mut now: impl FnMut() -> Instant,
    ) -> Decision {
        if self.posted == 0 || all_seen {
            (self.posted, self.since, self.told) = (0, None, None);
            return Decision::Nothing;
        }
        if self.told != Some(head) {
            self.told = None;
        }
        let wait = match coalescing {
            Some(asked) if self.posted < asked.entries => asked.time,
            _ if asleep => Duration::ZERO,
            _ if self.moderation.is_longer(self.posted) && self.moderation.goes_on(self.posted, now()) => ROW,
            _ if self.told.is_some() => PATIENCE,
            _ => Duration::ZERO,
        };
        if !wait.is_zero() {
            let now = now();
            let waited = now.saturating_duration_since(*self.since.get_or_insert(now));
            if waited < wait {
                return Decision::Later(wait - waited);
            }
        }
        (self.posted, self.since, self.told) = (0, None, Some(head));
        Decision::Raise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        owed: Owed,
        now: Instant,
    }

    impl Host {
        fn new() -> Self {
            Self { owed: Owed::default(), now: Instant::now() }
        }

        fn posts(&mut self, count: u32) {
            (0..count).for_each(|_| self.owed.post());
        }

        /// Sends commands that are done at once.
        fn sends(&mut self, count: u32, head: u16) {
            self.owed.sent(head, || self.now);
            self.posts(count);
        }

        fn decide(&mut self, head: u16, all_seen: bool, asked: u32, asleep: bool) -> Decision {
            self.owed.decide(head, all_seen, Coalescing::from_dword(asked), asleep, || self.now)
        }

        fn passes(&mut self, time: Duration) {
            self.now += time;
        }
    }

    const MICRO: Duration = Duration::from_micros(1);

    #[test]
    fn one_for_all_that_a_turn_posted() {
        let mut host = Host::new();
        assert_eq!(host.decide(0, true, 0, false), Decision::Nothing);
        host.posts(7);
        assert_eq!(host.decide(0, false, 0, false), Decision::Raise);
        assert_eq!(host.decide(0, false, 0, false), Decision::Nothing);
    }

    #[test]
    fn a_host_that_is_behind_is_told_again_in_the_end() {
        let mut host = Host::new();
        host.posts(1);
        assert_eq!(host.decide(0, false, 0, false), Decision::Raise);
        host.posts(1);
        assert_eq!(host.decide(0, false, 0, false), Decision::Later(PATIENCE));
        host.passes(PATIENCE - MICRO);
        host.posts(1);
        assert_eq!(host.decide(0, false, 0, false), Decision::Later(MICRO));
        host.passes(MICRO);
        assert_eq!(host.decide(0, false, 0, false), Decision::Raise, "its handler may have ended");
    }

    /// The handler looked, found the end, and only then moved the head: what was posted in between is told at once.
    #[test]
    fn a_head_that_moved_but_not_all_the_way_is_told_at_once() {
        let mut host = Host::new();
        host.posts(1);
        assert_eq!(host.decide(0, false, 0, false), Decision::Raise);
        host.posts(1);
        assert!(matches!(host.decide(0, false, 0, false), Decision::Later(_)));
        assert_eq!(host.decide(1, false, 0, false), Decision::Raise);
    }

    /// With one command in flight each is told at once.
    #[test]
    fn who_waits_for_its_only_command_never_waits_for_others() {
        let mut host = Host::new();
        for head in 0..100 {
            host.sends(1, head);
            assert_eq!(host.decide(head, false, 0, false), Decision::Raise);
            host.passes(MICRO);
        }
    }

    #[test]
    fn commands_sent_in_a_row_are_announced_together_until_the_row_ends() {
        let mut host = Host::new();
        host.sends(1, 0);
        assert_eq!(host.decide(0, false, 0, false), Decision::Raise);
        // It sends on, and takes nothing.
        host.sends(1, 0);
        assert!(matches!(host.decide(0, false, 0, false), Decision::Later(_)));
        host.passes(PATIENCE);
        host.sends(1, 0);
        assert_eq!(host.decide(0, false, 0, false), Decision::Later(ROW - PATIENCE));
        host.passes(ROW / 2);
        assert_eq!(host.decide(0, false, 0, false), Decision::Raise, "nothing more comes");
        // Now it takes what there is, and sends as many again.
        host.sends(1, 3);
        assert!(matches!(host.decide(3, false, 0, false), Decision::Later(_)));
        host.passes(MICRO);
        host.sends(1, 3);
        assert_eq!(host.decide(3, false, 0, false), Decision::Raise, "as many as the last time");
        host.sends(1, 5);
        assert!(matches!(host.decide(5, false, 0, false), Decision::Later(_)));
        assert_eq!(host.decide(5, false, 0, true), Decision::Raise, "nothing is put off across a sleep");
    }

    /// Whatever the host does, no completion waits for an interrupt longer than this.
    #[test]
    fn an_endless_row_is_told_of_in_time() {
        let mut host = Host::new();
        (0..10).for_each(|_| host.sends(1, 0));
        assert_eq!(host.decide(0, false, 0, false), Decision::Raise);
        (0..10).for_each(|_| host.sends(0, 0));
        host.posts(1);
        let mut waited = Duration::ZERO;
        while host.decide(0, false, 0, false) != Decision::Raise {
            host.passes(MICRO);
            waited += MICRO;
            host.sends(0, 0);
        }
        assert_eq!(waited, ROW);
    }

    #[test]
    fn a_host_that_has_seen_everything_is_left_alone() {
        let mut host = Host::new();
        host.posts(3);
        assert_eq!(host.decide(3, true, 0, false), Decision::Nothing);
        host.posts(1);
        assert_eq!(host.decide(3, false, 0, false), Decision::Raise);
    }

    #[test]
    fn nothing_but_what_was_asked_for_is_put_off_across_a_sleep() {
        let mut host = Host::new();
        host.posts(1);
        assert_eq!(host.decide(0, false, 0, true), Decision::Raise);
        host.posts(1);
        assert!(matches!(host.decide(0, false, 0, false), Decision::Later(_)));
        assert_eq!(host.decide(0, false, 0, true), Decision::Raise);
        host.posts(1);
        assert_eq!(host.decide(0, false, 0x0203, true), Decision::Later(200 * MICRO));
    }

    #[test]
    fn coalescing_ends_with_the_threshold_or_the_time() {
        let mut host = Host::new();
        host.posts(3);
        assert_eq!(host.decide(0, false, 0x0103, false), Decision::Later(100 * MICRO));
        host.posts(1);
        assert_eq!(host.decide(0, false, 0x0103, false), Decision::Raise, "four are the threshold");
        host.posts(1);
        assert!(matches!(host.decide(4, false, 0x0103, false), Decision::Later(_)));
        host.passes(100 * MICRO);
        assert_eq!(host.decide(4, false, 0x0103, false), Decision::Raise, "the time is over");
    }

    #[test]
    fn time_0_and_threshold_0_coalesce_nothing() {
        assert_eq!(Coalescing::from_dword(0x00ff), None);
        assert_eq!(Coalescing::from_dword(0xff00), None);
        let asked = Coalescing::from_dword(0xffff_0a01);
        assert_eq!(asked, Some(Coalescing { entries: 2, time: Duration::from_millis(1) }));
    }
}
