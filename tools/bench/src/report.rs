//! Results as a table and as JSON.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::options::Plan;
use super::pattern::Rw;
use super::row::Row;
use super::tally::{Latency, Run, Spread};

/// All that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// This program's version.
    pub version: String,
    /// Seconds of one run.
    pub seconds: f64,
    /// Seconds before each run.
    pub warm_up: f64,
    /// Bytes of the namespace that were used.
    pub span: u64,
    /// In the order they were measured.
    pub rows: Vec<RowReport>,
}

/// One load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowReport {
    /// As on the command line.
    pub rw: String,
    /// Bytes of a command.
    pub bs: u64,
    /// Commands in flight in each queue.
    pub depth: u16,
    /// Queues.
    pub queues: u16,
    /// The first server first, then the second, then limits.
    pub contestants: Vec<ContestantReport>,
    /// The first server beside each of the others.
    pub ratios: Vec<Ratio>,
}

/// One server or limit in one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContestantReport {
    /// Socket and doorbells, or limit.
    pub name: String,
    /// Over the runs.
    pub iops: Spread,
    /// Bytes each second, over the runs.
    pub bytes_per_second: Spread,
    /// Median latency in nanoseconds, over the runs.
    pub median_ns: Option<Spread>,
    /// Each run.
    pub runs: Vec<Run>,
}

/// The first server in proportion to another contestant: the ratio of the medians, and the smallest and the
/// largest ratio of two runs of the same round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The other contestant.
    pub to: String,
    /// More is better.
    pub iops: Spread,
    /// Less is better.
    pub median_latency: Option<Spread>,
}

impl Report {
    pub(crate) fn new(plan: &Plan, span: u64) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seconds: plan.measured.as_secs_f64(),
            warm_up: plan.warm_up.as_secs_f64(),
            span,
            rows: Vec::new(),
        }
    }
}

impl RowReport {
    /// `runs` of each contestant, of which there is at least one, in `names`' order.
    pub(crate) fn new(row: &Row, names: &[String], runs: Vec<Vec<Run>>) -> Self {
        let ratios = runs
            .split_first()
            .map(|(ours, others)| {
                let others = others.iter().zip(names.iter().skip(1));
                others.filter_map(|(theirs, name)| ratio(name, ours, theirs)).collect()
            })
            .unwrap_or_default();
        let contestants = names.iter().zip(runs).filter_map(|(name, runs)| contestant(name, runs)).collect();
        Self {
            rw: match row.rw {
                Rw::RandRw => format!("randrw {}% reads", row.mix),
                rw => rw.word().to_owned(),
            },
            bs: row.bytes,
            depth: row.depth,
            queues: row.queues,
            contestants,
            ratios,
        }
    }

    /// For people; ends with a new line.
    pub(crate) fn table(&self) -> String {
        let (rw, bs, depth, queues) = (&self.rw, size(self.bs), self.depth, self.queues);
        let width = self.contestants.iter().map(|c| c.name.len()).max().unwrap_or(0).max(20);
        let mut out =
            format!("{rw}, {bs}, depth {depth}, {queues} queue{}\n", if queues == 1 { "" } else { "s" });
        let _ = writeln!(
            out,
            "  {:width$} {:>10} {:>23} {:>11} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "", "IOPS", "min .. max", "MiB/s", "min us", "median", "90%", "99%", "99.9%", "max"
        );
        for c in &self.contestants {
            let spread = format!("{:.0} .. {:.0}", c.iops.min, c.iops.max);
            let _ = write!(
                out,
                "  {:width$} {:>10.0} {spread:>23} {:>11.0}",
                c.name,
                c.iops.median,
                c.bytes_per_second.median / f64::from(1 << 20)
            );
            type Field = fn(&Latency) -> u64;
            let fields: [Field; 6] = [|l| l.min, |l| l.median, |l| l.p90, |l| l.p99, |l| l.p99_9, |l| l.max];
            for field in fields {
                let runs = c.runs.iter().filter_map(|run| run.latency_ns.as_ref().map(|l| field(l) as f64));
                match Spread::of(runs) {
                    Some(spread) => {
                        let _ = write!(out, " {:>8.2}", spread.median / 1000.0);
                    }
                    None => {
                        let _ = write!(out, " {:>8}", "-");
                    }
                }
            }
            out.push('\n');
        }
        for ratio in &self.ratios {
            let Spread { median, min, max } = ratio.iops;
            let _ = write!(out, "  IOPS / {}: {median:.3} ({min:.3} .. {max:.3})", ratio.to);
            if let Some(Spread { median, min, max }) = ratio.median_latency {
                let _ = write!(out, "; median latency / its: {median:.3} ({min:.3} .. {max:.3})");
            }
            out.push('\n');
        }
        out
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        b if b.is_multiple_of(1 << 20) => format!("{} MiB", b >> 20),
        b if b.is_multiple_of(1 << 10) => format!("{} KiB", b >> 10),
        b => format!("{b} bytes"),
    }
}

fn latency(run: &Run) -> Option<f64> {
    run.latency_ns.map(|latency| latency.median as f64)
}

fn contestant(name: &str, runs: Vec<Run>) -> Option<ContestantReport> {
    Some(ContestantReport {
        name: name.to_owned(),
        iops: Spread::of(runs.iter().map(|run| run.iops))?,
        bytes_per_second: Spread::of(runs.iter().map(|run| run.bytes_per_second))?,
        median_ns: Spread::of(runs.iter().filter_map(latency)),
        runs,
    })
}

fn ratio(name: &str, ours: &[Run], theirs: &[Run]) -> Option<Ratio> {
    let of = |value: fn(&Run) -> Option<f64>| {
        let all = |runs: &[Run]| Spread::of(runs.iter().filter_map(value));
        let rounds = ours.iter().zip(theirs).filter_map(|(a, b)| Some(value(a)? / value(b)?));
        let rounds = Spread::of(rounds)?;
        Some(Spread { median: all(ours)?.median / all(theirs)?.median, ..rounds })
    };
    Some(Ratio { to: name.to_owned(), iops: of(|run| Some(run.iops))?, median_latency: of(latency) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(iops: f64, median: Option<u64>) -> Run {
        let latency = |median| Latency { min: 1, median, p90: 2, p99: 3, p99_9: 4, max: 5 };
        Run { commands: 1, iops, bytes_per_second: iops * 4096.0, latency_ns: median.map(latency) }
    }

    #[test]
    fn ratios_are_of_medians_and_their_spread_of_rounds() {
        let ours = [run(10.0, Some(100)), run(30.0, Some(100)), run(20.0, Some(400))];
        let theirs = [run(10.0, Some(50)), run(10.0, Some(200)), run(40.0, Some(100))];
        let ratio = ratio("t", &ours, &theirs).unwrap();
        assert_eq!(ratio.iops, Spread { median: 2.0, min: 0.5, max: 3.0 });
        assert_eq!(ratio.median_latency, Some(Spread { median: 1.0, min: 0.5, max: 4.0 }));
    }

    #[test]
    fn a_row_as_table_and_json() {
        let row = Row { rw: Rw::RandRead, bytes: 4096, depth: 32, queues: 1, mix: 50, limits: vec![] };
        let runs = vec![vec![run(1_500_000.0, Some(20_000))], vec![run(3_000_000.0, None)]];
        let report = RowReport::new(&row, &["s (mmap)".into(), "limit memory".into()], runs);
        let table = report.table();
        assert!(table.starts_with("randread, 4 KiB, depth 32, 1 queue\n"), "{table}");
        assert!(table.contains("1500000 .. 1500000") && table.contains("20.00"), "{table}");
        assert!(table.ends_with("  IOPS / limit memory: 0.500 (0.500 .. 0.500)\n"), "{table}");
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<RowReport>(&text).unwrap(), report);
    }
}
