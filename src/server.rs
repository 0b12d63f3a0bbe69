//! The control thread: sets the device up and serves clients, one at a time, until it is told to stop.

mod guarded;
mod images;
mod limits;
mod signals;
mod workers;

use std::io::Write as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use smallvec::SmallVec;

use crate::config::{self, Config, ConfigError, Listen, NvmeConfig, start_line};
use crate::copy;
use crate::device::NvmeDevice;
use crate::logging;
use crate::memory::{DmaLimits, DmaSpace};
use crate::nvme_ctrl::{Controller, ControllerConfig, Poll, WorkerParts};
use crate::pci::{Function, FunctionConfig, Ids};
use crate::subsystem::Subsystem;
use crate::vfio_user::{Interrupts, Listener, Pumped, Session, closes_too_slowly};
use guarded::Guarded;
pub use signals::Signals;

/// From SIGTERM to the end of the process, at most.
const FAREWELL: Duration = Duration::from_secs(10);

/// While the end is waited for: how often workers are looked after that do not answer.
const GLANCE: Duration = Duration::from_millis(100);

/// BAR 0: registers, then one page of doorbells.
const BAR0_SIZE: u64 = 16 << 10;

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
    let subsystem = Subsystem::new(namespaces, false);
    let mut server = Server::new(&config, &subsystem, &lanes.into())?;
    announce(&start_line(&config.socket));
    log::info!("serving with {kind}; Copy formats {:#06x}", copy::OCFS);
    for line in lines {
        log::info!("{line}");
    }
    logging::begin();
    server.serve(&signals);
    Ok(server.farewell())
}

/// Who is at the other end, as far as the system tells.
fn peer_of(socket: &UnixStream) -> std::io::Result<String> {
    // Not by rustix, whose process ids are never 0: one that we cannot see, in another container, is.
    let peer = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)?;
    let (pid, user) = (peer.pid(), peer.uid());
    // Its own choice of name, so quoted.
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Ok(format!("{:?}, process {pid}, user {user}", name.trim_end()))
}

/// For whoever started us. That standard output is closed or full is no reason to end.
fn announce(line: &str) {
    let mut out = std::io::stdout();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        log::warn!("standard output did not take this line ({error}): {line}");
    }
}

/// What has something to be read (or is over, or may be written to again): nothing else is asked, for each question is a
/// system call, and a trapped doorbell waits for all of them.
#[derive(Clone, Copy, Debug)]
struct Ready {
    signals: bool,
    wake: bool,
    session: bool,
    /// The client has closed its end, whether there is something to be read or not.
    hung_up: bool,
    door: bool,
}

impl Ready {
    /// Not known: ask everybody.
    const ALL: Self = Ready { signals: true, wake: true, session: true, hung_up: false, door: true };
}

/// The listening socket, the device behind it, and the client if there is one.
pub struct Server {
    listener: Listener,
    device: NvmeDevice,
    session: Option<Session>,
    /// Who has the session, or had the last one, for the log.
    peer: String,
    /// The last client has left and the log does not say yet that nothing of it is left.
    leaving: bool,
    /// Written by workers and by the last pin on removed memory.
    wake: Arc<OwnedFd>,
}

impl Server {
    /// A device that listens.
    ///
    /// # Errors
    /// The socket or the device's threads cannot be made.
    pub fn new(config: &Config, subsystem: &Arc<Subsystem>, parts: &WorkerParts) -> anyhow::Result<Self> {
        let wake = Arc::new(
            eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).context("cannot make an eventfd")?,
        );
        let waker = {
            let wake = Arc::clone(&wake);
            Arc::new(move || {
                // A full counter wakes just as well.
                let _ = rustix::io::write(&wake, &1_u64.to_ne_bytes());
            })
        };
        let nvme = &config.nvme;
        let memory = DmaSpace::new(DmaLimits::default(), waker.clone());
        let interrupts = Arc::new(Interrupts::new(nvme.msix_qsize));
        let ids = Ids { vendor: nvme.vendor_id, device: nvme.device_id, ..Ids::default() };
        let function = Function::new(&FunctionConfig {
            ids,
            class: FunctionConfig::CLASS_NVME,
            registers_size: BAR0_SIZE,
            vectors: nvme.msix_qsize,
        })?;
        let seat = subsystem.join(waker.clone()).context("the subsystem takes no controller")?;
        let controller = Controller::new(
            controller_config(nvme, ids),
            seat,
            memory.epoch(),
            interrupts.clone(),
            parts,
            waker,
        )
        .context("cannot start the workers")?;
        let (listener, prefix) = match config.listen {
            Listen::Bind(access) => (Listener::bind(&config.socket, access), "--socket: "),
            Listen::Inherited(fd) => (Listener::inherit(fd), "--fd: "),
        };
        let listener = listener.map_err(|error| ConfigError::Unusable { prefix, text: error.to_string() })?;
        let device = NvmeDevice::new(function, controller, memory, interrupts);
        Ok(Self { listener, device, session: None, peer: String::new(), leaving: false, wake })
    }

    /// Serves until a signal asks to stop.
    pub fn serve(&mut self, signals: &Signals) {
        let mut ready = Ready::ALL;
        while !signals.terminate() {
            if ready.signals && signals.dump() {
                self.device.controller.dump();
            }
            let busy = self.turn(ready);
            let patience = if ready.door { self.accept() } else { None };
            ready = self.wait(signals.fd(), patience, busy);
        }
    }

    /// One round without waiting. True when another should follow at once.
    fn turn(&mut self, ready: Ready) -> bool {
        if ready.wake {
            self.clear_wake();
        }
        let now = Instant::now();
        guarded::guard(&mut self.device, |device| {
            device.controller.on_messages();
            device.controller.on_time(now);
        });
        let Some(session) = &mut self.session else { return false };
        let answer = self.device.poll_answer(now);
        let mut device = Guarded(&mut self.device);
        let pumped = match answer {
            Some(result) => session.finish(result, &mut device),
            // Nobody is there to take the answer, and poll reports that again and again, whatever it is asked.
            None if session.is_waiting() && ready.hung_up => Ok(Pumped::Closed),
            None if session.is_waiting() || !ready.session => Ok(Pumped::Drained),
            None => session.pump(&mut device),
        };
        match pumped {
            // An answer may have become possible while the session was pumped: the workers are quick.
            Ok(Pumped::Again) => true,
            Ok(Pumped::Closed) => {
                log::info!("the client has gone: {}", self.peer);
                if session.is_untouched() && self.device.controller.doorbell_file().is_none() {
                    log::warn!(
                        "it touched nothing, as SPDK's does that must map the doorbells: serve with --nvme doorbells=mmap"
                    );
                }
                self.disconnect();
                true
            }
            Ok(_) if session.deadline().is_some_and(|at| now >= at) => {
                log::warn!("a client that did not say VERSION is dropped, for others may wait");
                self.disconnect();
                true
            }
            Ok(_) => false,
            Err(error) => {
                log::error!("the client is dropped: {}: {error}", self.peer);
                self.disconnect();
                true
            }
        }
    }

    fn clear_wake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    fn disconnect(&mut self) {
        self.session = None;
        self.leaving = true;
        guarded::guard(&mut self.device, NvmeDevice::disconnect);
    }

    /// Takes a client if there is none. Returns how long to pause when the system refused one.
    fn accept(&mut self) -> Option<Duration> {
        if !self.is_open() {
            return None;
        }
        if closes_too_slowly() {
            log::error!("no client is let in before descriptors of earlier ones could be closed");
            return Some(Duration::from_secs(1));
        }
        match self.listener.accept(self.session.is_none()) {
            Ok(Some(socket)) => match peer_of(&socket).and_then(|peer| Ok((peer, Session::new(socket)?))) {
                Ok((peer, session)) => {
                    log::info!("a client has connected: {peer}");
                    (self.session, self.peer) = (Some(session), peer);
                }
                Err(error) => log::error!("a client could not be taken: {error}"),
            },
            Ok(None) => {}
            Err(error) => {
                log::error!("accept: {error}");
                return Some(Duration::from_millis(100));
            }
        }
        None
    }

    /// Is the door looked after? Who comes before the last client has left altogether waits in front of it, and so does
    /// who comes before the present one has said VERSION: that one may be none.
    fn is_open(&mut self) -> bool {
        if let Some(session) = &self.session {
            return session.client().is_some();
        }
        let vacant = self.device.is_vacant(Instant::now());
        if vacant && std::mem::take(&mut self.leaving) {
            log::info!("nothing is left of it; the next client may come");
        }
        vacant
    }

    /// Waits until there is something to do, and says where; `busy`: does not wait, for the session has more to do.
    fn wait(&mut self, signals: BorrowedFd<'_>, pause: Option<Duration>, busy: bool) -> Ready {
        let open = self.is_open();
        let mut fds: SmallVec<[PollFd<'_>; 4]> = SmallVec::new();
        fds.push(PollFd::from_borrowed_fd(signals, PollFlags::IN));
        fds.push(PollFd::new(&*self.wake, PollFlags::IN));
        if let Some(session) = &self.session {
            let interest = session.interest();
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, interest.read);
            flags.set(PollFlags::OUT, interest.write);
            fds.push(PollFd::new(session, flags));
        }
        if pause.is_none() && open {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let silence = self.session.as_ref().and_then(Session::deadline);
        let until = [self.device.deadline(), silence].into_iter().flatten().min();
        let until = until.map(|at| at.saturating_duration_since(Instant::now()));
        let now = busy.then_some(Duration::ZERO);
        let timeout = [until, pause, now].into_iter().flatten().min().map(|duration| Timespec {
            tv_sec: duration.as_secs() as i64,
            // Rounded up, so that what is due is due when poll returns.
            tv_nsec: i64::from(duration.subsec_nanos()) + 1,
        });
        let timeout = timeout
            .map(|t| if t.tv_nsec < 1_000_000_000 { t } else { Timespec { tv_nsec: 999_999_999, ..t } });
        // An interrupted wait is as good as an event: the next round looks at everything.
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return Ready::ALL;
        }
        // Whatever is reported of a descriptor (its end too) is for its owner to see.
        let has = |at: usize| fds.get(at).is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty());
        let session = usize::from(self.session.is_some());
        Ready {
            signals: has(0),
            wake: has(1),
            session: busy || (session == 1 && has(2)),
            hung_up: session == 1 && fds[2].revents().contains(PollFlags::HUP),
            door: has(2 + session),
        }
    }

    /// Drains, flushes and stops, within [`FAREWELL`].
    pub fn farewell(&mut self) -> ExitCode {
        let start = Instant::now();
        let deadline = start + FAREWELL;
        let client = if self.session.is_some() { "a client is attached" } else { "no client is attached" };
        log::info!("asked to end; {client}");
        // The client is let go last: while commands drain they still complete into its memory.
        self.device.begin_reset();
        // What was acknowledged is worth its flush even if another command hangs.
        let clean = self.settle(start + FAREWELL / 2, deadline) || self.settle(deadline, deadline);
        if !clean {
            log::error!(
                "not all is drained and flushed {FAREWELL:?} after the signal; data may not be durable"
            );
        }
        let stopped = self.device.controller.is_quiet() && self.device.controller.stop(deadline);
        if self.session.take().is_some() {
            log::info!("the client is let go: {}", self.peer);
        }
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
        self.device.controller.flush();
        self.until(deadline, |device| device.controller.flushed().is_some());
        let flushed = self.device.controller.flushed();
        match flushed {
            Some(true) => log::info!("flushed"),
            Some(false) => log::error!("an image could not be flushed"),
            None => log::error!("an image does not answer to a flush"),
        }
        quiet && flushed == Some(true)
    }

    /// Takes workers' messages until `done`; false at the deadline.
    fn until(&mut self, deadline: Instant, done: impl Fn(&NvmeDevice) -> bool) -> bool {
        loop {
            self.clear_wake();
            self.device.controller.on_messages();
            if done(&self.device) {
                return true;
            }
            let now = Instant::now();
            self.device.controller.unblock(now);
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

fn controller_config(nvme: &NvmeConfig, ids: Ids) -> ControllerConfig {
    ControllerConfig {
        serial: nvme.serial.clone(),
        model: nvme.model.clone(),
        firmware: nvme.firmware_version.clone(),
        subnqn: nvme.subnqn.clone(),
        vid: ids.vendor,
        ssvid: ids.subsystem_vendor,
        mdts: nvme.mdts,
        max_ioqpairs: nvme.max_ioqpairs,
        mqes: nvme.mqes,
        aerl: nvme.aerl,
        vectors: nvme.msix_qsize,
        ocfs: nvme.ocfs,
        cdfe: nvme.cdfe,
        iothreads: nvme.iothreads.into(),
        doorbell_buffers: nvme.dbcs,
        map_doorbells: nvme.doorbells == config::Doorbells::Mmap,
        poll: match nvme.poll {
            config::Poll::Adaptive => Poll::Adaptive,
            config::Poll::Always => Poll::Always,
        },
    }
}
