//! How file jobs reach the kernel: io_uring, or a pool of blocking threads. One engine per worker.

mod burst;
mod pool;
mod uring;
mod waker;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

pub use pool::PoolEngine;
pub use uring::UringEngine;
pub use waker::Waker;

pub use super::file_job::FileJob;
use super::page_cache::{self, TryRead};
use super::{Completion, Tag};

/// Runs file jobs for one worker; used by that worker's thread alone.
///
/// An engine may be made on another thread than the one that uses it, but from the first `reap` or `wait`
/// on it stays with its thread.
pub trait Engine: Send {
    /// Takes a job; nothing blocks. The kernel may see it only at the next `reap` or `wait`.
    fn submit(&mut self, tag: Tag, job: FileJob);
    /// Hands over what was submitted and collects what is complete, without waiting.
    fn reap(&mut self, out: &mut Vec<Completion>);
    /// Sleeps until a job completes, the waker fires or `timeout` passes. May return early.
    fn wait(&mut self, timeout: Option<Duration>);
    /// Ends a sleep from any thread, now or the next one to come.
    fn waker(&self) -> Waker;
    /// Jobs not yet reaped.
    fn in_flight(&self) -> usize;
    /// May a read that need not wait for anything be made without it? Not past one that stands for a fault.
    fn may_be_passed(&self) -> bool {
        false
    }
    /// Tries reads of what may lie in page caches; all of them are over when this returns, and none has waited. Only
    /// where the engine [may be passed](Self::may_be_passed).
    fn try_reads(&mut self, reads: &mut [TryRead<'_>]) {
        page_cache::try_each(reads);
    }
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring where the kernel allows it, else threads.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// A pool of blocking threads.
    Threads,
}

impl EngineKind {
    /// The kind that [`create`] makes of this one: never `Auto`.
    pub fn resolve(self) -> EngineKind {
        match self {
            EngineKind::Auto => match probe() {
                Ok(()) => EngineKind::IoUring,
                Err(why) => {
                    log::info!("io_uring does not work here ({why}); threads are used");
                    EngineKind::Threads
                }
            },
            other => other,
        }
    }
}

/// QEMU's words for its property `aio`, and `auto`.
impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::Auto => "auto",
            EngineKind::IoUring => "io_uring",
            EngineKind::Threads => "threads",
        })
    }
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(EngineKind::Auto),
            "io_uring" => Ok(EngineKind::IoUring),
            "threads" => Ok(EngineKind::Threads),
            _ => Err(format!("{s:?} is none of auto, io_uring, threads")),
        }
    }
}

/// Does io_uring work here, with all that [`UringEngine`] needs? If not, why, in words.
///
/// Makes a ring and sends a wake-up round it, because a ring that can be made need not be one that works.
pub fn probe() -> Result<(), String> {
    let mut engine = UringEngine::new().map_err(|e| e.to_string())?;
    engine.waker().wake();
    let woken = engine.wait_woken(Duration::from_secs(1));
    match woken {
        Ok(true) => Ok(()),
        Ok(false) => Err("a ring was made, but no event came out of it".to_owned()),
        Err(e) => Err(format!("a ring was made, but not entered: {e}")),
    }
}

/// Makes an engine for one worker.
pub fn create(kind: EngineKind) -> io::Result<Box<dyn Engine>> {
    Ok(match kind.resolve() {
        EngineKind::Threads => Box::new(PoolEngine::new(PoolEngine::THREADS)?),
        EngineKind::Auto | EngineKind::IoUring => Box::new(UringEngine::new()?),
    })
}
