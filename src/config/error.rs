//! What is wrong with the set-up, for the person who typed it: one line with option, value and remedy.

use crate::laboratory::faults::RuleError;

/// A set-up error. Its text is always one line; the exit code is 2 ([`ConfigError::EXIT_CODE`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No property has this name.
    #[error("{option} {property}: unknown property{}; valid: {valid}", nearest.map(|n| format!(", did you mean {n}?")).unwrap_or_default())]
    UnknownProperty {
        /// `--nvme` or `--nvme-ns`.
        option: &'static str,
        /// The name as given.
        property: String,
        /// The valid name that is spelled most alike, if any is near.
        nearest: Option<&'static str>,
        /// All valid names.
        valid: String,
    },
    /// QEMU has the property, this device does not.
    #[error("{option} {property}: {whose}, not one of this device; {remedy}")]
    NotOurs {
        /// `--nvme` or `--nvme-ns`.
        option: &'static str,
        /// The name as given.
        property: String,
        /// Of which option of QEMU's it is.
        whose: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A name without `=value`.
    #[error("{option} {property}: has no value; write {property}={example}")]
    NoValue {
        /// `--nvme` or `--nvme-ns`.
        option: &'static str,
        /// The property.
        property: &'static str,
        /// A value that works.
        example: &'static str,
    },
    /// `=value` or a lone comma where a name is due.
    #[error("{option} {text}: has no property name; write name=value, and a comma inside a value twice")]
    NoName {
        /// `--nvme` or `--nvme-ns`.
        option: &'static str,
        /// The item as given.
        text: String,
    },
    /// The same name twice in one list. QEMU takes the last; a mistake is likelier than that wish.
    #[error("{option} {property}={value}: given a second time in one list; keep one of them")]
    Repeated {
        /// `--nvme` or `--nvme-ns`.
        option: &'static str,
        /// The property.
        property: &'static str,
        /// The second value.
        value: String,
    },
    /// A property that has no default is not there.
    #[error("{option} {property}: missing; add {property}={example}")]
    Missing {
        /// `--nvme-ns`.
        option: &'static str,
        /// The property.
        property: &'static str,
        /// A value that works.
        example: &'static str,
    },
    /// A value that cannot be used.
    #[error("{option} {property}={value}: {problem}; {remedy}")]
    BadValue {
        /// `--nvme` or `--nvme-ns`.
        option: &'static str,
        /// The property.
        property: &'static str,
        /// The value as given, made printable.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// An option whose whole value cannot be used.
    #[error("{option} {value}: {problem}; {remedy}")]
    BadOption {
        /// For example `--socket`.
        option: &'static str,
        /// The value as given, made printable.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// Something that shows only when it is used: a missing image, a socket in use. The text names it, what is wrong
    /// and what to do.
    #[error("{prefix}{text}")]
    Unusable {
        /// The option, and what joins it to the text.
        prefix: &'static str,
        /// From the room that tried to use it.
        text: String,
    },
    /// Namespace ids are all taken, or more namespaces than ids.
    #[error("--nvme-ns: {given} namespaces, at most {max} are possible; leave some out")]
    TooManyNamespaces {
        /// How often the option was given.
        given: usize,
        /// The limit.
        max: u32,
    },
}

impl ConfigError {
    /// Process exit code of every set-up error.
    pub const EXIT_CODE: u8 = 2;

    /// Process exit code for what ended a run. A mistake in the set-up that shows only when it is used (a missing image,
    /// a socket in use) ends as one in the arguments does; all else is 1.
    pub fn exit_code_of(error: &anyhow::Error) -> u8 {
        if error.chain().any(|cause| cause.is::<Self>()) { Self::EXIT_CODE } else { 1 }
    }

    /// A value of a property list that turned out unusable when it was used (a missing image, say).
    pub fn bad_value(
        option: &'static str,
        property: &'static str,
        value: impl AsRef<std::ffi::OsStr>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::BadValue {
            option,
            property,
            value: printable(value.as_ref()),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// A fault rule that cannot be.
    pub fn bad_rule(error: &RuleError) -> Self {
        let (word, problem, remedy) = error.parts();
        Self::bad_option("--fault", word, problem, remedy)
    }

    /// A value of a plain option that turned out unusable when it was used (a socket in use, say).
    pub fn bad_option(
        option: &'static str,
        value: impl AsRef<std::ffi::OsStr>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::BadOption {
            option,
            value: printable(value.as_ref()),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

/// Longest echo of a value, in characters; the message has to stay a readable line.
const ECHO_MAX: usize = 120;

/// A given text as an error repeats it: one line, no control characters, not endless, never empty.
pub(super) fn printable(text: &std::ffi::OsStr) -> String {
    let text = text.to_string_lossy();
    if text.is_empty() {
        return "(empty)".into();
    }
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == ECHO_MAX {
            out.push_str("...");
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message() {
        let unknown = |nearest| ConfigError::UnknownProperty {
            option: "--nvme",
            property: "mtds".into(),
            nearest,
            valid: "serial, mdts".into(),
        };
        assert_eq!(
            unknown(Some("mdts")).to_string(),
            "--nvme mtds: unknown property, did you mean mdts?; valid: serial, mdts"
        );
        assert_eq!(unknown(None).to_string(), "--nvme mtds: unknown property; valid: serial, mdts");
        assert_eq!(
            ConfigError::NotOurs {
                option: "--nvme",
                property: "addr".into(),
                whose: "QEMU's property",
                remedy: "leave it out"
            }
            .to_string(),
            "--nvme addr: QEMU's property, not one of this device; leave it out"
        );
        assert_eq!(
            ConfigError::NoValue { option: "--nvme-ns", property: "readonly", example: "on" }.to_string(),
            "--nvme-ns readonly: has no value; write readonly=on"
        );
        assert_eq!(
            ConfigError::NoName { option: "--nvme", text: "=3".into() }.to_string(),
            "--nvme =3: has no property name; write name=value, and a comma inside a value twice"
        );
        assert_eq!(
            ConfigError::Repeated { option: "--nvme", property: "mdts", value: "8".into() }.to_string(),
            "--nvme mdts=8: given a second time in one list; keep one of them"
        );
        assert_eq!(
            ConfigError::Missing { option: "--nvme-ns", property: "drive", example: "disk.img" }.to_string(),
            "--nvme-ns drive: missing; add drive=disk.img"
        );
        assert_eq!(
            ConfigError::bad_value("--nvme-ns", "drive", "/a/b", "no such file", "add size=1G").to_string(),
            "--nvme-ns drive=/a/b: no such file; add size=1G"
        );
        assert_eq!(
            ConfigError::bad_option("--socket", "/run/s", "in use", "choose another").to_string(),
            "--socket /run/s: in use; choose another"
        );
        assert_eq!(
            ConfigError::TooManyNamespaces { given: 300, max: 256 }.to_string(),
            "--nvme-ns: 300 namespaces, at most 256 are possible; leave some out"
        );
    }

    #[test]
    fn a_rule_is_told_of_as_an_option_is() {
        let error = crate::laboratory::faults::Rule::parse("op=read statsu=IOERR").unwrap_err();
        assert_eq!(
            ConfigError::bad_rule(&error).to_string(),
            "--fault statsu: is no word of a rule; did you mean status?"
        );
    }

    #[test]
    fn an_echo_stays_one_short_line() {
        assert_eq!(printable("a\nb\u{1b}".as_ref()), "a\\nb\\u{1b}");
        assert_eq!(printable("".as_ref()), "(empty)");
        let long = "x".repeat(500);
        assert_eq!(printable(long.as_ref()), format!("{}...", "x".repeat(ECHO_MAX)));
    }
}
