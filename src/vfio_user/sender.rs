//! Replies to the socket: at once where it takes them, else from a bounded queue.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::error::SessionError;

/// Queued bytes from which on no further command is executed. The queue can then grow by one reply
/// only, so a client that never reads holds this and [`MAX_MESSAGE_SIZE`](super::messages) at most.
const FULL: usize = 256 << 10;
/// Queued descriptors from which on no further command is executed: each is one of the process's.
const FULL_FDS: usize = 16;

/// A reply the socket has not taken completely.
struct Queued {
    bytes: Vec<u8>,
    sent: usize,
    fd: Option<OwnedFd>,
}

/// The sending side of one connection.
pub(super) struct Sender {
    queue: VecDeque<Queued>,
    /// Bytes in `queue` that are still to be sent.
    waiting: usize,
    /// Descriptors in `queue`.
    waiting_fds: usize,
    /// Where the next reply is composed; kept for its capacity.
    scratch: Vec<u8>,
}

impl Sender {
    pub(super) fn new() -> Self {
        Sender { queue: VecDeque::new(), waiting: 0, waiting_fds: 0, scratch: Vec::with_capacity(4096 + 64) }
    }

    /// Composes a message and sends what the socket takes of it. `compose` is given a vector with
    /// any content and returns the descriptor to attach.
    pub(super) fn send(
        &mut self,
        socket: impl AsFd,
        compose: impl FnOnce(&mut Vec<u8>) -> Option<OwnedFd>,
    ) -> Result<(), SessionError> {
        let mut bytes = std::mem::take(&mut self.scratch);
        let mut fd = compose(&mut bytes);
        let sent = if self.queue.is_empty() { send_some(socket, &bytes, &mut fd)? } else { 0 };
        if sent == bytes.len() {
            bytes.clear();
            // A large read must not hold its buffer for the rest of the connection.
            bytes.shrink_to(4096 + 64);
            self.scratch = bytes;
        } else {
            self.waiting += bytes.len() - sent;
            self.waiting_fds += usize::from(fd.is_some());
            self.queue.push_back(Queued { bytes, sent, fd });
        }
        Ok(())
    }

    /// Sends what the socket takes of the queue.
    pub(super) fn flush(&mut self, socket: impl AsFd) -> Result<(), SessionError> {
        while let Some(front) = self.queue.front_mut() {
            let with_fd = front.fd.is_some();
            let sent = send_some(&socket, &front.bytes[front.sent..], &mut front.fd)?;
            self.waiting_fds -= usize::from(with_fd && front.fd.is_none());
            front.sent += sent;
            self.waiting -= sent;
            if front.sent < front.bytes.len() {
                break;
            }
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Is there anything the socket has not taken?
    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Is so much waiting that no further command may be executed?
    pub(super) fn is_full(&self) -> bool {
        self.waiting >= FULL || self.waiting_fds >= FULL_FDS
    }
}

/// Sends once; 0 when the socket takes nothing now. Takes `fd` when the first byte has left.
fn send_some(socket: impl AsFd, bytes: &[u8], fd: &mut Option<OwnedFd>) -> Result<usize, SessionError> {
    loop {
        let borrowed = fd.as_ref().map(AsFd::as_fd);
        let rights = borrowed.as_slice();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !rights.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(rights));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(sent) => {
                *fd = None;
                return Ok(sent);
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(SessionError::Gone),
            Err(errno) => return Err(SessionError::Send(errno)),
        }
    }
}
