//! What [`sleeper`](super::sleeper) is made of; its test has loom's in this place.

pub use std::sync::atomic::{AtomicBool, Ordering, fence};
