//! `copies`: the copy log, as it is written.

use std::time::Duration;

use serde_json::{Value, json};

use crate::control::command::{Arg, Command, Kind};
use crate::control::context::Context;
use crate::control::out::Out;
use crate::control::wire::{Refusal, Request};
use crate::copy_log;
use crate::laboratory::copy_log::{Counted, Heard};

/// The row of the table.
pub const COMMAND: Command = Command {
    name: "copies",
    about: "How many Copies were recorded; with follow each one as it ends, as in a copy log",
    args: &[Arg::new("follow", Kind::Switch, "Tell of each Copy from now on, until the client goes")],
    run: copies,
};

/// How often a client is looked after that is told nothing.
const GLANCE: Duration = Duration::from_millis(500);

fn copies(context: &Context, request: &Request, out: &mut Out<'_>) -> Result<Value, Refusal> {
    if request.args.get("follow") == Some(&Value::Bool(true)) {
        // What was told ends with a line of its own: a reader of logs is to find nothing behind it.
        return follow(context, out).map(|()| Value::Null);
    }
    let Counted { copies, dropped, followers } = context.copies.counted();
    Ok(json!({ "copies": copies, "dropped": dropped, "followers": followers }))
}

fn follow(context: &Context, out: &mut Out<'_>) -> Result<(), Refusal> {
    let mut follower = context
        .copies
        .follow()
        .map_err(|error| Refusal::new(format!("the copy log cannot be followed: {error}"), "another time"))?;
    loop {
        match follower.next(GLANCE) {
            Heard::Line(line) => {
                let line = serde_json::from_str(&line).unwrap_or(Value::Null);
                // Who has gone hears no refusal either.
                let gone =
                    |error: std::io::Error| Refusal::new(error.to_string(), "a client that takes lines");
                out.event(line).map_err(gone)?;
            }
            Heard::Silence if out.is_open() => {}
            Heard::Silence | Heard::End => return Ok(()),
        }
    }
}

/// For people: a line of a copy log, if it is one.
pub fn words(event: &Value) -> Option<String> {
    event.get("record")?;
    serde_json::from_value(event.clone()).ok().map(|line| copy_log::words(&line))
}
