//! Guests that several cases share.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, bail, ensure};
use guest_tests::accel::{self, Wanted};
use guest_tests::case::Folder;
use guest_tests::device::{Device, Kind, Spec};
use guest_tests::guest::BOOT_LIMIT;
use guest_tests::model;
use guest_tests::vm::{Nvme, Vm};
use guest_tests::{Environment, Guest, Kernel, nvme, setup};

use crate::{Outcome, kind};

/// Why a case cannot be tried here.
pub struct Skip(pub String);

impl Skip {
    /// As a case's result.
    pub fn because(why: &str) -> Outcome {
        Ok(Some(Self(why.to_owned())))
    }
}

/// One namespace of a session.
pub struct Ns {
    /// Its image; `None` for memory.
    pub image: Option<PathBuf>,
    /// Bytes of a block.
    pub block: usize,
    /// Bytes.
    pub size: u64,
    /// Copy limits: MSSRL, MCL, MSRC.
    pub limits: (u32, u32, u32),
    /// Writes are refused.
    pub readonly: bool,
    /// The limits are what the device has when nobody names any.
    pub by_default: bool,
}

impl Ns {
    /// An image file `name` in `folder`, or memory without a name.
    pub fn new(folder: &Path, name: &str, size: u64, block: usize, limits: (u32, u32, u32)) -> Self {
        let image = (!name.is_empty()).then(|| folder.join(name));
        Self { image, block, size, limits, readonly: false, by_default: false }
    }

    fn spec(&self) -> String {
        let drive = self.image.as_ref().map_or("memory".into(), |i| i.display().to_string());
        let (mssrl, mcl, msrc) = self.limits;
        let mut spec = format!("drive={drive},logical_block_size={}", self.block);
        // A read-only image must be there already and has its size.
        spec.push_str(&if self.readonly { ",readonly=on".into() } else { format!(",size={}", self.size) });
        // QEMU's own device has other defaults.
        if !self.by_default || kind() == Kind::QemuNvme {
            spec.push_str(&format!(",mssrl={mssrl},mcl={mcl},msrc={msrc}"));
        }
        spec
    }

    /// The image, for cases that look at it.
    pub fn image(&self) -> anyhow::Result<&Path> {
        self.image.as_deref().context("a namespace in memory has no image")
    }
}

/// A booted guest with its device.
pub struct Session {
    pub guest: Guest,
    pub device: Device,
    pub environment: Environment,
    /// Namespaces by number.
    pub ns: BTreeMap<u32, Ns>,
    pub folder: Folder,
}

/// The environment, made if it is not there.
pub fn environment(kernel: Kernel) -> anyhow::Result<Environment> {
    setup::setup(&[kernel])
}

/// A machine for `kernel` with `nvme`.
pub fn machine(environment: &Environment, kernel: Kernel, nvme: Nvme) -> anyhow::Result<Vm> {
    let accel = accel::choose(Wanted::Auto, environment)?;
    Ok(Vm { nvme, accel, ..Vm::new(environment.kernel(kernel), environment.initramfs(Some(kernel), None)?) })
}

impl Session {
    /// Boots `kernel` with the namespaces, numbered from 1.
    pub fn boot(
        name: &str,
        kernel: Kernel,
        nvme: &[&str],
        make: impl FnOnce(&Path) -> Vec<Ns>,
    ) -> anyhow::Result<Self> {
        Self::boot_with(name, kernel, nvme, &[], make)
    }

    /// [`Self::boot`], with more words for the kernel.
    pub fn boot_with(
        name: &str,
        kernel: Kernel,
        nvme: &[&str],
        append: &[&str],
        make: impl FnOnce(&Path) -> Vec<Ns>,
    ) -> anyhow::Result<Self> {
        let environment = environment(kernel)?;
        let folder = Folder::new(name)?;
        let namespaces = make(folder.path());
        let spec = Spec {
            nvme: nvme.iter().map(|p| (*p).to_owned()).collect(),
            namespaces: namespaces.iter().map(Ns::spec).collect(),
        };
        for ns in namespaces.iter().filter(|n| n.readonly) {
            fs::write(ns.image()?, guest_agent::pattern::bytes(0, usize::try_from(ns.size)?, 77))?;
        }
        let mut kept = KeepOnError(Some(folder));
        let folder = kept.0.as_ref().context("folder")?.path().to_owned();
        let device = Device::start(kind(), &spec, &folder)?;
        let mut vm = machine(&environment, kernel, device.nvme.clone())?;
        vm.append.extend(append.iter().map(|word| (*word).to_owned()));
        let guest = Guest::boot(&environment.qemu, &vm, &folder, BOOT_LIMIT)?;
        let ns = (1..).zip(namespaces).collect();
        Ok(Self { guest, device, environment, ns, folder: kept.0.take().context("folder")? })
    }

    /// Device node of namespace `nsid`.
    pub fn node(&self, nsid: u32) -> anyhow::Result<String> {
        nvme::namespaces(&self.guest)?
            .remove(&nsid)
            .with_context(|| format!("the guest has no namespace {nsid}"))
    }

    /// The namespace's facts.
    pub fn ns(&self, nsid: u32) -> anyhow::Result<&Ns> {
        self.ns.get(&nsid).with_context(|| format!("the session has no namespace {nsid}"))
    }

    /// Has the daemon's `ctl` ask it for something.
    pub fn ctl(&self, words: &[&str]) -> anyhow::Result<serde_json::Value> {
        self.device.daemon.as_ref().context("the device has no control socket")?.ctl(words)
    }

    /// Does the guest read from namespace `nsid` what is in its image, read from outside?
    pub fn same_outside(&self, nsid: u32) -> anyhow::Result<()> {
        let inside = self.guest.tool(&["sum", &self.node(nsid)?])?;
        let outside = model::sum_of(self.ns(nsid)?.image()?)?;
        ensure!(inside == outside, "namespace {nsid}: the guest reads other data than its image holds");
        Ok(())
    }
}

/// Names and keeps the folder when what follows fails.
struct KeepOnError(Option<Folder>);

impl Drop for KeepOnError {
    fn drop(&mut self) {
        if let Some(folder) = &mut self.0 {
            folder.keep_and_say();
        }
    }
}

/// Started by the first case that needs it. After a failure that cost the guest its health, the next case
/// gets a new one.
pub struct Shared {
    make: fn() -> anyhow::Result<Session>,
    slot: Mutex<Slot>,
}

enum Slot {
    Empty,
    Ready(Box<Session>),
    /// Not tried again: a boot that fails may take its whole limit to fail, and the next one will too.
    Broken(String),
}

impl Shared {
    pub fn new(make: fn() -> anyhow::Result<Session>) -> Self {
        Self { make, slot: Mutex::new(Slot::Empty) }
    }

    /// Runs one case, then looks at the kernel's messages and at the daemon.
    pub fn run(&self, name: &str, case: fn(&Session) -> Outcome) -> Outcome {
        let mut slot: MutexGuard<'_, Slot> = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        let mut session = match std::mem::replace(&mut *slot, Slot::Empty) {
            Slot::Ready(session) => session,
            Slot::Empty => {
                Box::new((self.make)().inspect_err(|error| *slot = Slot::Broken(format!("{error:#}")))?)
            }
            Slot::Broken(why) => {
                let first = why.lines().next().unwrap_or_default().to_owned();
                *slot = Slot::Broken(why);
                bail!("the guest of this case did not come up: {first}");
            }
        };
        let log = session.folder.file("cases.log");
        let mut log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        writeln!(log, "{:?} {name}", std::time::SystemTime::now())?;
        let outcome = case(&session).and_then(|outcome| {
            let warnings = session.guest.warnings()?;
            ensure!(warnings.is_empty(), "kernel warnings in the guest:\n{}", warnings.join("\n"));
            if let Some(daemon) = &mut session.device.daemon {
                daemon.check_alive()?;
            }
            Ok(outcome)
        });
        match outcome {
            Ok(outcome) => {
                *slot = Slot::Ready(session);
                Ok(outcome)
            }
            Err(error) => {
                // The rest of the cases must not suffer from what this one left: they get a fresh guest.
                let _ = session.guest.messages();
                session.folder.keep();
                let kept = session.folder.path().display().to_string();
                Err(error.context(format!("{name}: logs and images are in {kept}")))
            }
        }
    }
}

/// 512 and 4096 byte namespaces with small Copy limits, one for file systems, one in memory, one read-only.
pub fn main_session() -> anyhow::Result<Session> {
    Session::boot("main", Kernel::Stable, &["serial=GUEST0001"], |folder| {
        let mut readonly = Ns::new(folder, "readonly.img", 8 << 20, 512, (128, 128, 127));
        readonly.readonly = true;
        let mut defaults = Ns::new(folder, "ns7.img", 160 << 20, 512, (32768, 131_072, 126));
        defaults.by_default = true;
        vec![
            Ns::new(folder, "ns1.img", 64 << 20, 512, (128, 256, 7)),
            Ns::new(folder, "ns2.img", 64 << 20, 4096, (32, 90, 3)),
            Ns::new(folder, "ns3.img", 640 << 20, 512, (128, 128, 127)),
            Ns::new(folder, "", 1 << 30, 4096, (128, 128, 127)),
            Ns::new(folder, "ns5.img", 64 << 20, 512, (64, 64, 2)),
            readonly,
            defaults,
            Ns::new(folder, "ns8.img", 128 << 20, 512, (65535, u32::MAX, 255)),
        ]
    })
}

/// For the newest kernel.
pub fn newest_session() -> anyhow::Result<Session> {
    crate::across::session("newest", Kernel::Newest, "serial=GUEST0002")
}
