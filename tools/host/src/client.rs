//! The vfio-user wire, client side: one message out, one reply in, every wait bounded.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::le::{put16, put32, put64, u16_at, u32_at, u64_at};
use super::ram::Ram;
use super::{DEADLINE, Daemon, Page};

pub mod cmd {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const RESET: u16 = 13;
}

/// What QEMU 11.1 sends.
pub const QEMU_VERSION_JSON: &str = concat!(
    r#"{"capabilities":{"migration":{"max-bitmap-size":268435456,"pgsize":4096},"#,
    r#""max_data_xfer_size":1048576,"max_dma_maps":65535,"max_msg_fds":16,"pgsizes":4096,"#,
    r#""write_multiple":true}}"#
);

pub const BAR0: u32 = 0;
pub const CONFIG: u32 = 7;

const HEADER: usize = 16;
const REPLY: u32 = 1;
pub const NO_REPLY: u32 = 0x10;
const ERROR: u32 = 0x20;

/// SET_IRQS flags.
pub mod irq {
    pub const NONE: u32 = 1;
    pub const BOOL: u32 = 2;
    pub const EVENTFD: u32 = 4;
    pub const MASK: u32 = 8;
    pub const TRIGGER: u32 = 32;
    pub const MSIX: u32 = 2;
}

#[derive(Debug)]
pub struct Reply {
    pub id: u16,
    pub command: u16,
    /// The errno of an error reply.
    pub error: Option<u32>,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// How a request ended.
#[derive(Debug)]
pub enum Answer {
    Done(Vec<u8>, Vec<OwnedFd>),
    Refused(u32),
    /// The server hung up.
    Closed,
}

impl Answer {
    pub fn refused(&self) -> bool {
        matches!(self, Answer::Refused(_))
    }

    /// An error reply or a closed connection, whichever the server likes better.
    pub fn not_done(&self) -> bool {
        !matches!(self, Answer::Done(..))
    }
}

#[derive(Debug)]
pub struct Region {
    pub argsz: u32,
    pub flags: u32,
    pub size: u64,
    pub cap_offset: u32,
}

#[derive(Debug)]
pub struct Irq {
    pub flags: u32,
    pub count: u32,
}

pub struct Client {
    sock: UnixStream,
    next_id: u16,
}

pub fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut m = vec![0; HEADER];
    put16(&mut m, 0, id);
    put16(&mut m, 2, command);
    put32(&mut m, 4, (HEADER + body.len()) as u32);
    put32(&mut m, 8, flags);
    m.extend_from_slice(body);
    m
}

impl Client {
    /// Connects, waiting for the daemon to come up. No message is sent.
    pub fn connect(path: &Path) -> Client {
        let start = Instant::now();
        loop {
            match UnixStream::connect(path) {
                Ok(sock) => {
                    sock.set_read_timeout(Some(DEADLINE)).unwrap();
                    sock.set_write_timeout(Some(DEADLINE)).unwrap();
                    return Client { sock, next_id: 0xfffe };
                }
                Err(e) if start.elapsed() > DEADLINE => panic!("connect {}: {e}", path.display()),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Connects and agrees on the version as QEMU does.
    pub fn attach(path: &Path) -> Client {
        let mut c = Client::connect(path);
        c.version(0, Some(QEMU_VERSION_JSON));
        c
    }

    /// As [`Client::attach`], again and again until the server lets us in: for the moment after another client left.
    pub fn attach_when_free(path: &Path) -> Client {
        let start = Instant::now();
        loop {
            let mut c = Client::connect(path);
            let body = version_body(0, Some(QEMU_VERSION_JSON));
            if c.send_raw(&message(1, cmd::VERSION, 0, &body), &[]).is_ok()
                && matches!(c.recv(), Ok(Some(r)) if r.error.is_none())
            {
                return c;
            }
            assert!(start.elapsed() < DEADLINE, "no client is let in any more");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// This client, or a new one if that answer was a hang-up.
    pub fn attach_when_free_after(answer: Answer, old: Client, daemon: &Daemon) -> Client {
        match answer {
            Answer::Closed => {
                drop(old);
                Client::attach_when_free(&daemon.socket())
            }
            _ => old,
        }
    }

    pub fn set_deadline(&self, d: Duration) {
        self.sock.set_read_timeout(Some(d)).unwrap();
    }

    pub fn send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let mut sent = sendmsg(&self.sock, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        while sent < bytes.len() {
            sent += rustix::net::send(&self.sock, &bytes[sent..], SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    fn recv_exact(&mut self, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
        let mut got = 0;
        while got < buf.len() {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(64))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let r = recvmsg(
                &self.sock,
                &mut [IoSliceMut::new(&mut buf[got..])],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            let n = match r {
                Ok(r) => r.bytes,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            for m in control.drain() {
                if let RecvAncillaryMessage::ScmRights(f) = m {
                    fds.extend(f);
                }
            }
            if n == 0 {
                if got == 0 {
                    return Ok(false);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            got += n;
        }
        Ok(true)
    }

    /// The next message, `None` at a clean end. A reset connection counts as an end.
    pub fn recv(&mut self) -> io::Result<Option<Reply>> {
        let mut header = [0; HEADER];
        let mut fds = Vec::new();
        match self.recv_exact(&mut header, &mut fds) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(e) => return Err(e),
        }
        let size = u32_at(&header, 4) as usize;
        let flags = u32_at(&header, 8);
        assert!((HEADER..=(1 << 20) + 64).contains(&size), "reply size {size}");
        assert_eq!(flags & 0xf, REPLY, "flags {flags:#x} are not those of a reply");
        let mut body = vec![0; size - HEADER];
        if !body.is_empty() {
            assert!(self.recv_exact(&mut body, &mut fds)?);
        }
        let error = (flags & ERROR != 0).then(|| u32_at(&header, 12));
        if let Some(e) = error {
            assert_ne!(e, 0, "an error reply needs an errno: QEMU reads 0 as success");
            assert_eq!(size, HEADER, "an error reply is a header and nothing else");
        } else {
            assert_eq!(u32_at(&header, 12), 0, "errno without the error flag");
        }
        Ok(Some(Reply { id: u16_at(&header, 0), command: u16_at(&header, 2), error, body, fds }))
    }

    fn id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    pub fn ask(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Answer {
        let id = self.id();
        if let Err(e) = self.send_raw(&message(id, command, 0, body), fds) {
            assert_eq!(e.kind(), io::ErrorKind::BrokenPipe, "send: {e}");
            return Answer::Closed;
        }
        match self.recv() {
            Ok(None) => Answer::Closed,
            Ok(Some(r)) => {
                assert_eq!((r.id, r.command), (id, command), "reply to something else");
                match r.error {
                    Some(e) => Answer::Refused(e),
                    None => Answer::Done(r.body, r.fds),
                }
            }
            Err(e) => panic!("no answer to command {command}: {e}"),
        }
    }

    #[track_caller]
    pub fn must(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Vec<u8> {
        match self.ask(command, body, fds) {
            Answer::Done(body, _) => body,
            other => panic!("command {command} {body:02x?}: {other:?}"),
        }
    }

    /// Returns the server's (major, minor) and its JSON.
    pub fn version(&mut self, minor: u16, json: Option<&str>) -> (u16, u16, String) {
        let body = self.must(cmd::VERSION, &version_body(minor, json), &[]);
        let text = body.get(4..).unwrap_or_default();
        let text = match text.split_last() {
            Some((0, t)) => String::from_utf8(t.to_vec()).expect("JSON is text"),
            Some(_) => panic!("the JSON does not end in NUL"),
            None => String::new(),
        };
        (u16_at(&body, 0), u16_at(&body, 2), text)
    }

    /// (flags, regions, interrupts)
    pub fn info(&mut self) -> (u32, u32, u32) {
        let mut b = [0; 16];
        put32(&mut b, 0, 16);
        let r = self.must(cmd::GET_INFO, &b, &[]);
        (u32_at(&r, 4), u32_at(&r, 8), u32_at(&r, 12))
    }

    pub fn region_info_argsz(&mut self, index: u32, argsz: u32) -> Answer {
        let mut b = vec![0; argsz.max(32) as usize];
        put32(&mut b, 0, argsz);
        put32(&mut b, 8, index);
        self.ask(cmd::GET_REGION_INFO, &b, &[])
    }

    #[track_caller]
    pub fn region_info(&mut self, index: u32) -> Region {
        let Answer::Done(r, _) = self.region_info_argsz(index, 32) else {
            panic!("region {index}");
        };
        assert_eq!(u32_at(&r, 8), index);
        Region {
            argsz: u32_at(&r, 0),
            flags: u32_at(&r, 4),
            cap_offset: u32_at(&r, 12),
            size: u64_at(&r, 16),
        }
    }

    /// Maps the doorbells of BAR0 as the region's information says; nothing where they are trapped.
    pub fn map_doorbells(&mut self) -> Option<Page> {
        let Answer::Done(info, fds) = self.region_info_argsz(BAR0, 4096) else { panic!("no BAR 0") };
        if u32_at(&info, 4) & 4 == 0 {
            assert!(fds.is_empty());
            return None;
        }
        assert_eq!(fds.len(), 1);
        let cap = u32_at(&info, 12) as usize;
        assert_eq!((u16_at(&info, cap), u32_at(&info, cap + 8)), (1, 1), "one sparse area");
        assert_eq!((u64_at(&info, cap + 16), u64_at(&info, cap + 24)), (0x1000, 0x1000));
        // The fd holds these pages and nothing that could be changed in size.
        let fd = fds[0].as_fd();
        rustix::fs::ftruncate(fd, 0).expect_err("sealed");
        Some(Page::map(fd, u64_at(&info, 24) + 0x1000))
    }

    pub fn irq_info(&mut self, index: u32) -> Irq {
        let mut b = [0; 16];
        put32(&mut b, 0, 16);
        put32(&mut b, 8, index);
        let r = self.must(cmd::GET_IRQ_INFO, &b, &[]);
        assert_eq!(u32_at(&r, 8), index);
        Irq { flags: u32_at(&r, 4), count: u32_at(&r, 12) }
    }

    pub fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Answer {
        let mut b = [0; 20];
        put32(&mut b, 0, 20);
        put32(&mut b, 4, flags);
        put32(&mut b, 8, index);
        put32(&mut b, 12, start);
        put32(&mut b, 16, count);
        self.ask(cmd::SET_IRQS, &b, fds)
    }

    /// `rights`: 1 the device may read, 2 it may write.
    pub fn dma_map(
        &mut self,
        iova: u64,
        len: u64,
        rights: u32,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> Answer {
        let mut b = [0; 32];
        put32(&mut b, 0, 32);
        put32(&mut b, 4, rights);
        put64(&mut b, 8, file.map_or(0, |f| f.1));
        put64(&mut b, 16, iova);
        put64(&mut b, 24, len);
        match file {
            Some((fd, _)) => self.ask(cmd::DMA_MAP, &b, &[fd]),
            None => self.ask(cmd::DMA_MAP, &b, &[]),
        }
    }

    pub fn dma_unmap(&mut self, iova: u64, len: u64) -> Answer {
        let b = unmap_body(iova, len);
        self.ask(cmd::DMA_UNMAP, &b, &[])
    }

    pub fn map_ram(&mut self, ram: &Ram) {
        for p in ram.pieces.clone() {
            let a = self.dma_map(p.iova, p.len, 3, Some((ram.fd(), p.offset)));
            assert!(matches!(a, Answer::Done(..)), "map {p:?}: {a:?}");
        }
    }

    pub fn region_read(&mut self, region: u32, offset: u64, count: u32) -> Answer {
        self.ask(cmd::REGION_READ, &access(region, offset, count), &[])
    }

    #[track_caller]
    pub fn read(&mut self, region: u32, offset: u64, count: u32) -> Vec<u8> {
        let head = access(region, offset, count);
        let r = self.must(cmd::REGION_READ, &head, &[]);
        assert_eq!(r[..16], head, "the reply repeats the request");
        assert_eq!(r.len(), 16 + count as usize);
        r[16..].to_vec()
    }

    pub fn region_write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Answer {
        let mut b = access(region, offset, bytes.len() as u32).to_vec();
        b.extend_from_slice(bytes);
        self.ask(cmd::REGION_WRITE, &b, &[])
    }

    #[track_caller]
    pub fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) {
        match self.region_write(region, offset, bytes) {
            Answer::Done(r, _) => {
                assert_eq!(r, access(region, offset, bytes.len() as u32));
            }
            other => panic!("write {bytes:02x?} to region {region} at {offset:#x}: {other:?}"),
        }
    }

    /// A posted write: nothing comes back, not even that nobody is there any more.
    pub fn post(&mut self, region: u32, offset: u64, bytes: &[u8]) {
        let mut b = access(region, offset, bytes.len() as u32).to_vec();
        b.extend_from_slice(bytes);
        let id = self.id();
        match self.send_raw(&message(id, cmd::REGION_WRITE, NO_REPLY, &b), &[]) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => panic!("posted write: {e}"),
            _ => {}
        }
    }

    pub fn r32(&mut self, offset: u64) -> u32 {
        u32_at(&self.read(BAR0, offset, 4), 0)
    }

    pub fn r64(&mut self, offset: u64) -> u64 {
        u64_at(&self.read(BAR0, offset, 8), 0)
    }

    pub fn w32(&mut self, offset: u64, v: u32) {
        self.write(BAR0, offset, &v.to_le_bytes());
    }

    pub fn w64(&mut self, offset: u64, v: u64) {
        self.w32(offset, v as u32);
        self.w32(offset + 4, (v >> 32) as u32);
    }

    pub fn config16(&mut self, offset: u64) -> u16 {
        u16_at(&self.read(CONFIG, offset, 2), 0)
    }

    pub fn reset(&mut self) {
        self.must(cmd::RESET, &[], &[]);
    }

    /// Waits until the server hangs up; whatever it still sends is dropped.
    pub fn wait_closed(&mut self) {
        while let Ok(Some(_)) = self.recv() {}
        // An orderly end, not a time-out: a read after it is an end again.
        self.set_deadline(Duration::from_millis(500));
        assert!(matches!(self.recv(), Ok(None)), "the connection is still open");
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.sock.as_fd()
    }

    pub fn shutdown_write(&self) {
        self.sock.shutdown(std::net::Shutdown::Write).unwrap();
    }
}

pub fn version_body(minor: u16, json: Option<&str>) -> Vec<u8> {
    let mut b = vec![0; 4];
    put16(&mut b, 2, minor);
    if let Some(j) = json {
        b.extend_from_slice(j.as_bytes());
        b.push(0);
    }
    b
}

pub fn access(region: u32, offset: u64, count: u32) -> [u8; 16] {
    let mut b = [0; 16];
    put64(&mut b, 0, offset);
    put32(&mut b, 8, region);
    put32(&mut b, 12, count);
    b
}

pub fn unmap_body(iova: u64, len: u64) -> [u8; 24] {
    let mut b = [0; 24];
    put32(&mut b, 0, 24);
    put64(&mut b, 8, iova);
    put64(&mut b, 16, len);
    b
}
