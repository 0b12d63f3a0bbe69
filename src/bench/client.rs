//! The vfio-user wire, client side: one message out, one reply in, every wait bounded.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, IntoBytes};

use super::memory::Memory;
use crate::config::ConfigError;
use crate::vfio_user::messages::{
    DeviceInfoBody, DmaMapBody, FLAG_ERROR, FLAG_NO_REPLY, FLAG_TYPE_MASK, HEADER_SIZE, Header,
    MAX_MESSAGE_SIZE, RegionAccessBody, RegionInfoBody, SparseMmapCapability, TYPE_REPLY, VersionBody,
    command,
};
use crate::vfio_user::version::MINOR;

/// Region of the controller's registers.
pub(super) const BAR0: u32 = 0;
/// Region of PCI configuration space.
pub(super) const CONFIG: u32 = 7;

/// Body of DEVICE_GET_REGION_INFO, with room for its capabilities.
const REGION_INFO_ROOM: usize = 256;
/// Rights of a DMA mapping: the device may read and write.
const READ_WRITE: u32 = 3;
const REGION_FLAG_MMAP: u32 = 4;
const SPARSE_MMAP: u16 = 1;
/// How long a server may go on refusing: the client before us may still be leaving.
const BUSY_FOR: Duration = Duration::from_secs(2);

/// One connection that agreed on the version.
#[derive(Debug)]
pub(super) struct Client {
    socket: UnixStream,
    next_id: u16,
    /// Sent with the flag that asks for no reply, as QEMU sends its writes.
    posted: bool,
    scratch: Vec<u8>,
}

/// A mappable part of a region.
#[derive(Debug)]
pub(super) struct Window {
    /// Offset in the region, bytes.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Offset in the file, bytes.
    file_offset: u64,
    file: OwnedFd,
}

impl Window {
    /// Maps it.
    pub(super) fn map(&self) -> anyhow::Result<Memory> {
        let len = usize::try_from(self.size)?;
        let stat = rustix::fs::fstat(&self.file)?;
        let end = self.file_offset.checked_add(self.size);
        // A mapping past the file's end would kill the process at the first doorbell.
        ensure!(
            end.is_some_and(|end| u64::try_from(stat.st_size).is_ok_and(|size| end <= size)),
            "the server's doorbell file is shorter than the window it announces"
        );
        Memory::map(self.file.as_fd(), self.file_offset, len).context("cannot map the doorbells")
    }
}

impl Client {
    /// Connects and agrees on the version. Every wait for an answer ends after `patience`.
    ///
    /// # Errors
    /// A [`ConfigError`] if nobody listens there, else what the server did.
    pub(super) fn attach(
        path: &Path,
        option: &'static str,
        patience: Duration,
        posted: bool,
    ) -> anyhow::Result<Self> {
        let begun = Instant::now();
        // A server that serves one client at a time hangs up while the last one is still leaving.
        loop {
            let socket = UnixStream::connect(path).map_err(|error| {
                ConfigError::bad_option(option, path, error.to_string(), "start the server first")
            })?;
            socket.set_read_timeout(Some(patience))?;
            socket.set_write_timeout(Some(patience))?;
            let mut client = Self { socket, next_id: 0, posted, scratch: Vec::new() };
            match client.version() {
                Ok(()) => return Ok(client),
                Err(error) if begun.elapsed() > BUSY_FOR.min(patience) => {
                    return Err(error.context(format!("{} lets no client in", path.display())));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn version(&mut self) -> anyhow::Result<()> {
        let mut body = VersionBody { major: 0, minor: MINOR }.as_bytes().to_vec();
        body.extend_from_slice(b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}\0");
        let (reply, _) = self.ask(command::VERSION, &body, &[])?;
        let (version, _) = VersionBody::read_from_prefix(&reply).map_err(|_| short("VERSION"))?;
        ensure!(version.major == 0, "the server speaks vfio-user {}.{}", version.major, version.minor);
        Ok(())
    }

    /// The socket, to see whether the server is still there.
    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    fn send(&mut self, number: u16, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> anyhow::Result<u16> {
        self.next_id = self.next_id.wrapping_add(1);
        let size = u32::try_from(HEADER_SIZE + body.len())?;
        let header = Header { id: self.next_id, command: number, size, flags, error: 0 };
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(control.push(SendAncillaryMessage::ScmRights(fds)), "too many descriptors");
        }
        self.scratch.clear();
        self.scratch.extend_from_slice(header.as_bytes());
        self.scratch.extend_from_slice(body);
        let mut sent = 0;
        while sent < self.scratch.len() {
            let left = [IoSlice::new(self.scratch.get(sent..).unwrap_or_default())];
            match sendmsg(&self.socket, &left, &mut control, SendFlags::NOSIGNAL) {
                Ok(bytes) => {
                    sent += bytes;
                    control.clear();
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(lost(errno).context(format!("sending {}", name(number)))),
            }
        }
        Ok(header.id)
    }

    fn receive(&mut self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> anyhow::Result<()> {
        let mut got = 0;
        while let Some(left) = bytes.get_mut(got..).filter(|left| !left.is_empty()) {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(16))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut left = [IoSliceMut::new(left)];
            match recvmsg(&self.socket, &mut left, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => {
                    for message in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(rights) = message {
                            fds.extend(rights);
                        }
                    }
                    ensure!(received.bytes > 0, "the server hung up");
                    got += received.bytes;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(lost(errno)),
            }
        }
        Ok(())
    }

    /// Sends a command and waits for its reply.
    fn ask(
        &mut self,
        number: u16,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let id = self.send(number, 0, body, fds)?;
        self.reply(number, id).with_context(|| name(number))
    }

    fn reply(&mut self, number: u16, id: u16) -> anyhow::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = [0; HEADER_SIZE];
        let mut received = Vec::new();
        self.receive(&mut bytes, &mut received)?;
        let header = Header::read_from_bytes(&bytes).map_err(|_| short("header"))?;
        let size = header.size as usize;
        ensure!((HEADER_SIZE..=MAX_MESSAGE_SIZE).contains(&size), "a reply of {size} bytes");
        let mut body = vec![0; size - HEADER_SIZE];
        self.receive(&mut body, &mut received)?;
        ensure!(
            header.flags & FLAG_TYPE_MASK == TYPE_REPLY && (header.id, header.command) == (id, number),
            "the server answers something else: {header:?}"
        );
        if header.flags & FLAG_ERROR != 0 {
            bail!(
                "refused: {}",
                io::Error::from_raw_os_error(i32::try_from(header.error).unwrap_or(i32::MAX))
            );
        }
        Ok((body, received))
    }

    /// Lets the device read and write `size` bytes of `file` at `iova`.
    pub(super) fn map(&mut self, iova: u64, size: u64, file: BorrowedFd<'_>) -> anyhow::Result<()> {
        let argsz = size_of::<DmaMapBody>() as u32;
        let body = DmaMapBody { argsz, flags: READ_WRITE, offset: 0, address: iova, size };
        self.ask(command::DMA_MAP, body.as_bytes(), &[file]).map(drop)
    }

    /// Takes the device's knowledge for a check: is this a PCI device?
    pub(super) fn check_device(&mut self) -> anyhow::Result<()> {
        let argsz = size_of::<DeviceInfoBody>() as u32;
        let body = DeviceInfoBody { argsz, flags: 0, num_regions: 0, num_irqs: 0 };
        let (reply, _) = self.ask(command::GET_INFO, body.as_bytes(), &[])?;
        let (info, _) = DeviceInfoBody::read_from_prefix(&reply).map_err(|_| short("device info"))?;
        ensure!(
            info.num_regions > CONFIG,
            "the device has {} regions and so is no PCI device",
            info.num_regions
        );
        Ok(())
    }

    /// The mappable part of BAR0 in which byte `wanted` lies, if there is one.
    pub(super) fn window(&mut self, wanted: u64) -> anyhow::Result<Option<Window>> {
        let mut body = [0; REGION_INFO_ROOM];
        let ask = RegionInfoBody {
            argsz: REGION_INFO_ROOM as u32,
            flags: 0,
            index: BAR0,
            cap_offset: 0,
            size: 0,
            offset: 0,
        };
        ask.write_to_prefix(&mut body).map_err(|_| short("region info"))?;
        let (reply, mut fds) = self.ask(command::GET_REGION_INFO, &body, &[])?;
        let (info, _) = RegionInfoBody::read_from_prefix(&reply).map_err(|_| short("region info"))?;
        let Some(file) = fds.pop().filter(|_| info.flags & REGION_FLAG_MMAP != 0) else {
            return Ok(None);
        };
        let found = if info.cap_offset == 0 {
            Some((0, info.size))
        } else {
            let list = reply.get(info.cap_offset as usize..).ok_or_else(|| short("region info"))?;
            let (sparse, areas) =
                SparseMmapCapability::read_from_prefix(list).map_err(|_| short("region capability"))?;
            let areas = areas.chunks_exact(16).take(sparse.nr_areas as usize).filter_map(|area| {
                let (offset, size) = area.split_at(8);
                Some((u64::from_ne_bytes(offset.try_into().ok()?), u64::from_ne_bytes(size.try_into().ok()?)))
            });
            let holds =
                |(offset, size): &(u64, u64)| wanted.checked_sub(*offset).is_some_and(|at| at < *size);
            areas.filter(|_| sparse.id == SPARSE_MMAP).find(holds)
        };
        let window = found.and_then(|(offset, size)| {
            Some(Window { offset, size, file_offset: info.offset.checked_add(offset)?, file })
        });
        Ok(window)
    }

    /// Reads `N` bytes of a region.
    pub(super) fn read<const N: usize>(&mut self, region: u32, offset: u64) -> anyhow::Result<[u8; N]> {
        let access = RegionAccessBody { offset, region, count: N as u32 };
        let (reply, _) = self.ask(command::REGION_READ, access.as_bytes(), &[])?;
        let data = reply.get(size_of::<RegionAccessBody>()..).and_then(|data| data.try_into().ok());
        data.ok_or_else(|| short("REGION_READ"))
    }

    /// Reads a 32-bit register.
    pub(super) fn read32(&mut self, offset: u64) -> anyhow::Result<u32> {
        self.read(BAR0, offset).map(u32::from_le_bytes)
    }

    /// Writes to a region and waits until it is done.
    pub(super) fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        let (body, len) = access(region, offset, data)?;
        self.ask(command::REGION_WRITE, body.get(..len).unwrap_or_default(), &[]).map(drop)
    }

    /// Writes a doorbell: with no answer where writes are posted.
    pub(super) fn ring(&mut self, offset: u64, value: u32) -> anyhow::Result<()> {
        if !self.posted {
            return self.write(BAR0, offset, &value.to_le_bytes());
        }
        let (body, len) = access(BAR0, offset, &value.to_le_bytes())?;
        let body = body.get(..len).unwrap_or_default();
        self.send(command::REGION_WRITE, FLAG_NO_REPLY, body, &[]).map(drop)
    }
}

/// The body of a REGION_WRITE of up to 8 bytes, and its length.
fn access(region: u32, offset: u64, data: &[u8]) -> anyhow::Result<([u8; 24], usize)> {
    let mut body = [0; 24];
    let head = RegionAccessBody { offset, region, count: u32::try_from(data.len())? };
    head.write_to_prefix(&mut body).map_err(|_| short("REGION_WRITE"))?;
    let len = size_of::<RegionAccessBody>() + data.len();
    body.get_mut(size_of::<RegionAccessBody>()..len).context("more than 8 bytes")?.copy_from_slice(data);
    Ok((body, len))
}

fn short(what: &str) -> anyhow::Error {
    anyhow::anyhow!("the server's {what} has a wrong length")
}

fn lost(errno: Errno) -> anyhow::Error {
    match errno {
        Errno::AGAIN => anyhow::anyhow!("no answer within --timeout"),
        Errno::PIPE | Errno::CONNRESET => anyhow::anyhow!("the server hung up"),
        errno => io::Error::from(errno).into(),
    }
}

fn name(number: u16) -> String {
    let name = match number {
        command::VERSION => "VERSION",
        command::DMA_MAP => "DMA_MAP",
        command::GET_INFO => "DEVICE_GET_INFO",
        command::GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
        command::REGION_READ => "REGION_READ",
        command::REGION_WRITE => "REGION_WRITE",
        other => return format!("vfio-user command {other}"),
    };
    name.to_owned()
}
