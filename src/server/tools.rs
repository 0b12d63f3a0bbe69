//! The laboratory's tools that the device has: fault rules, the copy log and the oracle.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::config::{Config, ConfigError, Drive};
use crate::control::scan;
use crate::laboratory::Laboratory;
use crate::laboratory::copy_log::{CopyLog, LogFile};
use crate::laboratory::faults::Faults;
use crate::laboratory::oracle::{self, Judged, Oracle};
use crate::subsystem::Subsystem;

/// How long the last records may take to be written, when all else has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// See the module docs.
pub struct Tools {
    pub(super) faults: Arc<Faults>,
    pub(super) copies: Arc<CopyLog>,
    pub(super) oracle: Arc<Oracle>,
}

impl Tools {
    /// As `config` has them, for whatever workers `laboratory` will have: fault rules are in force before there is one.
    ///
    /// # Errors
    /// A rule cannot be, the copy log's file cannot be used, or its thread not made.
    pub fn open(
        config: &Config,
        laboratory: &Arc<Laboratory>,
        subsystem: &Subsystem,
    ) -> anyhow::Result<Self> {
        let faults = Faults::new(Arc::clone(laboratory));
        for rule in &config.faults {
            faults.add(rule.clone(), Duration::ZERO).map_err(|error| ConfigError::bad_rule(&error))?;
        }
        let copies = CopyLog::new(Arc::clone(laboratory));
        if let Some(path) = &config.copy_log {
            write_to(&copies, path)?;
        }
        let oracle = watch(config, laboratory, subsystem);
        Ok(Self { faults, copies, oracle })
    }

    /// Reads what the oracle watches once more, when nothing is in flight any more. True when all of it is as the
    /// commands imply; a line about each namespace goes to the log.
    pub fn verdict(&self, subsystem: &Subsystem) -> bool {
        let namespaces = subsystem.table().load_full();
        for (nsid, ..) in self.oracle.verdicts() {
            let Ok(ns) = namespaces.get(nsid) else { continue };
            if let Err(why) = scan(&self.oracle, ns) {
                log::error!("oracle: namespace {nsid} cannot be read: {why}");
                return false;
            }
        }
        let mut holds = true;
        for (nsid, judged, first) in self.oracle.verdicts() {
            holds &= first.is_none();
            let Judged { checked, unknown, never, differing } = judged;
            let found = first.map_or_else(|| "none differs".into(), |first| format!("the first: {first}"));
            log::info!(
                "oracle: namespace {nsid}: {checked} checked, {unknown} unknown, {never} never seen, \
                 {differing} differing; {found}"
            );
        }
        holds
    }

    /// Ends the copy log, with its last records.
    pub fn end(&self) {
        if !self.copies.end(FAREWELL) {
            log::error!("the copy log lacks its last records: nothing takes them");
        }
    }
}

fn write_to(copies: &CopyLog, path: &Path) -> anyhow::Result<()> {
    let file = LogFile::open(path).map_err(|error| ConfigError::Unusable {
        prefix: "--copy-log ",
        text: format!("{}: {error}", path.display()),
    })?;
    copies.write_to(file).context("cannot make the copy log's thread")?;
    log::info!("copy log: {}", path.display());
    Ok(())
}

/// Watches the namespaces with `oracle=on`, if there are any. Without one, no worker has the tool.
fn watch(config: &Config, laboratory: &Laboratory, subsystem: &Subsystem) -> Arc<Oracle> {
    let watcher = Arc::new(Oracle::default());
    let namespaces = subsystem.table().load_full();
    let mut any = false;
    for ns in config.namespaces.iter().filter(|ns| ns.oracle) {
        let Ok(value) = namespaces.get(ns.nsid) else { continue };
        let (blocks, bytes) = watcher.watch(value, matches!(ns.drive, Drive::Memory { .. }));
        let (nsid, all) = (ns.nsid, value.facts.nsze);
        log::info!("oracle: namespace {nsid}: {blocks} of {all} blocks watched, in {bytes} bytes at most");
        any = true;
    }
    if any {
        laboratory.put(oracle::tool(&watcher), Duration::ZERO);
    }
    watcher
}
