//! Opens what the namespaces are made of.

use std::path::Path;
use std::sync::Arc;

use crate::config::{Config, ConfigError, Drive, NsConfig};
use crate::copy;
use crate::disk::LaneKind;
use crate::disk::{FileDisk, FileOptions, MemoryDisk, OpenError, OpenFault, SharedDisk, is_same_image};
use crate::namespace::{CopyLimits, Identity, Namespace, Namespaces};

/// All namespaces of the configuration, and a line about each for the log.
///
/// # Errors
/// An image that cannot be used.
pub fn open(config: &Config) -> Result<(Namespaces, Vec<String>), ConfigError> {
    let mut list = Vec::new();
    let mut lines = Vec::new();
    for (at, ns) in config.namespaces.iter().enumerate() {
        let (namespace, line) = open_one(ns, config.namespaces.get(..at).unwrap_or_default())?;
        lines.push(line);
        list.push(namespace);
    }
    Ok((Namespaces::new(list, crate::config::NSID_MAX), lines))
}

/// One namespace, and a line about it for the log. `others` are those that are open.
///
/// # Errors
/// Its image cannot be used.
pub fn open_one(config: &NsConfig, others: &[NsConfig]) -> Result<(Namespace, String), ConfigError> {
    let (disk, created) = image(config, others)?;
    let namespace = namespace(config, disk);
    let line = line(config, &namespace, created);
    Ok((namespace, line))
}

/// May a namespace be added to a device whose lanes are of this kind?
///
/// # Errors
/// It asks for another engine.
pub fn check_engine(config: &NsConfig, running: LaneKind) -> Result<(), ConfigError> {
    if [LaneKind::Auto, running].contains(&config.aio) {
        return Ok(());
    }
    Err(ConfigError::bad_value(
        "--nvme-ns",
        "aio",
        config.aio.to_string(),
        format!("the device runs with {running}, and one engine serves all namespaces"),
        "leave it out",
    ))
}

/// The kind of lane all workers use. A worker sleeps in its lane, so there is one for all namespaces.
///
/// # Errors
/// Namespaces that ask for different ones.
pub fn lane_kind(config: &Config) -> Result<LaneKind, ConfigError> {
    let mut kinds = config.namespaces.iter().map(|ns| ns.aio).filter(|aio| *aio != LaneKind::Auto);
    let first = kinds.next().unwrap_or_default();
    if let Some(other) = kinds.find(|aio| *aio != first) {
        return Err(ConfigError::bad_value(
            "--nvme-ns",
            "aio",
            other.to_string(),
            "another namespace asks for another engine, and one engine serves all of them",
            "give every namespace the same aio, or --nvme aio alone",
        ));
    }
    Ok(first.resolve())
}

/// The image of a namespace, and whether it was made. `others` are those that are open.
fn image(config: &NsConfig, others: &[NsConfig]) -> Result<(SharedDisk, bool), ConfigError> {
    match &config.drive {
        Drive::Memory { size } => {
            let image = MemoryDisk::with_huge_pages(*size, config.hugepages).map_err(|error| {
                ConfigError::bad_value(
                    "--nvme-ns",
                    "size",
                    size.to_string(),
                    error.to_string(),
                    "give a smaller size",
                )
            })?;
            Ok((Arc::new(image.protected(config.readonly)), false))
        }
        Drive::File { path, size } => {
            let options = FileOptions {
                size: *size,
                read_only: config.readonly,
                locking: config.locking,
                cache: config.cache,
                unmap: config.discard,
                unit: config.logical_block_size.into(),
                raw: config.raw,
                ..FileOptions::new(path)
            };
            let image = FileDisk::open(options).map_err(|error| unusable(&error, path, others))?;
            let created = image.is_created();
            Ok((Arc::new(image), created))
        }
    }
}

fn namespace(config: &NsConfig, disk: SharedDisk) -> Namespace {
    let limits = CopyLimits { mssrl: config.mssrl, mcl: config.mcl, msrc: config.msrc };
    let identity = Identity {
        eui64: u64::from_be_bytes(config.eui64),
        nguid: config.nguid,
        uuid: config.uuid.into_bytes(),
    };
    let lbads = config.logical_block_size.trailing_zeros() as u8;
    Namespace::new(config.nsid, disk, lbads, limits, identity).with_policy(config.copy)
}

/// What a namespace is, in the words of its properties.
fn line(config: &NsConfig, namespace: &Namespace, created: bool) -> String {
    let NsConfig { nsid, logical_block_size: block, mssrl, mcl, msrc, .. } = config;
    let (name, len) = (namespace.disk.name(), namespace.disk.len());
    let created = if created { " (created)" } else { "" };
    let readonly = if config.readonly { ", readonly=on" } else { "" };
    let cache = match &config.drive {
        Drive::Memory { .. } => String::new(),
        Drive::File { .. } => format!(", cache={}", config.cache.word()),
    };
    let way = copy::best_method(namespace);
    format!(
        "namespace {nsid}: {name}{created}, {len} bytes in blocks of {block}{readonly}{cache}, mssrl={mssrl}, mcl={mcl}, \
         msrc={msrc}; Copy within it by {way}"
    )
}

/// The image's own message names path, fault and remedy; but whose lock it met it cannot know.
fn unusable(error: &OpenError, path: &Path, others: &[NsConfig]) -> ConfigError {
    let twin = others.iter().find_map(|other| match &other.drive {
        Drive::File { path: held, .. } if is_same_image(path, held) => Some((other.nsid, held)),
        _ => None,
    });
    let text = match (&error.fault, twin) {
        (OpenFault::Locked(_) | OpenFault::DeviceBusy, Some((nsid, held))) => format!(
            "{}: is the image of namespace {nsid} too (drive={}); name another one, or give both readonly=on",
            path.display(),
            held.display()
        ),
        _ => error.to_string(),
    };
    ConfigError::Unusable { prefix: "--nvme-ns drive=", text }
}
