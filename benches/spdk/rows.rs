//! The loads, and what either client says of them.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::Asked;
use super::servers::{CLIENT_MIB, NQN, Pinned, SIZE, Server, Tree};

/// A load. Its words are those that both clients take.
pub struct Row {
    pub name: &'static str,
    rw: &'static str,
    bytes: &'static str,
    depth: u32,
    /// Of 100; for randrw.
    reads: u32,
    /// Does SPDK's client have it?
    pub perf: bool,
}

const fn row(name: &'static str, rw: &'static str, bytes: &'static str, depth: u32) -> Row {
    Row { name, rw, bytes, depth, reads: 70, perf: true }
}

pub const ALL: [Row; 8] = [
    row("4 KiB random read, depth 1", "randread", "4096", 1),
    row("4 KiB random read, depth 32", "randread", "4096", 32),
    row("4 KiB random read, depth 128", "randread", "4096", 128),
    row("4 KiB random write, depth 32", "randwrite", "4096", 32),
    row("4 KiB 70/30 random, depth 32", "randrw", "4096", 32),
    row("128 KiB read, depth 32", "read", "131072", 32),
    // One source range, format 0: all that SPDK's target has of Copy.
    Row { perf: false, ..row("4 KiB copy, depth 4", "copy", "4096", 4) },
    Row { perf: false, ..row("64 KiB copy, depth 4", "copy", "65536", 4) },
];

/// Writes all of both namespaces: a page that was never written would be read for nothing.
pub fn fill(ours: &Server, theirs: &Server, cpu: usize) -> Result<(), String> {
    let mut command = bench(ours, theirs, cpu);
    command.args(["--fill", "--runs", "1", "--seconds", "0.05", "--warm-up", "0"]);
    said(Pinned(cpu), command).map(drop)
}

/// Our client on both servers, which it stops and wakes itself.
fn bench(ours: &Server, theirs: &Server, cpu: usize) -> Command {
    let mut command = Command::new(nvme_host::program("vfio-user-nvme-bench"));
    command.arg(ours.socket()).arg("--against").arg(theirs.socket());
    command.args([
        "--span",
        &SIZE.to_string(),
        "--cpus",
        &cpu.to_string(),
        "--pause-others",
        "--destroy-data",
    ]);
    command.args(["--memory", "hugetlb"]);
    command
}

/// What a program printed, if it ended well.
fn said(at: Pinned, mut command: Command) -> Result<String, String> {
    let name = command.get_program().display().to_string();
    let child = at.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let output = child.wait_with_output().map_err(|error| format!("{name}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{name}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// One run: operations a second, and their mean latency in us.
#[derive(Clone, Copy)]
struct Run {
    iops: f64,
    mean: f64,
}

/// SPDK's client on either server in turn. A server that is not measured rests.
pub fn by_perf(row: &Row, tree: &Tree, ours: &Server, theirs: &Server, asked: &Asked) -> Result<(), String> {
    let mut runs = Vec::new();
    theirs.rest();
    for _ in 0..asked.runs {
        let first = perf(row, tree, ours, asked)?;
        ours.rest();
        theirs.wake();
        let second = perf(row, tree, theirs, asked)?;
        theirs.rest();
        ours.wake();
        runs.push((first, second));
    }
    theirs.wake();
    let each = |of: fn(&(Run, Run)) -> f64| spread(runs.iter().map(of));
    let [(a, ..), (b, ..)] = [each(|(a, _)| a.iops), each(|(_, b)| b.iops)];
    let (_, least, most) = each(|(a, b)| a.iops / b.iops);
    let mut line = format!("{:<34} {a:>10.0} {b:>10.0}  {:.2} ({least:.2} .. {most:.2})", row.name, a / b);
    if row.depth == 1 {
        let [(a, ..), (b, ..)] = [each(|(a, _)| a.mean), each(|(_, b)| b.mean)];
        line += &format!("; {a:.2} us beside {b:.2}");
    }
    println!("{line}");
    Ok(())
}

fn perf(row: &Row, tree: &Tree, server: &Server, asked: &Asked) -> Result<Run, String> {
    let mut command = Command::new(&tree.perf);
    let folder = server.folder().display();
    command.args(["-r", &format!("trtype:VFIOUSER traddr:{folder} subnqn:{NQN}")]);
    // One file for its memory: each piece of it is to be shared.
    command.args(["-g", "-s", &CLIENT_MIB.to_string(), "-c", &format!("{:#x}", 1_u64 << asked.client_cpu)]);
    command.args(["-w", row.rw, "-o", row.bytes, "-q", &row.depth.to_string()]);
    command.args(["-t", &asked.seconds.to_string()]);
    if row.rw == "randrw" {
        command.args(["-M", &row.reads.to_string()]);
    }
    let text = said(Pinned(asked.client_cpu), command)?;
    // "Total : IOPS MiB/s average min max", latencies in us.
    let total = text.lines().find_map(|line| line.strip_prefix("Total")).unwrap_or_default();
    let numbers: Vec<f64> = total.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers[..] {
        [iops, _, mean, ..] if iops > 0.0 => Ok(Run { iops, mean }),
        _ => Err(format!("spdk_nvme_perf: no result for {}:\n{text}", row.name)),
    }
}

/// Median, least and most.
fn spread(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let [first, .., last] = values[..] else { return (values[0], values[0], values[0]) };
    (values[values.len() / 2], first, last)
}

/// Our client, which does the same by itself.
pub fn by_bench(row: &Row, ours: &Server, theirs: &Server, asked: &Asked) -> Result<(), String> {
    let mut command = bench(ours, theirs, asked.client_cpu);
    command.args(["--rw", row.rw, "--bs", row.bytes, "--depth", &row.depth.to_string()]);
    command.args(["--mix", &row.reads.to_string(), "--runs", &asked.runs.to_string()]);
    command.args(["--seconds", &asked.seconds.to_string(), "--warm-up", "0.2", "--json", "-"]);
    let text = said(Pinned(asked.client_cpu), command)?;
    let json: Value = serde_json::from_str(&text).map_err(|error| format!("bench: {error}:\n{text}"))?;
    let result = &json["rows"][0];
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let median = |at: usize, what: &str| number(&result["contestants"][at][what]["median"]);
    let ratio = &result["ratios"][0]["iops"];
    let [a, b] = [median(0, "iops"), median(1, "iops")];
    let [middle, least, most] = ["median", "min", "max"].map(|name| number(&ratio[name]));
    let mut line = format!("{:<34} {a:>10.0} {b:>10.0}  {middle:.2} ({least:.2} .. {most:.2})", row.name);
    if row.depth == 1 {
        let [a, b] = [median(0, "median_ns"), median(1, "median_ns")].map(|ns| ns / 1e3);
        line += &format!("; {a:.2} us beside {b:.2}");
    }
    println!("{line}");
    Ok(())
}
