//! The seam where laboratories look at commands and bend their ends, and the laboratories.
//!
//! Each worker has a chain of [`Lab`]s ([`Labs`]), or none. Without one the worker's loops do not contain it: they ask
//! once for a queue and turn. With one, every command of the worker's queues goes the long way, so that each laboratory
//! sees it: fetched, planned or refused if it is a Copy, moved piece by piece, ended.
//!
//! What a laboratory is made by, a [`Tool`], is put on and taken off while the device runs ([`Laboratory`]).

pub mod copy_log;
pub mod faults;
pub mod oracle;

mod bad_blocks;
mod chain;
mod control;
mod fired;
mod lands;
mod script;
mod seam;
mod tools;
mod until;

pub use bad_blocks::BadBlocks;
pub use chain::Labs;
pub use control::{ControlLab, RegisterEvent, RegisterFate};
pub use fired::Fired;
pub use lands::{Lands, Layout};
pub use script::{Bend, Dw0, Edit, Flip, LateRange, Post, Script};
pub use seam::{Accepted, CommandId, Fate, Fetched, HostData, Lab};
pub use tools::{Change, LabFactory, Laboratory, Place, Station, Tool};
pub use until::{Latch, Stalled, Until};
