//! The io_uring engine: a job's calls are ring entries; one enter per turn hands over and collects.
//!
//! The eventfd of the waker is read through the ring itself, so that one wait covers everything. The ring has
//! no opcodes for copies from file to file, nor for lseek, and relays are made for a thread: these go to threads beside
//! it, started for the first of them, which wake the same eventfd. Where no thread can be made (a limit of processes),
//! the worker makes such calls itself: late is better than failed.
#![expect(unsafe_code, reason = "ring entries carry raw pointers the kernel uses later")]

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue};

use super::burst::{self, Burst};
use super::{Engine, FileJob, PoolEngine, Waker, pool};
use crate::backend::file_job::Call;
use crate::backend::page_cache::{self, TryRead};
use crate::backend::{Completion, Tag};

/// Entries of the submission ring: what one enter can hand over.
const SQ_ENTRIES: u32 = 256;
/// More completions than this wait in the kernel (IORING_FEAT_NODROP); none is lost.
const CQ_ENTRIES: u32 = 1024;
/// How long a dropped engine waits for the kernel to let go of its buffers.
const PATIENCE: Duration = Duration::from_secs(2);

/// The remedy, for the log.
const MORE_THREADS: &str = "allow this process more threads (ulimit -u, TasksMax= of its unit, pids.max)";

/// user_data of the read on the waker's eventfd.
const WAKER: u64 = u64::MAX;
/// user_data of the cancellation a dropped engine sends.
const CANCEL: u64 = u64::MAX - 1;

/// Where the kernel puts the waker's count, which nobody reads. Static, because the kernel may still write
/// it when the engine is gone.
static WAKER_COUNT: AtomicU64 = AtomicU64::new(0);

/// See the module docs.
pub struct UringEngine {
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
    done: Vec<Completion>,
    /// Scratch for completion entries: user_data, result.
    cqes: Vec<(u64, i32)>,
    /// Slots whose job waits for another one.
    parked: Vec<usize>,
    /// Calls pushed to the ring or the backlog and not completed.
    calls: usize,
    /// For copies, relays and probes.
    beside: Option<PoolEngine>,
    bursts: Bursts,
}

/// Reads of page caches, many with one call.
enum Bursts {
    /// None so far.
    Unused,
    Ready(Box<Burst>),
    /// It takes a call each.
    Broken,
}

#[derive(Debug)]
struct Slot {
    tag: Tag,
    job: Option<FileJob>,
    /// The call that is in the ring.
    call: Call,
}

impl UringEngine {
    /// An engine with a ring of its own. May be made on another thread than the one that uses it.
    pub fn new() -> io::Result<Self> {
        Self::with(&WAYS)
    }

    fn with(ways: &[Ways]) -> io::Result<Self> {
        let (ring, enabled) = make_ring(ways)?;
        check(&ring)?;
        Ok(UringEngine {
            ring,
            enabled,
            waker: Waker::new()?,
            armed: false,
            woken: false,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            done: Vec::new(),
            cqes: Vec::new(),
            calls: 0,
            parked: Vec::new(),
            beside: None,
            bursts: Bursts::Unused,
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
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let Some(job) = &mut slot.job else { return };
        let entry = loop {
            match job.next_call() {
                Some(Call::Wait) => return self.parked.push(index),
                Some(call) => match entry(job, call) {
                    Some(entry) => {
                        slot.call = call;
                        break Some(entry);
                    }
                    None => {
                        let result = pool::make(job, call);
                        job.complete(result);
                    }
                },
                None => break None,
            }
        };
        match entry {
            Some(entry) => {
                self.calls += 1;
                self.push(entry.user_data(index as u64));
            }
            None => {
                if let Some(job) = slot.job.take() {
                    self.done.push(job.finish(slot.tag));
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
                    if let Some(Slot { job: Some(job), call, .. }) =
                        self.slots.get_mut(index).map(|slot| &mut **slot)
                    {
                        job.complete(or_make(job, *call, result));
                    }
                    self.step(index);
                }
            }
        }
        self.cqes = cqes;
        // Whatever they wait for may have come with what was just taken: its end here, or elsewhere a wake-up.
        if !self.parked.is_empty() {
            for index in std::mem::take(&mut self.parked) {
                self.step(index);
            }
        }
    }

    fn submit_beside(&mut self, tag: Tag, job: FileJob) {
        let beside = match self.beside.take() {
            Some(beside) => Ok(beside),
            None => PoolEngine::beside(self.waker.clone()),
        };
        match beside {
            Ok(beside) => self.beside.insert(beside).submit(tag, job),
            Err(e) => {
                log::warn!(
                    "no thread for a copy or a probe of a file ({e}), a worker does it; {MORE_THREADS}"
                );
                self.submit_here(tag, job);
            }
        }
    }

    fn submit_here(&mut self, tag: Tag, job: FileJob) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Box::new(Slot { tag, job: None, call: Call::Wait }));
            self.slots.len() - 1
        });
        if let Some(slot) = self.slots.get_mut(index) {
            slot.tag = tag;
            slot.job = Some(job);
        }
        self.step(index);
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

impl Engine for UringEngine {
    fn submit(&mut self, tag: Tag, job: FileJob) {
        if job.kind().is_beside_a_ring() {
            return self.submit_beside(tag, job);
        }
        self.submit_here(tag, job);
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        self.hand_over();
        self.collect();
        out.append(&mut self.done);
        if let Some(beside) = &mut self.beside {
            beside.reap(out);
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        if !self.done.is_empty() || self.beside.as_mut().is_some_and(|beside| !beside.may_sleep()) {
            return;
        }
        // The next sleep to come ends too: a reap may have taken the wake-up since the last one.
        if std::mem::take(&mut self.woken) {
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

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn in_flight(&self) -> usize {
        let beside = self.beside.as_ref().map_or(0, |beside| beside.in_flight());
        self.slots.len() - self.free.len() + self.done.len() + beside
    }

    fn may_be_passed(&self) -> bool {
        true
    }

    fn try_reads(&mut self, reads: &mut [TryRead<'_>]) {
        if reads.len() < burst::WORTH {
            return page_cache::try_each(reads);
        }
        if let Bursts::Unused = self.bursts {
            self.bursts = match Burst::new() {
                Ok(burst) => Bursts::Ready(Box::new(burst)),
                Err(error) => {
                    log::info!("no ring for reads of the page cache ({error}): a call each");
                    Bursts::Broken
                }
            };
        }
        let Bursts::Ready(burst) = &mut self.bursts else { return page_cache::try_each(reads) };
        if let Err(error) = burst.try_reads(reads) {
            log::warn!("a ring for reads of the page cache failed: {error}");
            self.bursts = Bursts::Broken;
        }
    }
}

impl Drop for UringEngine {
    /// The kernel may write to a buffer until its call is over: calls are cancelled and awaited, and what
    /// is hung even then keeps its memory for ever.
    fn drop(&mut self) {
        // Its calls end while those of the ring do.
        if let Some(beside) = &self.beside {
            beside.stop();
        }
        if self.calls == 0 {
            return;
        }
        let hung = self.cancel_all(PATIENCE);
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
    pool::make(job, call)
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
        (Call::Fdatasync, _) => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        (Call::Fallocate { mode, offset, len }, _) => {
            opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
        }
        (
            Call::Seek { .. }
            | Call::ExtentEnd { .. }
            | Call::CloneRange { .. }
            | Call::CopyRange { .. }
            | Call::Wait,
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
struct Ways {
    defer: bool,
    single: bool,
    coop: bool,
}

const WAYS: [Ways; 4] = [
    Ways { defer: true, single: true, coop: true },
    Ways { defer: false, single: true, coop: true },
    Ways { defer: false, single: false, coop: true },
    Ways { defer: false, single: false, coop: false },
];

/// A ring that runs in the first of these ways that the kernel has, and whether it is enabled.
fn make_ring(ways: &[Ways]) -> io::Result<(IoUring, bool)> {
    let mut error = io::Error::from(io::ErrorKind::Unsupported);
    for Ways { defer, single, coop } in ways.iter().copied() {
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

/// Has the kernel all the engine uses?
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
        const OPCODES: [(u8, &str); 7] = [
            (opcode::Readv::CODE, "READV"),
            (opcode::Writev::CODE, "WRITEV"),
            (opcode::Fsync::CODE, "FSYNC"),
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

    use super::super::probe;
    use super::*;
    use crate::backend::Op;
    use crate::backend::conformance::{bytes_of, guest};
    use crate::backend::image_file::ImageFile;

    /// A read of a pipe waits in the kernel until the test writes: a disk that hangs on demand.
    fn pipe() -> (Arc<ImageFile>, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe for the test");
        (Arc::new(ImageFile::new(File::from(reader), None)), writer)
    }

    fn read(file: &Arc<ImageFile>) -> FileJob {
        let buf = guest(&[0xee; 8], &[3]);
        FileJob::new(Arc::clone(file), Op::Read { offset: 0, buf })
    }

    /// What old kernels leave the engine with works as well.
    #[test]
    fn every_way_of_running() {
        if probe().is_err() {
            return;
        }
        for ways in WAYS {
            let mut engine = match UringEngine::with(&[ways]) {
                Ok(engine) => engine,
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => continue,
                Err(e) => panic!("{ways:?}: {e}"),
            };
            let worker = std::thread::spawn(move || {
                let (file, writer) = pipe();
                let mut out = Vec::new();
                for n in 0..3 {
                    engine.submit(Tag(n), read(&file));
                    engine.reap(&mut out);
                    assert!(out.is_empty());
                    engine.waker().wake();
                    engine.wait(None);
                    engine.reap(&mut out);
                    assert!(out.is_empty());
                    engine.wait(Some(Duration::from_millis(1)));
                    rustix::io::write(writer.as_fd(), &[n as u8; 8]).expect("the pipe has room");
                    while out.is_empty() {
                        engine.wait(None);
                        engine.reap(&mut out);
                    }
                    let done = out.remove(0);
                    assert_eq!(done.tag, Tag(n));
                    done.result.expect("the read succeeds");
                    assert_eq!(bytes_of(&done.buf.expect("the buffer is back")), [n as u8; 8]);
                    assert_eq!(engine.in_flight(), 0);
                }
            });
            worker.join().unwrap_or_else(|_| panic!("{ways:?}"));
        }
    }

    /// Hung calls are cancelled before their buffers go; more of them than the ring holds.
    #[test]
    fn dropped_with_hung_calls() {
        if probe().is_err() {
            return;
        }
        let mut engine = UringEngine::new().expect("the ring is made");
        let (file, writer) = pipe();
        let count = u64::from(SQ_ENTRIES) + 50;
        for n in 0..count {
            engine.submit(Tag(n), read(&file));
        }
        assert_eq!(engine.backlog.len(), 50);
        engine.reap(&mut Vec::new());
        assert_eq!((engine.backlog.len(), engine.in_flight()), (0, count as usize));
        engine.submit(Tag(count), read(&file));
        let start = Instant::now();
        drop(engine);
        assert!(start.elapsed() < PATIENCE, "the calls were not cancelled");
        // The calls let go of the file, so nobody is left to read.
        assert_eq!(Arc::strong_count(&file), 1);
        drop(file);
        // The kernel closes what its threads used a moment later.
        while rustix::io::write(writer.as_fd(), &[1]) != Err(rustix::io::Errno::PIPE) {
            assert!(start.elapsed() < PATIENCE, "somebody still reads");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Jobs that never got to the kernel do not keep a dropped engine waiting.
    #[test]
    fn dropped_unused() {
        if probe().is_err() {
            return;
        }
        let mut engine = UringEngine::new().expect("the ring is made");
        let (file, _writer) = pipe();
        for n in 0..SQ_ENTRIES * 2 {
            engine.submit(Tag(u64::from(n)), read(&file));
        }
        let start = Instant::now();
        drop(engine);
        assert!(start.elapsed() < PATIENCE);
        assert_eq!(Arc::strong_count(&file), 1);
    }
}
