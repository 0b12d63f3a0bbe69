//! Reads of what lies in the page cache, made by the worker itself: one call, nothing in flight, nothing to collect.
//!
//! A ring spends on such a read what the call costs, and a job, its buffer's pins and a slot for the command besides.
//! With RWF_NOWAIT the call refuses wherever it would have to wait for the disk; the read then goes its usual way, which
//! also says what is wrong with it if anything is.
#![expect(unsafe_code, reason = "a system call on iovecs")]

use std::io;

use smallvec::SmallVec;

use crate::disk::file::image::ImageFile;
use crate::memory::Transient;

/// A read of what may lie in the page cache, to be tried with others before anything else is done
/// ([`Lane::read_cached`](crate::disk::Lane::read_cached)).
#[derive(Debug)]
pub struct CachedRead<'a> {
    pub(super) file: &'a ImageFile,
    /// In bytes, as the length.
    pub(super) offset: u64,
    len: usize,
    /// They lead into mappings that whoever made this keeps as long as it lives.
    pub(super) iovecs: &'a [libc::iovec],
    filled: bool,
}

impl<'a> CachedRead<'a> {
    /// Of all of `to`, from byte `offset` of the image.
    pub(in crate::disk) fn new(file: &'a ImageFile, offset: u64, to: &'a Transient<'_>) -> Self {
        CachedRead { file, offset, iovecs: to.iovecs(), len: to.len(), filled: false }
    }

    /// All of its buffer holds what the image does. If not, it is as if nothing had been done, but for what the buffer
    /// holds: the read is to be made in the usual way.
    pub fn is_filled(&self) -> bool {
        self.filled
    }

    /// Does `next` begin where this one ends?
    fn leads_to(&self, next: &Self) -> bool {
        std::ptr::eq(self.file, next.file) && self.offset.checked_add(self.len as u64) == Some(next.offset)
    }
}

/// Reads that lie one behind the other in one image are one call.
pub(super) fn runs<'r, 'a>(reads: &'r [CachedRead<'a>]) -> impl Iterator<Item = &'r [CachedRead<'a>]> {
    reads.chunk_by(CachedRead::leads_to)
}

/// As [`runs`].
pub(super) fn runs_mut<'r, 'a>(
    reads: &'r mut [CachedRead<'a>],
) -> impl Iterator<Item = &'r mut [CachedRead<'a>]> {
    reads.chunk_by_mut(CachedRead::leads_to)
}

/// What came of a run: bytes, or an errno.
pub(super) fn settle(run: &mut [CachedRead<'_>], got: Result<usize, i32>) {
    let Some(cache) = run.first().map(|first| first.file.page_cache()) else { return };
    let mut left = got.unwrap_or(0);
    for read in &mut *run {
        read.filled = read.len <= left;
        left = left.saturating_sub(read.len);
        if !read.filled {
            // What lies behind it was not reached.
            return cache.missed(got.err());
        }
    }
    cache.hit();
}

/// Tries them with one call for each run.
pub(super) fn try_each(reads: &mut [CachedRead<'_>]) {
    let mut together: SmallVec<[libc::iovec; 16]> = SmallVec::new();
    for run in runs_mut(reads) {
        let got = match &*run {
            [one] => preadv(one, one.iovecs),
            [first, ..] => {
                together.clear();
                run.iter().for_each(|read| together.extend_from_slice(read.iovecs));
                preadv(first, &together)
            }
            [] => continue,
        };
        settle(run, got);
    }
}

/// Reads from where `first` begins, if that needs no waiting: bytes, or an errno.
fn preadv(first: &CachedRead<'_>, iovecs: &[libc::iovec]) -> Result<usize, i32> {
    let offset = i64::try_from(first.offset).map_err(|_| libc::EINVAL)?;
    // Not by the function, which is a point of cancellation: that costs as much as all else here.
    // SAFETY: the iovecs lead into mappings that the reads they belong to keep for longer than the call; the kernel alone
    // writes there for us, and the guest may at any time. More of them than it takes it refuses.
    let got = unsafe {
        libc::syscall(
            libc::SYS_preadv2,
            first.file.fd(),
            iovecs.as_ptr(),
            iovecs.len(),
            offset,
            // The upper half of the offset, where a register does not hold all of it.
            0,
            libc::RWF_NOWAIT,
        )
    };
    usize::try_from(got).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::disk::CacheMode;
    use crate::memory::Access;
    use crate::memory::testing::Guest;

    /// An image of so many bytes, all of it in the page cache.
    fn image(len: usize) -> (ImageFile, Vec<u8>) {
        let file = tempfile::tempfile().expect("a file for the test");
        let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        file.write_all_at(&bytes, 0).expect("it is written");
        (ImageFile::new(file, len as u64, None, CacheMode::default(), None), bytes)
    }

    /// Reads as (offset, guest pieces): which of them `way` filled. Those hold what the image does.
    fn filled(
        image: &ImageFile,
        bytes: &[u8],
        guest: &Guest,
        reads: &[(u64, Vec<(u64, usize)>)],
        way: &mut dyn FnMut(&mut [CachedRead<'_>]),
    ) -> Vec<bool> {
        let map = guest.dma();
        let place = |(_, pieces): &(u64, Vec<(u64, usize)>)| {
            let mut data = Transient::default();
            for (address, len) in pieces {
                map.append(*address, *len, Access::Write, &mut data).expect("it is mapped");
            }
            data
        };
        let data: Vec<_> = reads.iter().map(place).collect();
        let mut tries: Vec<_> = reads
            .iter()
            .zip(&data)
            .map(|((offset, _), data)| CachedRead::new(image, *offset, data))
            .collect();
        way(&mut tries);
        let filled: Vec<bool> = tries.iter().map(CachedRead::is_filled).collect();
        for ((offset, pieces), _) in reads.iter().zip(&filled).filter(|(_, filled)| **filled) {
            let mut at = *offset as usize;
            for (address, len) in pieces {
                assert!(guest.bytes(*address, *len) == bytes[at..][..*len], "{len} bytes at {at}");
                at += len;
            }
        }
        filled
    }

    /// What every way of trying must do.
    pub(in crate::disk) fn conform(way: &mut dyn FnMut(&mut [CachedRead<'_>])) {
        let guest = Guest::new(0, 0x40_000);
        let (image, bytes) = image(200_000);
        let mut check = |reads: &[(u64, Vec<(u64, usize)>)]| filled(&image, &bytes, &guest, reads, &mut *way);
        if check(&[(0, vec![(0, 512)])]) != [true] {
            // A file system that cannot say, or a machine short of memory.
            return;
        }
        assert!(check(&[]).is_empty());
        // Pieces.
        assert_eq!(check(&[(100, vec![(0x2000, 0x1000), (0x10, 0x200), (0x3000, 0x800)])]), [true]);
        // The file ends within it, before it, and offsets end.
        for offset in [200_000 - 0x1000, 200_000, 1 << 62, u64::MAX] {
            assert_eq!(check(&[(offset, vec![(0, 0x1001)])]), [false]);
        }
        // Scattered: more than a ring has entries.
        let page = |n: u64| (n * 7 % 40 * 4096, vec![(n * 4096, 4096)]);
        assert_eq!(check(&(0..40).map(page).collect::<Vec<_>>()), [true; 40]);
        // One behind the other, of different lengths and in pieces; then not any more; then again.
        let row = [
            (0, vec![(0, 4096)]),
            (4096, vec![(0x9000, 512), (0x8000, 512)]),
            (5120, vec![(0x1000, 512)]),
            (5120, vec![(0x2000, 512)]),
            (5632, vec![(0x3000, 0x3000)]),
        ];
        assert_eq!(check(&row), [true; 5]);
        // A row that the file's end cuts: what lies before it is filled.
        let page = |n: u64| (200_000 - 4096 * 3 - 100 + n * 4096, vec![(n * 4096, 4096)]);
        assert_eq!(check(&[page(0), page(1), page(2), page(3), page(0)]), [true, true, true, false, true]);
        // More pieces than the kernel takes in a call, alone and together.
        let crumbs =
            |offset, count: usize| (offset, (0..count).flat_map(|_| [(0, 1), (4, 1)]).collect::<Vec<_>>());
        let many = libc::UIO_MAXIOV as usize;
        let (guest, image) = (Guest::new(0, 0x1000), &image);
        let pieces = |reads: &[(u64, Vec<(u64, usize)>)], way: &mut dyn FnMut(&mut [CachedRead<'_>])| {
            let map = guest.dma();
            let mut data: Vec<Transient<'_>> = Vec::new();
            for (_, pieces) in reads {
                let mut one = Transient::default();
                for (address, len) in pieces {
                    map.append(*address, *len, Access::Write, &mut one).expect("it is mapped");
                }
                data.push(one);
            }
            let mut tries: Vec<_> =
                reads.iter().zip(&data).map(|((at, _), data)| CachedRead::new(image, *at, data)).collect();
            way(&mut tries);
            tries.iter().map(CachedRead::is_filled).collect::<Vec<_>>()
        };
        assert_eq!(pieces(&[crumbs(0, many)], way), [false]);
        assert_eq!(pieces(&[crumbs(0, many / 2)], way), [true]);
        let together = [crumbs(0, many / 2), crumbs(many as u64, 1)];
        assert_eq!(pieces(&together, way), [false, false]);
    }

    /// Memory that is gone is no success, and takes nothing else with it.
    pub(in crate::disk) fn conform_without_memory(way: &mut dyn FnMut(&mut [CachedRead<'_>])) {
        let (image, bytes) = image(0x4000);
        let (guest, lost) = (Guest::new(0, 0x4000), Guest::new(0, 0x1000));
        let all = |n: u64| (n * 4096, vec![(n * 4096, 4096)]);
        if filled(&image, &bytes, &guest, &[all(0)], way) != [true] {
            return;
        }
        let (map, gone) = (guest.dma(), lost.dma());
        let mut data = [Transient::default(), Transient::default()];
        map.append(0x1000, 0x1000, Access::Write, &mut data[0]).expect("it is mapped");
        gone.append(0, 0x1000, Access::Write, &mut data[1]).expect("it is mapped");
        rustix::fs::ftruncate(&lost.file, 0).expect("the client takes it away");
        let mut tries = [
            CachedRead::new(&image, 0, &data[1]),
            CachedRead::new(&image, 0x2000, &data[0]),
            CachedRead::new(&image, 0, &data[1]),
            CachedRead::new(&image, 0x1000, &data[0]),
        ];
        way(&mut tries);
        assert_eq!(tries.each_ref().map(CachedRead::is_filled), [false, true, false, false]);
    }

    #[test]
    fn a_call_each() {
        conform(&mut try_each);
        conform_without_memory(&mut try_each);
    }

    /// One vain call in 32 while nothing is there, from the first hit on none is left out.
    #[test]
    fn gives_up_for_a_while() {
        let (image, _) = image(4096);
        let cache = image.page_cache();
        let asked = |count: usize| {
            let mut tried = 0;
            for _ in 0..count {
                if cache.is_worth_a_try() {
                    cache.missed(Some(libc::EAGAIN));
                    tried += 1;
                }
            }
            tried
        };
        assert_eq!(asked(1), 1);
        assert!(asked(200) < 12);
        assert_eq!(asked(3200), 100);
        // A batch is decoded before the first of it is tried.
        while !cache.is_worth_a_try() {}
        assert!((0..31).all(|_| !cache.is_worth_a_try()));
        let guest = Guest::new(0, 0x1000);
        let map = guest.dma();
        let mut data = Transient::default();
        map.append(0, 512, Access::Write, &mut data).expect("it is mapped");
        let mut tries = [CachedRead::new(&image, 0, &data)];
        try_each(&mut tries);
        if tries[0].is_filled() {
            assert!((0..100).all(|_| cache.is_worth_a_try()));
        }
    }

    #[test]
    fn a_file_that_cannot_say_is_not_asked_again() {
        let (image, _) = image(1);
        let cache = image.page_cache();
        assert!(cache.is_worth_a_try());
        cache.missed(Some(libc::EOPNOTSUPP));
        assert!((0..100).all(|_| !cache.is_worth_a_try()));
    }
}
