//! Which pages of a memory image have been written: one bit each, in memory that costs nothing before it is set.
//!
//! Workers mark and clear the same page at once. Whoever writes marks after the last byte; whoever gives a page back
//! clears before the page goes. So if the clearing comes last the bytes went with the page, and if the marking does
//! the page is marked: written and yet said to be deallocated is none of the outcomes.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;

/// Bytes that one bit speaks of.
pub(super) const GRANULE: usize = 4096;
/// Granules that one word speaks of.
const BITS: usize = u64::BITS as usize;

/// See the module docs.
#[derive(Debug)]
pub(super) struct PageMap {
    /// A mapping of its own, not a Vec: small images too start without a page.
    words: MmapRegion,
}

/// Part of a range whose granules are all written, or none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) offset: usize,
    pub(super) len: usize,
    pub(super) marked: bool,
}

impl PageMap {
    /// For an image of `len` bytes, nothing of which has been written.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let words = len.div_ceil(GRANULE).div_ceil(BITS).max(1);
        let words = MmapRegion::new(words * size_of::<u64>())
            .map_err(|e| io::Error::other(format!("cannot map the page map of {len} bytes: {e}")))?;
        Ok(PageMap { words })
    }

    /// The range has been written; a granule written in part counts as a whole.
    pub(super) fn mark(&self, offset: usize, len: usize) {
        // The bytes go first. Where the look below overtakes them in the processor and still finds the old mark, they go
        // with the page: the kernel takes it away only when no processor can write to it any more.
        compiler_fence(Ordering::SeqCst);
        self.each_word(offset, len, |word, mask| {
            // Mostly it is marked already, and a look does not take the line away from other workers.
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::SeqCst);
            }
            true
        });
    }

    /// The granules of the range, whole ones, are about to be given back.
    pub(super) fn clear(&self, offset: usize, len: usize) {
        self.each_word(offset, len, |word, mask| {
            if word.load(Ordering::SeqCst) & mask != 0 {
                word.fetch_and(!mask, Ordering::SeqCst);
            }
            true
        });
    }

    /// Has every granule of the range been written?
    pub(super) fn is_marked(&self, offset: usize, len: usize) -> bool {
        self.each_word(offset, len, |word, mask| word.load(Ordering::SeqCst) & mask == mask)
    }

    /// Has no granule of the range been written?
    pub(super) fn is_clear(&self, offset: usize, len: usize) -> bool {
        self.each_word(offset, len, |word, mask| word.load(Ordering::SeqCst) & mask == 0)
    }

    /// The range in runs, as long as can be, of what has been written and what has not, in order and without gaps.
    pub(super) fn runs(&self, offset: usize, len: usize) -> impl Iterator<Item = Run> {
        let (mut at, end) = (offset, offset + len);
        std::iter::from_fn(move || {
            let (start, mut marked) = (at, None);
            while at < end {
                let bits = self.bits_from(at / GRANULE);
                let marked = *marked.get_or_insert(bits & 1 == 1);
                let same = if marked { bits.trailing_ones() } else { bits.trailing_zeros() } as usize;
                let in_word = BITS - at / GRANULE % BITS;
                at = (at - at % GRANULE + same.min(in_word) * GRANULE).min(end).max(at);
                if same < in_word {
                    break;
                }
            }
            marked.map(|marked| Run { offset: start, len: at - start, marked })
        })
    }

    /// The marks of the granules from this one to the end of its word, its own the lowest. Looked at once: others change
    /// them meanwhile. What lies outside the image counts as written.
    fn bits_from(&self, granule: usize) -> u64 {
        let word = self.words.get_atomic_ref::<AtomicU64>(granule / BITS * size_of::<u64>());
        word.map_or(u64::MAX, |word| word.load(Ordering::SeqCst)) >> (granule % BITS)
    }

    /// Calls `look` with each word of the range and the bits of it that count, until it says no. A range inside the
    /// image is in the map; what is not counts as no.
    fn each_word(&self, offset: usize, len: usize, mut look: impl FnMut(&AtomicU64, u64) -> bool) -> bool {
        let end = (offset + len).div_ceil(GRANULE);
        let mut at = offset / GRANULE;
        while at < end && len > 0 {
            let (first, count) = (at % BITS, (end - at).min(BITS - at % BITS));
            let mask = (u64::MAX >> (BITS - count)) << first;
            let word = self.words.get_atomic_ref::<AtomicU64>(at / BITS * size_of::<u64>());
            if !word.is_ok_and(|word| look(word, mask)) {
                return false;
            }
            at += count;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_granule_is_whole() {
        let map = PageMap::new(10 * GRANULE).expect("the memory is there");
        assert!(map.is_marked(5, 0) && !map.is_marked(0, 1));
        map.mark(GRANULE + 7, 1);
        assert!(map.is_marked(GRANULE, GRANULE) && !map.is_marked(GRANULE - 1, 2));
        assert!(!map.is_marked(2 * GRANULE - 1, 2));
        map.clear(GRANULE, GRANULE);
        assert!(!map.is_marked(GRANULE, 1));
    }

    /// A map of 1 TiB is looked at, marked and cleared here and there.
    #[test]
    fn a_large_map_costs_what_is_marked() {
        let map = PageMap::new(1 << 40).expect("the address space is there");
        for at in [0, 1 << 39, (1 << 40) - 1] {
            assert!(!map.is_marked(at, 1));
            map.mark(at, 1);
            assert!(map.is_marked(at, 1));
        }
        // Pages that are present (bit 63) and of this mapping alone (bit 56), as the page of zeroes is not.
        let pages = map.words.size() / 4096;
        let table = std::fs::File::open("/proc/self/pagemap").expect("the page map opens");
        let mut entries = vec![0; pages * 8];
        let first = map.words.as_ptr().addr() / 4096;
        table.read_exact_at(&mut entries, first as u64 * 8).expect("the page map is read");
        let own = entries.chunks_exact(8).filter(|entry| entry[7] & 0x81 == 0x81).count();
        // Three, or as many huge ones.
        assert!(own <= 3 * 512, "{own} pages");
    }

    proptest! {
        #[test]
        fn like_a_list_of_booleans(
            steps in prop::collection::vec((0..4_u8, 0..300 * GRANULE, 0..200 * GRANULE), 1..40),
        ) {
            let map = PageMap::new(300 * GRANULE).expect("the memory is there");
            let mut model = vec![false; 300];
            for (what, offset, len) in steps {
                let len = len.min(300 * GRANULE - offset);
                let touched = offset / GRANULE..(offset + len).div_ceil(GRANULE).max(offset / GRANULE);
                let touched = if len == 0 { 0..0 } else { touched };
                match what {
                    0 => {
                        map.mark(offset, len);
                        model[touched].fill(true);
                    }
                    1 => {
                        let whole = touched.start * GRANULE..touched.end * GRANULE;
                        map.clear(whole.start, whole.len());
                        model[touched].fill(false);
                    }
                    2 => {
                        prop_assert_eq!(map.is_marked(offset, len), model[touched.clone()].iter().all(|bit| *bit));
                        prop_assert_eq!(map.is_clear(offset, len), !model[touched].iter().any(|bit| *bit));
                    }
                    _ => {
                        let (mut at, mut last) = (offset, None);
                        for run in map.runs(offset, len) {
                            prop_assert_eq!(run.offset, at);
                            prop_assert!(run.len > 0 && last != Some(run.marked));
                            let granules = run.offset / GRANULE..(run.offset + run.len).div_ceil(GRANULE);
                            prop_assert!(model[granules].iter().all(|bit| *bit == run.marked));
                            (at, last) = (at + run.len, Some(run.marked));
                        }
                        prop_assert_eq!(at, offset + len);
                    }
                }
            }
        }
    }
}
