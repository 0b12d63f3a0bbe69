//! Which parts of an image in anonymous memory are to lie on huge pages.
//!
//! A part of 2 MiB is put on a huge page (MADV_COLLAPSE) when an eighth of it has been written. With MADV_HUGEPAGE
//! instead, the first byte written would cost 2 MiB: 1000 scattered writes of 4 KiB 2 GiB, not 4 MiB. Like this, no
//! pattern of writes costs more than eight times what it wrote, and whoever writes all of an image gets huge pages
//! while it is being filled. The kernel's own scan, khugepaged, would take minutes for that.
//!
//! So no part has a huge page before it is written, and reading it costs what it costs without: the kernel's page of
//! zeroes, whatever `use_zero_page` says.
#![expect(unsafe_code, reason = "sysconf, and madvise on memory of the caller's")]

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use zerocopy::FromZeros;

/// Bytes of a huge page, where there are any.
pub(super) const HUGE: usize = 2 << 20;

/// Bytes of the pages that are counted.
const PAGE: usize = 4096;

/// A huge page in words with a bit for each page.
const WORDS: usize = HUGE / PAGE / u64::BITS as usize;

/// So many pages of a huge one, or twice as many and so on after a failure, and it is worth its memory.
const DENSE: u32 = (HUGE / PAGE / 8) as u32;

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
        let allowed = allows(&setting) && page == PAGE as libc::c_long;
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

/// The pages of an image that were written and not given back, as far as whole huge pages of it go.
///
/// A hint, kept by several workers at once without order: what is wrong in it costs memory or time, never data.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// [`WORDS`] for each huge page, all ones once it is one. Costs nothing until something is written.
    words: Vec<AtomicU64>,
    /// Is it one?
    huge: Vec<AtomicBool>,
}

impl Written {
    /// Of an image of `len` bytes; its memory must start where a huge page can.
    pub fn new(len: usize) -> io::Result<Self> {
        let no_memory = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        Ok(Self {
            words: AtomicU64::new_vec_zeroed(len / HUGE * WORDS).map_err(no_memory)?,
            huge: AtomicBool::new_vec_zeroed(len / HUGE).map_err(no_memory)?,
        })
    }

    /// Notes a write of `len` bytes at `offset` that is over. `collapse` is told the offset of each huge page that
    /// is worth having now, and answers for the kernel.
    pub fn wrote(&self, offset: usize, len: usize, collapse: impl Fn(usize) -> io::Result<()>) {
        for (word, bits) in words(offset..offset + len) {
            // A page written before: nearly always so, and then this is all.
            if self.words.get(word).is_some_and(|have| have.load(Ordering::Relaxed) & bits != bits) {
                self.wrote_more(word, bits, &collapse);
            }
        }
    }

    #[cold]
    fn wrote_more(&self, word: usize, bits: u64, collapse: &impl Fn(usize) -> io::Result<()>) {
        let chunk = word / WORDS;
        let before = self.count(chunk);
        self.words[word].fetch_or(bits, Ordering::Relaxed);
        let after = self.count(chunk);
        // At an eighth, a quarter, a half and when it is full: memory may be short for a moment only.
        if after < DENSE || before >= DENSE << (after / DENSE).ilog2() {
            return;
        }
        match collapse(chunk * HUGE) {
            Ok(()) => {
                self.chunk(chunk).iter().for_each(|word| word.store(!0, Ordering::Relaxed));
                self.huge[chunk].store(true, Ordering::Relaxed);
            }
            Err(error) => {
                static ONCE: std::sync::Once = std::sync::Once::new();
                ONCE.call_once(|| {
                    log::info!(
                        "a memory namespace got no huge page (Linux knows MADV_COLLAPSE from 6.1 on): {error}"
                    );
                });
            }
        }
    }

    /// Notes that whole pages went back to the kernel.
    pub fn gave_back(&self, range: Range<usize>) {
        for (word, bits) in words(range) {
            if let Some(have) = self.words.get(word)
                && have.load(Ordering::Relaxed) & bits != 0
            {
                have.fetch_and(!bits, Ordering::Relaxed);
                self.huge[word / WORDS].store(false, Ordering::Relaxed);
            }
        }
    }

    /// Does the byte at `offset` lie in a huge page?
    pub fn is_huge(&self, offset: usize) -> bool {
        self.huge.get(offset / HUGE).is_some_and(|huge| huge.load(Ordering::Relaxed))
    }

    fn chunk(&self, chunk: usize) -> &[AtomicU64] {
        let first = chunk * WORDS;
        self.words.get(first..first + WORDS).unwrap_or_default()
    }

    /// Pages written.
    fn count(&self, chunk: usize) -> u32 {
        self.chunk(chunk).iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }
}

/// The words of a range of bytes, each with the bits of the pages that it touches.
fn words(range: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    const BITS: usize = u64::BITS as usize;
    let (first, end) = (range.start / PAGE, if range.is_empty() { 0 } else { (range.end - 1) / PAGE + 1 });
    let last = end.div_ceil(BITS).max(first / BITS);
    (first / BITS..last).map(move |word| {
        let from = first.max(word * BITS) - word * BITS;
        let to = end.min((word + 1) * BITS) - word * BITS;
        (word, (!0 >> (BITS - (to - from))) << from)
    })
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

    use proptest::prelude::*;

    use super::*;

    const P: usize = PAGE;

    #[test]
    fn the_kernels_setting() {
        assert!(allows("always [madvise] never\n"));
        assert!(allows("[always] madvise never\n"));
        assert!(!allows("always madvise [never]\n"));
        assert!(!allows(""));
    }

    /// Writes pages one by one and says after which one a huge page was asked for, and where.
    fn asked(
        written: &Written,
        pages: impl Iterator<Item = usize>,
        answer: Option<i32>,
    ) -> Vec<(usize, usize)> {
        let asked = RefCell::new(Vec::new());
        for (n, page) in pages.enumerate() {
            written.wrote(page * P + 512, 512, |at| {
                asked.borrow_mut().push((n + 1, at));
                answer.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
            });
        }
        asked.into_inner()
    }

    #[test]
    fn an_eighth_makes_it_worth_while() {
        let written = Written::new(4 * HUGE).unwrap();
        // The same page again and again counts once.
        assert_eq!(asked(&written, std::iter::repeat_n(512, 1000), None), []);
        assert_eq!(asked(&written, (512..1024).step_by(8).chain(513..600), None), [(64, HUGE)]);
        assert!(written.is_huge(HUGE) && written.is_huge(2 * HUGE - 1));
        assert!(!written.is_huge(HUGE - 1) && !written.is_huge(2 * HUGE));
        // Scattered: one page of each is never worth it.
        assert_eq!(asked(&written, (0..4).map(|n| n * 512), None), []);
        written.gave_back(HUGE..2 * HUGE);
        assert!(!written.is_huge(HUGE));
        assert_eq!(asked(&written, 512..1024, None), [(64, HUGE)]);
    }

    #[test]
    fn a_failure_is_tried_again_a_few_times() {
        let written = Written::new(2 * HUGE).unwrap();
        assert_eq!(asked(&written, 0..512, Some(libc::ENOMEM)), [(64, 0), (128, 0), (256, 0), (512, 0)]);
        assert!(!written.is_huge(0), "full, but of small pages");
    }

    #[test]
    fn large_writes_and_the_end() {
        let written = Written::new(2 * HUGE + HUGE / 2).unwrap();
        let asked = RefCell::new(Vec::new());
        let collapse = |at| {
            asked.borrow_mut().push(at);
            Ok(())
        };
        written.wrote(HUGE - 100 * P, 200 * P, collapse);
        assert_eq!(*asked.borrow(), [0, HUGE]);
        // What is no whole huge page is left alone.
        written.wrote(2 * HUGE, HUGE / 2, collapse);
        assert_eq!(asked.borrow().len(), 2);
        assert!(!written.is_huge(2 * HUGE));
        // Nor is anything known of an image without.
        Written::default().wrote(0, HUGE, collapse);
        assert_eq!(asked.borrow().len(), 2);
    }

    proptest! {
        /// Each page of the range, and no other.
        #[test]
        fn words_cover_the_range(start in 0usize..600 * P, len in 0usize..300 * P) {
            let range = start..start + len;
            let mut pages = Vec::new();
            for (word, bits) in words(range.clone()) {
                pages.extend((0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| word * 64 + bit));
            }
            let wanted: Vec<usize> = (0..1000)
                .filter(|page| len > 0 && page * P < range.end && (page + 1) * P > range.start)
                .collect();
            prop_assert_eq!(pages, wanted);
        }
    }
}
