//! Memory for many buffers at once, in one piece where the machine has one: 2 MiB on a huge page, lent in pages.
//!
//! What a device transfers past the page cache it is told page by page, unless the pages follow each other in physical
//! memory. That they do is luck with allocations of their own, and it is worth a factor: `cache=none` copies 1.5 GiB/s
//! instead of 0.6 on the virtual disk it was measured on.
#![expect(unsafe_code, reason = "madvise, and an address inside a mapping")]

use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::mmap::MmapRegion;

use super::buffer::{Buffer, Lender};

/// Bytes of a huge page, where there are any.
const HUGE: usize = 2 << 20;

/// Bytes of the smallest piece that is lent, and of what all of them are aligned to.
const PAGE: usize = 4096;
const PAGES: usize = HUGE / PAGE;

/// 2 MiB that buffers are lent from. They begin with zeroes and are not cleared when they come back: a buffer may hold
/// what the one before it left there.
#[derive(Debug)]
pub struct Slab {
    /// Twice the size, so that a huge page lies in it. The rest is never touched and costs nothing.
    mapping: MmapRegion,
    lent: Mutex<Lent>,
}

/// Which pages are lent.
#[derive(Debug)]
struct Lent([bool; PAGES]);

impl Slab {
    /// Bytes of a slab: the longest buffer there can be.
    pub const LEN: usize = HUGE;

    /// Of which nothing is lent. It costs memory from the first byte on that is written, then all of it at once where
    /// the kernel has a huge page.
    ///
    /// # Errors
    /// The address space is used up.
    pub fn new() -> io::Result<Arc<Self>> {
        let mapping = MmapRegion::new(2 * HUGE).map_err(io::Error::other)?;
        let slab = Self { mapping, lent: Mutex::new(Lent([false; PAGES])) };
        // SAFETY: anonymous memory that is this mapping's, which nobody uses yet; the advice changes no byte of it. Where
        // it is not taken, pages of the usual size do the same.
        unsafe { libc::madvise(slab.start().as_ptr().cast(), HUGE, libc::MADV_HUGEPAGE) };
        Ok(Arc::new(slab))
    }

    /// `len` bytes, which come back when the buffer is dropped. `None`: for nothing, or no piece is so long.
    pub fn lend(self: &Arc<Self>, len: usize) -> Option<Buffer> {
        let pages = len.div_ceil(PAGE);
        let mut lent = self.lent();
        let first = lent.find(pages)?;
        lent.mark(first, pages, true);
        // SAFETY: a run of whole pages within the mapping, initialised by the kernel, which is no other buffer's before
        // its bits are cleared again; the buffer clears them when nobody can reach its bytes any more.
        Some(unsafe { Buffer::lent(self.clone(), self.start().add(first * PAGE), len) })
    }

    /// Is nothing lent?
    pub fn is_idle(&self) -> bool {
        !self.lent().0.contains(&true)
    }

    fn start(&self) -> NonNull<u8> {
        let start = self.mapping.as_ptr();
        let skip = start.addr().next_multiple_of(HUGE) - start.addr();
        // SAFETY: less than half of the mapping is skipped, which is nowhere null.
        unsafe { NonNull::new_unchecked(start.add(skip)) }
    }

    /// Nothing that panics is done under the lock.
    fn lent(&self) -> MutexGuard<'_, Lent> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lender for Slab {
    fn give_back(&self, start: NonNull<u8>, len: usize) {
        let first = (start.addr().get() - self.start().addr().get()) / PAGE;
        self.lent().mark(first, len.div_ceil(PAGE), false);
    }
}

impl Lent {
    /// The first run of `pages` that are free: those used last are the first again, and most likely in the cache.
    fn find(&self, pages: usize) -> Option<usize> {
        let mut free = 0;
        let last = self.0.iter().position(|lent| {
            free = if *lent { 0 } else { free + 1 };
            free == pages && pages > 0
        });
        last.map(|last| last + 1 - pages)
    }

    fn mark(&mut self, first: usize, pages: usize, lent: bool) {
        if let Some(run) = self.0.get_mut(first..first + pages) {
            run.fill(lent);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_of_it_can_be_had_and_no_more() {
        let slab = Slab::new().expect("address space");
        assert!(
            slab.lend(0).is_none() && slab.lend(Slab::LEN + 1).is_none() && slab.lend(usize::MAX).is_none()
        );
        let mut whole = slab.lend(Slab::LEN).expect("all is free");
        assert!(whole.as_ptr().addr().is_multiple_of(HUGE) && whole.iter().all(|byte| *byte == 0));
        whole.fill(7);
        assert!(slab.lend(1).is_none() && !slab.is_idle());
        drop(whole);
        assert!(slab.is_idle());
        let again = slab.lend(3).expect("it came back");
        assert_eq!(&again[..], [7; 3], "not cleared");
    }

    #[test]
    fn a_buffer_keeps_the_memory_it_is_of() {
        let slab = Slab::new().expect("address space");
        let mut buffer = slab.lend(5 * PAGE).expect("all is free");
        drop(slab);
        buffer.fill(1);
        assert!(buffer.iter().all(|byte| *byte == 1));
    }

    /// Where the kernel gives huge pages at all. Whether it has one is the kernel's affair.
    #[test]
    fn a_huge_page_is_asked_for() {
        let setting =
            std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        if !setting.contains("[always]") && !setting.contains("[madvise]") {
            return;
        }
        let slab = Slab::new().expect("address space");
        let mut buffer = slab.lend(PAGE).expect("all is free");
        buffer.fill(1);
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("readable");
        let start = slab.start().as_ptr().addr();
        let mut here = false;
        let mut huge = None;
        for line in maps.lines() {
            if let Some((from, to)) = line.split_once(' ').and_then(|(range, _)| range.split_once('-'))
                && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                here = (from..to).contains(&start);
            } else if here && line.starts_with("VmFlags:") {
                huge = Some(line.split_whitespace().any(|flag| flag == "hg"));
            }
        }
        assert_eq!(huge, Some(true), "of the kernel");
    }

    proptest! {
        /// Against a list of booleans: what is lent is free, of whole pages, and nobody else's; it is refused only when
        /// no run is long enough.
        #[test]
        fn no_page_has_two_borrowers(steps in prop::collection::vec((any::<bool>(), 1..700 * 1024_usize), 1..200)) {
            let slab = Slab::new().expect("address space");
            let (mut model, mut bufs) = ([None; PAGES], Vec::new());
            for (number, (lend, len)) in steps.into_iter().enumerate() {
                if lend {
                    let pages = len.div_ceil(PAGE);
                    let room = model.windows(pages).position(|run| run.iter().all(Option::is_none));
                    let buffer = slab.lend(len);
                    prop_assert_eq!(buffer.is_some(), room.is_some());
                    if let (Some(mut buffer), Some(first)) = (buffer, room) {
                        prop_assert_eq!(buffer.as_ptr().addr() - slab.start().as_ptr().addr(), first * PAGE);
                        buffer.fill(number as u8);
                        model[first..first + pages].fill(Some(number));
                        bufs.push((number, buffer));
                    }
                } else if !bufs.is_empty() {
                    let (number, buffer) = bufs.swap_remove(len % bufs.len());
                    prop_assert!(buffer.iter().all(|byte| *byte == number as u8));
                    drop(buffer);
                    for page in model.iter_mut().filter(|page| **page == Some(number)) {
                        *page = None;
                    }
                }
            }
            prop_assert_eq!(slab.is_idle(), bufs.is_empty());
            bufs.clear();
            prop_assert!(slab.is_idle());
        }
    }
}
