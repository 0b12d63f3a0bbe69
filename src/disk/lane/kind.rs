//! Which lane: over a ring of the kernel's, or over threads alone.

use std::fmt;
use std::time::Duration;

use super::ring::Ring;
use crate::disk::Waker;

/// Which lane to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LaneKind {
    /// io_uring where the kernel allows it, else threads.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// Blocking threads.
    Threads,
}

impl LaneKind {
    /// The kind that a lane is made of: never `Auto`.
    pub fn resolve(self) -> LaneKind {
        match self {
            LaneKind::Auto => match probe() {
                Ok(()) => LaneKind::IoUring,
                Err(why) => {
                    log::info!("io_uring does not work here ({why}); threads are used");
                    LaneKind::Threads
                }
            },
            other => other,
        }
    }
}

/// QEMU's words for its property `aio`, and `auto`.
impl fmt::Display for LaneKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LaneKind::Auto => "auto",
            LaneKind::IoUring => "io_uring",
            LaneKind::Threads => "threads",
        })
    }
}

/// Does io_uring work here, with all that a lane needs? If not, why, in words.
///
/// Makes a ring and sends a wake-up round it, because a ring that can be made need not be one that works.
pub fn probe() -> Result<(), String> {
    let waker = Waker::new().map_err(|e| e.to_string())?;
    let mut ring = Ring::new(waker.clone()).map_err(|e| e.to_string())?;
    waker.wake();
    match ring.wait_woken(Duration::from_secs(1)) {
        Ok(true) => Ok(()),
        Ok(false) => Err("a ring was made, but no event came out of it".to_owned()),
        Err(e) => Err(format!("a ring was made, but not entered: {e}")),
    }
}
