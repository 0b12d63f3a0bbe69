//! `ctl`: one request to a control socket, in words, and what comes of it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value};

use super::command::{Command, Kind};
use super::commands::copies;
use super::table;
use super::wire::{self, Refusal, Request};

/// Bytes of a line from a server: it may tell much, but is not to fill our memory.
const ANSWER_MAX: usize = 256 << 20;

/// The words of the command line.
#[derive(Args, Debug)]
pub struct CtlArgs {
    /// The socket that serve was given with --control
    path: PathBuf,

    /// What to do; help lists all there is
    #[arg(value_name = "COMMAND")]
    command: String,

    /// Its arguments: name=value, --name for name=on, or the value alone where help says so
    #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The words do not fit.
    #[error("{0}; expected {1}")]
    Usage(String, String),
    /// The device refuses.
    #[error("{0}; expected {1}")]
    Refused(String, String),
    /// The device cannot be talked to.
    #[error("{0}")]
    Socket(String),
}

impl Failure {
    /// Process exit code: 2 for a mistake in the words, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(..) => 2,
            Self::Refused(..) | Self::Socket(_) => 1,
        }
    }
}

/// Sends the request and prints what comes back, line by line as it comes.
///
/// # Errors
/// The words do not fit, the device is not there, or refuses.
pub fn run(args: CtlArgs) -> Result<(), Failure> {
    let CtlArgs { path, command, mut words } = args;
    // Behind the first argument everything is taken as one.
    let before = words.len();
    words.retain(|word| word != "--json");
    let json = words.len() < before;
    let usage = |refusal: Refusal| Failure::Usage(refusal.text, refusal.expected);
    let command = table::find(&command).map_err(usage)?;
    let args = arguments(command, &words).map_err(usage)?;
    command.check(&args).map_err(usage)?;
    let request = Request { id: 1.into(), command: command.name.into(), args };
    let failed =
        |what: &str, error: &io::Error| Failure::Socket(format!("{}: {what}: {error}", path.display()));
    let stream = UnixStream::connect(&path)
        .map_err(|error| failed("cannot connect; is it the --control of a device that runs?", &error))?;
    let mut from = BufReader::new(&stream);
    let hello = next(&mut from).map_err(|error| failed("no control socket of this program's", &error))?;
    refuse_strangers(&hello).map_err(|why| Failure::Socket(format!("{}: {why}", path.display())))?;
    (&stream).write_all(&request.line()).map_err(|error| failed("cannot send", &error))?;
    let mut out = io::stdout().lock();
    loop {
        let line = next(&mut from).map_err(|error| failed("the answer did not come", &error))?;
        if let Some(event) = line.get("event") {
            if show(&mut out, event, json).is_err() {
                // Nobody reads it any more.
                return Ok(());
            }
            continue;
        }
        if let Some(ok) = line.get("ok") {
            if !ok.is_null() {
                let _ = show(&mut out, ok, json);
            }
            return Ok(());
        }
        let word = |name| line.pointer(name).and_then(Value::as_str).unwrap_or("nothing said").to_owned();
        return Err(Failure::Refused(word("/error/text"), word("/error/expected")));
    }
}

fn next(from: &mut impl BufRead) -> io::Result<Value> {
    let line = wire::read_line(from, ANSWER_MAX)?;
    let line = line.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up"))?;
    Ok(serde_json::from_slice(&line)?)
}

/// May we talk to whoever said this first?
fn refuse_strangers(hello: &Value) -> Result<(), String> {
    if let Some(why) = hello.pointer("/error/text").and_then(Value::as_str) {
        return Err(why.into());
    }
    match hello.get("schema").and_then(Value::as_u64) {
        Some(schema) if schema == u64::from(wire::SCHEMA) => Ok(()),
        Some(schema) => Err(format!(
            "the device speaks version {schema} of the schema, this program {}; use the ctl that came with it",
            wire::SCHEMA
        )),
        None => Err("that is no control socket of this program's".into()),
    }
}

/// The words as arguments of the command. Values are as they were typed: the table brings them into form.
fn arguments(command: &Command, words: &[String]) -> Result<Map<String, Value>, Refusal> {
    let mut args = Map::new();
    let mut places = command.args.iter().filter(|arg| arg.positional);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if let Some(rest) = places.clone().next().filter(|arg| arg.rest) {
            let all: Vec<&str> = std::iter::once(word).chain(words).map(String::as_str).collect();
            args.insert(rest.name.to_owned(), all.join(" ").into());
            break;
        }
        let flag = word.strip_prefix("--");
        let (name, value) = match (flag, flag.unwrap_or(word).split_once('=')) {
            (Some(flag), None) => (command.arg(flag)?.name, "on"),
            (_, Some((name, value))) if flag.is_some() || command.arg(name).is_ok() => {
                (command.arg(name)?.name, value)
            }
            // An argument without its name; its value may have a = in it.
            _ => match (places.find(|arg| !args.contains_key(arg.name)), word.split_once('=')) {
                (Some(arg), _) => (arg.name, word.as_str()),
                (None, Some((name, value))) => (command.arg(name)?.name, value),
                (None, None) => return Err(superfluous(command, word)),
            },
        };
        if args.insert(name.to_owned(), value.into()).is_some() {
            return Err(Refusal::new(format!("{name} is given twice"), "it once"));
        }
    }
    Ok(args)
}

fn superfluous(command: &Command, word: &str) -> Refusal {
    let list: Vec<_> = command
        .args
        .iter()
        .map(|arg| match arg.kind {
            Kind::Switch => format!("--{}", arg.name),
            kind => format!("{}={}", arg.name, kind.expected()),
        })
        .collect();
    let expected = if list.is_empty() { "no argument".into() } else { list.join(" ") };
    Refusal::new(format!("{} does not know what to do with {word:?}", command.name), expected)
}

/// Prints a value: as a line of JSON, or for people.
fn show(out: &mut impl Write, value: &Value, json: bool) -> io::Result<()> {
    let text = match value.get("text") {
        _ if json => format!("{value}\n"),
        Some(Value::String(text)) => text.clone(),
        _ => copies::words(value).unwrap_or_else(|| {
            let mut text = String::new();
            render(&mut text, value, 0);
            text
        }),
    };
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A value as an outline: a name and its value in a line, what has parts with these below it.
fn render(text: &mut String, value: &Value, depth: usize) {
    let pad = "  ".repeat(depth);
    let put = |text: &mut String, head: &str, value: &Value| match value {
        Value::Object(parts) if !parts.is_empty() => {
            text.push_str(&format!("{pad}{head}\n"));
            render(text, value, depth + 1);
        }
        Value::Array(parts) if parts.iter().any(|part| part.is_object() || part.is_array()) => {
            text.push_str(&format!("{pad}{head}\n"));
            render(text, value, depth + 1);
        }
        _ => text.push_str(&format!("{pad}{head} {}\n", plain(value))),
    };
    match value {
        Value::Object(parts) => parts.iter().for_each(|(name, value)| put(text, &format!("{name}:"), value)),
        Value::Array(parts) => parts.iter().for_each(|value| put(text, "-", value)),
        other => text.push_str(&format!("{pad}{}\n", plain(other))),
    }
}

/// A value without parts, in a line.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::Bool(on) => (if *on { "on" } else { "off" }).into(),
        Value::String(text) => text.clone(),
        Value::Array(parts) if parts.is_empty() => "none".into(),
        Value::Array(parts) => parts.iter().map(plain).collect::<Vec<_>>().join(" "),
        Value::Object(_) => "none".into(),
        Value::Number(number) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::command::Arg;

    const COMMAND: Command = Command {
        name: "try",
        about: "",
        args: &[
            Arg::new("action", Kind::Text("what"), "").positional(),
            Arg::new("rule", Kind::Text("how"), "").positional(),
            Arg::new("n", Kind::Number(1, 10), ""),
            Arg::new("follow", Kind::Switch, ""),
        ],
        run: |_, _, _| Ok(Value::Null),
    };

    fn words(words: &[&str]) -> Result<Value, String> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        arguments(&COMMAND, &words).map(Value::Object).map_err(|refusal| refusal.text)
    }

    #[test]
    fn words_are_arguments() {
        for (given, args) in [
            (&[][..], json!({})),
            (&["add", "n=3"], json!({ "action": "add", "n": "3" })),
            (&["n=3", "add", "op=copy,n=2"], json!({ "n": "3", "action": "add", "rule": "op=copy,n=2" })),
            (&["rule=x", "--follow", "add"], json!({ "rule": "x", "follow": "on", "action": "add" })),
            (&["--n=4", "follow=off"], json!({ "n": "4", "follow": "off" })),
        ] {
            assert_eq!(words(given), Ok(args));
        }
        for (given, text) in [
            (&["a", "b", "c"][..], "try does not know what to do with \"c\""),
            (&["a", "b", "c=d"], "try has no argument \"c\""),
            (&["--nothing"], "try has no argument \"nothing\""),
            (&["n=1", "n=2"], "n is given twice"),
        ] {
            assert_eq!(words(given), Err(text.into()));
        }
    }

    #[test]
    fn what_takes_the_rest_takes_it_as_it_is() {
        const ARGS: &[Arg] = &[
            Arg::new("action", Kind::Text("what"), "").positional(),
            Arg::new("rule", Kind::Text("how"), "").rest(),
        ];
        let command = Command { args: ARGS, ..COMMAND };
        let words = ["add", "op=copy", "--action", "action=x y"].map(str::to_owned);
        let taken = arguments(&command, &words).map(Value::Object);
        assert_eq!(taken, Ok(json!({ "action": "add", "rule": "op=copy --action action=x y" })));
        assert_eq!(arguments(&command, &words[..1]).map(Value::Object), Ok(json!({ "action": "add" })));
    }

    #[test]
    fn an_answer_is_an_outline() {
        let value = json!({
            "version": "1", "on": true, "gone": null, "list": [1, 2], "empty": [],
            "parts": [{ "a": 1, "b": [{ "c": "x" }] }, { "a": 2 }], "whole": { "d": {} },
        });
        let mut text = String::new();
        render(&mut text, &value, 0);
        assert_eq!(
            text,
            "version: 1\non: on\ngone: none\nlist: 1 2\nempty: none\nparts:\n  -\n    a: 1\n    b:\n      -\n        \
             c: x\n  -\n    a: 2\nwhole:\n  d: none\n"
        );
    }

    #[test]
    fn a_text_is_printed_as_it_is() {
        let mut out = Vec::new();
        show(&mut out, &json!({ "text": "a 1\nb 2\n" }), false).unwrap();
        show(&mut out, &json!({ "text": "a" }), true).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a 1\nb 2\n{\"text\":\"a\"}\n");
    }
}
