//! A ring of the kernel's: the first call of each job is an entry; one enter per turn hands over and collects.
//!
//! The eventfd of the waker is read through the ring itself, so that one wait covers everything.
#![expect(unsafe_code, reason = "ring entries carry raw pointers the kernel uses later")]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode, squeue};

use crate::disk::file::job::FileJob;
use crate::disk::sys::iovecs::{MAX_IOV, MAX_RW};
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
    /// Those whose call was made.
    done: Vec<(Tag, FileJob)>,
    /// Scratch for completion entries: user_data, result.
    cqes: Vec<(u64, i32)>,
    /// Calls pushed to the ring or the backlog and not completed.
    calls: usize,
}

/// A job whose call is in the ring.
type Slot = Option<(Tag, FileJob)>;

impl Ring {
    /// One that `waker` wakes. May be made on another thread than the one that uses it.
    pub(super) fn new(waker: Waker) -> io::Result<Self> {
        Self::with(&[true, false], waker)
    }

    fn with(modes: &[bool], waker: Waker) -> io::Result<Self> {
        let (ring, enabled) = make_ring(modes)?;
        Ok(Ring {
            ring,
            enabled,
            waker,
            armed: false,
            woken: false,
            slots: Vec::new(),
            free: Vec::new(),
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

    /// Puts an entry into the ring; where it is full the kernel takes what is in it first.
    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry's pointers lead to a job that stays in its box, or to a static, until the entry completes;
        // `drop` sees to the rest.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.enter_or_report(0, None);
            self.collect();
        }
    }

    fn arm(&mut self) {
        if !self.armed {
            self.armed = true;
            let entry = opcode::Read::new(
                Fd(self.waker.fd().as_raw_fd()),
                WAKER_COUNT.as_ptr().cast(),
                size_of::<u64>() as u32,
            )
            .build()
            .user_data(WAKER);
            self.push(&entry);
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

    /// Entering fails for want of memory, or by a fault of ours; the jobs stay and are tried again.
    fn enter_or_report(&mut self, want: u32, timeout: Option<Duration>) {
        if let Err(error) = self.enter(want, timeout) {
            log::error!("io_uring_enter: {error}");
            // Not to be asked again at full speed.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Hands everything over without waiting.
    fn hand_over(&mut self) {
        let sq = self.ring.submission();
        let idle = sq.is_empty() && !sq.taskrun() && !sq.cq_overflow();
        drop(sq);
        if !idle {
            self.enter_or_report(0, None);
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
                    if let Some((tag, mut job)) = self.slots.get_mut(index).and_then(|slot| slot.take()) {
                        job.complete(result.into());
                        self.done.push((tag, job));
                        self.free.push(index);
                    }
                }
            }
        }
        self.cqes = cqes;
    }

    /// Takes a job; the kernel may see it only at the next `reap` or `wait`.
    pub(super) fn submit(&mut self, tag: Tag, job: FileJob) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Box::new(None));
            self.slots.len() - 1
        });
        let Some(slot) = self.slots.get_mut(index) else { return };
        // It stays there for the time of the call.
        let (_, job) = slot.insert((tag, job));
        match job.begin() {
            Some(call) => {
                let entry = entry(job, call).user_data(index as u64);
                self.calls += 1;
                self.push(&entry);
            }
            None => {
                self.done.extend(slot.take());
                self.free.push(index);
            }
        }
    }

    /// Hands over what was submitted, without waiting, and collects the jobs whose call was made.
    pub(super) fn reap(&mut self) -> impl Iterator<Item = (Tag, FileJob)> {
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
        self.enter_or_report(1, timeout);
        self.collect();
        self.woken = false;
    }

    /// Jobs the kernel still works for. Ends those it does not.
    fn cancel_all(&mut self, patience: Duration) -> usize {
        let deadline = Instant::now() + patience;
        self.push(&opcode::AsyncCancel2::new(CancelBuilder::any().all()).build().user_data(CANCEL));
        while self.calls > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.enter(1, Some(left)).is_err() {
                break;
            }
            self.collect();
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

/// The call as a ring entry.
fn entry(job: &FileJob, call: Call) -> squeue::Entry {
    let fd = Fd(job.fd());
    let iovecs = job.iovecs();
    let iovecs = iovecs.get(..MAX_IOV).unwrap_or(iovecs);
    let (iov, count) = (iovecs.as_ptr(), iovecs.len() as u32);
    match (call, iovecs) {
        (Call::Pwritev { offset, dsync }, iovecs) => {
            let flags = if dsync { libc::RWF_DSYNC } else { 0 };
            match iovecs {
                // A single piece, as most small transfers are, spares the kernel the copy and the check of an array.
                [piece] => opcode::Write::new(fd, piece.iov_base.cast_const().cast(), bytes(piece))
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                _ => opcode::Writev::new(fd, iov, count).offset(offset).rw_flags(flags).build(),
            }
        }
        (Call::Preadv { offset }, [piece]) => {
            opcode::Read::new(fd, piece.iov_base.cast(), bytes(piece)).offset(offset).build()
        }
        (Call::Preadv { offset }, _) => opcode::Readv::new(fd, iov, count).offset(offset).build(),
        // No job has another.
        _ => opcode::Nop::new().build(),
    }
}

/// As many as one call moves.
fn bytes(piece: &libc::iovec) -> u32 {
    piece.iov_len.min(MAX_RW) as u32
}

/// A ring that runs in the first of these ways that the kernel has, and whether it is enabled: cheaply, as since Linux 6.1
/// (DEFER_TASKRUN), or plainly.
fn make_ring(modes: &[bool]) -> io::Result<(IoUring, bool)> {
    let mut error = io::Error::from(io::ErrorKind::Unsupported);
    for cheap in modes {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(CQ_ENTRIES).dontfork();
        if *cheap {
            // The ring belongs to the thread that enables it, not to the one that makes it.
            builder.setup_single_issuer().setup_r_disabled();
            builder.setup_defer_taskrun().setup_coop_taskrun().setup_taskrun_flag();
        }
        match builder.build(SQ_ENTRIES) {
            // Linux 5.11; all else that is used is older.
            Ok(ring) if !ring.params().is_feature_ext_arg() => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "the kernel's io_uring lacks IORING_FEAT_EXT_ARG",
                ));
            }
            Ok(ring) => return Ok((ring, !cheap)),
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Arc;

    use super::*;
    use crate::disk::file::image::ImageFile;
    use crate::disk::tests::conformance::{bytes_of, guest};
    use crate::disk::{CacheMode, Stop, probe};

    /// A read of a pipe waits in the kernel until the test writes: a disk that hangs on demand.
    fn pipe() -> (Arc<ImageFile>, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe for the test");
        let file = ImageFile::new(File::from(reader), 1 << 20, None, CacheMode::Writeback, None);
        (Arc::new(file), writer)
    }

    fn read(file: &Arc<ImageFile>) -> FileJob {
        let buf = guest(&[0xee; 8], &[3]);
        FileJob::new(Arc::clone(file), false, 0, buf, false)
    }

    /// What old kernels leave the ring with works as well.
    #[test]
    fn every_mode_of_running() {
        if probe().is_err() {
            return;
        }
        for mode in [true, false] {
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
                    let (tag, job) = out.remove(0);
                    assert!(tag == Tag(n) && job.is_over());
                    let (result, buf) = job.run(&Stop::default());
                    result.expect("the read succeeds");
                    assert_eq!(bytes_of(&buf.expect("the buffer is back")), [n as u8; 8]);
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
        assert_eq!(ring.ring.submission().len(), 50, "the others are with the kernel");
        assert_eq!(ring.reap().count(), 0);
        assert_eq!((ring.ring.submission().len(), ring.calls), (0, count as usize));
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
