//! How many commands a host sends in a row: as long as more are to come it is at work, and an interrupt would
//! only stop it.
//!
//! A host with many commands in flight takes what is complete, sends as many new ones, and only then has
//! nothing to do. Interrupted after the first of them it takes one completion and sends one command: from
//! then on there is an interrupt for each. So the completions of a row are announced together.
//!
//! That a host sends before it takes what it was told of is how rows are known, so one that has one command
//! in flight has none and never waits. They are as long as the host has shown, [`LONGEST`] at most, and over
//! when the next command does not come at the pace of those before.

use std::time::{Duration, Instant};

/// Completions that are worth an interrupt, however many follow: half a queue of 32, so that the host is told
/// before it has nothing left to do.
const LONGEST: u32 = 16;
/// Times the usual pace after which the next command does not belong to the row.
const SILENCE: u32 = 3;
/// What is believed of a pace. By translation a command takes a guest about 25 us to send, else a tenth of
/// that.
const PACES: (Duration, Duration) = (Duration::from_micros(4), Duration::from_micros(50));
/// The last pace counts for one of so many.
const WEIGHT: u32 = 8;

/// What a worker knows of the commands that end in one completion queue.
#[derive(Debug)]
pub(super) struct Moderation {
    /// Commands to be expected in a row.
    length: u32,
    /// When the last of them came.
    last: Option<Instant>,
    /// From one command to the next.
    pace: Duration,
}

impl Default for Moderation {
    fn default() -> Self {
        Self { length: 1, last: None, pace: PACES.1 / SILENCE }
    }
}

impl Moderation {
    /// Commands came. `behind`: the host has not yet taken what the last interrupt told it of.
    pub(super) fn came(&mut self, behind: bool, now: impl FnOnce() -> Instant) {
        if behind {
            self.length = (self.length * 2).min(LONGEST);
        }
        if self.length == 1 {
            // No look at the clock for hosts that have no rows.
            return;
        }
        let now = now();
        if let Some(last) = self.last.replace(now) {
            let pace = now.saturating_duration_since(last).clamp(PACES.0, PACES.1);
            self.pace = (self.pace * (WEIGHT - 1) + pace) / WEIGHT;
        }
    }

    /// Could more be to come, `done` commands after the last interrupt?
    pub(super) fn is_longer(&self, done: u32) -> bool {
        done < self.length
    }

    /// Is more to come? To be asked where [`Self::is_longer`]. If not, this row is as long as it was.
    pub(super) fn goes_on(&mut self, done: u32, now: Instant) -> bool {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < self.pace * SILENCE) {
            return true;
        }
        self.length = done.max(1);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);
    const PACE: Duration = Duration::from_micros(20);

    struct Host {
        moderation: Moderation,
        now: Instant,
    }

    impl Host {
        /// Of one that was seen to send long rows, a command each 20 us.
        fn deep() -> Self {
            let mut host = Self { moderation: Moderation::default(), now: Instant::now() };
            (0..10).for_each(|_| host.moderation.came(true, || host.now));
            (0..100).for_each(|_| assert!(host.sends(1)));
            host
        }

        fn sends(&mut self, done: u32) -> bool {
            self.now += PACE;
            self.moderation.came(false, || self.now);
            self.moderation.goes_on(done, self.now)
        }

        fn is_silent(&mut self, done: u32, time: Duration) -> bool {
            !self.moderation.goes_on(done, self.now + time)
        }
    }

    #[test]
    fn who_takes_what_it_was_told_of_before_it_sends_more_has_no_rows() {
        let mut moderation = Moderation::default();
        assert!(!moderation.is_longer(1));
        (0..100).for_each(|_| moderation.came(false, || panic!("looks at the clock")));
        assert!(!moderation.is_longer(1));
        moderation.came(true, Instant::now);
        assert!(moderation.is_longer(1) && !moderation.is_longer(2));
    }

    #[test]
    fn a_row_is_worth_an_interrupt_at_some_length() {
        let host = Host::deep();
        assert!(host.moderation.is_longer(LONGEST - 1) && !host.moderation.is_longer(LONGEST));
    }

    #[test]
    fn a_row_goes_on_at_its_own_pace_and_then_is_known_to_be_shorter() {
        let mut host = Host::deep();
        assert!(host.sends(3));
        assert!(!host.is_silent(3, PACE * (SILENCE - 1)));
        assert!(host.is_silent(3, PACE * (SILENCE + 1)));
        assert!(host.moderation.is_longer(2) && !host.moderation.is_longer(3));
    }

    /// Its commands end long after they were sent: it waits for them, and sends nothing.
    #[test]
    fn who_sends_nothing_has_no_row() {
        let mut host = Host::deep();
        assert!(host.is_silent(1, MICRO * 1000));
        assert!(!host.moderation.is_longer(1));
        let mut moderation = Moderation { length: LONGEST, ..Moderation::default() };
        assert!(!moderation.goes_on(1, host.now), "never seen to send anything");
    }

    #[test]
    fn no_host_is_so_slow_that_it_is_waited_for_long() {
        let mut host = Host::deep();
        for _ in 0..100 {
            host.now += MICRO * 1_000_000;
            host.sends(1);
        }
        assert!(host.is_silent(1, PACES.1 * SILENCE));
    }
}
