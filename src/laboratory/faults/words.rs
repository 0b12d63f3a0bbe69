//! A rule's line to its words: `name` or `name=value`, with space or commas between, as block error injection
//! has them. A value in double quotes may contain both.

use super::error::RuleError;

/// Bytes of a rule at most.
pub const RULE_MAX: usize = 4096;

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    /// In lower case.
    pub name: String,
    /// What stands after `=`, without its quotes.
    pub value: Option<String>,
}

impl Given {
    /// The word as an error repeats it.
    pub fn text(&self) -> String {
        match &self.value {
            Some(value) => format!("{}={value}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Splits a rule. `add` in front, as the kernel's interface wants it, is taken and means nothing.
///
/// # Errors
/// A rule that is too long, a value whose quotes do not end, a `=` without a name.
pub(super) fn split(rule: &str) -> Result<Vec<Given>, RuleError> {
    if rule.len() > RULE_MAX {
        return Err(RuleError::new(
            rule,
            format!("has {} bytes, a rule at most {RULE_MAX}", rule.len()),
            "write it shorter",
        ));
    }
    let separates = |c: char| c == ',' || c.is_whitespace();
    let mut words = Vec::new();
    let mut rest = rule.trim_start_matches(separates);
    while !rest.is_empty() {
        let end = rest.find(|c| c == '=' || separates(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() {
            return Err(RuleError::new(
                rest,
                "has no name before =",
                "write name=value, without space around =",
            ));
        }
        let value = match after.strip_prefix('=') {
            None => {
                rest = after;
                None
            }
            Some(text) => {
                let (value, after) = take_value(text).ok_or_else(|| {
                    RuleError::new(rest, "has quotes that do not end", "close them: name=\"value\"")
                })?;
                rest = after;
                Some(value.to_owned())
            }
        };
        let first = words.is_empty() && name.eq_ignore_ascii_case("add") && value.is_none();
        if !first {
            words.push(Given { name: name.to_ascii_lowercase(), value });
        }
        rest = rest.trim_start_matches(separates);
    }
    Ok(words)
}

/// The value at the start of `text`, and what follows it.
fn take_value(text: &str) -> Option<(&str, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let (value, after) = quoted.split_once('"')?;
        return Some((value, after));
    }
    let end = text.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(text.len());
    Some(text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(rule: &str) -> Vec<(String, Option<String>)> {
        split(rule).unwrap().into_iter().map(|word| (word.name, word.value)).collect()
    }

    fn word(name: &str, value: Option<&str>) -> (String, Option<String>) {
        (name.into(), value.map(Into::into))
    }

    #[test]
    fn space_and_commas_separate() {
        let want = [word("op", Some("READ")), word("status", Some("IOERR")), word("dnr", None)];
        assert_eq!(words("add,op=READ,status=IOERR,dnr"), want);
        assert_eq!(words("  op=READ status=IOERR , DNR,"), want);
        assert_eq!(words(""), []);
        assert_eq!(words("a=b=c x="), [word("a", Some("b=c")), word("x", Some(""))]);
        assert_eq!(words("file=\"/tmp/a b,c\" drop"), [word("file", Some("/tmp/a b,c")), word("drop", None)]);
        assert_eq!(words("drop add"), [word("drop", None), word("add", None)], "only in front");
    }

    #[test]
    fn what_cannot_be_split_is_named() {
        let error = |rule: &str| split(rule).unwrap_err().to_string();
        assert_eq!(
            error("op =read"),
            "=read: has no name before =; write name=value, without space around ="
        );
        assert_eq!(
            error("file=\"/tmp"),
            "file=\"/tmp: has quotes that do not end; close them: name=\"value\""
        );
        assert!(error(&"x".repeat(RULE_MAX + 1)).contains("has 4097 bytes, a rule at most 4096"));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(rule in "\\PC{0,80}") {
            let _ = split(&rule);
        }
    }
}
