//! NVMe as seen from inside the guest: which device is which namespace, and Copy by nvme-cli.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

use crate::guest::{COMMAND_LIMIT, Guest};

/// Status of a command that was refused, as nvme-cli prints it: bit 14 Do Not Retry, bits 10:8 type, bits 7:0
/// code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

impl Status {
    /// Without Do Not Retry and More: type and code, as the specification numbers them.
    #[must_use]
    pub const fn code(self) -> u16 {
        self.0 & 0x7ff
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {:#06x}", self.0)
    }
}

/// Invalid Field in Command.
pub const INVALID_FIELD: u16 = 0x002;
/// LBA Out of Range.
pub const LBA_OUT_OF_RANGE: u16 = 0x080;
/// Command Size Limit Exceeded.
pub const SIZE_LIMIT: u16 = 0x183;

/// `/dev` paths by namespace number. The kernel scans in parallel: `nvme0n1` need not be namespace 1.
///
/// # Errors
/// When the guest cannot be asked.
pub fn namespaces(guest: &Guest) -> anyhow::Result<BTreeMap<u32, String>> {
    let script =
        "for d in /sys/class/block/nvme*n*; do [ -e $d/nsid ] && echo $(cat $d/nsid) ${d##*/}; done; true";
    let listed = guest.sh(script)?;
    let mut found = BTreeMap::new();
    for line in listed.lines() {
        let (nsid, name) = line.split_once(' ').with_context(|| format!("sysfs says {line}"))?;
        // With native multipath the paths (nvme0c0n1) are there too, hidden.
        if !name.trim_start_matches("nvme").trim_start_matches(|c: char| c.is_ascii_digit()).starts_with('c')
        {
            found.insert(nsid.parse()?, format!("/dev/{name}"));
        }
    }
    Ok(found)
}

/// Runs nvme-cli with JSON output.
///
/// # Errors
/// When it fails or prints something else.
pub fn json(guest: &Guest, words: &[&str]) -> anyhow::Result<serde_json::Value> {
    let argv = [&["nvme"], words, &["--output-format=json"]].concat();
    let out = guest.run(&argv, COMMAND_LIMIT)?;
    ensure!(out.code == 0, "{}: {}", argv.join(" "), out.all());
    serde_json::from_slice(&out.stdout).with_context(|| format!("{}: {}", argv.join(" "), out.text()))
}

/// One Copy command.
#[derive(Debug, Clone, Default)]
pub struct Copy {
    /// First destination block.
    pub sdlba: u64,
    /// Source ranges: first block, number of blocks (1-based).
    pub ranges: Vec<(u64, u32)>,
    /// Descriptor format.
    pub format: u8,
    /// Source namespace of each range, for formats 2 and 3.
    pub snsids: Vec<u32>,
}

impl Copy {
    /// Format 0.
    #[must_use]
    pub fn new(sdlba: u64, ranges: &[(u64, u32)]) -> Self {
        Self { sdlba, ranges: ranges.to_vec(), ..Self::default() }
    }

    /// Format 2 with every range out of `snsid`.
    #[must_use]
    pub fn from_namespace(snsid: u32, sdlba: u64, ranges: &[(u64, u32)]) -> Self {
        Self { format: 2, snsids: vec![snsid; ranges.len()], ..Self::new(sdlba, ranges) }
    }

    /// nvme-cli's words for it, on `device`.
    #[must_use]
    pub fn words(&self, device: &str) -> Vec<String> {
        let list = |items: Vec<String>| items.join(",");
        let mut words = vec![
            "nvme".into(),
            "copy".into(),
            device.into(),
            format!("--sdlba={}", self.sdlba),
            format!("--slbs={}", list(self.ranges.iter().map(|r| r.0.to_string()).collect())),
            format!(
                "--blocks={}",
                list(self.ranges.iter().map(|r| r.1.wrapping_sub(1).to_string()).collect())
            ),
            format!("--format={}", self.format),
        ];
        if !self.snsids.is_empty() {
            words.push(format!("--snsids={}", list(self.snsids.iter().map(ToString::to_string).collect())));
        }
        words
    }

    /// Runs it; the inner result is the device's answer.
    ///
    /// # Errors
    /// When nvme-cli fails for a reason that is not the device's.
    pub fn run(&self, guest: &Guest, device: &str) -> anyhow::Result<Result<(), Status>> {
        let words = self.words(device);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let out = guest.run(&words, COMMAND_LIMIT)?;
        if out.code == 0 {
            return Ok(Ok(()));
        }
        status_in(&out.all()).map(Err).with_context(|| format!("{}: {}", words.join(" "), out.all()))
    }
}

/// nvme-cli says the status only in its text, as in `NVMe status: ...(0x4183)`.
fn status_in(text: &str) -> Option<Status> {
    let hex = text.rsplit_once("(0x")?.1.split_once(')')?.0;
    u16::from_str_radix(hex, 16).ok().map(Status)
}

/// What became of an attempt to change a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The device took it.
    Done,
    /// The guest's kernel lets no user space change this feature; the device was not asked.
    KernelRefuses,
}

/// Sets the Copy descriptor formats the host enables (Host Behavior Support, feature 16h, bytes 5:4), leaving
/// the rest.
///
/// # Errors
/// When the device refuses, or the guest fails in another way.
pub fn set_cdfe(guest: &Guest, cdfe: u16) -> anyhow::Result<Change> {
    let [low, high] = cdfe.to_le_bytes();
    guest.sh(&format!(
        "cd /tmp; nvme get-feature /dev/nvme0 -f 0x16 -b -l 512 > hbs; \
         {{ head -c 4 hbs; printf '\\{low:03o}\\{high:03o}'; tail -c +7 hbs; }} > hbs2; \
         [ $(stat -c %s hbs2) = 512 ]"
    ))?;
    let words = ["nvme", "set-feature", "/dev/nvme0", "-f", "0x16", "-l", "512", "-d", "/tmp/hbs2"];
    let out = guest.run(&words, COMMAND_LIMIT)?;
    change(out.code, &out.all()).with_context(|| words.join(" "))
}

/// Kernels from 7.0 on refuse it, and so do stable ones that took the change over: no version tells, only the
/// attempt.
fn change(code: i32, text: &str) -> anyhow::Result<Change> {
    // Words for EACCES and EPERM; a device's refusal has a status instead.
    let denied = ["Permission denied", "Operation not permitted"].iter().any(|words| text.contains(words));
    match status_in(text) {
        _ if code == 0 => Ok(Change::Done),
        None if denied => Ok(Change::KernelRefuses),
        _ => bail!("{}", text.trim()),
    }
}

/// The Copy descriptor formats that count as enabled.
///
/// # Errors
/// When the device refuses.
pub fn cdfe(guest: &Guest) -> anyhow::Result<u16> {
    let out =
        guest.run(&["nvme", "get-feature", "/dev/nvme0", "-f", "0x16", "-b", "-l", "512"], COMMAND_LIMIT)?;
    ensure!(out.code == 0, "get-feature 16h: {}", out.all());
    let bytes = out.stdout.get(4..6).context("feature 16h is 512 bytes long")?;
    Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_zero_based_lengths_and_the_status_is_found() {
        let copy = Copy::from_namespace(2, 100, &[(0, 1), (8, 128)]);
        let words = copy.words("/dev/nvme0n1").join(" ");
        assert_eq!(
            words,
            "nvme copy /dev/nvme0n1 --sdlba=100 --slbs=0,8 --blocks=0,127 --format=2 --snsids=2,2"
        );
        let status = status_in("NVMe status: Command Size Limit Exceeded: The ...(0x4183)\n").unwrap();
        assert_eq!((status, status.code()), (Status(0x4183), SIZE_LIMIT));
        assert_eq!(status_in("copy: Permission denied"), None);
    }

    #[test]
    fn a_kernel_that_refuses_is_told_from_a_device_that_does() {
        assert_eq!(change(0, "set-feature:0x16 ...").unwrap(), Change::Done);
        assert_eq!(change(1, "set-feature: Permission denied\n").unwrap(), Change::KernelRefuses);
        assert_eq!(change(1, "set-feature: Operation not permitted\n").unwrap(), Change::KernelRefuses);
        assert!(change(1, "NVMe status: Invalid Field in Command: ...(0x4002)\n").is_err());
        assert!(change(127, "nvme: No such file or directory\n").is_err());
    }
}
