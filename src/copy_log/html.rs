//! A page that shows a log, and needs nothing but itself.

use std::fmt::Write as _;

use super::page::{Hue, Page, ROWS, Row};
use super::svg::{self, escape};
use super::text::{bytes, duration};

/// No script, and nothing from anywhere: what a log says cannot reach out.
const HEAD: &str = r##"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Copies</title>
<style>
:root {
  color-scheme: light dark;
  --ground: #ffffff; --panel: #f5f6f8; --ink: #1b1f24; --dim: #59626f; --line: #d3d8de; --plain: #4a6fa5;
  --memmove: #2b6cd4; --shared: #14805a; --kernel: #a86500; --readwrite: #8b46c9; --mixed: #5b6673; --failed: #c62828;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --panel: #1c2025; --ink: #e5e8ec; --dim: #9ba5b2; --line: #363d46; --plain: #7ea2d6;
    --memmove: #6ea6ff; --shared: #45c492; --kernel: #eeb04a; --readwrite: #c396f5; --mixed: #a9b3c0; --failed: #ff7a70;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 24px; margin: 0; }
h2 { font-size: 17px; margin: 0 0 4px; }
p { margin: 2px 0 10px; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 16px 18px; margin-top: 18px; }
.dim { color: var(--dim); }
.sums { display: flex; flex-wrap: wrap; gap: 10px 34px; margin: 16px 0 0; }
.sums div span { display: block; color: var(--dim); font-size: 13px; }
.sums div { font-size: 22px; font-variant-numeric: tabular-nums; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--dim); }
.key i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px; }
svg { display: block; width: 100%; height: auto; font-size: 12.5px; }
svg text { fill: var(--ink); }
svg text.dim { fill: var(--dim); }
svg text.head { fill: var(--dim); font-weight: 600; }
svg .right { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .axis { stroke: var(--line); stroke-width: 1; }
svg .space { fill: var(--line); }
svg .median { stroke: var(--ink); stroke-width: 2; }
svg .ribbon:hover { fill-opacity: 1; }
svg .dot { fill-opacity: .5; }
.plain { fill: var(--plain); }
.memmove { fill: var(--memmove); background: var(--memmove); }
.shared { fill: var(--shared); background: var(--shared); }
.kernel { fill: var(--kernel); background: var(--kernel); }
.readwrite { fill: var(--readwrite); background: var(--readwrite); }
.mixed { fill: var(--mixed); background: var(--mixed); }
.failed { fill: var(--failed); background: var(--failed); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--dim); font-weight: 600; }
th, td { padding: 3px 10px 3px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.n, th.n { text-align: right; }
td:last-child { white-space: normal; min-width: 15em; }
td i { display: inline-block; width: 9px; height: 9px; border-radius: 2px; margin-right: 7px; }
</style>
</head>
<body>
<main>
"##;

/// The page.
pub(super) fn render(page: &Page) -> String {
    let mut out = HEAD.to_owned();
    let _ = writeln!(out, "<h1>NVMe Copies</h1>\n<p class=\"dim\">Copy log {}</p>", escape(&page.title));
    sums(&mut out, page);
    if page.copies > 0 {
        section(
            &mut out,
            "Source to destination",
            "Each band is a source range. Blocks that no Copy names are left out at both ends.",
            &(key() + &svg::map(page)),
        );
        moved(&mut out, page);
        let latencies = svg::latencies(page);
        section(
            &mut out,
            "Latency by method",
            "From the fetch of the command to its completion; the mark is the median.",
            &latencies,
        );
        let sizes: Vec<_> = filled(&page.sizes).map(|(power, count)| (bytes(1 << power), count)).collect();
        section(
            &mut out,
            "Size",
            "Copies by their bytes; a column reaches up to the next one.",
            &svg::columns("sizes", &sizes),
        );
        section(
            &mut out,
            "Source ranges",
            "Copies by how many ranges they have.",
            &svg::columns("ranges", &ranges(page)),
        );
        refusals(&mut out, page);
        rows(&mut out, page);
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn section(out: &mut String, head: &str, said: &str, body: &str) {
    let _ = writeln!(
        out,
        "<section>\n<h2>{}</h2>\n<p class=\"dim\">{}</p>\n{body}</section>",
        escape(head),
        escape(said)
    );
}

fn sums(out: &mut String, page: &Page) {
    let moved: u64 = page.moved.values().fold(0, |sum, bytes| sum.saturating_add(*bytes));
    let refused: u64 = page.rules.values().sum();
    let all = [
        ("Copies", page.copies.to_string()),
        ("bytes moved", bytes(moved)),
        ("refused", refused.to_string()),
        ("failed otherwise", (page.failed - refused.min(page.failed)).to_string()),
        ("missing in the log", page.dropped.to_string()),
    ];
    out.push_str("<div class=\"sums\">\n");
    for (name, value) in all {
        let _ = writeln!(out, "<div><span>{name}</span>{}</div>", escape(&value));
    }
    out.push_str("</div>\n");
}

/// What the colours mean.
fn key() -> String {
    let mut key = "<p class=\"key\">".to_owned();
    for hue in Hue::ALL {
        let _ = write!(key, "<span><i class=\"{}\"></i>{}</span>", hue.class(), hue.name());
    }
    key + "</p>\n"
}

fn moved(out: &mut String, page: &Page) {
    let all: Vec<_> = page
        .moved
        .iter()
        .map(|(by, len)| (by.text().to_owned(), *len, bytes(*len), Hue::Moved(*by).class()))
        .collect();
    if !all.is_empty() {
        section(
            out,
            "What moved the bytes",
            "As it was, not as it was planned.",
            &svg::bars("bytes by method", &all),
        );
    }
}

fn refusals(out: &mut String, page: &Page) {
    let count = |(name, count): (&String, &u64)| (name.clone(), *count, count.to_string(), "failed");
    let rules: Vec<_> = page.rules.iter().map(count).collect();
    if !rules.is_empty() {
        section(
            out,
            "Refusals by rule",
            "Copies that were refused and changed nothing.",
            &svg::bars("refusals", &rules),
        );
    }
    let failures: Vec<_> = page.failures.iter().map(count).collect();
    if !failures.is_empty() {
        section(
            out,
            "Failures on the way",
            "Copies that passed all checks and failed.",
            &svg::bars("failures", &failures),
        );
    }
}

/// Without gaps between the first and the last.
fn filled(counts: &std::collections::BTreeMap<u32, u64>) -> impl Iterator<Item = (u32, u64)> {
    let first = counts.first_key_value().map_or(0, |(key, _)| *key);
    let last = counts.last_key_value().map_or(0, |(key, _)| *key);
    (first..=last).map(|key| (key, counts.get(&key).copied().unwrap_or(0)))
}

/// Each number of ranges, or powers of two where those are many.
fn ranges(page: &Page) -> Vec<(String, u64)> {
    if page.ranges.len() <= 24 {
        return page.ranges.iter().map(|(ranges, count)| (ranges.to_string(), *count)).collect();
    }
    let mut powers = std::collections::BTreeMap::<u32, u64>::new();
    for (ranges, count) in &page.ranges {
        *powers.entry(ranges.max(&1).ilog2()).or_default() += count;
    }
    let name = |power: u32| match (1_u64 << power, (2_u64 << power) - 1) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first} to {last}"),
    };
    filled(&powers).map(|(power, count)| (name(power), count)).collect()
}

fn rows(out: &mut String, page: &Page) {
    let mut body = "<div class=\"scroll\"><table>\n<tr><th class=\"n\">number</th><th>time</th>\
        <th>ctrl/queue cid</th><th>destination</th><th class=\"n\">ranges</th><th class=\"n\">blocks</th>\
        <th class=\"n\">latency</th><th>result</th></tr>\n"
        .to_owned();
    for Row { number, time, queue, to, ranges, blocks, latency_ns, result, hue } in &page.rows {
        let blocks = blocks.map_or_else(|| "?".to_owned(), |blocks| blocks.to_string());
        let _ = writeln!(
            body,
            "<tr><td class=\"n\">{number}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{ranges}</td>\
             <td class=\"n\">{blocks}</td><td class=\"n\">{}</td><td><i class=\"{}\"></i>{}</td></tr>",
            escape(time),
            escape(queue),
            escape(to),
            duration(*latency_ns),
            hue.class(),
            escape(result)
        );
    }
    body.push_str("</table></div>\n");
    let said = match page.copies {
        copies if copies > ROWS as u64 => format!("The first {ROWS} of {copies}."),
        _ => "All of them, in the order in which they ended.".to_owned(),
    };
    section(out, "The Copies", &said, &body);
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refused, succeeded};
    use super::*;
    use crate::laboratory::copy_log::CopyRecord;

    fn page(copies: &[CopyRecord]) -> String {
        let mut page = Page::default();
        copies.iter().for_each(|copy| page.copy(copy));
        render(&page)
    }

    #[test]
    fn it_needs_nothing_but_itself() {
        let html = page(&[succeeded(1, 1000, &[(0, 8), (50, 16)]), refused(2, 2000, &[(10, 101)])]);
        for outside in ["src=", "href=", "url(", "@import", "<script", "http://", "https://"] {
            assert!(!html.contains(outside), "{outside}");
        }
        for shown in ["Refusals by rule", "mssrl", "Latency by method", "copy 1: 8 blocks from 1:0 to 1:1000"]
        {
            assert!(html.contains(shown), "{shown}");
        }
        assert_eq!(html.matches("<path class=\"ribbon memmove\"").count(), 2);
        assert_eq!(html.matches("<path class=\"ribbon failed\"").count(), 1);
    }

    #[test]
    fn a_hostile_log_is_text() {
        let mut copy = refused(1, u64::MAX, &[(u64::MAX, u32::MAX)]);
        copy.status.name = "<b>".into();
        copy.refused.as_mut().expect("it is refused").rule = "\"><script>".into();
        copy.latency_ns = u64::MAX;
        copy.namespaces[0].logical_block_size = u64::MAX;
        let html = page(&[copy]);
        assert!(!html.contains("<b>") && !html.contains("<script"), "{html}");
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
    }

    #[test]
    fn an_empty_log_has_a_page() {
        let html = page(&[]);
        assert!(html.contains("<span>Copies</span>0") && !html.contains("<svg"));
    }

    #[test]
    fn many_numbers_of_ranges_are_put_together() {
        let mut shown = Page { copies: 1, ..Page::default() };
        shown.ranges = (1..=40).map(|ranges| (ranges, 1)).collect();
        let names: Vec<_> =
            ranges(&shown).into_iter().map(|(name, count)| format!("{name}: {count}")).collect();
        assert_eq!(names, ["1: 1", "2 to 3: 2", "4 to 7: 4", "8 to 15: 8", "16 to 31: 16", "32 to 63: 9"]);
    }
}
