//! The copy log: a record of each Copy, with what really moved its bytes, as lines of JSON (docs/copy-log.md).
//!
//! Each worker has a recorder, which puts a Copy's record together and hands it to the one thread that
//! writes. Nobody waits for that thread: what does not fit into its queue is counted, and the count is written. It writes
//! a file, and a copy of each line for everyone who follows. While there is neither file nor follower, workers have no
//! recorder, and their loops are what they are without any laboratory.

mod file;
mod follow;
mod queue;
mod reader;
mod record;
mod recorder;
mod text;
mod writer;

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use file::{LogFile, LogFileError};
pub use follow::Heard;
use follow::{Followers, Mailbox};
use queue::{Counts, Message, Outlet, queue};
pub use reader::{LogReader, ReadError};
pub use record::{
    CommandRecord, CopyRecord, Dropped, Ending, Line, MovedRecord, NamespaceRecord, Opening, PlanRecord,
    Posted, RangeRecord, RefusalRecord, SCHEMA, StatusRecord, StepRecord, StretchRecord,
};
use recorder::Recorder;
pub use text::{Hex, Named, Stamp, Word};
use writer::{Writer, opening};

use super::tools::{Laboratory, Tool};

/// The name of the tool.
const NAME: &str = "copy log";

/// How long workers may take to put their recorders on or off. Who is later has it later.
const PATIENCE: Duration = Duration::from_secs(1);

/// See the module docs.
pub struct CopyLog {
    laboratory: Arc<Laboratory>,
    outlet: Outlet,
    followers: Arc<Followers>,
    state: Mutex<State>,
}

/// Only who changes whether there are recorders, or a thread, has it.
struct State {
    /// What the thread begins with, until it has begun.
    idle: Option<(Receiver<Message>, Arc<Counts>)>,
    /// It has begun.
    runs: bool,
    has_file: bool,
    followers: usize,
}

impl CopyLog {
    /// A log that nobody reads yet, of the workers that `laboratory` has or will have.
    pub fn new(laboratory: Arc<Laboratory>) -> Arc<Self> {
        let (outlet, receiver, counts) = queue();
        let state = State { idle: Some((receiver, counts)), runs: false, has_file: false, followers: 0 };
        Arc::new(Self { laboratory, outlet, followers: Arc::default(), state: Mutex::new(state) })
    }

    /// The same, written to a file from now on. To be called before anybody follows.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn write_to(&self, file: LogFile) -> io::Result<()> {
        let mut state = self.lock();
        self.begin(&mut state, Some(file))?;
        state.has_file = true;
        self.record();
        Ok(())
    }

    /// What is written from now on, for one more reader.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn follow(self: &Arc<Self>) -> io::Result<Follower> {
        let mut state = self.lock();
        self.begin(&mut state, None)?;
        let mailbox = self.followers.add();
        state.followers += 1;
        if !state.has_file && state.followers == 1 {
            self.record();
        }
        drop(state);
        let opening = serde_json::to_string(&opening()).ok().map(Arc::from);
        Ok(Follower { log: Arc::clone(self), mailbox, opening })
    }

    /// What has become of all.
    pub fn counted(&self) -> Counted {
        let (copies, dropped) = self.outlet.counts().all();
        Counted { copies, dropped, followers: self.lock().followers }
    }

    /// Ends it: what the workers have recorded is written. False when that was not over within `patience`.
    pub fn end(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        if !self.lock().runs {
            return true;
        }
        let all_written = loop {
            match self.outlet.end() {
                Some(all_written) => break all_written,
                None if Instant::now() >= deadline => return false,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        matches!(all_written.recv_timeout(left), Err(RecvTimeoutError::Disconnected))
    }

    /// The workers record from now on.
    fn record(&self) {
        let outlet = self.outlet.clone();
        let make = move |place| Box::new(Recorder::new(place, outlet.clone())) as _;
        if !self.laboratory.put(Tool::for_workers(NAME, Arc::new(make)), PATIENCE) {
            log::warn!("copy log: a worker is busy and begins to record later");
        }
    }

    fn begin(&self, state: &mut State, file: Option<LogFile>) -> io::Result<()> {
        let Some((queue, counts)) = state.idle.take() else {
            let failed = || io::Error::other("its thread could not be made");
            return state.runs.then_some(()).ok_or_else(failed);
        };
        let followers = Arc::clone(&self.followers);
        let writer = Writer::new(queue, counts, followers, file);
        std::thread::Builder::new().name("copy-log".into()).spawn(move || writer.run())?;
        state.runs = true;
        Ok(())
    }

    fn unfollow(&self) {
        let mut state = self.lock();
        state.followers -= 1;
        if !state.has_file && state.followers == 0 {
            self.laboratory.take(NAME, PATIENCE);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a log has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Copies that were recorded.
    pub copies: u64,
    /// Copies that were dropped.
    pub dropped: u64,
    /// Who follows now.
    pub followers: usize,
}

/// One who follows, until it is dropped.
pub struct Follower {
    log: Arc<CopyLog>,
    mailbox: Arc<Mailbox>,
    opening: Option<Arc<str>>,
}

impl Follower {
    /// The next line, the first of which is that of a log; waits for it as long as `patience`.
    pub fn next(&mut self, patience: Duration) -> Heard {
        match self.opening.take() {
            Some(line) => Heard::Line(line),
            None => self.mailbox.next(patience),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.log.unfollow();
    }
}

#[cfg(test)]
mod tests;
