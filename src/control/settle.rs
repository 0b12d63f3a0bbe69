//! The end of commands that began under values of a namespace which are no longer in the table.

use std::sync::Weak;
use std::time::{Duration, Instant};

use super::context::Context;
use crate::namespace::Namespace;

/// How long they may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether they are over.
const GLANCE: Duration = Duration::from_millis(1);

/// Waits until nobody has any of these values, so that no command is in flight that was admitted with one. False if that took
/// too long.
pub fn is_over(context: &Context, values: &[Weak<Namespace>]) -> bool {
    // Workers that sleep keep the table that they last saw. If the control thread hangs, they are waited for in vain.
    let _ = context.thread.ask(|thread| thread.ports().into_iter().for_each(|port| port.controller.fence()));
    let deadline = Instant::now() + PATIENCE;
    while values.iter().any(|value| value.strong_count() > 0) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(GLANCE);
    }
    true
}
