//! The way back to a client.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::wire;

/// Sends the lines of one answer before its last. What a client does not take in time is the end of it.
#[derive(Debug)]
pub struct Out<'a> {
    stream: &'a UnixStream,
    id: &'a Value,
}

impl<'a> Out<'a> {
    /// For the answer to the request `id`.
    pub fn new(stream: &'a UnixStream, id: &'a Value) -> Self {
        Self { stream, id }
    }

    /// Sends `{"id":...,"event":...}`.
    ///
    /// # Errors
    /// The client has gone, or takes nothing.
    pub fn event(&mut self, event: Value) -> io::Result<()> {
        let line = wire::line(&wire::event(self.id, event));
        self.stream.write_all(&line)
    }

    /// Is the client still there? For commands that send nothing for long.
    pub fn is_open(&self) -> bool {
        let mut fds = [PollFd::new(self.stream, PollFlags::RDHUP)];
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) => fds.iter().all(|fd| !fd.revents().intersects(gone)),
            Err(_) => true,
        }
    }
}
