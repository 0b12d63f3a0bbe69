//! A file operation as a sequence of system calls: what to call next, and what its result means.
//!
//! Makes no call itself: the engines do. Short transfers go on where they ended, EINTR and EAGAIN are tried
//! again, an ability the file lacks is replaced by the next best one.
#![expect(unsafe_code, reason = "a tap is shown what iovecs point at")]

mod call;
mod iovecs;
mod results;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use libc::iovec;

pub use self::call::{Call, JobKind};
pub(super) use self::iovecs::Iovecs;
use super::copy_steps::CopySteps;
use super::engine::Waker;
use super::image_file::{Ability, ImageFile, ImageId, Tap};
use super::relay::Relay;
use super::turns::{Answer, Sync, SyncTurn, Turn, Wish};
use super::uneven::{Target, Uneven, Way};
use super::{BackendError, Completion, IoBuf, Op, Tag};

/// A file that answers EAGAIN or EINTR this often in a row is not going to change its mind.
const MAX_AGAIN: u32 = 1000;

/// The call a job makes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Read,
    Write {
        dsync: bool,
    },
    PunchHole,
    ZeroRange,
    WriteZeroes,
    /// What the job's Uneven says.
    Uneven,
    /// What the job's CopySteps say.
    Copy,
    /// Of a probe: where is the next hole?
    FindHole,
    /// It begins at `done`. Or are these blocks that were never filled with data?
    FindExtent,
    /// It is a hole, unless the file ends before the range does.
    FindEnd,
    /// A relay's copy by the kernel, from this byte of the source on. Whatever is wrong with it, the next two tell.
    Splice {
        from: u64,
    },
    /// The reads of a relay; its write follows.
    Gather,
    Sync,
    Done,
}

#[derive(Debug)]
struct Issued {
    call: Call,
    /// A call on the source of a copy or a relay alone.
    of_source: bool,
    ticket: u64,
}

/// A file operation on its way: owner of its buffer, state machine of its system calls.
///
/// Engines loop: [`FileJob::next_call`], make the call with [`FileJob::fd`] and [`FileJob::iovecs`], tell
/// [`FileJob::complete`]; when there is no next call, [`FileJob::finish`]. Between `next_call` and
/// `complete` the job must not move: the iovecs may lie in it.
#[derive(Debug)]
pub struct FileJob {
    file: Arc<ImageFile>,
    kind: JobKind,
    stage: Stage,
    /// Of the whole operation.
    offset: u64,
    len: u64,
    /// Bytes moved so far.
    done: u64,
    /// An fdatasync follows the last transfer.
    sync_after: bool,
    /// A dsync write met ENOSPC: whose it was shows when the write alone is tried.
    dsync_errno: Option<i32>,
    again: u32,
    buf: Option<IoBuf>,
    /// Of a copy, while it lasts.
    copy: Option<Box<CopySteps>>,
    /// The reads of a relay, and how the write begins that follows them.
    relay: Option<Box<(Relay, Stage)>>,
    /// Of a transfer that the kernel does not take as it is, while it lasts.
    uneven: Option<Box<Uneven>>,
    /// What has to be had before the first call, and what is had.
    wish: Option<Wish>,
    turn: Option<Turn>,
    /// Number of the sync that does, from [`Stage::Sync`] on; and the right to make it.
    sync: u64,
    sync_turn: Option<SyncTurn>,
    waker: Option<Waker>,
    /// Of the last [`Call::Wait`].
    epoch: u64,
    iovecs: Iovecs,
    issued: Option<Issued>,
    result: Result<(), BackendError>,
}

impl FileJob {
    /// A job for an operation whose range was checked. May need no call at all ([`FileJob::is_done`]).
    pub(super) fn new(file: Arc<ImageFile>, op: Op) -> Self {
        let (offset, len) = op.range();
        let kind = JobKind::of(&op);
        let fua = match &op {
            Op::Write { fua, .. } | Op::WriteZeroes { fua, .. } | Op::Relay { fua, .. } => *fua,
            _ => false,
        };
        let cache = file.cache();
        let changes = op.is_write() && len > 0;
        let fua = (fua || (cache.is_write_through() && changes)) && !cache.is_unsafe();
        let uneven = uneven(&file, &op, offset, len);
        let dsync = fua && file.can(Ability::DsyncWrite);
        let mut stage = match &op {
            Op::Flush if cache.is_unsafe() => Stage::Done,
            Op::Flush => Stage::Sync,
            _ if len == 0 => Stage::Done,
            Op::Read { .. } => Stage::Read,
            Op::Write { .. } | Op::Relay { .. } => Stage::Write { dsync },
            Op::WriteZeroes { unmap: true, .. } if file.can(Ability::PunchHole) => Stage::PunchHole,
            Op::WriteZeroes { .. } if file.can(Ability::ZeroRange) => Stage::ZeroRange,
            Op::WriteZeroes { .. } => Stage::WriteZeroes,
            Op::Discard { .. } if file.can(Ability::PunchHole) => Stage::PunchHole,
            Op::Probe { .. } => Stage::FindHole,
            // A copy is made by `FileJob::copy`.
            Op::Discard { .. } | Op::CopyFrom { .. } | Op::MoveFrom { .. } => Stage::Done,
        };
        let bounces = uneven.is_some();
        if bounces && matches!(stage, Stage::Read | Stage::Write { .. } | Stage::WriteZeroes) {
            stage = Stage::Uneven;
        }
        let claim = if stage == Stage::Done { None } else { file.claim(offset, len, changes, bounces) };
        let sync = if kind == JobKind::Flush { file.turns().next_sync() } else { 0 };
        let mut job = FileJob {
            uneven,
            wish: claim.map(Wish::from),
            turn: None,
            sync,
            sync_turn: None,
            waker: None,
            epoch: 0,
            file,
            kind,
            stage,
            offset,
            len,
            done: 0,
            sync_after: fua && stage != (Stage::Write { dsync: true }) && stage != Stage::Done,
            dsync_errno: None,
            again: 0,
            buf: op.into_buf(),
            copy: None,
            relay: None,
            iovecs: Iovecs::NONE,
            issued: None,
            result: Ok(()),
        };
        if (fua || (kind == JobKind::Flush && stage != Stage::Done))
            && let Some(errno) = job.file.sync_error()
        {
            job.fail(io::Error::from_raw_os_error(errno).into());
        }
        job
    }

    /// A job for a copy to `offset` of `file`.
    pub(super) fn copy(file: Arc<ImageFile>, offset: u64, len: u64, steps: CopySteps) -> Self {
        let write_through = file.cache().is_write_through();
        FileJob {
            uneven: None,
            wish: if len == 0 { None } else { file.claim(offset, len, true, false).map(Wish::from) },
            turn: None,
            sync: 0,
            sync_turn: None,
            waker: None,
            epoch: 0,
            file,
            kind: JobKind::Copy,
            stage: if len == 0 { Stage::Done } else { Stage::Copy },
            offset,
            len,
            done: 0,
            sync_after: write_through,
            dsync_errno: None,
            again: 0,
            buf: None,
            copy: Some(Box::new(steps)),
            relay: None,
            iovecs: Iovecs::NONE,
            issued: None,
            result: Ok(()),
        }
    }

    /// A job that makes the reads of `relay` and then the write that `op`, an [`Op::Relay`], ends with; or one call in
    /// the place of both.
    pub(super) fn relay(file: Arc<ImageFile>, op: Op, relay: Relay) -> Self {
        let offload = matches!(op, Op::Relay { offload: true, .. });
        let mut job = Self::new(file, op);
        if !job.is_done() {
            let offload = offload && !job.sync_after && job.stage == (Stage::Write { dsync: false });
            let from = if !offload { None } else { relay.copied_by_kernel(&job.file, job.offset) };
            job.relay = Some(Box::new((relay, job.stage)));
            job.stage = from.map_or(Stage::Gather, |from| Stage::Splice { from });
        }
        job
    }

    /// Whom to wake when the job waits and need not any more. Costs nothing for those that never wait.
    pub(super) fn waked_by(mut self, waker: impl FnOnce() -> Waker) -> Self {
        if self.wish.is_some()
            || self.sync_after
            || !matches!(self.stage, Stage::Read | Stage::Write { dsync: false })
        {
            self.waker = Some(waker());
        }
        self
    }

    /// Sleeps after a [`Call::Wait`] until it may be worth asking again, at most for a moment.
    pub(super) fn sleep(&self) {
        self.file.turns().sleep(self.epoch);
    }

    /// What the job is for.
    pub fn kind(&self) -> JobKind {
        self.kind
    }

    /// Whose job it is.
    pub(super) fn image(&self) -> ImageId {
        self.file.id()
    }

    /// First byte and number of bytes of the operation.
    pub fn range(&self) -> (u64, u64) {
        (self.offset, self.len)
    }

    /// No call is left to make.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// The file of the call in progress.
    pub fn fd(&self) -> RawFd {
        match self.issued {
            Some(Issued { of_source: true, .. }) => self.source_fd(),
            _ => self.file.fd(),
        }
    }

    /// The file a copy or a relay comes from; of no use to other jobs, which give their own.
    pub fn source_fd(&self) -> RawFd {
        match (&self.copy, &self.relay) {
            (Some(copy), _) => copy.source().fd(),
            (None, Some(relay)) => relay.0.source().fd(),
            (None, None) => self.file.fd(),
        }
    }

    /// Who is told of the call: of those on a copy's source alone nobody.
    fn tap(&self, of_source: bool) -> Option<&dyn Tap> {
        match &self.relay {
            _ if !of_source => self.file.tap(),
            Some(relay) => relay.0.source().tap(),
            None => None,
        }
    }

    /// The buffers of the call in progress; valid from [`FileJob::next_call`] to [`FileJob::complete`].
    pub fn iovecs(&self) -> &[iovec] {
        let guest = match &self.buf {
            Some(IoBuf::Guest(buf)) => Some(buf.iovecs()),
            _ => None,
        };
        self.iovecs.get(guest)
    }

    /// The next call, which the engine must now make; `None` when the job is done.
    pub fn next_call(&mut self) -> Option<Call> {
        loop {
            match self.ready() {
                Ok(true) => {}
                Ok(false) => return Some(Call::Wait),
                Err(()) => continue,
            }
            return self.make_call();
        }
    }

    /// Takes what the next call needs of others. An error: it needs no call after all.
    fn ready(&mut self) -> Result<bool, ()> {
        let turns = self.file.turns();
        let epoch = if self.stage == Stage::Done {
            return Ok(true);
        } else if let Some(wish) = &mut self.wish {
            match turns.take(wish, self.waker.as_ref()) {
                Answer::Granted(turn) => {
                    self.turn = Some(turn);
                    self.wish = None;
                    return Err(());
                }
                Answer::Wait(epoch) => epoch,
            }
        } else if self.stage == Stage::Sync && self.sync_turn.is_none() {
            match turns.sync(self.sync, self.waker.as_ref()) {
                Answer::Granted(Sync::Make(turn)) => {
                    self.sync_turn = Some(turn);
                    return Ok(true);
                }
                Answer::Granted(Sync::Covered) => {
                    self.synced();
                    return Err(());
                }
                Answer::Wait(epoch) => epoch,
            }
        } else {
            return Ok(true);
        };
        self.epoch = epoch;
        Ok(false)
    }

    fn make_call(&mut self) -> Option<Call> {
        let at = self.offset + self.done;
        let left = self.len - self.done;
        self.iovecs.clear();
        let mut of_source = false;
        let call = match self.stage {
            Stage::Done => return None,
            Stage::Copy => {
                let copy = self.copy.as_mut()?;
                of_source = copy.on_source_alone();
                copy.next_call(&mut self.iovecs)
            }
            Stage::Splice { from } => Call::CopyRange { from: from + self.done, offset: at, len: left },
            Stage::Gather => {
                of_source = true;
                let buf = self.buf.as_mut().and_then(IoBuf::ours_mut)?;
                self.relay.as_ref()?.0.next_call(buf, &mut self.iovecs)
            }
            Stage::Uneven => match self.uneven.as_mut()?.next_call(self.buf.as_ref()) {
                Ok((call, target)) => {
                    self.aim_at(target);
                    call
                }
                Err(error) => {
                    self.fail(error);
                    return None;
                }
            },
            Stage::Read => {
                self.aim_at_buffer();
                Call::Preadv { offset: at }
            }
            Stage::Write { dsync } => {
                self.aim_at_buffer();
                Call::Pwritev { offset: at, dsync }
            }
            Stage::WriteZeroes => {
                self.iovecs.aim_at_zeroes(left);
                Call::Pwritev { offset: at, dsync: false }
            }
            Stage::PunchHole => Call::Fallocate {
                mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset: at,
                len: left,
            },
            Stage::ZeroRange => Call::Fallocate {
                // KEEP_SIZE: a file truncated under us is not grown by zeroing what it lost.
                mode: libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                offset: at,
                len: left,
            },
            Stage::Sync => Call::Fdatasync,
            Stage::FindHole => Call::Seek { whence: libc::SEEK_HOLE, offset: at },
            Stage::FindExtent => Call::ExtentEnd { offset: at, len: left },
            Stage::FindEnd => Call::Seek { whence: libc::SEEK_END, offset: 0 },
        };
        if self.file.alignment().is_some()
            && let Some(IoBuf::Guest(buf)) = &mut self.buf
            && self.iovecs.is_guest()
        {
            buf.hold(true);
        }
        let ticket = self.tap(of_source).map_or(0, |tap| tap.issued(&call, &self.outgoing(&call)));
        self.issued = Some(Issued { call, of_source, ticket });
        Some(call)
    }

    /// The result of the call in progress as the kernel gives it: bytes, an offset or 0, or a negative errno.
    pub fn complete(&mut self, result: impl Into<i64>) {
        let result = result.into();
        let Some(Issued { call, of_source, ticket }) = self.issued.take() else {
            return;
        };
        if let Some(IoBuf::Guest(buf)) = &mut self.buf {
            buf.hold(false);
        }
        let errno = i32::try_from(result.wrapping_neg()).unwrap_or(libc::EIO);
        let result = u64::try_from(result).map_err(|_| errno);
        if let Some(tap) = self.tap(of_source) {
            // What a tap is told of moves less than 2 GiB in a call.
            tap.completed(ticket, &call, result.map(|moved| u32::try_from(moved).unwrap_or(u32::MAX)));
        }
        match result {
            Ok(moved) => {
                self.again = 0;
                self.succeeded(moved);
            }
            Err(errno) => self.failed(errno),
        }
    }

    /// Tells the log of a failure of the host.
    #[cold]
    fn report(&self, error: &BackendError) {
        match (error, &self.relay, &self.copy) {
            (BackendError::Source { at, error }, Some(relay), _) => {
                relay.0.source().failed(JobKind::Read, relay.0.place(), self.len - at, error);
            }
            // Of a copy only the source can be too short.
            (BackendError::Truncated, _, Some(copy)) => {
                copy.source().failed(JobKind::Read, copy.from(), self.len, error);
            }
            _ => self.file.failed(self.kind, self.offset, self.len, error),
        }
    }

    /// Ends the job; the buffer goes back to the submitter.
    pub fn finish(mut self, tag: Tag) -> Completion {
        // Not before the end is known, but before it is told.
        self.wish = None;
        self.turn = None;
        self.sync_turn = None;
        if let Err(error) = &self.result {
            self.report(error);
        }
        let lost = self.buf.as_ref().map_or(Ok(()), IoBuf::check);
        Completion { tag, result: self.result.and(lost), buf: self.buf }
    }

    /// Points the iovecs at what a part of an uneven transfer moves.
    fn aim_at(&mut self, target: Target) {
        let done = self.uneven.as_ref().map_or(0, |uneven| uneven.done());
        match (target, &mut self.buf) {
            (Target::Buffer(base, len), _) => self.iovecs.aim_at(base, len),
            (Target::Own(len), None) => self.iovecs.aim_at_zeroes(len as u64),
            (Target::Own(len), Some(IoBuf::Guest(buf))) => {
                self.iovecs.aim_at_part(buf.iovecs(), done as usize, len);
            }
            (Target::Own(len), Some(buf)) => {
                let (from, to) = (done as usize, done as usize + len);
                let part = buf.ours_mut().and_then(|buf| buf.get_mut(from..to)).unwrap_or_default();
                self.iovecs.aim_at(part.as_mut_ptr(), part.len());
            }
        }
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

    /// A copy of what a write is about to hand over, or of what is about to be copied, for a tap.
    fn outgoing(&self, call: &Call) -> Vec<u8> {
        if let Call::CloneRange { from, len, .. } | Call::CopyRange { from, len, .. } = call {
            let source = self.copy.as_ref().map(|copy| copy.source());
            let source = source.or(self.relay.as_ref().map(|relay| relay.0.source()));
            return source.map_or_else(Vec::new, |source| source.content(*from, *len));
        }
        let mut data = Vec::new();
        if let Call::Pwritev { .. } = call {
            for iov in self.iovecs() {
                // SAFETY: the iovecs of a write lie in the job's buffers or the static zeroes, all alive.
                // A tap is a test's: there nobody writes the memory meanwhile.
                data.extend_from_slice(unsafe {
                    std::slice::from_raw_parts(iov.iov_base.cast::<u8>(), iov.iov_len)
                });
            }
        }
        data
    }

    /// Takes the durability out of a job, for the test that shows the durability check can fail.
    #[cfg(test)]
    pub(super) fn without_sync(mut self) -> Self {
        self.sync_after = false;
        match &mut self.stage {
            Stage::Write { dsync } => *dsync = false,
            stage @ Stage::Sync => *stage = Stage::Done,
            _ => {}
        }
        self
    }
}

/// What a transfer that goes past the page cache needs, where the kernel would not take it as it is.
fn uneven(file: &ImageFile, op: &Op, offset: u64, len: u64) -> Option<Box<Uneven>> {
    let align = file.alignment().filter(|_| len > 0)?;
    let way = match op {
        Op::Read { .. } => Way::Read,
        Op::Write { .. } => Way::Write,
        Op::WriteZeroes { .. } => Way::Zeroes,
        _ => return None,
    };
    let fits_memory = match op {
        Op::Read { buf, .. } | Op::Write { buf, .. } => match (buf, buf.ours()) {
            (IoBuf::Guest(buf), _) => align.fits_memory(buf.iovecs()),
            (_, bytes) => bytes.is_some_and(|bytes| bytes.as_ptr().addr().is_multiple_of(align.memory)),
        },
        _ => true,
    };
    let even = align.fits(offset, len) && fits_memory;
    (!even).then(|| Box::new(Uneven::new(align, way, offset, len)))
}
