//! What a log is held against.

use std::time::Duration;

use clap::Args;

use super::input::LogArgs;
use crate::copy::{By, rules};

/// What is to be true of a log. Without any of these, only that it is a log.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    #[command(flatten)]
    pub(super) log: LogArgs,

    /// Look only at Copies to this namespace
    #[arg(long, value_name = "N")]
    pub(super) nsid: Option<u32>,

    /// No Copy has more source ranges
    #[arg(long, value_name = "N")]
    pub(super) max_ranges: Option<u16>,

    /// No source range has more blocks
    #[arg(long, value_name = "N")]
    pub(super) max_range_blocks: Option<u32>,

    /// No Copy has more blocks
    #[arg(long, value_name = "N")]
    pub(super) max_blocks: Option<u64>,

    /// Copies that succeeded have so many bytes together; also 1M and so on
    #[arg(long, value_name = "BYTES", value_parser = crate::config::parse_size)]
    pub(super) expect_total: Option<u64>,

    /// There are so many Copies, refused ones included
    #[arg(long, value_name = "N")]
    pub(super) expect_copies: Option<u64>,

    /// There are so many Copies at least
    #[arg(long, value_name = "N")]
    pub(super) min_copies: Option<u64>,

    /// A rule refused so many Copies (1 if left out: at least one); may be repeated
    #[arg(long, value_name = "RULE[=N]", value_parser = refused_arg)]
    pub(super) expect_refused: Vec<(String, Option<u64>)>,

    /// All have this descriptor format
    #[arg(long, value_name = "N")]
    pub(super) expect_format: Option<u8>,

    /// All succeeded
    #[arg(long)]
    pub(super) no_errors: bool,

    /// Whatever succeeded was moved without being read and written: shared, copied by the kernel, or moved in memory
    #[arg(long)]
    pub(super) all_offloaded: bool,

    /// Whatever succeeded was moved so, and not otherwise; may be repeated
    #[arg(long, value_name = "memmove|shared|kernel|read-write", value_parser = by)]
    pub(super) moved_by: Vec<By>,

    /// The destinations of what succeeded lie side by side: no gap, and no block twice
    #[arg(long)]
    pub(super) tiles: bool,

    /// One copy was cut into as few Copies as the limits allow: each that another one continues is as full as --max-ranges,
    /// --max-range-blocks and --max-blocks let it be (those of the namespace where they are left out)
    #[arg(long)]
    pub(super) filled: bool,

    /// None took longer; also 500ms and so on
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) max_latency: Option<Duration>,

    /// The log has its end: the device has ended, and well
    #[arg(long)]
    pub(super) complete: bool,

    /// The log may lack Copies: dropped ones pass unseen
    #[arg(long)]
    pub(super) allow_dropped: bool,
}

fn refused_arg(given: &str) -> Result<(String, Option<u64>), String> {
    let (rule, count) = match given.split_once('=') {
        None => (given, None),
        Some((rule, count)) => {
            let count = count.parse().map_err(|_| format!("{count}: must be a number of Copies"))?;
            (rule, Some(count))
        }
    };
    if rules().any(|known| known == rule) {
        return Ok((rule.to_owned(), count));
    }
    let all: Vec<_> = rules().collect();
    Err(format!("there is no such rule; there are {}", all.join(", ")))
}

fn by(given: &str) -> Result<By, String> {
    By::of_word(given).ok_or_else(|| "must be memmove, shared, kernel or read-write".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_there_are_not_are_no_rules() {
        assert_eq!(refused_arg("mssrl=3"), Ok(("mssrl".into(), Some(3))));
        assert_eq!(refused_arg("list-memory"), Ok(("list-memory".into(), None)));
        for given in ["mssrll", "mssrl=x", ""] {
            assert!(refused_arg(given).is_err(), "{given}");
        }
        assert_eq!((by("kernel"), by("magic").is_err()), (Ok(By::KernelCopy), true));
    }
}
