//! What the namespaces are made of, and those that are detached: known, open, and out of every host's reach.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::wire::Refusal;
use crate::config::{Config, ConfigError, NsConfig, NvmeConfig, another};
use crate::disk::LaneKind;
use crate::images;
use crate::namespace::Namespace;

/// See the module docs.
#[derive(Debug)]
pub struct Stock {
    nvme: NvmeConfig,
    engine: LaneKind,
    /// Held while namespaces come, go or change their length: one at a time, however long an image takes.
    turn: Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// Of all namespaces, attached or not.
    configs: Vec<NsConfig>,
    detached: BTreeMap<u32, Arc<Namespace>>,
}

/// Namespaces come, go and change their length only for who has it.
#[derive(Debug)]
pub struct Turn<'a>(#[expect(dead_code, reason = "held, not read")] MutexGuard<'a, ()>);

impl Stock {
    /// The namespaces of `config`, all attached, served by lanes of this kind.
    pub fn new(config: &Config, engine: LaneKind) -> Self {
        let known = Known { configs: config.namespaces.clone(), detached: BTreeMap::new() };
        Self { nvme: config.nvme.clone(), engine, turn: Mutex::default(), known: Mutex::new(known) }
    }

    /// Waits until nobody else has it.
    pub fn turn(&self) -> Turn<'_> {
        Turn(self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a namespace from the value of an `--nvme-ns`; a line about it for the log.
    ///
    /// # Errors
    /// It cannot be.
    pub fn open(&self, _turn: &Turn<'_>, list: &str) -> Result<(Namespace, String), Refusal> {
        let refuse = |error: ConfigError| {
            Refusal::new(
                error.to_string(),
                "ns: a list of properties as --nvme-ns takes it; see serve --help",
            )
        };
        let others = self.known().configs.clone();
        let config = another(list.as_ref(), &self.nvme, &others).map_err(refuse)?;
        if config.oracle {
            return Err(Refusal::new(
                "oracle=on is for namespaces that the device starts with",
                "ns: the list without it",
            ));
        }
        images::check_engine(&config, self.engine).map_err(refuse)?;
        let opened = images::open_one(&config, &others).map_err(refuse)?;
        self.known().configs.push(config);
        Ok(opened)
    }

    /// The namespace is no more.
    pub fn forget(&self, _turn: &Turn<'_>, nsid: u32) {
        self.known().configs.retain(|config| config.nsid != nsid);
    }

    /// The namespaces that are detached, ascending.
    pub fn detached(&self) -> Vec<Arc<Namespace>> {
        self.known().detached.values().cloned().collect()
    }

    /// Keeps one that is detached, in place of an older value of it.
    pub fn keep(&self, ns: Arc<Namespace>) {
        self.known().detached.insert(ns.nsid, ns);
    }

    /// The detached namespace of this NSID.
    pub fn get(&self, nsid: u32) -> Option<Arc<Namespace>> {
        self.known().detached.get(&nsid).cloned()
    }

    /// It is detached no longer.
    pub fn take(&self, nsid: u32) -> Option<Arc<Namespace>> {
        self.known().detached.remove(&nsid)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
