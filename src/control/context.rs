//! What commands work on.

use std::fmt;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::stock::Stock;
use super::wire::Refusal;
use crate::laboratory::copy_log::CopyLog;
use crate::laboratory::faults::Faults;
use crate::laboratory::oracle::Oracle;
use crate::nvme_ctrl::Controller;
use crate::subsystem::{Subsystem, Wake};

/// How long the control thread, or a worker, may take for its answer.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Everything that commands may see and change. Shared by all clients' threads.
pub struct Context {
    /// The namespaces.
    pub subsystem: Arc<Subsystem>,
    /// The thread that has the controllers.
    pub thread: Asks,
    /// The fault rules.
    pub faults: Arc<Faults>,
    /// Its Copies.
    pub copies: Arc<CopyLog>,
    /// Which of its namespaces are watched.
    pub oracle: Arc<Oracle>,
    /// When the device began.
    pub started: Instant,
    /// Held by whoever drains the device.
    pub draining: Mutex<()>,
    /// What namespaces are made of, and those that are detached.
    pub stock: Stock,
}

/// The control thread as a job on it sees it.
pub trait ControlThread {
    /// Its ports, by CNTLID.
    fn ports(&mut self) -> Vec<PortMut<'_>>;
    /// Asks it to end as SIGTERM does.
    fn quit(&mut self);
}

/// A controller, and who uses it.
pub struct PortMut<'a> {
    /// Where it listens.
    pub socket: &'a Path,
    /// Who is attached, if somebody is: program, process and user.
    pub client: Option<&'a str>,
    /// The controller.
    pub controller: &'a mut Controller,
}

/// Something for the control thread to do. It must not wait there.
pub type Job = Box<dyn FnOnce(&mut dyn ControlThread) + Send>;

/// The way to the control thread: bounded, so that nothing piles up in front of one that hangs.
pub struct Asks {
    jobs: SyncSender<Job>,
    wake: Wake,
}

impl Asks {
    /// By this channel; `wake` has the thread look at its other end.
    pub fn new(jobs: SyncSender<Job>, wake: Wake) -> Self {
        Self { jobs, wake }
    }

    /// Has the control thread do something, and waits for what comes of it. What it was asked for it may do even after
    /// this has given up.
    ///
    /// # Errors
    /// It does not answer in time, or fails at it.
    pub fn ask<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn ControlThread) -> R + Send + 'static,
    ) -> Result<R, Refusal> {
        let late = |what: &str| {
            Refusal::new(
                format!("the control thread {what}"),
                "a device that is well: its log may say why, and SIGUSR1 writes its state there",
            )
        };
        let (sender, answer) = sync_channel(1);
        let job: Job = Box::new(move |thread| {
            // Who asked may have given up.
            let _ = sender.send(job(thread));
        });
        self.jobs.try_send(job).map_err(|_| late("takes no further requests"))?;
        (self.wake)();
        answer.recv_timeout(PATIENCE).map_err(|_| late("did not answer within a second"))
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("subsystem", &self.subsystem).finish_non_exhaustive()
    }
}
