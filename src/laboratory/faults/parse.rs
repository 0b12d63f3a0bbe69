//! A line of words to a rule.

use super::draft::Draft;
use super::error::{Refused, RuleError};
use super::finish::finish;
use super::grammar::{WORDS, dword_index, find};
use super::pieces;
use super::rule::Rule;
use super::words::{Given, split};

impl Rule {
    /// Reads one line.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let mut draft = Draft::default();
        let mut seen: Vec<String> = Vec::new();
        for word in split(text)? {
            if seen.contains(&word.name) {
                return Err(RuleError::new(&word.text(), "is given twice", "keep one of them"));
            }
            set(&mut draft, &word)?;
            seen.push(word.name);
        }
        finish(draft, text)
    }
}

fn set(draft: &mut Draft, given: &Given) -> Result<(), RuleError> {
    let word = find(&given.name).ok_or_else(|| unknown(&given.name))?;
    let refuse = |Refused { problem, remedy }| {
        let remedy = remedy.unwrap_or_else(|| format!("for example {:?}", word.example));
        RuleError::new(&given.text(), problem, remedy)
    };
    match (&given.value, word.values) {
        (Some(_), "") => Err(refuse(Refused::with("takes no value", format!("write {} alone", word.name)))),
        (None, values) if !values.is_empty() => {
            Err(refuse(Refused::new(format!("needs a value ({values})"))))
        }
        (value, _) => {
            let value = value.as_deref().unwrap_or_default();
            match dword_index(&given.name) {
                Some(index) => pieces::dword(index, value).map(|dword| draft.dwords.push(dword)),
                None => (word.set)(draft, value),
            }
            .map_err(refuse)
        }
    }
}

fn unknown(given: &str) -> RuleError {
    let near = WORDS
        .iter()
        .map(|word| (strsim::damerau_levenshtein(word.name, given), word.name))
        .filter(|(slips, name)| *slips <= 1 + name.len() / 3)
        .min_by_key(|(slips, _)| *slips);
    let names = || WORDS.iter().map(|word| word.name).collect::<Vec<_>>().join(" ");
    let remedy = near
        .map_or_else(|| format!("the words are {}", names()), |(_, name)| format!("did you mean {name}?"));
    RuleError::new(given, "is no word of a rule", remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(rule: &str) -> String {
        Rule::parse(rule).unwrap_err().to_string()
    }

    #[test]
    fn every_example_is_a_rule_that_uses_its_word() {
        for word in WORDS {
            assert!(Rule::parse(word.example).is_ok(), "{}: {:?}", word.name, Rule::parse(word.example));
            let name = word.name.trim_end_matches('N');
            let uses = split(word.example).unwrap().iter().any(|given| given.name.starts_with(name));
            assert!(uses, "{}: {}", word.name, word.example);
            assert_eq!(WORDS.iter().filter(|other| other.name == word.name).count(), 1);
        }
    }

    #[test]
    fn a_wrong_word_is_told_with_the_right_one() {
        assert_eq!(error("op=read statsu=IOERR"), "statsu: is no word of a rule; did you mean status?");
        assert!(error("zzzzzzzzz").starts_with("zzzzzzzzz: is no word of a rule; the words are op queue"));
        assert_eq!(error("status=IOERR dnr=1"), "dnr=1: takes no value; write dnr alone");
        assert_eq!(
            error("op"),
            "op: needs a value (NAME|OPCODE, several with +); for example \"op=copy+write status=write-fault\""
        );
        assert_eq!(error("op=read op=write"), "op=write: is given twice; keep one of them");
        assert_eq!(error("cdw16=1 drop"), "cdw16: is no word of a rule; did you mean cdwN?");
        assert_eq!(
            error("queue=65536 drop"),
            "queue=65536: must be 0 to 65535; for example \"op=read queue=2 status=IOERR\""
        );
    }

    #[test]
    fn values() {
        for bad in [
            "cdw10=1/0 drop",
            "cdw10=0x100000000 drop",
            "status=write-fault partial=prefix",
            "status=write-fault partial=beyond:256",
            "xor=00",
            "xor=1",
            "percent=101 drop",
            "percent=nan drop",
            "count=--1 drop",
            "name=all drop",
            "name=a/b drop",
            "file= drop",
            "delay=5 op=read",
            "op=identify payload=1",
            "at=middle delay=1s",
            "irq=late",
        ] {
            assert!(Rule::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(pieces::percent("100"), Ok(u64::MAX));
        assert_eq!(pieces::percent("0"), Ok(0));
        assert_eq!(pieces::signed("-3"), Ok(-3));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(rule in "\\PC{0,60}") {
            let _ = Rule::parse(&rule);
        }

        #[test]
        fn any_words_are_answered(picked in prop::collection::vec((0..WORDS.len(), "[a-z0-9:+@/-]{0,8}"), 0..6)) {
            let words: Vec<_> =
                picked.iter().map(|(at, value)| format!("{}={value}", WORDS[*at].name)).collect();
            let _ = Rule::parse(&words.join(" "));
        }
    }
}
