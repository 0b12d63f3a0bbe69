//! The NVMe controller: registers, doorbells, queues, admin commands, I/O commands, workers.
//!
//! Never sees the wire: interrupts leave by [`InterruptSink`], guest memory is a [`crate::memory::DmaMap`].
//! Not here yet: Format NVM, Namespace Management, protection information, fused commands.

mod admin;
mod config;
mod controller;
mod doorbell_buffers;
mod doorbells;
mod error_log;
mod flushes;
mod io;
mod late;
#[cfg(any(test, feature = "testing"))]
mod lone;
mod pending;
mod queue;
mod queue_table;
mod registers;
mod settings;
mod shared;
mod transfer;
mod view;
mod worker;
mod workers;

pub use config::ControllerConfig;
pub use controller::Controller;
#[cfg(any(test, feature = "testing"))]
pub use lone::Lone;
pub use queue::{CompletionQueue, Post, SubmissionQueue};
pub use settings::Settings;
pub use shared::InterruptSink;
pub use view::{ControllerState, ControllerStats, ControllerView, Counted, WorkerState};
pub use worker::{Answer, LaneFactory, Poll, WorkerParts};
