//! How file jobs reach the kernel: io_uring, or a pool of blocking threads. One engine per worker.

use std::time::Duration;

use super::{Completion, Tag};

/// A file operation as a sequence of system calls (an owner of its buffer); see backend/file_job.rs.
#[derive(Debug)]
pub struct FileJob {}

/// Runs file jobs for one worker; used by that worker's thread alone.
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
}

/// Wakes a worker out of [`Engine::wait`]. Cheap to clone; callable from any thread.
#[derive(Clone, Debug)]
pub struct Waker {}
