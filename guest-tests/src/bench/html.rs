//! One page that needs no other file: the table, and for each row every run as a dot over box and median.

use std::fmt::Write as _;

use super::stats::Summary;
use super::{Facts, Measured};

/// The drawing's size and the part of it that is the scale, in its own units.
const WIDTH: f64 = 640.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 620.0;
const LANE: f64 = 34.0;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;\
background:#fff;color:#222}table{border-collapse:collapse;width:100%}th,td{padding:.25em .6em;text-align:right;\
border-bottom:1px solid #8884}th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto}\
svg text{font-size:12px;fill:currentColor}.ours{fill:#1668b8;stroke:#1668b8}.qemu{fill:#c2570c;stroke:#c2570c}\
.box{fill-opacity:.18;stroke-opacity:.6}.dot{stroke:none;fill-opacity:.75}.axis{stroke:currentColor;\
stroke-opacity:.35}h2{font-size:1em;margin:1.5em 0 0}@media(prefers-color-scheme:dark){body{background:#181a1d;\
color:#ddd}.ours{fill:#62aef5;stroke:#62aef5}.qemu{fill:#f59a52;stroke:#f59a52}}";

/// The whole page.
pub(super) fn page(facts: &Facts, measured: &[Measured]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n<title>Guest benchmark</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<style>{STYLE}</style>\n\
         <h1>vfio-user-nvme beside QEMU's own nvme, in one guest</h1>\n<ul>\n"
    );
    for (name, text) in facts.lines().filter(|(_, text)| !text.is_empty()) {
        let _ = writeln!(page, "<li>{}: {}</li>", escaped(name), escaped(&text));
    }
    page.push_str(
        "</ul>\n<p>Medians with interquartile ranges; higher is better. A row is <em>ahead</em> or <em>behind</em> only \
         when the medians differ by more than the larger of the two ranges.</p>\n<table>\n<tr><th>row</th>\
         <th>unit</th><th>ours</th><th>QEMU</th><th>ours / QEMU</th><th></th></tr>\n",
    );
    for m in measured {
        let (ours, qemu) = m.summaries();
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.2}</td><td>{}</td></tr>",
            escaped(m.row.name),
            m.row.unit,
            with_range(&ours),
            with_range(&qemu),
            m.ratio(),
            m.verdict()
        );
    }
    page.push_str("</table>\n");
    for m in measured {
        let _ = writeln!(page, "<h2>{} ({})</h2>\n{}", escaped(m.row.name), m.row.unit, plot(m));
    }
    page.push_str("</html>\n");
    page
}

fn with_range(s: &Summary) -> String {
    format!("{:.0} ({:.0}&ndash;{:.0})", s.median, s.low, s.high)
}

/// Two lanes on one scale that starts at 0, so that lengths may be compared.
fn plot(m: &Measured) -> String {
    let all = || m.ours.iter().chain(&m.qemu);
    let top = nice(all().copied().fold(0.0, f64::max));
    let x = |value: f64| LEFT + (RIGHT - LEFT) * value / top;
    let height = 2.0 * LANE + 24.0;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n",
        escaped(m.row.name)
    );
    for n in 0..=4 {
        let value = top * f64::from(n) / 4.0;
        let _ = writeln!(
            svg,
            "<line class=\"axis\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"4\" y2=\"{1:.1}\"/>\
             <text x=\"{0:.1}\" y=\"{2:.1}\" text-anchor=\"middle\">{value:.0}</text>",
            x(value),
            2.0 * LANE + 4.0,
            2.0 * LANE + 18.0
        );
    }
    let (ours, qemu) = m.summaries();
    for (lane, (class, name, values, summary)) in
        [("ours", "ours", &m.ours, ours), ("qemu", "QEMU", &m.qemu, qemu)].into_iter().enumerate()
    {
        let y = 4.0 + LANE * (lane as f64 + 0.5);
        let _ = writeln!(svg, "<text x=\"4\" y=\"{:.1}\">{name}</text>", y + 4.0);
        let (low, median, top, bottom) = (x(summary.low), x(summary.median), y - 11.0, y + 11.0);
        let width = (x(summary.high) - low).max(1.0);
        let _ = writeln!(
            svg,
            "<rect class=\"{class} box\" x=\"{low:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"22\"/>\
             <line class=\"{class}\" stroke-width=\"2\" x1=\"{median:.1}\" x2=\"{median:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>"
        );
        for (n, value) in values.iter().enumerate() {
            // A little up and down by run, or equal runs would hide each other.
            let up = (n % 3) as f64 * 5.0 - 5.0;
            let _ = writeln!(
                svg,
                "<circle class=\"{class} dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>run {}: {value:.0}</title></circle>",
                x(*value),
                y + up,
                n + 1
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

/// The next of 1, 2, 4, 5, 8 times a power of ten.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 5.0, 8.0, 10.0];
    steps.into_iter().map(|s| s * power).find(|&s| s >= value).unwrap_or(10.0 * power)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::rows::ROWS;
    use super::*;

    #[test]
    fn the_page_has_every_run_and_asks_for_no_other_file() {
        let m = Measured { row: ROWS[0], ours: vec![10.0, 30.0, 20.0], qemu: vec![5.0, 5.0, 5.0] };
        let facts = Facts { words: vec![("guest", "Linux <6>".into())] };
        let page = page(&facts, &[m]);
        assert_eq!(page.matches("<circle").count(), 6);
        assert!(page.contains("Linux &lt;6&gt;") && page.contains("<td>4.00</td>") && page.contains("ahead"));
        // The medians, 20 and 5 on a scale to 40: half and an eighth of the way.
        assert!(page.contains("class=\"ours\" stroke-width=\"2\" x1=\"340.0\""));
        assert!(page.contains("class=\"qemu\" stroke-width=\"2\" x1=\"130.0\""));
        assert!(!page.contains("http") && !page.contains("src=") && !page.contains("NaN"));
    }

    #[test]
    fn the_scale_ends_just_above_the_largest_value() {
        assert_eq!([nice(0.0), nice(3.0), nice(8.5), nice(4100.0)], [1.0, 4.0, 10.0, 5000.0]);
    }
}
