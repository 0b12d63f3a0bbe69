//! Memory and its pages.

use super::*;
use crate::disk::tests::conformance::{Rig, copy_op, pool};
use crate::disk::{Inline, LaneKind, Pieces, SharedDisk};

fn rig(len: u64) -> Rig {
    let engine = Lane::new(LaneKind::Threads).expect("the engine starts");
    Rig::new(MemoryDisk::new(len).expect("the memory is there"), engine)
}

/// As a Copy that is done where it is fetched.
fn move_at_once(target: &MemoryDisk, source: &MemoryDisk, from: u64, to: u64, len: u64) -> bool {
    let Inline::Immediate(disk) = target.inline() else { panic!("memory never waits") };
    disk.move_from(&source.handle(), from, to, len)
}

/// Pages of `disk` that have memory of their own.
fn own_pages(disk: &MemoryDisk) -> usize {
    // Bit 63: present; bit 56: mapped here alone, which the page of zeroes is not.
    pages_with(disk, 1 << 63 | 1 << 56)
}

/// Pages of `disk` that have been read or written.
fn mapped_pages(disk: &MemoryDisk) -> usize {
    pages_with(disk, 1 << 63)
}

/// Pages of `disk` with these bits in the kernel's page map.
fn pages_with(disk: &MemoryDisk, bits: u64) -> usize {
    use std::os::unix::fs::FileExt;
    let pages = disk.image_len() / disk.page;
    let map = std::fs::File::open("/proc/self/pagemap").expect("the page map opens");
    let mut bytes = vec![0; pages * 8];
    let first = (disk.region.as_ptr().addr() + disk.start) / disk.page;
    map.read_exact_at(&mut bytes, first as u64 * 8).expect("the page map is read");
    bytes
        .chunks_exact(8)
        .map(|entry| u64::from_ne_bytes(entry.try_into().expect("8 bytes")))
        .filter(|entry| entry & bits == bits)
        .count()
}

#[test]
fn what_was_never_written_costs_nothing() {
    let disk = MemoryDisk::new(64 << 30).expect("the address space is there");
    assert_eq!(disk.len(), 64 << 30);
    drop(disk);
    let disk = MemoryDisk::new(64 << 20).expect("the memory is there");
    let mut read = Op::Read { offset: 0, buf: pool(vec![1; 64 << 20]) };
    disk.execute(&mut read).expect("the read succeeds");
    let buf = read.into_buf().expect("a read has a buffer");
    assert!(matches!(buf, IoBuf::Pool(bytes) if bytes.iter().all(|b| *b == 0)));
    assert_eq!(own_pages(&disk), 0);
}

#[test]
fn whole_pages_go_back() {
    let disk = MemoryDisk::with_huge_pages(8 << 20, HugePages::Off).expect("the memory is there");
    let full = own_pages_after(&disk, Op::Write { offset: 0, buf: pool(vec![1; 8 << 20]), fua: false });
    assert_eq!(full, 2048);
    let discard = Op::Discard { offset: 100, len: 1 << 20 };
    // The pages at either end keep bytes.
    assert_eq!(own_pages_after(&disk, discard), full - 255);
    let unmap = |unmap| Op::WriteZeroes { offset: 4 << 20, len: 1 << 20, unmap, fua: false };
    assert_eq!(own_pages_after(&disk, unmap(false)), full - 255);
    assert_eq!(own_pages_after(&disk, unmap(true)), full - 255 - 256);
}

fn bytes(disk: &MemoryDisk, offset: u64, len: usize) -> Vec<u8> {
    let mut read = Op::Read { offset, buf: pool(vec![1; len]) };
    disk.execute(&mut read).expect("the read succeeds");
    let Some(IoBuf::Pool(bytes)) = read.into_buf() else { panic!("no buffer") };
    bytes.to_vec()
}

/// As an operation would, marks and memory included; or not at all.
#[test]
fn moves_at_once_what_it_can() {
    let disk = MemoryDisk::new(8 << 20).expect("the memory is there");
    let mut image = vec![0; 32768];
    image[..8192].iter_mut().enumerate().for_each(|(n, byte)| *byte = (n % 251) as u8);
    disk.execute(&mut Op::Write { offset: 0, buf: pool(image[..8192].to_vec()), fua: false })
        .expect("the write succeeds");
    // Elsewhere, onto itself in either direction, from there.
    for (from, to, len) in [(512, 16384, 4096), (0, 512, 4096), (1024, 0, 6000), (17000, 8192, 100)] {
        assert!(move_at_once(&disk, &disk, from as u64, to as u64, len as u64));
        image.copy_within(from..from + len, to);
        assert!(bytes(&disk, 0, image.len()) == image, "{from} {to} {len}");
    }
    // Zeroes over zeroes take no memory, and have been written.
    let before = own_pages(&disk);
    let probe = || disk.execute(&mut Op::Probe { offset: 4 << 20, len: 65536 });
    assert!(matches!(probe(), Err(DiskError::Deallocated)));
    assert!(move_at_once(&disk, &disk, 1 << 20, 4 << 20, 65536));
    assert_eq!(own_pages(&disk), before);
    assert!(probe().is_ok());
    for (from, to) in [((8 << 20) - 511, 0), (0, (8 << 20) - 511), (u64::MAX, 0), (0, u64::MAX)] {
        assert!(!move_at_once(&disk, &disk, from, to, 512), "{from} {to}");
    }
    let protected = MemoryDisk::new(8 << 20).expect("the memory is there").protected(true);
    assert!(!move_at_once(&protected, &disk, 0, 0, 512));
    assert!(bytes(&disk, 0, image.len()) == image);
}

/// A page of zeroes that is left alone parts what is moved in two, but not where source and destination
/// overlap: there the first part would overwrite what the second one reads.
#[test]
fn pages_of_zeroes_in_what_overlaps() {
    let pages = |fill: &[u8]| -> Vec<u8> { fill.iter().flat_map(|byte| [*byte; 4096]).collect() };
    for (from, to, expected) in [(0, 2, [1, 2, 1, 2, 0, 3, 0, 5]), (2, 0, [0, 3, 0, 4, 0, 4, 0, 5])] {
        let disk = MemoryDisk::with_huge_pages(8 * 4096, HugePages::Off).expect("the memory is there");
        let before = pages(&[1, 2, 0, 3, 0, 4, 0, 5]);
        disk.execute(&mut Op::Write { offset: 0, buf: pool(before), fua: false })
            .expect("the write succeeds");
        assert!(move_at_once(&disk, &disk, from * 4096, to * 4096, 4 * 4096));
        assert!(bytes(&disk, 0, 8 * 4096) == pages(&expected), "{from} to {to}");
    }
    // Side by side is not overlapping: zeroes over zeroes cost nothing.
    let disk = MemoryDisk::new(8 << 20).expect("the memory is there");
    for (from, to) in [(0, 65536), (65536, 0)] {
        assert!(move_at_once(&disk, &disk, from, to, 65536));
        assert_eq!(own_pages(&disk), 0, "{from} to {to}");
    }
}

/// That is, the pages of the destination where a page of the source comes to lie.
#[test]
fn only_pages_with_data_cost_something() {
    let image = || MemoryDisk::with_huge_pages(1 << 20, HugePages::Off).expect("the memory is there");
    for offset in [0, 512, 3584, 4095] {
        let (source, target) = (image(), image());
        source
            .execute(&mut Op::Write { offset: 9000, buf: pool(vec![7]), fua: false })
            .expect("the write succeeds");
        assert!(move_at_once(&target, &source, 0, offset, 65536));
        assert_eq!(
            (bytes(&target, offset + 9000, 1), own_pages(&target)),
            (vec![7], if offset == 0 { 1 } else { 2 }),
            "{offset}"
        );
    }
}

/// They cost nothing where nothing is, and take the place of what is there.
#[test]
fn nothing_is_moved_over_data() {
    let disk = MemoryDisk::new(4 * HUGE as u64).expect("the memory is there");
    let huge = HUGE as u64;
    disk.execute(&mut write(0, 2 * HUGE)).expect("the write succeeds");
    let before = own_pages(&disk);
    for (to, len) in [(8192, 65536), (huge - 4096, 8192), (100, 700), (2 * huge - 4096, 8192)] {
        assert!(move_at_once(&disk, &disk, 3 * huge, to, len));
        assert!(bytes(&disk, to, len as usize).iter().all(|byte| *byte == 0), "{to}");
        for kept in [to - 1, to + len].into_iter().filter(|at| *at < 2 * huge) {
            assert_eq!(bytes(&disk, kept, 1), [7]);
        }
        assert!(allocated(&disk, to, len));
    }
    assert_eq!(own_pages(&disk), before);
}

fn moves(from: SharedDisk, pieces: Pieces, at: u64) -> Op {
    Op::Copy { from, pieces, at, how: How::MemMove, buf: None, durable: false }
}

fn write(offset: u64, len: usize) -> Op {
    Op::Write { offset, buf: pool(vec![7; len]), fua: false }
}

/// Does this machine give huge pages to those who ask?
fn huge_pages_on_demand() -> bool {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let here = setting.as_ref().is_ok_and(|setting| !setting.contains("[never]"));
    if !here {
        eprintln!("left out: this machine gives no huge page on demand ({setting:?})");
    }
    here
}

/// They come with the first byte, whole, and go in part or whole.
#[test]
fn on_huge_pages_or_not() {
    let huge = HUGE as u64;
    let make =
        |huge_pages| MemoryDisk::with_huge_pages(3 * huge + 4096, huge_pages).expect("the memory is there");
    let off = make(HugePages::Off);
    assert_eq!(own_pages_after(&off, write(huge + 512, 512)), 1);
    if !huge_pages_on_demand() {
        return;
    }
    let image = make(HugePages::Auto);
    let one = own_pages_after(&image, write(huge + 512, 512));
    if one == 1 {
        return eprintln!("left out: no huge page is free");
    }
    assert_eq!(one, 512);
    let discard = |offset, len| Op::Discard { offset, len };
    assert_eq!(own_pages_after(&image, discard(huge + 4096, 8192)), 510);
    assert_eq!(own_pages_after(&image, discard(0, 3 * huge)), 0);
    assert_eq!(bytes(&image, huge, HUGE), vec![0; HUGE]);
}

/// Discards of any shape, on memory of any kind, against a plain array.
#[test]
fn discards_zero_their_range_and_no_more() {
    const LEN: usize = 3 * HUGE + 5000;
    for huge_pages in [HugePages::Auto, HugePages::Off] {
        let disk = MemoryDisk::with_huge_pages(LEN as u64, huge_pages).expect("the memory is there");
        let cuts =
            [0, 1, 100, 4095, 4096, 4097, HUGE - 4096, HUGE - 1, HUGE, HUGE + 513, 2 * HUGE, LEN - 7, LEN];
        for (n, from) in cuts.iter().enumerate() {
            for to in &cuts[n..] {
                let mut fill = Op::Write { offset: 0, buf: pool(vec![7; LEN]), fua: false };
                disk.execute(&mut fill).expect("the write succeeds");
                let mut discard = Op::Discard { offset: *from as u64, len: (to - from) as u64 };
                disk.execute(&mut discard).expect("the discard succeeds");
                let mut read = Op::Read { offset: 0, buf: pool(vec![1; LEN]) };
                disk.execute(&mut read).expect("the read succeeds");
                let Some(IoBuf::Pool(bytes)) = read.into_buf() else { panic!("no buffer") };
                let mut expected = vec![7; LEN];
                expected[*from..*to].fill(0);
                assert!(*bytes == *expected, "{huge_pages:?}: {from:#x}..{to:#x}");
            }
        }
    }
}

/// Discards of what was never written cost nothing, however they lie.
#[test]
fn a_discard_of_nothing_costs_nothing() {
    let disk = MemoryDisk::new(8 << 20).expect("the memory is there");
    for (offset, len) in [(0, 8 << 20), (512, 512), (4000, 200), (100, 5 << 20), (4096, 512)] {
        assert_eq!(own_pages_after(&disk, Op::Discard { offset, len }), 0);
    }
}

/// The kernel does not take back what is locked.
#[test]
fn locked_pages_are_zeroed_in_place() {
    let disk = MemoryDisk::with_huge_pages(1 << 20, HugePages::Off).expect("the memory is there");
    disk.execute(&mut write(0, 1 << 20)).expect("the write succeeds");
    let middle = disk.slice(8192, 8192).expect("it lies inside");
    // SAFETY: it is our own memory, and no byte changes.
    if unsafe { libc::mlock(middle.ptr_guard().as_ptr().cast(), 8192) } != 0 {
        eprintln!("left out: {}", io::Error::last_os_error());
        return;
    }
    assert_eq!(own_pages_after(&disk, Op::Discard { offset: 8192, len: 8192 }), 256);
    let mut expected = vec![7; 1 << 20];
    expected[8192..16384].fill(0);
    assert!(bytes(&disk, 0, 1 << 20) == expected);
}

/// Copying what was never written reads and writes no page, however its blocks lie.
#[test]
fn a_copy_of_nothing_touches_no_page() {
    let image = || std::sync::Arc::new(MemoryDisk::new(8 << 20).expect("the memory is there"));
    let (source, target) = (image(), image());
    for (from, offset, len) in [(0, 0, 8 << 20), (512, 1024, 5 << 20), (0, 4096, 4096)] {
        let (source, how) = (source.clone(), How::MemMove);
        target.execute(&mut copy_op(source, from, offset, len, how)).expect("it succeeds");
    }
    let pieces = [(0, 512), (8192, 8192), (1 << 20, 2 << 20)].into_iter().collect();
    let offset = 4 << 20;
    target.execute(&mut moves(source.clone(), pieces, offset)).expect("it succeeds");
    assert!(move_at_once(&target, &source, 512, 0, 65536) && move_at_once(&target, &target, 0, 4096, 65536));
    assert_eq!((mapped_pages(&source), mapped_pages(&target)), (0, 0));
}

fn own_pages_after(disk: &MemoryDisk, mut op: Op) -> usize {
    disk.execute(&mut op).expect("the operation succeeds");
    own_pages(disk)
}

/// By whichever way a write comes; reads go on.
#[test]
fn a_protected_image_refuses_writes() {
    let source = std::sync::Arc::new(MemoryDisk::new(1 << 20).expect("the memory is there"));
    let image = MemoryDisk::new(1 << 20).expect("the memory is there").protected(true);
    assert!(image.read_only() && !source.read_only());
    let (from, len, how) = (0, 8192, How::MemMove);
    let pieces = [(0, 4096), (8192, 4096)].into_iter().collect();
    for mut op in [
        Op::Write { offset: 0, buf: pool(vec![1; 512]), fua: false },
        Op::WriteZeroes { offset: 0, len, unmap: true, fua: false },
        Op::Discard { offset: 0, len },
        copy_op(source.clone(), from, 0, len, how),
        moves(source, pieces, 0),
    ] {
        assert!(matches!(image.execute(&mut op), Err(DiskError::ReadOnly)), "{op:?}");
    }
    let Inline::Immediate(disk) = image.inline() else { panic!("memory never waits") };
    let now = disk.write(0, &Transient::default());
    assert!(matches!(now, Err(DiskError::ReadOnly)));
    image.execute(&mut Op::Read { offset: 0, buf: pool(vec![1; 512]) }).expect("the read succeeds");
    image.execute(&mut Op::Flush).expect("nothing to flush");
}

#[test]
fn an_impossible_length_is_an_error() {
    assert!(MemoryDisk::new(0).is_err());
    assert!(MemoryDisk::new(u64::MAX).is_err());
    assert!(MemoryDisk::new(1 << 60).is_err());
}

/// Zeroes moved over zeroes cost nothing, at whatever offsets; all else arrives.
#[test]
fn what_was_never_written_is_moved_for_nothing() {
    let len = 8 << 20;
    let image = || {
        let image = MemoryDisk::with_huge_pages(len, HugePages::Off);
        std::sync::Arc::new(image.expect("the memory is there"))
    };
    let (source, target) = (image(), image());
    let moved = |from, offset, len| copy_op(source.clone(), from, offset, len, How::MemMove);
    for (from, offset) in [(0, 0), (512, 1024), (1, 2)] {
        assert_eq!(own_pages_after(&target, moved(from, offset, len - 8192)), 0);
    }
    assert_eq!(own_pages(&source), 0);
    let data = Op::Write { offset: (1 << 20) + 4095, buf: pool(vec![7; 2]), fua: false };
    assert_eq!(own_pages_after(&source, data), 2);
    assert_eq!(own_pages_after(&target, moved(0, 0, len)), 2);
    assert_eq!(own_pages_after(&target, moved(0, 4096, len - 4096)), 3);
    // Zeroes over data are moved.
    assert_eq!(own_pages_after(&target, moved(4 << 20, 1 << 20, 1 << 20)), 3);
    let mut read = Op::Read { offset: 0, buf: pool(vec![1; len as usize]) };
    target.execute(&mut read).expect("the read succeeds");
    let buf = read.into_buf().expect("a read has a buffer");
    let IoBuf::Pool(bytes) = buf else { panic!("{buf:?}") };
    assert!(bytes.iter().all(|b| *b == 0));
}

fn allocated(disk: &MemoryDisk, offset: u64, len: u64) -> bool {
    match disk.execute(&mut Op::Probe { offset, len }) {
        Ok(_) => true,
        Err(DiskError::Deallocated) => false,
        Err(error) => panic!("{error}"),
    }
}

/// What is moved is written, even where zeroes over zeroes are left alone; what is not moved is not.
#[test]
fn what_is_copied_is_allocated() {
    let image = || std::sync::Arc::new(MemoryDisk::new(1 << 20).expect("the memory is there"));
    let (source, target) = (image(), image());
    let write = |offset| Op::Write { offset, buf: pool(vec![0; 4096]), fua: false };
    source.execute(&mut write(8192)).expect("the write succeeds");
    let copy = |how| copy_op(source.clone(), 8192, 16384, 4096, how);
    assert!(matches!(target.execute(&mut copy(How::Reflink)), Err(DiskError::NoWay)));
    assert!(!allocated(&target, 16384, 1));
    target.execute(&mut copy(How::MemMove)).expect("the copy succeeds");
    assert!(allocated(&target, 16384, 4096));
    assert!(!allocated(&target, 16383, 1) && !allocated(&target, 20480, 1));
    assert!(allocated(&source, 8192, 4096) && !allocated(&source, 16384, 1));
}

/// A write and a discard of one page at once: whatever comes last, what was written is not said to be
/// deallocated.
#[test]
fn a_write_that_meets_a_discard() {
    let disk = MemoryDisk::new(64 << 10).expect("the memory is there");
    let meet = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                meet.wait();
                disk.execute(&mut Op::Discard { offset: 0, len: 8192 }).expect("it succeeds");
                meet.wait();
            }
        });
        for round in 0..2000_u64 {
            let value = 1 + (round % 255) as u8;
            meet.wait();
            let mut write = Op::Write { offset: 4096, buf: pool(vec![value; 512]), fua: false };
            disk.execute(&mut write).expect("it succeeds");
            meet.wait();
            let mut read = Op::Read { offset: 4096, buf: pool(vec![0xee; 512]) };
            disk.execute(&mut read).expect("it succeeds");
            let Some(IoBuf::Pool(bytes)) = read.into_buf() else { panic!("a read has a buffer") };
            let written = *bytes == [value; 512];
            assert!(written || bytes.contains(&0), "round {round}");
            assert!(!written || allocated(&disk, 4096, 512), "round {round}");
        }
    });
}

/// Several workers on one image at once: each finds its own blocks as it left them.
#[test]
fn shared_by_workers() {
    let mut first = rig(1 << 20);
    let shared = std::sync::Arc::clone(&first.disk);
    std::thread::scope(|scope| {
        for n in 0..4u8 {
            let shared = std::sync::Arc::clone(&shared);
            scope.spawn(move || {
                let mut engine = Lane::new(LaneKind::Threads).expect("the engine starts");
                for round in 0..50u64 {
                    for block in (u64::from(n)..2048).step_by(4) {
                        let value = (block + round) as u8 ^ n;
                        let write =
                            Op::Write { offset: block * 512, buf: pool(vec![value; 512]), fua: false };
                        shared.start(Tag(0), write, &mut engine);
                        let read = Op::Read { offset: block * 512, buf: pool(vec![0; 512]) };
                        shared.start(Tag(0), read, &mut engine);
                        let mut done = Vec::new();
                        engine.take_done(&mut done);
                        let buf = done.pop().and_then(|done| done.buf).expect("done at once");
                        assert!(matches!(buf, IoBuf::Pool(b) if *b == [value; 512]));
                    }
                }
            });
        }
    });
    assert_eq!(first.read(2047 * 512, 512), [(2047u64 + 49) as u8 ^ 3; 512]);
}
