//! `guest demo`: from nothing to a proved copy, in one short report.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::Value;

use crate::accel::{self, Wanted};
use crate::case::Folder;
use crate::device::{Device, Kind, Spec};
use crate::guest::{BOOT_LIMIT, Guest};
use crate::model::Model;
use crate::nvme::{self, Copy};
use crate::progress;
use crate::setup::{self, Kernel};
use crate::vm::Vm;

/// Options of `guest demo`.
#[derive(Debug, Default, Args)]
pub struct Options {
    /// auto (KVM if it can run the guest), kvm or tcg
    #[arg(long, default_value = "auto")]
    accel: Wanted,
    /// Who plays the device: daemon, or qemu-nvme (QEMU's own, to compare with)
    #[arg(long, default_value = "daemon")]
    device: Kind,
}

impl Options {
    /// With another device than our daemon.
    #[must_use]
    pub fn with_device(device: Kind) -> Self {
        Self { device, ..Self::default() }
    }
}

const BLOCK: usize = 4096;
const BLOCKS: u64 = 16384;
const MSSRL: u32 = 128;
const MCL: u32 = 256;
const MSRC: u32 = 7;

/// Does it and prints the report on standard output.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let environment = setup::setup(&[Kernel::Stable])?;
    let mut folder = Folder::new("demo")?;
    let image = folder.file("demo.img");
    let result = show(options, &environment, folder.path(), &image);
    if result.is_err() {
        folder.keep_and_say();
    }
    result.map(|()| ExitCode::SUCCESS)
}

fn line(what: &str, text: &str) {
    println!("  {what:<11}{text}");
}

fn show(
    options: &Options,
    environment: &setup::Environment,
    folder: &Path,
    image: &Path,
) -> anyhow::Result<()> {
    let size = BLOCKS * BLOCK as u64;
    let spec = Spec {
        nvme: vec!["serial=DEMO0001".into()],
        namespaces: vec![format!(
            "drive={},size={size},logical_block_size={BLOCK},mssrl={MSSRL},mcl={MCL},msrc={MSRC}",
            image.display()
        )],
    };
    let device = Device::start(options.device, &spec, folder)?;
    let kernel = Kernel::Stable;
    let vm = Vm {
        accel: accel::choose(options.accel, environment)?,
        nvme: device.nvme.clone(),
        ..Vm::new(environment.kernel(kernel), environment.initramfs(Some(kernel), None)?)
    };
    progress::say("booting the guest");
    let guest = Guest::boot(&environment.qemu, &vm, folder, BOOT_LIMIT)?;
    println!("vfio-user-nvme demo");
    line(
        "guest",
        &format!(
            "Linux {}, QEMU {} ({:?}), up after {:.1} s",
            guest.kernel(),
            environment.qemu.version(),
            vm.accel,
            guest.boot_seconds()
        ),
    );
    let node = identify(&guest)?;
    let node = node.as_str();

    let mut model = Model::new(usize::try_from(size)?, BLOCK);
    let pattern_blocks = 4096;
    guest.tool(&["fill", node, "0", &(pattern_blocks * BLOCK as u64).to_string(), "2026"])?;
    model.fill(0, pattern_blocks, 2026)?;
    line(
        "write",
        &format!("{} MiB of pattern, each block names itself", (pattern_blocks * BLOCK as u64) >> 20),
    );

    for (sdlba, ranges) in [
        (8192, vec![(0, 1)]),
        (8200, vec![(100, 8), (3000, 16), (7, 1)]),
        (9000, vec![(0, MSSRL), (2048, MSSRL)]),
        (10000, (0..8).map(|n| (n * 500, 1 + n as u32 * 4)).collect()),
    ] {
        let total: u32 = ranges.iter().map(|r| r.1).sum();
        let answer = Copy::new(sdlba, &ranges).run(&guest, node)?;
        ensure!(answer.is_ok(), "Copy of {ranges:?} was refused: {answer:?}");
        model.copy(None, sdlba, &ranges)?;
        line("copy", &format!("{} range(s), {total} blocks, to block {sdlba}: success", ranges.len()));
    }
    let refused = vec![(0, MSSRL), (200, MSSRL), (400, 1)];
    let answer = Copy::new(12000, &refused).run(&guest, node)?;
    let status = answer.err().context("a Copy of more blocks than MCL was not refused")?;
    ensure!(status.code() == nvme::SIZE_LIMIT, "refused with {status:?}, not Command Size Limit Exceeded");
    line(
        "refused",
        &format!("{} blocks with MCL {MCL}: Command Size Limit Exceeded, nothing written", 2 * MSSRL + 1),
    );

    let inside = guest.tool(&["sum", node])?;
    ensure!(inside == model.sum(), "the guest reads other data than was written and copied");
    line("inside", &format!("the guest reads all {} MiB as they must be", size >> 20));
    let warnings = guest.warnings()?;
    ensure!(warnings.is_empty(), "kernel warnings in the guest:\n{}", warnings.join("\n"));
    line("kernel", "no warning");
    guest.poweroff()?;
    model.check(image)?;
    line("outside", &format!("the image file equals the model, byte for byte ({} MiB)", size >> 20));
    if let Some(daemon) = device.daemon {
        let status = daemon.terminate(Duration::from_secs(15))?;
        ensure!(status.success(), "the daemon ended with {status}");
        line("daemon", "ended cleanly");
    }
    println!("demo: copy verified");
    Ok(())
}

/// Reports controller and namespace; answers the namespace's device node.
fn identify(guest: &Guest) -> anyhow::Result<String> {
    let controller = nvme::json(guest, &["id-ctrl", "/dev/nvme0"])?;
    let text = |name: &str| controller[name].as_str().unwrap_or("?").trim().to_owned();
    let number =
        |value: &Value, name: &str| value[name].as_u64().with_context(|| format!("identify has no {name}"));
    line("controller", &format!("{}, serial {}, firmware {}", text("mn"), text("sn"), text("fr")));
    let oncs = number(&controller, "oncs")?;
    ensure!(oncs & (1 << 8) != 0, "the controller does not say that it supports Copy (ONCS {oncs:#x})");
    let node = nvme::namespaces(guest)?.remove(&1).context("the guest has no namespace 1")?;
    let ns = nvme::json(guest, &["id-ns", &node])?;
    line("namespace", &format!("{node}, {} blocks of {BLOCK} bytes", number(&ns, "nsze")?));
    let limits = (number(&ns, "mssrl")?, number(&ns, "mcl")?, number(&ns, "msrc")?);
    ensure!(
        limits == (MSSRL.into(), MCL.into(), MSRC.into()),
        "other Copy limits than asked for: {limits:?}"
    );
    line(
        "limits",
        &format!(
            "MSSRL {MSSRL} blocks a range, MCL {MCL} blocks a command, MSRC {MSRC} ({} ranges)",
            MSRC + 1
        ),
    );
    Ok(node)
}
