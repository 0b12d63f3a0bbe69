//! Guests that come and go, and a daemon that goes without warning.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_agent::pattern;
use guest_tests::case::Folder;
use guest_tests::demo;
use guest_tests::device::{Device, Kind, Spec};
use guest_tests::guest::BOOT_LIMIT;
use guest_tests::model::Model;
use guest_tests::nvme::{self, Copy};
use guest_tests::{Guest, Kernel};

use crate::session::{Skip, environment, machine};
use crate::{Outcome, kind};

const BLOCK: usize = 4096;
const SIZE: usize = 64 << 20;

fn spec(folder: &Folder) -> Spec {
    let image = folder.file("disk.img");
    Spec {
        nvme: vec!["serial=LIFE0001".into()],
        namespaces: vec![format!("drive={},size={SIZE},logical_block_size={BLOCK}", image.display())],
    }
}

fn keep_on_error(mut folder: Folder, body: impl FnOnce(&Folder) -> Outcome) -> Outcome {
    body(&folder).map_err(|error| {
        folder.keep();
        error.context(format!("logs and images are in {}", folder.path().display()))
    })
}

fn no_warnings(guest: &Guest) -> anyhow::Result<()> {
    let warnings = guest.warnings()?;
    ensure!(warnings.is_empty(), "kernel warnings in the guest:\n{}", warnings.join("\n"));
    Ok(())
}

fn node(guest: &Guest) -> anyhow::Result<String> {
    nvme::namespaces(guest)?.remove(&1).context("the guest has no namespace 1")
}

/// A guest writes, restarts, writes; ends; a second one attaches to the same daemon and reads all of it.
pub fn reboot_and_second_guest() -> Outcome {
    keep_on_error(Folder::new("two-guests")?, |folder| {
        let environment = environment(Kernel::Stable)?;
        let mut device = Device::start(kind(), &spec(folder), folder.path())?;
        let mut vm = machine(&environment, Kernel::Stable, device.nvme.clone())?;
        vm.reboots = true;
        let mut model = Model::new(SIZE, BLOCK);
        let mut fill = |guest: &Guest, lba: u64, count: u64, seed: u64| -> anyhow::Result<String> {
            let (at, len) = (lba * BLOCK as u64, count * BLOCK as u64);
            guest.tool(&["fill", &node(guest)?, &at.to_string(), &len.to_string(), &seed.to_string()])?;
            model.fill(lba, count, seed)?;
            Ok(model.sum())
        };
        let read = |guest: &Guest| guest.tool(&["sum", &node(guest)?]);

        let mut guest = Guest::boot(&environment.qemu, &vm, folder.path(), BOOT_LIMIT)?;
        let want = fill(&guest, 0, 2000, 1)?;
        no_warnings(&guest)?;
        guest.reboot()?;
        ensure!(read(&guest)? == want, "after a restart the guest reads something else");
        let want = fill(&guest, 1000, 3000, 2)?;
        no_warnings(&guest)?;
        guest.poweroff()?;
        if let Some(daemon) = &mut device.daemon {
            daemon.check_alive()?;
        }

        let guest = Guest::boot(&environment.qemu, &vm, folder.path(), BOOT_LIMIT)?;
        ensure!(read(&guest)? == want, "the second guest reads something else than the first wrote");
        fill(&guest, 9000, 500, 3)?;
        Copy::new(12000, &[(10, 16), (1500, 16)])
            .run(&guest, &node(&guest)?)?
            .map_err(|s| anyhow::anyhow!("{s:?}"))?;
        model.copy(None, 12000, &[(10, 16), (1500, 16)])?;
        ensure!(read(&guest)? == model.sum(), "the second guest reads something else than it wrote");
        no_warnings(&guest)?;
        // This one is not shut down: its power is cut.
        guest.kill();
        if let Some(mut daemon) = device.daemon.take() {
            daemon.check_alive()?;
            let status = daemon.terminate(Duration::from_secs(15))?;
            ensure!(status.success(), "the daemon ended with {status}");
        }
        model.check(&folder.file("disk.img"))?;
        Ok(None)
    })
}

/// What the guest was told is written is in the image after `kill -9`.
pub fn kill() -> Outcome {
    keep_on_error(Folder::new("kill")?, |folder| {
        let environment = environment(Kernel::Stable)?;
        let mut device = Device::start(kind(), &spec(folder), folder.path())?;
        let vm = machine(&environment, Kernel::Stable, device.nvme.clone())?;
        let guest = Guest::boot(&environment.qemu, &vm, folder.path(), BOOT_LIMIT)?;
        let seed = 1_000_000;
        let node = node(&guest)?;
        let words = [BLOCK.to_string(), (8 << 20).to_string(), seed.to_string()];
        let mut job =
            guest.spawn(&["/guest/guest-agent", "tool", "acked", &node, &words[0], &words[1], &words[2]])?;
        let until = Instant::now() + Duration::from_secs(60);
        while job.stdout().iter().filter(|b| **b == b'\n').count() < 1500 {
            ensure!(Instant::now() < until, "fewer than 1500 writes in a minute");
            ensure!(!job.follow(Instant::now() + Duration::from_millis(50))?, "the writer ended by itself");
        }
        // QEMU's own device has no process of its own: there it is QEMU that is killed.
        if let Some(daemon) = device.daemon.take() {
            daemon.kill();
        }
        let log = String::from_utf8_lossy(job.stdout()).into_owned();
        drop(job);
        guest.kill();
        acknowledged(&log, seed, &folder.file("disk.img"))?;
        // Nothing it left (a lock, a socket) is in the way of the next one.
        if let Some(daemon) = Device::start(kind(), &spec(folder), folder.path())?.daemon {
            let status = daemon.terminate(Duration::from_secs(15))?;
            ensure!(status.success(), "the next daemon ended with {status}");
        }
        acknowledged(&log, seed, &folder.file("disk.img"))?;
        Ok(None)
    })
}

/// Each block of the image is, whole, the last acknowledged write to it or a later one that was on its way.
fn acknowledged(log: &str, first: u64, image: &std::path::Path) -> anyhow::Result<()> {
    let complete = log.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let mut last = BTreeMap::new();
    for line in complete.lines() {
        let (at, seed) = line.split_once(' ').with_context(|| format!("the writer said {line}"))?;
        last.insert(at.parse::<u64>()?, seed.parse::<u64>()?);
    }
    ensure!(last.len() > 500, "only {} blocks were written", last.len());
    let bytes = fs::read(image)?;
    for (&at, &seed) in &last {
        let start = usize::try_from(at)?;
        let block = bytes.get(start..start + BLOCK).context("the image is too short")?;
        let found = u64::from_le_bytes(block[8..16].try_into()?);
        ensure!(
            found >= seed.max(first),
            "block at {at}: acknowledged write {seed} is missing, {found} is there"
        );
        ensure!(block == pattern::bytes(at, BLOCK, found), "block at {at}: write {found} is torn");
    }
    Ok(())
}

/// What the README promises.
pub fn demo() -> Outcome {
    demo::run(&demo::Options::with_device(kind()))?;
    if kind() == Kind::QemuNvme {
        return Skip::because("shown on QEMU's own device only");
    }
    Ok(None)
}
