//! The copy log of the device.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::config::ConfigError;
use crate::laboratory::Laboratory;
use crate::laboratory::copy_log::{CopyLog, LogFile};

/// How long the last records may take to be written, when all else has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// A copy log of whatever workers `laboratory` will have, written to `file` if there is one.
///
/// # Errors
/// The file cannot be used, or the log's thread not made.
pub(super) fn open(laboratory: &Arc<Laboratory>, file: Option<&Path>) -> anyhow::Result<Arc<CopyLog>> {
    let copies = CopyLog::new(Arc::clone(laboratory));
    if let Some(path) = file {
        let file = LogFile::open(path).map_err(|error| ConfigError::Unusable {
            prefix: "--copy-log ",
            text: format!("{}: {error}", path.display()),
        })?;
        copies.write_to(file).context("cannot make the copy log's thread")?;
        log::info!("copy log: {}", path.display());
    }
    Ok(copies)
}

/// Ends it.
pub(super) fn end(copies: &CopyLog) {
    if !copies.end(FAREWELL) {
        log::error!("the copy log lacks its last records: nothing takes them");
    }
}
