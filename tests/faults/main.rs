//! What must hold when the world behaves badly: a disk that hangs, power that fails, a medium with errors, a fault of
//! our own. The library's server runs in a thread, over disks and lanes that misbehave on demand, and is driven
//! over its socket.

mod control;
mod device;
mod doubles;
mod durability;
mod epochs;
mod laboratory;
mod live;
mod medium;
mod panics;
mod scripted;
mod stall;

use nvme_host as host;
use vfio_user_nvme::disk::{LaneKind, probe};

/// The kinds of lanes that work here.
fn lanes() -> Vec<LaneKind> {
    match probe() {
        Ok(()) => vec![LaneKind::Threads, LaneKind::IoUring],
        Err(why) => {
            eprintln!("io_uring left out: {why}");
            vec![LaneKind::Threads]
        }
    }
}

/// Runs `test` with each lane, all at the same time: most of what these tests do is waiting.
fn with_each_lane(test: impl Fn(LaneKind) + Sync) {
    let test = &test;
    std::thread::scope(|scope| {
        for kind in lanes() {
            std::thread::Builder::new()
                .name(kind.to_string())
                .spawn_scoped(scope, move || test(kind))
                .expect("a thread");
        }
    });
}
