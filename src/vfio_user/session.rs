//! One client, from VERSION to its last message.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::client_fds::{self, ClientFds};
use super::codec::{self, IrqSet, IrqSetData, RegionAccess, Request};
use super::device::{Answer, Device, DmaUnmap, IrqData, SetIrqs};
use super::error::SessionError;
use super::messages::{Header, NUM_REGIONS, command};
use super::receiver::{Filled, Message, Receiver};
use super::sender::Sender;
use super::version::ClientVersion;

/// Messages executed by one [`Session::pump`], so that a doorbell storm leaves the thread's other
/// duties their turn.
const BUDGET: usize = 64;
/// A handler that takes longer is worth a line in the log: at 5 s the client gives up.
const SLOW: Duration = Duration::from_millis(100);
/// From the connection to the end of its VERSION. Clients send it at once; the next one, which waits
/// meanwhile, gives up after 5 s (QEMU).
const NEGOTIATION: Duration = Duration::from_secs(2);
/// Complaints about one client that are warnings; the rest are for debugging.
const LOUD_COMPLAINTS: u32 = 16;

/// Why [`Session::pump`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pumped {
    /// All that had arrived is done. Wait, level-triggered, as [`Session::interest`] says.
    Drained,
    /// The budget is spent and messages may lie in the session's own buffer, where epoll does not
    /// see them: pump again before sleeping.
    Again,
    /// The device owes an answer: nothing happens before [`Session::finish`].
    Waiting,
    /// The client does not read its replies: wait until the socket is writable.
    Blocked,
    /// The client has gone. Its mappings and eventfds are the caller's to drop.
    Closed,
}

/// What to wait for on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// New messages would be taken.
    pub read: bool,
    /// Replies are waiting to be sent.
    pub write: bool,
}

/// One connected client. Dropping it closes the connection and every descriptor not yet handed to
/// the device.
pub struct Session {
    socket: UnixStream,
    receiver: Receiver,
    state: State,
}

/// What is left of a session when its socket and its receive buffer are lent out.
struct State {
    sender: Sender,
    connected: Instant,
    client: Option<ClientVersion>,
    pending: Option<Pending>,
    complaints: u32,
    /// The device has memory of the client's, or had.
    mapped: bool,
    /// Some region was read or written.
    touched: bool,
}

/// A request whose answer the device owes.
struct Pending {
    header: Header,
    repeated: Repeated,
}

/// What a reply that says success repeats of its request.
#[derive(Clone, Copy)]
enum Repeated {
    Nothing,
    Unmap(DmaUnmap),
    /// A region write. It has no reply that says failure: see [`State::region_read`].
    Access(RegionAccess),
}

impl Session {
    /// A session on a connected socket, which is made non-blocking.
    ///
    /// # Errors
    /// Those of fcntl.
    pub fn new(socket: UnixStream) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Session {
            socket,
            receiver: Receiver::new(),
            state: State {
                sender: Sender::new(),
                connected: Instant::now(),
                client: None,
                pending: None,
                complaints: 0,
                mapped: false,
                touched: false,
            },
        })
    }

    /// Sends what is queued, receives what is there, and executes complete messages in their order,
    /// up to a budget. Never waits.
    ///
    /// # Errors
    /// The session is beyond repair; see [`SessionError`].
    pub fn pump(&mut self, device: &mut dyn Device) -> Result<Pumped, SessionError> {
        match self.pump_inner(device) {
            Err(SessionError::Gone) => Ok(Pumped::Closed),
            other => other,
        }
    }

    fn pump_inner(&mut self, device: &mut dyn Device) -> Result<Pumped, SessionError> {
        self.state.sender.flush(&self.socket)?;
        let mut budget = BUDGET;
        let mut empty = false;
        loop {
            if self.state.pending.is_some() {
                return Ok(Pumped::Waiting);
            }
            if self.state.sender.is_full() {
                return Ok(Pumped::Blocked);
            }
            if budget == 0 {
                return Ok(Pumped::Again);
            }
            if let Some(message) = self.receiver.next()? {
                budget -= 1;
                self.state.handle(&self.socket, message, device)?;
                continue;
            }
            if empty {
                return Ok(Pumped::Drained);
            }
            match self.receiver.fill(&self.socket)? {
                Filled::Bytes => {}
                // What comes from now on wakes a level-triggered wait, so no call is spent on
                // seeing that there is nothing.
                Filled::LastBytes => empty = true,
                Filled::Empty => return Ok(Pumped::Drained),
                Filled::Closed => return Ok(Pumped::Closed),
            }
        }
    }

    /// Gives the answer the device owed since [`Answer::Later`], then pumps. Owed for posted
    /// requests too: they hold back later messages all the same, only nothing is sent.
    ///
    /// # Errors
    /// As [`Self::pump`].
    pub fn finish(
        &mut self,
        result: Result<(), Errno>,
        device: &mut dyn Device,
    ) -> Result<Pumped, SessionError> {
        match self.state.pending.take() {
            Some(pending) => {
                let sent = self.state.answer(&self.socket, &pending.header, pending.repeated, result);
                match sent {
                    Err(SessionError::Gone) => return Ok(Pumped::Closed),
                    other => other?,
                }
            }
            None => log::error!("an answer for a client that waits for none"),
        }
        self.pump(device)
    }

    /// Does the device owe an answer ([`Answer::Later`] without [`Self::finish`])?
    pub fn is_waiting(&self) -> bool {
        self.state.pending.is_some()
    }

    /// Are replies waiting for the socket to become writable?
    pub fn wants_write(&self) -> bool {
        self.state.sender.is_waiting()
    }

    /// What to wait for on the socket, level-triggered. The end of the connection (EPOLLHUP) is
    /// reported whatever one waits for; while the session does not read, it means: drop it.
    pub fn interest(&self) -> Interest {
        Interest {
            read: self.state.pending.is_none() && !self.state.sender.is_full(),
            write: self.wants_write(),
        }
    }

    /// Did the client give the device memory and then touch none of its regions? So does SPDK's when it finds
    /// no doorbells to map.
    pub fn is_untouched(&self) -> bool {
        self.state.mapped && !self.state.touched
    }

    /// When a client that has not said VERSION by then is to be dropped. None after it: silence is legal
    /// then, a virtual machine may stand still for a day.
    pub fn deadline(&self) -> Option<Instant> {
        self.client().is_none().then(|| self.state.connected + NEGOTIATION)
    }

    /// What the client said of itself; None before VERSION.
    pub fn client(&self) -> Option<&ClientVersion> {
        self.state.client.as_ref()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        client_fds::end(&self.socket);
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Session {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl State {
    fn handle(
        &mut self,
        socket: &UnixStream,
        message: Message<'_>,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let header = message.header;
        if !header.is_command() {
            // Nothing is ever asked of the client, so no reply can be meant; and whoever sent it
            // expects nothing back.
            self.complain(format_args!("ignored a message with flags {:#x}", header.flags));
            return Ok(());
        }
        if self.client.is_none() && header.command != command::VERSION {
            return Err(SessionError::NotNegotiated(header.command));
        }
        if self.client.is_some() && header.command == command::VERSION {
            return Err(SessionError::SecondVersion);
        }
        log::trace!("{header:?}, {} descriptors", message.fds.len());
        // Posted writes are the busy path, and nobody waits for them.
        let begun = (!header.no_reply()).then(Instant::now);
        match codec::decode(&header, message.body, message.fds.len()) {
            Ok(request) => self.execute(socket, &header, request, message.fds, device)?,
            Err(errno) => {
                self.complain(format_args!("refused {header:?}: {errno}"));
                self.refuse(socket, &header, errno)?;
            }
        }
        if let Some(taken) = begun.map(|begun| begun.elapsed())
            && taken > SLOW
        {
            log::warn!("command {} took {} ms", header.command, taken.as_millis());
        }
        Ok(())
    }

    fn execute(
        &mut self,
        socket: &UnixStream,
        header: &Header,
        request: Request<'_>,
        fds: ClientFds,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        match request {
            Request::Version(client) => {
                log::debug!("client: {client:?}");
                self.client = Some(client);
                self.reply(socket, header, |out| {
                    codec::append_version(out, client.minor);
                })
            }
            Request::DmaMap(map) => {
                let result = device.dma_map(map, fds.first());
                self.mapped |= result.is_ok();
                self.answer(socket, header, Repeated::Nothing, result)
            }
            Request::DmaUnmap(unmap) => {
                let answer = device.dma_unmap(unmap);
                self.answer_or_wait(socket, header, Repeated::Unmap(unmap), answer)
            }
            Request::GetInfo => self.reply(socket, header, codec::append_device_info),
            Request::GetRegionInfo { index, argsz } => {
                self.reply_region_info(socket, header, index, argsz, device)
            }
            Request::GetIrqInfo { index } => {
                let info = device.irq_info(index);
                self.reply(socket, header, |out| {
                    codec::append_irq_info(out, index, info);
                })
            }
            Request::SetIrqs(set) => {
                let result = device.set_irqs(join(set, fds));
                self.answer(socket, header, Repeated::Nothing, result)
            }
            Request::RegionRead(access) => {
                self.touched = true;
                self.region_read(socket, header, access, device)
            }
            Request::RegionWrite(access, data) => {
                self.touched = true;
                let answer = match self.is_inside(&access, device) {
                    true => device.region_write(access.region, access.offset, data),
                    false => Answer::Now(Ok(())),
                };
                self.answer_or_wait(socket, header, Repeated::Access(access), answer)
            }
            Request::Reset => {
                let answer = device.reset();
                self.answer_or_wait(socket, header, Repeated::Nothing, answer)
            }
        }
    }

    /// A wrong access is not refused but gives what a bus gives: ones, and writes that go nowhere.
    /// cloud-hypervisor does not understand an error reply here and would wait for ever.
    fn region_read(
        &mut self,
        socket: &UnixStream,
        header: &Header,
        access: RegionAccess,
        device: &mut dyn Device,
    ) -> Result<(), SessionError> {
        let inside = self.is_inside(&access, device);
        self.reply(socket, header, |out| {
            codec::append_access(out, &access);
            let at = out.len();
            // `count` was checked against the largest transfer.
            out.resize(at + access.count as usize, 0xff);
            if inside {
                device.region_read(access.region, access.offset, &mut out[at..]);
            }
        })
    }

    fn is_inside(&mut self, access: &RegionAccess, device: &dyn Device) -> bool {
        let size = if access.region < NUM_REGIONS { device.region_info(access.region).size } else { 0 };
        let end = access.offset.checked_add(u64::from(access.count));
        let inside = end.is_some_and(|end| end <= size);
        if !inside {
            self.complain(format_args!("{access:?} outside a region of {size} bytes"));
        }
        inside
    }

    fn reply_region_info(
        &mut self,
        socket: &UnixStream,
        header: &Header,
        index: u32,
        argsz: u32,
        device: &dyn Device,
    ) -> Result<(), SessionError> {
        let info = device.region_info(index);
        // The reply may have to wait in the queue, where it needs a descriptor of its own.
        let fd = match info.mmap.map(|mmap| mmap.fd.try_clone_to_owned()) {
            None => None,
            Some(Ok(fd)) => Some(fd),
            Some(Err(error)) => {
                log::error!("cannot share the descriptor of region {index}: {error}");
                return self.refuse(socket, header, Errno::MFILE);
            }
        };
        if header.no_reply() {
            return Ok(());
        }
        self.sender.send(socket, |out| {
            let mut with_fd = false;
            codec::encode_reply(out, header, |out| {
                with_fd = codec::append_region_info(out, index, argsz, &info);
            });
            fd.filter(|_| with_fd)
        })
    }

    fn answer_or_wait(
        &mut self,
        socket: &UnixStream,
        header: &Header,
        repeated: Repeated,
        answer: Answer,
    ) -> Result<(), SessionError> {
        match answer {
            Answer::Now(result) => self.answer(socket, header, repeated, result),
            Answer::Later => {
                self.pending = Some(Pending { header: *header, repeated });
                Ok(())
            }
        }
    }

    fn answer(
        &mut self,
        socket: &UnixStream,
        header: &Header,
        repeated: Repeated,
        result: Result<(), Errno>,
    ) -> Result<(), SessionError> {
        match (result, repeated) {
            (_, Repeated::Access(access)) => {
                self.reply(socket, header, |out| codec::append_access(out, &access))
            }
            (Ok(()), Repeated::Unmap(unmap)) => {
                self.reply(socket, header, |out| codec::append_unmap(out, &unmap))
            }
            (Ok(()), Repeated::Nothing) => self.reply(socket, header, |_| {}),
            (Err(errno), _) => {
                self.complain(format_args!("command {} failed: {errno}", header.command));
                self.refuse(socket, header, errno)
            }
        }
    }

    fn reply(
        &mut self,
        socket: &UnixStream,
        header: &Header,
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), SessionError> {
        if header.no_reply() {
            return Ok(());
        }
        self.sender.send(socket, |out| {
            codec::encode_reply(out, header, body);
            None
        })
    }

    fn refuse(&mut self, socket: &UnixStream, header: &Header, errno: Errno) -> Result<(), SessionError> {
        if header.no_reply() {
            return Ok(());
        }
        self.sender.send(socket, |out| {
            codec::encode_error(out, header, errno);
            None
        })
    }

    /// Warns, a few times per session: what a client or guest can repeat must not fill the log.
    fn complain(&mut self, what: std::fmt::Arguments<'_>) {
        self.complaints = self.complaints.saturating_add(1);
        let level = if self.complaints > LOUD_COMPLAINTS { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "{what}");
    }
}

/// Joins a decoded DEVICE_SET_IRQS with its descriptors. Their number was checked by the decoder;
/// those that came with another data type are closed here.
fn join(set: IrqSet<'_>, fds: ClientFds) -> SetIrqs<'_> {
    SetIrqs {
        index: set.index,
        start: set.start,
        count: set.count,
        action: set.action,
        data: match set.data {
            IrqSetData::None => IrqData::None,
            IrqSetData::Bool(bytes) => IrqData::Bool(bytes),
            IrqSetData::Eventfds => IrqData::Eventfds(fds),
        },
    }
}

#[cfg(test)]
mod tests;
