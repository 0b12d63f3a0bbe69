//! What a namespace keeps when its value is replaced, and what each controller's host has set of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Namespace;

/// Controllers that can share a namespace.
pub const MAX_CONTROLLERS: u8 = 64;

/// Controller ID (Identify Controller CNTLID): what a host sets of a namespace is its controller's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cntlid(u8);

impl Cntlid {
    /// `None` from [`MAX_CONTROLLERS`] on.
    pub fn new(id: u8) -> Option<Self> {
        (id < MAX_CONTROLLERS).then_some(Self(id))
    }

    /// As Identify Controller has it.
    pub fn get(self) -> u16 {
        self.0.into()
    }

    const fn bit(self) -> u64 {
        1 << self.0
    }
}

/// See the module docs. Values that share it are one namespace at different times.
#[derive(Debug, Default)]
pub struct Life {
    /// Error Recovery DULBE, a bit for each controller: set by control threads, read by workers when they
    /// start a command.
    dulbe: AtomicU64,
    /// Values that were in a table, the newest last. Control threads only.
    values: Mutex<Vec<Weak<Namespace>>>,
}

impl Life {
    /// Has the host of this controller enabled DULBE?
    pub fn dulbe(&self, by: Cntlid) -> bool {
        self.dulbe.load(Ordering::Acquire) & by.bit() != 0
    }

    /// Has any host enabled DULBE? Then whatever is written must be allocated, zeroes too.
    pub fn any_dulbe(&self) -> bool {
        self.dulbe.load(Ordering::Acquire) != 0
    }

    /// For [`Self::dulbe`].
    pub fn set_dulbe(&self, by: Cntlid, on: bool) {
        if on {
            self.dulbe.fetch_or(by.bit(), Ordering::AcqRel);
        } else {
            self.dulbe.fetch_and(!by.bit(), Ordering::AcqRel);
        }
    }

    /// The value is about to be in a table.
    pub(super) fn note(&self, value: &Arc<Namespace>) {
        let mut values = self.values();
        values.retain(|value| value.strong_count() > 0);
        values.push(Arc::downgrade(value));
    }

    /// The values that came before this one, if somebody has them still: commands that were admitted with them, and workers
    /// that have not looked at their table since. All of them, if this one is none that was in a table.
    pub fn before(&self, value: &Arc<Namespace>) -> Vec<Weak<Namespace>> {
        let older = |other: &&Weak<Namespace>| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(value));
        self.values().iter().take_while(older).cloned().collect()
    }

    fn values(&self) -> MutexGuard<'_, Vec<Weak<Namespace>>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_controller_has_a_dulbe_of_its_own() {
        let life = Life::default();
        let ids = [0, 1, MAX_CONTROLLERS - 1].map(|id| Cntlid::new(id).expect("below the limit"));
        assert_eq!(Cntlid::new(MAX_CONTROLLERS), None);
        life.set_dulbe(ids[0], true);
        life.set_dulbe(ids[2], true);
        assert_eq!(ids.map(|by| life.dulbe(by)), [true, false, true]);
        life.set_dulbe(ids[0], false);
        assert_eq!(ids.map(|by| life.dulbe(by)), [false, false, true]);
        assert!(life.any_dulbe());
        life.set_dulbe(ids[2], false);
        assert!(!life.any_dulbe());
    }
}
