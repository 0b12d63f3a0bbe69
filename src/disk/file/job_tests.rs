//! Operations on files whose calls the tests answer.
#![expect(unsafe_code, reason = "the tests fill what iovecs point at")]

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use proptest::prelude::*;

use super::align::Alignment;
use super::image::{Direct, MAX_AGAIN};
use super::*;
use crate::disk::tests::conformance::{bytes_of, guest, pool};
use crate::disk::{Call, LaneKind, SharedDisk, Tap};

/// Answers calls in turn, and notes them.
#[derive(Debug, Default)]
struct Answers {
    answers: Mutex<VecDeque<i64>>,
    calls: Mutex<Vec<Call>>,
}

impl Tap for Answers {
    fn issued(&self, call: &Call, _: &[u8], _: &File) -> u64 {
        self.calls.lock().expect("no panic").push(*call);
        0
    }
    fn answer(&self, _: &Call, _: u64) -> Option<i64> {
        // One too many is seen by its number.
        Some(self.answers.lock().expect("no panic").pop_front().unwrap_or(-i64::from(libc::EBADE)))
    }
    fn completed(&self, _: u64, _: &Call, _: Result<u32, i32>) {}
}

struct Image {
    disk: SharedDisk,
    file: Arc<ImageFile>,
    tap: Arc<Answers>,
}

fn image() -> Image {
    image_of(None)
}

fn image_of(direct: Option<Direct>) -> Image {
    let file = tempfile::tempfile().expect("a file for the test");
    let tap = Arc::new(Answers::default());
    let cache = if direct.is_some() { CacheMode::None } else { CacheMode::Writeback };
    // As long as it is said to be, or it was cut.
    let len = 1 << 30;
    file.set_len(len).expect("it has a length");
    let file = Arc::new(ImageFile::new(file, len, Some(tap.clone()), cache, direct));
    let disk = FileDisk {
        name: "test".to_owned(),
        read_only: false,
        unit: Some(512),
        unmaps: true,
        file: Arc::clone(&file),
        created: false,
        _beneath: Vec::new(),
    };
    Image { disk: Arc::new(disk), file, tap }
}

fn write(len: usize, fua: bool) -> Op {
    Op::Write { offset: 512, buf: pool(vec![1; len]), fua }
}

fn zeroes(unmap: bool) -> Op {
    Op::WriteZeroes { offset: 512, len: 3 << 20, unmap, fua: true }
}

/// Answers the calls of an operation in turn; what it called, and how it ended.
#[track_caller]
fn script(image: &Image, op: Op, answers: &[i32]) -> (Vec<Call>, Done) {
    *image.tap.answers.lock().expect("no panic") = answers.iter().map(|answer| i64::from(*answer)).collect();
    image.tap.calls.lock().expect("no panic").clear();
    let mut lane = Lane::new(LaneKind::Threads).expect("the lane is made");
    image.disk.start(Tag(0), op, &mut lane);
    let mut out = Vec::new();
    while out.is_empty() {
        lane.reap(&mut out);
        if out.is_empty() {
            lane.wait(Some(Duration::from_secs(10)));
        }
    }
    let calls = image.tap.calls.lock().expect("no panic").clone();
    assert_eq!(calls.len(), answers.len(), "{calls:?}");
    (calls, out.remove(0))
}

fn errno(done: &Done) -> Option<i32> {
    match &done.result {
        Err(DiskError::Io(e)) => e.raw_os_error(),
        _ => None,
    }
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

fn fallocate(mode: i32) -> Call {
    Call::Fallocate { mode, offset: 512, len: 3 << 20 }
}

fn pwritev(offset: u64, dsync: bool) -> Call {
    Call::Pwritev { offset, dsync }
}

#[test]
fn short_transfers_go_on() {
    let (calls, end) = script(&image(), write(1000, false), &[1, -libc::EINTR, 998, 1]);
    let offsets = [512, 513, 513, 1511];
    assert_eq!(calls, offsets.map(|at| pwritev(at, false)));
    assert!(end.result.is_ok());
    // No more than was asked for has been moved, whatever the answer.
    let (calls, end) = script(&image(), write(1000, false), &[1, 5000]);
    assert_eq!(calls, [512, 513].map(|at| pwritev(at, false)));
    assert!(end.result.is_ok());
}

#[test]
fn what_is_to_be_tried_again_is_but_not_for_ever() {
    for error in [libc::EAGAIN, libc::EINTR] {
        let again = vec![-error; MAX_AGAIN as usize];
        let mut answers = again.clone();
        answers.push(1000);
        assert!(script(&image(), write(1000, false), &answers).1.result.is_ok());
        answers = again;
        answers.push(-error);
        let (_, end) = script(&image(), write(1000, false), &answers);
        assert_eq!(errno(&end), Some(error));
    }
}

#[test]
fn a_transfer_that_moves_nothing_ends() {
    let read = Op::Read { offset: 0, buf: pool(vec![0; 8]) };
    let (_, end) = script(&image(), read, &[4, 0]);
    assert!(matches!(end.result, Err(DiskError::Truncated)));
    let (_, end) = script(&image(), write(8, false), &[4, 0]);
    assert!(matches!(end.result, Err(DiskError::Io(_))));
}

#[test]
fn fua_is_one_dsync_write() {
    let (calls, end) = script(&image(), write(8, true), &[8]);
    assert_eq!(calls, [pwritev(512, true)]);
    assert!(end.result.is_ok());
}

#[test]
fn fua_without_dsync_is_a_sync_remembered() {
    let file = image();
    let (calls, end) = script(&file, write(8, true), &[-libc::EOPNOTSUPP, 8, 0]);
    let plain = [pwritev(512, false), Call::Fdatasync];
    assert_eq!(calls, [&[pwritev(512, true)], &plain[..]].concat());
    assert!(end.result.is_ok());
    assert_eq!(script(&file, write(8, true), &[8, 0]).0, plain);
}

#[test]
fn zeroes_step_down_and_remember() {
    let file = image();
    let no = -libc::EOPNOTSUPP;
    let mib = 1 << 20;
    let writes = [0, mib, 2 * mib].map(|at| pwritev(512 + at, false));
    let writes = [&writes[..], &[Call::Fdatasync]].concat();
    let mib = mib as i32;
    let (calls, end) = script(&file, zeroes(true), &[no, no, mib, mib, mib, 0]);
    assert_eq!(calls[..2], [fallocate(PUNCH), fallocate(ZERO)]);
    assert_eq!(calls[2..], writes);
    assert!(end.result.is_ok());
    for unmap in [true, false] {
        assert_eq!(script(&file, zeroes(unmap), &[mib, mib, mib, 0]).0, writes);
    }
    let discard = Op::Discard { offset: 512, len: 3 << 20 };
    assert_eq!(script(&file, discard, &[]).0, []);
}

#[test]
fn a_range_refused_is_not_remembered() {
    let file = image();
    let (calls, _) = script(&file, zeroes(true), &[-libc::EINVAL, 0, 0]);
    assert_eq!(calls, [fallocate(PUNCH), fallocate(ZERO), Call::Fdatasync]);
    let (calls, _) = script(&file, zeroes(true), &[0, 0]);
    assert_eq!(calls, [fallocate(PUNCH), Call::Fdatasync]);
    let discard = Op::Discard { offset: 512, len: 3 << 20 };
    let (calls, end) = script(&file, discard, &[-libc::EINVAL]);
    assert_eq!(calls, [fallocate(PUNCH)]);
    assert!(end.result.is_ok(), "deallocation is a hint");
}

#[test]
fn a_probe_believes_no_hole_with_blocks() {
    let hole = |offset| Call::Seek { whence: libc::SEEK_HOLE, offset };
    let extent = |offset| Call::ExtentEnd { offset, len: 8704 - offset };
    let probe_of = |image: &Image, answers: &[i32]| {
        let (calls, end) = script(image, Op::Probe { offset: 512, len: 8192 }, answers);
        (calls, end.result)
    };
    let probe = |answers: &[i32]| probe_of(&image(), answers);
    for end in [8704, 9000] {
        let (calls, result) = probe(&[-libc::EINTR, end]);
        assert!(calls == [hole(512), hole(512)] && result.is_ok());
    }
    let (calls, result) = probe(&[4096, 6000, 7000, 8704]);
    assert!(result.is_ok());
    assert_eq!(calls, [hole(512), extent(4096), hole(6000), extent(7000)]);
    let no = -libc::EOPNOTSUPP;
    for (answers, calls) in [
        (&[512, 512][..], &[hole(512), extent(512)][..]),
        (&[4096, no], &[hole(512), extent(4096)]),
        (&[512, 1024, 2048, 2048], &[hole(512), extent(512), hole(1024), extent(2048)]),
    ] {
        let (made, result) = probe(answers);
        assert_eq!(made, calls);
        assert!(matches!(result, Err(DiskError::Deallocated)), "{result:?}");
    }
    // The end of the file is a hole to SEEK_HOLE.
    for answers in [&[-libc::ENXIO][..], &[8703, 8703]] {
        let cut = image();
        let other = File::options().write(true).open(format!("/proc/self/fd/{}", cut.file.fd()));
        other.and_then(|file| file.set_len(8703)).expect("it is cut");
        assert!(matches!(probe_of(&cut, answers).1, Err(DiskError::Truncated)));
    }
    assert!(probe(&[-libc::EINVAL]).1.is_ok(), "no holes are known");
    for answers in [&[-libc::EIO][..], &[512, -libc::EIO]] {
        assert!(matches!(probe(answers).1, Err(DiskError::Io(_))));
    }
}

#[test]
fn without_unmap_no_hole_is_punched() {
    let (calls, _) = script(&image(), zeroes(false), &[0, 0]);
    assert_eq!(calls, [fallocate(ZERO), Call::Fdatasync]);
}

/// The kernel tells of lost writeback once; we go on telling.
#[test]
fn a_failed_sync_fails_all_later_ones() {
    for (op, answer) in [(Op::Flush, -libc::ENOSPC), (Op::Flush, -libc::EIO), (write(8, true), -libc::EIO)] {
        let file = image();
        let (_, end) = script(&file, op, &[answer]);
        assert_eq!(errno(&end), Some(-answer));
        for later in [Op::Flush, write(8, true), zeroes(true)] {
            let (calls, end) = script(&file, later, &[]);
            assert_eq!(calls, []);
            assert_eq!(errno(&end), Some(-answer));
        }
        assert!(script(&file, write(8, false), &[8]).1.result.is_ok());
    }
}

/// Past the page cache by blocks of 4096, of which parts may be written.
fn direct() -> Image {
    let align = Alignment { memory: 512, block: 4096 };
    image_of(Some(Direct { align, parts: true }))
}

/// A direct transfer that ends within a block has met the end of the file, or of the room: it would not go on.
#[test]
fn a_direct_transfer_ends_with_a_block() {
    let read = || Op::Read { offset: 4096, buf: pool(vec![0; 8192]) };
    let write = || Op::Write { offset: 4096, buf: pool(vec![0; 8192]), fua: false };
    for op in [read, write] as [fn() -> Op; 2] {
        assert!(script(&direct(), op(), &[4096, 4096]).1.result.is_ok());
        let (calls, end) = script(&direct(), op(), &[4096, 512]);
        assert!(calls.len() == 2 && end.result.is_err(), "{calls:?} {end:?}");
        assert!(script(&image(), op(), &[4096, 512, 4096 - 512]).1.result.is_ok());
    }
}

/// A part of a block is read, changed and written back; whole blocks and what is left of the last one beside it.
#[test]
fn a_part_of_a_block_is_read_first() {
    let read = |offset| Call::Preadv { offset };
    let (calls, end) = script(&direct(), write(512, false), &[4096, 4096]);
    assert!(calls == [read(0), pwritev(0, false)] && end.result.is_ok(), "{calls:?} {end:?}");
    let op = Op::Write { offset: 4096 - 512, buf: pool(vec![1; 1024 + 8192]), fua: true };
    let (calls, end) = script(&direct(), op, &[4096, 4096, 16384, 0]);
    assert_eq!(calls, [read(0), read(12288), pwritev(0, false), Call::Fdatasync]);
    assert!(end.result.is_ok());
    // Zeroes where nothing else makes them.
    let op = Op::WriteZeroes { offset: 8192, len: 512 << 10, unmap: false, fua: false };
    let answers = [-libc::EOPNOTSUPP, 256 << 10, 256 << 10];
    let (calls, end) = script(&direct(), op, &answers);
    assert_eq!(calls[1..], [8192, 8192 + (256 << 10)].map(|at| pwritev(at, false)));
    assert!(end.result.is_ok());
    let op = Op::Read { offset: 512, buf: pool(vec![0; 512]) };
    assert_eq!(script(&direct(), op, &[4096]).0, [read(0)]);
}

/// ENOSPC of a dsync write: its own, which costs nothing, or older data's, which does.
#[test]
fn a_full_disk_is_not_a_lost_write() {
    let file = image();
    let full = -libc::ENOSPC;
    let (calls, end) = script(&file, write(8, true), &[full, full]);
    assert_eq!(calls, [pwritev(512, true), pwritev(512, false)]);
    assert_eq!(errno(&end), Some(libc::ENOSPC));
    assert!(script(&file, Op::Flush, &[0]).1.result.is_ok());
    let (_, end) = script(&file, write(8, true), &[full, 8]);
    assert_eq!(errno(&end), Some(libc::ENOSPC));
    let (_, end) = script(&file, Op::Flush, &[]);
    assert_eq!(errno(&end), Some(libc::ENOSPC));
}

proptest! {
    /// However much the ring's call moved, a thread moves the rest, each byte to its place.
    #[test]
    fn what_a_ring_leaves_is_read_by_a_thread(
        len in 1usize..4000,
        pieces in proptest::collection::vec(1usize..9, 1..6),
        from_pool: bool,
        moved in 0usize..5000,
        answer in prop::sample::select(vec![0, libc::ECANCELED, libc::EAGAIN]),
    ) {
        let source: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        let file = tempfile::tempfile().expect("a file for the test");
        std::os::unix::fs::FileExt::write_all_at(&file, &source, 4096).expect("it is written");
        let file = Arc::new(ImageFile::new(file, 1 << 40, None, CacheMode::Writeback, None));
        let blank = vec![0; len];
        let buf = if from_pool { pool(blank) } else { guest(&blank, &pieces) };
        let mut job = FileJob::new(file, false, 4096, buf, false);
        prop_assert_eq!(job.begin(), Some(Call::Preadv { offset: 4096 }));
        let mut left = &source[..moved.min(len)];
        for iov in job.iovecs() {
            let take;
            (take, left) = left.split_at(iov.iov_len.min(left.len()));
            // SAFETY: the job's iovecs lie in its buffer.
            unsafe { std::ptr::copy_nonoverlapping(take.as_ptr(), iov.iov_base.cast(), take.len()) };
        }
        job.complete(if answer == 0 { moved.min(len) as i64 } else { -i64::from(answer) });
        let all = answer == 0 && moved >= len;
        prop_assert_eq!((job.is_moved(), job.is_over()), (all, all));
        let (result, buf) = job.run(&Stop::default());
        // Nothing is no progress, and a thread does not ask again for what a ring was answered.
        let ended = answer == 0 && moved == 0;
        prop_assert_eq!(matches!(result, Err(DiskError::Truncated)), ended);
        prop_assert!(ended || bytes_of(&buf.expect("the buffer is back")) == source);
    }
}
