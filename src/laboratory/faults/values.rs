//! One value's text to its type.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::Refused;
use crate::spec::Status;

/// Longest delay. A host has given up long before.
const DELAY_MAX: Duration = Duration::from_secs(24 * 3600);

/// A name as rules spell it: lower case, dashes between its words, nothing else.
pub(super) fn spelled(name: &str) -> String {
    let plain = |c: char| match c {
        ' ' | '_' => Some('-'),
        '/' => None,
        c => Some(c.to_ascii_lowercase()),
    };
    name.chars().filter_map(plain).collect()
}

/// Decimal or `0x` hexadecimal, without sign or leading zero.
pub(super) fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => return None,
        None => (text, 10),
    };
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

/// A whole number within `range`.
pub(super) fn within<T>(text: &str, range: RangeInclusive<T>) -> Result<T, Refused>
where
    T: TryFrom<u64> + PartialOrd + std::fmt::Display,
{
    number(text)
        .and_then(|n| T::try_from(n).ok())
        .filter(|n| range.contains(n))
        .ok_or_else(|| Refused::new(format!("must be {} to {}", range.start(), range.end())))
}

/// A time: `250ms`, `2s`, `100us`.
pub(super) fn time(text: &str) -> Result<Duration, Refused> {
    let bad = || Refused::new(format!("must be a time with its unit, at most {}s", DELAY_MAX.as_secs()));
    humantime::parse_duration(text).ok().filter(|time| *time <= DELAY_MAX).ok_or_else(bad)
}

/// `on` or `off`.
pub(super) fn switch(text: &str) -> Result<bool, Refused> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Refused::new("must be on or off")),
    }
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.is_empty() || !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    let pair = |at: usize| {
        let pair = digits.get(at..at + 2)?;
        pair.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(pair, 16).ok()).flatten()
    };
    (0..digits.len()).step_by(2).map(pair).collect()
}

/// Blocks or sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The first.
    pub first: u64,
    /// How many; more than there are means to the end.
    pub count: u64,
}

impl Window {
    /// `FIRST`, `FIRST-LAST` or `FIRST+COUNT`.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        let bad = || Refused::new("must be FIRST, FIRST-LAST or FIRST+COUNT");
        let of = |text: &str| number(text).ok_or_else(bad);
        if let Some((first, count)) = text.split_once('+') {
            let (first, count) = (of(first)?, of(count)?);
            return if count > 0 { Ok(Self { first, count }) } else { Err(Refused::new("has no block")) };
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (of(first)?, of(last)?);
        let more = last.checked_sub(first).ok_or_else(|| Refused::new("ends before it begins"))?;
        Ok(Self { first, count: more.saturating_add(1) })
    }

    /// The block after its last.
    pub fn end(self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// Has it any of `count` blocks from `first`?
    pub fn meets(self, first: u64, count: u64) -> bool {
        first < self.end() && self.first < first.saturating_add(count)
    }
}

/// What the block layer calls an error, and a status that Linux makes it of.
const BLOCK_STATUSES: &[(&str, Status)] = &[
    ("ioerr", Status::INTERNAL_ERROR),
    ("medium", Status::UNRECOVERED_READ),
    ("nospc", Status::CAPACITY_EXCEEDED),
    ("notsupp", Status::INVALID_OPCODE),
    ("target", Status::LBA_OUT_OF_RANGE),
    ("resv-conflict", Status(0x083)),
    ("protection", Status(0x282)),
    ("transport", Status(0x370)),
];

/// A status: its name, the block layer's, SCT and SC in one number, or `SCT/SC`.
pub(super) fn status(text: &str) -> Result<Status, Refused> {
    let name = spelled(text);
    if name == "success" {
        return Ok(Status::SUCCESS);
    }
    let known = Status::ALL.iter().find(|status| status.name().is_some_and(|known| spelled(known) == name));
    let block = BLOCK_STATUSES.iter().find(|(known, _)| *known == name).map(|(_, status)| status);
    if let Some(status) = known.or(block) {
        return Ok(*status);
    }
    let parts = text.split_once('/').map_or_else(
        || number(text),
        |(sct, sc)| {
            let (sct, sc) = (number(sct)?, number(sc)?);
            (sct < 8 && sc < 0x100).then_some(sct << 8 | sc)
        },
    );
    let of = |value: u64| u16::try_from(value).ok().filter(|value| *value < 0x800);
    parts.and_then(of).map(Status).ok_or_else(|| {
        Refused::with(
            "is no status",
            "write a name (write-fault, internal-error), SCT and SC as 0x281 or 2/0x81, or one of the block layer's \
             (IOERR, MEDIUM, NOSPC, NOTSUPP, TARGET, PROTECTION, RESV_CONFLICT, TRANSPORT); DNR is a word of its own",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_and_times() {
        assert_eq!([number("0x19"), number("25"), number("0")], [Some(25), Some(25), Some(0)]);
        for bad in ["", "-1", "+1", "010", "0x", "0x-1", "1k", "99999999999999999999"] {
            assert_eq!(number(bad), None, "{bad}");
        }
        assert_eq!(within::<u16>("65536", 0..=65535).unwrap_err().problem, "must be 0 to 65535");
        assert_eq!(time("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["250", "", "2 parsecs", "25h"] {
            assert_eq!(
                time(bad).unwrap_err().problem,
                "must be a time with its unit, at most 86400s",
                "{bad}"
            );
        }
        assert_eq!((switch("on"), switch("off")), (Ok(true), Ok(false)));
        assert!(switch("yes").is_err());
    }

    #[test]
    fn bytes() {
        assert_eq!(hex("00fF"), Some(vec![0, 255]));
        assert_eq!(hex("0x5d07"), Some(vec![0x5d, 7]));
        for bad in ["", "0", "0x", "0g", "+1", "ää"] {
            assert_eq!(hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn windows() {
        let window = |text: &str| Window::parse(text).map(|window| (window.first, window.count));
        assert_eq!(window("7"), Ok((7, 1)));
        assert_eq!(window("7-9"), Ok((7, 3)));
        assert_eq!(window("0x10+4"), Ok((16, 4)));
        assert_eq!(window("0-18446744073709551615"), Ok((0, u64::MAX)));
        for bad in ["", "-", "7-", "+4", "7+0", "9-7", "a"] {
            assert!(window(bad).is_err(), "{bad}");
        }
        let ten = Window { first: 10, count: 10 };
        assert!(ten.meets(0, 11) && ten.meets(19, 1) && ten.meets(12, 2) && ten.meets(0, u64::MAX));
        assert!(!ten.meets(0, 10) && !ten.meets(20, 5));
    }

    #[test]
    fn statuses() {
        assert_eq!(status("write-fault"), Ok(Status::WRITE_FAULT));
        assert_eq!(status("WRITE_FAULT"), Ok(Status::WRITE_FAULT));
        assert_eq!(status("0x281"), Ok(Status::UNRECOVERED_READ));
        assert_eq!(status("2/0x81"), Ok(Status::UNRECOVERED_READ));
        assert_eq!(status("MEDIUM"), Ok(Status::UNRECOVERED_READ));
        assert_eq!(status("success"), Ok(Status::SUCCESS));
        for known in Status::ALL {
            assert_eq!(status(&spelled(known.name().unwrap())), Ok(*known));
        }
        for bad in ["", "0x4281", "8/0", "2/0x100", "2/", "oops", "0x800"] {
            assert_eq!(status(bad).unwrap_err().problem, "is no status", "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,24}") {
            let _ = (status(&text), Window::parse(&text), hex(&text), time(&text), number(&text));
        }

        #[test]
        fn a_window_meets_what_shares_a_block(first in 0u64..50, count in 1u64..50, at in 0u64..50, len in 1u64..50) {
            let shares = (at..at + len).any(|block| (first..first + count).contains(&block));
            prop_assert_eq!(Window { first, count }.meets(at, len), shares);
        }
    }
}
