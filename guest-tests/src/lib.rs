//! Harness that runs the daemon under a real QEMU with a real Linux guest.
//!
//! [`setup`] makes the environment (QEMU, kernels, programs) in a private cache folder; [`vm`] builds QEMU's
//! command line; [`Guest`] is a booted guest with an agent in it, [`Daemon`] the program under test; both die
//! with their owner.
//!
//! Environment variables, all optional:
//!
//! | name | meaning |
//! |---|---|
//! | `VFIO_USER_NVME_GUEST_DIR` | cache folder instead of `$XDG_CACHE_HOME/vfio-user-nvme` or `~/.cache/vfio-user-nvme` |
//! | `VFIO_USER_NVME_GUEST_MIRROR` | Debian archive instead of the one the system's package configuration names |
//! | `VFIO_USER_NVME_BIN` | a daemon that is already built |
//! | `VFIO_USER_NVME_GUEST_DEVICE` | `qemu-nvme`: run the cases on QEMU's own device |
//! | `NVME_CLI_TREE` | a built development tree of nvme-cli, whose own copy test is run then |

pub mod accel;
pub mod bench;
mod build;
pub mod case;
pub mod channel;
pub mod child;
pub mod daemon;
pub mod demo;
pub mod device;
pub mod died;
pub mod dmesg;
pub mod guest;
pub mod job;
pub mod model;
pub mod nvme;
pub mod nvme_cli;
pub mod progress;
pub mod run;
pub mod setup;
pub mod share;
pub mod undo;
pub mod vm;
pub mod words;

pub use daemon::Daemon;
pub use guest::{Guest, Output};
pub use setup::{Environment, Kernel};
