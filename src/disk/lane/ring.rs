//! A ring of the kernel's: a job's calls are its entries; one enter per turn hands over and collects.
//!
//! The eventfd of the waker is read through the ring itself, so that one wait covers everything. Where the kernel can make
//! no thread for a call (a limit of processes), the worker makes it itself: late is better than failed.
#![expect(unsafe_code, reason = "ring entries carry raw pointers the kernel uses later")]

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue};

use super::pool::MORE_THREADS;
use crate::disk::file::job::{FileJob, Finished};
use crate::disk::{Call, Tag, Waker};

/// Entries of the submission ring: what one enter can hand over.
const SQ_ENTRIES: u32 = 256;
/// More completions than this wait in the kernel (IORING_FEAT_NODROP); none is lost.
const CQ_ENTRIES: u32 = 1024;
/// How long a dropped ring waits for the kernel to let go of its buffers.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);

/// user_data of the read on the waker's eventfd.
const WAKER: u64 = u64::MAX;
/// user_data of the cancellation a dropped ring sends.
const CANCEL: u64 = u64::MAX - 1;

/// Where the kernel puts the waker's count, which nobody reads. Static, because the kernel may still write
/// it when the ring is gone.
static WAKER_COUNT: AtomicU64 = AtomicU64::new(0);

/// See the module docs.
pub(super) struct Ring {
    ring: IoUring,
    /// The ring was made disabled, and the thread that enables it owns it.
    enabled: bool,
    waker: Waker,
    /// The read on the waker's eventfd is in the ring.
    armed: bool,
    /// A wake-up was taken out of the ring and has not ended a wait yet: `reap` takes them too.
    woken: bool,
    /// Boxed: the kernel holds pointers into a job while one of its calls is in the ring.
    #[expect(clippy::vec_box, reason = "a job must stay where it is")]
    slots: Vec<Box<Slot>>,
    free: Vec<usize>,
    /// Entries that found the submission ring full.
    backlog: VecDeque<squeue::Entry>,
    done: Vec<(Tag, Finished)>,
    /// Scratch for completion entries: user_data, result.
    cqes: Vec<(u64, i32)>,
    /// Calls pushed to the ring or the backlog and not completed.
    calls: usize,
}

#[derive(Debug)]
struct Slot {
    tag: Tag,
    job: Option<FileJob>,
    /// The call that is in the ring.
    call: Option<Call>,
}

impl Ring {
    /// One that `waker` wakes. May be made on another thread than the one that uses it.
    pub(super) fn new(waker: Waker) -> io::Result<Self> {
        Self::with(&MODES, waker)
    }

    fn with(modes: &[Mode], waker: Waker) -> io::Result<Self> {
        let (ring, enabled) = make_ring(modes)?;
        check(&ring)?;
        Ok(Ring {
            ring,
            enabled,
            waker,
            armed: false,
            woken: false,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            done: Vec::new(),
            cqes: Vec::new(),
            calls: 0,
        })
    }

    /// Waits for a wake-up alone; was there one?
    pub(super) fn wait_woken(&mut self, timeout: Duration) -> io::Result<bool> {
        self.arm();
        self.enter(1, Some(timeout))?;
        self.collect();
        Ok(!self.armed)
    }

    fn push(&mut self, entry: squeue::Entry) {
        // Behind a backlog, never ahead of it: the oldest job goes first.
        if self.backlog.is_empty() {
            // SAFETY: the entry's pointers lead to a job that stays in its box, or to a static, until the
            // entry completes; `drop` sees to the rest.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    fn arm(&mut self) {
        if !self.armed {
            self.armed = true;
            let entry = opcode::Read::new(
                Fd(self.waker.raw_fd()),
                WAKER_COUNT.as_ptr().cast(),
                size_of::<u64>() as u32,
            )
            .build()
            .user_data(WAKER);
            self.push(entry);
        }
    }

    /// Puts the next call of the job in `slot` into the ring, or ends the job.
    fn step(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(job) = &mut slot.job else { return };
        let entry = loop {
            let Some(call) = job.next_call() else { break None };
            match entry(job, call) {
                Some(entry) => {
                    slot.call = Some(call);
                    break Some(entry);
                }
                // There is none; a job has no such call.
                None => job.complete(-i64::from(libc::ENOSYS)),
            }
        };
        match entry {
            Some(entry) => {
                self.calls += 1;
                self.push(entry.user_data(index as u64));
            }
            None => {
                if let Some(job) = slot.job.take() {
                    self.done.push((slot.tag, job.finish()));
                }
                self.free.push(index);
            }
        }
    }

    /// One io_uring_enter: hands over the submission ring and waits for `want` completions.
    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        // GETEVENTS also runs deferred work, and fetches what overflowed.
        let mut flags = EnterFlags::EXT_ARG | EnterFlags::GETEVENTS;
        if self.calls == 0 && self.ring.params().is_feature_no_iowait() {
            // Else the read on the waker makes an idle worker look like a CPU that waits for a disk.
            flags |= EnterFlags::NO_IOWAIT;
        }
        let timespec = timeout.map(Timespec::from);
        let args = match &timespec {
            Some(timespec) => SubmitArgs::new().timespec(timespec),
            None => SubmitArgs::new(),
        };
        let queued = self.ring.submission().len() as u32;
        // SAFETY: `args` is the argument that EXT_ARG announces, and outlives the call; the entries' pointers
        // are as `push` says.
        let entered = unsafe { self.ring.submitter().enter(queued, want, flags.bits(), Some(&args)) };
        match entered {
            Ok(_) => Ok(()),
            // EBUSY: completions must be collected first, which every caller does next.
            Err(e) => match e.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
                _ => Err(e),
            },
        }
    }

    /// Moves the backlog to the ring, as far as it has room.
    fn refill(&mut self) {
        let mut sq = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in `push`.
            if unsafe { sq.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Hands everything over without waiting.
    fn hand_over(&mut self) {
        loop {
            self.refill();
            let sq = self.ring.submission();
            let idle = sq.is_empty() && !sq.taskrun() && !sq.cq_overflow();
            drop(sq);
            if idle {
                return;
            }
            if let Err(e) = self.enter(0, None) {
                return Self::report(&e);
            }
            // A ring that is still full has completions to collect first.
            if self.backlog.is_empty() || self.ring.submission().is_full() {
                return;
            }
        }
    }

    /// Takes what completed, and puts in the calls that follow.
    fn collect(&mut self) {
        let mut cqes = std::mem::take(&mut self.cqes);
        cqes.extend(self.ring.completion().map(|cqe| (cqe.user_data(), cqe.result())));
        for (user_data, result) in cqes.drain(..) {
            match user_data {
                WAKER => {
                    self.armed = false;
                    self.woken = true;
                }
                CANCEL => {}
                index => {
                    self.calls -= 1;
                    let index = index as usize;
                    if let Some(Slot { job: Some(job), call: Some(call), .. }) =
                        self.slots.get_mut(index).map(|slot| &mut **slot)
                    {
                        job.complete(or_make(job, *call, result));
                    }
                    self.step(index);
                }
            }
        }
        self.cqes = cqes;
    }

    /// Takes a job; the kernel may see it only at the next `reap` or `wait`.
    pub(super) fn submit(&mut self, tag: Tag, job: FileJob) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Box::new(Slot { tag, job: None, call: None }));
            self.slots.len() - 1
        });
        if let Some(slot) = self.slots.get_mut(index) {
            slot.tag = tag;
            slot.job = Some(job);
        }
        self.step(index);
    }

    /// Hands over what was submitted and collects what is complete, without waiting.
    pub(super) fn reap(&mut self) -> impl Iterator<Item = (Tag, Finished)> {
        self.hand_over();
        self.collect();
        self.done.drain(..)
    }

    /// Sleeps until a job completes, the waker fires or `timeout` passes. May return early.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) {
        // The next sleep to come ends too: a reap may have taken the wake-up since the last one.
        if !self.done.is_empty() || std::mem::take(&mut self.woken) {
            return;
        }
        self.arm();
        self.refill();
        if !self.backlog.is_empty() {
            self.hand_over();
        }
        if let Err(e) = self.enter(1, timeout) {
            Self::report(&e);
        }
        self.collect();
        self.woken = false;
    }

    /// Entering fails for want of memory, or by a fault of ours; the jobs stay and are tried again.
    fn report(error: &io::Error) {
        log::error!("io_uring_enter: {error}");
        // Not to be asked again at full speed.
        std::thread::sleep(Duration::from_millis(10));
    }

    /// Jobs the kernel still works for. Ends those it does not.
    fn cancel_all(&mut self, patience: Duration) -> usize {
        let deadline = Instant::now() + patience;
        let unseen = |entry: &squeue::Entry| entry.get_user_data() != WAKER;
        self.calls -= self.backlog.iter().filter(|e| unseen(e)).count();
        self.backlog.clear();
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().user_data(CANCEL);
        self.push(cancel);
        while self.calls > 0 {
            self.refill();
            let left = deadline.saturating_duration_since(Instant::now());
            // The cancellation may still wait for room in the ring.
            let want = u32::from(self.backlog.is_empty());
            if left.is_zero() || self.enter(want, Some(left)).is_err() {
                break;
            }
            let ended =
                self.ring.completion().filter(|cqe| !matches!(cqe.user_data(), WAKER | CANCEL)).count();
            self.calls -= ended;
        }
        self.calls
    }
}

impl Drop for Ring {
    /// The kernel may write to a buffer until its call is over: calls are cancelled and awaited, and what
    /// is hung even then keeps its memory for ever.
    fn drop(&mut self) {
        if self.calls == 0 {
            return;
        }
        let hung = self.cancel_all(DROP_TIMEOUT);
        if hung > 0 {
            log::warn!("{hung} calls on an image hang in the kernel; their memory is left to them");
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

/// What a call in the ring came to. The kernel makes one that would wait on a thread of its own, and cancels all of them
/// when it cannot make any; we cancel only in [`UringEngine::cancel_all`], which does not ask here.
fn or_make(job: &FileJob, call: Call, result: i32) -> i64 {
    if result != -libc::ECANCELED {
        return result.into();
    }
    log::warn!("the kernel has no thread for a call on an image, a worker makes it; {MORE_THREADS}");
    job.make(call)
}

/// The call as a ring entry, if the ring has one for it.
fn entry(job: &FileJob, call: Call) -> Option<squeue::Entry> {
    let fd = Fd(job.fd());
    let iovecs = job.iovecs();
    // A FileJob's window has at most UIO_MAXIOV iovecs.
    let (iov, count) = (iovecs.as_ptr(), iovecs.len() as u32);
    Some(match (call, iovecs) {
        // A single piece, as most small transfers are, spares the kernel the copy and the check of an array.
        (Call::Preadv { offset }, [piece]) => {
            opcode::Read::new(fd, piece.iov_base.cast(), bytes(piece)).offset(offset).build()
        }
        (Call::Pwritev { offset, dsync }, [piece]) => {
            opcode::Write::new(fd, piece.iov_base.cast_const().cast(), bytes(piece))
                .offset(offset)
                .rw_flags(if dsync { libc::RWF_DSYNC } else { 0 })
                .build()
        }
        (Call::Preadv { offset }, _) => opcode::Readv::new(fd, iov, count).offset(offset).build(),
        (Call::Pwritev { offset, dsync }, _) => opcode::Writev::new(fd, iov, count)
            .offset(offset)
            .rw_flags(if dsync { libc::RWF_DSYNC } else { 0 })
            .build(),
        (Call::Fallocate { mode, offset, len }, _) => {
            opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
        }
        (
            Call::Fdatasync
            | Call::Seek { .. }
            | Call::ExtentEnd { .. }
            | Call::CloneRange { .. }
            | Call::CopyRange { .. },
            _,
        ) => {
            return None;
        }
    })
}

/// A FileJob's window is shorter than 2 GiB.
fn bytes(piece: &libc::iovec) -> u32 {
    u32::try_from(piece.iov_len).unwrap_or(0)
}

/// The cheaper ways of running a ring, from those a new kernel has to those any has. DEFER_TASKRUN came with
/// 6.1 and wants SINGLE_ISSUER (6.0); COOP_TASKRUN with 5.19.
#[derive(Clone, Copy, Debug)]
struct Mode {
    defer: bool,
    single: bool,
    coop: bool,
}

const MODES: [Mode; 4] = [
    Mode { defer: true, single: true, coop: true },
    Mode { defer: false, single: true, coop: true },
    Mode { defer: false, single: false, coop: true },
    Mode { defer: false, single: false, coop: false },
];

/// A ring that runs in the first of these ways that the kernel has, and whether it is enabled.
fn make_ring(modes: &[Mode]) -> io::Result<(IoUring, bool)> {
    let mut error = io::Error::from(io::ErrorKind::Unsupported);
    for Mode { defer, single, coop } in modes.iter().copied() {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(CQ_ENTRIES).dontfork();
        if defer {
            builder.setup_defer_taskrun();
        }
        if single {
            // The ring belongs to the thread that enables it, not to the one that makes it.
            builder.setup_single_issuer().setup_r_disabled();
        }
        if coop {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        match builder.build(SQ_ENTRIES) {
            Ok(ring) => return Ok((ring, !single)),
            Err(e) => error = e,
        }
        // An unknown flag is EINVAL; anything else will not be better without the flag.
        if error.raw_os_error() != Some(libc::EINVAL) {
            break;
        }
    }
    let why = match error.raw_os_error() {
        Some(libc::EPERM) => " (forbidden: see /proc/sys/kernel/io_uring_disabled)",
        Some(libc::ENOSYS) => " (the kernel has no io_uring, or a filter forbids it)",
        _ => "",
    };
    Err(io::Error::new(error.kind(), format!("io_uring_setup: {error}{why}")))
}

/// Has the kernel all that is used?
fn check(ring: &IoUring) -> io::Result<()> {
    let params = ring.params();
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|e| io::Error::new(e.kind(), format!("io_uring probe: {e}")))?;
    let lacking = if !params.is_feature_nodrop() {
        "IORING_FEAT_NODROP"
    } else if !params.is_feature_submit_stable() {
        "IORING_FEAT_SUBMIT_STABLE"
    } else if !params.is_feature_ext_arg() {
        "IORING_FEAT_EXT_ARG"
    } else {
        const OPCODES: [(u8, &str); 6] = [
            (opcode::Readv::CODE, "READV"),
            (opcode::Writev::CODE, "WRITEV"),
            (opcode::Fallocate::CODE, "FALLOCATE"),
            (opcode::Read::CODE, "READ"),
            (opcode::Write::CODE, "WRITE"),
            (opcode::AsyncCancel2::CODE, "ASYNC_CANCEL"),
        ];
        match OPCODES.iter().find(|(code, _)| !probe.is_supported(*code)) {
            Some((_, name)) => name,
            None => return Ok(()),
        }
    };
    Err(io::Error::new(io::ErrorKind::Unsupported, format!("the kernel's io_uring lacks {lacking}")))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Arc;

    use super::*;
    use crate::disk::file::image::ImageFile;
    use crate::disk::tests::conformance::{bytes_of, guest};
    use crate::disk::{CacheMode, probe};

    /// A read of a pipe waits in the kernel until the test writes: a disk that hangs on demand.
    fn pipe() -> (Arc<ImageFile>, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe for the test");
        let file = ImageFile::new(File::from(reader), 1 << 20, None, CacheMode::Writeback, None);
        (Arc::new(file), writer)
    }

    fn read(file: &Arc<ImageFile>) -> FileJob {
        let buf = guest(&[0xee; 8], &[3]);
        FileJob::read(Arc::clone(file), 0, buf)
    }

    /// What old kernels leave the ring with works as well.
    #[test]
    fn every_mode_of_running() {
        if probe().is_err() {
            return;
        }
        for mode in MODES {
            let waker = Waker::new().expect("a waker");
            let mut ring = match Ring::with(&[mode], waker.clone()) {
                Ok(ring) => ring,
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => continue,
                Err(e) => panic!("{mode:?}: {e}"),
            };
            let worker = std::thread::spawn(move || {
                let (file, writer) = pipe();
                let mut out = Vec::new();
                for n in 0..3 {
                    ring.submit(Tag(n), read(&file));
                    out.extend(ring.reap());
                    assert!(out.is_empty());
                    waker.wake();
                    ring.wait(None);
                    out.extend(ring.reap());
                    assert!(out.is_empty());
                    ring.wait(Some(Duration::from_millis(1)));
                    rustix::io::write(writer.as_fd(), &[n as u8; 8]).expect("the pipe has room");
                    while out.is_empty() {
                        ring.wait(None);
                        out.extend(ring.reap());
                    }
                    let (tag, done) = out.remove(0);
                    assert_eq!(tag, Tag(n));
                    done.result.expect("the read succeeds");
                    assert_eq!(bytes_of(&done.buf.expect("the buffer is back")), [n as u8; 8]);
                }
            });
            worker.join().unwrap_or_else(|_| panic!("{mode:?}"));
        }
    }

    /// Hung calls are cancelled before their buffers go; more of them than the ring holds.
    #[test]
    fn dropped_with_hung_calls() {
        if probe().is_err() {
            return;
        }
        let mut ring = Ring::new(Waker::new().expect("a waker")).expect("the ring is made");
        let (file, writer) = pipe();
        let count = u64::from(SQ_ENTRIES) + 50;
        for n in 0..count {
            ring.submit(Tag(n), read(&file));
        }
        assert_eq!(ring.backlog.len(), 50);
        assert_eq!(ring.reap().count(), 0);
        assert_eq!((ring.backlog.len(), ring.calls), (0, count as usize));
        ring.submit(Tag(count), read(&file));
        let start = Instant::now();
        drop(ring);
        assert!(start.elapsed() < DROP_TIMEOUT, "the calls were not cancelled");
        // The calls let go of the file, so nobody is left to read.
        assert_eq!(Arc::strong_count(&file), 1);
        drop(file);
        // The kernel closes what its threads used a moment later.
        while rustix::io::write(writer.as_fd(), &[1]) != Err(rustix::io::Errno::PIPE) {
            assert!(start.elapsed() < DROP_TIMEOUT, "somebody still reads");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Jobs that never got to the kernel do not keep a dropped ring waiting.
    #[test]
    fn dropped_unused() {
        if probe().is_err() {
            return;
        }
        let mut ring = Ring::new(Waker::new().expect("a waker")).expect("the ring is made");
        let (file, _writer) = pipe();
        for n in 0..SQ_ENTRIES * 2 {
            ring.submit(Tag(u64::from(n)), read(&file));
        }
        let start = Instant::now();
        drop(ring);
        assert!(start.elapsed() < DROP_TIMEOUT);
        assert_eq!(Arc::strong_count(&file), 1);
    }
}
