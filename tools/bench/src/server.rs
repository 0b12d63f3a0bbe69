//! A server under load: its controller, one load and thread for each queue.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, getpid};
use vfio_user_nvme::config::ConfigError;

use super::contest::Contestant;
use super::controller::{Attach, Controller, Shape, queue_room};
use super::cpu;
use super::load::{Commands, Load, Stamp, Until, data_room};
use super::options::Plan;
use super::pattern::{Pattern, Rw};
use super::paused::Paused;
use super::row::Row;
use super::tally::Run;

/// How often the connection is looked at while the load runs.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// Bytes of a command that fills the span, at most.
const FILL: u64 = 128 << 10;
/// Commands in flight while it is filled.
const FILL_DEPTH: u16 = 32;
/// Commands that read back what was filled, at most.
const FILL_CHECKS: u64 = 4096;

/// One server, attached all the time.
#[derive(Debug)]
pub(crate) struct Server {
    /// Continued before anything else is taken down.
    process: Option<Paused>,
    name: String,
    controller: Controller,
    /// Its end is the server's.
    watch: OwnedFd,
    /// Who is stopped while others are measured.
    pub(crate) shape: Shape,
    loads: Vec<Load>,
    row: Option<Row>,
    /// Bytes of the namespace that are used.
    pub(crate) span: u64,
    cpus: Vec<usize>,
    nsid: u32,
}

impl Server {
    /// Attaches to the `index`th socket of the plan, which must be there.
    pub(crate) fn attach(plan: &Plan, index: usize) -> anyhow::Result<Self> {
        let (option, path) = plan.sockets.get(index).context("no such socket")?;
        let fill = queue_room(FILL_DEPTH) + data_room(FILL_DEPTH, FILL, false);
        let room = |row: &Row| {
            let each = queue_room(row.depth) + data_room(row.depth, row.bytes, row.rw == Rw::Copy);
            each * usize::from(row.queues)
        };
        let mut controller = Controller::attach(Attach {
            path,
            option,
            room: plan.rows.iter().map(room).chain([fill]).max().unwrap_or(fill),
            guest: plan.guest,
            doorbells: plan.doorbells,
            posted: plan.posted,
            nsid: plan.nsid,
            patience: plan.patience,
        })?;
        controller.enable()?;
        let shape = controller.shape()?;
        let size = shape
            .block
            .checked_mul(shape.blocks)
            .context("the namespace has more bytes than 64 bits hold")?;
        if let Some(span) = plan.span.filter(|span| *span > size) {
            let problem = format!("the namespace has {size} bytes");
            bail!(ConfigError::bad_option("--span", span.to_string(), problem, "leave it out for all of it"));
        }
        if shape.read_only && (plan.fill || plan.rows.iter().any(|row| !row.rw.only_reads())) {
            let nsid = plan.nsid.to_string();
            bail!(ConfigError::bad_option(
                "--nsid",
                nsid,
                "is read-only",
                "use --rw read or randread, without --fill"
            ));
        }
        let process = if plan.pause_others { Some(Paused::new(other(&controller, path)?)) } else { None };
        let watch = controller.watch()?;
        let name = format!("{} ({})", path.display(), controller.doorbells());
        Ok(Self {
            name,
            controller,
            watch,
            process,
            shape,
            loads: Vec::new(),
            row: None,
            span: plan.span.unwrap_or(size),
            cpus: plan.cpus.clone(),
            nsid: plan.nsid,
        })
    }

    /// Makes queues and commands for a row. What was there before is gone.
    ///
    /// # Errors
    /// [`ConfigError`]: the row asks for more than the controller or the namespace has.
    pub(crate) fn prepare(&mut self, row: &Row) -> anyhow::Result<()> {
        self.wake();
        let shape = self.shape;
        let bytes = row.bytes;
        let refuse = |problem: String, remedy: &str| {
            ConfigError::bad_option("--bs", bytes.to_string(), problem, remedy)
        };
        if !bytes.is_multiple_of(shape.block) {
            let problem = format!("is no multiple of the namespace's blocks of {} bytes", shape.block);
            bail!(refuse(problem, "use 4k"));
        }
        if row.rw == Rw::Copy {
            if shape.mssrl == 0 {
                bail!(ConfigError::bad_option(
                    "--rw",
                    "copy",
                    "the controller has no Copy",
                    "use another --rw"
                ));
            }
            if bytes / shape.block > shape.mssrl {
                bail!(refuse(format!("a range has {} blocks at most (MSSRL)", shape.mssrl), "use less"));
            }
        } else if bytes > shape.mdts {
            bail!(refuse(format!("a transfer has {} bytes at most (MDTS)", shape.mdts), "use less"));
        }
        if bytes / shape.block > 65536 {
            bail!(refuse("is more than 65536 blocks".to_owned(), "use less"));
        }
        let least = if row.rw == Rw::Copy { 2 * bytes } else { bytes };
        if self.span < least {
            let problem = format!("is less than the {least} bytes that this load needs");
            bail!(ConfigError::bad_option(
                "--span",
                self.span.to_string(),
                problem,
                "use more, or a smaller --bs"
            ));
        }
        let most = self.controller.max_depth();
        if row.depth > most {
            let problem = format!("a queue of this controller holds {most}");
            bail!(ConfigError::bad_option("--depth", row.depth.to_string(), problem, "use less"));
        }
        self.loads.clear();
        self.controller.enable()?;
        for pair in self.controller.queues(row.queues, row.depth)? {
            let copy = row.rw == Rw::Copy;
            let at = self.controller.take(data_room(row.depth, bytes, copy))?;
            let commands = Commands { nsid: self.nsid, bytes, block: shape.block, depth: row.depth };
            let memory = Arc::clone(&self.controller.memory);
            self.loads.push(Load::new(pair, memory, at, commands, copy, self.controller.patience())?);
        }
        self.row = Some(row.clone());
        Ok(())
    }

    /// Writes all of the span, and reads a part of it back.
    ///
    /// # Errors
    /// What was read is not what was written; otherwise as a run.
    pub(crate) fn fill(&mut self) -> anyhow::Result<()> {
        let block = self.shape.block;
        let whole = self.span / block * block;
        // The largest power of two that leaves nothing over.
        let mut bytes = FILL.min(self.shape.mdts);
        while bytes > block && !whole.is_multiple_of(bytes) {
            bytes /= 2;
        }
        let pieces = whole / bytes;
        ensure!(pieces > 0, "--fill: the span is smaller than a block");
        let depth = FILL_DEPTH.min(self.controller.max_depth());
        let row = Row { rw: Rw::Write, bytes, depth, queues: 1, mix: 0, limits: Vec::new() };
        self.prepare(&row)?;
        self.work(&row, pieces, Until::Commands(pieces), Stamp::Put)?;
        let row = Row { rw: Rw::Read, ..row };
        self.work(&row, pieces, Until::Commands(pieces.min(FILL_CHECKS)), Stamp::Check)?;
        Ok(())
    }

    fn work(&mut self, row: &Row, pieces: u64, until: Until, stamp: Stamp) -> anyhow::Result<Run> {
        let (stop, gone) = (&AtomicBool::new(false), &AtomicBool::new(false));
        let (cpus, watch, count) = (&self.cpus, &self.watch, self.loads.len() as u64);
        let loads = &mut self.loads;
        let tallies: anyhow::Result<Vec<_>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0_u64..)
                .zip(loads.iter_mut())
                .map(|(index, load)| {
                    load.stamp = stamp;
                    let pattern = Pattern::new(row.rw, row.mix, pieces, index, count);
                    scope.spawn(move || {
                        let result = cpu::pin(cpus, index as usize)
                            .map_err(anyhow::Error::from)
                            .and_then(|()| load.run(pattern, until, stop));
                        // One that failed makes the run worthless.
                        result.inspect_err(|_| stop.store(true, Ordering::Relaxed))
                    })
                })
                .collect();
            while !threads.iter().all(|thread| thread.is_finished()) {
                let mut fds = [PollFd::new(watch, PollFlags::RDHUP)];
                match poll(&mut fds, Some(&LOOK)) {
                    Ok(0) | Err(_) => {}
                    Ok(_) => {
                        gone.store(true, Ordering::Relaxed);
                        stop.store(true, Ordering::Relaxed);
                        // Do not spin on what stays true.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
            let results: Vec<_> = threads
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a load's thread panicked")))
                })
                .collect();
            first_cause(results)
        });
        ensure!(!gone.load(Ordering::Relaxed), "{}: the server hung up", self.name);
        let tallies = tallies.with_context(|| format!("{}: {}", self.name, self.controller.state()))?;
        Ok(Run::of(&tallies))
    }
}

/// All results, or the error that is not only a consequence of another.
fn first_cause<T>(results: Vec<anyhow::Result<T>>) -> anyhow::Result<Vec<T>> {
    let mut good = Vec::new();
    let mut cause = None;
    for result in results {
        match result {
            Ok(value) => good.push(value),
            Err(error) if cause.is_none() || error.to_string() != "stopped" => cause = Some(error),
            Err(_) => {}
        }
    }
    cause.map_or(Ok(good), Err)
}

/// The process behind the socket, if it can be stopped.
fn other(controller: &Controller, path: &std::path::Path) -> anyhow::Result<Pid> {
    controller.server().filter(|pid| *pid != getpid()).with_context(|| {
        format!(
            "--pause-others: {} is not served by a process that can be stopped; leave it out",
            path.display()
        )
    })
}

impl Contestant for Server {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn run(&mut self, warm_up: Duration, measured: Duration) -> anyhow::Result<Run> {
        let row = self.row.clone().context("no row is prepared")?;
        self.work(&row, self.span / row.bytes, Until::Time { warm_up, measured }, Stamp::Ignore)
    }

    fn rest(&mut self) {
        if let Some(process) = &mut self.process {
            process.stop();
        }
    }

    fn wake(&mut self) {
        if let Some(process) = &self.process {
            process.wake();
        }
    }
}
