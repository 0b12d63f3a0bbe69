//! Reads of what lies in the page cache, made by the worker itself: one call, nothing in flight, nothing to collect.
//!
//! A ring spends on such a read what the call costs, and a job, its buffer's pins and a slot for the command besides.
//! With RWF_NOWAIT the call refuses wherever it would have to wait for the disk; the read then goes its usual way, which
//! also says what is wrong with it if anything is.
#![expect(unsafe_code, reason = "a system call on iovecs")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::relay::is_direct;
use crate::memory::Transient;

/// Reads that are not tried after the n-th miss in a row: `2^n - 1`, `n` at most this. An image that is not in memory
/// pays one vain call in 32 reads then, far below what the disk costs; one that comes to be in memory is noticed as soon.
const PATIENCE: u32 = 5;

/// The page cache of one file, as far as it answers.
#[derive(Debug)]
pub(super) struct PageCache {
    /// There is one, and the file system can say whether it would have to wait.
    answers: AtomicBool,
    /// Misses in a row. All workers share these two; while all hits, they are only read. What a race makes of them is
    /// a vain call or one that is left out.
    misses: AtomicU32,
    /// Reads not to be tried from now on.
    skip: AtomicU32,
}

impl PageCache {
    pub(super) fn of(file: &File) -> Self {
        PageCache {
            answers: AtomicBool::new(!is_direct(file)),
            misses: AtomicU32::new(0),
            skip: AtomicU32::new(0),
        }
    }

    /// Nobody is to ask it any more.
    pub(super) fn ignore(&self) {
        self.answers.store(false, Ordering::Relaxed);
    }

    /// Is the next read worth a try? To be asked once for each.
    pub(super) fn is_worth_a_try(&self) -> bool {
        if !self.answers.load(Ordering::Relaxed) {
            return false;
        }
        match self.skip.load(Ordering::Relaxed) {
            0 => {
                // Several may be asked for before the first is tried: while all miss, one alone is.
                self.pause(self.misses.load(Ordering::Relaxed));
                true
            }
            left => {
                self.skip.store(left - 1, Ordering::Relaxed);
                false
            }
        }
    }

    /// Fills `to` from byte `offset` of `file`, if that needs no waiting. `false`: not all of it was filled.
    pub(super) fn read(&self, file: &File, offset: u64, to: &Transient<'_>) -> bool {
        let iovecs = to.iovecs();
        let Ok(offset) = i64::try_from(offset) else { return false };
        if iovecs.len() > libc::UIO_MAXIOV as usize {
            return false;
        }
        // Not by the function, which is a point of cancellation: that costs as much as all else here.
        // SAFETY: the iovecs lead into mappings that `to` keeps for longer than the call; the kernel alone writes there
        // for us, and the guest may at any time.
        let got = unsafe {
            libc::syscall(
                libc::SYS_preadv2,
                file.as_raw_fd(),
                iovecs.as_ptr(),
                iovecs.len(),
                offset,
                // The upper half of the offset, where a register does not hold all of it.
                0,
                libc::RWF_NOWAIT,
            )
        };
        let all = usize::try_from(got).is_ok_and(|got| got == to.len());
        if all {
            if self.misses.load(Ordering::Relaxed) != 0 {
                self.misses.store(0, Ordering::Relaxed);
                self.skip.store(0, Ordering::Relaxed);
            }
        } else {
            let errno = if got < 0 { std::io::Error::last_os_error().raw_os_error() } else { None };
            self.missed(errno);
        }
        all
    }

    fn missed(&self, errno: Option<i32>) {
        if matches!(errno, Some(libc::EOPNOTSUPP | libc::ENOSYS)) {
            return self.ignore();
        }
        let misses = (self.misses.load(Ordering::Relaxed) + 1).min(PATIENCE);
        self.misses.store(misses, Ordering::Relaxed);
        self.pause(misses);
    }

    fn pause(&self, misses: u32) {
        if misses > 0 {
            self.skip.store((1 << misses) - 1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::memory::Access;
    use crate::memory::testing::Guest;

    /// A file of so many bytes, all of it in the page cache.
    fn file(len: usize) -> (File, Vec<u8>) {
        let file = tempfile::tempfile().expect("a file for the test");
        let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        file.write_all_at(&bytes, 0).expect("it is written");
        (file, bytes)
    }

    #[test]
    fn fills_every_piece_or_says_that_it_did_not() {
        let (file, bytes) = file(20_000);
        let cache = PageCache::of(&file);
        let guest = Guest::new(0, 0x4000);
        let map = guest.dma();
        let mut data = Transient::default();
        for (address, len) in [(0x2000, 0x1000), (0x10, 0x200), (0x3000, 0x800)] {
            map.append(address, len, Access::Write, &mut data).expect("it is mapped");
        }
        assert!(cache.is_worth_a_try());
        if !cache.read(&file, 100, &data) {
            // A file system that cannot say, or a machine short of memory.
            return;
        }
        assert!(guest.bytes(0x2000, 0x1000) == bytes[100..][..0x1000]);
        assert!(guest.bytes(0x10, 0x200) == bytes[100 + 0x1000..][..0x200]);
        assert!(guest.bytes(0x3000, 0x800) == bytes[100 + 0x1200..][..0x800]);
        // The file ends within it.
        assert!(!cache.read(&file, 20_000 - 0x1000, &data));
        assert!(!cache.read(&file, 20_000, &data));
        assert!(!cache.read(&file, u64::MAX, &data));
        // More pieces than the kernel takes in a call.
        let mut many = Transient::default();
        for _ in 0..=libc::UIO_MAXIOV {
            map.append(0, 1, Access::Write, &mut many).expect("it is mapped");
            map.append(4, 1, Access::Write, &mut many).expect("it is mapped");
        }
        assert!(!cache.read(&file, 0, &many));
    }

    /// One vain call in 32 while nothing is there, from the first hit on none is left out.
    #[test]
    fn gives_up_for_a_while() {
        let (file, _) = file(4096);
        let cache = PageCache::of(&file);
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
        if cache.read(&file, 0, &data) {
            assert!((0..100).all(|_| cache.is_worth_a_try()));
        }
    }

    #[test]
    fn a_file_that_cannot_say_is_not_asked_again() {
        let (file, _) = file(1);
        let cache = PageCache::of(&file);
        assert!(cache.is_worth_a_try());
        cache.missed(Some(libc::EOPNOTSUPP));
        assert!((0..100).all(|_| !cache.is_worth_a_try()));
    }
}
