//! Reads of page caches, many with one call: a ring of their own, beside that of a worker's jobs.
//!
//! A call each is entered and left each time, which costs more than a small read's bookkeeping does. Here one enter makes
//! them all, on the worker's thread and before it returns: with RWF_NOWAIT a read that would have to wait is refused, and
//! never handed to a thread of the kernel's. So nothing is in flight between two calls, and nothing need be pinned.
#![expect(unsafe_code, reason = "ring entries carry raw pointers the kernel uses later")]

use std::io;
use std::os::fd::RawFd;

use io_uring::types::Fd;
use io_uring::{EnterFlags, IoUring, opcode, squeue};
use smallvec::SmallVec;

use super::cached::{self, CachedRead};

/// Entries of the ring: runs of reads that one enter makes.
const ENTRIES: usize = 16;
/// Fewer reads cost less with a call each, measured.
pub(super) const WORTH: usize = 4;

/// See the module docs. May be made on another thread than the one that uses it.
pub(super) struct Batch {
    ring: IoUring,
    /// The ring was made disabled, and the thread that enables it owns it.
    enabled: bool,
}

impl Batch {
    pub(super) fn new() -> io::Result<Self> {
        let mut best = IoUring::builder();
        best.dontfork().setup_single_issuer().setup_r_disabled().setup_coop_taskrun();
        match best.build(ENTRIES as u32) {
            Ok(ring) => Ok(Self { ring, enabled: false }),
            Err(_) => {
                let ring = IoUring::builder().dontfork().build(ENTRIES as u32)?;
                Ok(Self { ring, enabled: true })
            }
        }
    }

    /// Tries all of them.
    ///
    /// # Errors
    /// The ring failed. Nothing is in flight, but this one must not be used again; what was not filled is as if it had not
    /// been tried.
    pub(super) fn try_reads(&mut self, mut reads: &mut [CachedRead<'_>]) -> io::Result<()> {
        if !self.enabled {
            self.ring.submitter().register_enable_rings()?;
            self.enabled = true;
        }
        while !reads.is_empty() {
            let count = first_runs(reads);
            let (now, later) = reads.split_at_mut(count);
            reads = later;
            self.make(now)?;
        }
        Ok(())
    }

    /// [`ENTRIES`] runs at most.
    fn make(&mut self, reads: &mut [CachedRead<'_>]) -> io::Result<()> {
        // Those of all reads, one behind the other: a run's are neighbours.
        let mut iovecs: SmallVec<[libc::iovec; 2 * ENTRIES]> = SmallVec::new();
        reads.iter().for_each(|read| iovecs.extend_from_slice(read.iovecs));
        let mut left = &*iovecs;
        let mut entries = 0;
        for run in cached::runs(reads) {
            let pieces: usize = run.iter().map(|read| read.iovecs.len()).sum();
            let (iovecs, more) = left.split_at_checked(pieces).unwrap_or_default();
            left = more;
            let Some(first) = run.first() else { continue };
            let entry = entry(first.file.fd(), first, iovecs);
            // SAFETY: the pieces lead to memory that `reads` keeps, and no entry outlives this call, which `enter`
            // sees to; nor do the iovecs move before it ends.
            if unsafe { self.ring.submission().push(&entry.user_data(entries)) }.is_err() {
                return Err(io::Error::other("a ring of reads was not empty"));
            }
            entries += 1;
        }
        let mut results = [-libc::EAGAIN; ENTRIES];
        let ended = self.enter(entries as usize, &mut results);
        for (run, result) in cached::runs_mut(reads).zip(results) {
            cached::settle(run, usize::try_from(result).map_err(|_| -result));
        }
        ended
    }

    /// Hands over so many entries, and returns when none of them is under way.
    fn enter(&mut self, entries: usize, results: &mut [i32; ENTRIES]) -> io::Result<()> {
        let (mut given, mut got) = (0, 0);
        let mut failed = None;
        // Once, as a rule: these end within the call that hands them over.
        while got < given || (given < entries && failed.is_none()) {
            let give = if failed.is_none() { entries - given } else { 0 };
            let (want, flags) =
                if given == 0 { (0, EnterFlags::empty()) } else { (1, EnterFlags::GETEVENTS) };
            // SAFETY: no argument is passed; the entries are as `make` says.
            match unsafe { self.ring.submitter().enter::<()>(give as u32, want, flags.bits(), None) } {
                Ok(0) if got == given => failed = Some(io::Error::other("nothing was taken")),
                Ok(taken) => given += taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => failed = Some(error),
            }
            for cqe in self.ring.completion() {
                got += 1;
                if let Some(result) = results.get_mut(cqe.user_data() as usize) {
                    *result = cqe.result();
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Reads from the start that are [`ENTRIES`] runs, or all.
fn first_runs(reads: &[CachedRead<'_>]) -> usize {
    cached::runs(reads).take(ENTRIES).map(<[_]>::len).sum()
}

fn entry(fd: RawFd, first: &CachedRead<'_>, iovecs: &[libc::iovec]) -> squeue::Entry {
    let fd = Fd(fd);
    // The highest one would mean the file's own position to a ring.
    let offset = first.offset.min(i64::MAX as u64);
    match iovecs {
        // A single piece spares the kernel the copy and the check of an array.
        [piece] if let Ok(len) = u32::try_from(piece.iov_len) => {
            opcode::Read::new(fd, piece.iov_base.cast(), len)
                .offset(offset)
                .rw_flags(libc::RWF_NOWAIT)
                .build()
        }
        // The kernel refuses more pieces than it takes.
        _ => opcode::Readv::new(fd, iovecs.as_ptr(), u32::try_from(iovecs.len()).unwrap_or(u32::MAX))
            .offset(offset)
            .rw_flags(libc::RWF_NOWAIT)
            .build(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cached::tests::{conform, conform_without_memory};
    use super::super::probe;
    use super::*;

    #[test]
    fn many_with_one_call() {
        if probe().is_err() {
            return;
        }
        let mut batch = Batch::new().expect("the ring is made");
        conform(&mut |reads| batch.try_reads(reads).expect("the ring works"));
        conform_without_memory(&mut |reads| batch.try_reads(reads).expect("the ring works"));
        assert!(batch.ring.submission().is_empty() && batch.ring.completion().is_empty());
    }
}
