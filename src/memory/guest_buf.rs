//! Host iovecs of one data transfer, with pins on the regions they lie in.
/// Host memory of one data transfer (PRP or SGL resolved), pinned.
#[derive(Debug, Default)]
pub struct GuestBuf {}
impl GuestBuf {
    /// Length in bytes of all pieces.
    pub fn len(&self) -> usize {
        0
    }
    /// No byte at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
