//! A connection to a vfio-user server: messages out and in, with their descriptors. It judges nothing that it
//! need not.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::le::{u16_at, u32_at};
use super::wire::{ERROR, HEADER, LONGEST, header};

#[derive(Debug)]
pub struct Reply {
    pub id: u16,
    pub command: u16,
    pub flags: u32,
    /// The errno field, whatever the flags say.
    pub errno: u32,
    /// The errno of an error reply.
    pub error: Option<u32>,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

#[derive(Debug)]
pub struct Link {
    socket: UnixStream,
    /// Of the last message.
    id: u16,
    out: Vec<u8>,
}

impl Link {
    /// Connected; every later wait ends after `patience`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path, patience: Duration) -> io::Result<Link> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        // Message ids are 16 bits that a server must not take for anything else: they begin where they wrap.
        Ok(Link { socket, id: 0xfffe, out: Vec::new() })
    }

    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// What the kernel says; after `patience` `WouldBlock`.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "64 descriptors at most");
        }
        let mut left = bytes;
        while !left.is_empty() {
            match sendmsg(&self.socket, &[IoSlice::new(left)], &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    left = left.get(sent..).unwrap_or_default();
                    control.clear();
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Sends a message, and says which id it has.
    ///
    /// # Errors
    /// As [`Link::send_raw`].
    pub fn send(&mut self, command: u16, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<u16> {
        self.id = self.id.wrapping_add(1);
        self.out.clear();
        self.out.extend_from_slice(&header(self.id, command, flags, body.len()));
        self.out.extend_from_slice(body);
        self.send_raw(&self.out, fds)?;
        Ok(self.id)
    }

    /// The next message, `None` at a clean end. A reset connection counts as an end.
    ///
    /// # Errors
    /// `UnexpectedEof` for an end within a message, `InvalidData` for a size that no message has,
    /// `WouldBlock` after `patience`.
    pub fn recv(&mut self) -> io::Result<Option<Reply>> {
        let mut header = [0; HEADER];
        let mut fds = Vec::new();
        match self.fill(&mut header, &mut fds) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(e) => return Err(e),
        }
        let size = u32_at(&header, 4) as usize;
        let flags = u32_at(&header, 8);
        if !(HEADER..=LONGEST).contains(&size) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a reply of {size} bytes")));
        }
        let mut body = vec![0; size - HEADER];
        if !body.is_empty() && !self.fill(&mut body, &mut fds)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let errno = u32_at(&header, 12);
        let error = (flags & ERROR != 0).then_some(errno);
        Ok(Some(Reply {
            id: u16_at(&header, 0),
            command: u16_at(&header, 2),
            flags,
            errno,
            error,
            body,
            fds,
        }))
    }

    /// False at an end before the first byte.
    fn fill(&self, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
        let mut got = 0;
        while got < buf.len() {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(64))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut left = [IoSliceMut::new(buf.get_mut(got..).unwrap_or_default())];
            let received = match recvmsg(&self.socket, &mut left, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => received.bytes,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            match received {
                0 if got == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => got += n,
            }
        }
        Ok(true)
    }
}
