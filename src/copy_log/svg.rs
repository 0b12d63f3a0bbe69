//! The pictures of a page, as SVG. Colours are classes of its style sheet.

use std::fmt::Write as _;

use super::page::{Hue, Latency, Page, Ribbon, SHAPES};
use super::text::{bytes, duration};

const WIDTH: f64 = 960.0;

/// Text that stands for itself in HTML, whatever it is.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.push(char::REPLACEMENT_CHARACTER),
            c => safe.push(c),
        }
    }
    safe
}

/// An image of this height; `label` is for who cannot see it.
fn frame(height: f64, label: &str, body: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n{body}</svg>\n",
        escape(label)
    )
}

fn text(out: &mut String, x: f64, y: f64, class: &str, what: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>", escape(what));
}

/// Where the blocks of one namespace are drawn.
struct Space {
    nsid: u32,
    first: u64,
    blocks: f64,
    x: f64,
    width: f64,
}

impl Space {
    fn x(&self, lba: u64) -> f64 {
        self.x + lba.saturating_sub(self.first) as f64 / self.blocks * self.width
    }
}

/// Which blocks went where.
pub(super) fn map(page: &Page) -> String {
    const GAP: f64 = 28.0;
    const TOP: f64 = 46.0;
    const BAR: f64 = 14.0;
    const BOTTOM: f64 = 330.0;
    let count = page.spaces.len().max(1) as f64;
    let width = ((WIDTH - GAP * (count - 1.0)) / count).max(1.0);
    let mut x = 0.0;
    let spaces: Vec<Space> = page
        .spaces
        .iter()
        .map(|(&nsid, &(first, end))| {
            let space = Space { nsid, first, blocks: end.saturating_sub(first).max(1) as f64, x, width };
            x += width + GAP;
            space
        })
        .collect();
    let find = |nsid: u32| spaces.iter().find(|space| space.nsid == nsid);
    let mut body = String::new();
    text(&mut body, 0.0, 14.0, "head", "from: source ranges");
    text(&mut body, 0.0, BOTTOM + BAR + 36.0, "head", "to: destinations");
    for (space, (_, end)) in spaces.iter().zip(page.spaces.values()) {
        for y in [TOP - BAR, BOTTOM] {
            let _ = writeln!(
                body,
                "<rect x=\"{:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\" class=\"space\"/>",
                space.x, space.width
            );
        }
        let y = BOTTOM + BAR + 15.0;
        text(&mut body, space.x, y, "dim", &format!("nsid {}: LBA {}", space.nsid, space.first));
        text(&mut body, space.x + space.width, y, "dim right", &end.to_string());
    }
    // Few are to be seen, many to be told apart.
    let opacity = (7.0 / (page.ribbons.kept.len() as f64).sqrt()).clamp(0.28, 0.8);
    let _ = writeln!(body, "<g fill-opacity=\"{opacity:.2}\">");
    for Ribbon { from, to, blocks, hue, number } in &page.ribbons.kept {
        let (Some(source), Some(dst)) = (find(from.0), find(to.0)) else { continue };
        let sides = |space: &Space, lba: u64| {
            let (left, right) = (space.x(lba), space.x(lba.saturating_add(*blocks)));
            (left, right.max(left + 1.3))
        };
        let ((a, b), (c, d)) = (sides(source, from.1), sides(dst, to.1));
        let (top, bottom, middle) = (TOP, BOTTOM, (TOP + BOTTOM) / 2.0);
        let _ = writeln!(
            body,
            "<path class=\"ribbon {}\" d=\"M{a:.1} {top}L{b:.1} {top}C{b:.1} {middle} {d:.1} {middle} {d:.1} {bottom}\
             L{c:.1} {bottom}C{c:.1} {middle} {a:.1} {middle} {a:.1} {top}Z\"><title>copy {number}: {blocks} blocks \
             from {}:{} to {}:{}</title></path>",
            hue.class(),
            from.0,
            from.1,
            to.0,
            to.1
        );
        for (left, right, y) in [(a, b, TOP - BAR), (c, d, BOTTOM)] {
            let _ = writeln!(
                body,
                "<rect class=\"{}\" fill-opacity=\"1\" x=\"{left:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\"/>",
                hue.class(),
                right - left
            );
        }
    }
    body.push_str("</g>\n");
    let mut picture = frame(BOTTOM + BAR + 46.0, "source ranges and destinations over the blocks", &body);
    if page.ribbons.every > 1 {
        let _ = writeln!(picture, "<p class=\"dim\">One of {} ranges is drawn.</p>", page.ribbons.every);
    }
    picture
}

/// Columns that are counted upwards: label and count.
pub(super) fn columns(label: &str, all: &[(String, u64)]) -> String {
    const HEIGHT: f64 = 170.0;
    const LOW: f64 = 140.0;
    let most = all.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1) as f64;
    let step = WIDTH / all.len().max(1) as f64;
    let wide = (step * 0.8).min(90.0);
    let mut body = format!("<line x1=\"0\" y1=\"{LOW}\" x2=\"{WIDTH}\" y2=\"{LOW}\" class=\"axis\"/>\n");
    for (at, (name, count)) in all.iter().enumerate() {
        let middle = (at as f64 + 0.5) * step;
        let high = (*count as f64 / most * (LOW - 24.0)).max(if *count > 0 { 1.5 } else { 0.0 });
        let _ = writeln!(
            body,
            "<rect class=\"plain\" x=\"{:.1}\" y=\"{:.1}\" width=\"{wide:.1}\" height=\"{high:.1}\">\
             <title>{}: {count}</title></rect>",
            middle - wide / 2.0,
            LOW - high,
            escape(name)
        );
        if step >= 26.0 {
            text(&mut body, middle, LOW - high - 5.0, "middle", &count.to_string());
        }
        if step >= 52.0 || at.is_multiple_of((52.0 / step).ceil() as usize) {
            text(&mut body, middle, LOW + 17.0, "dim middle", name);
        }
    }
    frame(HEIGHT, label, &body)
}

/// Bars, one below the other: label, how long, what is said of it, class.
pub(super) fn bars(label: &str, all: &[(String, u64, String, &str)]) -> String {
    const ROW: f64 = 26.0;
    const LEFT: f64 = 250.0;
    const RIGHT: f64 = 150.0;
    let most = all.iter().map(|(_, count, ..)| *count).max().unwrap_or(1).max(1) as f64;
    let mut body = String::new();
    for (at, (name, count, said, class)) in all.iter().enumerate() {
        let y = at as f64 * ROW;
        let long = (*count as f64 / most * (WIDTH - LEFT - RIGHT)).max(1.5);
        text(&mut body, LEFT - 10.0, y + 17.0, "right", name);
        let _ = writeln!(
            body,
            "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{long:.1}\" height=\"{:.1}\"/>",
            y + 4.0,
            ROW - 8.0
        );
        text(&mut body, LEFT + long + 8.0, y + 17.0, "dim", said);
    }
    frame(all.len().max(1) as f64 * ROW + 4.0, label, &body)
}

/// How long Copies took, a strip for each way.
pub(super) fn latencies(page: &Page) -> String {
    const ROW: f64 = 54.0;
    const LEFT: f64 = 130.0;
    const RIGHT: f64 = 235.0;
    let all = &page.latencies.kept;
    let of = |ns: u64| (ns.max(1) as f64).log10();
    let low = all.iter().map(|one| of(one.ns).floor()).fold(f64::INFINITY, f64::min).min(12.0);
    let high = all.iter().map(|one| of(one.ns).ceil()).fold(low + 1.0, f64::max);
    let x = |ns: u64| LEFT + (of(ns) - low) / (high - low) * (WIDTH - LEFT - RIGHT);
    let hues: Vec<Hue> = Hue::ALL.into_iter().filter(|hue| all.iter().any(|one| one.hue == *hue)).collect();
    let bottom = hues.len() as f64 * ROW;
    let mut body = String::new();
    let mut decade = low;
    while decade <= high {
        let ns = 10_f64.powf(decade) as u64;
        let at = x(ns);
        let _ =
            writeln!(body, "<line x1=\"{at:.1}\" y1=\"0\" x2=\"{at:.1}\" y2=\"{bottom}\" class=\"axis\"/>");
        text(&mut body, at, bottom + 16.0, "dim middle", &duration(ns));
        decade += 1.0;
    }
    for (row, hue) in hues.iter().enumerate() {
        let y = row as f64 * ROW;
        let mut times: Vec<u64> = Vec::with_capacity(SHAPES);
        for Latency { ns, bytes: count, number, .. } in all.iter().filter(|one| one.hue == *hue) {
            times.push(*ns);
            // A place of its own for each, always the same.
            let shift = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 59;
            let _ = writeln!(
                body,
                "<circle class=\"dot {}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"><title>copy {number}: {}, {}</title></circle>",
                hue.class(),
                x(*ns),
                y + 11.0 + shift as f64,
                duration(*ns),
                bytes(*count)
            );
        }
        times.sort_unstable();
        let rank = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1)));
        text(&mut body, LEFT - 12.0, y + 31.0, "right", hue.name());
        if let (Some(median), Some(late), Some(last)) = (rank(50), rank(95), times.last()) {
            let at = x(*median);
            let _ = writeln!(
                body,
                "<line class=\"median\" x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>",
                y + 5.0,
                y + ROW - 5.0
            );
            let right = WIDTH - RIGHT + 14.0;
            text(&mut body, right, y + 22.0, "", &format!("median {}", duration(*median)));
            text(
                &mut body,
                right,
                y + 38.0,
                "dim",
                &format!("95 % {}, most {}", duration(*late), duration(*last)),
            );
        }
    }
    let mut picture = frame(bottom + 24.0, "latency by what moved the bytes", &body);
    if page.latencies.every > 1 {
        let _ = writeln!(picture, "<p class=\"dim\">One of {} Copies is drawn.</p>", page.latencies.every);
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_log_is_markup() {
        let hostile = "<script>alert(\"1\")</script>&'\u{7}";
        let safe = "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;\u{fffd}";
        assert_eq!(escape(hostile), safe);
        for picture in [
            columns("", &[(hostile.to_owned(), 1)]),
            bars(hostile, &[(hostile.to_owned(), 1, hostile.to_owned(), "plain")]),
        ] {
            assert!(picture.contains(safe) && !picture.contains("<script"), "{picture}");
        }
    }
}
