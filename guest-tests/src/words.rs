//! Sizes and times as people type them.

use std::time::Duration;

/// Bytes: a number, with K, M, G or T behind it for the powers of 1024.
///
/// # Errors
/// Text for a human.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("not a size: {text} (say 512M or 1G)")),
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("not a size: {text} (say 512M or 1G)"))
}

/// Guest memory in MiB: a size, or a plain number of MiB.
///
/// # Errors
/// Text for a human.
pub fn memory(text: &str) -> Result<u32, String> {
    let mib = match text.parse::<u64>() {
        Ok(plain) => plain,
        Err(_) => size(text)? >> 20,
    };
    let fits = (128..=1 << 20).contains(&mib);
    fits.then_some(mib as u32).ok_or_else(|| format!("{text}: a guest takes 128M to 1T"))
}

/// A time: a number of seconds, with s, m or h behind it.
///
/// # Errors
/// Text for a human.
pub fn time(text: &str) -> Result<Duration, String> {
    let fault = || format!("not a time: {text} (say 90, 90s, 5m or 1h)");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(fault()),
    };
    let number: f64 = digits.parse().map_err(|_| fault())?;
    let time = Duration::try_from_secs_f64(number * unit).map_err(|_| fault())?;
    if time.is_zero() || time > Duration::from_secs(365 * 24 * 3600) { Err(fault()) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_do_not_overflow() {
        assert_eq!(size("3M"), Ok(3 << 20));
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("1g"), Ok(1 << 30));
        for wrong in ["3X", "", "M", "1.5G", "-1", "99999999999T"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_plain_number_of_memory_is_mebibytes() {
        assert_eq!(memory("1024"), Ok(1024));
        assert_eq!(memory("1G"), Ok(1024));
        assert_eq!(memory("1536M"), Ok(1536));
        for wrong in ["1", "1K", "2T", "much"] {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(time("90"), Ok(Duration::from_secs(90)));
        assert_eq!(time("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(time("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "0", "-1", "1d", "s", "inf", "nan", "1e30"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
