//! The control socket: whoever owns the device sees it, and changes it while a guest uses it.
//!
//! JSON lines over a UNIX socket; docs/control.md is the schema. Each client has a thread of its own, which
//! may wait: namespaces are changed from there ([`crate::subsystem::Subsystem::change`]), and what the
//! control thread alone may touch is asked of it by message ([`Asks`]), so that no client holds up the
//! device.
//!
//! A new command is a row in `table.rs` and a file in `commands/`.

mod client;
mod command;
mod commands;
mod context;
mod ctl;
mod listener;
mod out;
mod scan;
mod settle;
mod stock;
mod table;
mod views;
mod wire;

pub use command::{Arg, Command, Kind};
pub use context::{Asks, Context, ControlThread, Job, PATIENCE, PortMut};
pub use ctl::{CtlArgs, Failure as CtlFailure, run as ctl};
pub use listener::{CLIENTS_MAX, Control};
pub use out::Out;
pub use scan::scan;
pub use stock::Stock;
pub use table::TABLE;
pub use wire::{LINE_MAX, Refusal, Request, SCHEMA};
