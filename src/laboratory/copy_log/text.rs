//! How values are written in a copy log that JSON has no type for.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::copy::By;
use crate::namespace::{Method, Overlap};

/// Is it what an absent field means?
pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A time: RFC 3339 in UTC, to the microsecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(
    /// Microseconds since 1970.
    pub u64,
);

/// The last moment that can be written: the end of the year 9999.
const LAST: u64 = 253_402_300_799_999_999;

impl Stamp {
    /// This moment.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_micros()).unwrap_or(LAST).min(LAST))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(self.0.min(LAST));
        humantime::format_rfc3339_micros(time).fmt(f)
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339(&text).map_err(de::Error::custom)?;
        let since = time.duration_since(SystemTime::UNIX_EPOCH).map_err(de::Error::custom)?;
        Ok(Self(u64::try_from(since.as_micros()).map_err(de::Error::custom)?))
    }
}

/// A number that JSON readers may not have room for: hexadecimal, after `0x`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hex(
    /// The number.
    pub u128,
);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
        let number = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
        number.map(Self).ok_or_else(|| de::Error::custom(format!("{text} is no number as 0x1f")))
    }
}

/// What has a word for programs.
pub trait Named: Sized + Copy {
    /// The one of this word.
    fn named(word: &str) -> Option<Self>;
    /// Its word.
    fn name(self) -> &'static str;
}

impl Named for Method {
    fn named(word: &str) -> Option<Self> {
        Self::of(word)
    }

    fn name(self) -> &'static str {
        self.word()
    }
}

impl Named for Overlap {
    fn named(word: &str) -> Option<Self> {
        Self::of(word)
    }

    fn name(self) -> &'static str {
        self.word()
    }
}

impl Named for By {
    fn named(word: &str) -> Option<Self> {
        Self::of_word(word)
    }

    fn name(self) -> &'static str {
        self.word()
    }
}

/// One of a few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Word<T>(
    /// What it stands for.
    pub T,
);

impl<T: Named> Word<T> {
    /// The word.
    pub fn text(self) -> &'static str {
        self.0.name()
    }
}

impl<T: Named> Serialize for Word<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}

impl<'de, T: Named> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::named(&text)
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!("{text} is none of the words for it")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back<T>(value: T, text: &str)
    where
        T: Serialize + for<'de> Deserialize<'de> + PartialEq + fmt::Debug,
    {
        assert_eq!(serde_json::to_string(&value).unwrap(), text);
        assert_eq!(serde_json::from_str::<T>(text).unwrap(), value);
    }

    #[test]
    fn what_is_written_is_read() {
        there_and_back(Stamp(1_796_033_000_123_456), "\"2026-11-30T10:03:20.123456Z\"");
        there_and_back(Stamp(LAST), "\"9999-12-31T23:59:59.999999Z\"");
        there_and_back(Hex(u128::MAX), "\"0xffffffffffffffffffffffffffffffff\"");
        there_and_back(Hex(0), "\"0x0\"");
        there_and_back(Word(Overlap::InOrder), "\"in-order\"");
        there_and_back(Word(By::ReadWrite), "\"read-write\"");
        assert!(By::ALL.into_iter().all(|by| By::of_word(by.word()) == Some(by)));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["12", "\"yesterday\"", "\"1969-12-31T23:59:59Z\"", "\"\""] {
            assert!(serde_json::from_str::<Stamp>(text).is_err(), "{text}");
        }
        for text in ["12", "\"12\"", "\"0x\"", "\"0x+1\"", "\"0x100000000000000000000000000000000\""] {
            assert!(serde_json::from_str::<Hex>(text).is_err(), "{text}");
        }
        let error = serde_json::from_str::<Word<Method>>("\"magic\"").unwrap_err().to_string();
        assert!(error.starts_with("magic is none of the words for it"), "{error}");
    }
}
