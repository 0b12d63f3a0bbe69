//! A file operation as a sequence of system calls: what to call next, and what its result means.
//!
//! Makes no call itself: the engines do. Short transfers go on where they ended, EINTR and EAGAIN are tried
//! again, an ability the file lacks is replaced by the next best one.
#![expect(unsafe_code, reason = "iovecs are raw pointers; the kernel is given them")]

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use libc::iovec;

use super::copy_steps::{CopySteps, Next};
use super::engine::Waker;
use super::image_file::{Ability, ImageFile, Tap};
use super::relay::Relay;
use super::shortcut::{self, is_no_way};
use super::turns::{Answer, Claim, Sync, SyncTurn, Turn};
use super::uneven::{Target, Uneven, Way};
use super::{BackendError, Completion, IoBuf, Op, Tag};

/// The kernel moves no more than this in one call (MAX_RW_COUNT), and says so only by a short transfer.
const MAX_RW: usize = 0x7fff_f000;
/// More iovecs than this are EINVAL.
const MAX_IOV: usize = libc::UIO_MAXIOV as usize;
/// A file that answers EAGAIN this often in a row is not going to change its mind.
const MAX_AGAIN: u32 = 1000;

const ZERO_CHUNK: usize = 64 << 10;
/// Iovecs over the one buffer of zeroes in a call: 1 MiB.
const ZERO_IOVS: usize = 16;
#[repr(align(4096))]
struct Zeroes([u8; ZERO_CHUNK]);
static ZEROES: Zeroes = Zeroes([0; ZERO_CHUNK]);

/// One system call of a job; its buffers are [`FileJob::iovecs`], its file [`FileJob::fd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// preadv at a byte offset.
    Preadv {
        /// Byte offset in the file.
        offset: u64,
    },
    /// pwritev2 at a byte offset.
    Pwritev {
        /// Byte offset in the file.
        offset: u64,
        /// With RWF_DSYNC.
        dsync: bool,
    },
    /// fdatasync of the whole file.
    Fdatasync,
    /// fallocate of a range.
    Fallocate {
        /// FALLOC_FL_* bits.
        mode: i32,
        /// Byte offset in the file.
        offset: u64,
        /// Bytes, never 0.
        len: u64,
    },
    /// lseek; on the source file of a copy, or the file of a probe.
    Seek {
        /// SEEK_DATA, SEEK_HOLE or SEEK_END.
        whence: i32,
        /// Byte offset in the file.
        offset: u64,
    },
    /// FIEMAP: where the extent ends that holds this byte; `offset` itself if there is none.
    ExtentEnd {
        /// Byte offset in the file.
        offset: u64,
        /// Bytes to look at, never 0.
        len: u64,
    },
    /// FICLONERANGE from [`FileJob::source_fd`].
    CloneRange {
        /// Byte offset in the source file.
        from: u64,
        /// Byte offset in the file.
        offset: u64,
        /// Bytes, never 0.
        len: u64,
    },
    /// copy_file_range from [`FileJob::source_fd`].
    CopyRange {
        /// Byte offset in the source file.
        from: u64,
        /// Byte offset in the file.
        offset: u64,
        /// Bytes, never 0; it may move less.
        len: u64,
    },
    /// No call: another operation on the image goes first. The waker of [`FileJob::waked_by`] tells when to ask for
    /// the next call again; or [`FileJob::sleep`] does, on a thread that may.
    Wait,
}

/// What a job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// [`Op::Read`]
    Read,
    /// [`Op::Write`]
    Write,
    /// [`Op::Flush`]
    Flush,
    /// [`Op::WriteZeroes`]
    WriteZeroes,
    /// [`Op::Discard`]
    Discard,
    /// [`Op::CopyFrom`]
    Copy,
    /// [`Op::Probe`]
    Probe,
    /// [`Op::Relay`]
    Relay,
}

impl JobKind {
    /// Made for a thread: of calls for which a ring has no opcode, or that it would hand to one anyway.
    pub(super) fn is_beside_a_ring(self) -> bool {
        matches!(self, JobKind::Copy | JobKind::Probe | JobKind::Relay)
    }
}

/// Tells open images apart as long as jobs of theirs live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ImageId(usize);

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

/// Which iovecs the current call uses.
#[derive(Clone, Copy, Debug)]
enum Window {
    None,
    /// All of the GuestBuf's own: nothing is built, nothing allocated.
    Guest,
    Single,
    Built,
}

#[derive(Debug)]
pub(super) struct Iovecs {
    window: Window,
    single: iovec,
    built: Vec<iovec>,
}

impl Iovecs {
    const NONE: Iovecs = Iovecs {
        window: Window::None,
        single: iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
        built: Vec::new(),
    };

    /// At `len` bytes of the job's own memory.
    pub(super) fn aim_at(&mut self, base: *mut u8, len: usize) {
        self.single = iovec { iov_base: base.cast(), iov_len: len.min(MAX_RW) };
        self.window = Window::Single;
    }

    /// At as many zeroes, or the 1 MiB of them that one call writes.
    pub(super) fn aim_at_zeroes(&mut self, left: u64) {
        self.built.clear();
        let mut left = usize::try_from(left).unwrap_or(usize::MAX);
        while left > 0 && self.built.len() < ZERO_IOVS {
            let take = left.min(ZERO_CHUNK);
            self.built.push(iovec { iov_base: (&raw const ZEROES.0).cast_mut().cast(), iov_len: take });
            left -= take;
        }
        self.window = Window::Built;
    }
}

// SAFETY: the pointers lead into the job's own buffers (which are Send) or the static zeroes; only the call in
// progress uses them.
unsafe impl Send for Iovecs {}

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
    claim: Option<Claim>,
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
        let (kind, fua) = match &op {
            Op::Read { .. } => (JobKind::Read, false),
            Op::Write { fua, .. } => (JobKind::Write, *fua),
            Op::Flush => (JobKind::Flush, false),
            Op::WriteZeroes { fua, .. } => (JobKind::WriteZeroes, *fua),
            Op::Discard { .. } => (JobKind::Discard, false),
            Op::CopyFrom { .. } | Op::MoveFrom { .. } => (JobKind::Copy, false),
            Op::Probe { .. } => (JobKind::Probe, false),
            Op::Relay { fua, .. } => (JobKind::Relay, *fua),
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
            claim,
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
            claim: if len == 0 { None } else { file.claim(offset, len, true, false) },
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
        if self.claim.is_some()
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
        ImageId(Arc::as_ptr(&self.file).addr())
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
        match self.iovecs.window {
            Window::None => &[],
            Window::Single => std::slice::from_ref(&self.iovecs.single),
            Window::Built => &self.iovecs.built,
            Window::Guest => match &self.buf {
                Some(IoBuf::Guest(buf)) => buf.iovecs(),
                _ => &[],
            },
        }
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
        } else if let Some(claim) = &self.claim {
            match turns.take(claim, self.waker.as_ref()) {
                Answer::Granted(turn) => {
                    self.turn = Some(turn);
                    self.claim = None;
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
        self.iovecs.window = Window::None;
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
            && matches!(self.iovecs.window, Window::Guest | Window::Built)
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

    /// Ends the job; the buffer goes back to the submitter.
    pub fn finish(mut self, tag: Tag) -> Completion {
        // Not before the end is known, but before it is told.
        self.turn = None;
        self.sync_turn = None;
        let lost = self.buf.as_ref().map_or(Ok(()), IoBuf::check);
        Completion { tag, result: self.result.and(lost), buf: self.buf }
    }

    /// Ends a job for which there is no thread; nothing has changed. What can be done in another way is.
    pub(super) fn refuse(self, tag: Tag, why: io::Error) -> Completion {
        let error = match self.kind {
            JobKind::Copy | JobKind::Relay => BackendError::NoShortcut,
            _ => why.into(),
        };
        Completion { tag, result: Err(error), buf: self.buf }
    }

    fn succeeded(&mut self, moved: u64) {
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
    fn synced(&mut self) {
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

    fn failed(&mut self, errno: i32) {
        match (self.stage, errno) {
            (_, libc::EINTR) => {}
            (_, libc::EAGAIN) if self.again < MAX_AGAIN => self.again += 1,
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

    fn fail(&mut self, error: BackendError) {
        self.result = Err(match &self.relay {
            Some(relay) if self.stage == Stage::Gather => {
                BackendError::Source { at: relay.0.filled(), error: Box::new(error) }
            }
            _ => error,
        });
        self.stage = Stage::Done;
    }

    /// Points the iovecs at what a part of an uneven transfer moves.
    fn aim_at(&mut self, target: Target) {
        let done = self.uneven.as_ref().map_or(0, |uneven| uneven.done());
        match (target, &mut self.buf) {
            (Target::Buffer(base, len), _) => self.iovecs.aim_at(base, len),
            (Target::Own(len), None) => self.iovecs.aim_at_zeroes(len as u64),
            (Target::Own(len), Some(IoBuf::Guest(buf))) => {
                window_of(buf.iovecs(), done as usize, len, &mut self.iovecs.built);
                self.iovecs.window = Window::Built;
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
                if skip == 0 && all.len() <= MAX_IOV && self.len <= MAX_RW as u64 {
                    self.iovecs.window = Window::Guest;
                } else {
                    window_of(all, skip, MAX_RW, &mut self.iovecs.built);
                    self.iovecs.window = Window::Built;
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

/// Fills `out` with the part of `all` from byte `skip` on that one call takes, at most `room` bytes.
fn window_of(all: &[iovec], mut skip: usize, room: usize, out: &mut Vec<iovec>) {
    out.clear();
    let mut room = room.min(MAX_RW);
    for iov in all {
        if iov.iov_len <= skip {
            skip -= iov.iov_len;
            continue;
        }
        if out.len() == MAX_IOV || room == 0 {
            break;
        }
        let take = (iov.iov_len - skip).min(room);
        out.push(iovec { iov_base: iov.iov_base.wrapping_byte_add(skip), iov_len: take });
        room -= take;
        skip = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::conformance::{bytes_of, guest, pool};
    use super::*;

    fn image() -> Arc<ImageFile> {
        let file = tempfile::tempfile().expect("a file for the test");
        Arc::new(ImageFile::new(file, None))
    }

    fn write(len: usize, fua: bool) -> Op {
        Op::Write { offset: 512, buf: pool(vec![1; len]), fua }
    }

    fn zeroes(unmap: bool) -> Op {
        Op::WriteZeroes { offset: 512, len: 3 << 20, unmap, fua: true }
    }

    /// Answers the calls of a job in turn; what it called, and how it ended.
    fn script(file: &Arc<ImageFile>, op: Op, answers: &[i32]) -> (Vec<Call>, Completion) {
        let mut job = FileJob::new(Arc::clone(file), op);
        let mut calls = Vec::new();
        let mut answers = answers.iter();
        while let Some(call) = job.next_call() {
            calls.push(call);
            job.complete(*answers.next().expect("no further call"));
        }
        assert!(answers.next().is_none(), "calls are missing");
        (calls, job.finish(Tag(0)))
    }

    fn errno(completion: &Completion) -> Option<i32> {
        match &completion.result {
            Err(BackendError::Io(e)) => e.raw_os_error(),
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
    }

    #[test]
    fn eagain_is_tried_again_but_not_for_ever() {
        let again = vec![-libc::EAGAIN; MAX_AGAIN as usize];
        let mut answers = again.clone();
        answers.push(1000);
        assert!(script(&image(), write(1000, false), &answers).1.result.is_ok());
        answers = again;
        answers.push(-libc::EAGAIN);
        let (_, end) = script(&image(), write(1000, false), &answers);
        assert_eq!(errno(&end), Some(libc::EAGAIN));
    }

    #[test]
    fn a_transfer_that_moves_nothing_ends() {
        let read = Op::Read { offset: 0, buf: pool(vec![0; 8]) };
        let (_, end) = script(&image(), read, &[4, 0]);
        assert!(matches!(end.result, Err(BackendError::Truncated)));
        let (_, end) = script(&image(), write(8, false), &[4, 0]);
        assert!(matches!(end.result, Err(BackendError::Io(_))));
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
        assert!(FileJob::new(file, discard).is_done());
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
        const END: Call = Call::Seek { whence: libc::SEEK_END, offset: 0 };
        let hole = |offset| Call::Seek { whence: libc::SEEK_HOLE, offset };
        let extent = |offset| Call::ExtentEnd { offset, len: 8704 - offset };
        let probe = |answers: &[i32]| {
            let (calls, end) = script(&image(), Op::Probe { offset: 512, len: 8192 }, answers);
            (calls, end.result)
        };
        for end in [8704, 9000] {
            let (calls, result) = probe(&[-libc::EINTR, end]);
            assert!(calls == [hole(512), hole(512)] && result.is_ok());
        }
        let (calls, result) = probe(&[4096, 6000, 7000, 8704]);
        assert!(result.is_ok());
        assert_eq!(calls, [hole(512), extent(4096), hole(6000), extent(7000)]);
        let no = -libc::EOPNOTSUPP;
        for (answers, calls) in [
            (&[512, 512, 8704][..], &[hole(512), extent(512), END][..]),
            (&[4096, no, 10_000], &[hole(512), extent(4096), END]),
            (&[512, 1024, 2048, 2048, 8704], &[hole(512), extent(512), hole(1024), extent(2048), END]),
        ] {
            let (made, result) = probe(answers);
            assert_eq!(made, calls);
            assert!(matches!(result, Err(BackendError::Deallocated)), "{result:?}");
        }
        // The end of the file is a hole to SEEK_HOLE.
        for answers in [&[-libc::ENXIO][..], &[8703, 8703, 8703]] {
            assert!(matches!(probe(answers).1, Err(BackendError::Truncated)));
        }
        assert!(probe(&[-libc::EINVAL]).1.is_ok(), "no holes are known");
        for answers in [&[-libc::EIO][..], &[512, -libc::EIO], &[512, 512, -libc::EIO]] {
            assert!(matches!(probe(answers).1, Err(BackendError::Io(_))));
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
        for (op, answer) in
            [(Op::Flush, -libc::ENOSPC), (Op::Flush, -libc::EIO), (write(8, true), -libc::EIO)]
        {
            let file = image();
            let is_flush = matches!(op, Op::Flush);
            let mut early = FileJob::new(Arc::clone(&file), Op::Flush);
            assert_eq!(early.next_call(), Some(Call::Fdatasync));
            if is_flush {
                let mut late = FileJob::new(Arc::clone(&file), Op::Flush);
                assert_eq!(late.next_call(), Some(Call::Wait));
                early.complete(answer);
                assert_eq!(late.next_call(), Some(Call::Fdatasync), "the one under way does not do");
                late.complete(0);
                assert_eq!(errno(&late.finish(Tag(0))), Some(-answer));
            } else {
                let (_, end) = script(&file, op, &[answer]);
                assert_eq!(errno(&end), Some(-answer));
                early.complete(0);
            }
            assert_eq!(errno(&early.finish(Tag(0))), Some(-answer));
            for later in [Op::Flush, write(8, true), zeroes(true)] {
                let (calls, end) = script(&file, later, &[]);
                assert_eq!(calls, []);
                assert_eq!(errno(&end), Some(-answer));
            }
            assert!(script(&file, write(8, false), &[8]).1.result.is_ok());
        }
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

    /// A limit a test cannot reach with real memory: the window holds to it whatever the pieces.
    #[test]
    fn a_window_keeps_to_the_kernels_limits() {
        let piece = |len| iovec { iov_base: std::ptr::without_provenance_mut(1 << 20), iov_len: len };
        let mut out = Vec::new();
        let lens = |out: &[iovec]| out.iter().map(|iov| iov.iov_len).collect::<Vec<_>>();
        window_of(&[piece(MAX_RW - 1), piece(3), piece(9)], 0, MAX_RW, &mut out);
        assert_eq!(lens(&out), [MAX_RW - 1, 1]);
        window_of(&[piece(7), piece(2 * MAX_RW)], 10, MAX_RW, &mut out);
        assert_eq!(lens(&out), [MAX_RW]);
        assert_eq!(out[0].iov_base.addr(), (1 << 20) + 3);
        window_of(&vec![piece(1); 3000], 500, MAX_RW, &mut out);
        assert_eq!(lens(&out), [1; MAX_IOV]);
    }

    proptest! {
        /// However the kernel cuts a transfer, each byte goes to its place once.
        #[test]
        fn any_cuts_move_every_byte(
            len in 1usize..5000,
            pieces in proptest::collection::vec(1usize..9, 1..6),
            from_pool: bool,
            cuts in proptest::collection::vec(1usize..2000, 1..20),
        ) {
            let source: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let file = image();
            let blank = vec![0; len];
            let buf = if from_pool { pool(blank) } else { guest(&blank, &pieces) };
            let mut job = FileJob::new(file, Op::Read { offset: 4096, buf });
            let mut cuts = cuts.iter().cycle();
            while let Some(call) = job.next_call() {
                let Call::Preadv { offset } = call else { panic!("{call:?}") };
                let mut at = (offset - 4096) as usize;
                let mut left = *cuts.next().expect("endless");
                let start = at;
                prop_assert!(job.iovecs().len() <= MAX_IOV);
                for iov in job.iovecs() {
                    let take = iov.iov_len.min(left);
                    // SAFETY: the job's iovecs lie in its buffer.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            source[at..].as_ptr(), iov.iov_base.cast(), take);
                    }
                    at += take;
                    left -= take;
                }
                job.complete((at - start) as i64);
            }
            let end = job.finish(Tag(0));
            prop_assert!(end.result.is_ok());
            prop_assert_eq!(bytes_of(&end.buf.expect("the buffer is back")), source);
        }
    }
}
