//! vfio-user-nvme: an NVMe controller as a process of its own.
//!
//! ARCHITECTURE.md draws the rooms; each module says here what its one job is.

pub mod block;
pub mod cli;
pub mod config;
pub mod control;
pub mod copy;
pub mod copy_log;
pub mod device;
pub mod disk;
pub mod images;
pub mod laboratory;
pub mod logging;
pub mod memory;
pub mod namespace;
pub mod nvme_ctrl;
pub mod pci;
pub mod plan;
pub mod server;
pub mod spec;
pub mod status;
pub mod subsystem;
pub mod vfio_user;
