//! The control socket and its clients.

use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use serde_json::Value;

use super::client;
use super::context::Context;
use super::wire::{self, Refusal};
use crate::vfio_user::{Listener, SocketAccess};

/// Clients at a time.
pub const CLIENTS_MAX: usize = 32;

/// How long a client may take nothing of what it is sent.
const SEND_TIME: Duration = Duration::from_secs(5);

/// How long clients are waited for whose last request is being answered, at the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// Of a client's thread: JSON of 128 levels is the deepest that it sees.
const STACK: usize = 1 << 20;

/// A socket that is served until this is dropped.
#[derive(Debug)]
pub struct Control {
    end: Arc<OwnedFd>,
    clients: Arc<Clients>,
    thread: Option<JoinHandle<()>>,
}

/// Who is connected.
#[derive(Debug, Default)]
struct Clients {
    /// By a number of their own.
    streams: Mutex<Vec<(u64, Arc<UnixStream>)>>,
    /// One has gone.
    gone: Condvar,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, Vec<(u64, Arc<UnixStream>)>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place among them, until its thread has ended.
struct Place {
    clients: Arc<Clients>,
    number: u64,
    stream: Arc<UnixStream>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut streams = self.clients.lock();
        streams.retain(|(number, _)| *number != self.number);
        self.clients.gone.notify_all();
    }
}

impl Control {
    /// Listens at `path`: for its owner alone, who may do with the device whatever can be done with it.
    ///
    /// # Errors
    /// The socket cannot be made (a `ListenError` is in the chain then), or no thread.
    pub fn open(path: &Path, context: Context) -> anyhow::Result<Self> {
        let listener = Listener::bind(path, SocketAccess::default())?;
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let end = Arc::new(eventfd(0, flags).context("cannot make an eventfd")?);
        let clients = Arc::<Clients>::default();
        let (context, until, of) = (Arc::new(context), Arc::clone(&end), Arc::clone(&clients));
        let thread = Builder::new()
            .name("control".into())
            .spawn(move || listen(&listener, &until, &of, &context))
            .context("cannot start a thread for the control socket")?;
        Ok(Self { end, clients, thread: Some(thread) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.end, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let streams = self.clients.lock();
        // What they are owed they still get.
        streams.iter().for_each(|(_, stream)| drop(stream.shutdown(Shutdown::Read)));
        let busy = |streams: &mut Vec<_>| !streams.is_empty();
        let (streams, _) = self
            .clients
            .gone
            .wait_timeout_while(streams, FAREWELL, busy)
            .unwrap_or_else(PoisonError::into_inner);
        streams.iter().for_each(|(_, stream)| drop(stream.shutdown(Shutdown::Both)));
    }
}

/// Takes clients until `end` is readable. The listener's file goes with it.
fn listen(listener: &Listener, end: &OwnedFd, clients: &Arc<Clients>, context: &Arc<Context>) {
    let mut last = 0;
    loop {
        let mut fds = [PollFd::new(end, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        // An interrupted wait is as good as an event.
        let _ = poll(&mut fds, None);
        if !fds[0].revents().is_empty() {
            return;
        }
        match listener.accept(true) {
            Ok(Some(stream)) => {
                last += 1;
                if let Err(error) = admit(stream, last, clients, context) {
                    log::warn!("a client of the control socket is not served: {error}");
                }
            }
            Ok(None) => {}
            Err(error) => {
                log::error!("accept on the control socket: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn admit(stream: UnixStream, number: u64, clients: &Arc<Clients>, context: &Arc<Context>) -> io::Result<()> {
    let mut streams = clients.lock();
    if streams.len() >= CLIENTS_MAX {
        drop(streams);
        let refusal = Refusal::new(
            format!("{CLIENTS_MAX} clients are connected already"),
            "fewer clients; one may send any number of requests",
        );
        stream.set_nonblocking(true)?;
        return (&stream).write_all(&wire::line(&wire::answer(&Value::Null, Err(refusal))));
    }
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(SEND_TIME))?;
    let stream = Arc::new(stream);
    streams.push((number, Arc::clone(&stream)));
    drop(streams);
    let place = Place { clients: Arc::clone(clients), number, stream };
    let context = Arc::clone(context);
    let serve = move || {
        if let Err(error) = client::serve(&context, &place.stream) {
            log::debug!("a client of the control socket is let go: {error}");
        }
    };
    Builder::new().name("control-client".into()).stack_size(STACK).spawn(serve)?;
    Ok(())
}
