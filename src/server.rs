//! The control thread: sets the ports up and serves their clients, one at a time each, until it is told to stop.

mod control;
mod guarded;
mod limits;
mod port;
mod signals;
mod tools;
mod workers;

use std::io::Write as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use smallvec::SmallVec;

use crate::config::{Config, start_line};
use crate::copy;
use crate::device::NvmeDevice;
use crate::disk::LaneKind;
use crate::images;
use crate::logging;
use crate::nvme_ctrl::WorkerParts;
use crate::subsystem::{Subsystem, Wake};
use control::Attendant;
use port::{Places, PollFds, Port};
pub use signals::Signals;
pub use tools::Tools;

/// From SIGTERM to the end of the process, at most.
const FAREWELL: Duration = Duration::from_secs(10);

/// While the end is waited for: how often workers are looked after that do not answer.
const GLANCE: Duration = Duration::from_millis(100);

/// Opens images and socket, then serves until SIGTERM or SIGINT.
///
/// # Errors
/// What is wrong with the set-up, for a person; a [`ConfigError`] in the chain is their mistake.
pub fn run(config: Config) -> anyhow::Result<ExitCode> {
    limits::raise_descriptors();
    let (namespaces, lines) = images::open(&config)?;
    let kind = images::lane_kind(&config)?;
    let lanes = workers::factory(&config.nvme, kind)?;
    let signals = Signals::install().context("cannot install signal handlers")?;
    let subsystem = Subsystem::new(namespaces, !config.further_sockets.is_empty());
    let parts = WorkerParts { lanes, laboratory: Arc::default() };
    let tools = Tools::open(&config, &parts.laboratory, &subsystem)?;
    let mut server = Server::new(&config, &subsystem, &parts)?;
    server.open_control(&config, kind, &subsystem, &tools)?;
    for socket in config.sockets() {
        announce(&start_line(socket));
    }
    log::info!("serving with {kind}; Copy formats {:#06x}", copy::OCFS);
    for line in lines {
        log::info!("{line}");
    }
    logging::begin();
    server.serve(&signals);
    let code = server.farewell();
    tools.verdict(&subsystem);
    tools.end();
    Ok(code)
}

/// For whoever started us. That standard output is closed or full is no reason to end.
fn announce(line: &str) {
    let mut out = std::io::stdout();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        log::warn!("standard output did not take this line ({error}): {line}");
    }
}

/// What of the server itself has something to be read.
#[derive(Clone, Copy, Debug)]
struct Woken {
    signals: bool,
    wake: bool,
}

impl Woken {
    /// Not known: ask everybody.
    const ALL: Self = Woken { signals: true, wake: true };
}

/// The ports, and what wakes the thread that serves them.
pub struct Server {
    /// At least one.
    ports: Vec<Port>,
    /// Written by workers, by the last pin on removed memory, and for clients of the control socket.
    wake: Arc<OwnedFd>,
    /// Writes it.
    waker: Wake,
    /// The control socket, if there is one.
    attendant: Option<Attendant>,
}

impl Server {
    /// Controllers that listen, one at each socket.
    ///
    /// # Errors
    /// A socket or a controller's threads cannot be made.
    pub fn new(config: &Config, subsystem: &Arc<Subsystem>, parts: &WorkerParts) -> anyhow::Result<Self> {
        let wake = Arc::new(
            eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).context("cannot make an eventfd")?,
        );
        let waker: Wake = {
            let wake = Arc::clone(&wake);
            Arc::new(move || {
                // A full counter wakes just as well.
                let _ = rustix::io::write(&wake, &1_u64.to_ne_bytes());
            })
        };
        let ports = config.sockets().map(|path| Port::new(config, path, subsystem, parts, &waker));
        Ok(Self { ports: ports.collect::<anyhow::Result<_>>()?, wake, waker, attendant: None })
    }

    /// Makes the control socket, if the configuration has one, of a device whose lanes are of this kind.
    ///
    /// # Errors
    /// The socket cannot be made, or its thread.
    pub fn open_control(
        &mut self,
        config: &Config,
        engine: LaneKind,
        subsystem: &Arc<Subsystem>,
        tools: &Tools,
    ) -> anyhow::Result<()> {
        if let Some(path) = &config.control {
            self.attendant = Some(Attendant::open(path, config, engine, subsystem, tools, &self.waker)?);
            log::info!("control socket: {}", path.display());
        }
        Ok(())
    }

    /// Serves until a signal, or a client of the control socket, asks to stop.
    pub fn serve(&mut self, signals: &Signals) {
        let mut ready = Woken::ALL;
        while !signals.terminate() {
            if ready.signals && signals.dump() {
                self.ports.iter_mut().for_each(|port| port.device.controller.dump());
            }
            if ready.wake {
                self.clear_wake();
                if self.attend() {
                    return;
                }
            }
            let (mut busy, mut pause) = (false, None);
            for port in &mut self.ports {
                busy |= port.turn();
                pause = pause.into_iter().chain(port.accept()).min();
            }
            ready = self.wait(signals.fd(), pause, busy);
        }
    }

    /// Does what clients of the control socket ask. True when one asks for the end.
    fn attend(&mut self) -> bool {
        self.attendant.as_ref().is_some_and(|attendant| attendant.attend(&mut self.ports))
    }

    fn clear_wake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    /// Waits until there is something to do, and says where; `busy`: does not wait, for a session has more to do.
    fn wait(&mut self, signals: BorrowedFd<'_>, pause: Option<Duration>, busy: bool) -> Woken {
        let until = self.ports.iter().filter_map(Port::deadline).min();
        let until = until.map(|at| at.saturating_duration_since(Instant::now()));
        let now = busy.then_some(Duration::ZERO);
        let timeout = [until, pause, now].into_iter().flatten().min().map(|duration| Timespec {
            tv_sec: duration.as_secs() as i64,
            // Rounded up, so that what is due is due when poll returns.
            tv_nsec: i64::from(duration.subsec_nanos()) + 1,
        });
        let timeout = timeout
            .map(|t| if t.tv_nsec < 1_000_000_000 { t } else { Timespec { tv_nsec: 999_999_999, ..t } });
        let mut fds = PollFds::new();
        fds.push(PollFd::from_borrowed_fd(signals, PollFlags::IN));
        fds.push(PollFd::new(&*self.wake, PollFlags::IN));
        let places: SmallVec<[Places; 2]> = self.ports.iter_mut().map(|port| port.watch(&mut fds)).collect();
        // An interrupted wait is as good as an event: the next round looks at everything.
        let polled = poll(&mut fds, timeout.as_ref()).is_ok();
        let revents: SmallVec<[PollFlags; 8]> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        let revents = polled.then_some(revents.as_slice());
        for (port, places) in self.ports.iter_mut().zip(places) {
            port.look(places, revents, busy);
        }
        let has = |at: usize| revents.is_none_or(|revents| revents.get(at).is_some_and(|r| !r.is_empty()));
        Woken { signals: has(0), wake: has(1) }
    }

    /// Drains, flushes and stops, within [`FAREWELL`].
    pub fn farewell(&mut self) -> ExitCode {
        let start = Instant::now();
        let deadline = start + FAREWELL;
        let client = match self.ports.iter().filter(|port| port.has_client()).count() {
            0 => "no client is attached".into(),
            1 => "a client is attached".into(),
            more => format!("{more} clients are attached"),
        };
        log::info!("asked to end; {client}");
        // Clients are let go last: while commands drain they still complete into their memory.
        self.ports.iter_mut().for_each(|port| port.device.begin_reset());
        // What was acknowledged is worth its flush even if another command hangs.
        let clean = self.settle(start + FAREWELL / 2, deadline) || self.settle(deadline, deadline);
        if !clean {
            log::error!(
                "not all is drained and flushed {FAREWELL:?} after the signal; data may not be durable"
            );
        }
        let mut stopped = true;
        for Port { device, .. } in &mut self.ports {
            stopped &= device.controller.is_quiet() && device.controller.stop(deadline);
        }
        self.ports.iter_mut().for_each(Port::let_go);
        if clean && stopped { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Waits until `patience` for commands in flight, then flushes whether there still are any or not. Whether there
    /// were none, and the flush succeeded before `deadline`.
    fn settle(&mut self, patience: Instant, deadline: Instant) -> bool {
        let quiet = self.until(patience, |device| device.controller.is_quiet());
        if quiet {
            log::info!("drained: no command is in flight");
        } else {
            log::error!("commands are still in flight, because an image does not answer");
        }
        self.ports.iter_mut().for_each(|port| port.device.controller.flush());
        let answered = self.until(deadline, |device| device.controller.flushed().is_some());
        let flushed =
            answered && self.ports.iter().all(|port| port.device.controller.flushed() == Some(true));
        match (answered, flushed) {
            (_, true) => log::info!("flushed"),
            (true, false) => log::error!("an image could not be flushed"),
            (false, false) => log::error!("an image does not answer to a flush"),
        }
        quiet && flushed
    }

    /// Takes workers' messages until `done` of all devices; false at the deadline.
    fn until(&mut self, deadline: Instant, done: impl Fn(&NvmeDevice) -> bool) -> bool {
        loop {
            self.clear_wake();
            self.ports.iter_mut().for_each(|port| port.device.controller.on_messages());
            // Whoever wants to know what the end waits for.
            self.attend();
            if self.ports.iter().all(|port| done(&port.device)) {
                return true;
            }
            let now = Instant::now();
            self.ports.iter_mut().for_each(|port| port.device.controller.unblock(now));
            if now >= deadline {
                return false;
            }
            let left = deadline.min(now + GLANCE).saturating_duration_since(now);
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut fds = [PollFd::new(&*self.wake, PollFlags::IN)];
            let _ = poll(&mut fds, Some(&left));
        }
    }
}
