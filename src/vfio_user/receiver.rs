//! Bytes and descriptors from the socket, cut into messages.
//!
//! Descriptors ride on the first byte of their message, but `recvmsg` does not say on which byte of
//! what it returned they rode; it only never reads past the piece that carried them. So a call asks
//! for the rest of the current message and [`WINDOW`] bytes more: no message that may carry
//! descriptors fits in there and leaves room for another to begin, so they belong to the last message
//! begun. A posted doorbell, the busy path, is as long as the window and costs one call.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use zerocopy::FromBytes;

use super::client_fds::{ClientFds, closes_too_slowly};
use super::error::SessionError;
use super::messages::{HEADER_SIZE, Header, MAX_MESSAGE_SIZE, MAX_MSG_FDS, SetIrqsBody};

/// Descriptors taken with one message: those announced and a few more, for clients that do not look
/// (cloud-hypervisor). More than that ends the session.
const FD_LIMIT: usize = MAX_MSG_FDS as usize + 8;
/// Room for all descriptors that one sendmsg() can carry (SCM_MAX_FD): the kernel closes what does not fit,
/// and may wait for that on the receiving thread.
const FD_ROOM: usize = 253;
/// Bytes received beyond the current message: the length of the shortest message that may carry
/// descriptors, DEVICE_SET_IRQS, and of a REGION_WRITE of four bytes.
const WINDOW: usize = HEADER_SIZE + size_of::<SetIrqsBody>();
/// Buffer between long messages. Holds every message but region accesses of many pages.
const BUFFER_SIZE: usize = 8 << 10;

/// One complete message.
pub(super) struct Message<'a> {
    pub(super) header: Header,
    pub(super) body: &'a [u8],
    pub(super) fds: ClientFds,
}

/// What one [`Receiver::fill`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// Some bytes, and there may be more.
    Bytes,
    /// Some bytes, the last for now.
    LastBytes,
    /// Nothing there now.
    Empty,
    /// The client has closed its end.
    Closed,
}

/// The receiving side of one connection.
pub(super) struct Receiver {
    /// Bytes `start..end` are received and not yet handed out.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Position in the stream of `buffer[0]`: positions survive moves within the buffer.
    origin: u64,
    /// Position in the stream of the last message that begins at or before the received end.
    last_begin: u64,
    /// Descriptors with the position of the message they came with, oldest first.
    fds: VecDeque<(u64, ClientFds)>,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Receiver {
            buffer: vec![0; BUFFER_SIZE],
            start: 0,
            end: 0,
            origin: 0,
            last_begin: 0,
            fds: VecDeque::new(),
        }
    }

    /// Takes the next complete message out of the buffer.
    pub(super) fn next(&mut self) -> Result<Option<Message<'_>>, SessionError> {
        let Some(header) = self.header_at(self.start)? else {
            return Ok(None);
        };
        let size = header.size as usize;
        if self.end - self.start < size {
            return Ok(None);
        }
        let position = self.origin + self.start as u64;
        let fds = match self.fds.front() {
            Some((begin, _)) if *begin == position => {
                self.fds.pop_front().map(|(_, fds)| fds).unwrap_or_default()
            }
            _ => ClientFds::default(),
        };
        let body = self.start + HEADER_SIZE..self.start + size;
        self.start += size;
        self.last_begin = self.last_begin.max(position + size as u64);
        Ok(Some(Message { header, body: &self.buffer[body], fds }))
    }

    /// Receives once. Call only when [`Self::next`] has no message: that bounds the bytes and the
    /// descriptors held to those of one message and one call.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> Result<Filled, SessionError> {
        if closes_too_slowly() {
            return Err(SessionError::Unclosed);
        }
        let limit = self.make_room()?;
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FD_ROOM))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut bytes = [IoSliceMut::new(&mut self.buffer[self.end..limit])];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match recvmsg(&socket, &mut bytes, &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Filled::Empty),
                Err(Errno::CONNRESET) => return Ok(Filled::Closed),
                Err(errno) => return Err(SessionError::Receive(errno)),
            }
        };
        let mut fds = ClientFds::default();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > FD_LIMIT {
            return Err(SessionError::TooManyFds);
        }
        if received.bytes == 0 {
            return Ok(Filled::Closed);
        }
        self.end += received.bytes;
        self.find_last_begin()?;
        // Bytes with descriptors end a call early; otherwise only an empty socket does.
        let more = self.end == limit || !fds.is_empty();
        if !fds.is_empty() {
            self.keep_fds(fds)?;
        }
        Ok(if more { Filled::Bytes } else { Filled::LastBytes })
    }

    /// The header at `at`, if it is there in full; its size has been checked.
    fn header_at(&self, at: usize) -> Result<Option<Header>, SessionError> {
        let Ok((header, _)) = Header::read_from_prefix(&self.buffer[at..self.end]) else {
            return Ok(None);
        };
        if (HEADER_SIZE..=MAX_MESSAGE_SIZE).contains(&(header.size as usize)) {
            Ok(Some(header))
        } else {
            Err(SessionError::MessageSize(header.size))
        }
    }

    /// Makes the message at `start` and the window after it fit; returns where receiving shall end,
    /// which is beyond `end`.
    fn make_room(&mut self) -> Result<usize, SessionError> {
        if self.start == self.end {
            self.origin += self.start as u64;
            self.start = 0;
            self.end = 0;
            if self.buffer.len() > BUFFER_SIZE {
                self.buffer.truncate(BUFFER_SIZE);
                self.buffer.shrink_to_fit();
            }
        }
        // A header that is not complete yet counts as the beginning of the window.
        let wanted = match self.header_at(self.start)? {
            Some(header) => header.size as usize + WINDOW,
            None => WINDOW,
        };
        if self.start + wanted > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.origin += self.start as u64;
            self.end -= self.start;
            self.start = 0;
        }
        if wanted > self.buffer.len() {
            self.buffer.resize(wanted, 0);
        }
        Ok(self.start + wanted)
    }

    /// Walks from message to message up to the received end.
    fn find_last_begin(&mut self) -> Result<(), SessionError> {
        let end = self.origin + self.end as u64;
        loop {
            // `last_begin` is never behind `start`: messages are handed out only when complete.
            let at = (self.last_begin - self.origin) as usize;
            let Some(header) = self.header_at(at)? else {
                return Ok(());
            };
            let next = self.last_begin + u64::from(header.size);
            if next >= end {
                return Ok(());
            }
            self.last_begin = next;
        }
    }

    fn keep_fds(&mut self, fds: ClientFds) -> Result<(), SessionError> {
        match self.fds.back_mut() {
            Some((begin, known)) if *begin == self.last_begin => {
                if known.len() + fds.len() > FD_LIMIT {
                    return Err(SessionError::TooManyFds);
                }
                known.append(fds);
            }
            _ => self.fds.push_back((self.last_begin, fds)),
        }
        Ok(())
    }
}
