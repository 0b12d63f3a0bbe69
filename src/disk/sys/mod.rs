//! System calls on images as values, and all that is unsafe about making them.

pub(super) mod call;
pub(super) mod fiemap;
pub(super) mod iovecs;
mod tap;
mod waker;

pub use call::Call;
pub use tap::Tap;
pub use waker::Waker;

/// The result of a call as a ring gives it: what it returned, or -errno.
fn answer(result: i64) -> i64 {
    if result < 0 {
        -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    } else {
        result
    }
}
