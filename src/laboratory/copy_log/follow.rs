//! Who follows a copy log as it is written. One that does not keep up loses lines, and is told how many Copies they were of.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::record::{Dropped, Line};
use super::text::Stamp;

/// Lines that may wait for one follower.
const LINES: usize = 4096;

/// Bytes of these.
const BYTES: usize = 4 << 20;

/// All who follow.
#[derive(Debug, Default)]
pub(super) struct Followers(Mutex<Vec<Weak<Mailbox>>>);

/// What waits for one.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    state: Mutex<Waiting>,
    come: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Arc<str>>,
    bytes: usize,
    /// Copies whose lines did not get in after these.
    dropped: u64,
    ended: bool,
}

/// What a follower hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A line, without its end.
    Line(Arc<str>),
    /// Nothing yet.
    Silence,
    /// Nothing more will come.
    End,
}

impl Followers {
    /// One more.
    pub fn add(&self) -> Arc<Mailbox> {
        let mailbox = Arc::new(Mailbox::default());
        self.lock().push(Arc::downgrade(&mailbox));
        mailbox
    }

    /// A line for each of them, which tells of so many Copies.
    pub fn tell(&self, line: &Arc<str>, copies: u64) {
        self.each(|waiting| waiting.push(line, copies));
    }

    /// No line will come any more.
    pub fn end(&self) {
        self.each(|waiting| waiting.ended = true);
    }

    fn each(&self, mut tell: impl FnMut(&mut Waiting)) {
        self.lock().retain(|mailbox| {
            let Some(mailbox) = mailbox.upgrade() else { return false };
            tell(&mut mailbox.lock());
            mailbox.come.notify_one();
            true
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Mailbox>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mailbox {
    /// The next line; waits for it as long as `patience`.
    pub fn next(&self, patience: Duration) -> Heard {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if let Some(line) = state.pop() {
                return Heard::Line(line);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return if state.ended { Heard::End } else { Heard::Silence };
            }
            state = self.come.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn push(&mut self, line: &Arc<str>, copies: u64) {
        // Half of it is to be free before it goes on, so that there are few gaps.
        let room = if self.dropped > 0 { 2 } else { 1 };
        if self.lines.len() >= LINES / room || self.bytes + line.len() > BYTES / room {
            self.dropped = self.dropped.saturating_add(copies);
            return;
        }
        self.tell_dropped();
        self.bytes += line.len();
        self.lines.push_back(Arc::clone(line));
    }

    fn pop(&mut self) -> Option<Arc<str>> {
        if self.lines.is_empty() {
            self.tell_dropped();
        }
        let line = self.lines.pop_front()?;
        self.bytes = self.bytes.saturating_sub(line.len());
        Some(line)
    }

    fn tell_dropped(&mut self) {
        let count = std::mem::take(&mut self.dropped);
        if count == 0 {
            return;
        }
        let why = "the follower did not keep up".to_owned();
        let line = Line::Dropped(Dropped { count, why, time: Stamp::now() });
        if let Ok(line) = serde_json::to_string(&line) {
            self.bytes += line.len();
            self.lines.push_back(line.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(mailbox: &Mailbox) -> Option<String> {
        match mailbox.next(Duration::ZERO) {
            Heard::Line(line) => Some(line.to_string()),
            Heard::Silence | Heard::End => None,
        }
    }

    fn dropped(line: &str) -> u64 {
        match serde_json::from_str(line) {
            Ok(Line::Dropped(Dropped { count, .. })) => count,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_that_is_slow_loses_lines_and_is_told() {
        let followers = Followers::default();
        let (slow, quick) = (followers.add(), followers.add());
        let line: Arc<str> = "x".into();
        for _ in 0..LINES + 10 {
            followers.tell(&line, 1);
            assert_eq!(heard(&quick).as_deref(), Some("x"));
        }
        assert_eq!(heard(&quick), None);
        for _ in 0..LINES {
            assert_eq!(heard(&slow).as_deref(), Some("x"));
        }
        assert_eq!(dropped(&heard(&slow).expect("told")), 10);
        followers.tell(&line, 1);
        assert_eq!((heard(&slow).as_deref(), heard(&slow)), (Some("x"), None));
    }

    #[test]
    fn few_gaps_and_each_is_told_where_it_is() {
        let followers = Followers::default();
        let slow = followers.add();
        let line: Arc<str> = "x".repeat(BYTES / 8).into();
        (0..9).for_each(|_| followers.tell(&line, 2));
        assert_eq!(heard(&slow).map(|line| line.len()), Some(line.len()));
        followers.tell(&line, 2);
        assert_eq!(slow.lock().lines.len(), 7, "not for each line that gets in");
        (0..4).for_each(|_| drop(heard(&slow)));
        followers.tell(&line, 2);
        (0..3).for_each(|_| assert_eq!(heard(&slow).map(|line| line.len()), Some(line.len())));
        assert_eq!(dropped(&heard(&slow).expect("told")), 4);
        assert_eq!(heard(&slow).map(|line| line.len()), Some(line.len()));
    }

    #[test]
    fn who_leaves_is_forgotten_and_who_waits_hears_of_the_end() {
        let followers = Followers::default();
        drop(followers.add());
        let stays = followers.add();
        assert_eq!(stays.next(Duration::from_millis(1)), Heard::Silence);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| stays.next(Duration::from_secs(60)));
            followers.end();
            assert_eq!(waits.join().unwrap(), Heard::End);
        });
        assert_eq!(followers.lock().len(), 1);
    }
}
