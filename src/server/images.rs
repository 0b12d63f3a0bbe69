//! Opens what the namespaces are made of.

use std::sync::Arc;

use crate::backend::engine::EngineKind;
use crate::backend::{MemoryBackend, OpenError, RawBackend, RawOptions, SharedBackend};
use crate::config::{Aio, Config, ConfigError, Drive, NsConfig};
use crate::namespace::{CopyLimits, Identity, Namespace, Namespaces};

/// All namespaces of the configuration.
///
/// # Errors
/// An image that cannot be used.
pub fn open(config: &Config) -> Result<Namespaces, ConfigError> {
    let list = config.namespaces.iter().map(namespace).collect::<Result<Vec<_>, _>>()?;
    Ok(Namespaces::new(list, crate::config::NSID_MAX))
}

/// The engine all workers use. A worker sleeps in its engine, so there is one for all namespaces.
///
/// # Errors
/// Namespaces that ask for different ones.
pub fn engine_kind(config: &Config) -> Result<EngineKind, ConfigError> {
    let mut kinds = config.namespaces.iter().map(|ns| ns.aio).filter(|aio| *aio != Aio::Auto);
    let first = kinds.next().unwrap_or(Aio::Auto);
    if let Some(other) = kinds.find(|aio| *aio != first) {
        return Err(ConfigError::bad_value(
            "--nvme-ns",
            "aio",
            format!("{other:?}").to_lowercase(),
            "another namespace asks for another engine, and one engine serves all of them",
            "give every namespace the same aio, or --nvme aio alone",
        ));
    }
    Ok(match first {
        Aio::Auto => EngineKind::Auto,
        Aio::IoUring => EngineKind::IoUring,
        Aio::Threads => EngineKind::Threads,
    }
    .resolve())
}

fn namespace(config: &NsConfig) -> Result<Namespace, ConfigError> {
    let backend: SharedBackend = match &config.drive {
        Drive::Memory { size } => {
            let image = MemoryBackend::with_huge_pages(*size, config.hugepages).map_err(|error| {
                ConfigError::bad_value(
                    "--nvme-ns",
                    "size",
                    size.to_string(),
                    error.to_string(),
                    "give a smaller size",
                )
            })?;
            Arc::new(image.protected(config.readonly))
        }
        Drive::File { path, size } => {
            let options = RawOptions {
                size: *size,
                read_only: config.readonly,
                locking: config.locking,
                cache: config.cache,
                unmap: config.discard,
                unit: config.logical_block_size.into(),
                ..RawOptions::new(path)
            };
            Arc::new(RawBackend::open(options).map_err(|error| unusable(&error))?)
        }
    };
    let limits = CopyLimits { mssrl: config.mssrl, mcl: config.mcl, msrc: config.msrc };
    let identity = Identity {
        eui64: u64::from_be_bytes(config.eui64),
        nguid: config.nguid,
        uuid: config.uuid.into_bytes(),
    };
    let lbads = config.logical_block_size.trailing_zeros() as u8;
    Ok(Namespace::new(config.nsid, backend, lbads, limits, identity).with_policy(config.copy))
}

/// The image's own message names path, fault and remedy.
fn unusable(error: &OpenError) -> ConfigError {
    ConfigError::Unusable { prefix: "--nvme-ns drive=", text: error.to_string() }
}
