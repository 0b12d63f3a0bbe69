//! A client that fails where a server is at fault: one message out, one reply in, every wait bounded.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::le::{put32, u16_at, u32_at, u64_at};
use super::link::{Link, Reply};
use super::ram::Ram;
use super::wire::{KIND, REPLY, Region, info_body, map_body, region_body};
use super::{DEADLINE, Page};

/// The words that go with a client's methods.
pub use super::wire::{
    BAR0, CONFIG, NO_REPLY, QEMU_VERSION_JSON, access, cmd, irq, message, unmap_body, version_body,
};

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
pub struct Irq {
    pub flags: u32,
    pub count: u32,
}

pub struct Client {
    link: Link,
}

impl Client {
    /// Connects, waiting for the daemon to come up. No message is sent.
    pub fn connect(path: &Path) -> Client {
        let start = Instant::now();
        loop {
            match Link::connect(path, DEADLINE) {
                Ok(link) => return Client { link },
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

    /// As [`Client::attach`], again and again until the server lets us in: for the moment after another
    /// client left.
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
    pub fn attach_when_free_after(answer: Answer, old: Client, path: &Path) -> Client {
        match answer {
            Answer::Closed => {
                drop(old);
                Client::attach_when_free(path)
            }
            _ => old,
        }
    }

    pub fn set_deadline(&self, d: Duration) {
        self.link.socket().set_read_timeout(Some(d)).unwrap();
    }

    pub fn send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.link.send_raw(bytes, fds)
    }

    /// The next message, `None` at a clean end. A reset connection counts as an end.
    pub fn recv(&mut self) -> io::Result<Option<Reply>> {
        let reply = match self.link.recv() {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => panic!("{e}"),
            reply => reply?,
        };
        if let Some(r) = &reply {
            assert_eq!(r.flags & KIND, REPLY, "flags {:#x} are not those of a reply", r.flags);
            match r.error {
                Some(e) => {
                    assert_ne!(e, 0, "an error reply needs an errno: QEMU reads 0 as success");
                    assert!(r.body.is_empty(), "an error reply is a header and nothing else");
                }
                None => assert_eq!(r.errno, 0, "errno without the error flag"),
            }
        }
        Ok(reply)
    }

    pub fn ask(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Answer {
        let id = match self.link.send(command, 0, body, fds) {
            Ok(id) => id,
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::BrokenPipe, "send: {e}");
                return Answer::Closed;
            }
        };
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
        let r = self.must(cmd::GET_INFO, &info_body(), &[]);
        (u32_at(&r, 4), u32_at(&r, 8), u32_at(&r, 12))
    }

    pub fn region_info_argsz(&mut self, index: u32, argsz: u32) -> Answer {
        self.ask(cmd::GET_REGION_INFO, &region_body(index, argsz), &[])
    }

    #[track_caller]
    pub fn region_info(&mut self, index: u32) -> Region {
        let Answer::Done(r, _) = self.region_info_argsz(index, 32) else {
            panic!("region {index}");
        };
        let region = Region::parse(&r).expect("32 bytes");
        assert_eq!(region.index, index);
        region
    }

    /// Maps the doorbells of BAR0 as the region's information says; nothing where they are trapped.
    pub fn map_doorbells(&mut self) -> Option<Page> {
        let Answer::Done(info, fds) = self.region_info_argsz(BAR0, 4096) else { panic!("no BAR 0") };
        let region = Region::parse(&info).expect("32 bytes");
        let areas = region.areas(&info).expect("capabilities within the reply");
        if areas.is_empty() {
            assert!(fds.is_empty());
            return None;
        }
        assert_eq!((areas, fds.len()), (vec![(0x1000, 0x1000)], 1), "one sparse area");
        // The fd holds these pages and nothing that could be changed in size.
        let fd = fds[0].as_fd();
        rustix::fs::ftruncate(fd, 0).expect_err("sealed");
        Some(Page::map(fd, region.offset + 0x1000))
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
        let b = map_body(iova, len, rights, file.map_or(0, |f| f.1));
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
        match self.link.send(cmd::REGION_WRITE, NO_REPLY, &b, &[]) {
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
        self.link.socket().as_fd()
    }

    pub fn shutdown_write(&self) {
        self.link.socket().shutdown(std::net::Shutdown::Write).unwrap();
    }
}
