//! The laboratory's tools that the device has: fault rules and the copy log.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::config::{Config, ConfigError};
use crate::laboratory::Laboratory;
use crate::laboratory::copy_log::{CopyLog, LogFile};
use crate::laboratory::faults::Faults;

/// How long the last records may take to be written, when all else has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// See the module docs.
pub struct Tools {
    pub(super) faults: Arc<Faults>,
    pub(super) copies: Arc<CopyLog>,
}

impl Tools {
    /// As `config` has them, for whatever workers `laboratory` will have: fault rules are in force before there is one.
    ///
    /// # Errors
    /// A rule cannot be, the copy log's file cannot be used, or its thread not made.
    pub fn open(config: &Config, laboratory: &Arc<Laboratory>) -> anyhow::Result<Self> {
        let faults = Faults::new(Arc::clone(laboratory));
        for rule in &config.faults {
            faults.add(rule.clone(), Duration::ZERO).map_err(|error| ConfigError::bad_rule(&error))?;
        }
        let copies = CopyLog::new(Arc::clone(laboratory));
        if let Some(path) = &config.copy_log {
            write_to(&copies, path)?;
        }
        Ok(Self { faults, copies })
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
