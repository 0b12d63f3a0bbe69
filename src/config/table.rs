//! A property table drives three things, so that they cannot drift: the parser, its errors, and `--help`.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use super::error::{ConfigError, printable};
use super::list;
use super::value::{self, Reject};

/// What holds when a property is left out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Default {
    /// This value; a test parses it and compares with the code's default.
    Value(&'static str),
    /// Made from other settings, as described.
    Derived(&'static str),
    /// Must be given.
    Required,
}

/// One property of a draft `T`.
#[derive(Debug)]
pub(super) struct Property<T> {
    /// QEMU's name where QEMU has the property.
    pub(super) name: &'static str,
    /// Which values there are, for help.
    pub(super) values: &'static str,
    /// When left out.
    pub(super) default: Default,
    /// A value that works and is not the default.
    pub(super) example: &'static str,
    /// What it means.
    pub(super) help: &'static str,
    /// Checks and stores.
    pub(super) set: fn(&mut T, &OsStr) -> Result<(), Reject>,
}

impl<T> Property<T> {
    /// `problem` with a value of this property, as an error of `option`.
    pub(super) fn refuse(&self, option: &'static str, value: &OsStr, reject: Reject) -> ConfigError {
        let remedy = reject.remedy.unwrap_or_else(|| match self.default {
            Default::Value(v) => format!("leave it out for {v}"),
            Default::Derived(v) => format!("leave it out for {v}"),
            Default::Required => format!("for example {}={}", self.name, self.example),
        });
        ConfigError::bad_value(option, self.name, value, reject.problem, remedy)
    }
}

/// A property of QEMU's that this device does not have.
#[derive(Debug)]
pub(super) struct NotOurs {
    pub(super) name: &'static str,
    /// Of which option of QEMU's it is.
    pub(super) whose: &'static str,
    /// What this device does anyway: accepted, so that a QEMU command line can be moved over.
    pub(super) neutral: Option<&'static str>,
    /// What to do instead of any other value.
    pub(super) remedy: &'static str,
}

impl NotOurs {
    pub(super) const fn property(name: &'static str, remedy: &'static str) -> Self {
        NotOurs { name, whose: "QEMU's property", neutral: None, remedy }
    }

    pub(super) const fn neutral(name: &'static str, neutral: &'static str, remedy: &'static str) -> Self {
        NotOurs { neutral: Some(neutral), ..Self::property(name, remedy) }
    }

    /// A word of the option that describes images to QEMU.
    pub(super) const fn drive(
        name: &'static str,
        neutral: Option<&'static str>,
        remedy: &'static str,
    ) -> Self {
        NotOurs { name, whose: "a word of QEMU's -drive", neutral, remedy }
    }

    /// Is it what this device does anyway, however it is spelled?
    fn is_neutral(&self, given: Option<&OsStr>) -> bool {
        let (Some(given), Some(neutral)) = (given, self.neutral) else { return false };
        let neutral = OsStr::new(neutral);
        let number = |text| value::number(text, 0..=u64::MAX).ok();
        let same = |one: Option<u64>, other| one.is_some() && one == other;
        given == neutral
            || same(number(given), number(neutral))
            || same(value::switch(given).ok().map(u64::from), value::switch(neutral).ok().map(u64::from))
    }
}

/// All properties of one option.
#[derive(Debug)]
pub(super) struct Table<T: 'static> {
    /// `--nvme` or `--nvme-ns`.
    pub(super) option: &'static str,
    /// The properties, in the order of help.
    pub(super) properties: &'static [Property<T>],
    /// QEMU's properties that this device does not have.
    pub(super) not_ours: &'static [NotOurs],
}

impl<T> Table<T> {
    /// Applies a list to `draft`. The first fault wins.
    pub(super) fn apply(&self, draft: &mut T, given: &OsStr) -> Result<(), ConfigError> {
        let mut seen: Vec<&'static str> = Vec::new();
        for list::Item { name, value } in list::split(given.as_bytes()) {
            if let Some(not_ours) = self.not_ours.iter().find(|n| name == n.name) {
                if not_ours.is_neutral(value.as_deref()) {
                    continue;
                }
                return Err(ConfigError::NotOurs {
                    option: self.option,
                    property: printable(&name),
                    whose: not_ours.whose,
                    remedy: not_ours.remedy,
                });
            }
            let property = self.find(&name, value.as_deref())?;
            let value = value.ok_or(ConfigError::NoValue {
                option: self.option,
                property: property.name,
                example: property.example,
            })?;
            if seen.contains(&property.name) {
                return Err(ConfigError::Repeated {
                    option: self.option,
                    property: property.name,
                    value: printable(&value),
                });
            }
            seen.push(property.name);
            (property.set)(draft, &value).map_err(|reject| property.refuse(self.option, &value, reject))?;
        }
        Ok(())
    }

    fn find(&self, name: &OsString, value: Option<&OsStr>) -> Result<&'static Property<T>, ConfigError> {
        let option = self.option;
        if name.is_empty() {
            let text = match value {
                Some(value) => format!("={}", printable(value)),
                None => ",".into(),
            };
            return Err(ConfigError::NoName { option, text });
        }
        if let Some(property) = self.properties.iter().find(|p| p.name == name) {
            return Ok(property);
        }
        let property = printable(name);
        Err(ConfigError::UnknownProperty {
            option,
            nearest: self.nearest(&property),
            property,
            valid: self.properties.iter().map(|p| p.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// The name spelled most alike: at most one slip in three characters, and one more.
    fn nearest(&self, given: &str) -> Option<&'static str> {
        let plain = |s: &str| s.to_ascii_lowercase().replace('-', "_");
        let given = plain(given);
        self.properties
            .iter()
            .map(|p| {
                let slips = strsim::damerau_levenshtein(&plain(p.name), &given);
                (slips, p.name)
            })
            .filter(|(slips, name)| *slips <= 1 + name.len() / 3)
            .min_by_key(|(slips, _)| *slips)
            .map(|(_, name)| name)
    }

    /// The property of this name, for errors found after parsing.
    pub(super) fn get(&self, name: &str) -> Option<&'static Property<T>> {
        self.properties.iter().find(|p| p.name == name)
    }

    /// An error about `property` found after parsing. `value` as shown to the user.
    pub(super) fn refuse(
        &self,
        property: &'static str,
        value: impl AsRef<OsStr>,
        reject: Reject,
    ) -> ConfigError {
        let (option, value) = (self.option, value.as_ref());
        match self.get(property) {
            Some(p) => p.refuse(option, value, reject),
            None => ConfigError::bad_value(
                option,
                property,
                value,
                reject.problem,
                reject.remedy.unwrap_or_default(),
            ),
        }
    }

    /// Every property with values, default and meaning.
    pub(super) fn help(&self) -> String {
        let mut out = format!("Properties of {}:\n", self.option);
        for p in self.properties {
            let default = match p.default {
                Default::Value(v) => format!("[default: {v}]"),
                Default::Derived(v) => format!("[default: {v}]"),
                Default::Required => "[required]".into(),
            };
            let _ = writeln!(out, "  {}={}  {default}\n        {}", p.name, p.values, p.help);
        }
        out
    }
}

#[cfg(test)]
impl<T: std::fmt::Debug + PartialEq> Table<T> {
    /// Holds the table against the code: names are unique, an example is taken and changes something,
    /// and a literal default set over it gives what `fresh` gives.
    pub(super) fn check(&self, fresh: impl Fn() -> T) {
        for (i, p) in self.properties.iter().enumerate() {
            assert!(!self.properties[..i].iter().any(|q| q.name == p.name), "{} twice", p.name);
            assert!(!self.not_ours.iter().any(|n| n.name == p.name), "{} is ours", p.name);
            let mut draft = fresh();
            (p.set)(&mut draft, p.example.as_ref()).unwrap();
            assert_ne!(draft, fresh(), "{}: the example changes nothing", p.name);
            if let Default::Value(value) = p.default {
                (p.set)(&mut draft, value.as_ref()).unwrap();
                assert_eq!(draft, fresh(), "{}: help and code differ", p.name);
            }
            assert!(p.help.len() <= 100, "{}: help too long", p.name);
        }
    }
}
