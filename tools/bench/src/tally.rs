//! What one run comes to.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency that is told apart, nanoseconds: one minute.
const LONGEST: u64 = 60_000_000_000;

/// Latencies in nanoseconds, three digits; longer ones count as [`LONGEST`].
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("constant bounds")
}

/// What one thread counted.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) commands: u64,
    pub(crate) bytes: u64,
    /// How long it counted.
    pub(crate) nanos: u64,
    /// Of each command; empty where single ones are not timed.
    pub(crate) latency: Histogram<u64>,
}

/// One run of one contestant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Commands that were measured.
    pub commands: u64,
    /// Commands each second, of all queues.
    pub iops: f64,
    /// Bytes each second, of all queues.
    pub bytes_per_second: f64,
    /// Nanoseconds; absent where single commands are not timed.
    pub latency_ns: Option<Latency>,
}

/// Nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub min: u64,
    pub median: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub max: u64,
}

impl Run {
    /// The sum over threads.
    pub(crate) fn of(tallies: &[Tally]) -> Self {
        let mut all = histogram();
        for tally in tallies {
            // Same bounds: nothing that could fail to fit.
            let _ = all.add(&tally.latency);
        }
        let rate = |count: u64, nanos: u64| if nanos == 0 { 0.0 } else { count as f64 * 1e9 / nanos as f64 };
        let at = |quantile| all.value_at_quantile(quantile);
        Self {
            commands: tallies.iter().map(|tally| tally.commands).sum(),
            iops: tallies.iter().map(|tally| rate(tally.commands, tally.nanos)).sum(),
            bytes_per_second: tallies.iter().map(|tally| rate(tally.bytes, tally.nanos)).sum(),
            latency_ns: (!all.is_empty()).then(|| Latency {
                min: all.min(),
                median: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p99_9: at(0.999),
                max: all.max(),
            }),
        }
    }
}

/// Median, smallest and largest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value, else nothing.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values.get((values.len() - 1) / 2)?, values.get(values.len() / 2)?);
        Some(Self { median: (low + high) / 2.0, min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up() {
        let mut latency = histogram();
        latency.saturating_record_n(1000, 99);
        latency.saturating_record(90_000_000_000);
        let tally = Tally { commands: 100, bytes: 200, nanos: 1_000_000, latency };
        let run = Run::of(&[tally.clone(), Tally { nanos: 2_000_000, ..tally }]);
        assert_eq!((run.commands, run.iops, run.bytes_per_second), (200, 150_000.0, 300_000.0));
        let latency = run.latency_ns.unwrap();
        assert_eq!((latency.min, latency.median, latency.p90), (1000, 1000, 1000));
        assert!(latency.max >= LONGEST);
        assert_eq!(Run::of(&[]).latency_ns, None);
    }

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]).unwrap().median, 2.5);
    }
}
