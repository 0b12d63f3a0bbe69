//! What O_DIRECT asks of offsets and memory.

use std::fs::File;

use libc::iovec;

/// What every file system and device that knows O_DIRECT is content with.
const SAFE: u32 = 4096;
/// An answer beyond this is not believed.
const MAX: u32 = 1 << 16;

/// What a file asks of a direct transfer, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::disk) struct Alignment {
    /// Of the address of each piece of memory.
    pub(in crate::disk) memory: usize,
    /// Of offset and length in the file, and of the length of each piece of memory.
    pub(in crate::disk) block: u64,
}

impl Alignment {
    /// Of an open file: as the kernel tells (since 6.1, where the file system does), or the block of the device, or
    /// what is always right. `None`: the file system tells that it has no direct transfers for this file.
    pub(super) fn of(file: &File) -> Option<Self> {
        match told(file) {
            Some((0, _) | (_, 0)) => None,
            Some((memory, block)) => Some(Self::sane(memory, block)),
            None => {
                let block = rustix::fs::ioctl_blksszget(file).unwrap_or(SAFE);
                Some(Self::sane(block, block))
            }
        }
    }

    fn sane(memory: u32, block: u32) -> Self {
        let sane = |n: u32| if n.is_power_of_two() && n <= MAX { n } else { SAFE };
        // Images come in sectors.
        Alignment { memory: sane(memory) as usize, block: u64::from(sane(block).max(512)) }
    }

    /// Is the range of whole blocks?
    pub(super) fn fits(self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(self.block) && len.is_multiple_of(self.block)
    }

    /// Can the kernel take all of this memory as it is?
    pub(super) fn fits_memory(self, iovecs: &[iovec]) -> bool {
        let fits = |iov: &iovec| {
            iov.iov_base.addr().is_multiple_of(self.memory) && (iov.iov_len as u64).is_multiple_of(self.block)
        };
        iovecs.iter().all(fits)
    }
}

/// STATX_DIOALIGN: of memory and offsets; 0 where there are no direct transfers.
fn told(file: &File) -> Option<(u32, u32)> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let asked = StatxFlags::from_bits_retain(0x2000);
    let stat = statx(file, "", AtFlags::EMPTY_PATH, asked).ok()?;
    let answered = stat.stx_mask & asked.bits() != 0;
    answered.then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_fits() {
        let iov = |base, len| iovec { iov_base: std::ptr::without_provenance_mut(base), iov_len: len };
        let align = Alignment { memory: 4, block: 512 };
        assert!(align.fits_memory(&[iov(0x10004, 512), iov(0x20000, 8192)]));
        assert!(!align.fits_memory(&[iov(0x10000, 512), iov(0x20002, 512)]), "an odd address");
        assert!(!align.fits_memory(&[iov(0x10000, 500), iov(0x20000, 524)]), "a block in two pieces");
        assert!(align.fits(512, 1024) && !align.fits(0, 100) && !align.fits(100, 512));
    }

    #[test]
    fn what_a_file_tells() {
        let file = tempfile::tempfile().expect("a file for the test");
        let align = Alignment::of(&file).expect("told or guessed");
        assert!(align.memory.is_power_of_two() && align.block.is_power_of_two() && align.block >= 512);
        assert_eq!(Alignment::sane(3, 1 << 20), Alignment { memory: 4096, block: 4096 });
        assert_eq!(Alignment::sane(4, 1), Alignment { memory: 4, block: 512 });
    }
}
