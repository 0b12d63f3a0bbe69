//! System calls on images as values, and all that is unsafe about making them.

pub(super) mod call;
pub(super) mod fiemap;
pub(super) mod iovecs;
mod tap;
mod waker;

pub use call::Call;
pub use tap::Tap;
pub use waker::Waker;
