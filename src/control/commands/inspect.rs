//! `inspect`: registers, queues, commands and plans in flight: what one needs when a guest hangs.

use std::sync::mpsc::channel;
use std::time::Instant;

use serde_json::{Value, json};

use crate::control::command::Command;
use crate::control::context::{Context, PATIENCE};
use crate::control::wire::Refusal;

/// The row of the table.
pub const COMMAND: Command = Command {
    name: "inspect",
    about: "Registers, queues, commands and Copies in flight, as they are now",
    args: &[],
    run: |context, _, _| inspect(context),
};

/// Who does not answer in time is left out, and it is said that they did not: a worker that hangs is what one looks for.
fn inspect(context: &Context) -> Result<Value, Refusal> {
    let (sender, answers) = channel();
    let states = context.thread.ask(move |thread| {
        let ports = thread.ports().into_iter();
        ports.map(|port| port.controller.inspect(&sender)).collect::<Vec<_>>()
    });
    let states = match states {
        Ok(states) => states,
        Err(refusal) => return Ok(json!({ "controllers": { "error": refusal } })),
    };
    let expected: usize = states.iter().map(|state| state.workers).sum();
    let deadline = Instant::now() + PATIENCE;
    let mut told = Vec::new();
    while told.len() < expected
        && let Ok(answer) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        told.push(answer);
    }
    let controllers: Vec<Value> = states
        .into_iter()
        .map(|state| {
            let worker = |index| {
                let mut answers = told.iter().filter(|answer| answer.cntlid == state.cntlid);
                let state = answers.find(|answer| answer.worker == index).map(|answer| &answer.what);
                json!({ "worker": index, "answered": state.is_some(), "state": state })
            };
            let workers: Vec<_> = (0..state.workers).map(worker).collect();
            let mut controller = json!(state);
            controller["workers"] = workers.into();
            controller
        })
        .collect();
    Ok(json!({ "controllers": controllers }))
}
