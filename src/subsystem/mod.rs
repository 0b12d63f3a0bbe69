//! The NVM subsystem: the namespaces that all controllers share, and a [`Seat`] for each controller.
//!
//! A change replaces the table of namespaces as a whole and then tells every seat what is new. Commands in
//! flight end with the values that they were admitted with.

mod seats;

use std::sync::{Arc, Mutex, MutexGuard};

use self::seats::Seats;
pub use self::seats::{Seat, Wake};
use crate::namespace::{Namespaces, Table};

/// See the module docs. Control threads only: no command comes here.
#[derive(Debug)]
pub struct Subsystem {
    table: Table,
    /// Held while the table is changed, so that each seat hears of changes in their order.
    seats: Arc<Mutex<Seats>>,
    /// It is made for more than one controller (Identify Controller CMIC, Identify Namespace NMIC).
    shared: bool,
}

impl Subsystem {
    /// A subsystem of these namespaces. `shared`: more than one controller may join.
    pub fn new(namespaces: Namespaces, shared: bool) -> Arc<Self> {
        Arc::new(Self { table: Table::new(namespaces), seats: Arc::default(), shared })
    }

    /// A place for one more controller, until the [`Seat`] is dropped; `None` when all are taken. `wake` has
    /// its thread look for changes.
    pub fn join(&self, wake: Wake) -> Option<Seat> {
        if !self.shared && !self.seats().is_empty() {
            return None;
        }
        Seat::take(&self.seats, self.table.clone(), self.shared, wake)
    }

    /// The namespaces, as they are now and will be.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Are its namespaces shared by several controllers?
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// Replaces the table by what `change` makes of it, and tells every controller which namespaces are new,
    /// other or gone.
    ///
    /// # Errors
    /// `change`'s; nothing has happened then.
    pub fn change<E>(&self, change: impl FnOnce(&Namespaces) -> Result<Namespaces, E>) -> Result<(), E> {
        let mut seats = self.seats();
        let old = self.table.load_full();
        let new = change(&old)?;
        let changed = new.changed_since(&old);
        self.table.store(new);
        seats.tell(&changed);
        Ok(())
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        seats::lock(&self.seats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::namespace::{CopyLimits, Identity, Namespace};

    fn namespace(nsid: u32, mssrl: u16) -> Namespace {
        let disk = Arc::new(MemoryDisk::new(1 << 20).expect("memory"));
        let copy = CopyLimits { mssrl, mcl: 128, msrc: 127 };
        Namespace::new(nsid, disk, 9, copy, Identity::default())
    }

    fn subsystem(shared: bool) -> Arc<Subsystem> {
        Subsystem::new(Namespaces::new(vec![namespace(1, 128), namespace(2, 128)], 4), shared)
    }

    fn no_wake() -> Wake {
        Arc::new(|| {})
    }

    #[test]
    fn every_seat_hears_what_changed_and_no_more() {
        let subsystem = subsystem(true);
        let seats = [(); 2].map(|()| subsystem.join(no_wake()).expect("a seat"));
        assert_eq!(seats.each_ref().map(|seat| seat.cntlid().get()), [0, 1]);
        let held = Arc::clone(subsystem.table().load().get(1).expect("it is there"));
        let change = |namespaces: &Namespaces| {
            let mut ns = Namespace::clone(namespaces.get(1).expect("it is there"));
            ns.facts.copy.mssrl = 7;
            namespaces.with(ns).map(|namespaces| namespaces.without(2))
        };
        subsystem.change(change).expect("it changes");
        for seat in &seats {
            assert_eq!(seat.changed(), [1, 2]);
            assert_eq!(seat.changed(), Vec::<u32>::new());
        }
        let now = subsystem.table().load_full();
        assert_eq!(now.get(1).expect("it is there").facts.copy.mssrl, 7);
        assert!(now.get(2).is_err());
        assert_eq!(now.nn(), 4);
        assert_eq!(held.facts.copy.mssrl, 128, "who holds the old value keeps it");
        assert!(Arc::ptr_eq(&held.life, &now.get(1).expect("it is there").life));
    }

    #[test]
    fn it_is_known_who_still_has_older_values() {
        let subsystem = subsystem(true);
        let now = || Arc::clone(subsystem.table().load().get(1).expect("it is there"));
        let set = |mssrl| {
            let change = |namespaces: &Namespaces| {
                let mut ns = Namespace::clone(namespaces.get(1).expect("it is there"));
                ns.facts.copy.mssrl = mssrl;
                namespaces.with(ns)
            };
            subsystem.change(change).expect("it changes");
        };
        let alive = |value: &Arc<Namespace>| {
            let before = value.life.before(value);
            before.iter().filter_map(|old| Some(old.upgrade()?.facts.copy.mssrl)).collect::<Vec<_>>()
        };
        let first = now();
        assert_eq!(alive(&first), Vec::<u16>::new());
        set(1);
        set(2);
        let third = now();
        set(3);
        assert_eq!(alive(&third), [128], "the second is nobody's");
        assert_eq!(alive(&now()), [128, 2]);
        let gone = Arc::new(Namespace::clone(&third));
        drop((first, third));
        assert_eq!(alive(&now()), Vec::<u16>::new());
        assert_eq!(alive(&gone), [3], "it was in no table");
    }

    #[test]
    fn a_change_that_is_refused_is_none() {
        let subsystem = subsystem(true);
        let seat = subsystem.join(no_wake()).expect("a seat");
        assert_eq!(subsystem.change(|_| Err("no")), Err("no"));
        assert_eq!(seat.changed(), Vec::<u32>::new());
    }

    #[test]
    fn who_leaves_gives_the_seat_back_and_is_forgotten() {
        let subsystem = subsystem(true);
        let first = subsystem.join(no_wake()).expect("a seat");
        let held = subsystem.table().load_full();
        let second = subsystem.join(no_wake()).expect("a seat");
        let ns = held.get(1).expect("it is there");
        ns.set_dulbe(first.cntlid(), true);
        ns.set_dulbe(second.cntlid(), true);
        drop(first);
        assert!(!ns.dulbe(crate::namespace::Cntlid::default()), "what its host had set goes with it");
        assert!(ns.dulbe(second.cntlid()));
        let again = subsystem.join(no_wake()).expect("a seat");
        assert_eq!((again.cntlid().get(), second.cntlid().get()), (0, 1));
    }

    #[test]
    fn seats_are_limited() {
        let subsystem = subsystem(true);
        let all: Vec<_> = std::iter::from_fn(|| subsystem.join(no_wake())).collect();
        assert_eq!(all.len(), usize::from(crate::namespace::MAX_CONTROLLERS));
        let alone = super::tests::subsystem(false);
        let _seat = alone.join(no_wake()).expect("a seat");
        assert!(alone.join(no_wake()).is_none());
    }
}
