//! The seam at which calls on an image are watched, or answered in the kernel's place.

use std::fmt::Debug;
use std::fs::File;

use super::call::Call;

/// Watches the calls on one image, on whatever thread makes them, and may answer for the kernel: for tests of durability
/// and of faults. Without one a call pays a test of an `Option`.
pub trait Tap: Send + Sync + Debug {
    /// The image was opened and locked; no call was made yet.
    fn opened(&self, _image: &File, _len: u64) -> std::io::Result<()> {
        Ok(())
    }
    /// `call` is about to be made; `data` is what a `Pwritev` hands over, else empty; `source` is the file that
    /// `CloneRange` and `CopyRange` copy from, else the image. Returns a number that comes back with the end of the call.
    fn issued(&self, call: &Call, data: &[u8], source: &File) -> u64;
    /// What to take for the kernel's answer, bytes or -errno; the call, which may move so many bytes, is then not made.
    /// Asked after `issued`.
    fn answer(&self, _call: &Call, _len: u64) -> Option<i64> {
        None
    }
    /// The call ended: bytes moved (0 where none are), or errno.
    fn completed(&self, ticket: u64, call: &Call, result: Result<u32, i32>);
}
