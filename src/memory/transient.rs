//! Host memory of a transfer that is over before its worker looks at its messages again.
#![expect(unsafe_code, reason = "makes slices of pointers into mappings that the table keeps alive")]

use std::sync::Arc;

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use super::guest_buf::{MAX_IOVECS, Target};
use super::{DmaError, Region};

/// Pieces of guest memory without pins: for who is done with them while it holds the table they were found
/// in.
///
/// An unmap waits for a fence of every worker, as it does for the other small accesses; so it need not wait
/// for pins of what cannot last from one message to the next. Four atomic operations a transfer are saved.
#[derive(Default)]
pub struct Transient<'m> {
    /// In order.
    pieces: SmallVec<[libc::iovec; 4]>,
    /// All regions they lie in.
    regions: SmallVec<[&'m Region; 1]>,
}

impl<'m> Transient<'m> {
    /// The pieces, in order; the guest may change them at any time.
    pub fn pieces(&self) -> impl Iterator<Item = VolatileSlice<'m>> {
        // SAFETY: each piece lies in a mapping of one of the regions, which the table keeps for 'm.
        self.pieces.iter().map(|piece| unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) })
    }

    /// The pieces as the kernel takes them, at most [`MAX_IOVECS`]; their memory is there as long as `self`.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.pieces
    }

    /// Bytes of all pieces.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.iov_len).sum()
    }

    /// No byte at all?
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// `Gone` when the pages of a region were lost on the way. To be asked when the transfer is over.
    pub fn check(&self) -> Result<(), DmaError> {
        match self.regions.iter().find(|region| region.is_dead()) {
            None => Ok(()),
            Some(region) => Err(DmaError::Gone(region.iova())),
        }
    }
}

impl<'m> Target<'m> for Transient<'m> {
    fn reserve(&mut self, pieces: usize) {
        self.pieces.reserve(pieces.min(MAX_IOVECS));
    }

    fn push(
        &mut self,
        region: &'m Arc<Region>,
        host: *mut u8,
        len: usize,
        address: u64,
    ) -> Result<(), DmaError> {
        if !self.regions.last().is_some_and(|last| std::ptr::eq(*last, &**region)) {
            self.regions.push(region);
        }
        let full = self.pieces.len() >= MAX_IOVECS;
        match self.pieces.last_mut() {
            Some(last) if last.iov_base.addr().wrapping_add(last.iov_len) == host.addr() => {
                last.iov_len += len
            }
            _ if full => return Err(DmaError::Fragmented(address)),
            _ => self.pieces.push(libc::iovec { iov_base: host.cast(), iov_len: len }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Access;
    use crate::memory::testing::Guest;

    #[test]
    fn neighbours_are_one_piece_and_nothing_is_pinned() {
        let guest = Guest::new(0, 0x4000);
        let map = guest.dma();
        let mut data = Transient::default();
        for page in [0x1000, 0x2000, 0] {
            map.append(page, 0x1000, Access::Write, &mut data).unwrap();
        }
        let lens: Vec<usize> = data.pieces().map(|piece| piece.len()).collect();
        assert_eq!(lens, [0x2000, 0x1000]);
        assert_eq!(map.regions().map(Region::pins).sum::<usize>(), 0);
        data.pieces().next().unwrap().copy_from(&[7_u8; 0x2000]);
        assert!(guest.bytes(0x1000, 0x2000) == [7; 0x2000]);
        assert_eq!(guest.bytes(0x3000, 1), [0]);
    }

    #[test]
    fn lost_pages_are_noticed() {
        let guest = Guest::new(0x5000, 0x2000);
        let map = guest.dma();
        let mut data = Transient::default();
        map.append(0x5000, 0x1000, Access::Read, &mut data).unwrap();
        assert_eq!(data.check(), Ok(()));
        rustix::fs::ftruncate(&guest.file, 0).unwrap();
        data.pieces().next().unwrap().copy_to(&mut [0_u8; 8]);
        assert_eq!(data.check(), Err(DmaError::Gone(0x5000)));
    }
}
