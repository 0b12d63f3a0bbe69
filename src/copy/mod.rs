//! The Copy command: decode its ranges, plan it completely, execute the plan, account for it.
//!
//! 1. [`check_command`]: all that is known before the range list is fetched.
//! 2. The caller fetches [`Checked::list_len`] bytes of list; guest memory is never seen here.
//! 3. [`Checked::decode`], then [`plan`]: all the other checks. A refused command has changed nothing.
//! 4. [`CopyTask`]: a state machine without I/O. `poll` hands out operations, `done` takes completions.
//!
//! Which way the bytes go is decided for each run of ranges (selection.rs), how large the segments are that go
//! there and how many at once in one place (execute/pace.rs), and what must wait for what when sources and
//! destination overlap (order.rs, which knows from the list alone what must be held in memory meanwhile).
//!
//! All Copies of a worker share one [`Bounce`]; a task that finds it empty waits ([`CopyTask::is_starved`])
//! and is to be polled again when another one has got further. A worker drives a task like this; what a
//! disk completes at once (memory) is fed back after the poll:
//!
//! ```text
//! loop {
//!     let outcome = task.poll(&mut |part, ns, op| inline.extend(ns.disk.submit(tag(part), op, engine)));
//!     if let Some(outcome) = outcome { complete(outcome.status, outcome.dw0); break }
//!     if inline.is_empty() { /* other work, until completions come or the starved may try again */ }
//!     for (part, result, buf) in inline.drain(..).chain(reaped) { task.done(part, result, buf) }
//! }
//! ```

mod bounce;
mod capabilities;
mod checks;
mod cut;
mod describe;
mod execute;
mod order;
mod plan;
mod probe;
mod range;
mod selection;
mod ways;
mod written;

#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod testing;

pub use bounce::Bounce;
pub use capabilities::Capabilities;
pub use checks::{Check, TABLE, rule, rules};
pub use describe::{PlannedStep, PlannedStretch, StepOrder};
pub use execute::{CopyTask, ExecOptions, Outcome};
pub use plan::{Checked, CopyPlan, PlannedRange, Reject, check_command, plan};
pub use range::{OCFS, SourceRange, Tags, list_len};
pub use selection::best_method;
pub use written::{By, Written};
