//! Rescan and controller reset while I/O runs: nothing lost, nothing stuck, nothing said.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::Outcome;
use crate::session::Session;

const LIMIT: Duration = Duration::from_secs(150);

/// fio with verification on both block sizes while `poke` is written to sysfs again and again.
fn under_load(s: &Session, poke: &str) -> Outcome {
    let files = format!("--filename={}:{}", s.node(1)?, s.node(2)?);
    let mut load = s.guest.spawn(&[
        "fio",
        "--name=load",
        &files,
        "--ioengine=libaio",
        "--direct=1",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        "--size=24m",
        "--loops=20",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_backlog=512",
        "--time_based",
        "--runtime=8",
    ])?;
    let end = Instant::now() + Duration::from_secs(8);
    let mut pokes = 0;
    // fio needs a moment before its first I/O.
    std::thread::sleep(Duration::from_millis(1500));
    while Instant::now() < end {
        s.guest.sh(&format!("echo 1 > /sys/class/nvme/nvme0/{poke}"))?;
        pokes += 1;
        if load.follow(Instant::now() + Duration::from_millis(300))? {
            break;
        }
    }
    let out = load.finish(LIMIT)?;
    ensure!(out.code == 0, "fio: {}", out.all());
    ensure!(pokes >= 5, "only {pokes} turns");
    let state = s.guest.sh("cat /sys/class/nvme/nvme0/state")?;
    ensure!(state.trim() == "live", "the controller is {state}");
    s.same_outside(1)?;
    s.same_outside(2)?;
    Ok(None)
}

pub fn rescan(s: &Session) -> Outcome {
    under_load(s, "rescan_controller")
}

pub fn controller(s: &Session) -> Outcome {
    under_load(s, "reset_controller")
}
