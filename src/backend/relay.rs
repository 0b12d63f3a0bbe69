//! A bounced segment of a Copy as one job: reads of its pieces into one buffer, then one write, by a thread that may
//! block. Part of `file_job`.
//!
//! A ring hands a write that its file cannot do without waiting to threads of the kernel, and each such hand-over costs
//! more than copying 64 KiB. There a whole segment is handed to a thread of ours instead, once. A short one that is a single
//! piece is not even read: the kernel copies it from page to page (copy_file_range), which saves one copy of two. What
//! that does not manage, whatever the reason, is read and written after all, and so it tells which side is at fault.
#![expect(unsafe_code, reason = "the probe is a system call")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use smallvec::SmallVec;

use super::file_job::{Call, Iovecs};
use super::image_file::ImageFile;

/// A relay of fewer bytes is short. copy_file_range writes 64 KiB at a time, and each write to ext4 costs the more the
/// larger the file's folios are: so a longer one is faster read and written in few large pieces, by two threads.
pub(super) const SHORT: u64 = 128 << 10;

/// What is read one behind the other: byte offsets in the source, and bytes, none of them 0.
pub type Pieces = SmallVec<[(u64, u64); 1]>;

/// The reads of a relay.
#[derive(Debug)]
pub(super) struct Relay {
    source: Arc<ImageFile>,
    pieces: Pieces,
    /// The piece that is being read, and how many of its bytes have been.
    current: usize,
    got: u64,
    /// Bytes of the buffer that are filled.
    filled: u64,
}

impl Relay {
    /// For pieces that lie in the source and together are as long as the buffer.
    pub(super) fn new(source: Arc<ImageFile>, pieces: Pieces) -> Self {
        Relay { source, pieces, current: 0, got: 0, filled: 0 }
    }

    pub(super) fn source(&self) -> &ImageFile {
        &self.source
    }

    /// The place in the source, if the kernel may copy it to `offset` of `target` by itself. It must not share blocks,
    /// nor leave it to a server what becomes of holes: what is relayed is allocated afterwards.
    pub(super) fn copied_by_kernel(&self, target: &ImageFile, offset: u64) -> Option<u64> {
        let &[(from, len)] = &self.pieces[..] else { return None };
        // A tap hears of every read of its image; and the kernel refuses ranges that overlap.
        let unseen =
            self.source.tap().is_some() || (self.source.is_same(target) && from.abs_diff(offset) < len);
        if len >= SHORT || unseen {
            return None;
        }
        let ways = target.shortcuts_from(&self.source);
        (ways.offload && !ways.offload_pays).then_some(from)
    }

    /// The next byte of the source.
    pub(super) fn place(&self) -> u64 {
        self.pieces.get(self.current).map_or(0, |piece| piece.0 + self.got)
    }

    /// Bytes of the buffer that are filled.
    pub(super) fn filled(&self) -> u64 {
        self.filled
    }

    /// The next read, into the rest of `buf`.
    pub(super) fn next_call(&self, buf: &mut [u8], iovecs: &mut Iovecs) -> Call {
        let (offset, len) = self.pieces.get(self.current).copied().unwrap_or_default();
        // At most the length of a buffer in memory.
        let room = buf.get_mut(self.filled as usize..).unwrap_or_default();
        let want = usize::try_from(len - self.got).unwrap_or(usize::MAX).min(room.len());
        iovecs.aim_at(room.as_mut_ptr(), want);
        Call::Preadv { offset: offset + self.got }
    }

    /// The read moved so many bytes; was it the last?
    pub(super) fn moved(&mut self, count: u64) -> bool {
        let len = self.pieces.get(self.current).map_or(0, |piece| piece.1);
        let count = count.min(len - self.got);
        self.got += count;
        self.filled += count;
        if self.got == len {
            self.current += 1;
            self.got = 0;
        }
        self.current >= self.pieces.len()
    }
}

/// Is it open for O_DIRECT?
pub(super) fn is_direct(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::DIRECT))
}

/// Does a write to the file have to wait, so that a ring hands it on to a thread? Not one of O_DIRECT, nor one through
/// the page cache of XFS or btrfs; but one through that of ext4, or of a block device.
///
/// Asked with a write that cannot take place: of a byte at an address that is never mapped.
pub(super) fn writes_wait(file: &File) -> bool {
    let nowhere = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
    // SAFETY: the kernel reads the iovec, which lives through the call, and refuses the address in it.
    let answer = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const nowhere, 1, 0, libc::RWF_NOWAIT) };
    let errno = std::io::Error::last_os_error().raw_os_error();
    answer == -1 && errno == Some(libc::EOPNOTSUPP) && !is_direct(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::conformance::{folder, pool};
    use super::super::engine::{EngineKind, create};
    use super::super::image_file::Tap;
    use super::super::{BackendError, Completion, FileJob, JobKind, MemoryBackend, Op, Tag};
    use super::*;

    fn image(tap: Option<Arc<dyn Tap>>) -> Arc<ImageFile> {
        let file = tempfile::tempfile().expect("a file for the test");
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
        file.write_all_at(&bytes, 0).expect("it is written");
        Arc::new(ImageFile::new(file, tap))
    }

    fn job(source: &Arc<ImageFile>, target: &Arc<ImageFile>, pieces: &[(u64, u64)], fua: bool) -> FileJob {
        relay(source, target, pieces, fua, true)
    }

    fn relay(
        source: &Arc<ImageFile>,
        target: &Arc<ImageFile>,
        pieces: &[(u64, u64)],
        fua: bool,
        offload: bool,
    ) -> FileJob {
        let len = pieces.iter().map(|piece| piece.1).sum::<u64>() as usize;
        let relay = Relay::new(Arc::clone(source), pieces.into());
        let any = Arc::new(MemoryBackend::new(1).expect("the memory is there"));
        let op = Op::Relay {
            source: any,
            pieces: Pieces::new(),
            offset: 5000,
            buf: pool(vec![0; len]),
            fua,
            offload,
        };
        FileJob::relay(Arc::clone(target), op, relay)
    }

    /// Answers the calls of a relay of 10 bytes from 100 and 20 from 300.
    fn script(fua: bool, steps: &[(Call, i32)]) -> Completion {
        let (source, target) = (image(None), image(None));
        let mut job = job(&source, &target, &[(100, 10), (300, 20)], fua);
        assert_eq!((job.kind(), job.range()), (JobKind::Relay, (5000, 30)));
        for (expected, answer) in steps {
            assert_eq!(job.next_call().as_ref(), Some(expected));
            let read = matches!(expected, Call::Preadv { .. });
            assert_eq!(job.fd(), if read { source.fd() } else { target.fd() });
            // To the end of the piece, or of all.
            let left = match *expected {
                Call::Preadv { offset: offset @ 100..110 } => 110 - offset,
                Call::Preadv { offset } => 320 - offset,
                Call::Pwritev { offset, .. } => 5030 - offset,
                _ => 0,
            };
            assert_eq!(job.iovecs().len(), usize::from(*expected != Call::Fdatasync));
            assert_eq!(
                job.iovecs().iter().map(|iovec| iovec.iov_len as u64).sum::<u64>(),
                left,
                "{expected:?}"
            );
            job.complete(*answer);
        }
        assert_eq!(job.next_call(), None);
        job.finish(Tag(0))
    }

    fn read(offset: u64) -> Call {
        Call::Preadv { offset }
    }

    fn write(offset: u64, dsync: bool) -> Call {
        Call::Pwritev { offset, dsync }
    }

    #[test]
    fn all_is_read_then_written() {
        let eintr = -libc::EINTR;
        let reads = [(read(100), 4), (read(104), eintr), (read(104), 6), (read(300), 20)];
        for fua in [false, true] {
            let mut steps = reads.to_vec();
            steps.extend([(write(5000, fua), 29), (write(5029, fua), 1)]);
            let end = script(fua, &steps);
            assert!(end.result.is_ok() && end.buf.is_some_and(|buf| buf.len() == 30));
        }
        let mut steps = reads.to_vec();
        steps.extend([(write(5000, true), -libc::EOPNOTSUPP), (write(5000, false), 30)]);
        steps.push((Call::Fdatasync, 0));
        assert!(script(true, &steps).result.is_ok());
        // No more than was asked for has been moved, whatever the answer.
        let end =
            script(false, &[(read(100), 4), (read(104), 25), (read(300), 25), (write(5000, false), 99)]);
        assert!(end.result.is_ok());
    }

    #[test]
    fn the_side_that_fails_is_named() {
        let eio = -libc::EIO;
        for (answer, truncated) in [(eio, false), (0, true)] {
            let end = script(false, &[(read(100), 10), (read(300), 7), (read(307), answer)]);
            let Err(BackendError::Source { at: 17, error }) = &end.result else { panic!("{end:?}") };
            assert_eq!(matches!(**error, BackendError::Truncated), truncated);
            assert!(end.buf.is_some());
        }
        let end = script(false, &[(read(100), 10), (read(300), 20), (write(5000, false), eio)]);
        assert!(matches!(end.result, Err(BackendError::Io(_))) && end.buf.is_some());
    }

    const SPLICE: Call = Call::CopyRange { from: 100, offset: 5000, len: 30 };

    fn rest_of_splice() -> Call {
        Call::CopyRange { from: 112, offset: 5012, len: 18 }
    }

    /// Two images of a file system like ext4, and a relay of 30 bytes between them, whose calls are answered.
    fn splice(steps: &[(Call, i32)]) -> (Completion, bool) {
        let [source, target] = [(); 2].map(|()| waiting(None));
        let mut job = job(&source, &target, &[(100, 30)], false);
        for (expected, answer) in steps {
            assert_eq!(job.next_call().as_ref(), Some(expected));
            let read = matches!(expected, Call::Preadv { .. });
            assert_eq!(
                (job.fd(), job.source_fd()),
                (if read { source.fd() } else { target.fd() }, source.fd())
            );
            job.complete(*answer);
        }
        assert_eq!(job.next_call(), None);
        (job.finish(Tag(0)), target.shortcuts_from(&source).offload)
    }

    fn waiting(tap: Option<Arc<dyn Tap>>) -> Arc<ImageFile> {
        Arc::new(Arc::into_inner(image(tap)).expect("nobody else has it").waiting())
    }

    #[test]
    fn a_short_piece_is_copied_by_the_kernel() {
        let (end, still) = splice(&[(SPLICE, -libc::EINTR), (SPLICE, 12), (rest_of_splice(), 18)]);
        assert!(end.result.is_ok() && end.buf.is_some_and(|buf| buf.len() == 30) && still);
    }

    /// Whatever stops it, half way or at once: all is read and written, and the side that fails is named.
    #[test]
    fn what_the_kernel_does_not_copy_is_read_and_written() {
        for (stop, way_leads) in [
            (0, true),
            (-libc::EIO, true),
            (-libc::ENOSPC, true),
            (-libc::EINVAL, false),
            (-libc::EXDEV, false),
        ] {
            let begin = [vec![(SPLICE, stop)], vec![(SPLICE, 12), (rest_of_splice(), stop)]];
            for begin in begin {
                let go_on = |more: &[(Call, i32)]| splice(&[&begin, more].concat());
                let (end, still) = go_on(&[(read(100), 30), (write(5000, false), 30)]);
                assert!(end.result.is_ok() && still == way_leads, "{stop}");
                let (end, _) = go_on(&[(read(100), 7), (read(107), -libc::EIO)]);
                assert!(matches!(end.result, Err(BackendError::Source { at: 7, .. })), "{end:?}");
                let (end, _) = go_on(&[(read(100), 7), (read(107), 0)]);
                assert!(matches!(end.result, Err(BackendError::Source { at: 7, .. })), "{end:?}");
                let (end, _) = go_on(&[(read(100), 30), (write(5000, false), -libc::ENOSPC)]);
                assert!(matches!(end.result, Err(BackendError::Io(_))) && end.buf.is_some());
            }
        }
    }

    /// Not what must be durable, nor several pieces, nor a long one; not past a source's tap; not what overlaps; and not
    /// where the kernel would share blocks, or has refused.
    #[test]
    fn what_the_kernel_is_not_asked_to_copy() {
        let (one, two) = (waiting(None), waiting(None));
        let first = |source, target, pieces: &[(u64, u64)], fua| job(source, target, pieces, fua).next_call();
        let is_spliced = |call| matches!(call, Some(Call::CopyRange { .. }));
        assert!(is_spliced(first(&one, &two, &[(0, SHORT - 1)], false)));
        assert!(is_spliced(first(&one, &one, &[(5010, 10)], false)));
        assert!(is_spliced(first(&one, &one, &[(4990, 10)], false)));
        assert_eq!(relay(&one, &two, &[(0, 10)], false, false).next_call(), Some(read(0)), "not allowed");
        let tapped = waiting(Some(Arc::new(Log::default())));
        assert!(is_spliced(first(&one, &tapped, &[(0, 10)], false)), "the target's hears of it");
        let sharing = Arc::new(Arc::into_inner(image(None)).expect("nobody else has it").sharing(4096));
        let through = Arc::into_inner(waiting(None)).expect("nobody else has it");
        let through = Arc::new(through.cached(crate::backend::CacheMode::Writethrough, None));
        let refusing = waiting(None);
        refusing.refused(&one, crate::backend::shortcut::Way::CopyRange, libc::EINVAL);
        for (source, target, pieces, fua) in [
            (&one, &two, &[(0, 10)][..], true),
            (&one, &through, &[(0, 10)], false),
            (&one, &two, &[(0, 10), (10, 10)], false),
            (&one, &two, &[(0, SHORT)], false),
            (&tapped, &two, &[(0, 10)], false),
            (&one, &one, &[(4991, 10)], false),
            (&one, &one, &[(5009, 10)], false),
            (&one, &sharing, &[(0, 10)], false),
            (&one, &refusing, &[(0, 10)], false),
        ] {
            let offset = pieces[0].0;
            assert_eq!(first(source, target, pieces, fua), Some(read(offset)), "{pieces:?} {fua}");
        }
    }

    /// The target's tap is told what the kernel copies.
    #[test]
    fn a_tap_sees_what_the_kernel_copies() {
        #[derive(Debug, Default)]
        struct Data(std::sync::Mutex<Vec<u8>>);
        impl Tap for Data {
            fn issued(&self, call: &Call, data: &[u8]) -> u64 {
                assert_eq!(*call, SPLICE);
                self.0.lock().expect("no panic").extend_from_slice(data);
                0
            }
            fn completed(&self, _: u64, _: &Call, _: Result<u32, i32>) {}
        }
        let data = Arc::new(Data::default());
        let (source, target) = (waiting(None), waiting(Some(data.clone())));
        assert_eq!(job(&source, &target, &[(100, 30)], false).next_call(), Some(SPLICE));
        assert_eq!(*data.0.lock().expect("no panic"), source.content(100, 30));
    }

    #[derive(Debug, Default)]
    struct Log(std::sync::Mutex<Vec<Call>>);

    impl Tap for Log {
        fn issued(&self, call: &Call, data: &[u8]) -> u64 {
            assert_eq!(data.is_empty(), matches!(call, Call::Preadv { .. }), "{call:?}");
            self.0.lock().expect("no panic").push(*call);
            0
        }
        fn completed(&self, _: u64, _: &Call, result: Result<u32, i32>) {
            assert!(result.is_ok());
        }
    }

    /// By both engines, more of them than threads, each byte in its place; and either image's tap hears of its calls.
    #[test]
    fn engines_relay() {
        for kind in [EngineKind::Auto, EngineKind::Threads] {
            let mut engine = create(kind).expect("the engine starts");
            let (from, to) = (Arc::new(Log::default()), Arc::new(Log::default()));
            let (source, target) = (image(Some(from.clone())), image(Some(to.clone())));
            let mut out = Vec::new();
            for round in 0..50_u64 {
                for n in 0..8 {
                    let pieces = [(round, 1000), (90_000 - 7 * n, 1), (n, 3000)];
                    engine.submit(Tag(n), job(&source, &target, &pieces, false));
                }
                while out.len() < 8 {
                    engine.wait(None);
                    engine.reap(&mut out);
                }
                assert_eq!(engine.in_flight(), 0);
                for end in out.drain(..) {
                    end.result.expect("it succeeds");
                    let places = (round..round + 1000).chain([90_000 - 7 * end.tag.0]);
                    let expected: Vec<u8> =
                        places.chain(end.tag.0..end.tag.0 + 3000).map(|n| (n % 251) as u8).collect();
                    assert_eq!(end.buf.as_ref().and_then(|buf| buf.ours()), Some(&expected[..]));
                }
                assert_eq!(target.content(5000, 1000), source.content(round, 1000));
            }
            let (reads, writes) = (from.0.lock().expect("no panic"), to.0.lock().expect("no panic"));
            assert_eq!((reads.len(), writes.len()), (1200, 400));
            assert!(reads.iter().all(|call| matches!(call, Call::Preadv { .. })));
            assert!(writes.iter().all(|call| matches!(call, Call::Pwritev { .. })));
        }
    }

    #[test]
    fn direct_files_are_known() {
        use std::os::unix::fs::OpenOptionsExt;
        let folder = folder();
        let path = folder.path().join("image");
        assert!(!is_direct(&File::create(&path).expect("a file for the test")));
        for write in [false, true] {
            let mut options = File::options();
            match options.read(true).write(write).custom_flags(libc::O_DIRECT).open(&path) {
                Ok(file) => assert!(is_direct(&file) && !writes_wait(&file)),
                Err(why) => eprintln!("O_DIRECT is left out: {why}"),
            }
        }
    }

    /// The probe is harmless, whatever the answer, and says no where nothing can be written.
    #[test]
    fn the_probe_changes_nothing() {
        let file = tempfile::tempfile().expect("a file for the test");
        file.write_all_at(b"untouched", 0).expect("it is written");
        let answer = writes_wait(&file);
        assert_eq!(writes_wait(&file), answer);
        let mut bytes = [0; 9];
        file.read_exact_at(&mut bytes, 0).expect("it is read");
        assert_eq!((&bytes, file.metadata().expect("it has").len()), (b"untouched", 9));
        assert!(!writes_wait(&File::open("/dev/null").expect("it opens")));
    }
}
