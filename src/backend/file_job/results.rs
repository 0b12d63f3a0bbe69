//! What the result of a call means for its job.

use std::io;

use super::{FileJob, JobKind, MAX_AGAIN, Stage};
use crate::backend::BackendError;
use crate::backend::copy_steps::{CopySteps, Next};
use crate::backend::image_file::{Ability, ImageFile};
use crate::backend::shortcut::{self, is_no_way};

impl FileJob {
    pub(super) fn succeeded(&mut self, moved: u64) {
        match self.stage {
            Stage::Read if moved == 0 || self.ends_within_a_block(moved) => {
                self.fail(BackendError::Truncated);
            }
            Stage::Splice { .. } if moved == 0 => self.gather(),
            Stage::Gather if moved == 0 => self.fail(BackendError::Truncated),
            Stage::Gather => {
                if let Some(relay) = &mut self.relay
                    && relay.0.moved(moved)
                {
                    self.stage = relay.1;
                }
            }
            Stage::Write { .. } | Stage::WriteZeroes if moved == 0 || self.ends_within_a_block(moved) => {
                self.fail(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            Stage::Read | Stage::Write { .. } | Stage::WriteZeroes | Stage::Splice { .. } => {
                self.done += moved.min(self.len - self.done);
                if self.done == self.len {
                    self.transferred();
                }
            }
            Stage::PunchHole | Stage::ZeroRange => self.transferred(),
            Stage::Copy => self.copied(|copy, file| copy.succeeded(moved, file)),
            Stage::FindHole => self.probed(moved, Stage::FindExtent),
            Stage::FindExtent if moved > self.offset + self.done => self.probed(moved, Stage::FindHole),
            Stage::FindExtent => self.stage = Stage::FindEnd,
            Stage::FindEnd if moved < self.offset + self.len => self.fail(BackendError::Truncated),
            Stage::FindEnd => self.fail(BackendError::Deallocated),
            Stage::Uneven => {
                let uneven = self.uneven.as_mut().map(|uneven| uneven.succeeded(moved, self.buf.as_mut()));
                match uneven {
                    Some(Ok(false)) => {}
                    Some(Ok(true)) | None => self.transferred(),
                    Some(Err(error)) => self.fail(error),
                }
            }
            Stage::Sync => {
                if let Some(turn) = self.sync_turn.take() {
                    turn.made();
                }
                self.synced();
            }
            Stage::Done => {}
        }
    }

    /// All is allocated up to `end` in the file; `next` asks what comes there.
    fn probed(&mut self, end: u64, next: Stage) {
        self.done = end.saturating_sub(self.offset).clamp(self.done, self.len);
        self.stage = if self.done == self.len { Stage::Done } else { next };
    }

    /// A direct transfer does so only where the file ends, or the room on the disk.
    fn ends_within_a_block(&self, moved: u64) -> bool {
        self.file.alignment().is_some_and(|align| !moved.is_multiple_of(align.block))
    }

    /// A sync that covers this job has ended, its own or another's.
    pub(super) fn synced(&mut self) {
        match self.file.sync_error() {
            // Another's fdatasync was told of the loss; the kernel does not repeat it to ours.
            Some(errno) => self.fail(io::Error::from_raw_os_error(errno).into()),
            None => self.stage = Stage::Done,
        }
    }

    fn transferred(&mut self) {
        if let Some(errno) = self.dsync_errno {
            // The write had room after all: the refusal was of older data's writeback.
            self.file.sync_failed(errno);
            self.fail(io::Error::from_raw_os_error(errno).into());
        } else if self.sync_after {
            // Others need not wait for that.
            self.turn = None;
            self.sync = self.file.turns().next_sync();
            self.stage = Stage::Sync;
        } else {
            self.stage = Stage::Done;
        }
    }

    pub(super) fn failed(&mut self, errno: i32) {
        match (self.stage, errno) {
            (_, libc::EINTR | libc::EAGAIN) if self.again < MAX_AGAIN => self.again += 1,
            (Stage::Copy, _) => self.copied(|copy, file| copy.failed(errno, file)),
            (Stage::Splice { .. }, _) => {
                if is_no_way(errno)
                    && let Some(relay) = &self.relay
                {
                    self.file.refused(relay.0.source(), shortcut::Way::CopyRange, errno);
                }
                self.gather();
            }
            // The file ends before this.
            (Stage::FindHole, libc::ENXIO) => self.fail(BackendError::Truncated),
            // A file system that knows no holes: all counts as allocated.
            (Stage::FindHole, libc::EINVAL | libc::EOPNOTSUPP) => self.stage = Stage::Done,
            // Without an extent map (tmpfs) a hole is a hole.
            (Stage::FindExtent, libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS | libc::EINVAL) => {
                self.stage = Stage::FindEnd;
            }
            (Stage::Read | Stage::Write { .. } | Stage::Uneven, libc::EFAULT) => {
                self.fail(BackendError::GuestMemory);
            }
            (Stage::Write { dsync: true }, libc::EOPNOTSUPP) => {
                self.file.remember_lack(Ability::DsyncWrite);
                self.sync_after = true;
                self.stage = Stage::Write { dsync: false };
            }
            // No room for this write, or for older data that the dsync wrote back? Only the latter costs
            // the image its word of honour, so the write is tried alone.
            (Stage::Write { dsync: true }, libc::ENOSPC | libc::EDQUOT) => {
                self.dsync_errno = Some(errno);
                self.stage = Stage::Write { dsync: false };
            }
            (Stage::Write { dsync: true }, libc::EIO) | (Stage::Sync, _) => {
                self.file.sync_failed(errno);
                if let Some(turn) = self.sync_turn.take() {
                    turn.made();
                }
                self.fail(io::Error::from_raw_os_error(errno).into());
            }
            (Stage::PunchHole | Stage::ZeroRange, libc::EOPNOTSUPP | libc::ENOSYS) => {
                let lack =
                    if self.stage == Stage::PunchHole { Ability::PunchHole } else { Ability::ZeroRange };
                self.file.remember_lack(lack);
                self.step_down();
            }
            // Only this range is refused (a block device wants whole blocks), so nothing is remembered.
            (Stage::PunchHole | Stage::ZeroRange, libc::EINVAL) => self.step_down(),
            _ => self.fail(io::Error::from_raw_os_error(errno).into()),
        }
    }

    /// The kernel's copy went no further.
    fn gather(&mut self) {
        self.done = 0;
        self.stage = Stage::Gather;
    }

    fn copied(&mut self, step: impl FnOnce(&mut CopySteps, &ImageFile) -> Next) {
        match self.copy.as_mut().map(|copy| step(copy, &self.file)) {
            Some(Next::More) => {}
            Some(Next::Done) | None => self.transferred(),
            Some(Next::Failed(error)) => self.fail(error),
        }
    }

    /// The next best way to the same end.
    fn step_down(&mut self) {
        self.stage = match (self.kind, self.stage) {
            // Deallocation is a hint.
            (JobKind::Discard, _) => Stage::Done,
            (_, Stage::PunchHole) if self.file.can(Ability::ZeroRange) => Stage::ZeroRange,
            _ if self.uneven.is_some() => Stage::Uneven,
            _ => Stage::WriteZeroes,
        };
    }

    pub(super) fn fail(&mut self, error: BackendError) {
        self.result = Err(match &self.relay {
            Some(relay) if self.stage == Stage::Gather => {
                BackendError::Source { at: relay.0.filled(), error: Box::new(error) }
            }
            _ => error,
        });
        self.stage = Stage::Done;
    }
}
