//! Doorbells: by messages, shadowed in guest memory, or mapped.

use std::sync::atomic::{Ordering, fence};

use super::Page;

/// How doorbells are rung.
#[derive(Clone, Debug)]
pub enum Bells {
    /// By messages.
    Registers,
    /// Doorbell Buffer Config: shadow doorbells, event indices. The admin queue goes by messages.
    Shadow(Page, Page),
    /// By plain stores to the mapped registers.
    Mapped(Page),
}

impl Bells {
    /// Rings the doorbell at dword `word`, as far as that is a store. All that was written to memory before
    /// is seen by a device that sees this. True where a message has to follow.
    #[inline]
    pub fn ring(&self, word: usize, value: u32) -> bool {
        match self {
            Bells::Registers => true,
            Bells::Mapped(page) => {
                page.word(word).store(value, Ordering::Release);
                false
            }
            Bells::Shadow(shadow, events) => {
                // The order of Linux: old value, new value, full fence, event index.
                let doorbell = shadow.word(word);
                let old = doorbell.load(Ordering::Relaxed);
                doorbell.store(value, Ordering::Release);
                fence(Ordering::SeqCst);
                must_ring(value, old, events.word(word).load(Ordering::Relaxed))
            }
        }
    }
}

/// Does a doorbell that goes from `old` to `new` have to be rung in BAR0? As the specification's hosts decide
/// it.
pub fn must_ring(new: u32, old: u32, event: u32) -> bool {
    let (new, old, event) = (new as u16, old as u16, event as u16);
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
            assert_eq!(must_ring(new, old, event), rings, "{event} {new} {old}");
        }
    }
}
