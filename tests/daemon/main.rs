//! The whole daemon, driven over its socket by a small NVMe host: no VM, milliseconds each.

#[allow(dead_code, reason = "a toolbox: not every test target uses every tool")]
#[path = "../host/mod.rs"]
mod host;

mod attach;
