//! A small NVMe host that attaches over the vfio-user socket, as a VMM and a guest driver would.
//!
//! It shares no code with the device: offsets, opcodes and statuses are written down here a second time,
//! so that a mistake in the device's own tables cannot hide itself.

#![allow(missing_docs, reason = "a toolbox for tests: what a name does not say stands beside it")]

mod admin;
pub mod bells;
mod blocks;
pub mod client;
pub mod control;
pub mod ctrl;
pub mod daemon;
pub mod data;
pub mod identify;
pub mod le;
pub mod link;
pub mod memory;
pub mod ns;
pub mod nvme;
pub mod page;
pub mod place;
pub mod program;
pub mod ram;
pub mod ring;
pub mod rng;
pub mod storm;
pub mod wire;

pub use bells::Bells;
pub use client::{Answer, Client};
pub use control::Control;
pub use ctrl::Host;
pub use daemon::Daemon;
pub use data::{Data, Prp, Sgl};
pub use memory::Memory;
pub use ns::Ns;
pub use nvme::{Cqe, Sqe};
pub use page::Page;
pub use place::{LoopDevice, Mount};
pub use program::program;
pub use ram::Ram;
pub use rng::Rng;

use std::time::Duration;

/// How long any single answer may take. Generous, because the machine may be busy; nothing waits this long
/// unless it failed.
pub const DEADLINE: Duration = Duration::from_secs(10);
