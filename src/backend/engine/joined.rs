//! Short relays that lie side by side, in the source as in the target, made with one call: a host that copies a long
//! stretch by many short commands has them in flight together, and each call costs a tenth of what it copies.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::FileJob;
use crate::backend::Tag;
use crate::backend::file_job::Call;

/// Jobs that one thread does one after the other; more than one only where each [follows](FileJob::follows) the one
/// before.
pub(super) type Jobs = SmallVec<[(Tag, FileJob); 1]>;

/// Bytes of one call, so that the first of them does not wait long for the others: some 50 us.
const MOST: u64 = 256 << 10;

/// Takes the job at `at`, and those behind it that follow it.
pub(super) fn take(queue: &mut VecDeque<(Tag, FileJob)>, at: usize) -> Jobs {
    let mut jobs: Jobs = queue.remove(at).into_iter().collect();
    let mut bytes = jobs.first().map_or(0, |(_, job)| job.range().1);
    while let (Some((_, last)), Some((_, next))) = (jobs.last(), queue.get(at)) {
        bytes += next.range().1;
        if bytes > MOST || !next.follows(last) {
            break;
        }
        jobs.extend(queue.remove(at));
    }
    jobs
}

/// Makes the first calls of all jobs as one, as far as they can begin. What that does not get to, because of an error or
/// an end, is as if interrupted before it began: each job asks for it again, alone, and hears of its own error.
pub(super) fn begin(jobs: &mut Jobs, make: impl FnOnce(&FileJob, Call) -> i64) {
    if jobs.len() < 2 {
        return;
    }
    let mut start = None;
    let mut lens: SmallVec<[u64; 4]> = SmallVec::new();
    for (_, job) in jobs.iter_mut() {
        // Else it waits for somebody, or needs no call.
        let Some(Call::CopyRange { from, offset, len }) = job.next_call() else { break };
        start.get_or_insert((from, offset));
        lens.push(len);
    }
    let (Some((_, first)), Some((from, offset))) = (jobs.first(), start) else { return };
    let mut moved = make(first, Call::CopyRange { from, offset, len: lens.iter().sum() });
    for ((_, job), len) in jobs.iter_mut().zip(lens) {
        // At most MOST.
        let part = moved.min(len as i64);
        job.complete(if part > 0 { part } else { -i64::from(libc::EINTR) });
        moved -= part;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::super::{EngineKind, create};
    use super::*;
    use crate::backend::conformance::pool;
    use crate::backend::image_file::ImageFile;
    use crate::backend::relay::Relay;
    use crate::backend::{MemoryBackend, Op, Pieces};

    const KIB: u64 = 1 << 10;

    fn bytes(seed: u64) -> Vec<u8> {
        (0..1024 * KIB).map(|n| (n.wrapping_mul(seed) >> 7) as u8).collect()
    }

    /// 1 MiB of `bytes(seed)`.
    fn image(seed: u64) -> (File, Arc<ImageFile>) {
        let file = tempfile::tempfile().expect("a file for the test");
        file.write_all_at(&bytes(seed), 0).expect("it is written");
        let again = file.try_clone().expect("a descriptor");
        (file, Arc::new(ImageFile::new(again, None)))
    }

    fn relay(source: &Arc<ImageFile>, from: u64, target: &Arc<ImageFile>, offset: u64, len: u64) -> FileJob {
        let pieces = Pieces::from(&[(from, len)][..]);
        let relay = Relay::new(Arc::clone(source), pieces.clone());
        let any = Arc::new(MemoryBackend::new(1).expect("the memory is there"));
        let buf = pool(vec![0; len as usize]);
        let op = Op::Relay { source: any, pieces, offset, buf, fua: false, offload: true };
        FileJob::relay(Arc::clone(target), op, relay)
    }

    /// Where the file system of the test's files lets the kernel copy, and does not share blocks instead.
    fn is_possible(source: &Arc<ImageFile>, target: &Arc<ImageFile>) -> bool {
        let (one, other) = (relay(source, 0, target, 0, 10), relay(source, 10, target, 10, 10));
        let here = other.follows(&one);
        if !here {
            eprintln!("left out: this file system shares blocks or does not copy by itself");
        }
        here
    }

    #[test]
    fn who_lies_side_by_side_goes_together() {
        let ((_, one), (_, two)) = (image(3), image(5));
        if !is_possible(&one, &two) {
            return;
        }
        let job = |from: u64, offset: u64, kib: u64| relay(&one, from * KIB, &two, offset * KIB, kib * KIB);
        let group = |jobs: Vec<FileJob>| {
            let mut queue: VecDeque<_> = (0..).map(Tag).zip(jobs).collect();
            let first: Vec<u64> = take(&mut queue, 0).iter().map(|(tag, _)| tag.0).collect();
            let left: Vec<u64> = queue.iter().map(|(tag, _)| tag.0).collect();
            assert_eq!(first.len() as u64, left.first().copied().unwrap_or(first.len() as u64), "in order");
            first.len()
        };
        assert_eq!(group(vec![job(0, 500, 64)]), 1);
        assert_eq!(group(vec![job(0, 500, 64), job(64, 564, 4), job(68, 568, 64)]), 3);
        assert_eq!(group((0..8).map(|n| job(64 * n, 64 * n, 64)).collect()), 4, "256 KiB and no more");
        assert_eq!(group(vec![job(0, 500, 64), job(65, 564, 64)]), 1, "not in the source");
        assert_eq!(group(vec![job(0, 500, 64), job(64, 565, 64)]), 1, "not in the target");
        assert_eq!(group(vec![job(64, 564, 64), job(0, 500, 64)]), 1, "the other way round");
        assert_eq!(group(vec![job(0, 500, 64), job(64, 564, 128)]), 1, "a long one is read and written");
        let (_, three) = image(7);
        let of_another = relay(&three, 64 * KIB, &two, 564 * KIB, KIB);
        let to_another = relay(&one, 64 * KIB, &three, 564 * KIB, KIB);
        assert_eq!(group(vec![job(0, 500, 64), of_another]), 1);
        assert_eq!(group(vec![job(0, 500, 64), to_another]), 1);
    }

    /// The answer of one call to three jobs of 10, 20 and 30 bytes, and what each asks for then.
    #[test]
    fn what_one_call_leaves_is_asked_for_again() {
        let ((_, one), (_, two)) = (image(3), image(5));
        if !is_possible(&one, &two) {
            return;
        }
        let copy = |from, len| Some(Call::CopyRange { from, offset: from + 1000, len });
        let (first, second, third) = (copy(0, 10), copy(10, 20), copy(30, 30));
        for (answer, left) in [
            (60, [None, None, None]),
            (31, [None, None, copy(31, 29)]),
            (30, [None, None, third]),
            (15, [None, copy(15, 15), third]),
            (10, [None, second, third]),
            (1, [copy(1, 9), second, third]),
            (0, [first, second, third]),
            (-i64::from(libc::EIO), [first, second, third]),
        ] {
            let jobs =
                [(0, 10), (10, 20), (30, 30)].map(|(from, len)| relay(&one, from, &two, from + 1000, len));
            let mut jobs: Jobs = (0..).map(Tag).zip(jobs).collect();
            let mut made = None;
            begin(&mut jobs, |_, call| {
                made = Some(call);
                answer
            });
            assert_eq!(made, copy(0, 60), "{answer}");
            for ((_, mut job), left) in jobs.into_iter().zip(left) {
                assert_eq!(job.next_call(), left, "{answer}");
            }
        }
    }

    #[test]
    fn one_alone_begins_by_itself() {
        let ((_, one), (_, two)) = (image(3), image(5));
        let mut jobs = Jobs::from([(Tag(0), relay(&one, 0, &two, 0, 4096))]);
        begin(&mut jobs, |_, _| panic!("makes a call"));
    }

    /// By the threads: many at once, side by side and not, with the end of the source in their midst.
    #[test]
    fn all_bytes_arrive_where_they_belong() {
        for kind in [EngineKind::Threads, EngineKind::Auto] {
            let ((source, one), (target, two)) = (image(3), image(5));
            let end = 700 * KIB;
            source.set_len(end).expect("shorter");
            let mut engine = create(kind).expect("an engine");
            let (from, mut expected) = (bytes(3), bytes(5));
            let (mut fails, mut out) = (Vec::new(), Vec::new());
            for n in 0..60_u64 {
                // Runs of seven, each where no other is.
                let at = n % 7 * 16 + n / 7 * 113;
                let (at, len) = (at * KIB, 16 * KIB);
                engine.submit(Tag(n), relay(&one, at, &two, at, len));
                if at + len <= end {
                    let range = at as usize..(at + len) as usize;
                    expected[range.clone()].copy_from_slice(&from[range]);
                } else {
                    fails.push((n, at));
                }
            }
            while out.len() < 60 {
                engine.wait(None);
                engine.reap(&mut out);
            }
            for done in &out {
                assert_eq!(done.result.is_err(), fails.iter().any(|fail| fail.0 == done.tag.0), "{done:?}");
            }
            let mut now = vec![0; 1024 << 10];
            target.read_exact_at(&mut now, 0).expect("readable");
            // What a failed one left is undefined.
            for (_, at) in fails {
                let range = at as usize..(at + 16 * KIB) as usize;
                now[range.clone()].copy_from_slice(&expected[range]);
            }
            assert!(now == expected);
        }
    }
}
