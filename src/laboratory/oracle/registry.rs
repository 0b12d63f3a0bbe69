//! The oracle: which namespaces are watched, by the workers of all controllers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use super::ledger::{Judged, Ledger, Span, Tick};
use super::sum::Sum;
use super::verdict::Difference;
use crate::laboratory::seam::HostData;
use crate::namespace::{Life, Namespace};

/// Blocks whose sums all commands in flight may hold: 64 MiB. Of what a write beyond that leaves nothing is known.
const HELD: u64 = 8 << 20;

/// See the module docs. No lock is held across I/O.
#[derive(Default)]
pub struct Oracle {
    watched: RwLock<BTreeMap<u32, Arc<Watched>>>,
    held: Arc<AtomicU64>,
}

/// A namespace that is watched.
pub(super) struct Watched {
    life: Weak<Life>,
    lbads: u8,
    ledger: Mutex<Ledger>,
}

/// A share of [`HELD`], given back when it is dropped.
#[derive(Default)]
pub(super) struct Held(Option<(Arc<AtomicU64>, u64)>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((held, blocks)) = &self.0 {
            held.fetch_sub(*blocks, Ordering::Relaxed);
        }
    }
}

impl Watched {
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of each block of a transfer, as far as the host's memory can be read.
    pub fn sums(&self, data: &dyn HostData, span: Span) -> Vec<Option<Sum>> {
        let mut block = vec![0; 1 << self.lbads];
        let each = (0..span.nlb as usize).map(|at| {
            let read = data.read(at << self.lbads, &mut block);
            read.then(|| Sum::of(&block))
        });
        each.collect()
    }

    /// As [`Ledger::judge_counted`], and tells the log.
    pub fn judge(&self, since: Tick, span: Span, found: &[Option<Sum>]) -> Judged {
        let (first, judged) = self.ledger().judge_counted(since, span, found);
        if let Some(difference) = first {
            log::error!("oracle: {difference}");
        }
        judged
    }
}

/// Blocks of a watched namespace that are about to be read.
pub struct Look {
    watched: Arc<Watched>,
    since: Tick,
    span: Span,
}

impl Look {
    /// This is what they held.
    pub fn at(&self, bytes: &[u8]) -> Judged {
        let blocks = bytes.chunks_exact(1 << self.watched.lbads);
        let found: Vec<_> = blocks.map(|block| Some(Sum::of(block))).collect();
        self.watched.judge(self.since, self.span, &found)
    }
}

impl Oracle {
    /// Before `nlb` blocks (1-based) from `slba` on are read from the image; `None` when it is not watched.
    pub fn look(&self, ns: &Namespace, slba: u64, nlb: u64) -> Option<Look> {
        let watched = self.of(ns)?;
        let since = watched.ledger().now();
        Some(Look { watched, since, span: Span { slba, nlb } })
    }

    /// Watches this namespace from now on. `zeroed`: all its blocks are zeroes. What may be said of it in the
    /// log: how many of its blocks are watched, and the bytes that this may take.
    pub fn watch(&self, ns: &Namespace, zeroed: bool) -> (u64, u64) {
        let zero = Sum::of(&vec![0; 1 << ns.facts.lbads]);
        let ledger = Ledger::new(ns.nsid, ns.facts.nsze, zero, zeroed);
        let blocks = ledger.size().0;
        let watched =
            Watched { life: Arc::downgrade(&ns.life), lbads: ns.facts.lbads, ledger: Mutex::new(ledger) };
        self.all_mut(|all| all.insert(ns.nsid, Arc::new(watched)));
        (blocks, blocks * 16)
    }

    /// The namespace is no more.
    pub fn forget(&self, nsid: u32) {
        self.all_mut(|all| all.remove(&nsid));
    }

    /// The namespace has as many blocks now, if it is watched.
    pub fn resized(&self, nsid: u32, nsze: u64) {
        if let Some(watched) = self.of_nsid(nsid) {
            watched.ledger().resize(nsze);
        }
    }

    /// What is to be said of each namespace: its NSID, what was looked at, and the first difference.
    pub fn verdicts(&self) -> Vec<(u32, Judged, Option<Difference>)> {
        let all: Vec<_> = self.all().iter().map(|(nsid, watched)| (*nsid, Arc::clone(watched))).collect();
        let verdict = |(nsid, watched): (u32, Arc<Watched>)| {
            let ledger = watched.ledger();
            (nsid, ledger.judged(), ledger.first())
        };
        all.into_iter().map(verdict).collect()
    }

    /// The watched namespace that this is a value of.
    pub(super) fn of(&self, ns: &Namespace) -> Option<Arc<Watched>> {
        self.of_nsid(ns.nsid).filter(|watched| std::ptr::eq(watched.life.as_ptr(), Arc::as_ptr(&ns.life)))
    }

    pub(super) fn of_nsid(&self, nsid: u32) -> Option<Arc<Watched>> {
        self.all().get(&nsid).cloned()
    }

    /// `None` when commands in flight hold too much.
    pub(super) fn hold(&self, blocks: u64) -> Option<Held> {
        let fits = |held: u64| held.checked_add(blocks).filter(|held| *held <= HELD);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Held(Some((Arc::clone(&self.held), blocks))))
    }

    fn all(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<u32, Arc<Watched>>> {
        self.watched.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_mut<T>(&self, with: impl FnOnce(&mut BTreeMap<u32, Arc<Watched>>) -> T) -> T {
        with(&mut self.watched.write().unwrap_or_else(PoisonError::into_inner))
    }
}
