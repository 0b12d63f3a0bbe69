//! Memory of transfers: buffers of ours, slabs they are lent from, one buffer for several reads; and the
//! guest's.

mod buffer;
mod io_buf;
mod slab;
mod split;

pub use buffer::Buffer;
pub use io_buf::IoBuf;
pub use slab::Slab;
pub use split::{Part, SplitBuffer};
