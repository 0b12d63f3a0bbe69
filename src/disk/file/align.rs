//! What O_DIRECT asks of offsets and memory, and which part of a transfer meets it.

use std::fs::File;

use libc::iovec;

/// What every file system and device that knows O_DIRECT is content with.
const SAFE: u32 = 4096;
/// An answer beyond this is not believed.
const MAX: u32 = 1 << 16;
/// A stretch of aligned memory shorter than this is bounced along with what is around it: a call costs more.
const WORTH: usize = 4096;

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
        // Cutting pieces at blocks wants blocks of a sector at least.
        Alignment { memory: sane(memory) as usize, block: u64::from(sane(block).max(512)) }
    }

    /// Is the range of whole blocks?
    pub(super) fn fits(self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(self.block) && len.is_multiple_of(self.block)
    }

    /// Can the kernel take all of this memory as it is?
    pub(super) fn fits_memory(self, iovecs: &[iovec]) -> bool {
        iovecs.iter().all(|iov| self.fits_piece(iov.iov_base.addr(), iov.iov_len))
    }

    fn fits_piece(self, base: usize, len: usize) -> bool {
        base.is_multiple_of(self.memory) && (len as u64).is_multiple_of(self.block)
    }

    /// What to do with the memory from byte `skip` of `iovecs` on: `left` bytes, of whole blocks and not 0, which
    /// begin at a block of the file. A piece is of whole blocks, at least one and at most `left`; bounced ones are at
    /// most `room`, which is a block at least.
    pub(super) fn cut(self, iovecs: &[iovec], skip: usize, left: usize, room: usize) -> Piece {
        let block = self.block as usize;
        let mut cursor = Cursor::new(iovecs, skip);
        let direct = self.direct(cursor.clone(), left);
        if direct > 0 {
            return Piece::Direct(direct);
        }
        let limit = left.min(room - room % block);
        let mut len = block;
        cursor.advance(block);
        while len < limit && self.direct(cursor.clone(), (left - len).min(WORTH)) < (left - len).min(WORTH) {
            len += block;
            cursor.advance(block);
        }
        Piece::Bounce(len.min(limit))
    }

    /// Bytes from the cursor on, of whole blocks, that need no bounce; at most `limit`, which is of whole blocks or
    /// rounded up to them.
    fn direct(self, mut cursor: Cursor<'_>, limit: usize) -> usize {
        let block = self.block as usize;
        let mut sum = 0;
        while sum < limit
            && let Some((base, len)) = cursor.piece()
            && base.is_multiple_of(self.memory)
        {
            let whole = len - len % block;
            sum += whole;
            if whole < len {
                break;
            }
            cursor.advance(len);
        }
        sum.min(limit.next_multiple_of(block))
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

/// The next part of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// So many bytes straight from or to the memory they are in.
    Direct(usize),
    /// So many by way of an aligned buffer.
    Bounce(usize),
}

/// A place in a list of iovecs.
#[derive(Clone, Debug)]
struct Cursor<'a> {
    iovecs: &'a [iovec],
    /// In the first of them.
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(iovecs: &'a [iovec], skip: usize) -> Self {
        let mut cursor = Cursor { iovecs, at: 0 };
        cursor.advance(skip);
        cursor
    }

    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        while let [first, rest @ ..] = self.iovecs
            && self.at >= first.iov_len
        {
            self.at -= first.iov_len;
            self.iovecs = rest;
        }
    }

    /// Address and length of what is left of the first one.
    fn piece(&self) -> Option<(usize, usize)> {
        let first = self.iovecs.first()?;
        Some((first.iov_base.addr().wrapping_add(self.at), first.iov_len - self.at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn iov(base: usize, len: usize) -> iovec {
        iovec { iov_base: std::ptr::without_provenance_mut(base), iov_len: len }
    }

    const A: Alignment = Alignment { memory: 512, block: 512 };

    #[test]
    fn only_what_is_not_aligned_is_bounced() {
        let room = 1 << 16;
        let pages = [iov(0x10000, 8192), iov(0x20000, 4096)];
        assert_eq!(A.cut(&pages, 0, 12288, room), Piece::Direct(12288));
        assert_eq!(A.cut(&pages, 4096, 8192, room), Piece::Direct(8192));
        let odd = [iov(0x10000, 8192), iov(0x20004, 4096), iov(0x30000, 8192)];
        assert_eq!(A.cut(&odd, 0, 20480, room), Piece::Direct(8192));
        assert_eq!(A.cut(&odd, 8192, 12288, room), Piece::Bounce(4096));
        assert_eq!(A.cut(&odd, 12288, 8192, room), Piece::Direct(8192));
        let all_odd = [iov(0x10004, 1 << 20)];
        assert_eq!(A.cut(&all_odd, 0, 1 << 20, room), Piece::Bounce(room));
        // A block that straddles two pieces.
        let straddling = [iov(0x10000, 700), iov(0x20000, 9540)];
        assert_eq!(A.cut(&straddling, 0, 10240, room), Piece::Direct(512));
        assert_eq!(A.cut(&straddling, 512, 9728, room), Piece::Bounce(9728));
    }

    #[test]
    fn what_a_file_tells() {
        let file = tempfile::tempfile().expect("a file for the test");
        let align = Alignment::of(&file).expect("told or guessed");
        assert!(align.memory.is_power_of_two() && align.block.is_power_of_two() && align.block >= 512);
        assert_eq!(Alignment::sane(3, 1 << 20), Alignment { memory: 4096, block: 4096 });
        assert_eq!(Alignment::sane(4, 1), Alignment { memory: 4, block: 512 });
    }

    proptest! {
        /// Every byte is moved once, in whole blocks, and what goes straight is aligned.
        #[test]
        fn any_memory_is_cut_rightly(
            memory in prop::sample::select(vec![1usize, 4, 512, 4096]),
            block in prop::sample::select(vec![512u64, 4096]),
            pieces in prop::collection::vec((0usize..3, 1usize..4, 0usize..3), 1..20),
            room_blocks in 1usize..20,
        ) {
            let align = Alignment { memory, block };
            let mut iovecs: Vec<iovec> = pieces
                .iter()
                .enumerate()
                .map(|(n, (shift, pages, odd))| {
                    let base = (n + 1) << 20 | [0, 4, 513][*shift];
                    iov(base, pages * 4096 + [0, 512, 100][*odd])
                })
                .collect();
            let total: usize = iovecs.iter().map(|iov| iov.iov_len).sum();
            let missing = total.next_multiple_of(block as usize) - total;
            if missing > 0 {
                iovecs.push(iov(99 << 20, missing));
            }
            let total = total + missing;
            let room = room_blocks * block as usize;
            let mut at = 0;
            let mut straight = 0;
            while at < total {
                match align.cut(&iovecs, at, total - at, room) {
                    Piece::Direct(len) => {
                        prop_assert!(len > 0 && len % block as usize == 0 && len <= total - at);
                        let mut cursor = Cursor::new(&iovecs, at);
                        let mut left = len;
                        while left > 0 {
                            let (base, piece) = cursor.piece().expect("there is more");
                            let take = piece.min(left);
                            prop_assert!(align.fits_piece(base, take));
                            cursor.advance(take);
                            left -= take;
                        }
                        straight += len;
                        at += len;
                    }
                    Piece::Bounce(len) => {
                        prop_assert!(len > 0 && len % block as usize == 0);
                        prop_assert!(len <= room && len <= total - at);
                        at += len;
                    }
                }
            }
            prop_assert_eq!(at, total);
            if align.fits_memory(&iovecs) {
                prop_assert_eq!(straight, total);
            }
        }
    }
}
