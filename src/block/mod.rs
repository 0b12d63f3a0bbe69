//! What every front-end runs over a namespace: state machines that emit operations on its image and take
//! their completions. They end in a [`BlockError`] at worst; what a host is told of that is its front-end's
//! to say. They never wait, know no thread, and charge the worker's time that they take to its [`Work`].

mod group;
mod inspect;
pub mod work;

use std::sync::Arc;

pub use self::group::Group;
pub use self::inspect::Inspect;
pub use self::work::Work;
use crate::disk::{DiskError, Op};
use crate::memory::DmaError;
use crate::namespace::Namespace;

/// Takes one operation of a task: its part number, its namespace, the operation.
pub type Issue<'a> = dyn FnMut(u32, &Arc<Namespace>, Op) + 'a;

/// Which way the data was going when the image failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the image.
    Read,
    /// To the image, or a change or flush of it.
    Write,
}

/// Why a task did not do what it was to do.
#[derive(Debug)]
pub enum BlockError {
    /// The image.
    Image(DiskError, Direction),
    /// Guest memory.
    Memory(DmaError),
    /// The image's data is not what it was compared with.
    Miscompare,
    /// It was asked to end early, and had something left to do.
    Aborted,
    /// An operation ended as it cannot: a fault of ours.
    Internal,
}
