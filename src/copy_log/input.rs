//! The log that is looked at.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::laboratory::copy_log::{Line, LogReader};

/// Exit code where it cannot be said.
pub(super) const CANNOT: u8 = 4;

/// The log to read.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// The log, as serve --copy-log writes it and ctl copies --follow --json prints it; - for standard input
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
}

/// A log, or standard input for `-`.
fn open(path: &Path) -> io::Result<LogReader<Box<dyn BufRead>>> {
    let from: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        Box::new(BufReader::new(File::open(path)?))
    };
    Ok(LogReader::new(from))
}

/// Gives each line to `take`; whether the log ends in the middle of one, or why it cannot be read.
pub(super) fn read(path: &Path, mut take: impl FnMut(Line)) -> Result<bool, String> {
    let of = |why: String| format!("{}: {why}", path.display());
    let mut reader = open(path).map_err(|error| of(error.to_string()))?;
    for line in &mut reader {
        let (_, line) = line.map_err(|error| of(error.to_string()))?;
        take(line);
    }
    Ok(reader.is_torn())
}

/// Where it cannot be said.
pub(super) fn cannot(why: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "cannot: {why}");
    ExitCode::from(CANNOT)
}
