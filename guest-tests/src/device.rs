//! The device under test behind one description: our daemon, or QEMU's own to compare with.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;

use crate::daemon::Daemon;
use crate::vm::{Nvme, QemuNs, QemuNvme};
use crate::words;

/// Who plays the NVMe device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// The daemon of this workspace.
    #[default]
    Daemon,
    /// QEMU's `-device nvme`.
    QemuNvme,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "daemon" => Ok(Self::Daemon),
            "qemu-nvme" => Ok(Self::QemuNvme),
            _ => Err("daemon or qemu-nvme".into()),
        }
    }
}

/// Properties as for the daemon's `--nvme` and `--nvme-ns`.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// One string for each `--nvme`.
    pub nvme: Vec<String>,
    /// One string for each `--nvme-ns`.
    pub namespaces: Vec<String>,
}

/// A device that a guest can be booted with.
#[derive(Debug)]
pub struct Device {
    /// For [`crate::vm::Vm::nvme`].
    pub nvme: Nvme,
    /// The process, when there is one.
    pub daemon: Option<Daemon>,
}

impl Device {
    /// Starts what must be started; files lie in `folder`.
    ///
    /// # Errors
    /// When the daemon does not start or an image cannot be made.
    pub fn start(kind: Kind, spec: &Spec, folder: &Path) -> anyhow::Result<Self> {
        match kind {
            Kind::Daemon => {
                let daemon = Daemon::start(folder, &spec.nvme, &spec.namespaces)?;
                Ok(Self { nvme: Nvme::VfioUser(daemon.socket().to_owned()), daemon: Some(daemon) })
            }
            Kind::QemuNvme => Ok(Self { nvme: Nvme::Qemu(translate(spec, folder)?), daemon: None }),
        }
    }
}

/// QEMU knows the same names but for those that make an image, and no `cdfe`.
fn translate(spec: &Spec, folder: &Path) -> anyhow::Result<QemuNvme> {
    let mut qemu = QemuNvme::default();
    for property in spec.nvme.iter().flat_map(|p| p.split(',')) {
        if !property.starts_with("cdfe=") {
            qemu.controller.push(property.to_owned());
        }
    }
    let default = ["drive=memory,size=1G".to_owned()];
    let namespaces = if spec.namespaces.is_empty() { &default[..] } else { &spec.namespaces };
    for (n, text) in namespaces.iter().enumerate() {
        qemu.namespaces.push(namespace(text, &folder.join(format!("memory{n}.img")))?);
    }
    Ok(qemu)
}

fn namespace(text: &str, memory: &Path) -> anyhow::Result<QemuNs> {
    let mut ns = QemuNs { drive: PathBuf::new(), properties: Vec::new(), readonly: false };
    let mut size = None;
    for property in text.split(',') {
        let (name, value) =
            property.split_once('=').with_context(|| format!("not name=value: {property}"))?;
        match name {
            "drive" => ns.drive = if value == "memory" { memory.to_owned() } else { value.into() },
            "size" => size = Some(words::size(value).map_err(anyhow::Error::msg)?),
            "readonly" => ns.readonly = value == "on",
            "logical_block_size" => {
                // QEMU refuses a physical block smaller than the logical one.
                ns.properties.push(property.to_owned());
                ns.properties.push(format!("physical_block_size={value}"));
            }
            _ => ns.properties.push(property.to_owned()),
        }
    }
    if let (Some(size), false) = (size, ns.drive.exists()) {
        fs::File::create(&ns.drive)
            .and_then(|f| f.set_len(size))
            .with_context(|| ns.drive.display().to_string())?;
    }
    Ok(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_words_become_qemus() {
        let ns =
            namespace("drive=/nowhere/a.img,logical_block_size=4096,mssrl=8,readonly=on", Path::new("/m"))
                .unwrap();
        assert_eq!(ns.drive, Path::new("/nowhere/a.img"));
        assert_eq!(ns.properties, ["logical_block_size=4096", "physical_block_size=4096", "mssrl=8"]);
        assert!(ns.readonly);
    }
}
