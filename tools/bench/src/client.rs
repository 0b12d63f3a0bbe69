//! The wire, as a load generator needs it: whatever a server does wrong is an error with a name.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nvme_host::ctrl::reg;
use nvme_host::le::{u16_at, u32_at};
use nvme_host::link::Link;
use nvme_host::wire::{
    BAR0, CONFIG, KIND, NO_REPLY, READ_WRITE, REPLY, Region, access, cmd, info_body, map_body, region_body,
    version_body,
};
use nvme_host::{Memory, Page};
use vfio_user_nvme::config::ConfigError;

/// Body of DEVICE_GET_REGION_INFO, with room for its capabilities.
const REGION_INFO_ROOM: u32 = 256;
/// What stands before the data of a region's access.
const ACCESS: usize = 16;
/// How long a server may go on refusing: the client before us may still be leaving.
const BUSY_FOR: Duration = Duration::from_secs(2);

/// One connection that agreed on the version.
#[derive(Debug)]
pub(crate) struct Client {
    link: Link,
    /// Sent with the flag that asks for no reply, as QEMU sends its writes.
    posted: bool,
}

impl Client {
    /// Connects and agrees on the version. Every wait for an answer ends after `patience`.
    ///
    /// # Errors
    /// A [`ConfigError`] if nobody listens there, else what the server did.
    pub(crate) fn attach(
        path: &Path,
        option: &'static str,
        patience: Duration,
        posted: bool,
    ) -> anyhow::Result<Self> {
        let begun = Instant::now();
        // A server that serves one client at a time hangs up while the last one is still leaving.
        loop {
            let link = Link::connect(path, patience).map_err(|error| {
                ConfigError::bad_option(option, path, error.to_string(), "start the server first")
            })?;
            let mut client = Self { link, posted };
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
        let json = r#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576}}"#;
        let (reply, _) = self.ask(cmd::VERSION, &version_body(1, Some(json)), &[])?;
        let version = reply.get(..4).ok_or_else(|| short("VERSION"))?;
        let (major, minor) = (u16_at(version, 0), u16_at(version, 2));
        ensure!(major == 0, "the server speaks vfio-user {major}.{minor}");
        Ok(())
    }

    /// The socket, to see whether the server is still there.
    pub(crate) fn socket(&self) -> &UnixStream {
        self.link.socket()
    }

    /// Sends a command and waits for its reply.
    fn ask(
        &mut self,
        command: u16,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<(Vec<u8>, Vec<OwnedFd>)> {
        self.try_ask(command, body, fds).with_context(|| name(command))
    }

    fn try_ask(
        &mut self,
        command: u16,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let id = self.link.send(command, 0, body, fds).map_err(lost)?;
        let reply = self.link.recv().map_err(lost)?.context(HUNG_UP)?;
        ensure!(
            reply.flags & KIND == REPLY && (reply.id, reply.command) == (id, command),
            "the server answers something else: message {} of command {}, flags {:#x}",
            reply.id,
            reply.command,
            reply.flags
        );
        if let Some(errno) = reply.error {
            let error = io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(i32::MAX));
            anyhow::bail!("refused: {error}");
        }
        Ok((reply.body, reply.fds))
    }

    /// Lets the device read and write `size` bytes of `file` at `iova`.
    pub(crate) fn map(&mut self, iova: u64, size: u64, file: BorrowedFd<'_>) -> anyhow::Result<()> {
        self.ask(cmd::DMA_MAP, &map_body(iova, size, READ_WRITE, 0), &[file]).map(drop)
    }

    /// Takes the device's knowledge for a check: is this a PCI device?
    pub(crate) fn check_device(&mut self) -> anyhow::Result<()> {
        let (reply, _) = self.ask(cmd::GET_INFO, &info_body(), &[])?;
        let regions = reply.get(8..12).map(|count| u32_at(count, 0)).ok_or_else(|| short("device info"))?;
        ensure!(regions > CONFIG, "the device has {regions} regions and so is no PCI device");
        Ok(())
    }

    /// The doorbells, if the server lets a client map them.
    pub(crate) fn map_doorbells(&mut self) -> anyhow::Result<Option<Page>> {
        let (reply, mut fds) = self.ask(cmd::GET_REGION_INFO, &region_body(BAR0, REGION_INFO_ROOM), &[])?;
        let region = Region::parse(&reply).ok_or_else(|| short("region info"))?;
        let areas = region.areas(&reply).ok_or_else(|| short("region capability"))?;
        let holds =
            |(at, size): &(u64, u64)| reg::DOORBELLS.checked_sub(*at).is_some_and(|in_it| in_it < *size);
        let Some((file, (at, size))) = fds.pop().zip(areas.into_iter().find(holds)) else { return Ok(None) };
        ensure!(
            at.is_multiple_of(4),
            "the server's mappable doorbells begin at byte {at}, which is no multiple of 4"
        );
        let begin = region.offset.checked_add(at).context("the server's doorbells lie beyond any file")?;
        let stat = rustix::fs::fstat(&file)?;
        // A mapping past the file's end would kill the process at the first doorbell.
        ensure!(
            begin
                .checked_add(size)
                .is_some_and(|end| u64::try_from(stat.st_size).is_ok_and(|len| end <= len)),
            "the server's doorbell file is shorter than the window it announces"
        );
        let memory =
            Memory::map(file.as_fd(), begin, usize::try_from(size)?).context("cannot map the doorbells")?;
        Ok(Some(Page::within(Arc::new(memory), (reg::DOORBELLS - at) as usize)))
    }

    /// Reads `N` bytes of a region.
    pub(crate) fn read<const N: usize>(&mut self, region: u32, offset: u64) -> anyhow::Result<[u8; N]> {
        let (reply, _) = self.ask(cmd::REGION_READ, &access(region, offset, N as u32), &[])?;
        let data = reply.get(ACCESS..).and_then(|data| data.try_into().ok());
        data.ok_or_else(|| short("REGION_READ"))
    }

    /// Reads a 32-bit register.
    pub(crate) fn read32(&mut self, offset: u64) -> anyhow::Result<u32> {
        self.read(BAR0, offset).map(u32::from_le_bytes)
    }

    /// Writes to a region and waits until it is done.
    pub(crate) fn write<const N: usize>(
        &mut self,
        region: u32,
        offset: u64,
        data: [u8; N],
    ) -> anyhow::Result<()> {
        let body = [&access(region, offset, N as u32)[..], &data].concat();
        self.ask(cmd::REGION_WRITE, &body, &[]).map(drop)
    }

    /// Writes a doorbell: with no answer where writes are posted.
    pub(crate) fn ring(&mut self, offset: u64, value: u32) -> anyhow::Result<()> {
        if !self.posted {
            return self.write(BAR0, offset, value.to_le_bytes());
        }
        let mut body = [0; ACCESS + 4];
        let (head, data) = body.split_at_mut(ACCESS);
        head.copy_from_slice(&access(BAR0, offset, 4));
        data.copy_from_slice(&value.to_le_bytes());
        let sent = self.link.send(cmd::REGION_WRITE, NO_REPLY, &body, &[]).map(drop);
        sent.map_err(lost).with_context(|| name(cmd::REGION_WRITE))
    }
}

const HUNG_UP: &str = "the server hung up";

fn short(what: &str) -> anyhow::Error {
    anyhow::anyhow!("the server's {what} has a wrong length")
}

fn lost(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => anyhow::anyhow!("no answer within --timeout"),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
            anyhow::anyhow!(HUNG_UP)
        }
        _ => error.into(),
    }
}

fn name(command: u16) -> String {
    let name = match command {
        cmd::VERSION => "VERSION",
        cmd::DMA_MAP => "DMA_MAP",
        cmd::GET_INFO => "DEVICE_GET_INFO",
        cmd::GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
        cmd::REGION_READ => "REGION_READ",
        cmd::REGION_WRITE => "REGION_WRITE",
        other => return format!("vfio-user command {other}"),
    };
    name.to_owned()
}
