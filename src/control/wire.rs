//! The lines that are exchanged: one JSON object each, of bounded length.

use std::io::{self, BufRead, Read as _};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Version of the schema in docs/control.md: it grows when something that was there means something else, or
/// goes.
pub const SCHEMA: u32 = 1;

/// Bytes of a line, its end included.
pub const LINE_MAX: usize = 64 << 10;

/// The first line that a client gets.
pub fn hello() -> Value {
    json!({ "vfio-user-nvme": env!("CARGO_PKG_VERSION"), "schema": SCHEMA })
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// What is wrong, naming argument and value.
    pub text: String,
    /// What would have been right.
    pub expected: String,
}

impl Refusal {
    /// Both, in words.
    pub fn new(text: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { text: text.into(), expected: expected.into() }
    }
}

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Chosen by the client, and given back with every line of the answer: a number, a text, or nothing.
    pub id: Value,
    /// Which command.
    pub command: String,
    /// Its arguments.
    pub args: Map<String, Value>,
}

/// What a request has to be like.
const SHAPE: &str = r#"one JSON object a line, such as {"id":1,"command":"status"}"#;

impl Request {
    /// Reads a line. Also the id, if it can be told, of one that is refused.
    ///
    /// # Errors
    /// It is no request.
    pub fn parse(line: &[u8]) -> Result<Self, (Value, Refusal)> {
        let parsed = serde_json::from_slice(line).map_err(|error| {
            (Value::Null, Refusal::new(format!("this is no JSON object: {error}"), SHAPE))
        })?;
        let Value::Object(mut args) = parsed else {
            return Err((Value::Null, Refusal::new("this is JSON, but no object", SHAPE)));
        };
        let id = args.remove("id").unwrap_or_default();
        if !matches!(id, Value::Null | Value::Number(_) | Value::String(_)) {
            return Err((Value::Null, Refusal::new("id is neither a number nor a text", SHAPE)));
        }
        match args.remove("command") {
            Some(Value::String(command)) => Ok(Self { id, command, args }),
            Some(_) => Err((id, Refusal::new("command is no text", SHAPE))),
            None => Err((id, Refusal::new("command is missing", SHAPE))),
        }
    }

    /// The line that [`Self::parse`] reads.
    pub fn line(&self) -> Vec<u8> {
        let mut all = Map::new();
        all.insert("id".into(), self.id.clone());
        all.insert("command".into(), self.command.as_str().into());
        all.extend(self.args.clone());
        line(&Value::Object(all))
    }

    /// Its arguments as the command knows them. The table of commands has looked at them before: what fails
    /// here was forgotten there.
    ///
    /// # Errors
    /// They do not fit.
    pub fn args<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let args = Value::Object(self.args.clone());
        serde_json::from_value(args).map_err(|error| Refusal::new(error.to_string(), "see the command help"))
    }
}

/// The line that ends the answer to the request `id`.
pub fn answer(id: &Value, result: Result<Value, Refusal>) -> Value {
    match result {
        Ok(ok) => json!({ "id": id, "ok": ok }),
        Err(error) => json!({ "id": id, "error": error }),
    }
}

/// A line on the way to the answer to the request `id`.
pub fn event(id: &Value, event: Value) -> Value {
    json!({ "id": id, "event": event })
}

/// `value` as a line.
pub fn line(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The next line without its end; `None` when there is none any more. What lacks its end at the end counts as
/// a line.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`]: it is longer than `max`. Else those of `from`.
pub fn read_line(from: &mut impl BufRead, max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    from.take(max as u64).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() == max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a line is longer than {max} bytes")));
    } else if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let args = json!({ "nsid": 1, "mssrl": 64 });
        let Value::Object(args) = args else { unreachable!("it is an object") };
        for id in [json!(7), json!("seven"), Value::Null] {
            let request = Request { id, command: "set".into(), args: args.clone() };
            assert_eq!(Request::parse(&request.line()), Ok(request));
        }
    }

    #[test]
    fn what_is_no_request_says_what_one_is() {
        for (line, text, id) in [
            ("", "no JSON object", Value::Null),
            ("{", "no JSON object", Value::Null),
            ("[1]", "no object", Value::Null),
            (r#"{"id":3}"#, "command is missing", json!(3)),
            (r#"{"id":"a","command":1}"#, "command is no text", json!("a")),
            (r#"{"id":{"a":[]},"command":"status"}"#, "id is neither", Value::Null),
        ] {
            let (found, refusal) = Request::parse(line.as_bytes()).unwrap_err();
            assert_eq!(found, id, "{line}");
            assert!(refusal.text.contains(text) && refusal.expected.contains("status"), "{refusal:?}");
        }
        // Deep nesting is an error, not the end of the stack.
        let deep = format!(r#"{{"command":{}"#, "[".repeat(60_000));
        assert!(Request::parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn lines_are_bounded() {
        let mut input: &[u8] = b"one\n\ntwo\n1234567890\nrest";
        let mut next = || read_line(&mut input, 5);
        assert_eq!(next().unwrap(), Some(b"one".to_vec()));
        assert_eq!(next().unwrap(), Some(Vec::new()));
        assert_eq!(next().unwrap(), Some(b"two".to_vec()));
        assert_eq!(next().unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut input: &[u8] = b"end";
        assert_eq!(read_line(&mut input, 5).unwrap(), Some(b"end".to_vec()));
        assert_eq!(read_line(&mut input, 5).unwrap(), None);
    }
}
