//! A copy from one file to another as a sequence of system calls, like `file_job`, of which it is a part.
//!
//! A way that the kernel refuses before anything has changed is no shortcut; one refused later is finished by
//! the next: sharing by copying, copying by reading and writing. So "nothing has changed" stays true.

use std::sync::Arc;

use super::BackendError;
use super::file_job::{Call, Iovecs};
use super::image_file::{Ability, ImageFile};
use super::shortcut::{Way, is_no_way};

/// One call shares or copies at most this, however long the range: it cannot be cancelled.
const MAX_CALL: u64 = 256 << 20;
/// What is read at once where no shortcut is left.
const CHUNK: usize = 1 << 20;

/// Aligned as O_DIRECT wants it.
#[derive(Clone, Debug)]
#[repr(align(4096))]
pub(super) struct Page(#[expect(dead_code, reason = "the kernel alone reads and writes it")] [u8; 4096]);

/// The call to make next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Clone,
    /// The clone was EINVAL: does the source still reach as far?
    Reach,
    /// It does. One that ended half way is EINVAL too, but then a single block goes through.
    CloneBlock,
    /// Where does the data at `done` end? At once, if there is none.
    DataEnd,
    /// Where does the hole at `done` end?
    HoleEnd,
    /// Does the source end before the range does? Or else its last hole reaches to the end.
    HoleReach,
    CopyRange,
    Read,
    Write {
        got: usize,
        put: usize,
    },
    PunchHole,
    WriteZeroes,
}

/// What comes after a call.
#[derive(Debug)]
pub(super) enum Next {
    More,
    Done,
    Failed(BackendError),
}

/// See the module docs.
#[derive(Debug)]
pub(super) struct CopySteps {
    source: Arc<ImageFile>,
    from: u64,
    offset: u64,
    len: u64,
    /// The unit of sharing.
    block: u64,
    /// Bytes of the range that are in place.
    done: u64,
    /// End of the data or the hole in hand, in bytes of the range; greater than `done` when it is copied.
    piece: u64,
    /// The destination may have changed.
    changed: bool,
    /// copy_file_range was refused under way.
    by_hand: bool,
    stage: Stage,
    buffer: Vec<Page>,
}

impl CopySteps {
    /// For a range that lies in both images and is not empty. Shared by blocks of `clone` bytes, to which the
    /// range is aligned, or copied.
    pub(super) fn new(source: Arc<ImageFile>, from: u64, offset: u64, len: u64, clone: Option<u64>) -> Self {
        let (stage, block) = match clone {
            Some(block) => (Stage::Clone, block),
            None => (Stage::DataEnd, 0),
        };
        CopySteps {
            source,
            from,
            offset,
            len,
            block,
            done: 0,
            piece: 0,
            changed: false,
            by_hand: false,
            stage,
            buffer: Vec::new(),
        }
    }

    /// The next call is made on the source file alone.
    pub(super) fn on_source_alone(&self) -> bool {
        matches!(self.stage, Stage::Reach | Stage::DataEnd | Stage::HoleEnd | Stage::HoleReach | Stage::Read)
    }

    pub(super) fn source(&self) -> &ImageFile {
        &self.source
    }

    /// Byte of the source at which the copy begins.
    pub(super) fn from(&self) -> u64 {
        self.from
    }

    pub(super) fn next_call(&mut self, iovecs: &mut Iovecs) -> Call {
        let (from, offset) = (self.from + self.done, self.offset + self.done);
        let seek = |whence, offset| Call::Seek { whence, offset };
        match self.stage {
            Stage::Clone => Call::CloneRange { from, offset, len: (self.len - self.done).min(MAX_CALL) },
            Stage::CloneBlock => {
                Call::CloneRange { from, offset, len: (self.len - self.done).min(self.block) }
            }
            Stage::Reach | Stage::HoleReach => seek(libc::SEEK_END, 0),
            Stage::DataEnd => seek(libc::SEEK_HOLE, from),
            Stage::HoleEnd => seek(libc::SEEK_DATA, from),
            Stage::CopyRange => Call::CopyRange { from, offset, len: self.left().min(MAX_CALL) },
            Stage::Read => {
                // Fits: at most a chunk.
                let len = self.left().min(CHUNK as u64) as usize;
                if self.buffer.is_empty() {
                    self.buffer = vec![Page([0; 4096]); CHUNK / size_of::<Page>()];
                }
                iovecs.aim_at(self.buffer.as_mut_ptr().cast(), len);
                Call::Preadv { offset: from }
            }
            Stage::Write { got, put } => {
                let base = self.buffer.as_mut_ptr().cast::<u8>().wrapping_add(put);
                iovecs.aim_at(base, got - put);
                Call::Pwritev { offset: offset + put as u64, dsync: false }
            }
            Stage::PunchHole => Call::Fallocate {
                mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                len: self.left(),
            },
            Stage::WriteZeroes => {
                iovecs.aim_at_zeroes(self.left());
                Call::Pwritev { offset, dsync: false }
            }
        }
    }

    /// Of the data or hole in hand.
    fn left(&self) -> u64 {
        self.piece - self.done
    }

    pub(super) fn succeeded(&mut self, result: u64, target: &ImageFile) -> Next {
        // A place in the source, in bytes of the range.
        let place = result.saturating_sub(self.from).min(self.len);
        match self.stage {
            Stage::Clone => {
                self.changed = true;
                self.moved(MAX_CALL, Stage::Clone)
            }
            Stage::CloneBlock => {
                self.changed = true;
                return self.refused(libc::EINVAL, Way::Clone, target);
            }
            Stage::Reach if place == self.len => self.stage = Stage::CloneBlock,
            Stage::HoleReach if place == self.len => self.hole(self.len, target),
            Stage::Reach | Stage::HoleReach => return Next::Failed(BackendError::Truncated),
            Stage::DataEnd if place > self.done => self.data(place),
            Stage::DataEnd => self.stage = Stage::HoleEnd,
            Stage::HoleEnd if place > self.done => self.hole(place, target),
            // It was filled meanwhile.
            Stage::HoleEnd => self.stage = Stage::DataEnd,
            Stage::CopyRange | Stage::Read if result == 0 => return Next::Failed(BackendError::Truncated),
            Stage::CopyRange => {
                self.changed = true;
                self.moved(result, Stage::CopyRange);
            }
            Stage::Read => {
                let got = self.left().min(CHUNK as u64).min(result) as usize;
                self.stage = Stage::Write { got, put: 0 };
            }
            Stage::Write { .. } | Stage::WriteZeroes if result == 0 => {
                return Next::Failed(std::io::Error::from(std::io::ErrorKind::WriteZero).into());
            }
            Stage::Write { got, put } => {
                self.changed = true;
                // At most what was handed over, which is a chunk.
                let put = put + result.min((got - put) as u64) as usize;
                self.stage = Stage::Write { got, put };
                if put == got {
                    self.moved(got as u64, Stage::Read);
                }
            }
            Stage::PunchHole => {
                self.changed = true;
                self.moved(self.left(), Stage::PunchHole);
            }
            Stage::WriteZeroes => {
                self.changed = true;
                self.moved(result, Stage::WriteZeroes);
            }
        }
        if self.done == self.len { Next::Done } else { Next::More }
    }

    /// EINTR, and EAGAIN for a while, are not asked about here.
    pub(super) fn failed(&mut self, errno: i32, target: &ImageFile) -> Next {
        match (self.stage, errno) {
            // The source was truncated, or it shares in larger units, or it ended half way, or something else.
            (Stage::Clone, libc::EINVAL) => self.stage = Stage::Reach,
            (Stage::CloneBlock, libc::EINVAL) => return self.refused(errno, Way::Clone, target),
            (
                Stage::Clone | Stage::CloneBlock,
                libc::EOPNOTSUPP | libc::EXDEV | libc::ENOSYS | libc::ENOTTY | libc::ETXTBSY | libc::EPERM,
            ) => return self.refused(errno, Way::Clone, target),
            // Sharing wants room for its records where copying may need none. It may have come half way.
            (Stage::Clone | Stage::CloneBlock, libc::ENOSPC | libc::EDQUOT) => {
                self.changed = true;
                return self.refused(errno, Way::Clone, target);
            }
            (Stage::CopyRange, _) if is_no_way(errno) => return self.refused(errno, Way::CopyRange, target),
            // No data from here on: the last hole reaches to the end of the file.
            (Stage::HoleEnd, libc::ENXIO) => self.stage = Stage::HoleReach,
            (Stage::DataEnd, libc::ENXIO) => return Next::Failed(BackendError::Truncated),
            // A file system that knows no holes.
            (Stage::DataEnd | Stage::HoleEnd, libc::EINVAL | libc::EOPNOTSUPP) => self.data(self.len),
            (Stage::PunchHole, libc::EOPNOTSUPP | libc::ENOSYS) => {
                target.remember_lack(Ability::PunchHole);
                self.stage = Stage::WriteZeroes;
            }
            (Stage::PunchHole, libc::EINVAL) => self.stage = Stage::WriteZeroes,
            _ => return Next::Failed(std::io::Error::from_raw_os_error(errno).into()),
        }
        Next::More
    }

    /// `way` does not lead from this source to `target`.
    fn refused(&mut self, errno: i32, way: Way, target: &ImageFile) -> Next {
        target.refused(&self.source, way, errno);
        if !self.changed {
            return Next::Failed(BackendError::NoShortcut);
        }
        match way {
            Way::Clone => self.stage = Stage::DataEnd,
            Way::CopyRange => {
                self.by_hand = true;
                self.stage = Stage::Read;
            }
        }
        Next::More
    }

    fn data(&mut self, end: u64) {
        self.piece = end;
        self.stage = if self.by_hand { Stage::Read } else { Stage::CopyRange };
    }

    fn hole(&mut self, end: u64, target: &ImageFile) {
        self.piece = end;
        self.stage = if target.can(Ability::PunchHole) { Stage::PunchHole } else { Stage::WriteZeroes };
    }

    /// `count` bytes are in place, or all that were asked for if that is less; `same` goes on with the data or hole in
    /// hand, if there is any left.
    fn moved(&mut self, count: u64, same: Stage) {
        let end = if same == Stage::Clone { self.len } else { self.piece };
        self.done = (self.done + count).min(end);
        self.stage = if self.done < end { same } else { Stage::DataEnd };
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Completion, FileJob, Shortcuts, Tag};
    use super::*;

    const FROM: u64 = 1 << 20;
    const TO: u64 = 8 << 20;
    const BLOCK: u64 = 4096;

    /// A file said to share blocks.
    fn file() -> Arc<ImageFile> {
        let file = tempfile::tempfile().expect("a file for the test");
        Arc::new(ImageFile::new(file, None).sharing(BLOCK))
    }

    /// Answers the calls of a copy in turn, and holds each against what is expected. How it ended, and what is
    /// left of the ways between the two files.
    fn script(clone: bool, len: u64, steps: &[(Call, i64)]) -> (Completion, Shortcuts) {
        let (end, ways, _) = script_of_bytes(clone, len, steps);
        (end, ways)
    }

    /// The same, and how many bytes of memory each read or write was given.
    fn script_of_bytes(clone: bool, len: u64, steps: &[(Call, i64)]) -> (Completion, Shortcuts, Vec<usize>) {
        let mut bytes = Vec::new();
        let (source, target) = (file(), file());
        let copy = CopySteps::new(Arc::clone(&source), FROM, TO, len, clone.then_some(BLOCK));
        let mut job = FileJob::copy(Arc::clone(&target), TO, len, copy);
        for (n, (expected, answer)) in steps.iter().enumerate() {
            assert_eq!(job.next_call().as_ref(), Some(expected), "call {n}");
            let alone = matches!(expected, Call::Seek { .. } | Call::Preadv { .. });
            assert_eq!(job.fd(), if alone { source.fd() } else { target.fd() });
            assert_eq!(job.source_fd(), source.fd());
            if matches!(expected, Call::Preadv { .. } | Call::Pwritev { .. }) {
                bytes.push(job.iovecs().iter().map(|iovec| iovec.iov_len).sum());
            }
            job.complete(*answer);
        }
        assert_eq!(job.next_call(), None);
        (job.finish(Tag(0)), target.shortcuts_from(&source), bytes)
    }

    const OK: Shortcuts = Shortcuts {
        memmove: false,
        reflink: Some(BLOCK),
        offload: true,
        offload_pays: true,
        offload_clones: true,
        relay: false,
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
    fn size(size: u64) -> (Call, i64) {
        (Call::Seek { whence: libc::SEEK_END, offset: 0 }, size as i64)
    }
    fn punch(at: u64, len: u64) -> Call {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        Call::Fallocate { mode, offset: TO + at, len }
    }
    fn read(at: u64) -> Call {
        Call::Preadv { offset: FROM + at }
    }
    fn write(at: u64) -> Call {
        Call::Pwritev { offset: TO + at, dsync: false }
    }
    fn no(errno: i32) -> i64 {
        -i64::from(errno)
    }
    fn is_no_shortcut(end: &Completion) -> bool {
        matches!(end.result, Err(BackendError::NoShortcut))
    }

    #[test]
    fn a_long_clone_is_cut() {
        let len = 2 * MAX_CALL + BLOCK;
        let calls =
            [(clone(0, MAX_CALL), 0), (clone(MAX_CALL, MAX_CALL), 0), (clone(2 * MAX_CALL, BLOCK), 0)];
        let (end, ways) = script(true, len, &calls);
        assert!(end.result.is_ok());
        assert_eq!(ways, OK);
    }

    #[test]
    fn a_clone_refused_at_once_is_no_shortcut_and_remembered() {
        for errno in [libc::EOPNOTSUPP, libc::EXDEV, libc::ETXTBSY] {
            let (end, ways) = script(true, BLOCK, &[(clone(0, BLOCK), no(errno))]);
            assert!(is_no_shortcut(&end));
            assert_eq!(ways, Shortcuts { offload: true, ..Shortcuts::default() });
        }
        let einval = no(libc::EINVAL);
        let calls = [(clone(0, 8192), einval), size(FROM + 8192), (clone(0, BLOCK), einval)];
        let (end, ways) = script(true, 8192, &calls);
        assert!(is_no_shortcut(&end));
        assert_eq!(ways.reflink, None);
    }

    /// The kernel says EINVAL as well when it shared a part and then failed.
    #[test]
    fn a_clone_that_ended_half_way_is_copied_to_the_end() {
        let calls = [
            (clone(0, 8192), no(libc::EINVAL)),
            size(FROM + 8192),
            (clone(0, BLOCK), 0),
            data_end(0, 8192),
            (copy(0, 8192), 8192),
        ];
        let (end, ways) = script(true, 8192, &calls);
        assert!(end.result.is_ok());
        assert_eq!(ways, Shortcuts { offload: true, ..Shortcuts::default() });
        // A last block that is not whole is asked for as it is.
        let len = MAX_CALL + 1000;
        let calls = [
            (clone(0, MAX_CALL), 0),
            (clone(MAX_CALL, 1000), no(libc::EINVAL)),
            size(FROM + len),
            (clone(MAX_CALL, 1000), 0),
            data_end(MAX_CALL, len),
            (copy(MAX_CALL, 1000), 1000),
        ];
        assert!(script(true, len, &calls).0.result.is_ok());
    }

    #[test]
    fn a_clone_of_a_truncated_source_is_held_against_nobody() {
        let (end, ways) = script(true, 8192, &[(clone(0, 8192), no(libc::EINVAL)), size(FROM + 8191)]);
        assert!(matches!(end.result, Err(BackendError::Truncated)));
        assert_eq!(ways, OK);
    }

    #[test]
    fn a_clone_without_room_is_copied() {
        let len = MAX_CALL + 8192;
        let calls = [
            (clone(0, MAX_CALL), 0),
            (clone(MAX_CALL, 8192), no(libc::ENOSPC)),
            data_end(MAX_CALL, len),
            (copy(MAX_CALL, 8192), 8192),
        ];
        assert!(script(true, len, &calls).0.result.is_ok());
        let calls =
            [(clone(0, 8192), no(libc::ENOSPC)), data_end(0, 8192), (copy(0, 8192), no(libc::ENOSPC))];
        let (end, ways) = script(true, 8192, &calls);
        assert!(matches!(end.result, Err(BackendError::Io(e)) if e.raw_os_error() == Some(libc::ENOSPC)));
        assert_eq!((ways.reflink, ways.offload), (None, true));
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
        assert!(end.result.is_ok());
        assert_eq!(ways, OK);
        let (end, ways) =
            script(false, 9000, &[data_end(0, 9000), (copy(0, 9000), 100), (copy(100, 8900), 0)]);
        assert!(matches!(end.result, Err(BackendError::Truncated)));
        assert_eq!(ways, OK);
        let len = MAX_CALL + 1;
        let cap = MAX_CALL as i64;
        assert!(
            script(false, len, &[data_end(0, len + 5), (copy(0, MAX_CALL), cap), (copy(MAX_CALL, 1), 1)])
                .0
                .result
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
            size(FROM + 20000),
            (punch(12288, 7712), 0),
        ];
        assert!(script(false, 20000, &calls).0.result.is_ok());
        // A hole ends before the range, or the file within the hole.
        let calls = [data_end(0, 0), (hole_end(0), no(libc::ENXIO)), size(FROM + 4095)];
        assert!(matches!(script(false, 4096, &calls).0.result, Err(BackendError::Truncated)));
        let beyond = [(data_end(0, 0).0, no(libc::ENXIO))];
        assert!(matches!(script(false, 4096, &beyond).0.result, Err(BackendError::Truncated)));
        // Filled between the two questions.
        let calls = [data_end(0, 0), (hole_end(0), seek(0)), data_end(0, 4096), (copy(0, 4096), 4096)];
        assert!(script(false, 4096, &calls).0.result.is_ok());
        // A file system without holes.
        let calls = [(data_end(0, 0).0, no(libc::EINVAL)), (copy(0, 4096), 4096)];
        assert!(script(false, 4096, &calls).0.result.is_ok());
    }

    #[test]
    fn where_no_hole_can_be_punched_zeroes_are_written() {
        let hole = [data_end(0, 0), (hole_end(0), (FROM + (3 << 20)) as i64)];
        let mib = 1 << 20;
        for errno in [libc::EOPNOTSUPP, libc::EINVAL] {
            let mut calls = hole.to_vec();
            calls.push((punch(0, 3 << 20), no(errno)));
            calls.extend([0, mib, 2 * mib].map(|at| (write(at), mib as i64)));
            assert!(script(false, 3 << 20, &calls).0.result.is_ok());
        }
    }

    #[test]
    fn copying_refused_at_once_is_no_shortcut_and_remembered() {
        for errno in [libc::EXDEV, libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL] {
            let (end, ways) = script(false, 4096, &[data_end(0, 4096), (copy(0, 4096), no(errno))]);
            assert!(is_no_shortcut(&end));
            assert_eq!(ways, Shortcuts { reflink: Some(BLOCK), ..Shortcuts::default() });
        }
    }

    /// Nothing may have changed when the answer is that there is no shortcut.
    #[test]
    fn copying_refused_later_is_done_by_hand() {
        let mib = 1 << 20;
        let len = 3 * mib;
        let refusal = no(libc::EOPNOTSUPP);
        let calls = [
            data_end(0, 2 * mib),
            (copy(0, 2 * mib), 4096),
            (copy(4096, 2 * mib - 4096), refusal),
            (read(4096), mib as i64),
            (write(4096), 4096),
            (write(8192), mib as i64 - 4096),
            (read(mib + 4096), mib as i64 - 4096),
            (write(mib + 4096), mib as i64 - 4096),
            data_end(2 * mib, 2 * mib),
            (hole_end(2 * mib), (FROM + 2 * mib + 512) as i64),
            (punch(2 * mib, 512), 0),
            data_end(2 * mib + 512, len),
            (read(2 * mib + 512), 0),
        ];
        let (end, ways, bytes) = script_of_bytes(false, len, &calls);
        assert!(matches!(end.result, Err(BackendError::Truncated)));
        assert_eq!(ways, Shortcuts { reflink: Some(BLOCK), ..Shortcuts::default() });
        let mib = mib as usize;
        assert_eq!(bytes, [mib, mib, mib - 4096, mib - 4096, mib - 4096, mib - 512]);
        // A hole punched is a change, too.
        let calls = [
            data_end(0, 0),
            (hole_end(0), (FROM + 512) as i64),
            (punch(0, 512), 0),
            data_end(512, 1024),
            (copy(512, 512), refusal),
            (read(512), 512),
            (write(512), 512),
        ];
        assert!(script(false, 1024, &calls).0.result.is_ok());
        // A write that moves nothing fails, and no more is written than was asked for, whatever the answer.
        let begin = [data_end(0, 1024), (copy(0, 1024), 512), (copy(512, 512), refusal), (read(512), 512)];
        let (end, _) = script(false, 1024, &[&begin[..], &[(write(512), 100), (write(612), 0)]].concat());
        assert!(matches!(end.result, Err(BackendError::Io(e)) if e.kind() == std::io::ErrorKind::WriteZero));
        let (end, _) = script(false, 1024, &[&begin[..], &[(write(512), 100), (write(612), 600)]].concat());
        assert!(end.result.is_ok());
        let zeroes = [data_end(0, 0), (hole_end(0), (FROM + 512) as i64), (punch(0, 512), no(libc::EINVAL))];
        let (end, _) = script(false, 512, &[&zeroes[..], &[(write(0), 0)]].concat());
        assert!(matches!(end.result, Err(BackendError::Io(e)) if e.kind() == std::io::ErrorKind::WriteZero));
    }

    #[test]
    fn other_errors_come_through() {
        for calls in [
            &[data_end(0, 4096), (copy(0, 4096), no(libc::EIO))][..],
            &[data_end(0, 0), (hole_end(0), (FROM + 4096) as i64), (punch(0, 4096), no(libc::EIO))],
            &[(data_end(0, 0).0, no(libc::EIO))],
        ] {
            let (end, ways) = script(false, 4096, calls);
            assert!(matches!(end.result, Err(BackendError::Io(e)) if e.raw_os_error() == Some(libc::EIO)));
            assert_eq!(ways, OK);
        }
        let (end, ways) = script(true, BLOCK, &[(clone(0, BLOCK), no(libc::EIO))]);
        assert!(matches!(end.result, Err(BackendError::Io(_))));
        assert_eq!(ways, OK);
    }
}
