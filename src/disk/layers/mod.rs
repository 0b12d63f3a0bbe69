//! Disks over disks, and a tap: what stands between a namespace and its image.

mod delay;
mod stall;
mod volatile;

pub use delay::Delay;
pub use stall::{Gate, Stall};
pub use volatile::VolatileLog;
