//! What is wrong with a rule, for the person who typed it: one line with word, value and remedy.

/// A rule that cannot be. Whoever shows it says first where the rule was given (`--fault`, `fault add`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word}: {problem}; {remedy}")]
pub struct RuleError {
    /// The word as given, with its value, made printable.
    word: String,
    /// What is wrong with it.
    problem: String,
    /// What to do.
    remedy: String,
}

/// Longest echo of a word, in characters.
const ECHO_MAX: usize = 120;

impl RuleError {
    /// The word, what is wrong with it, and what to do.
    pub fn parts(&self) -> (&str, &str, &str) {
        (&self.word, &self.problem, &self.remedy)
    }

    /// About one word, or what stands for the whole rule.
    pub(super) fn new(word: &str, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { word: printable(word), problem: problem.into(), remedy: remedy.into() }
    }
}

/// A given text as an error repeats it: one line, no control characters, not endless, never empty.
fn printable(text: &str) -> String {
    if text.is_empty() {
        return "(empty)".into();
    }
    let mut out = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == ECHO_MAX {
            out.push_str("...");
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// What is wrong with a value, before it is known whose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// What is wrong.
    pub problem: String,
    /// What to do; `None`: write the word's example.
    pub remedy: Option<String>,
}

impl Refused {
    /// With the usual remedy.
    pub fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: None }
    }

    /// With a remedy of its own.
    pub fn with(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: Some(remedy.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_short_line() {
        let error = RuleError::new("file=a\nb", "is bad", "be good");
        assert_eq!(error.to_string(), "file=a\\nb: is bad; be good");
        assert_eq!(RuleError::new("", "is no rule", "x").to_string(), "(empty): is no rule; x");
        let long = RuleError::new(&"x".repeat(500), "p", "r").to_string();
        assert_eq!(long, format!("{}...: p; r", "x".repeat(ECHO_MAX)));
    }
}
