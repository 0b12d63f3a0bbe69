//! Host's side of the agent's port: requests out, replies handed to whoever waits for them.

use std::collections::HashMap;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use guest_agent::wire::{self, Reply, Request};

/// What the guest says when its agent is up.
#[derive(Debug, Clone)]
pub struct Hello {
    /// Different for each boot.
    pub boot: String,
    /// Kernel release.
    pub kernel: String,
    /// Seconds since the kernel started.
    pub uptime: f64,
}

type Waiting = Arc<Mutex<HashMap<u64, Sender<(Reply, Vec<u8>)>>>>;

/// One connection, good for several boots of one virtual machine.
#[derive(Debug)]
pub struct Channel {
    to: Mutex<UnixStream>,
    next: AtomicU64,
    waiting: Waiting,
    hellos: Mutex<Receiver<Hello>>,
}

/// The replies to one request.
#[derive(Debug)]
pub struct Replies {
    /// Request number.
    pub id: u64,
    from: Receiver<(Reply, Vec<u8>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Channel {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// From the operating system.
    pub fn new(stream: UnixStream) -> anyhow::Result<Self> {
        let (say_hello, hellos) = channel();
        let waiting = Waiting::default();
        let mut from = BufReader::new(stream.try_clone()?);
        let handed = Arc::clone(&waiting);
        std::thread::spawn(move || {
            while let Ok(Some((reply, payload))) = wire::receive::<Reply>(&mut from) {
                dispatch(&handed, &say_hello, reply, payload);
            }
            // Whoever still waits learns from the dropped sender that nothing will come any more.
            lock(&handed).clear();
        });
        Ok(Self { to: Mutex::new(stream), next: AtomicU64::new(1), waiting, hellos: Mutex::new(hellos) })
    }

    /// Waits for the next boot to be up.
    ///
    /// # Errors
    /// `None` of the result when the time is over; an error when the machine is gone.
    pub fn hello(&self, limit: Duration) -> anyhow::Result<Option<Hello>> {
        match lock(&self.hellos).recv_timeout(limit) {
            Ok(hello) => Ok(Some(hello)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the virtual machine is gone"),
        }
    }

    /// Sends a request made for the number it is given.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn request(&self, make: impl FnOnce(u64) -> Request, payload: &[u8]) -> anyhow::Result<Replies> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, from) = channel();
        lock(&self.waiting).insert(id, sender);
        let sent = wire::send(&mut *lock(&self.to), &make(id), payload);
        if sent.is_err() {
            lock(&self.waiting).remove(&id);
        }
        sent.context("the virtual machine is gone")?;
        Ok(Replies { id, from })
    }
}

fn dispatch(waiting: &Waiting, hellos: &Sender<Hello>, reply: Reply, payload: Vec<u8>) {
    let (id, last) = match reply {
        Reply::Hello { boot, kernel, uptime } => {
            // A new boot: nothing asked of the one before will be answered.
            lock(waiting).clear();
            let _ = hellos.send(Hello { boot, kernel, uptime });
            return;
        }
        Reply::Out { id } | Reply::Err { id } => (id, false),
        Reply::Exit { id, .. } | Reply::Done { id } | Reply::Failed { id, .. } => (id, true),
    };
    let mut waiting = lock(waiting);
    if let Some(sender) = waiting.get(&id) {
        let _ = sender.send((reply, payload));
    }
    if last {
        waiting.remove(&id);
    }
}

impl Replies {
    /// Next reply; `None` when `until` has passed.
    ///
    /// # Errors
    /// When none can come any more.
    pub fn next(&self, until: Instant) -> anyhow::Result<Option<(Reply, Vec<u8>)>> {
        match self.from.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(reply) => Ok(Some(reply)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest went away"),
        }
    }
}
