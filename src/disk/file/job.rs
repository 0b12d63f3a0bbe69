//! A transfer of a file as a sequence of calls that a ring has opcodes for: what to call next, and what its result means.
//!
//! Makes no call itself. Short transfers go on where they ended, EINTR and EAGAIN are tried again, an ability the file
//! lacks is replaced by the next best one. What may block otherwise is not for this, but for a thread.
#![expect(unsafe_code, reason = "a system call on iovecs")]

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use libc::iovec;

use super::image::{Ability, ImageFile, MAX_AGAIN};
use super::sync::SyncTicket;
use crate::disk::sys::iovecs::Iovecs;
use crate::disk::sys::{Call, call};
use crate::disk::{DiskError, IoBuf};

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Read,
    Write,
    WriteZeroes,
    Discard,
}

/// The call a job makes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Read,
    Write { dsync: bool },
    PunchHole,
    ZeroRange,
    WriteZeroes,
    Done,
}

/// A transfer on its way: owner of its buffer, state machine of its system calls.
///
/// Whoever runs it loops: [`FileJob::next_call`], make the call with [`FileJob::fd`] and [`FileJob::iovecs`], tell
/// [`FileJob::complete`]; when there is no next call, [`FileJob::finish`]. Between `next_call` and
/// `complete` the job must not move: the iovecs may lie in it.
#[derive(Debug)]
pub(in crate::disk) struct FileJob {
    file: Arc<ImageFile>,
    purpose: Purpose,
    stage: Stage,
    /// Of the whole operation.
    offset: u64,
    len: u64,
    /// Bytes moved so far.
    done: u64,
    /// An fdatasync is to follow.
    sync_after: bool,
    /// A dsync write met ENOSPC: whose it was shows when the write alone is tried.
    dsync_errno: Option<i32>,
    again: u32,
    buf: Option<IoBuf>,
    iovecs: Iovecs,
    /// The call in progress, and what the tap called it.
    issued: Option<(Call, u64)>,
    result: Result<(), DiskError>,
}

/// What a job leaves.
#[derive(Debug)]
pub(in crate::disk) struct Finished {
    pub(in crate::disk) result: Result<(), DiskError>,
    pub(in crate::disk) buf: Option<IoBuf>,
    /// The operation has succeeded when this has been synced too.
    pub(in crate::disk) sync: Option<(Arc<ImageFile>, SyncTicket)>,
}

impl FileJob {
    /// Reads from `offset`. Its range was checked, as that of all jobs, and the kernel takes it as it is.
    pub(in crate::disk) fn read(file: Arc<ImageFile>, offset: u64, buf: IoBuf) -> Self {
        let len = buf.len() as u64;
        Self::new(file, Purpose::Read, Stage::Read, offset, len, Some(buf))
    }

    /// Writes at `offset`; durable if asked for.
    pub(super) fn write(file: Arc<ImageFile>, offset: u64, buf: IoBuf, fua: bool) -> Self {
        let fua = file.is_durable(fua);
        let dsync = fua && file.can(Ability::DsyncWrite);
        let len = buf.len() as u64;
        let job = Self::new(file, Purpose::Write, Stage::Write { dsync }, offset, len, Some(buf));
        job.durable(fua, !dsync)
    }

    /// Makes a range zero; with `unmap` its blocks may go.
    pub(super) fn zero(file: Arc<ImageFile>, offset: u64, len: u64, unmap: bool, fua: bool) -> Self {
        let fua = file.is_durable(fua);
        let stage = match () {
            () if unmap && file.can(Ability::PunchHole) => Stage::PunchHole,
            () if file.can(Ability::ZeroRange) => Stage::ZeroRange,
            () => Stage::WriteZeroes,
        };
        Self::new(file, Purpose::WriteZeroes, stage, offset, len, None).durable(fua, true)
    }

    /// Gives a range back, where the file can.
    pub(super) fn discard(file: Arc<ImageFile>, offset: u64, len: u64) -> Self {
        let fua = file.is_durable(false);
        let stage = if file.can(Ability::PunchHole) { Stage::PunchHole } else { Stage::Done };
        Self::new(file, Purpose::Discard, stage, offset, len, None).durable(fua, true)
    }

    fn new(
        file: Arc<ImageFile>,
        purpose: Purpose,
        stage: Stage,
        offset: u64,
        len: u64,
        buf: Option<IoBuf>,
    ) -> Self {
        FileJob {
            file,
            purpose,
            stage: if len == 0 { Stage::Done } else { stage },
            offset,
            len,
            done: 0,
            sync_after: false,
            dsync_errno: None,
            again: 0,
            buf,
            iovecs: Iovecs::NONE,
            issued: None,
            result: Ok(()),
        }
    }

    /// With `fua` it fails at once where syncs have; `sync`: its calls do not see to durability themselves.
    fn durable(mut self, fua: bool, sync: bool) -> Self {
        if fua && self.stage != Stage::Done {
            self.sync_after = sync;
            if let Err(error) = self.file.syncs().check() {
                self.fail(error);
            }
        }
        self
    }

    pub(in crate::disk) fn fd(&self) -> RawFd {
        self.file.fd()
    }

    /// The buffers of the call in progress; valid from [`FileJob::next_call`] to [`FileJob::complete`].
    pub(in crate::disk) fn iovecs(&self) -> &[iovec] {
        let guest = match &self.buf {
            Some(IoBuf::Guest(buf)) => Some(buf.iovecs()),
            _ => None,
        };
        self.iovecs.get(guest)
    }

    /// The next call, which must now be made; `None` when the job is done.
    pub(in crate::disk) fn next_call(&mut self) -> Option<Call> {
        loop {
            let call = self.prepare()?;
            let ticket = self.file.issued(&call, &self.file, self.iovecs());
            self.issued = Some((call, ticket));
            match self.file.answer(&call, self.iovecs()) {
                None => return Some(call),
                Some(result) => self.complete(result),
            }
        }
    }

    fn prepare(&mut self) -> Option<Call> {
        let (offset, left) = (self.offset + self.done, self.len - self.done);
        self.iovecs.clear();
        // KEEP_SIZE: a file truncated under us is not grown by zeroing what it lost.
        let fallocate = |mode| Call::Fallocate { mode: mode | libc::FALLOC_FL_KEEP_SIZE, offset, len: left };
        let call = match self.stage {
            Stage::Done => return None,
            Stage::Read => {
                self.aim_at_buffer();
                Call::Preadv { offset }
            }
            Stage::Write { dsync } => {
                self.aim_at_buffer();
                Call::Pwritev { offset, dsync }
            }
            Stage::WriteZeroes => {
                self.iovecs.aim_at_zeroes(left);
                Call::Pwritev { offset, dsync: false }
            }
            Stage::PunchHole => fallocate(libc::FALLOC_FL_PUNCH_HOLE),
            Stage::ZeroRange => fallocate(libc::FALLOC_FL_ZERO_RANGE),
        };
        if self.file.alignment().is_some()
            && let Some(IoBuf::Guest(buf)) = &mut self.buf
        {
            buf.hold(true);
        }
        Some(call)
    }

    /// Points the iovecs at what is left of the buffer, within the kernel's limits.
    fn aim_at_buffer(&mut self) {
        // `done` is at most the length of a buffer in memory.
        let skip = self.done as usize;
        match &mut self.buf {
            Some(IoBuf::Guest(buf)) => {
                let all = buf.iovecs();
                if skip > 0 || !self.iovecs.aim_at_guest(all, self.len) {
                    self.iovecs.aim_at_part(all, skip, usize::MAX);
                }
            }
            Some(buf) => {
                let left = buf.ours_mut().and_then(|buf| buf.get_mut(skip..)).unwrap_or_default();
                self.iovecs.aim_at(left.as_mut_ptr(), left.len());
            }
            None => {}
        }
    }

    /// The result of the call in progress as the kernel gives it: bytes or 0, or a negative errno.
    pub(in crate::disk) fn complete(&mut self, result: i64) {
        let Some((call, ticket)) = self.issued.take() else { return };
        if let Some(IoBuf::Guest(buf)) = &mut self.buf {
            buf.hold(false);
        }
        match self.file.completed(ticket, &call, result) {
            Ok(moved) => {
                self.again = 0;
                self.succeeded(moved);
            }
            Err(errno) => self.failed(errno),
        }
    }

    fn succeeded(&mut self, moved: u64) {
        match self.stage {
            Stage::Read if moved == 0 || self.file.ends_within_a_block(moved) => {
                self.fail(DiskError::Truncated)
            }
            Stage::Write { .. } | Stage::WriteZeroes
                if moved == 0 || self.file.ends_within_a_block(moved) =>
            {
                self.fail(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            Stage::Read | Stage::Write { .. } | Stage::WriteZeroes => {
                self.done += moved.min(self.len - self.done);
                if self.done == self.len {
                    self.transferred();
                }
            }
            Stage::PunchHole | Stage::ZeroRange => self.stage = Stage::Done,
            Stage::Done => {}
        }
    }

    fn transferred(&mut self) {
        match self.dsync_errno {
            // The write had room after all: the refusal was of older data's writeback.
            Some(errno) => {
                self.file.syncs().failed(errno);
                self.fail(DiskError::of_errno(errno));
            }
            None => self.stage = Stage::Done,
        }
    }

    fn failed(&mut self, errno: i32) {
        match (self.stage, errno) {
            (_, libc::EINTR | libc::EAGAIN) if self.again < MAX_AGAIN => self.again += 1,
            (Stage::Read | Stage::Write { .. }, libc::EFAULT) => self.fail(DiskError::GuestMemory),
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
            (Stage::Write { dsync: true }, libc::EIO) => {
                self.file.syncs().failed(errno);
                self.fail(DiskError::of_errno(errno));
            }
            (Stage::PunchHole | Stage::ZeroRange, libc::EOPNOTSUPP | libc::ENOSYS) => {
                let punched = self.stage == Stage::PunchHole;
                self.file.remember_lack(if punched { Ability::PunchHole } else { Ability::ZeroRange });
                self.step_down();
            }
            // Only this range is refused (a block device wants whole blocks), so nothing is remembered.
            (Stage::PunchHole | Stage::ZeroRange, libc::EINVAL) => self.step_down(),
            _ => self.fail(DiskError::of_errno(errno)),
        }
    }

    /// The next best way to the same end.
    fn step_down(&mut self) {
        self.stage = match (self.purpose, self.stage) {
            // Deallocation is a hint.
            (Purpose::Discard, _) => Stage::Done,
            (_, Stage::PunchHole) if self.file.can(Ability::ZeroRange) => Stage::ZeroRange,
            _ => Stage::WriteZeroes,
        };
    }

    fn fail(&mut self, error: DiskError) {
        self.result = Err(error);
        self.stage = Stage::Done;
    }

    /// Ends the job; the buffer goes back to the submitter.
    pub(in crate::disk) fn finish(self) -> Finished {
        if let Err(error) = &self.result {
            let what = match self.purpose {
                Purpose::Read => "read",
                Purpose::Write => "write",
                Purpose::WriteZeroes => "zeroing",
                Purpose::Discard => "discard",
            };
            self.file.failed(what, self.offset, self.len, error);
        }
        let lost = self.buf.as_ref().map_or(Ok(()), IoBuf::check);
        let result = self.result.and(lost);
        let sync = self.sync_after && result.is_ok();
        let sync = sync.then(|| (Arc::clone(&self.file), self.file.syncs().ticket()));
        Finished { result, buf: self.buf, sync }
    }

    /// Makes the call in progress on this thread; its result as a ring gives it.
    pub(in crate::disk) fn make(&self, call: Call) -> i64 {
        // SAFETY: the job owns the memory of its iovecs and stays where it is during the call.
        unsafe { call::make(call, self.fd(), self.fd(), self.iovecs()) }
    }

    /// Makes all its calls, on a thread that may block; fewer when it is to stop, for then nobody will hear of its end.
    pub(in crate::disk) fn run(mut self, is_stopped: impl Fn() -> bool) -> Finished {
        while !is_stopped()
            && let Some(call) = self.next_call()
        {
            let result = self.make(call);
            self.complete(result);
        }
        self.finish()
    }
}

impl Finished {
    /// Makes the sync too that it asks for.
    pub(in crate::disk) fn synced(self) -> (Result<(), DiskError>, Option<IoBuf>) {
        let Finished { result, buf, sync } = self;
        (result.and_then(|()| sync.map_or(Ok(()), |(file, ticket)| file.sync(ticket))), buf)
    }
}
