//! What is measured: fio jobs and Copy loops, each on two devices in turn.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::guest::Guest;

/// One device of the comparison, as the guest sees it.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// `ours` or `qemu`.
    pub(super) name: &'static str,
    /// Device node of the namespace.
    pub(super) node: String,
    /// Namespace number.
    pub(super) nsid: u32,
}

/// What a row does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// fio with `rw`, bytes of a block, commands in flight of each job, jobs.
    Fio { rw: &'static str, bytes: u32, depth: u32, jobs: u32 },
    /// Copy commands of `ranges` ranges of `blocks` blocks from each of `threads` threads.
    Copy { blocks: u32, ranges: u32, threads: u32 },
}

/// One line of the report.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) load: Load,
}

/// Bytes of a block of either namespace.
pub(super) const BLOCK: u32 = 512;

const fn fio(name: &'static str, rw: &'static str, bytes: u32, depth: u32, jobs: u32) -> Row {
    let unit = if bytes == 4096 { "IOPS" } else { "MiB/s" };
    Row { name, unit, load: Load::Fio { rw, bytes, depth, jobs } }
}

const fn copy(name: &'static str, kib: u32, ranges: u32, threads: u32) -> Row {
    Row { name, unit: "MiB/s", load: Load::Copy { blocks: kib * 1024 / BLOCK, ranges, threads } }
}

/// All rows, in the order of the report.
pub(super) const ROWS: [Row; 12] = [
    fio("random read 4 KiB, depth 1", "randread", 4096, 1, 1),
    fio("random read 4 KiB, depth 32", "randread", 4096, 32, 1),
    fio("random read 4 KiB, 4 jobs x 32", "randread", 4096, 32, 4),
    fio("random write 4 KiB, depth 1", "randwrite", 4096, 1, 1),
    fio("random write 4 KiB, depth 32", "randwrite", 4096, 32, 1),
    fio("random write 4 KiB, 4 jobs x 32", "randwrite", 4096, 32, 4),
    fio("sequential read 128 KiB, depth 32", "read", 128 << 10, 32, 1),
    fio("sequential write 128 KiB, depth 32", "write", 128 << 10, 32, 1),
    copy("copy 64 KiB, 1 range", 64, 1, 1),
    copy("copy 1 MiB, 1 range", 1024, 1, 1),
    copy("copy 1 MiB, 16 ranges", 64, 16, 1),
    copy("copy 1 MiB, 1 range, 4 in flight", 1024, 1, 4),
];

impl Row {
    /// Both devices once, in the order given; a value in the row's unit for each.
    pub(super) fn measure(
        &self,
        guest: &Guest,
        targets: [&Target; 2],
        time: Duration,
    ) -> anyhow::Result<[f64; 2]> {
        match self.load {
            Load::Fio { rw, bytes, depth, jobs } => {
                let job = job_file(rw, bytes, depth, jobs, targets, time);
                guest.put("/tmp/bench.fio", 0o600, job.as_bytes())?;
                // One fio for both: its start costs more than a second by translation.
                let out = guest.run(
                    &["fio", "--output-format=json", "/tmp/bench.fio"],
                    time * 4 + Duration::from_secs(60),
                )?;
                ensure!(out.code == 0, "fio: {}", out.all());
                let report = report(&out.text())?;
                Ok([value(&report, targets[0], bytes)?, value(&report, targets[1], bytes)?])
            }
            Load::Copy { blocks, ranges, threads } => {
                let mut values = [0.0; 2];
                for (value, target) in values.iter_mut().zip(targets) {
                    let numbers = [
                        target.nsid,
                        BLOCK,
                        blocks,
                        ranges,
                        threads,
                        u32::try_from(time.as_millis()).unwrap_or(u32::MAX),
                    ];
                    let numbers = numbers.map(|n| n.to_string());
                    let mut words = vec!["copies", &target.node];
                    words.extend(numbers.iter().map(String::as_str));
                    *value = rate(&guest.tool(&words)?)?;
                }
                Ok(values)
            }
        }
    }
}

/// The second job waits for the first to end.
fn job_file(rw: &str, bytes: u32, depth: u32, jobs: u32, targets: [&Target; 2], time: Duration) -> String {
    let mut text = format!(
        "[global]\nioengine=io_uring\ndirect=1\nthread=1\ngroup_reporting=1\nnorandommap=1\nrandrepeat=0\n\
         time_based=1\nruntime={}ms\nramp_time=200ms\nrw={rw}\nbs={bytes}\niodepth={depth}\nnumjobs={jobs}\n\
         cpus_allowed=0-{}\ncpus_allowed_policy=split\n",
        time.as_millis(),
        jobs - 1
    );
    for target in targets {
        text.push_str(&format!("[{}]\nstonewall\nfilename={}\n", target.name, target.node));
    }
    text
}

/// fio may print notes before its JSON.
fn report(text: &str) -> anyhow::Result<Value> {
    let start = text.find('{').context("fio printed no report")?;
    serde_json::from_str(&text[start..]).with_context(|| text.to_owned())
}

/// Commands a second for small blocks, MiB a second for large ones.
fn value(report: &Value, target: &Target, bytes: u32) -> anyhow::Result<f64> {
    let jobs = report["jobs"].as_array().context("fio's report has no jobs")?;
    let job =
        jobs.iter().find(|j| j["jobname"] == target.name).context("a job is missing in fio's report")?;
    ensure!(job["error"] == 0, "fio's job {} failed: {}", target.name, job["error"]);
    // The other direction is 0.
    let sum = |name: &str| Some(job["read"][name].as_f64()? + job["write"][name].as_f64()?);
    let value = if bytes == 4096 { sum("iops") } else { sum("bw_bytes").map(|b| b / f64::from(1 << 20)) };
    match value {
        Some(value) if value > 0.0 => Ok(value),
        _ => bail!("fio's job {} did nothing", target.name),
    }
}

/// MiB a second of what the agent's `copies` prints.
fn rate(text: &str) -> anyhow::Result<f64> {
    let (bytes, micros) = text.trim().split_once(' ').with_context(|| format!("copies says {text:?}"))?;
    let (bytes, micros): (f64, f64) = (bytes.parse()?, micros.parse()?);
    ensure!(bytes > 0.0 && micros > 0.0, "nothing was copied");
    Ok(bytes / f64::from(1 << 20) / (micros / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &'static str) -> Target {
        Target { name, node: format!("/dev/{name}"), nsid: 1 }
    }

    #[test]
    fn the_job_file_has_both_devices_in_order() {
        let (ours, qemu) = (target("ours"), target("qemu"));
        let text = job_file("randread", 4096, 32, 4, [&qemu, &ours], Duration::from_millis(1500));
        let at = |what: &str| text.find(what).unwrap();
        assert!(at("[qemu]\nstonewall\nfilename=/dev/qemu") < at("[ours]\nstonewall\nfilename=/dev/ours"));
        assert!(text.contains("runtime=1500ms") && text.contains("cpus_allowed=0-3"));
    }

    #[test]
    fn values_come_from_the_job_of_that_name_and_nothing_is_an_error() {
        let report = report(
            "note: x\n{\"jobs\":[{\"jobname\":\"qemu\",\"error\":0,\"read\":{\"iops\":5.5,\"bw_bytes\":2097152},\
             \"write\":{\"iops\":0,\"bw_bytes\":0}},{\"jobname\":\"ours\",\"error\":5}]}",
        )
        .unwrap();
        assert_eq!(value(&report, &target("qemu"), 4096).unwrap(), 5.5);
        assert_eq!(value(&report, &target("qemu"), 131_072).unwrap(), 2.0);
        assert!(value(&report, &target("ours"), 4096).is_err());
        assert_eq!(rate("4194304 2000000\n").unwrap(), 2.0);
        assert!(rate("0 10").is_err());
    }
}
