//! Memory of ours that the kernel can transfer without a detour: aligned as O_DIRECT wants it.
#![expect(unsafe_code, reason = "an allocation with an alignment of its own")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Of buffers of a page and more: no file system asks for more.
const PAGE: usize = 4096;
/// Of smaller ones: what most devices ask for, without the waste of a page each.
const SECTOR: usize = 512;

/// Bytes of a fixed number, initialised, aligned to 4096 (512 when there are fewer than 4096).
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    /// Whose the bytes are; of an allocation of their own without one.
    lender: Option<Arc<dyn Lender>>,
}

/// Whom bytes go back to.
pub(super) trait Lender: Send + Sync {
    /// Takes the bytes of a buffer back. They are no longer used.
    fn give_back(&self, start: NonNull<u8>, len: usize);
}

impl Buffer {
    /// `len` zeroes.
    pub fn zeroed(len: usize) -> Self {
        let Some(layout) = layout(len) else {
            return Self { start: NonNull::dangling(), len: 0, lender: None };
        };
        // SAFETY: the layout is not of size 0.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, len, lender: None }
    }

    /// Bytes of a lender, to be given back to it.
    ///
    /// # Safety
    /// They are `len` initialised bytes at `start`, the lender's, which nobody else reads or writes before
    /// they are given back.
    pub(super) unsafe fn lent(lender: Arc<dyn Lender>, start: NonNull<u8>, len: usize) -> Self {
        Self { start, len, lender: Some(lender) }
    }

    /// The first byte, without a claim to those behind it.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

/// Nothing for no bytes, which are not allocated.
fn layout(len: usize) -> Option<Layout> {
    let align = if len < PAGE { SECTOR } else { PAGE };
    // Fails only for lengths that no memory has; `zeroed` then gives an empty buffer, which every user
    // notices.
    Layout::from_size_align(len, align).ok().filter(|layout| layout.size() > 0)
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that this value owns; dangling only with a length of 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(lender) = self.lender.take() {
            lender.give_back(self.start, self.len);
        } else if let Some(layout) = layout(self.len) {
            // SAFETY: allocated in `zeroed` with the same layout, which depends on the length alone.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}

// SAFETY: it owns its bytes, as a box does; a lender can be shared.
unsafe impl Send for Buffer {}
// SAFETY: shared references only read.
unsafe impl Sync for Buffer {}

impl Default for Buffer {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(&bytes[..])
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_zeroed() {
        for len in [0, 1, 511, 512, 4095, 4096, 4097, 1 << 20] {
            let mut buffer = Buffer::zeroed(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|b| *b == 0));
            let align = if len < PAGE { SECTOR } else { PAGE };
            assert!(len == 0 || buffer.as_ptr().addr().is_multiple_of(align), "{len}");
            buffer.fill(7);
            assert_eq!(&*Buffer::from(&buffer[..]), &*buffer);
        }
        assert_eq!(Buffer::zeroed(usize::MAX).len(), 0);
    }
}
