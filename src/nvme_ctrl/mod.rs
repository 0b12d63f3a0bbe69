//! The NVMe controller: registers, doorbells, queues, admin commands, I/O commands, workers.
//!
//! Never sees the wire: interrupts leave by [`InterruptSink`], guest memory is a [`crate::memory::DmaMap`].
//! Not here yet: Format NVM, Namespace Management, protection information, fused commands.

mod admin;
mod controller;
mod doorbell_buffers;
mod doorbells;
mod error_log;
mod flushes;
mod io;
mod lone;
mod queue;
mod queue_table;
mod registers;
mod shared;
mod status;
mod transfer;
mod work;
mod worker;

pub use controller::{Controller, ControllerConfig};
pub use lone::Lone;
pub use queue::{CompletionQueue, Post, SubmissionQueue};
pub use shared::InterruptSink;
pub use worker::{LaneFactory, Poll, WorkerParts};
