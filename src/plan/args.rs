//! The words of the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::imagined::Assume;
use super::range::{PlaceArg, RangeArg};

/// `plan`
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// A namespace, as for serve; a file needs size=. May be repeated [default: those of the record, else 1 GiB in memory]
    #[arg(long, value_name = "NAME=VALUE,...")]
    pub(super) nvme_ns: Vec<OsString>,

    /// The controller, as for serve: ocfs and cdfe count [default: whatever format the Copy has is allowed]
    #[arg(long, value_name = "NAME=VALUE,...")]
    pub(super) nvme: Option<OsString>,

    /// A source range: first LBA and blocks, and before these its namespace; fast: Fast Copy Only. May be repeated
    #[arg(long, value_name = "[SNSID:]SLBA+NLB[,fast]")]
    pub(super) range: Vec<RangeArg>,

    /// The destination: its namespace [default: 1] and first LBA
    #[arg(long, value_name = "[NSID:]SDLBA", conflicts_with_all = ["json_copy", "log"], requires = "range")]
    pub(super) to: Option<PlaceArg>,

    /// Descriptor format [default: 2 where a range names its namespace, else 0]
    #[arg(long, value_name = "0..15", value_parser = clap::value_parser!(u8).range(0..=15))]
    pub(super) format: Option<u8>,

    /// Force Unit Access
    #[arg(long)]
    pub(super) fua: bool,

    /// The Copy as JSON, as a copy log has it; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["range", "format", "fua", "log"])]
    pub(super) json_copy: Option<PathBuf>,

    /// The Copy from a copy log; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["range", "format", "fua"], requires = "number")]
    pub(super) log: Option<PathBuf>,

    /// Which one of the log
    #[arg(long, value_name = "N", requires = "log")]
    pub(super) number: Option<u64>,

    /// What the file systems of files can do: share blocks, copy, or neither
    #[arg(long, value_name = "shares|copies|nothing", default_value = "shares", value_parser = assume)]
    pub(super) assume: Assume,

    /// Print JSON, as a copy log has it
    #[arg(long)]
    pub(super) json: bool,
}

fn assume(given: &str) -> Result<Assume, String> {
    let found = Assume::ALL.iter().find(|(word, _)| *word == given);
    found.map(|(_, assume)| *assume).ok_or_else(|| "must be shares, copies or nothing".to_owned())
}
