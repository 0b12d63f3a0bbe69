//! Which parts of an image in anonymous memory are to lie on huge pages.
//!
//! A part of 2 MiB is put on a huge page (MADV_COLLAPSE) when an eighth of it has been written. With MADV_HUGEPAGE
//! instead, the first byte written would cost 2 MiB: 1000 scattered writes of 4 KiB 2 GiB, not 4 MiB. Like this, no
//! pattern of writes costs more than eight times what it wrote, and whoever writes all of an image gets huge pages
//! while it is being filled. The kernel's own scan, khugepaged, would take minutes for that.
//!
//! So no part has a huge page before it is written, and reading it costs what it costs without: the kernel's page of
//! zeroes, whatever `use_zero_page` says.
#![expect(unsafe_code, reason = "sysconf, membarrier, and madvise on memory of the caller's")]

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::FromZeros;

use super::page_map::{GRANULE, PageMap};

/// Bytes of a huge page, where there are any.
pub(super) const HUGE: usize = 2 << 20;

/// So many pages of a huge one, or twice as many and so on after a failure, and it is worth its memory.
const DENSE: u32 = (HUGE / GRANULE / 8) as u32;

const KERNELS_SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// May an image in memory lie on huge pages?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Those parts of it that are well filled, unless the system's administrator allows no huge pages.
    #[default]
    Auto,
    /// No, and the kernel is told so.
    Off,
}

impl HugePages {
    /// Can they be had here?
    pub(super) fn available(self) -> bool {
        self == Self::Auto && kernel_allows()
    }
}

/// Looks once: it says so in the log when it does not.
fn kernel_allows() -> bool {
    static ALLOWED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ALLOWED.get_or_init(|| {
        let setting = std::fs::read_to_string(KERNELS_SETTING).unwrap_or_default();
        // SAFETY: no pointer is passed. Linux knows this name on every machine.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let allowed = allows(&setting) && page == GRANULE as libc::c_long;
        if !allowed {
            log::info!("memory namespaces use no huge pages: {KERNELS_SETTING} says {:?}", setting.trim());
        }
        allowed
    })
}

/// Reads `always [madvise] never`; nothing where the kernel has no huge pages.
fn allows(setting: &str) -> bool {
    setting.contains("[always]") || setting.contains("[madvise]")
}

/// Which whole 2 MiB of an image lie on a huge page.
///
/// A hint, kept by several workers at once without order: what is wrong in it costs memory or time, never data.
#[derive(Debug, Default)]
pub(super) struct HugeParts {
    /// For each the pages that must be written before a huge page is asked for, 0 for [`DENSE`]; [`IS_HUGE`] when it
    /// has one. Costs nothing until something is written.
    parts: Vec<AtomicU32>,
}

const IS_HUGE: u32 = u32::MAX;

impl HugeParts {
    /// Of an image of `len` bytes; its memory must start where a huge page can.
    pub fn new(len: usize) -> io::Result<Self> {
        let parts = AtomicU32::new_vec_zeroed(len / HUGE);
        Ok(Self { parts: parts.map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))? })
    }

    /// More of `range` has been written than before. `collapse` is told the offset of each huge page that is worth
    /// having now, and answers for the kernel.
    #[cold]
    pub fn grown(&self, written: &PageMap, range: Range<usize>, collapse: impl Fn(usize) -> io::Result<()>) {
        for (number, part) in self.touched(&range) {
            let wanted = part.load(Ordering::Relaxed).max(DENSE);
            if wanted == IS_HUGE {
                continue;
            }
            let have = written.count(number * HUGE, HUGE);
            if have < wanted {
                continue;
            }
            match collapse(number * HUGE) {
                Ok(()) => part.store(IS_HUGE, Ordering::Relaxed),
                Err(error) => {
                    // At a quarter, a half and when it is full: memory may be short for a moment only.
                    part.store(DENSE << ((have / DENSE).ilog2() + 1), Ordering::Relaxed);
                    static ONCE: std::sync::Once = std::sync::Once::new();
                    ONCE.call_once(|| {
                        log::info!(
                            "a memory namespace got no huge page (Linux knows MADV_COLLAPSE from 6.1 on): {error}"
                        );
                    });
                }
            }
        }
    }

    /// Notes that whole pages went back to the kernel.
    pub fn gave_back(&self, range: Range<usize>) {
        for (_, part) in self.touched(&range) {
            if part.load(Ordering::Relaxed) != 0 {
                part.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Does the byte at `offset` lie in a huge page?
    pub fn is_huge(&self, offset: usize) -> bool {
        self.parts.get(offset / HUGE).is_some_and(|part| part.load(Ordering::Relaxed) == IS_HUGE)
    }

    fn touched(&self, range: &Range<usize>) -> impl Iterator<Item = (usize, &AtomicU32)> {
        let (first, end) = (range.start / HUGE, range.end.div_ceil(HUGE));
        self.parts.iter().enumerate().take(end).skip(if range.is_empty() { end } else { first })
    }
}

/// All processors that run this process see memory as it is now: what a thread of it stored before it loaded something
/// is there for all. False where the kernel cannot do that.
pub(super) fn all_see_memory() -> bool {
    // linux/membarrier.h; libc has no names for them.
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
    static REGISTERED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    // SAFETY: the call takes numbers and touches no memory of ours.
    let membarrier =
        |command: libc::c_int| unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } == 0;
    *REGISTERED.get_or_init(|| membarrier(REGISTER_PRIVATE_EXPEDITED)) && membarrier(PRIVATE_EXPEDITED)
}

/// Makes the kernel put a huge page under `at`, with what the pages there hold. Safe: no byte changes.
///
/// # Errors
/// ENOMEM or EAGAIN: not now. EINVAL: the kernel does not know how, or the memory is not the caller's.
pub(super) fn collapse(at: *mut u8) -> io::Result<()> {
    // SAFETY: this advice moves pages and changes no byte, wherever it points.
    match unsafe { libc::madvise(at.cast(), HUGE, libc::MADV_COLLAPSE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells the kernel never to use huge pages in `len` bytes at `at`, whatever the system's setting.
pub(super) fn forbid(at: *mut u8, len: usize) {
    // SAFETY: this advice changes no byte, wherever it points. A kernel without huge pages refuses it.
    unsafe { libc::madvise(at.cast(), len, libc::MADV_NOHUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const P: usize = GRANULE;

    #[test]
    fn the_kernels_setting() {
        assert!(allows("always [madvise] never\n"));
        assert!(allows("[always] madvise never\n"));
        assert!(!allows("always madvise [never]\n"));
        assert!(!allows(""));
    }

    struct Image {
        map: PageMap,
        huge: HugeParts,
    }

    impl Image {
        fn new(len: usize) -> Self {
            Self { map: PageMap::new(len).unwrap(), huge: HugeParts::new(len).unwrap() }
        }

        fn wrote(&self, offset: usize, len: usize, collapse: impl Fn(usize) -> io::Result<()>) {
            if self.map.mark(offset, len) {
                self.huge.grown(&self.map, offset..offset + len, collapse);
            }
        }

        /// Writes pages one by one and says after which one a huge page was asked for, and where.
        fn asked(&self, pages: impl Iterator<Item = usize>, answer: Option<i32>) -> Vec<(usize, usize)> {
            let asked = RefCell::new(Vec::new());
            for (n, page) in pages.enumerate() {
                self.wrote(page * P + 512, 512, |at| {
                    asked.borrow_mut().push((n + 1, at));
                    answer.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
                });
            }
            asked.into_inner()
        }
    }

    #[test]
    fn an_eighth_makes_it_worth_while() {
        let image = Image::new(4 * HUGE);
        // The same page again and again counts once.
        assert_eq!(image.asked(std::iter::repeat_n(512, 1000), None), []);
        assert_eq!(image.asked((512..1024).step_by(8).chain(513..600), None), [(64, HUGE)]);
        assert!(image.huge.is_huge(HUGE) && image.huge.is_huge(2 * HUGE - 1));
        assert!(!image.huge.is_huge(HUGE - 1) && !image.huge.is_huge(2 * HUGE));
        // Scattered: one page of each is never worth it.
        assert_eq!(image.asked((0..4).map(|n| n * 512), None), []);
        image.map.clear(HUGE, HUGE);
        image.huge.gave_back(HUGE..2 * HUGE);
        assert!(!image.huge.is_huge(HUGE));
        assert_eq!(image.asked(512..1024, None), [(64, HUGE)]);
    }

    #[test]
    fn a_failure_is_tried_again_a_few_times() {
        let image = Image::new(2 * HUGE);
        assert_eq!(image.asked(0..512, Some(libc::ENOMEM)), [(64, 0), (128, 0), (256, 0), (512, 0)]);
        assert!(!image.huge.is_huge(0), "full, but of small pages");
    }

    #[test]
    fn large_writes_and_the_end() {
        let image = Image::new(2 * HUGE + HUGE / 2);
        let asked = RefCell::new(Vec::new());
        let collapse = |at| {
            asked.borrow_mut().push(at);
            Ok(())
        };
        image.wrote(HUGE - 100 * P, 200 * P, collapse);
        assert_eq!(*asked.borrow(), [0, HUGE]);
        // What is no whole huge page is left alone.
        image.wrote(2 * HUGE, HUGE / 2, collapse);
        assert_eq!(asked.borrow().len(), 2);
        assert!(!image.huge.is_huge(2 * HUGE));
        // Nor is anything known of an image without.
        HugeParts::default().grown(&image.map, 0..HUGE, collapse);
        assert_eq!(asked.borrow().len(), 2);
        assert_eq!(image.huge.touched(&(5..5)).count(), 0);
    }

    /// Linux has it since 4.14, and what builds on it falls back quietly: better to know.
    #[test]
    fn the_kernel_has_a_barrier_for_all() {
        assert!(all_see_memory());
    }
}
