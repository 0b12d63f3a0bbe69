//! `copy-log show`: a table for a terminal, or a page.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::html;
use super::input::{LogArgs, cannot, read};
use super::page::Page;
use super::text::{duration, result, say};
use crate::laboratory::copy_log::{CopyRecord, Line};

/// Source ranges that are written out.
const RANGES: usize = 3;

/// What is to be shown, and how.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    #[command(flatten)]
    log: LogArgs,

    /// Show only Copies to this namespace
    #[arg(long, value_name = "N")]
    nsid: Option<u32>,

    /// Write a page with pictures instead, which needs nothing but itself
    #[arg(long, value_name = "OUT")]
    html: Option<PathBuf>,
}

/// Shows it.
pub(super) fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let wanted = |copy: &CopyRecord| args.nsid.is_none_or(|nsid| nsid == copy.command.nsid);
    let Some(out) = &args.html else { return Ok(table(args, wanted)) };
    let mut page = Page::default();
    let read = read(&args.log.file, |line| match line {
        Line::Copy(copy) if wanted(&copy) => page.copy(&copy),
        Line::Dropped(dropped) => page.dropped(dropped.count),
        Line::Log(opening) => page.opening(&opening),
        Line::Copy(_) | Line::End(_) | Line::Unknown => {}
    });
    if let Err(why) = read {
        return Ok(cannot(&why));
    }
    std::fs::write(out, html::render(&page)).with_context(|| format!("--html {}", out.display()))?;
    say(&format!("{}: {} Copies\n", out.display(), page.copies));
    Ok(ExitCode::SUCCESS)
}

fn table(args: &ShowArgs, wanted: impl Fn(&CopyRecord) -> bool) -> ExitCode {
    let read = read(&args.log.file, |line| match line {
        Line::Copy(copy) if !wanted(&copy) => {}
        line => say(&words(&line)),
    });
    match read {
        Ok(torn) => {
            if torn {
                say("        the log ends in the middle of a line\n");
            }
            ExitCode::SUCCESS
        }
        Err(why) => cannot(&why),
    }
}

/// A line of a log as lines for people.
pub fn words(line: &Line) -> String {
    match line {
        Line::Log(_) => HEAD.to_owned(),
        Line::Copy(copy) => row(copy),
        Line::Dropped(dropped) => format!("        {} Copies are missing: {}\n", dropped.count, dropped.why),
        Line::End(end) => format!("        the end: {} Copies, {} dropped\n", end.copies, end.dropped),
        Line::Unknown => String::new(),
    }
}

const HEAD: &str = " number  time (UTC)       ctrl  sq    cid  fmt  destination           sources                                     latency  moved by / result\n";

fn row(copy: &CopyRecord) -> String {
    let mut row = String::new();
    let CopyRecord { number, time, controller, sqid, cid, command, .. } = copy;
    let time = time.to_string();
    let time = time.get(11..26).unwrap_or(&time);
    let length = copy.blocks().map_or_else(|| "?".to_owned(), |blocks| blocks.to_string());
    let to = format!("{}:{}+{length}", command.nsid, command.sdlba);
    let _ = write!(
        row,
        "{number:>7}  {time:<15}  {controller:>4}  {sqid:>2} {cid:#06x}  {:>3}  {to:<20}  {:<40}  {:>9}  {}",
        command.format,
        sources(copy),
        duration(copy.latency_ns),
        result(copy)
    );
    row.truncate(row.trim_end().len());
    row.push('\n');
    row
}

/// As NSID:LBA+blocks, the NSID where the format names it.
fn sources(copy: &CopyRecord) -> String {
    let Some(ranges) = &copy.ranges else { return format!("{} ranges, not read", copy.command.nr) };
    let shown = ranges.iter().take(RANGES).map(|range| {
        let of = range.snsid.map_or_else(String::new, |nsid| format!("{nsid}:"));
        let fast = if range.fco { " fast" } else { "" };
        format!("{of}{}+{}{fast}", range.slba, range.nlb)
    });
    let mut text = shown.collect::<Vec<_>>().join(" ");
    if ranges.len() > RANGES {
        let _ = write!(text, " and {} more", ranges.len() - RANGES);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refused, succeeded};
    use super::*;

    #[test]
    fn a_row_has_its_columns_under_their_heads() {
        let copy = succeeded(7, 1000, &[(0, 8), (50, 16), (80, 1), (90, 1)]);
        assert_eq!(
            row(&copy),
            "      7  00:00:00.000000     0   1 0x0007    0  1:1000+26             0+8 50+16 80+1 and 1 more                   50.0 us  memmove\n"
        );
        let column = |head: &str, cell: &str| (HEAD.find(head), row(&copy).find(cell));
        for (head, cell) in
            [("destination", "1:1000"), ("sources", "0+8"), ("moved by", "memmove"), ("time", "00:00")]
        {
            let (head_at, cell_at) = column(head, cell);
            assert_eq!(head_at, cell_at, "{head}");
        }
    }

    #[test]
    fn what_was_not_read_is_not_made_up() {
        let mut copy = refused(1, 0, &[(0, 101)]);
        copy.ranges = None;
        assert!(row(&copy).contains("1:0+?") && row(&copy).contains("1 ranges, not read"));
    }
}
