//! `drain`, `resume` and `quit`.

use std::sync::TryLockError;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::command::{Arg, Command, Kind};
use crate::control::context::Context;
use crate::control::wire::{Refusal, Request};
use crate::nvme_ctrl::Answer;

/// The row of `drain`.
pub const DRAIN: Command = Command {
    name: "drain",
    about: "Fetch no I/O command until those in flight have ended and all images are durable",
    args: &[
        Arg::new("hold", Kind::Switch, "Fetch none afterwards either, until resume"),
        Arg::new("timeout_ms", Kind::Number(0, 600_000), "How long to wait (10000)"),
    ],
    run: |context, request, _| drain(context, request),
};

/// The row of `resume`.
pub const RESUME: Command = Command {
    name: "resume",
    about: "Fetch I/O commands again after drain hold=on",
    args: &[],
    run: |context, _, _| {
        resume(context)?;
        Ok(json!({ "paused": false }))
    },
};

/// The row of `quit`.
pub const QUIT: Command = Command {
    name: "quit",
    about: "End the device as SIGTERM does: drain, flush, exit",
    args: &[],
    run: |context, _, _| {
        context.thread.ask(|thread| thread.quit())?;
        Ok(json!({}))
    },
};

const TIMEOUT_MS: u64 = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainArgs {
    hold: Option<bool>,
    timeout_ms: Option<u64>,
}

/// What did not come in time leaves the device as it was; and what was paused before stays so.
fn drain(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let args: DrainArgs = request.args()?;
    let deadline = Instant::now() + Duration::from_millis(args.timeout_ms.unwrap_or(TIMEOUT_MS));
    let _alone = match context.draining.try_lock() {
        Ok(alone) => alone,
        Err(TryLockError::Poisoned(alone)) => alone.into_inner(),
        Err(TryLockError::WouldBlock) => {
            return Err(Refusal::new("another client drains it just now", "one drain at a time"));
        }
    };
    let (sender, drained) = channel();
    let (workers, was_paused) = context.thread.ask(move |thread| {
        let mut ports = thread.ports();
        let was_paused = ports.iter().any(|port| port.controller.is_paused());
        (ports.iter_mut().map(|port| port.controller.pause(&sender)).sum::<usize>(), was_paused)
    })?;
    let done = wait(context, workers, &drained, deadline);
    let paused = was_paused || args.hold == Some(true) && done.is_ok();
    if !paused {
        resume(context)?;
    }
    done.map(|()| json!({ "durable": true, "paused": paused }))
}

/// Waits until `workers` have nothing in flight, then for a flush.
fn wait(
    context: &Context,
    workers: usize,
    drained: &Receiver<Answer<()>>,
    deadline: Instant,
) -> Result<(), Refusal> {
    let left = || deadline.saturating_duration_since(Instant::now());
    let late = |what: &str| {
        Refusal::new(format!("{what} in time"), "a longer timeout_ms; inspect shows what is in flight")
    };
    for _ in 0..workers {
        // A worker that still owes the answer to an earlier drain has not got this one.
        drained.recv_timeout(left()).map_err(|_| late("not all commands in flight have ended"))?;
    }
    let (sender, flushed) = channel();
    context.thread.ask(move |thread| {
        // All controllers share the namespaces.
        if let Some(port) = thread.ports().into_iter().next() {
            port.controller.flush_for(sender);
        }
    })?;
    match flushed.recv_timeout(left()) {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(Refusal::new("an image could not be flushed", "one that takes writes; the log says which"))
        }
        Err(_) => Err(late("not all images were flushed")),
    }
}

fn resume(context: &Context) -> Result<(), Refusal> {
    context.thread.ask(|thread| thread.ports().into_iter().for_each(|port| port.controller.resume()))
}
