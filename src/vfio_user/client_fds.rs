//! Descriptors that come from clients, and how they are closed.
//!
//! close() can wait for whoever serves the file: a FUSE server that does not answer to its flush, the other
//! end of a TCP socket that lingers. So a thread that serves never closes what a client sent, not even unseen
//! within a socket whose messages were not all received; threads that do nothing else close it, and at most
//! [`MOST`] descriptors wait for them.

use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::RecvFlags;
use smallvec::SmallVec;

/// Threads that close: one that hangs should not be all there are.
const THREADS: usize = 4;
/// Descriptors not closed yet from which on no client may send more.
const MOST: usize = 256;

/// Descriptors that a client sent with one message.
#[derive(Debug, Default)]
pub struct ClientFds(SmallVec<[OwnedFd; 4]>);

impl ClientFds {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first one, still closed here.
    pub fn first(&self) -> Option<BorrowedFd<'_>> {
        self.0.first().map(AsFd::as_fd)
    }

    /// All of them, still closed here.
    pub fn iter(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    /// The descriptors themselves, of files that are known to close without waiting.
    pub fn into_inner(mut self) -> SmallVec<[OwnedFd; 4]> {
        std::mem::take(&mut self.0)
    }

    /// Those of `other` too.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }
}

impl FromIterator<OwnedFd> for ClientFds {
    fn from_iter<I: IntoIterator<Item = OwnedFd>>(fds: I) -> Self {
        Self(fds.into_iter().collect())
    }
}

impl Extend<OwnedFd> for ClientFds {
    fn extend<I: IntoIterator<Item = OwnedFd>>(&mut self, fds: I) {
        self.0.extend(fds);
    }
}

impl Drop for ClientFds {
    fn drop(&mut self) {
        self.0.drain(..).for_each(close);
    }
}

/// Ends a connection, whose socket the caller then closes. What lies in it unread can hold descriptors.
pub(super) fn end(socket: &UnixStream) {
    // From here on the client can send nothing more.
    let _ = socket.shutdown(Shutdown::Both);
    let unread = rustix::net::recv(socket, &mut [0; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    if unread.is_ok_and(|(_, bytes)| bytes > 0)
        && let Ok(last) = socket.try_clone()
    {
        // The last descriptor of a socket is the one whose end takes its content along.
        close(last.into());
    }
}

/// Do so many descriptors wait to be closed that no client may send more?
pub fn closes_too_slowly() -> bool {
    let closer = closer();
    closer.queue.len() + closer.threads >= MOST
}

struct Closer {
    queue: VecDeque<OwnedFd>,
    /// Threads that run, each of which closes one.
    threads: usize,
}

static CLOSER: Mutex<Closer> = Mutex::new(Closer { queue: VecDeque::new(), threads: 0 });

fn closer() -> MutexGuard<'static, Closer> {
    CLOSER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn close(fd: OwnedFd) {
    // Memory, and only memory, has seals. Most of what clients send is closed here.
    if rustix::fs::fcntl_get_seals(&fd).is_ok() {
        return;
    }
    let mut closer = closer();
    closer.queue.push_back(fd);
    if closer.threads < THREADS {
        // Where no thread can be made, it is tried again for the next one.
        let thread = std::thread::Builder::new().name("closer".into()).spawn(run);
        closer.threads += usize::from(thread.is_ok());
    }
}

/// Closes until there is nothing left.
fn run() {
    while let Some(fd) = next() {
        drop(fd);
    }
}

fn next() -> Option<OwnedFd> {
    let mut closer = closer();
    let fd = closer.queue.pop_front();
    closer.threads -= usize::from(fd.is_none());
    fd
}
