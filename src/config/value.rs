//! One value's text to its type. A refusal says what is wrong; the table adds the name and the default.

use std::ffi::OsStr;
use std::ops::RangeInclusive;

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reject {
    /// What is wrong.
    pub(super) problem: String,
    /// What to do; `None`: leave the property out for its default.
    pub(super) remedy: Option<String>,
}

impl Reject {
    /// With the usual remedy: leave it out.
    pub(super) fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: None }
    }

    /// With a remedy of its own.
    pub(super) fn with(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: Some(remedy.into()) }
    }
}

/// UTF-8 text.
pub(super) fn text(value: &OsStr) -> Result<&str, Reject> {
    value.to_str().ok_or_else(|| Reject::new("must be UTF-8 text"))
}

/// Decimal or `0x` hexadecimal. A leading zero is refused: QEMU reads it as octal, people do not.
fn integer(value: &str) -> Option<u64> {
    let (digits, radix) = match value.strip_prefix("0x").or(value.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if value.len() > 1 && value.starts_with('0') => return None,
        None => (value, 10),
    };
    // from_str_radix would take a sign.
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

/// A whole number within `range`.
pub(super) fn number<T>(value: &OsStr, range: RangeInclusive<T>) -> Result<T, Reject>
where
    T: TryFrom<u64> + PartialOrd + std::fmt::Display,
{
    value
        .to_str()
        .and_then(integer)
        .and_then(|n| T::try_from(n).ok())
        .filter(|n| range.contains(n))
        .ok_or_else(|| Reject::new(format!("must be {} to {}", range.start(), range.end())))
}

/// Processors by number: `2`, `2-5`, and several of these with colons between. (Commas end a property.)
pub(super) fn processors(value: &OsStr) -> Result<Vec<u16>, Reject> {
    let number = |text: &str| integer(text).and_then(|n| u16::try_from(n).ok()).filter(|n| *n < 1024);
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        (first <= last).then_some(first..=last)
    };
    let ranges: Option<Vec<_>> = value.to_str().and_then(|text| text.split(':').map(range).collect());
    let ranges = ranges.ok_or_else(|| {
        Reject::new("must be processors 0 to 1023 and ranges of them with colons between, for example 0:2-3")
    })?;
    Ok(ranges.into_iter().flatten().collect())
}

/// A 16-bit PCI id. As in QEMU, hexadecimal needs its `0x`: 10 is ten.
pub(super) fn pci_id(value: &OsStr) -> Result<u16, Reject> {
    // All zeroes and all ones are what an empty slot and a broken device read as.
    number(value, 1..=0xfffe).map_err(|_| Reject::new("must be 0x1 to 0xfffe, written with 0x"))
}

/// QEMU's words for a switch.
pub(super) fn switch(value: &OsStr) -> Result<bool, Reject> {
    match value.to_str() {
        Some("on" | "yes" | "true" | "y") => Ok(true),
        Some("off" | "no" | "false" | "n") => Ok(false),
        _ => Err(Reject::new("must be on or off")),
    }
}

/// Text of an Identify field: printable ASCII; a space at an end would be lost in the padding.
pub(super) fn identify_text(value: &OsStr, max: usize) -> Result<String, Reject> {
    value
        .to_str()
        .filter(|v| (1..=max).contains(&v.len()))
        .filter(|v| v.bytes().all(|b| (b' '..=b'~').contains(&b)) && v.trim() == *v)
        .map(str::to_owned)
        .ok_or_else(|| {
            Reject::new(format!("must be 1 to {max} printable ASCII characters with no space at either end"))
        })
}

/// `N` bytes as hexadecimal digits, most significant first; dashes and colons between them and a
/// leading `0x` are allowed.
pub(super) fn hex_bytes<const N: usize>(value: &OsStr) -> Option<[u8; N]> {
    let text = value.to_str()?;
    let text = text.strip_prefix("0x").unwrap_or(text);
    let digits = text
        .chars()
        .filter(|c| !matches!(c, '-' | ':'))
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<Vec<u8>>>()?;
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().fold(0, |acc, digit| acc << 4 | digit);
    }
    Some(bytes)
}

/// Largest size: what a file offset holds.
const SIZE_MAX: u64 = i64::MAX.unsigned_abs();

/// A size in bytes, 1 or more. `K M G T P E` and `KiB MiB ...` are powers of 1024, in either case, as
/// QEMU's are; `KB`, which some read as 1000, is refused. A fraction is taken if it comes out whole.
pub(super) fn size(value: &OsStr) -> Result<u64, Reject> {
    let refuse = |problem: &str| {
        Reject::with(problem, "write bytes or a number with K, M, G or T (powers of 1024), for example 1G")
    };
    let text = text(value)?;
    let unit_at = if text.starts_with("0x") {
        text.len()
    } else {
        text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len())
    };
    let (digits, unit) = text.split_at(unit_at);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        "p" | "pib" => 50,
        "e" | "eib" => 60,
        "kb" | "mb" | "gb" | "tb" | "pb" | "eb" => {
            return Err(refuse("is ambiguous between 1000 and 1024"));
        }
        _ => return Err(refuse("is not a size")),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if digits.ends_with('.') || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse("is not a size"));
    }
    let whole = u128::from(integer(whole).ok_or_else(|| refuse("is not a size"))?) << shift;
    let part = match fraction {
        "" => 0,
        _ => {
            let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(9));
            let scaled = u128::from(fraction.parse::<u64>().unwrap_or(0)) << shift;
            if !scaled.is_multiple_of(scale) {
                return Err(refuse("is not a whole number of bytes"));
            }
            scaled / scale
        }
    };
    match u64::try_from(whole + part) {
        Ok(0) => Err(refuse("must be more than nothing")),
        Ok(bytes) if bytes <= SIZE_MAX => Ok(bytes),
        _ => Err(refuse("is more than a file can hold (8E - 1)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn problem<T: std::fmt::Debug>(result: Result<T, Reject>) -> String {
        result.unwrap_err().problem
    }

    #[test]
    fn numbers() {
        let n = |v: &str| number::<u16>(v.as_ref(), 1..=2048);
        assert_eq!(n("1"), Ok(1));
        assert_eq!(n("0x7ff"), Ok(2047));
        for bad in ["0", "2049", "-1", "+1", "", "0x", "0x+1", "010", "1k", "99999999999999999999"] {
            assert_eq!(problem(n(bad)), "must be 1 to 2048", "{bad}");
        }
        assert_eq!(number::<u8>("0".as_ref(), 0..=255), Ok(0));
    }

    #[test]
    fn sizes() {
        let s = |v: &str| size(v.as_ref());
        for (given, bytes) in [
            ("4096", 4096),
            ("4096B", 4096),
            ("0x1000", 4096),
            ("4k", 4096),
            ("4K", 4096),
            ("4KiB", 4096),
            ("4kib", 4096),
            ("1M", 1 << 20),
            ("1GiB", 1 << 30),
            ("1.5G", 3 << 29),
            ("0.5K", 512),
            ("2T", 2 << 40),
            ("1P", 1 << 50),
            ("7E", 7 << 60),
            ("9223372036854775807", SIZE_MAX),
        ] {
            assert_eq!(s(given), Ok(bytes), "{given}");
        }
        for (given, why) in [
            ("", "is not a size"),
            ("G", "is not a size"),
            ("1.G", "is not a size"),
            (".5G", "is not a size"),
            ("1..5G", "is not a size"),
            ("1.+5G", "is not a size"),
            ("-1G", "is not a size"),
            ("1X", "is not a size"),
            ("1 G", "is not a size"),
            ("0x1G", "is not a size"),
            ("1GB", "is ambiguous between 1000 and 1024"),
            ("0", "must be more than nothing"),
            ("0.1K", "is not a whole number of bytes"),
            ("8E", "is more than a file can hold (8E - 1)"),
            ("18446744073709551615E", "is more than a file can hold (8E - 1)"),
        ] {
            assert_eq!(problem(s(given)), why, "{given}");
        }
        assert_eq!(
            s("1GB").unwrap_err().remedy.as_deref(),
            Some("write bytes or a number with K, M, G or T (powers of 1024), for example 1G")
        );
    }

    #[test]
    fn switches_and_ids() {
        assert_eq!(switch("on".as_ref()), Ok(true));
        assert_eq!(switch("no".as_ref()), Ok(false));
        assert_eq!(problem(switch("1".as_ref())), "must be on or off");
        assert_eq!(pci_id("0x1b36".as_ref()), Ok(0x1b36));
        assert_eq!(pci_id("10".as_ref()), Ok(10));
        for bad in ["", "0x", "0", "1b36", "0xffff", "65536"] {
            assert_eq!(problem(pci_id(bad.as_ref())), "must be 0x1 to 0xfffe, written with 0x");
        }
        assert_eq!(hex_bytes("0x0102:03-04".as_ref()), Some([1u8, 2, 3, 4]));
        assert_eq!(hex_bytes::<4>("010203".as_ref()), None);
        assert_eq!(hex_bytes::<2>("0g00".as_ref()), None);
    }

    #[test]
    fn identify_fields() {
        assert_eq!(identify_text("A b".as_ref(), 3), Ok("A b".into()));
        for bad in ["", "abcd", " a", "a ", "\u{e4}", "a\n"] {
            assert_eq!(
                problem(identify_text(bad.as_ref(), 3)),
                "must be 1 to 3 printable ASCII characters with no space at either end"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(v in ".{0,24}") {
            let v: &OsStr = v.as_ref();
            let _ = (size(v), number::<u8>(v, 0..=9), hex_bytes::<8>(v), pci_id(v), switch(v));
        }

        #[test]
        fn a_suffix_multiplies(n in 1u64..=4095, shift in 0usize..=4) {
            let unit = ["", "K", "M", "GiB", "T"][shift];
            prop_assert_eq!(size(format!("{n}{unit}").as_ref()), Ok(n << (10 * shift)));
        }
    }
}
