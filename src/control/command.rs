//! What a command is: its name, its arguments, and the function that carries it out.

use serde_json::{Map, Number, Value};

use super::context::Context;
use super::out::Out;
use super::wire::{Refusal, Request};
use crate::config::parse_size;

/// One row of the table of commands.
#[derive(Debug)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Its arguments. Those with [`Arg::positional`] may be given without their names, in this order.
    pub args: &'static [Arg],
    /// Carries it out, in the client's own thread: it may wait. What comes back is the answer; what was changed before a
    /// refusal, the refusal says.
    pub run: fn(&Context, &Request, &mut Out<'_>) -> Result<Value, Refusal>,
}

/// One argument.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// Its name.
    pub name: &'static str,
    /// Which values it takes.
    pub kind: Kind,
    /// What it means, in one line.
    pub about: &'static str,
    /// It must be there.
    pub required: bool,
    /// `ctl` takes it without its name.
    pub positional: bool,
    /// `ctl` takes all words from there on for it.
    pub rest: bool,
}

/// Which values an argument takes, and what they are when its command sees them.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number in this range, also as a text, and hexadecimal with 0x.
    Number(u64, u64),
    /// Bytes: a number, or a text such as 4G (powers of 1024). A number.
    Size,
    /// true or false, also as the texts on and off.
    Switch,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A text; what it has to be like.
    Text(&'static str),
}

impl Kind {
    /// For people: which values there are.
    pub fn expected(&self) -> String {
        match self {
            Self::Number(min, max) => format!("{min}..{max}"),
            Self::Size => "bytes, or a size such as 4G".into(),
            Self::Switch => "on|off".into(),
            Self::Word(words) => words.join("|"),
            Self::Text(like) => (*like).into(),
        }
    }

    /// `given` as the command sees it, if it is one of these values.
    fn take(&self, given: &Value) -> Option<Value> {
        match (self, given) {
            (Self::Number(min, max), given) => {
                let number = match given {
                    Value::Number(number) => number.as_u64()?,
                    Value::String(text) => integer(text)?,
                    _ => return None,
                };
                (*min..=*max).contains(&number).then(|| Number::from(number).into())
            }
            (Self::Size, Value::Number(number)) => number.as_u64().map(Value::from),
            (Self::Size, Value::String(text)) => parse_size(text).ok().map(Value::from),
            (Self::Switch, Value::Bool(on)) => Some((*on).into()),
            (Self::Switch, Value::String(text)) => match text.as_str() {
                "on" => Some(true.into()),
                "off" => Some(false.into()),
                _ => None,
            },
            (Self::Word(words), Value::String(text)) => {
                words.contains(&text.as_str()).then(|| text.as_str().into())
            }
            (Self::Text(_), Value::String(text)) => Some(text.as_str().into()),
            _ => None,
        }
    }
}

/// Decimal, or hexadecimal with 0x.
fn integer(text: &str) -> Option<u64> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |hex| (hex, 16));
    // from_str_radix would take a sign.
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

impl Arg {
    /// An argument that may be left out.
    pub const fn new(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self { name, kind, about, required: false, positional: false, rest: false }
    }

    /// The same, to be there.
    pub const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// The same, also without its name.
    pub const fn positional(self) -> Self {
        Self { positional: true, ..self }
    }

    /// The same, without its name, and with all words that follow.
    pub const fn rest(self) -> Self {
        Self { positional: true, rest: true, ..self }
    }
}

impl Command {
    /// The argument of this name.
    ///
    /// # Errors
    /// There is none; those that there are.
    pub fn arg(&self, name: &str) -> Result<&Arg, Refusal> {
        self.args.iter().find(|arg| arg.name == name).ok_or_else(|| {
            let names: Vec<_> = self.args.iter().map(|arg| arg.name).collect();
            let expected = if names.is_empty() { "no argument".into() } else { names.join(", ") };
            Refusal::new(format!("{} has no argument {}", self.name, shown(&name.into())), expected)
        })
    }

    /// `args` as the command sees them: each one known, of its kind, and none missing.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self, args: &Map<String, Value>) -> Result<Map<String, Value>, Refusal> {
        let mut taken = Map::new();
        for (name, given) in args {
            let arg = self.arg(name)?;
            let value = arg.kind.take(given).ok_or_else(|| {
                let text = format!("{} cannot be {}", arg.name, shown(given));
                Refusal::new(text, format!("{}: {}", arg.name, arg.kind.expected()))
            })?;
            taken.insert(name.clone(), value);
        }
        let missing = self.args.iter().find(|arg| arg.required && !args.contains_key(arg.name));
        match missing {
            Some(Arg { name, kind, about, .. }) => Err(Refusal::new(
                format!("{} needs {name}", self.name),
                format!("{name}: {} ({about})", kind.expected()),
            )),
            None => Ok(taken),
        }
    }
}

/// Longest echo of a value, in characters.
const ECHO_MAX: usize = 120;

/// A value as an error repeats it: not endless.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(ECHO_MAX) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const COMMAND: Command = Command {
        name: "try",
        about: "",
        args: &[
            Arg::new("n", Kind::Number(1, 10), "how many").required(),
            Arg::new("size", Kind::Size, ""),
            Arg::new("on", Kind::Switch, ""),
            Arg::new("way", Kind::Word(&["left", "right"]), ""),
            Arg::new("name", Kind::Text("a name"), ""),
        ],
        run: |_, _, _| Ok(Value::Null),
    };

    fn check(args: Value) -> Result<Value, (String, String)> {
        let Value::Object(args) = args else { panic!("{args} is no object") };
        COMMAND.check(&args).map(Value::Object).map_err(|refusal| (refusal.text, refusal.expected))
    }

    #[test]
    fn values_are_brought_into_one_form() {
        for (given, taken) in [
            (json!({ "n": 1 }), json!({ "n": 1 })),
            (json!({ "n": "0xa" }), json!({ "n": 10 })),
            (json!({ "n": "7", "size": "4K", "on": "off" }), json!({ "n": 7, "size": 4096, "on": false })),
            (json!({ "n": 2, "size": 5, "on": true }), json!({ "n": 2, "size": 5, "on": true })),
            (json!({ "n": 2, "way": "left", "name": "12" }), json!({ "n": 2, "way": "left", "name": "12" })),
        ] {
            assert_eq!(check(given), Ok(taken));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_right() {
        let long = "x".repeat(1000);
        for (given, text, expected) in [
            (json!({}), "try needs n", "n: 1..10 (how many)"),
            (json!({ "n": 11 }), "n cannot be 11", "n: 1..10"),
            (json!({ "n": -1 }), "n cannot be -1", "n: 1..10"),
            (json!({ "n": "+1" }), "n cannot be \"+1\"", "n: 1..10"),
            (json!({ "n": 1.5 }), "n cannot be 1.5", "n: 1..10"),
            (json!({ "n": null }), "n cannot be null", "n: 1..10"),
            (json!({ "n": 1, "on": 1 }), "on cannot be 1", "on: on|off"),
            (json!({ "n": 1, "way": "up" }), "way cannot be \"up\"", "way: left|right"),
            (json!({ "n": 1, "name": 3 }), "name cannot be 3", "name: a name"),
            (json!({ "n": 1, "size": "4X" }), "size cannot be \"4X\"", "size: bytes, or a size such as 4G"),
            (json!({ "n": 1, "m": 2 }), "try has no argument \"m\"", "n, size, on, way, name"),
        ] {
            assert_eq!(check(given), Err((text.into(), expected.into())));
        }
        let (text, _) = check(json!({ "n": long })).unwrap_err();
        assert!(text.len() < 150 && text.ends_with("..."), "{text}");
    }
}
