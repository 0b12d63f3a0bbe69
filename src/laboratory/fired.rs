//! How often something fired, which is logged each time.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module docs. Shared by all threads.
#[derive(Debug, Default)]
pub struct Fired {
    name: String,
    count: AtomicU64,
}

impl Fired {
    /// Of a rule of this name, never yet.
    pub fn of(name: &str) -> Self {
        Self { name: name.to_owned(), count: AtomicU64::new(0) }
    }

    /// How often it did.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// It fires, for `what`.
    pub fn fires(&self, what: &dyn fmt::Display) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        self.say(count, what);
    }

    /// It fires, for `what`, unless it did `most` times already: whoever asks, it is never more often.
    pub fn fires_up_to(&self, most: Option<u64>, what: &dyn fmt::Display) -> bool {
        let one_more = |count: u64| most.is_none_or(|most| count < most).then_some(count + 1);
        let before = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        before.inspect(|before| self.say(before + 1, what)).is_ok()
    }

    fn say(&self, count: u64, what: &dyn fmt::Display) {
        log::warn!("fault {} fired ({count}): {what}", self.name);
    }
}
