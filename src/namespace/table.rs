//! Which namespaces there are.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache, Guard};

use super::Namespace;

/// Namespaces by NSID: a value that is replaced, never changed. NSIDs may have gaps; an NSID up to `nn`
/// without a namespace is inactive, above it is invalid.
#[derive(Clone, Debug)]
pub struct Namespaces {
    by_nsid: Vec<Option<Arc<Namespace>>>,
}

/// Why an NSID names no namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoNamespace {
    /// 0, FFFFFFFFh or above NN.
    Invalid,
    /// A valid NSID that nothing is attached to.
    Inactive,
}

/// A value for a table, which its namespace's life knows of.
fn noted(ns: Namespace) -> Arc<Namespace> {
    let ns = Arc::new(ns);
    ns.life.note(&ns);
    ns
}

impl Namespaces {
    /// `nn` is the highest valid NSID (Identify Controller NN), at least the highest NSID in `list`.
    pub fn new(list: Vec<Namespace>, nn: u32) -> Self {
        let top = list.iter().map(|ns| ns.nsid).max().unwrap_or(0).max(nn) as usize;
        let mut by_nsid = vec![None; top];
        for ns in list {
            if let Some(slot) = (ns.nsid as usize).checked_sub(1).and_then(|i| by_nsid.get_mut(i)) {
                *slot = Some(noted(ns));
            }
        }
        Self { by_nsid }
    }

    /// Number of valid NSIDs (Identify Controller NN).
    pub fn nn(&self) -> u32 {
        self.by_nsid.len() as u32
    }

    /// The namespace behind an NSID.
    pub fn get(&self, nsid: u32) -> Result<&Arc<Namespace>, NoNamespace> {
        let slot =
            (nsid as usize).checked_sub(1).and_then(|i| self.by_nsid.get(i)).ok_or(NoNamespace::Invalid)?;
        slot.as_ref().ok_or(NoNamespace::Inactive)
    }

    /// The same with `ns` in its place, whatever was there. An NSID above NN is not: hosts know NN as fixed.
    ///
    /// # Errors
    /// [`NoNamespace::Invalid`] for 0 and for what lies above NN.
    pub fn with(&self, ns: Namespace) -> Result<Self, NoNamespace> {
        let mut by_nsid = self.by_nsid.clone();
        let slot = (ns.nsid as usize).checked_sub(1).and_then(|at| by_nsid.get_mut(at));
        *slot.ok_or(NoNamespace::Invalid)? = Some(noted(ns));
        Ok(Self { by_nsid })
    }

    /// The same without the namespace of this NSID; the NSID stays valid.
    #[must_use]
    pub fn without(&self, nsid: u32) -> Self {
        let mut by_nsid = self.by_nsid.clone();
        if let Some(slot) = (nsid as usize).checked_sub(1).and_then(|at| by_nsid.get_mut(at)) {
            *slot = None;
        }
        Self { by_nsid }
    }

    /// NSIDs whose namespace is new, gone or another value than in `old`, ascending.
    pub fn changed_since(&self, old: &Self) -> Vec<u32> {
        let at = |table: &Self, nsid| table.get(nsid).map(Arc::as_ptr).ok();
        (1..=self.nn().max(old.nn())).filter(|nsid| at(self, *nsid) != at(old, *nsid)).collect()
    }

    /// All attached namespaces, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.by_nsid.iter().flatten()
    }
}

/// The [`Namespaces`] as they are now. All who look at a table see a change at once, each at its next look.
#[derive(Clone, Debug)]
pub struct Table(Arc<ArcSwap<Namespaces>>);

/// A [`Table`] as its thread saw it when it last looked: a look costs a load unless there is something new.
pub type Cached = Cache<Arc<ArcSwap<Namespaces>>, Arc<Namespaces>>;

impl Table {
    /// A table that holds `namespaces`.
    pub fn new(namespaces: Namespaces) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(namespaces)))
    }

    /// What it holds now. The guard is for a short look.
    pub fn load(&self) -> Guard<Arc<Namespaces>> {
        self.0.load()
    }

    /// What it holds now, to be kept.
    pub fn load_full(&self) -> Arc<Namespaces> {
        self.0.load_full()
    }

    /// For a thread that looks often.
    pub fn cached(&self) -> Cached {
        Cache::new(Arc::clone(&self.0))
    }

    /// Replaces all that it holds.
    pub fn store(&self, namespaces: Namespaces) {
        self.0.store(Arc::new(namespaces));
    }
}
