//! A copy from one file to another as a sequence of system calls, like `file_job`, of which it is a part.
//!
//! A way that the kernel refuses before anything has changed is no shortcut; one refused later is finished by
//! the next: sharing by copying, copying by reading and writing. So "nothing has changed" stays true.

use std::sync::Arc;

use super::BackendError;
use super::file_job::{Call, Iovecs};
use super::image_file::{Ability, ImageFile};
use super::shortcut::Way;

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
                self.moved((self.len - self.done).min(MAX_CALL), Stage::Clone)
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
            (
                Stage::CopyRange,
                libc::EOPNOTSUPP | libc::EXDEV | libc::ENOSYS | libc::EINVAL | libc::ETXTBSY | libc::EPERM,
            ) => return self.refused(errno, Way::CopyRange, target),
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

    /// `count` bytes are in place; `same` goes on with the data or hole in hand, if there is any left.
    fn moved(&mut self, count: u64, same: Stage) {
        let end = if same == Stage::Clone { self.len } else { self.piece };
        self.done = (self.done + count).min(end);
        self.stage = if self.done < end { same } else { Stage::DataEnd };
    }
}
