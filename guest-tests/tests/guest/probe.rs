//! What the guest finds, and what an attached device costs while nothing happens.

use std::time::Duration;

use anyhow::{Context, ensure};
use guest_tests::device::Kind;
use guest_tests::nvme;
use serde_json::Value;

use crate::Outcome;
use crate::session::{Session, Skip};

fn number(value: &Value, name: &str) -> anyhow::Result<u64> {
    value[name].as_u64().with_context(|| format!("no number {name} in {value}"))
}

/// All namespaces came up, with all processors' queues, and the kernel had nothing to complain about.
pub fn clean(s: &Session) -> Outcome {
    let messages = s.guest.messages()?;
    let about: Vec<&str> = messages.iter().map(|m| m.text.as_str()).filter(|t| t.contains("nvme")).collect();
    let bad = guest_tests::dmesg::suspicious(&messages);
    ensure!(bad.is_empty(), "kernel warnings:\n{}", bad.join("\n"));
    // Some complaints have no warning's priority.
    let words = [
        "bogus",
        "timeout",
        "fail",
        "error",
        "invalid",
        "missing",
        "unsupported",
        "globally duplicate",
        "disabl",
    ];
    if crate::kind() == Kind::Daemon {
        let odd: Vec<_> =
            about.iter().filter(|t| words.iter().any(|w| t.to_lowercase().contains(w))).collect();
        ensure!(odd.is_empty(), "{odd:#?}");
    }
    ensure!(
        about.iter().any(|t| t.contains("2/0/0 default/read/poll queues")),
        "not two I/O queues:\n{}",
        about.join("\n")
    );
    let found: Vec<u32> = nvme::namespaces(&s.guest)?.into_keys().collect();
    ensure!(found.iter().eq(s.ns.keys()), "namespaces {found:?}, not {:?}", s.ns.keys());
    Ok(None)
}

/// Identify Controller and Identify Namespace say what was configured.
pub fn identify(s: &Session) -> Outcome {
    let id = nvme::json(&s.guest, &["id-ctrl", "/dev/nvme0"])?;
    ensure!(
        id["sn"].as_str().unwrap_or_default().trim().starts_with("GUEST000"),
        "serial number {}",
        id["sn"]
    );
    for name in ["mn", "fr", "subnqn"] {
        ensure!(!id[name].as_str().unwrap_or_default().trim().is_empty(), "{name} is empty");
    }
    ensure!(number(&id, "nn")? >= s.ns.len() as u64, "NN {}", id["nn"]);
    ensure!(number(&id, "oncs")? & (1 << 8) != 0, "ONCS without Copy: {}", id["oncs"]);
    ensure!(number(&id, "ocfs")? & 0b101 == 0b101, "OCFS without formats 0 and 2: {}", id["ocfs"]);
    ensure!(number(&id, "ver")? >= 0x1_0400, "version {}", id["ver"]);
    ensure!(
        number(&id, "sqes")? == 0x66 && number(&id, "cqes")? == 0x44,
        "entry sizes {} {}",
        id["sqes"],
        id["cqes"]
    );
    for (&nsid, ns) in &s.ns {
        let node = s.node(nsid)?;
        let id = nvme::json(&s.guest, &["id-ns", &node])?;
        let blocks = ns.size / ns.block as u64;
        ensure!(
            number(&id, "nsze")? == blocks && number(&id, "ncap")? == blocks,
            "namespace {nsid}: size {}",
            id["nsze"]
        );
        let format = usize::try_from(number(&id, "flbas")? & 0xf)?;
        let ds = id["lbafs"][format]["ds"].as_u64().context("lbafs")?;
        ensure!(1 << ds == ns.block, "namespace {nsid}: blocks of 2^{ds} bytes");
        let limits = (number(&id, "mssrl")?, number(&id, "mcl")?, number(&id, "msrc")?);
        let (mssrl, mcl, msrc) = ns.limits;
        ensure!(
            limits == (mssrl.into(), mcl.into(), msrc.into()),
            "namespace {nsid}: Copy limits {limits:?}"
        );
    }
    Ok(None)
}

/// `nvme list`, sysfs and the block layer agree with the configuration.
pub fn namespaces(s: &Session) -> Outcome {
    let list = s.guest.sh("nvme list")?;
    for (&nsid, ns) in &s.ns {
        let node = s.node(nsid)?;
        ensure!(list.contains(&node), "nvme list does not show {node}:\n{list}");
        let name = node.trim_start_matches("/dev/");
        let sizes =
            s.guest.sh(&format!("cd /sys/class/block/{name}; cat size queue/logical_block_size ro"))?;
        // QEMU's own device refuses writes but does not say so beforehand.
        let says = ns.readonly && crate::kind() == Kind::Daemon;
        let want = format!("{}\n{}\n{}\n", ns.size / 512, ns.block, u8::from(says));
        ensure!(sizes == want, "{node}: sysfs says {sizes:?}, not {want:?}");
    }
    Ok(None)
}

/// SMART, error and firmware logs, and the features a driver reads.
pub fn logs_and_features(s: &Session) -> Outcome {
    let smart = nvme::json(&s.guest, &["smart-log", "/dev/nvme0"])?;
    ensure!(number(&smart, "critical_warning")? == 0, "critical warning {}", smart["critical_warning"]);
    ensure!(number(&smart, "percent_used")? <= 100, "percent used {}", smart["percent_used"]);
    let kelvin = number(&smart, "temperature")?;
    ensure!((273..373).contains(&kelvin), "temperature {kelvin} K");
    // Host reads are counted in units of 1000 x 512 bytes; the kernel's probe alone reads less.
    let commands = number(&smart, "host_read_commands")?;
    s.guest.sh(&format!("dd if={} of=/dev/null bs=64k count=64 iflag=direct 2>&1", s.node(1)?))?;
    let again = nvme::json(&s.guest, &["smart-log", "/dev/nvme0"])?;
    ensure!(
        number(&again, "host_read_commands")? >= commands + 64,
        "64 reads were not counted: {commands}, {again}"
    );
    nvme::json(&s.guest, &["error-log", "/dev/nvme0"])?;
    nvme::json(&s.guest, &["fw-log", "/dev/nvme0"])?;
    // Arbitration, power management, temperature threshold, number of queues, interrupt coalescing, vector
    // configuration, asynchronous events.
    for feature in ["0x01", "0x02", "0x04", "0x07", "0x08", "0x09", "0x0b"] {
        s.guest.sh(&format!("nvme get-feature /dev/nvme0 -f {feature}"))?;
    }
    // Error recovery belongs to a namespace.
    s.guest.sh("nvme get-feature /dev/nvme0 -n 1 -f 0x05")?;
    let queues = s.guest.sh("nvme get-feature /dev/nvme0 -f 7")?;
    ensure!(queues.contains("0x"), "number of queues: {queues}");
    Ok(None)
}

/// Reads work, writes are refused, the image stays.
pub fn readonly(s: &Session) -> Outcome {
    let node = s.node(6)?;
    s.guest.tool(&["check", &node, "0", &s.ns(6)?.size.to_string(), "77"])?;
    if crate::kind() == Kind::QemuNvme {
        return Skip::because("on QEMU's own device a refused write makes the kernel complain");
    }
    let refused = s.guest.run(
        &["dd", "if=/dev/zero", &format!("of={node}"), "bs=4k", "count=1", "oflag=direct"],
        Duration::from_secs(20),
    )?;
    ensure!(refused.code != 0, "a write to a read-only namespace went well");
    s.same_outside(6)?;
    Ok(None)
}

/// Zero clock ticks over thirty seconds.
pub fn idle(s: &Session) -> Outcome {
    let Some(daemon) = &s.device.daemon else {
        return Skip::because("QEMU's own device has no process of its own");
    };
    // What came before may still be settling (the kernel rescans, timers of the block layer; ours gives
    // bounce buffers back after a second).
    std::thread::sleep(Duration::from_secs(3));
    let before = daemon.cpu_ticks()?;
    std::thread::sleep(Duration::from_secs(30));
    let used = daemon.cpu_ticks()? - before;
    ensure!(used == 0, "{used} clock ticks in thirty idle seconds");
    Ok(None)
}

/// A GiB of memory that nobody wrote to is not there.
pub fn unwritten_memory(s: &Session) -> Outcome {
    let Some(daemon) = &s.device.daemon else {
        return Skip::because("QEMU's own device has no process of its own");
    };
    s.guest.sh(&format!("dd if={} of=/dev/null bs=1M count=64 iflag=direct 2>&1", s.node(4)?))?;
    let bytes = daemon.private_bytes()?;
    ensure!(bytes < 64 << 20, "{} MiB resident", bytes >> 20);
    Ok(None)
}
