//! The whole daemon, driven over its socket by a small NVMe host: no VM, milliseconds each.

mod admin;
mod attach;
mod bounds;
mod cache;
mod cli;
mod commands;
mod control;
mod copy_log;
mod copy_methods;
mod copying;
mod doorbells;
mod dulbe;
mod faults;
mod health;
mod host_errors;
mod interrupts;
mod life;
mod log;
mod oracle;
mod peer_faults;
mod pointers;
mod ports;
mod process;
mod queues;
mod registers;
mod socket;
mod wire;

use nvme_host as host;

/// Values of `aio=` that work here.
fn engines() -> Vec<&'static str> {
    if io_uring::IoUring::new(4).is_ok() {
        vec!["threads", "io_uring"]
    } else {
        eprintln!("io_uring left out: the kernel refuses it");
        vec!["threads"]
    }
}
