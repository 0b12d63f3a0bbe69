//! Flushes of all namespaces on behalf of the control thread, one at a time.

use super::asked::{FLUSH_SLOTS, Flushing};
use super::core::Core;
use super::messages::Token;
use super::slots;
use crate::disk::Op;

impl Core {
    pub(super) fn flush(&mut self, token: Token) {
        let id = FLUSH_SLOTS | self.flushes;
        self.flushes = (self.flushes + 1) % FLUSH_SLOTS;
        let namespaces = self.shared.namespaces.load_full();
        let left = namespaces.iter().count();
        if left == 0 {
            return self.ack(token, true);
        }
        // Known before anything is submitted: should that panic, it is still acknowledged.
        self.flushing = Some(Flushing { id, token, left, ok: true });
        for (part, ns) in (0..).zip(namespaces.iter()) {
            let tag = slots::tag(id, part);
            ns.disk.start(tag, Op::Flush, &mut self.lane);
        }
    }

    pub(super) fn flushed(&mut self, id: u32, ok: bool) {
        let Some(flushing) = self.flushing.as_mut().filter(|flushing| flushing.id == id) else { return };
        flushing.left -= 1;
        flushing.ok &= ok;
        if flushing.left == 0 {
            let (token, ok) = (flushing.token, flushing.ok);
            self.flushing = None;
            self.ack(token, ok);
        }
    }
}
