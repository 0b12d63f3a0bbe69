//! A namespace is changed while the guest uses it: the guest hears of it, unasked, and obeys.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_tests::case::Folder;
use guest_tests::daemon::Daemon;
use guest_tests::device::{Device, Kind, Spec};
use guest_tests::guest::BOOT_LIMIT;
use guest_tests::nvme::{self, Copy};
use guest_tests::{Guest, Kernel};

use crate::session::{Skip, environment, machine};
use crate::{Outcome, kind};

/// From a change to the guest's look at log 04h.
const HEARD: Duration = Duration::from_secs(1);
/// From there to the end of its scan, which identifies each namespace; it has processors to share with fio.
const SCANNED: Duration = Duration::from_secs(20);
/// How long a guest that hears nothing is watched: several times what one needs that does.
const SILENCE: Duration = Duration::from_secs(4);
const FIO_LIMIT: Duration = Duration::from_secs(150);

/// Times that the guest has read the Changed Attached Namespace List, by the device's own count.
fn log_reads(daemon: &Daemon) -> anyhow::Result<u64> {
    let stats = daemon.ctl(&["stats"])?;
    let logs =
        stats.pointer("/controllers/0/log_pages").and_then(|logs| logs.as_array()).context("log_pages")?;
    let log = logs.iter().find(|log| log["id"] == "0x04");
    Ok(log.and_then(|log| log["count"].as_u64()).unwrap_or(0))
}

/// Waits until that is more than `before`; how long it took, or `None` after `limit`.
fn heard(daemon: &Daemon, before: u64, limit: Duration) -> anyhow::Result<Option<Duration>> {
    let start = Instant::now();
    while log_reads(daemon)? <= before {
        if start.elapsed() >= limit {
            return Ok(None);
        }
    }
    Ok(Some(start.elapsed()))
}

/// Bytes that the guest's kernel believes a disk to have. No command of it asks the device.
fn size(guest: &Guest, node: &str) -> anyhow::Result<u64> {
    let name = node.rsplit('/').next().unwrap_or_default();
    let sectors: u64 = guest.sh(&format!("cat /sys/block/{name}/size"))?.trim().parse()?;
    Ok(sectors * 512)
}

/// Waits until that is `bytes`.
fn stands(guest: &Guest, node: &str, bytes: u64) -> anyhow::Result<()> {
    let until = Instant::now() + SCANNED;
    loop {
        let is = size(guest, node)?;
        if is == bytes {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{node} has {is} bytes in the guest, not {bytes}");
    }
}

pub fn live() -> Outcome {
    if kind() != Kind::Daemon {
        return Skip::because("QEMU's own device has no control socket");
    }
    let mut folder = Folder::new("control")?;
    try_live(&folder).inspect_err(|_| folder.keep_and_say())
}

fn try_live(folder: &Folder) -> Outcome {
    let environment = environment(Kernel::Stable)?;
    let image = folder.file("disk.img");
    let spec = Spec {
        nvme: vec!["serial=CONTROL1".into()],
        namespaces: vec![
            format!("drive={},size=64M,mssrl=128,mcl=256,msrc=7", image.display()),
            "drive=memory,size=32M".into(),
        ],
    };
    let mut device = Device::start(Kind::Daemon, &spec, folder.path())?;
    let vm = machine(&environment, Kernel::Stable, device.nvme.clone())?;
    let guest = Guest::boot(&environment.qemu, &vm, folder.path(), BOOT_LIMIT)?;
    let daemon = device.daemon.as_mut().context("the daemon runs")?;
    let nodes = nvme::namespaces(&guest)?;
    let node = |nsid: u32| nodes.get(&nsid).with_context(|| format!("the guest has no namespace {nsid}"));
    let (disk, memory) = (node(1)?, node(2)?);
    let copies = |blocks: u32| Copy::new(100_000, &[(90_000, blocks)]).run(&guest, disk);
    ensure!(copies(17)?.is_ok(), "17 blocks are below the limit of 128");

    // While fio writes, reads back and compares.
    let fio = guest.spawn(&[
        "fio",
        "--name=verify",
        &format!("--filename={disk}"),
        "--ioengine=io_uring",
        "--direct=1",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        "--size=24m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
    ])?;
    let before = log_reads(daemon)?;
    daemon.ctl(&["set", "nsid=1", "mssrl=16", "mcl=32"])?;
    let took = heard(daemon, before, HEARD)?;
    ensure!(took.is_some(), "the guest has not read log 04h {HEARD:?} after the change");
    let id = nvme::json(&guest, &["id-ns", disk])?;
    ensure!(id["mssrl"] == 16 && id["mcl"] == 32, "the guest identifies {id}");
    let refused = copies(17)?;
    ensure!(refused.is_err_and(|status| status.code() == nvme::SIZE_LIMIT), "17 blocks: {refused:?}");
    ensure!(copies(16)?.is_ok(), "16 blocks are the limit");
    // A new size of another namespace, and of this one.
    let before = log_reads(daemon)?;
    daemon.ctl(&["resize", "2", "48M"])?;
    ensure!(heard(daemon, before, HEARD)?.is_some(), "the guest has not read log 04h after a resize");
    stands(&guest, memory, 48 << 20)?;
    daemon.ctl(&["resize", "1", "96M"])?;
    stands(&guest, disk, 96 << 20)?;
    let out = fio.finish(FIO_LIMIT)?;
    ensure!(out.code == 0, "fio: {}", out.all());
    guest.sh(&format!("dd if=/dev/zero of={disk} bs=1M seek=95 count=1 oflag=direct 2>&1"))?;
    ensure!(image.metadata()?.len() == 96 << 20, "the image is not as long as the namespace");

    // Namespaces come and go.
    let added = daemon.ctl(&["add", "drive=memory,size=8M"])?;
    ensure!(added["nsid"] == 3, "{added}");
    let until = Instant::now() + SCANNED;
    let has = |nsid: u32| -> anyhow::Result<bool> { Ok(nvme::namespaces(&guest)?.contains_key(&nsid)) };
    while !has(3)? {
        ensure!(Instant::now() < until, "the guest does not find the namespace that was added");
    }
    daemon.ctl(&["detach", "3"])?;
    while has(3)? {
        ensure!(Instant::now() < until, "the guest keeps a namespace that is detached");
    }
    // Writes stop in the guest too.
    daemon.ctl(&["set", "nsid=2", "readonly=on"])?;
    let name = memory.rsplit('/').next().unwrap_or_default();
    while guest.sh(&format!("cat /sys/block/{name}/ro"))?.trim() != "1" {
        ensure!(Instant::now() < until, "the guest takes the namespace for writable");
    }
    daemon.ctl(&["set", "nsid=2", "readonly=off"])?;

    // A guest that asks for no such events (feature 0Bh) hears nothing: what is above sees the event, not a chance scan.
    guest.sh("nvme set-feature /dev/nvme0 -f 0x0b -v 0")?;
    let (before, is) = (log_reads(daemon)?, size(&guest, memory)?);
    daemon.ctl(&["resize", "2", "64M"])?;
    let heard = heard(daemon, before, SILENCE)?;
    ensure!(heard.is_none(), "the guest has read log 04h without an event");
    ensure!(size(&guest, memory)? == is, "the guest has the new size without an event");
    // Its log is true all the same: asked to look, it finds the size.
    guest.sh("nvme ns-rescan /dev/nvme0")?;
    stands(&guest, memory, 64 << 20)?;
    let warnings = guest.warnings()?;
    ensure!(warnings.is_empty(), "kernel warnings in the guest:\n{}", warnings.join("\n"));
    guest.poweroff()?;
    daemon.check_alive()?;
    println!("log 04h was read {:?} after the change", took.unwrap_or_default());
    Ok(None)
}
