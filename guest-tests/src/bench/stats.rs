//! Median, quartiles, and what may be said about two sets of runs.

use serde_json::{Value, json};

/// What several runs of one thing gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    pub(super) median: f64,
    /// First quartile.
    pub(super) low: f64,
    /// Third quartile.
    pub(super) high: f64,
}

impl Summary {
    /// Of at least one value; all zero for none.
    pub(super) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { median: at(&sorted, 0.5), low: at(&sorted, 0.25), high: at(&sorted, 0.75) }
    }

    /// Interquartile range.
    pub(super) fn spread(&self) -> f64 {
        self.high - self.low
    }

    pub(super) fn json(&self) -> Value {
        json!({"median": self.median, "q1": self.low, "q3": self.high})
    }
}

/// Quantile by linear interpolation between neighbours.
fn at(sorted: &[f64], quantile: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = quantile * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

/// Ahead or behind only when the medians differ by more than the larger spread.
pub(super) fn verdict(ours: &Summary, theirs: &Summary) -> &'static str {
    let gap = ours.median - theirs.median;
    if gap.abs() <= ours.spread().max(theirs.spread()) {
        "even"
    } else if gap > 0.0 {
        "ahead"
    } else {
        "behind"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_neighbours() {
        let s = Summary::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!(s, Summary { median: 2.5, low: 1.75, high: 3.25 });
        assert_eq!(Summary::of(&[7.0]), Summary { median: 7.0, low: 7.0, high: 7.0 });
        assert_eq!(Summary::of(&[]).median, 0.0);
    }

    #[test]
    fn a_gap_within_the_larger_spread_is_none() {
        let of = |median: f64, half: f64| Summary { median, low: median - half, high: median + half };
        assert_eq!(verdict(&of(10.0, 1.0), &of(12.0, 0.1)), "even");
        assert_eq!(verdict(&of(10.0, 0.5), &of(12.0, 0.1)), "behind");
        assert_eq!(verdict(&of(14.0, 0.5), &of(12.0, 0.1)), "ahead");
    }
}
