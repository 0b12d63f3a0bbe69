//! One socket, the controller behind it, and the client if there is one.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use smallvec::SmallVec;

use super::guarded::{self, Guarded};
use crate::config::{self, Config, ConfigError, Listen, NvmeConfig};
use crate::control::PortMut;
use crate::device::NvmeDevice;
use crate::memory::{DmaLimits, DmaSpace};
use crate::nvme_ctrl::{Controller, ControllerConfig, Poll, WorkerParts};
use crate::pci::{Function, FunctionConfig, Ids};
use crate::subsystem::{Subsystem, Wake};
use crate::vfio_user::{Interrupts, Listener, Pumped, Session, closes_too_slowly};

/// BAR 0: registers, then one page of doorbells.
const BAR0_SIZE: u64 = 16 << 10;

/// What all ports wait with: descriptors, each with what to look for.
pub(super) type PollFds<'a> = SmallVec<[PollFd<'a>; 8]>;

/// Who is at the other end, as far as the system tells.
fn peer_of(socket: &UnixStream) -> std::io::Result<String> {
    // Not by rustix, whose process ids are never 0: one that we cannot see, in another container, is.
    let peer = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)?;
    let (pid, user) = (peer.pid(), peer.uid());
    // Its own choice of name, so quoted.
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Ok(format!("{:?}, process {pid}, user {user}", name.trim_end()))
}

/// What of a port has something to be read (or is over, or may be written to again): nothing else is asked,
/// for each question is a system call, and a trapped doorbell waits for all of them.
#[derive(Clone, Copy, Debug)]
struct Ready {
    session: bool,
    /// The client has closed its end, whether there is something to be read or not.
    hung_up: bool,
    door: bool,
}

impl Ready {
    /// Not known: ask everybody.
    const ALL: Self = Ready { session: true, hung_up: false, door: true };
}

/// Which of the descriptors that were waited with are a port's, by their place.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    session: Option<usize>,
    door: Option<usize>,
}

/// See the module docs.
pub(super) struct Port {
    listener: Listener,
    /// What its clients see.
    pub device: NvmeDevice,
    session: Option<Session>,
    /// Who has the session, or had the last one, for the log.
    peer: String,
    /// The last client has left and the log does not say yet that nothing of it is left.
    leaving: bool,
    ready: Ready,
    /// How long the system lets nobody in.
    pause: Option<Duration>,
}

impl Port {
    /// A controller of `subsystem` that listens at `path`, or where `config` has a descriptor instead.
    ///
    /// # Errors
    /// The socket or the controller's threads cannot be made; the subsystem has no seat.
    pub fn new(
        config: &Config,
        path: &Path,
        subsystem: &Arc<Subsystem>,
        parts: &WorkerParts,
        wake: &Wake,
    ) -> anyhow::Result<Self> {
        let nvme = &config.nvme;
        let memory = DmaSpace::new(DmaLimits::default(), Arc::clone(wake));
        let interrupts = Arc::new(Interrupts::new(nvme.msix_qsize));
        let ids = Ids { vendor: nvme.vendor_id, device: nvme.device_id, ..Ids::default() };
        let function = Function::new(&FunctionConfig {
            ids,
            class: FunctionConfig::CLASS_NVME,
            registers_size: BAR0_SIZE,
            vectors: nvme.msix_qsize,
        })?;
        let seat = subsystem.join(Arc::clone(wake)).context("the subsystem takes no further controller")?;
        let controller = Controller::new(
            controller_config(nvme, ids),
            seat,
            memory.epoch(),
            interrupts.clone(),
            parts,
            Arc::clone(wake),
        )
        .context("cannot start the workers")?;
        let (listener, prefix) = match config.listen {
            Listen::Bind(access) => (Listener::bind(path, access), "--socket: "),
            Listen::Inherited(fd) => (Listener::inherit(fd), "--fd: "),
        };
        let listener = listener.map_err(|error| ConfigError::Unusable { prefix, text: error.to_string() })?;
        let device = NvmeDevice::new(function, controller, memory, interrupts);
        Ok(Self {
            listener,
            device,
            session: None,
            peer: String::new(),
            leaving: false,
            ready: Ready::ALL,
            pause: None,
        })
    }

    /// One round without waiting. True when another should follow at once.
    pub fn turn(&mut self) -> bool {
        let (ready, now) = (self.ready, Instant::now());
        guarded::guard(&mut self.device, |device| {
            device.controller.on_messages();
            device.controller.on_time(now);
        });
        let Some(session) = &mut self.session else { return false };
        let answer = self.device.poll_answer(now);
        let mut device = Guarded(&mut self.device);
        let pumped = match answer {
            Some(result) => session.finish(result, &mut device),
            // Nobody is there to take the answer, and poll reports that again and again, whatever it is
            // asked.
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

    fn disconnect(&mut self) {
        self.session = None;
        self.leaving = true;
        guarded::guard(&mut self.device, NvmeDevice::disconnect);
    }

    /// Takes a client if there is none and one may be waiting. Returns how long to pause when the system
    /// refused one.
    pub fn accept(&mut self) -> Option<Duration> {
        self.pause = if self.ready.door { self.try_accept() } else { None };
        self.pause
    }

    fn try_accept(&mut self) -> Option<Duration> {
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

    /// Is the door looked after? Who comes before the last client has left altogether waits in front of it,
    /// and so does who comes before the present one has said VERSION: that one may be none.
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

    /// Adds what it waits for to `fds`.
    pub fn watch<'a>(&'a mut self, fds: &mut PollFds<'a>) -> Places {
        let open = self.is_open() && self.pause.is_none();
        let mut places = Places::default();
        if let Some(session) = &self.session {
            let interest = session.interest();
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, interest.read);
            flags.set(PollFlags::OUT, interest.write);
            places.session = Some(fds.len());
            fds.push(PollFd::new(session, flags));
        }
        if open {
            places.door = Some(fds.len());
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        places
    }

    /// Takes what the wait has shown: `None` when that is not known. `busy`: the session has more to do
    /// anyway.
    pub fn look(&mut self, places: Places, revents: Option<&[PollFlags]>, busy: bool) {
        let Some(revents) = revents else {
            self.ready = Ready::ALL;
            return;
        };
        // Whatever is reported of a descriptor (its end too) is for its owner to see.
        let of = |place: Option<usize>| {
            place.and_then(|at| revents.get(at)).copied().unwrap_or(PollFlags::empty())
        };
        let session = of(places.session);
        self.ready = Ready {
            session: busy || !session.is_empty(),
            hung_up: session.contains(PollFlags::HUP),
            door: !of(places.door).is_empty(),
        };
    }

    /// When it has something to do without further notice.
    pub fn deadline(&self) -> Option<Instant> {
        let silence = self.session.as_ref().and_then(Session::deadline);
        [self.device.deadline(), silence].into_iter().flatten().min()
    }

    /// Is a client attached?
    pub fn has_client(&self) -> bool {
        self.session.is_some()
    }

    /// What the control socket shows of it.
    pub fn shown(&mut self) -> PortMut<'_> {
        PortMut {
            socket: self.listener.path(),
            client: self.session.as_ref().map(|_| self.peer.as_str()),
            controller: &mut self.device.controller,
        }
    }

    /// Lets the client go, if there is one.
    pub fn let_go(&mut self) {
        if self.session.take().is_some() {
            log::info!("the client is let go: {}", self.peer);
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
