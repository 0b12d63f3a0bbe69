//! The control socket's end on the control thread: runs the jobs that clients' threads ask for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::port::Port;
use super::tools::Tools;
use crate::config::{Config, ConfigError};
use crate::control::{Asks, Context, Control, ControlThread, Job, PortMut, Stock};
use crate::disk::LaneKind;
use crate::subsystem::{Subsystem, Wake};
use crate::vfio_user::ListenError;

/// Jobs that wait for the control thread: one of each client, and some that have given up.
const JOBS: usize = 64;

/// A control socket, and what its clients ask of this thread.
pub(super) struct Attendant {
    jobs: Receiver<Job>,
    /// Serves until it is dropped.
    _socket: Control,
}

/// What a job sees.
struct Here<'a> {
    ports: &'a mut [Port],
    quit: bool,
}

impl ControlThread for Here<'_> {
    fn ports(&mut self) -> Vec<PortMut<'_>> {
        self.ports.iter_mut().map(Port::shown).collect()
    }

    fn quit(&mut self) {
        self.quit = true;
    }
}

impl Attendant {
    /// Listens at `path`, for a device that is made of `config` and whose lanes are of this kind; `wake` has this thread call [`Self::attend`].
    ///
    /// # Errors
    /// The socket cannot be made, or its thread.
    pub fn open(
        path: &Path,
        config: &Config,
        engine: LaneKind,
        subsystem: &Arc<Subsystem>,
        tools: &Tools,
        wake: &Wake,
    ) -> anyhow::Result<Self> {
        let (sender, jobs) = sync_channel(JOBS);
        let context = Context {
            subsystem: Arc::clone(subsystem),
            thread: Asks::new(sender, Arc::clone(wake)),
            faults: Arc::clone(&tools.faults),
            copies: Arc::clone(&tools.copies),
            oracle: Arc::clone(&tools.oracle),
            started: Instant::now(),
            draining: Mutex::default(),
            stock: Stock::new(config, engine),
        };
        let socket = Control::open(path, context).map_err(|error| match error.downcast::<ListenError>() {
            Ok(error) => ConfigError::Unusable { prefix: "--control: ", text: error.to_string() }.into(),
            Err(error) => error,
        });
        Ok(Self { jobs, _socket: socket? })
    }

    /// Does what was asked for since the last time. True when the end was asked for.
    pub fn attend(&self, ports: &mut [Port]) -> bool {
        let mut here = Here { ports, quit: false };
        while let Ok(job) = self.jobs.try_recv() {
            // What a panic leaves behind is whole in the sense of `guarded`; and a look at a controller is not worth
            // the end of it.
            let _ = catch_unwind(AssertUnwindSafe(|| job(&mut here)));
        }
        here.quit
    }
}
