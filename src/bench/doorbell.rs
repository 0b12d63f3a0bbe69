//! How the device learns of new entries: by a message, a mapped page, or shadow doorbells in guest memory.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use super::client::Client;
use super::memory::Memory;

/// The doorbells of one queue pair.
#[derive(Clone, Debug)]
pub(super) enum Doorbells {
    /// A store to a page of BAR0. Nothing else.
    Mapped {
        /// The window.
        page: Arc<Memory>,
        /// Offsets of the tail and the head doorbell in it.
        at: [usize; 2],
    },
    /// A REGION_WRITE each.
    Trapped {
        /// Shared with all queues.
        client: Arc<Mutex<Client>>,
        /// Offsets in BAR0.
        at: [u64; 2],
    },
    /// A store to guest memory, and a REGION_WRITE where the event index asks for one.
    Shadowed {
        /// Shared with all queues.
        client: Arc<Mutex<Client>>,
        /// Offsets in BAR0.
        at: [u64; 2],
        /// Where both buffers are.
        memory: Arc<Memory>,
        /// Offsets of the shadow doorbells.
        shadow: [usize; 2],
        /// Offsets of the event indices.
        event: [usize; 2],
    },
}

/// Index of the tail doorbell, and of the head doorbell.
pub(super) const TAIL: usize = 0;
pub(super) const HEAD: usize = 1;

impl Doorbells {
    /// Rings `which` of the two. All that was written to memory before is seen by a device that sees this.
    pub(super) fn ring(&self, which: usize, value: u16) -> anyhow::Result<()> {
        match self {
            Self::Mapped { page, at } => {
                page.word(pick(at, which)).store(u32::from(value), Ordering::Release);
                Ok(())
            }
            Self::Trapped { client, at } => trap(client, pick(at, which), value),
            Self::Shadowed { client, at, memory, shadow, event } => {
                // The order of Linux: old value, new value, full fence, event index.
                let doorbell = memory.word(pick(shadow, which));
                let old = doorbell.load(Ordering::Relaxed) as u16;
                doorbell.store(u32::from(value), Ordering::Release);
                fence(Ordering::SeqCst);
                let event = memory.word(pick(event, which)).load(Ordering::Relaxed) as u16;
                if wanted(event, value, old) { trap(client, pick(at, which), value) } else { Ok(()) }
            }
        }
    }
}

fn pick<T: Copy>(at: &[T; 2], which: usize) -> T {
    if which == TAIL { at[0] } else { at[1] }
}

fn trap(client: &Mutex<Client>, at: u64, value: u16) -> anyhow::Result<()> {
    client.lock().unwrap_or_else(PoisonError::into_inner).ring(at, u32::from(value))
}

/// Does the step from `old` to `new` pass the event index? (Doorbell Buffer Config, as drivers do it.)
fn wanted(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_step_past_the_event_index_rings() {
        for (event, new, old, rings) in [
            (5, 6, 5, true),
            (5, 9, 5, true),
            (6, 6, 5, false),
            (4, 6, 5, false),
            (0xffff, 6, 5, false),
            (0xffff, 0, 31, true),
            (31, 0, 31, true),
        ] {
            assert_eq!(wanted(event, new, old), rings, "{event} {new} {old}");
        }
    }
}
