//! The Keep Alive timer (Set Features 0Fh, Keep Alive 18h). Off unless the host sets it.

use std::time::{Duration, Instant};

/// Any admin command counts as a sign of life; the specification asks for Keep Alive itself, and a host that
/// sends others lives no less.
#[derive(Debug, Default)]
pub struct KeepAlive {
    timeout: Option<Duration>,
    deadline: Option<Instant>,
}

impl KeepAlive {
    /// Sets KATO in milliseconds; 0 is off.
    pub fn set(&mut self, millis: u32) {
        self.timeout = (millis > 0).then(|| Duration::from_millis(millis.into()));
        self.touch();
    }

    /// A sign of life.
    pub fn touch(&mut self) {
        self.deadline = self.timeout.map(|timeout| Instant::now() + timeout);
    }

    /// When the timer expires.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}
