//! The load generator: an NVMe host over the vfio-user socket, and what no server can beat, in turn with it.
//!
//! | file | job |
//! |---|---|
//! | `options` | the words of the command line, checked |
//! | `row`, `suite` | what is measured; the rows of docs/performance.md |
//! | `client` | the connection, whose faults have names |
//! | `queue` | one queue pair |
//! | `controller` | enable, identify, create queues |
//! | `pieces` | what of guest memory is taken |
//! | `pattern` | which blocks are touched |
//! | `load` | the loop over one queue |
//! | `server`, `paused`, `limit` | who takes part: a server under load, memcpy, io_uring, two threads |
//! | `contest` | turns |
//! | `tally`, `report` | numbers, tables, JSON |
//! | `cpu` | pinning |
//!
//! Rings, doorbells, memory and messages are those of the tests' host (`tools/host`). With the device it
//! shares the names of commands and statuses, and how an option is refused; nothing that runs.

mod client;
mod contest;
mod controller;
mod cpu;
mod limit;
mod load;
mod options;
mod pattern;
mod paused;
mod pieces;
mod queue;
mod report;
mod row;
mod server;
mod suite;
mod tally;

use std::io::Write as _;
use std::path::Path;

use anyhow::Context;
use vfio_user_nvme::config::ConfigError;

use contest::Contestant;
use server::Server;

pub use options::{BenchArgs, Doorbells, Guest, Plan};
pub use pattern::Rw;
pub use report::{ContestantReport, Ratio, Report, RowReport};
pub use tally::{Latency, Run, Spread};

/// Measures all rows and prints them.
///
/// # Errors
/// What is wrong with the set-up (a [`ConfigError`] is in the chain then), or why a result would not be worth
/// anything: a command failed or did not end, a server is gone.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    for note in &plan.notes {
        eprintln!("note: {note}");
    }
    let on_stdout = plan.json.as_deref() == Some(Path::new("-"));
    // Before the runs: a path that cannot be written must not cost their result.
    let json = plan.json.as_deref().filter(|_| !on_stdout).map(create).transpose()?;
    let report = measure(plan, |row| {
        if !on_stdout {
            // A reader that has gone away does not end the measurement: there is the JSON file.
            let _ = writeln!(std::io::stdout(), "{row}");
        }
    })?;
    let text = serde_json::to_string_pretty(&report)? + "\n";
    match json {
        Some(mut file) => file.write_all(text.as_bytes()).context("--json")?,
        None if on_stdout => std::io::stdout().write_all(text.as_bytes()).context("--json -")?,
        None => {}
    }
    Ok(())
}

fn create(path: &Path) -> Result<std::fs::File, ConfigError> {
    std::fs::File::create(path).map_err(|error| {
        ConfigError::bad_option("--json", path, error.to_string(), "name a file that can be written")
    })
}

/// Measures all rows; each one's table is `told` as soon as it is there.
///
/// # Errors
/// As [`run`].
pub fn measure(plan: &Plan, mut told: impl FnMut(&str)) -> anyhow::Result<Report> {
    let mut servers: Vec<_> =
        (0..plan.sockets.len()).map(|index| Server::attach(plan, index)).collect::<Result<_, _>>()?;
    // The same bytes of both, or they would not do the same.
    let span = servers.iter().map(|server| server.span).min().context("no server")?;
    for server in &mut servers {
        server.span = span;
        if plan.fill {
            server.fill().context("--fill")?;
        }
    }
    let mut report = Report::new(plan, span);
    for row in &plan.rows {
        for server in &mut servers {
            server.prepare(row)?;
        }
        let mut limits = limit::all(plan, row, span)?;
        let mut all = contestants(&mut servers, &mut limits);
        let names: Vec<_> = all.iter().map(|contestant| contestant.name()).collect();
        let runs = contest::alternate(&mut all, plan.runs, plan.warm_up, plan.measured)?;
        let row = report::RowReport::new(row, &names, runs);
        told(&row.table());
        report.rows.push(row);
    }
    Ok(report)
}

/// The servers first, then the limits.
fn contestants<'a>(
    servers: &'a mut [Server],
    limits: &'a mut [Box<dyn Contestant>],
) -> Vec<&'a mut dyn Contestant> {
    let servers = servers.iter_mut().map(|server| -> &mut dyn Contestant { server });
    servers.chain(limits.iter_mut().map(|limit| -> &mut dyn Contestant { &mut **limit })).collect()
}
