//! Ranges and places as they are written on the command line.

use std::str::FromStr;

/// `[SNSID:]SLBA+NLB[,fast]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeArg {
    pub(super) snsid: Option<u32>,
    pub(super) slba: u64,
    /// 1 to 65536.
    pub(super) nlb: u32,
    pub(super) fast: bool,
}

/// `[NSID:]SDLBA`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceArg {
    pub(super) nsid: Option<u32>,
    pub(super) lba: u64,
}

impl FromStr for RangeArg {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let (range, fast) = match given.split_once(',') {
            None => (given, false),
            Some((range, "fast")) => (range, true),
            Some(_) => return Err("after a comma may come fast".into()),
        };
        let (place, nlb) = range.split_once('+').ok_or("must be SLBA+NLB, for example 0+8")?;
        let PlaceArg { nsid: snsid, lba: slba } = place.parse()?;
        let nlb = number(nlb)?;
        let nlb = u32::try_from(nlb).ok().filter(|nlb| (1..=65536).contains(nlb));
        Ok(Self { snsid, slba, nlb: nlb.ok_or("a range has 1 to 65536 blocks")?, fast })
    }
}

impl FromStr for PlaceArg {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let (nsid, lba) = match given.split_once(':') {
            None => (None, given),
            Some((nsid, lba)) => {
                let nsid = number(nsid)?;
                (Some(u32::try_from(nsid).map_err(|_| "a namespace id has 32 bits")?), lba)
            }
        };
        Ok(Self { nsid, lba: number(lba)? })
    }
}

/// Decimal, or hexadecimal after 0x.
fn number(given: &str) -> Result<u64, String> {
    let (digits, radix) = given.strip_prefix("0x").map_or((given, 10), |digits| (digits, 16));
    let parsed = if digits.starts_with('+') { None } else { u64::from_str_radix(digits, radix).ok() };
    parsed.ok_or_else(|| format!("{given:?} is no number of 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(given: &str) -> Result<RangeArg, String> {
        given.parse()
    }

    #[test]
    fn ranges_are_read() {
        let plain = RangeArg { snsid: None, slba: 0, nlb: 8, fast: false };
        assert_eq!(range("0+8"), Ok(plain));
        assert_eq!(range("0x10+65536"), Ok(RangeArg { slba: 16, nlb: 65536, ..plain }));
        assert_eq!(range("3:0+8,fast"), Ok(RangeArg { snsid: Some(3), fast: true, ..plain }));
        assert_eq!("18446744073709551615".parse(), Ok(PlaceArg { nsid: None, lba: u64::MAX }));
        assert_eq!("4294967295:0xff".parse(), Ok(PlaceArg { nsid: Some(u32::MAX), lba: 255 }));
    }

    #[test]
    fn what_is_none_is_refused() {
        for given in [
            "",
            "8",
            "+8",
            "0+",
            "0+0",
            "0+65537",
            "0+8,slow",
            "0+8,",
            "-1+8",
            "0++8",
            "x:0+8",
            "4294967296:0+8",
        ] {
            assert!(range(given).is_err(), "{given}");
        }
        assert!("18446744073709551616".parse::<PlaceArg>().is_err());
    }
}
