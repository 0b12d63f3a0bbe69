//! `copy-log check`: did the block layer send what it should have?

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use super::args::CheckArgs;
use super::filled::Filled;
use super::input::{CANNOT, cannot, read};
use super::text::{bytes, duration, say};
use super::tiles::Tiles;
use crate::copy::By;
use crate::laboratory::copy_log::{CopyRecord, Line, Word};

/// All is as it should be.
const PASS: u8 = 0;

/// Something is not.
const FAIL: u8 = 1;

/// Reasons that are printed; there may be one for each Copy.
const REASONS: usize = 20;

/// Says whether the log is as it should be.
pub(super) fn run(args: &CheckArgs) -> ExitCode {
    let mut checker = Checker::new(args);
    match read(&args.log.file, |line| checker.take(line)) {
        Ok(torn) => {
            let (text, code) = checker.verdict(torn);
            say(&text);
            ExitCode::from(code)
        }
        // What is wrong with the part that could be read is wrong in any case.
        Err(why) if checker.reasons.is_empty() => cannot(&why),
        Err(why) => {
            say(&format!("{}cannot read on: {why}\n", checker.failures()));
            ExitCode::from(FAIL)
        }
    }
}

/// A log that is being checked.
pub(super) struct Checker<'a> {
    args: &'a CheckArgs,
    reasons: Vec<String>,
    /// Reasons that are not kept.
    more: u64,
    copies: u64,
    failed: u64,
    /// Bytes of Copies that succeeded.
    total: u64,
    dropped: u64,
    ended: bool,
    refused: BTreeMap<String, u64>,
    moved: BTreeMap<Word<By>, u64>,
    tiles: Tiles,
    filled: Filled,
}

impl<'a> Checker<'a> {
    pub(super) fn new(args: &'a CheckArgs) -> Self {
        Self {
            args,
            reasons: Vec::new(),
            more: 0,
            copies: 0,
            failed: 0,
            total: 0,
            dropped: 0,
            ended: false,
            refused: BTreeMap::new(),
            moved: BTreeMap::new(),
            tiles: Tiles::default(),
            filled: Filled::new(args),
        }
    }

    pub(super) fn take(&mut self, line: Line) {
        match line {
            Line::Copy(copy) if self.args.nsid.is_none_or(|nsid| nsid == copy.command.nsid) => {
                self.copy(&copy)
            }
            Line::Copy(_) | Line::Log(_) | Line::Unknown => {}
            Line::Dropped(dropped) => self.dropped = self.dropped.saturating_add(dropped.count),
            Line::End(_) => self.ended = true,
        }
    }

    fn copy(&mut self, copy: &CopyRecord) {
        self.copies += 1;
        self.limits(copy);
        let args = self.args;
        if let Some(format) = args.expect_format
            && copy.command.format != format
        {
            self.fail(
                copy,
                format_args!("its descriptors are of format {}, not {format}", copy.command.format),
            );
        }
        if let Some(most) = args.max_latency
            && u128::from(copy.latency_ns) > most.as_nanos()
        {
            self.fail(copy, format_args!("it took {}, at most {most:?}", duration(copy.latency_ns)));
        }
        if let Some(refusal) = &copy.refused {
            *self.refused.entry(refusal.rule.clone()).or_default() += 1;
        }
        if copy.status.is_success() {
            self.succeeded(copy);
        } else {
            self.failed += 1;
            if args.no_errors {
                self.fail(copy, format_args!("it ended with {}{}", copy.status, why(copy)));
            }
        }
    }

    fn limits(&mut self, copy: &CopyRecord) {
        let CheckArgs { max_ranges, max_range_blocks, max_blocks, .. } = *self.args;
        if let Some(most) = max_ranges
            && copy.command.nr > most
        {
            self.fail(copy, format_args!("it has {} ranges, at most {most}", copy.command.nr));
        }
        let ranges = copy.ranges.as_deref().unwrap_or_default();
        if let Some(most) = max_range_blocks
            && let Some((index, range)) = ranges.iter().enumerate().find(|(_, range)| range.nlb > most)
        {
            self.fail(copy, format_args!("range {index} has {} blocks, at most {most}", range.nlb));
        }
        if let Some(most) = max_blocks
            && let Some(blocks) = copy.blocks().filter(|blocks| *blocks > most)
        {
            self.fail(copy, format_args!("it has {blocks} blocks, at most {most}"));
        }
    }

    fn succeeded(&mut self, copy: &CopyRecord) {
        let planned = copy.plan.as_ref().map_or(0, |plan| plan.bytes);
        self.total = self.total.saturating_add(planned);
        for part in &copy.moved {
            let of = self.moved.entry(part.by).or_default();
            *of = of.saturating_add(part.len);
        }
        if self.args.tiles {
            self.tiles.add(copy);
        }
        if self.args.filled {
            self.filled.add(copy);
        }
        let demands = self.args.all_offloaded || !self.args.moved_by.is_empty();
        let offloaded = |by: By| !self.args.all_offloaded || by != By::ReadWrite;
        let listed = |by: By| self.args.moved_by.is_empty() || self.args.moved_by.contains(&by);
        let other = copy.moved.iter().find(|part| !offloaded(part.by.0) || !listed(part.by.0));
        let moved: u64 = copy.moved.iter().map(|part| part.len).fold(0, u64::saturating_add);
        if let Some(part) = other.filter(|_| demands) {
            let (range, by) = (part.range, part.by.text());
            self.fail(copy, format_args!("{} bytes of range {range} were moved by {by}", part.len));
        } else if demands && moved != planned {
            self.fail(copy, format_args!("{moved} of its {planned} bytes were moved"));
        }
    }

    fn fail(&mut self, copy: &CopyRecord, why: std::fmt::Arguments<'_>) {
        let CopyRecord { number, sqid, cid, .. } = copy;
        self.reason(format!("copy {number} (queue {sqid}, cid {cid:#06x}): {why}"));
    }

    fn reason(&mut self, why: String) {
        if self.reasons.len() < REASONS {
            self.reasons.push(why);
        } else {
            self.more += 1;
        }
    }

    /// What must be true of all of them together.
    fn sums(&mut self) {
        let args = self.args;
        let (copies, total) = (self.copies, self.total);
        if let Some(want) = args.expect_copies.filter(|want| *want != copies) {
            self.reason(format!("there are {copies} Copies, not {want}"));
        }
        if let Some(want) = args.min_copies.filter(|want| *want > copies) {
            self.reason(format!("there are {copies} Copies, at least {want} should be"));
        }
        if let Some(want) = args.expect_total.filter(|want| *want != total) {
            self.reason(format!("{total} bytes were copied, not {want}"));
        }
        for (rule, want) in &args.expect_refused {
            let found = self.refused.get(rule).copied().unwrap_or(0);
            match want {
                Some(want) if *want != found => {
                    self.reason(format!("{found} Copies were refused by {rule}, not {want}"));
                }
                None if found == 0 => self.reason(format!("no Copy was refused by {rule}")),
                _ => {}
            }
        }
        for why in std::mem::take(&mut self.tiles).faults() {
            self.reason(why);
        }
        for why in self.filled.faults() {
            self.reason(why);
        }
    }

    /// What is printed in the end, and the exit code.
    pub(super) fn verdict(mut self, torn: bool) -> (String, u8) {
        self.sums();
        let mut unknown = Vec::new();
        if self.dropped > 0 && !self.args.allow_dropped {
            unknown.push(format!("{} Copies are not in the log (--allow-dropped)", self.dropped));
        }
        if self.args.complete && (torn || !self.ended) {
            unknown.push("the log has no end: the device runs on, or was killed".to_owned());
        }
        let mut text = self.failures();
        let (word, code) = match (self.reasons.is_empty(), unknown.is_empty()) {
            (false, _) => ("fail", FAIL),
            (true, false) => ("cannot say", CANNOT),
            (true, true) => ("pass", PASS),
        };
        for why in unknown {
            let _ = writeln!(text, "CANNOT SAY: {why}");
        }
        let _ = writeln!(text, "{word}: {}", self.summary());
        (text, code)
    }

    fn failures(&self) -> String {
        let mut text: String = self.reasons.iter().map(|why| format!("FAIL: {why}\n")).collect();
        if self.more > 0 {
            let _ = writeln!(text, "FAIL: and {} more", self.more);
        }
        text
    }

    fn summary(&self) -> String {
        let moved: String =
            self.moved.iter().map(|(by, len)| format!(", {} by {}", bytes(*len), by.text())).collect();
        let refused: u64 = self.refused.values().sum();
        format!(
            "{} Copies, {} failed ({refused} of them refused), {} bytes copied{moved}, {} dropped",
            self.copies, self.failed, self.total, self.dropped
        )
    }
}

/// Which rule refused it.
fn why(copy: &CopyRecord) -> String {
    copy.refused.as_ref().map_or_else(String::new, |refusal| {
        let range = refusal.range.map_or_else(String::new, |range| format!(", range {range}"));
        format!(": {} ({}{range})", refusal.rule, refusal.what)
    })
}

#[cfg(test)]
mod tests;
