//! Values that only rules have: what lands, which bits, which bytes, which dword.

use super::draft::{Draft, Partial};
use super::error::Refused;
use super::matches::DwordMatch;
use super::rule::{FlipAt, HoldAt};
use super::values::{hex, number};
use crate::laboratory::lands::Lands;
use crate::laboratory::script::{Edit, Post};

/// A number with or without a minus.
pub(super) fn signed(text: &str) -> Result<i64, Refused> {
    let (digits, sign) = text.strip_prefix('-').map_or((text, 1), |digits| (digits, -1));
    let count = number(digits).and_then(|n| i64::try_from(n).ok());
    count.map(|n| n * sign).ok_or_else(|| Refused::new("must be a number"))
}

/// A share of all 64-bit numbers.
pub(super) fn percent(text: &str) -> Result<u64, Refused> {
    let percent = text.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent));
    // As large as that is, `as` keeps within the type.
    percent
        .map(|percent| (percent / 100.0 * u64::MAX as f64) as u64)
        .ok_or_else(|| Refused::new("must be 0 to 100"))
}

pub(super) fn filled(text: &str) -> Result<String, Refused> {
    if text.is_empty() { Err(Refused::new("is empty")) } else { Ok(text.to_owned()) }
}

/// A rule's name.
pub(super) fn name(text: &str) -> Result<String, Refused> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=32).contains(&text.len()) && text.chars().all(good) && text != "all" {
        Ok(text.to_owned())
    } else {
        Err(Refused::new("must be 1 to 32 letters, digits, dashes, dots or underscores, and not all"))
    }
}

pub(super) fn dword(index: usize, text: &str) -> Result<DwordMatch, Refused> {
    let of = |text: &str| number(text).and_then(|n| u32::try_from(n).ok());
    let (value, mask) =
        text.split_once('/').map_or((of(text), Some(u32::MAX)), |(value, mask)| (of(value), of(mask)));
    match (value, mask) {
        (Some(value), Some(mask)) if value & !mask == 0 => Ok(DwordMatch { index, mask, value }),
        (Some(_), Some(_)) => Err(Refused::new("has bits that its mask has not")),
        _ => Err(Refused::new("must be a number of 32 bits, with / and a mask behind it or without")),
    }
}

pub(super) fn partial(text: &str) -> Result<Partial, Refused> {
    let bad =
        || Refused::new("must be nothing, all, prefix:N, prefix:N+M, scattered:SEED, beyond or beyond:N");
    let of = |text: &str| number(text).ok_or_else(bad);
    let (word, value) = text.split_once(':').map_or((text, None), |(word, value)| (word, Some(value)));
    Ok(match (word, value) {
        ("nothing", None) => Partial::Lands(Lands::Nothing),
        ("all", None) => Partial::Lands(Lands::All),
        ("prefix", Some(value)) => {
            let (units, blocks) = value.split_once('+').unwrap_or((value, "0"));
            Partial::Lands(Lands::Prefix { units: of(units)?, blocks: of(blocks)? })
        }
        ("scattered", Some(seed)) => Partial::Lands(Lands::Scattered(of(seed)?)),
        ("beyond", value) => {
            let ranges = value.map_or(Ok(0), of)?;
            Partial::Beyond(u32::try_from(ranges).ok().filter(|ranges| *ranges < 256).ok_or_else(bad)?)
        }
        _ => return Err(bad()),
    })
}

pub(super) fn flip(text: &str) -> Result<FlipAt, Refused> {
    let (mask, at) = text.split_once('@').unwrap_or((text, "0"));
    match (hex(mask), number(at)) {
        (Some(mask), Some(at)) if mask.iter().any(|byte| *byte != 0) => Ok(FlipAt { at, mask }),
        _ => Err(Refused::new(
            "must be bytes in hexadecimal, not all 0, with @ and a number behind them or without",
        )),
    }
}

pub(super) fn place(text: &str) -> Result<HoldAt, Refused> {
    match text {
        "begin" => Ok(HoldAt::Begin),
        "end" => Ok(HoldAt::End),
        _ => Err(Refused::new("must be begin or end")),
    }
}

pub(super) fn irq(draft: &mut Draft, text: &str) -> Result<(), Refused> {
    match text {
        "lost" => draft.posts.push(Post::Unannounced),
        "spurious" => draft.spurious = true,
        _ => return Err(Refused::new("must be lost or spurious")),
    }
    Ok(())
}

pub(super) fn edits(text: &str) -> Result<Vec<Edit>, Refused> {
    let edit = |text: &str| {
        let (at, bytes) = text.split_once(':')?;
        let at = number(at).and_then(|at| usize::try_from(at).ok()).filter(|at| *at < 1 << 24)?;
        Some(Edit { at, bytes: hex(bytes)? })
    };
    let edits: Option<Vec<_>> = text.split('+').map(edit).collect();
    edits.ok_or_else(|| Refused::new("must be OFFSET:HEX, bytes in hexadecimal, several with + between"))
}
