//! State of the admin queue and of what admin commands set.

use std::fmt;
use std::time::Instant;

use super::changed::ChangedNamespaces;
use super::counts::Counts;
use super::events::Events;
use super::features::Features;
use super::keep_alive::KeepAlive;
use super::queue_pair::QueuePair;
use super::scripted::Scripted;
use crate::nvme_ctrl::config::ControllerConfig;
use crate::nvme_ctrl::settings::Health;

/// See the module docs.
#[derive(Debug)]
pub struct Admin {
    /// The admin queues.
    pub queue: QueuePair,
    /// What Set Features set.
    pub features: Features,
    /// Asynchronous events.
    pub events: Events,
    /// Namespaces that changed.
    pub changed: ChangedNamespaces,
    /// The Keep Alive timer.
    pub keep_alive: KeepAlive,
    /// Power on.
    pub started: Instant,
    /// Aborts in flight.
    pub aborts: u8,
    /// Commands that laboratories bend.
    pub scripted: Scripted,
    /// What the device says of its state.
    pub health: Health,
    /// Bits of Critical Warning at the last look: what is new is reported.
    pub warned: u8,
    /// What was asked for.
    pub counts: Counts,
}

/// For the log: queues and what the host waits for.
impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {:?}; aborts in flight {}", self.queue, self.events, self.aborts)
    }
}

impl Admin {
    /// Admin state of a disabled controller.
    pub fn new(config: &ControllerConfig) -> Self {
        Self {
            queue: QueuePair::default(),
            features: Features::new(config),
            events: Events::new(config.aerl),
            changed: ChangedNamespaces::default(),
            keep_alive: KeepAlive::default(),
            started: Instant::now(),
            aborts: 0,
            scripted: Scripted::default(),
            health: Health::default(),
            warned: 0,
            counts: Counts::default(),
        }
    }

    /// Controller reset: queues, events and current feature values go.
    pub fn reset(&mut self, config: &ControllerConfig) {
        let counts = std::mem::take(&mut self.counts);
        *self = Self { started: self.started, health: self.health, counts, ..Self::new(config) };
    }
}
