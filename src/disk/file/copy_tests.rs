//! Copies whose calls the tests answer, or that files make.

use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use super::copy::{MAX_CALL, SHORT};
use super::ways::Way;
use super::*;
use crate::disk::tests::conformance::pool;
use crate::disk::tests::script::Script;
use crate::disk::{Call, Tap, Ways};

const FROM: u64 = 1 << 20;
const TO: u64 = 8 << 20;
const BLOCK: u64 = 4096;

/// A file said to share blocks, or to be like ext4: its writes wait, and it shares nothing.
fn file(tap: Option<Arc<dyn Tap>>, clones: Option<u64>) -> Arc<ImageFile> {
    file_of(&[], tap, clones, CacheMode::Writeback)
}

fn file_of(bytes: &[u8], tap: Option<Arc<dyn Tap>>, clones: Option<u64>, cache: CacheMode) -> Arc<ImageFile> {
    let file = tempfile::tempfile().expect("a file for the test");
    file.write_all_at(bytes, 0).expect("it is written");
    let len = if bytes.is_empty() { 1 << 30 } else { bytes.len() as u64 };
    file.set_len(len).expect("it has a length");
    Arc::new(ImageFile::new(file, len, tap, cache, None).on(clones, clones.is_none()))
}

/// How a copy ended, and what is left of the ways between the two files.
type End = (Result<Moved, DiskError>, Ways);

/// Answers the calls of a copy in turn, and holds each against what is expected.
#[track_caller]
fn script(clone: bool, len: u64, steps: &[(Call, i64)]) -> End {
    script_of_source(None, clone, len, steps)
}

/// The same of a source that somebody has cut to so many bytes, if to any.
#[track_caller]
fn script_of_source(cut: Option<u64>, clone: bool, len: u64, steps: &[(Call, i64)]) -> End {
    let script = Script::of(steps);
    let [source, target] = [(); 2].map(|()| file(Some(script.clone()), Some(BLOCK)));
    if let Some(cut) = cut {
        let other = File::options().write(true).open(format!("/proc/self/fd/{}", source.fd()));
        other.and_then(|file| file.set_len(cut)).expect("it is cut");
    }
    let how = if clone { How::Reflink } else { How::Offload };
    let copy = FileCopy {
        source: source.clone(),
        target: target.clone(),
        pieces: [(FROM, len)].into(),
        at: TO,
        len,
        how,
        durable: false,
    };
    let (result, _) = copy.run(None, &Stop::default());
    script.end();
    (result, target.ways_from(&source))
}

const OK: Ways = Ways {
    memmove: false,
    reflink: Some(BLOCK),
    offload: true,
    offload_pays: true,
    offload_clones: true,
    read_write: false,
};

fn clone(at: u64, len: u64) -> Call {
    Call::CloneRange { from: FROM + at, offset: TO + at, len }
}
fn copy(at: u64, len: u64) -> Call {
    Call::CopyRange { from: FROM + at, offset: TO + at, len }
}
fn data_end(at: u64, end: u64) -> (Call, i64) {
    (Call::Seek { whence: libc::SEEK_HOLE, offset: FROM + at }, (FROM + end) as i64)
}
fn hole_end(at: u64) -> Call {
    Call::Seek { whence: libc::SEEK_DATA, offset: FROM + at }
}
fn punch(at: u64, len: u64) -> Call {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    Call::Fallocate { mode, offset: TO + at, len }
}
fn zero_range(at: u64, len: u64) -> Call {
    let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    Call::Fallocate { mode, offset: TO + at, len }
}
fn write(at: u64) -> Call {
    Call::Pwritev { offset: TO + at, dsync: false }
}
fn no(errno: i32) -> i64 {
    -i64::from(errno)
}
fn is_no_way(end: &Result<Moved, DiskError>) -> bool {
    matches!(end, Err(DiskError::NoWay))
}

#[test]
fn a_long_clone_is_cut() {
    let len = 2 * MAX_CALL + BLOCK;
    let calls = [(clone(0, MAX_CALL), 0), (clone(MAX_CALL, MAX_CALL), 0), (clone(2 * MAX_CALL, BLOCK), 0)];
    let (end, ways) = script(true, len, &calls);
    assert!(end.is_ok());
    assert_eq!(ways, OK);
}

#[test]
fn a_clone_refused_at_once_is_no_way_and_remembered() {
    for (errno, passes) in [(libc::EOPNOTSUPP, false), (libc::EXDEV, false), (libc::ETXTBSY, true)] {
        let (end, ways) = script(true, BLOCK, &[(clone(0, BLOCK), no(errno))]);
        assert!(is_no_way(&end));
        assert_eq!(ways, if passes { OK } else { Ways { offload: true, ..Ways::default() } });
    }
    let (end, ways) = script(true, 8192, &[(clone(0, 8192), no(libc::EINVAL))]);
    assert!(is_no_way(&end));
    assert_eq!(ways.reflink, None);
}

/// It may have shared a part: who asked copies all of it by the next way.
#[test]
fn a_clone_refused_later_is_no_way_too() {
    let len = MAX_CALL + 8192;
    for (errno, passes) in [(libc::EINVAL, false), (libc::ENOSPC, true), (libc::EDQUOT, true)] {
        let calls = [(clone(0, MAX_CALL), 0), (clone(MAX_CALL, 8192), no(errno))];
        let (end, ways) = script(true, len, &calls);
        assert!(is_no_way(&end));
        assert_eq!(ways, if passes { OK } else { Ways { offload: true, ..Ways::default() } });
    }
}

#[test]
fn a_clone_of_a_truncated_source_is_held_against_nobody() {
    let calls = [(clone(0, 8192), no(libc::EINVAL))];
    let (end, ways) = script_of_source(Some(FROM + 8191), true, 8192, &calls);
    assert!(matches!(end, Err(DiskError::Truncated)));
    assert_eq!(ways, OK);
}

#[test]
fn short_copies_go_on_and_end_in_the_source() {
    let calls = [
        data_end(0, 9000),
        (copy(0, 9000), no(libc::EINTR)),
        (copy(0, 9000), 1),
        (copy(1, 8999), no(libc::EAGAIN)),
        (copy(1, 8999), 8999),
    ];
    let (end, ways) = script(false, 9000, &calls);
    assert!(end.is_ok());
    assert_eq!(ways, OK);
    let (end, ways) = script(false, 9000, &[data_end(0, 9000), (copy(0, 9000), 100), (copy(100, 8900), 0)]);
    assert!(matches!(end, Err(DiskError::Truncated)));
    assert_eq!(ways, OK);
    let len = MAX_CALL + 1;
    let cap = MAX_CALL as i64;
    assert!(
        script(false, len, &[data_end(0, len + 5), (copy(0, MAX_CALL), cap), (copy(MAX_CALL, 1), 1)])
            .0
            .is_ok()
    );
}

#[test]
fn holes_are_walked() {
    let seek = |at: u64| (FROM + at) as i64;
    let calls = [
        data_end(0, 0),
        (hole_end(0), seek(8192)),
        (punch(0, 8192), 0),
        data_end(8192, 12288),
        (copy(8192, 4096), 4096),
        data_end(12288, 12288),
        (hole_end(12288), no(libc::ENXIO)),
        (punch(12288, 7712), 0),
    ];
    assert!(script(false, 20000, &calls).0.is_ok());
    // A hole ends before the range, or the file within the hole.
    let calls = [data_end(0, 0), (hole_end(0), no(libc::ENXIO))];
    let (end, _) = script_of_source(Some(FROM + 4095), false, 4096, &calls);
    assert!(matches!(end, Err(DiskError::Truncated)));
    let beyond = [(data_end(0, 0).0, no(libc::ENXIO))];
    assert!(matches!(script(false, 4096, &beyond).0, Err(DiskError::Truncated)));
    // Filled between the two questions.
    let calls = [data_end(0, 0), (hole_end(0), seek(0)), data_end(0, 4096), (copy(0, 4096), 4096)];
    assert!(script(false, 4096, &calls).0.is_ok());
    // A file system without holes.
    let calls = [(data_end(0, 0).0, no(libc::EINVAL)), (copy(0, 4096), 4096)];
    assert!(script(false, 4096, &calls).0.is_ok());
}

#[test]
fn where_no_hole_can_be_punched_zeroes_are_written() {
    let hole = [data_end(0, 0), (hole_end(0), (FROM + (3 << 20)) as i64)];
    let mib = 1 << 20;
    for errno in [libc::EOPNOTSUPP, libc::EINVAL] {
        let mut calls = hole.to_vec();
        calls.extend([punch(0, 3 << 20), zero_range(0, 3 << 20)].map(|call| (call, no(errno))));
        calls.extend([0, mib, 2 * mib].map(|at| (write(at), mib as i64)));
        assert!(script(false, 3 << 20, &calls).0.is_ok());
    }
}

#[test]
fn copying_refused_at_once_is_no_way_and_remembered() {
    for errno in [libc::EXDEV, libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL] {
        let (end, ways) = script(false, 4096, &[data_end(0, 4096), (copy(0, 4096), no(errno))]);
        assert!(is_no_way(&end));
        assert_eq!(ways, Ways { reflink: Some(BLOCK), ..Ways::default() });
    }
}

/// Holes made and parts copied are copied again by the next way.
#[test]
fn copying_refused_later_is_no_way_too() {
    let calls = [
        data_end(0, 0),
        (hole_end(0), (FROM + 512) as i64),
        (punch(0, 512), 0),
        data_end(512, 8192),
        (copy(512, 7680), 4096),
        (copy(4608, 3584), no(libc::EOPNOTSUPP)),
    ];
    let (end, ways) = script(false, 8192, &calls);
    assert!(is_no_way(&end));
    assert_eq!(ways, Ways { reflink: Some(BLOCK), ..Ways::default() });
}

#[test]
fn other_errors_come_through() {
    for calls in [
        &[data_end(0, 4096), (copy(0, 4096), no(libc::EIO))][..],
        &[data_end(0, 0), (hole_end(0), (FROM + 4096) as i64), (punch(0, 4096), no(libc::EIO))],
        &[(data_end(0, 0).0, no(libc::EIO))],
    ] {
        let (end, ways) = script(false, 4096, calls);
        assert!(matches!(end, Err(DiskError::Io(e)) if e.raw_os_error() == Some(libc::EIO)));
        assert_eq!(ways, OK);
    }
    let (end, ways) = script(true, BLOCK, &[(clone(0, BLOCK), no(libc::EIO))]);
    assert!(matches!(end, Err(DiskError::Io(_))));
    assert_eq!(ways, OK);
}

/// A copy of 30 bytes, read and written, or by the kernel where it may.
fn read_write(
    source: &Arc<ImageFile>,
    target: &Arc<ImageFile>,
    pieces: &[(u64, u64)],
    durable: bool,
    or_kernel: bool,
) -> (Result<Moved, DiskError>, Option<crate::disk::IoBuf>) {
    let len = pieces.iter().map(|piece| piece.1).sum::<u64>();
    let (how, at) = (How::ReadWrite { or_kernel }, 5000);
    let (source, target, pieces) = (source.clone(), target.clone(), pieces.into());
    FileCopy { source, target, pieces, at, len, how, durable }
        .run(Some(pool(vec![0; len as usize])), &Stop::default())
}

fn data() -> Vec<u8> {
    (0..300_000_u32).map(|n| (n % 251) as u8).collect()
}

fn write_at(offset: u64, dsync: bool) -> Call {
    Call::Pwritev { offset, dsync }
}

/// 10 bytes from 100 and 20 from 300.
fn two_pieces(
    durable: bool,
    steps: &[(Call, i64)],
) -> (Result<Moved, DiskError>, Option<crate::disk::IoBuf>) {
    let script = Script::of(steps);
    let [source, target] = [(); 2].map(|()| file(Some(script.clone()), None));
    let end = read_write(&source, &target, &[(100, 10), (300, 20)], durable, true);
    script.end();
    end
}

fn read_at(offset: u64) -> Call {
    Call::Preadv { offset }
}

#[test]
fn all_is_read_then_written() {
    let reads = [(read_at(100), 4), (read_at(104), no(libc::EINTR)), (read_at(104), 6), (read_at(300), 20)];
    for durable in [false, true] {
        let mut steps = reads.to_vec();
        steps.extend([(write_at(5000, durable), 29), (write_at(5029, durable), 1)]);
        let (end, buf) = two_pieces(durable, &steps);
        assert!(matches!(end, Ok(Moved::ReadWrite)) && buf.is_some_and(|buf| buf.len() == 30));
    }
    let mut steps = reads.to_vec();
    steps.extend([(write_at(5000, true), no(libc::EOPNOTSUPP)), (write_at(5000, false), 30)]);
    steps.push((Call::Fdatasync, 0));
    assert!(two_pieces(true, &steps).0.is_ok());
    // No more than was asked for has been moved, whatever the answer.
    let steps = [(read_at(100), 4), (read_at(104), 25), (read_at(300), 25), (write_at(5000, false), 99)];
    assert!(two_pieces(false, &steps).0.is_ok());
}

#[test]
fn the_side_that_fails_is_named() {
    for (answer, truncated) in [(no(libc::EIO), false), (0, true)] {
        let (end, buf) = two_pieces(false, &[(read_at(100), 10), (read_at(300), 7), (read_at(307), answer)]);
        let Err(DiskError::Source { at: 17, error }) = &end else { panic!("{end:?}") };
        assert_eq!(matches!(**error, DiskError::Truncated), truncated);
        assert!(buf.is_some());
    }
    let steps = [(read_at(100), 10), (read_at(300), 20), (write_at(5000, false), no(libc::EIO))];
    let (end, buf) = two_pieces(false, &steps);
    assert!(matches!(end, Err(DiskError::Io(_))) && buf.is_some());
}

const BY_KERNEL: Call = Call::CopyRange { from: 100, offset: 5000, len: 30 };

fn rest_by_kernel() -> Call {
    Call::CopyRange { from: 112, offset: 5012, len: 18 }
}

/// 30 bytes from a source of so many bytes, the calls on the target answered.
fn by_kernel(source_len: usize, steps: &[(Call, i64)]) -> (Result<Moved, DiskError>, bool) {
    let script = Script::of(steps);
    let source = file_of(&data()[..source_len], None, None, CacheMode::Writeback);
    let target = file(Some(script.clone()), None);
    let (end, buf) = read_write(&source, &target, &[(100, 30)], false, true);
    script.end();
    assert!(buf.is_some_and(|buf| buf.len() == 30));
    (end, target.ways_from(&source).offload)
}

#[test]
fn a_short_piece_is_copied_by_the_kernel() {
    let steps = [(BY_KERNEL, no(libc::EINTR)), (BY_KERNEL, 12), (rest_by_kernel(), 18)];
    let (end, still) = by_kernel(1000, &steps);
    assert!(matches!(end, Ok(Moved::KernelCopy)) && still);
}

/// Whatever stops it, half way or at once: all is read and written, and the side that fails is named.
#[test]
fn what_the_kernel_does_not_copy_is_read_and_written() {
    for (stop, way_leads) in [
        (0, true),
        (no(libc::EIO), true),
        (no(libc::ENOSPC), true),
        (no(libc::EINVAL), false),
        (no(libc::EXDEV), false),
    ] {
        for begin in [vec![(BY_KERNEL, stop)], vec![(BY_KERNEL, 12), (rest_by_kernel(), stop)]] {
            let go_on = |len, more: &[(Call, i64)]| by_kernel(len, &[&begin, more].concat());
            let (end, still) = go_on(1000, &[(write_at(5000, false), 30)]);
            assert!(matches!(end, Ok(Moved::ReadWrite)) && still == way_leads, "{stop}");
            let (end, _) = go_on(107, &[]);
            assert!(matches!(end, Err(DiskError::Source { at: 7, .. })), "{end:?}");
            let (end, _) = go_on(1000, &[(write_at(5000, false), no(libc::ENOSPC))]);
            assert!(matches!(end, Err(DiskError::Io(_))), "{end:?}");
        }
    }
}

/// Notes the calls, and what those copy that do.
#[derive(Debug, Default)]
struct Log(Mutex<Vec<(Call, Vec<u8>)>>);

impl Tap for Log {
    fn issued(&self, call: &Call, _: &[u8], source: &File) -> u64 {
        let mut data = Vec::new();
        if let Call::CopyRange { from, len, .. } = call {
            data = vec![0; *len as usize];
            source.read_exact_at(&mut data, *from).expect("it is read");
        }
        self.0.lock().expect("no panic").push((*call, data));
        0
    }
    fn completed(&self, _: u64, _: &Call, result: Result<u32, i32>) {
        assert!(result.is_ok());
    }
}

/// Not what must be durable, nor several pieces, nor a long one; not past a source's tap; not what overlaps; and not
/// where the kernel would share blocks, or has refused. The target's tap is told what the kernel copies.
#[test]
fn what_the_kernel_is_not_asked_to_copy() {
    let bytes = data();
    let with = |clones, cache| {
        let log = Arc::new(Log::default());
        (file_of(&bytes, Some(log.clone()), clones, cache), log)
    };
    let plain = || with(None, CacheMode::Writeback);
    let untapped = file_of(&bytes, None, None, CacheMode::Writeback);
    let (tapped, _) = plain();
    let first = |source: &Arc<ImageFile>,
                 (target, log): (Arc<ImageFile>, Arc<Log>),
                 pieces: &[(u64, u64)],
                 durable,
                 or_kernel| {
        let (end, _) = read_write(source, &target, pieces, durable, or_kernel);
        let calls = log.0.lock().expect("no panic");
        let by_kernel = matches!(calls.first(), Some((Call::CopyRange { .. }, data))
            if *data == bytes[pieces[0].0 as usize..][..pieces[0].1 as usize]);
        assert_eq!(by_kernel, matches!(end, Ok(Moved::KernelCopy)), "{end:?}");
        by_kernel
    };
    if !first(&untapped, plain(), &[(0, SHORT - 1)], false, true) {
        return eprintln!("left out: this file system does not copy by itself");
    }
    let sharing = with(Some(BLOCK), CacheMode::Writeback);
    let refusing = plain();
    refusing.0.refused(&untapped, Way::CopyRange, libc::EINVAL);
    assert!(!first(&untapped, plain(), &[(0, 10)], false, false), "not allowed");
    for (source, target, pieces, durable) in [
        (&untapped, plain(), &[(0, 10)][..], true),
        (&untapped, plain(), &[(0, 10), (10, 10)], false),
        (&untapped, plain(), &[(0, SHORT)], false),
        (&tapped, plain(), &[(0, 10)], false),
        (&untapped, sharing, &[(0, 10)], false),
        (&untapped, refusing, &[(0, 10)], false),
    ] {
        assert!(!first(source, target, pieces, durable, true), "{pieces:?} {durable}");
    }
    // Within one file, not what overlaps.
    for (from, kernel) in [(4990, true), (4991, false), (5009, false), (5010, true)] {
        let (end, _) = read_write(&untapped, &untapped, &[(from, 10)], false, true);
        assert_eq!(matches!(end, Ok(Moved::KernelCopy)), kernel, "{from}");
    }
}

/// Whole blocks are shared, and what is left of one where both images end. What the kernel would refuse is not asked
/// of it, for then it would not be asked for the rest either.
#[test]
fn copies_that_are_made() {
    let image = |sectors: u64| {
        let file = tempfile::tempfile().expect("a file for the test");
        ImageFile::new(file, sectors * 512, None, CacheMode::Writeback, None).on(Some(4096), false)
    };
    let (source, target) = (image(17), image(33));
    let allows =
        |from: u64, at: u64, len: u64, how| target.allows(&source, from * 512, at * 512, len * 512, how);
    for (from, at, len) in [(0, 0, 8), (8, 24, 8), (16, 32, 1), (8, 24, 9)] {
        assert!(allows(from, at, len, How::Reflink), "{from} {at} {len}");
    }
    for (from, at, len) in [(0, 1, 8), (1, 0, 8), (1, 1, 8), (0, 0, 7), (16, 0, 1), (0, 32, 1)] {
        assert!(!allows(from, at, len, How::Reflink), "{from} {at} {len}");
        assert!(allows(from, at, len, How::Offload), "{from} {at} {len}");
    }
    assert!(!allows(0, 0, 8, How::MemMove));
    for (from, at, possible) in [(0, 8, true), (8, 0, true), (0, 7, false), (7, 0, false)] {
        assert_eq!(
            target.allows(&target, from * 512, at * 512, 8 * 512, How::Offload),
            possible,
            "{from} {at}"
        );
    }
    target.refused(&source, Way::CopyRange, libc::EXDEV);
    assert!(!allows(0, 0, 8, How::Offload) && allows(0, 0, 8, How::Reflink));
}
