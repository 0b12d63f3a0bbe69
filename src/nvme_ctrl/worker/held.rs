//! Commands and queues that laboratories hold back.

use std::time::{Duration, Instant};

use super::core::Core;
use super::rings::Sq;
use crate::nvme_ctrl::io::Bent;

impl Core {
    /// Has those polled that may go on.
    #[cold]
    pub(super) fn look_at_held(&mut self) {
        let now = Instant::now();
        for index in std::mem::take(&mut self.held) {
            let bent = self.slots.get_mut(index).and_then(|command| command.task.bent());
            // Its slot may be another command's by now.
            match bent.filter(|bent| bent.is_held()) {
                Some(bent) if bent.may_go_on(now) => self.make_ready(index),
                Some(_) if !self.held.contains(&index) => self.held.push(index),
                _ => {}
            }
        }
    }

    /// When the first of them may go on, or the first queue is looked at again: from now.
    pub(super) fn held_for(&mut self) -> Option<Duration> {
        let commands = self.held.iter().filter_map(|index| {
            // By `get_mut`, for it is all that there is.
            self.slots.get_mut(*index).and_then(|command| command.task.bent()).and_then(Bent::due)
        });
        let commands = commands.min();
        let queues = self.sqs.iter().filter(|sq| sq.is_busy()).filter_map(|sq: &Sq| sq.busy).min();
        let first = commands.into_iter().chain(queues).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }
}
