//! PRP1 and PRP2 of a command to a host buffer (NVMe base specification, Physical Region Page Entry and
//! List).

use super::dma_map::Window;
use super::guest_buf::Target;
use super::{Access, DmaError, DmaMap, GuestBuf};

/// Why a PRP pair does not describe a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrpError {
    /// PRP Offset Invalid (generic status 13h): PRP1 not dword aligned, a page entry or chained list with an
    /// offset, a list not qword aligned; or one of them, but for PRP1, is 0.
    #[error("a PRP has an invalid offset")]
    Offset,
    /// The list or the data cannot be reached.
    #[error(transparent)]
    Dma(#[from] DmaError),
}

/// Entries fetched at a time: enough for 256 KiB, few enough that zeroing them on the stack is nothing.
const CHUNK: usize = 64;

/// Bytes of a list entry.
const ENTRY: usize = 8;

/// The host memory of `len` bytes described by `prp1` and `prp2`. `page_size` is 2^(12 + CC.MPS) bytes, a
/// power of two; `access` says what the device does with the data. Each list entry is read once, and no more
/// of them than `len` needs. The caller has checked `len` against MDTS.
pub fn walk(
    map: &DmaMap,
    prp1: u64,
    prp2: u64,
    len: usize,
    page_size: usize,
    access: Access,
) -> Result<GuestBuf, PrpError> {
    let mut buf = GuestBuf::default();
    walk_into(map, prp1, prp2, len, page_size, access, &mut buf)?;
    Ok(buf)
}

/// Is this what no PRP entry but PRP1 can be? An entry of 0 is one that the host has left unset, though data
/// still has to go somewhere: hosts do not give away page 0, and to write there would destroy what a guest
/// keeps in it. There is no status of its own for that; a bad offset is what QEMU has said. PRP1 is always in
/// use, so its 0 is an address.
fn is_wrong(entry: u64, mask: u64) -> bool {
    entry & mask != 0 || entry == 0
}

/// As [`walk`], into an empty `target`, which after an error is to be dropped.
pub fn walk_into<'m>(
    map: &'m DmaMap,
    prp1: u64,
    prp2: u64,
    len: usize,
    page_size: usize,
    access: Access,
    target: &mut impl Target<'m>,
) -> Result<(), PrpError> {
    debug_assert!(page_size.is_power_of_two() && page_size >= 4096);
    let mask = page_size as u64 - 1;
    if prp1 & 3 != 0 {
        return Err(PrpError::Offset);
    }
    let first = len.min(page_size - (prp1 & mask) as usize);
    map.append(prp1, first, access, target)?;
    let mut left = len - first;
    if left == 0 {
        return Ok(());
    }
    if left <= page_size {
        append_page(map, prp2, left, mask, access, target)?;
        return Ok(());
    }
    if is_wrong(prp2, 7) {
        return Err(PrpError::Offset);
    }
    let mut list = prp2;
    // Most lists stay in one region: it is looked up once.
    let mut window = None;
    // Room for a piece a page is made when there is more than one.
    let mut scattered = false;
    loop {
        let slots = (page_size - (list & mask) as usize) / ENTRY;
        let needed = left.div_ceil(page_size);
        let chained = needed > slots;
        // The last slot of the page is data when it is the last one needed, else it leads to the next page.
        let mut data = if chained { slots - 1 } else { needed };
        let mut fetch = if chained { slots } else { needed };
        let mut next = 0;
        let mut bytes = [0; CHUNK * ENTRY];
        while fetch > 0 {
            let now = fetch.min(CHUNK);
            let chunk = &mut bytes[..now * ENTRY];
            map.read(list, chunk)?;
            let (entries, _) = chunk.as_chunks::<ENTRY>();
            let (pages, link) = entries.split_at(data.min(now));
            data -= pages.len();
            if let Some(link) = link.first() {
                next = u64::from_le_bytes(*link);
            }
            let mut pages = pages.iter().map(|entry| u64::from_le_bytes(*entry)).peekable();
            while let Some(first) = pages.next() {
                if is_wrong(first, mask) {
                    return Err(PrpError::Offset);
                }
                // Most buffers lie in few pieces: a page that continues the one before costs a comparison.
                let mut run = left.min(page_size);
                while run < left && pages.next_if_eq(&first.wrapping_add(run as u64)).is_some() {
                    run = left.min(run + page_size);
                }
                if pages.peek().is_some() && !std::mem::replace(&mut scattered, true) {
                    target.reserve(left.div_ceil(page_size));
                }
                match window.as_ref().and_then(|window: &Window<'_>| window.append(first, run, target)) {
                    Some(result) => result?,
                    None => {
                        map.append(first, run, access, target)?;
                        window = map.window(first, access);
                    }
                }
                left -= run;
            }
            fetch -= now;
            // No overflow: the read of these very bytes succeeded; at the end of the address space it is not
            // used again.
            list = list.wrapping_add((now * ENTRY) as u64);
        }
        if !chained {
            return Ok(());
        }
        if is_wrong(next, mask) {
            return Err(PrpError::Offset);
        }
        list = next;
    }
}

fn append_page<'m>(
    map: &'m DmaMap,
    entry: u64,
    len: usize,
    mask: u64,
    access: Access,
    target: &mut impl Target<'m>,
) -> Result<(), PrpError> {
    if is_wrong(entry, mask) {
        return Err(PrpError::Offset);
    }
    Ok(map.append(entry, len, access, target)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::Rights;
    use crate::memory::testing::Guest;

    const PAGE: u64 = 4096;
    const P: usize = PAGE as usize;

    fn set_list(guest: &Guest, at: u64, entries: &[u64]) {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        guest.set(at, &bytes);
    }

    /// Where the buffer lies in a guest whose memory is mapped at 0 in one piece.
    fn places(guest: &Guest, buf: &GuestBuf) -> Vec<(u64, usize)> {
        let map = guest.dma();
        let mut base = GuestBuf::default();
        map.append(0, 1, Access::Read, &mut base).unwrap();
        let base = base.iovecs()[0].iov_base as u64;
        buf.iovecs().iter().map(|iovec| (iovec.iov_base as u64 - base, iovec.iov_len)).collect()
    }

    fn run(guest: &Guest, prp1: u64, prp2: u64, len: usize) -> Result<Vec<(u64, usize)>, PrpError> {
        let buf = walk(&guest.dma(), prp1, prp2, len, P, Access::Write)?;
        assert_eq!(buf.len(), len);
        Ok(places(guest, &buf))
    }

    #[test]
    fn one_page_ignores_prp2() {
        let guest = Guest::new(0, 0x10 * PAGE);
        assert_eq!(run(&guest, 0x1000, 0xdead_beef, P), Ok(vec![(0x1000, P)]));
        assert_eq!(run(&guest, 0x1ffc, 3, 4), Ok(vec![(0x1ffc, 4)]));
        assert_eq!(run(&guest, 0x1204, u64::MAX, 0xdfc), Ok(vec![(0x1204, 0xdfc)]));
        assert_eq!(run(&guest, 0, 1, 0), Ok(vec![]));
    }

    #[test]
    fn prp1_is_dword_aligned() {
        let guest = Guest::new(0, 0x10 * PAGE);
        for low in 1..4 {
            assert_eq!(run(&guest, 0x1000 + low, 0, 512), Err(PrpError::Offset));
        }
    }

    #[test]
    fn two_pages_take_prp2_as_data() {
        let guest = Guest::new(0, 0x10 * PAGE);
        assert_eq!(run(&guest, 0x1000, 0x5000, 2 * P), Ok(vec![(0x1000, P), (0x5000, P)]));
        assert_eq!(run(&guest, 0x1800, 0x5000, 0x804), Ok(vec![(0x1800, 0x800), (0x5000, 4)]));
        // The remainder fills PRP2's page exactly: still no list.
        assert_eq!(run(&guest, 0x1800, 0x5000, 0x1800), Ok(vec![(0x1800, 0x800), (0x5000, P)]));
        assert_eq!(run(&guest, 0x1000, 0x2000, 2 * P), Ok(vec![(0x1000, 2 * P)]));
        for low in [1, 4, 8, 0x800] {
            assert_eq!(run(&guest, 0x1000, 0x5000 + low, 2 * P), Err(PrpError::Offset));
        }
    }

    #[test]
    fn a_list_for_the_rest() {
        let guest = Guest::new(0, 0x10 * PAGE);
        set_list(&guest, 0x3000, &[0x7000, 0x5000, 0x9000]);
        let expected = vec![(0x1800, 0x800), (0x7000, P), (0x5000, 0x10)];
        assert_eq!(run(&guest, 0x1800, 0x3000, 0x800 + P + 0x10), Ok(expected));
        for low in [1, 2, 4] {
            assert_eq!(run(&guest, 0x1000, 0x3000 + low, 3 * P), Err(PrpError::Offset));
        }
        set_list(&guest, 0x3000, &[0x7000, 0x5008]);
        assert_eq!(run(&guest, 0x1000, 0x3000, 3 * P), Err(PrpError::Offset));
        // Not needed, not looked at.
        set_list(&guest, 0x3008, &[0x5000, 1]);
        assert!(run(&guest, 0x1000, 0x3000, 3 * P).is_ok());
    }

    #[test]
    fn a_list_may_begin_anywhere_in_its_page() {
        let guest = Guest::new(0, 0x10 * PAGE);
        // Three slots to the end of the page, and exactly three needed: the last one is data.
        set_list(&guest, 0x3fe8, &[0x7000, 0x5000, 0x9000]);
        let expected = vec![(0x1000, P), (0x7000, P), (0x5000, P), (0x9000, P)];
        assert_eq!(run(&guest, 0x1000, 0x3fe8, 4 * P), Ok(expected));
        // One more needed: the last slot of the *page* leads on, not slot 511 counted from the start of the
        // list.
        set_list(&guest, 0x3fe8, &[0x7000, 0x5000, 0xb000]);
        set_list(&guest, 0xb000, &[0x9000, 0xd000]);
        let expected = vec![(0x1000, P), (0x7000, P), (0x5000, P), (0x9000, P), (0xd000, 4)];
        assert_eq!(run(&guest, 0x1000, 0x3fe8, 4 * P + 4), Ok(expected));
        // A list that is nothing but its link.
        set_list(&guest, 0x3ff8, &[0xb000]);
        let expected = vec![(0x1000, P), (0x9000, P), (0xd000, P)];
        assert_eq!(run(&guest, 0x1000, 0x3ff8, 3 * P), Ok(expected));
    }

    /// However it is cut: pages in order are one piece, to be moved by one copy, up to where the order
    /// breaks.
    #[test]
    fn pages_that_follow_each_other_are_one_piece() {
        let guest = Guest::new(0, 0x200 * PAGE);
        let entries: Vec<u64> = (0x101..0x201).map(|page| page * PAGE).collect();
        // Longer than one fetch, and across a link.
        for list in [0x3000, 0x3800, 0x3fe8] {
            let slots = ((0x4000 - list) / 8) as usize;
            if slots < 255 {
                set_list(&guest, list, &entries[..slots - 1]);
                set_list(&guest, 0x3ff8, &[0x5000]);
                set_list(&guest, 0x5000, &entries[slots - 1..]);
            } else {
                set_list(&guest, list, &entries);
            }
            for len in [3 * P, 32 * P, 128 << 10, 256 * P, 255 * P + 4] {
                assert_eq!(run(&guest, 0x10_0000, list, len), Ok(vec![(0x10_0000, len)]), "{list:#x} {len}");
            }
            let map = guest.dma();
            let mut data = crate::memory::Transient::default();
            walk_into(&map, 0x10_0000, list, 32 * P, P, Access::Write, &mut data).unwrap();
            assert_eq!(data.pieces().map(|piece| piece.len()).collect::<Vec<_>>(), [32 * P]);
        }
        set_list(&guest, 0x3000, &[0x10_1000, 0x10_2000, 0x10_2000, 0x10_1000, 0x10_2000, 0x10_3000]);
        let expected = vec![(0x10_0000, 3 * P), (0x10_2000, P), (0x10_1000, 2 * P + 8)];
        assert_eq!(run(&guest, 0x10_0000, 0x3000, 5 * P + P + 8), Ok(expected));
        // A run that leads out of memory ends where it does, with the address of the first page that is not
        // there.
        set_list(&guest, 0x3000, &[0x1f_f000, 0x20_0000, 0x20_1000]);
        let beyond = PrpError::Dma(DmaError::Unmapped(0x20_0000));
        assert_eq!(run(&guest, 0x1000, 0x3000, 4 * P), Err(beyond));
        set_list(&guest, 0x3000, &[0u64.wrapping_sub(PAGE), 0, PAGE]);
        assert!(matches!(run(&guest, 0x1000, 0x3000, 4 * P), Err(PrpError::Dma(DmaError::Unmapped(_)))));
    }

    /// Where there is memory at 0 too.
    #[test]
    fn an_entry_of_0_is_unset() {
        let guest = Guest::new(0, 0x10 * PAGE);
        for len in [2 * P, 3 * P, 600 * P] {
            assert_eq!(run(&guest, 0x1000, 0, len), Err(PrpError::Offset), "PRP2, {len}");
        }
        set_list(&guest, 0x3000, &[0x7000, 0, 0x9000]);
        assert_eq!(run(&guest, 0x1000, 0x3000, 4 * P), Err(PrpError::Offset), "in a list");
        set_list(&guest, 0x3ff0, &[0x7000, 0]);
        assert_eq!(run(&guest, 0x1000, 0x3ff0, 4 * P), Err(PrpError::Offset), "a link");
        assert_eq!(run(&guest, 0, 0x5000, 2 * P), Ok(vec![(0, P), (0x5000, P)]), "PRP1 may be 0");
    }

    #[test]
    fn a_chained_list_is_page_aligned() {
        let guest = Guest::new(0, 0x10 * PAGE);
        set_list(&guest, 0xb000, &[0x9000, 0xd000, 0x9000]);
        for low in [1, 8, 0x800] {
            set_list(&guest, 0x3ff0, &[0x7000, 0xb000 + low]);
            assert_eq!(run(&guest, 0x1000, 0x3ff0, 4 * P), Err(PrpError::Offset));
        }
    }

    #[test]
    fn full_lists_of_512_and_511() {
        let guest = Guest::new(0, 0x10 * PAGE);
        // All data in one page: 8000h alone is not contiguous with itself.
        set_list(&guest, 0x3000, &[0x8000; 512]);
        set_list(&guest, 0x4000, &[0xa000; 512]);
        let places = run(&guest, 0x8000, 0x3000, 513 * P).unwrap();
        assert!(places == [(0x8000, P); 513]);
        set_list(&guest, 0x3ff8, &[0x4000]);
        let places = run(&guest, 0x8000, 0x3000, 514 * P).unwrap();
        assert!(places[..512] == [(0x8000, P); 512]);
        assert_eq!(places[512..], [(0xa000, P); 2]);
        // A list that leads to itself ends with the transfer.
        set_list(&guest, 0x4ff8, &[0x4000]);
        let places = run(&guest, 0x8000, 0x3000, 4096 * P).unwrap();
        assert_eq!(places.len(), 4096);
    }

    #[test]
    fn larger_pages() {
        let guest = Guest::new(0, 0x100 * PAGE);
        let size = 0x4000;
        let map = guest.dma();
        // 2048 slots a list page: several fetches.
        set_list(&guest, 0x4000, &[0x8000; 2047]);
        set_list(&guest, 0x7ff8, &[0xc000]);
        set_list(&guest, 0xc000, &[0x1_0000; 2]);
        let buf = walk(&map, 0x1004, 0x4000, 0x2ffc + 2049 * size, size, Access::Read).unwrap();
        let places = places(&guest, &buf);
        assert_eq!(places[0], (0x1004, 0x2ffc));
        assert!(places[1..2048] == [(0x8000, size); 2047]);
        assert_eq!(places[2048..], [(0x1_0000, size); 2]);
        let odd = walk(&map, 0x1000, 0x5000, 2 * size, size, Access::Read);
        assert!(odd.is_ok(), "a list with an offset");
        let odd = walk(&map, 0x4000, 0x5000, 2 * size, size, Access::Read);
        assert_eq!(odd.unwrap_err(), PrpError::Offset);
    }

    #[test]
    fn unreachable_memory() {
        let guest = Guest::new(0, 4 * PAGE);
        let unmapped = |address| Err(PrpError::Dma(DmaError::Unmapped(address)));
        assert_eq!(run(&guest, 0x4000, 0, 16), unmapped(0x4000));
        assert_eq!(run(&guest, 0x3000, 0x8000, 2 * P), unmapped(0x8000));
        assert_eq!(run(&guest, 0x3000, 0x8000, 3 * P), unmapped(0x8000));
        assert_eq!(run(&guest, u64::MAX - 3, 0, 4), unmapped(u64::MAX - 3));
        // A list at the very end is read no further than needed.
        set_list(&guest, 0x3ff0, &[0x1000, 0x2000]);
        assert!(run(&guest, 0, 0x3ff0, 3 * P).is_ok());
        set_list(&guest, 0x3ff0, &[0x1000, 0xff00_0000]);
        assert_eq!(run(&guest, 0, 0x3ff0, 4 * P), unmapped(0xff00_0000));
    }

    #[test]
    fn rights_and_region_borders() {
        let mut guest = Guest::unmapped(0x4000);
        guest.map(0, 0x1000, Rights::READ_ONLY, 0);
        guest.map(0x1000, 0x1000, Rights::READ_WRITE, 0x2000);
        let map = guest.dma();
        // The list lies where the device may only read, which is all it does.
        set_list(&guest, 0x800, &[0x1000, 0x1000]);
        let buf = walk(&map, 0x1000, 0x800, 3 * P, P, Access::Write).unwrap();
        assert_eq!(buf.len(), 3 * P);
        let denied = walk(&map, 0, 0x1000, 2 * P, P, Access::Write).unwrap_err();
        assert_eq!(denied, PrpError::Dma(DmaError::Denied(0)));
        // One NVMe page across two regions.
        let size = 0x2000;
        let buf = walk(&map, 0, 0, size, size, Access::Read).unwrap();
        guest.set(0xfff, &[1]);
        guest.set(0x2000, &[2]);
        let mut two = [0; 2];
        buf.copy_out(0xfff, &mut two).unwrap();
        assert_eq!(two, [1, 2]);
    }

    /// A buffer laid out by the rules, told byte by byte: the model knows pages and a little list writer, no
    /// walk.
    #[derive(Debug)]
    struct Layout {
        prp1: u64,
        prp2: u64,
        len: usize,
        /// Guest address of every dword.
        dwords: Vec<u64>,
        lists: BTreeMap<u64, u64>,
    }

    const PAGES: u64 = 64;
    /// List pages come from here, so that they never lie in the data.
    const LISTS: u64 = PAGES * PAGE;

    fn layout(offset: u64, list_slot: u64, data: Vec<u64>, tail: usize) -> Layout {
        let mut dwords = Vec::new();
        let mut lists = BTreeMap::new();
        for (index, page) in data.iter().enumerate() {
            let from = if index == 0 { offset } else { 0 };
            dwords.extend((from..PAGE).step_by(4).map(|at| page * PAGE + at));
        }
        // The last page is used in part, but for at least a dword.
        let last = if data.len() == 1 { PAGE - offset } else { PAGE } / 4;
        dwords.truncate(dwords.len() - tail % last as usize);
        let prp2 = match &data[1..] {
            [] => 0x1235,
            [page] => page * PAGE,
            pages => {
                let begin = LISTS + list_slot * 8;
                let mut at = begin;
                let mut next_page = LISTS + PAGE;
                for (index, page) in pages.iter().enumerate() {
                    let last_slot = at % PAGE == PAGE - 8;
                    if last_slot && index + 1 < pages.len() {
                        lists.insert(at, next_page);
                        at = next_page;
                        next_page += PAGE;
                    }
                    lists.insert(at, page * PAGE);
                    at += 8;
                }
                begin
            }
        };
        Layout { prp1: data[0] * PAGE + offset, prp2, len: dwords.len() * 4, dwords, lists }
    }

    fn layouts() -> impl Strategy<Value = Layout> {
        let sizes = prop_oneof![1usize..6, 508usize..516, 1usize..1300];
        let slots = prop_oneof![0u64..3, 508u64..512, 0u64..512];
        // Runs of pages that follow each other, and pages that follow nothing.
        let runs = prop_oneof![Just(1u64), 1..40u64];
        let data = sizes.prop_flat_map(move |n| {
            prop::collection::vec((1..PAGES, runs.clone()), n).prop_map(move |starts| {
                // Page 0 is for PRP1 alone.
                let pages = starts
                    .iter()
                    .flat_map(|&(first, run)| (first..first + run).map(|page| 1 + page % (PAGES - 1)));
                pages.take(n).collect::<Vec<_>>()
            })
        });
        (0..PAGE / 4, slots, data, 0usize..1024)
            .prop_map(|(offset, slot, data, tail)| layout(offset * 4, slot, data, tail))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn agrees_with_a_byte_list(layout in layouts()) {
            // Split at page 17, the halves swapped in the file: borders matter.
            let size = LISTS + 8 * PAGE;
            let split = 17 * PAGE;
            let mut guest = Guest::unmapped(size);
            guest.map(0, split, Rights::READ_WRITE, size - split);
            guest.map(split, size - split, Rights::READ_WRITE, 0);
            let map = guest.dma();
            let dwords: Vec<u8> = (0..LISTS as u32).step_by(4).flat_map(u32::to_le_bytes).collect();
            map.write(0, &dwords).unwrap();
            // Slots that the walk has no business with lead nowhere.
            map.write(LISTS, &[0xff; 8 * P]).unwrap();
            for (at, entry) in &layout.lists {
                map.write(*at, &entry.to_le_bytes()).unwrap();
            }
            let buf = walk(&map, layout.prp1, layout.prp2, layout.len, P, Access::Read).unwrap();
            prop_assert_eq!(buf.len(), layout.len);
            let mut bytes = vec![0; layout.len];
            buf.copy_out(0, &mut bytes).unwrap();
            let seen: Vec<u64> = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|dword| u64::from(u32::from_le_bytes(*dword)))
                .collect();
            prop_assert_eq!(seen, layout.dwords);
        }

        /// Whatever the guest says: an answer, and never more than was asked for.
        #[test]
        fn any_input_is_answered(
            prp1 in 0u64..0x9000,
            prp2 in 0u64..0x9000,
            len in 0usize..0x40_0000,
            list in prop::collection::vec(prop_oneof![0u64..0x9000, (0u64..9).prop_map(|n| n * PAGE)], 1..1024),
        ) {
            let guest = Guest::new(0, 8 * PAGE);
            set_list(&guest, 0, &list);
            match walk(&guest.dma(), prp1, prp2, len, P, Access::Write) {
                Ok(buf) => {
                    prop_assert_eq!(buf.len(), len);
                    let sum: usize = buf.iovecs().iter().map(|iovec| iovec.iov_len).sum();
                    prop_assert_eq!(sum, len);
                }
                Err(PrpError::Offset | PrpError::Dma(DmaError::Unmapped(_))) => {}
                Err(error) => prop_assert!(false, "{:?}", error),
            }
        }
    }
}
