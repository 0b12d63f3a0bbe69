//! Host iovecs of one data transfer, with pins on the regions they lie in.
#![expect(unsafe_code, reason = "iovecs are raw pointers")]

/// Host memory of one data transfer (PRP or SGL resolved), pinned.
#[derive(Debug, Default)]
pub struct GuestBuf {
    iovecs: Vec<libc::iovec>,
    #[allow(dead_code)]
    own: Vec<Box<[u8]>>,
}
// SAFETY: the pointers lead into `own`.
unsafe impl Send for GuestBuf {}
// SAFETY: as above.
unsafe impl Sync for GuestBuf {}
impl GuestBuf {
    /// Length in bytes of all pieces.
    pub fn len(&self) -> usize {
        self.iovecs.iter().map(|iov| iov.iov_len).sum()
    }
    /// No byte at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The pieces.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }
    /// A buffer of memory of its own, for tests.
    #[cfg(test)]
    pub fn from_pieces(mut own: Vec<Box<[u8]>>) -> Self {
        let iovecs = own
            .iter_mut()
            .map(|piece| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() })
            .collect();
        GuestBuf { iovecs, own }
    }
    /// A buffer of raw iovecs, for tests.
    ///
    /// # Safety
    /// The memory outlives the buffer.
    #[cfg(test)]
    pub unsafe fn from_raw(iovecs: Vec<libc::iovec>) -> Self {
        GuestBuf { iovecs, own: Vec::new() }
    }
    /// Copies out of the buffer from `offset`.
    pub fn copy_out(&self, mut offset: usize, dst: &mut [u8]) {
        let mut at = 0;
        for iov in &self.iovecs {
            if offset >= iov.iov_len {
                offset -= iov.iov_len;
                continue;
            }
            let take = (iov.iov_len - offset).min(dst.len() - at);
            // SAFETY: within a piece of `own`.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    iov.iov_base.cast::<u8>().add(offset),
                    dst[at..].as_mut_ptr(),
                    take,
                );
            }
            at += take;
            offset = 0;
        }
        assert_eq!(at, dst.len());
    }
}
