//! Words for people.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use crate::copy::By;
use crate::laboratory::copy_log::{CopyRecord, Posted, Word};

/// To standard output, whose reader may have gone. Logs may come from anywhere: nothing in them moves a terminal's cursor.
pub(super) fn say(text: &str) {
    let _ = io::stdout().write_all(printable(text).as_bytes());
}

fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(plain).collect()
}

/// A number of bytes for people: 4 KiB, 1.5 MiB.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut rest = count;
    while rest >= 1024 && unit + 1 < UNITS.len() {
        rest >>= 10;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    let whole = 1_u64 << (10 * unit);
    if count.is_multiple_of(whole) {
        format!("{rest} {name}")
    } else {
        format!("{:.1} {name}", count as f64 / whole as f64)
    }
}

/// A time for people.
pub(super) fn duration(nanoseconds: u64) -> String {
    match nanoseconds {
        ..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.1} us", nanoseconds as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", nanoseconds as f64 / 1e6),
        _ => format!("{:.2} s", nanoseconds as f64 / 1e9),
    }
}

/// What moved the bytes, and how it ended if not well.
pub(super) fn result(copy: &CopyRecord) -> String {
    let mut sums: BTreeMap<Word<By>, u64> = BTreeMap::new();
    for part in &copy.moved {
        let sum = sums.entry(part.by).or_default();
        *sum = sum.saturating_add(part.len);
    }
    let mut said: Vec<String> = match sums.len() {
        1 => sums.keys().map(|by| by.text().to_owned()).collect(),
        _ => sums.iter().map(|(by, len)| format!("{} {}", by.text(), bytes(*len))).collect(),
    };
    if !copy.status.is_success() {
        said.push(copy.status.to_string());
        match &copy.refused {
            Some(refusal) => {
                let range = refusal.range.map_or_else(String::new, |range| format!(" range {range}"));
                said.push(format!("by {}{range}", refusal.rule));
            }
            None => said.push(format!("dw0 {}", copy.dw0)),
        }
    }
    match copy.posted {
        Posted::Once => {}
        Posted::Never => said.push("completion lost".into()),
        Posted::Twice => said.push("completed twice".into()),
        Posted::OtherCid => said.push("completed with another CID".into()),
        Posted::Unannounced => said.push("completed without an interrupt".into()),
        Posted::QueueGone => said.push("its queue was gone".into()),
    }
    said.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refused, succeeded};
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 512, 1024, 1536, 3 << 30].map(bytes), ["0 B", "512 B", "1 KiB", "1.5 KiB", "3 GiB"]);
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(
            [999, 1500, 2_000_000, 3_000_000_000].map(duration),
            ["999 ns", "1.5 us", "2.0 ms", "3.00 s"]
        );
    }

    #[test]
    fn a_log_does_nothing_to_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\n"), "a\u{fffd}[2Jb\u{fffd}\n");
    }

    #[test]
    fn what_went_otherwise_is_said() {
        let copy = refused(1, 0, &[(0, 101)]);
        assert_eq!(result(&copy), "1/83h DNR Command Size Limit Exceeded, by mssrl range 0");
        let mut copy = succeeded(1, 0, &[(0, 8), (50, 16)]);
        copy.moved[1].by = Word(By::Shared);
        copy.posted = Posted::Never;
        assert_eq!(result(&copy), "memmove 4 KiB, shared 8 KiB, completion lost");
    }
}
