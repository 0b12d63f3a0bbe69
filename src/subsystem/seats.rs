//! Who sits where, and what each has not heard yet.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::namespace::{Cntlid, MAX_CONTROLLERS, Table};

/// Has a controller's thread look at its seat.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// NSIDs whose namespaces changed since their seat last looked: at most NN, however many changes there were.
type Changed = Arc<Mutex<BTreeSet<u32>>>;

/// One controller's place in the subsystem.
pub struct Seat {
    cntlid: Cntlid,
    changed: Changed,
    table: Table,
    is_shared: bool,
    /// To give it back.
    seats: Arc<Mutex<Seats>>,
}

/// All seats, for a moment.
pub(super) fn lock(seats: &Mutex<Seats>) -> MutexGuard<'_, Seats> {
    seats.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seat {
    /// One that nobody has; `None` when all are taken.
    pub(super) fn take(seats: &Arc<Mutex<Seats>>, table: Table, is_shared: bool, wake: Wake) -> Option<Self> {
        let (cntlid, changed) = lock(seats).take(wake)?;
        Some(Self { cntlid, changed, table, is_shared, seats: Arc::clone(seats) })
    }

    /// Identify Controller CNTLID.
    pub fn cntlid(&self) -> Cntlid {
        self.cntlid
    }

    /// The namespaces of the subsystem.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Can others share the namespaces?
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// NSIDs of namespaces that are new, other or gone since the last call, ascending.
    pub fn changed(&self) -> Vec<u32> {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *changed).into_iter().collect()
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("cntlid", &self.cntlid).finish_non_exhaustive()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        for ns in self.table().load().iter() {
            ns.set_dulbe(self.cntlid, false);
        }
        lock(&self.seats).give_back(self.cntlid);
    }
}

/// All seats that are taken.
#[derive(Default)]
pub(super) struct Seats {
    taken: Vec<(Cntlid, Changed, Wake)>,
}

impl Seats {
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// The lowest CNTLID that nobody has.
    pub fn take(&mut self, wake: Wake) -> Option<(Cntlid, Changed)> {
        let mut all = (0..MAX_CONTROLLERS).filter_map(Cntlid::new);
        let cntlid = all.find(|id| self.taken.iter().all(|(taken, ..)| taken != id))?;
        let changed = Changed::default();
        self.taken.push((cntlid, Arc::clone(&changed), wake));
        Some((cntlid, changed))
    }

    pub fn give_back(&mut self, cntlid: Cntlid) {
        self.taken.retain(|(taken, ..)| *taken != cntlid);
    }

    /// Has every seat hear of these NSIDs.
    pub fn tell(&mut self, nsids: &[u32]) {
        if nsids.is_empty() {
            return;
        }
        for (_, changed, wake) in &self.taken {
            changed.lock().unwrap_or_else(PoisonError::into_inner).extend(nsids);
            wake();
        }
    }
}

impl fmt::Debug for Seats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.taken.iter().map(|(cntlid, ..)| cntlid)).finish()
    }
}
