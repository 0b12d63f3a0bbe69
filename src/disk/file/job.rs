//! A read or write of a file. Its first call is for a ring, and mostly all there is to it; the rest is for a thread that may
//! block.
#![expect(unsafe_code, reason = "system calls on iovecs")]

use std::os::fd::RawFd;
use std::sync::Arc;

use libc::iovec;

use super::image::{Direct, ImageFile};
use super::transfer::{Answered, Transfer};
use super::unaligned::{self, fits_memory};
use crate::disk::sys::Call;
use crate::disk::{DiskError, IoBuf, Moved, Stop};

/// See the module docs. Owner of its buffer; its range was checked and is not empty.
///
/// A ring makes the call of [`FileJob::begin`] with [`FileJob::iovecs`] and tells [`FileJob::complete`]; meanwhile the job
/// must not move, for the iovecs may lie in it.
#[derive(Debug)]
pub(in crate::disk) struct FileJob {
    file: Arc<ImageFile>,
    writes: bool,
    offset: u64,
    /// What is written is to be durable.
    durable: bool,
    buf: IoBuf,
    /// Of a buffer of ours.
    own: Own,
    /// The ring's call, and what the tap calls it.
    issued: Option<(Call, u64)>,
    answered: Option<(Call, Answered)>,
}

#[derive(Debug)]
struct Own(iovec);

// SAFETY: it leads to the job's own buffer, which may be used by any thread, one at a time.
unsafe impl Send for Own {}

/// What a job comes to.
pub(in crate::disk) type Finished = (Result<Moved, DiskError>, Option<IoBuf>);

impl FileJob {
    /// Between `buf` and what lies at `offset`.
    pub(in crate::disk) fn new(
        file: Arc<ImageFile>,
        writes: bool,
        offset: u64,
        mut buf: IoBuf,
        durable: bool,
    ) -> Self {
        let own = buf.ours_mut().unwrap_or_default();
        let own = Own(iovec { iov_base: own.as_mut_ptr().cast(), iov_len: own.len() });
        FileJob { file, writes, offset, durable, buf, own, issued: None, answered: None }
    }

    pub(in crate::disk) fn file(&self) -> &ImageFile {
        &self.file
    }

    pub(in crate::disk) fn fd(&self) -> RawFd {
        self.file.fd()
    }

    /// All of its memory, in order.
    pub(in crate::disk) fn iovecs(&self) -> &[iovec] {
        match &self.buf {
            IoBuf::Guest(buf) => buf.iovecs(),
            _ => std::slice::from_ref(&self.own.0),
        }
    }

    fn transfer(&self) -> Transfer<'_> {
        let FileJob { file, writes, offset, durable, .. } = self;
        Transfer { file, writes: *writes, offset: *offset, memory: self.iovecs(), durable: *durable }
    }

    /// The call that a ring is to make; `None` where the tap has answered it.
    pub(in crate::disk) fn begin(&mut self) -> Option<Call> {
        self.hold(true);
        let call = self.transfer().first();
        self.issued = Some((call, self.file.issued(&call, &self.file, self.iovecs())));
        let answer = self.file.answer(&call, self.iovecs());
        answer.map(|result| self.complete(result)).is_none().then_some(call)
    }

    /// The result of the ring's call as the kernel gives it: bytes, or a negative errno.
    pub(in crate::disk) fn complete(&mut self, result: i64) {
        let Some((call, ticket)) = self.issued.take() else { return };
        let answer = self.file.completed(ticket, &call, result);
        // As if it had not been made (the kernel may have no thread for it): one of ours makes it.
        let again = matches!(answer, Err(libc::ECANCELED | libc::EINTR | libc::EAGAIN));
        self.answered = (!again).then_some((call, answer));
    }

    /// Has the ring's call moved all of it?
    pub(in crate::disk) fn is_moved(&self) -> bool {
        matches!(self.answered, Some((_, Ok(moved))) if moved >= self.buf.len() as u64)
    }

    /// And made it durable, if that was asked for: nothing that could block is left.
    pub(in crate::disk) fn is_over(&self) -> bool {
        let dsync = matches!(self.answered, Some((Call::Pwritev { dsync: true, .. }, _)));
        self.is_moved() && (dsync || !self.durable)
    }

    /// Does what is left of it. On a thread that may block, unless it [is over](Self::is_over).
    pub(in crate::disk) fn run(mut self, stop: &Stop) -> Finished {
        self.hold(true);
        let answered = self.answered.take();
        // SAFETY: the job owns the memory of its iovecs, and a thread is done with them when this returns.
        let result = unsafe { self.transfer().run(answered, stop) };
        self.ended(result.map_err(|(_, error)| error))
    }

    /// The same, by way of an aligned buffer where the kernel does not take its memory or its range.
    pub(in crate::disk) fn run_direct(mut self, Direct { align, .. }: Direct, stop: &Stop) -> Finished {
        let len = self.buf.len() as u64;
        if align.fits(self.offset, len) && fits_memory(align, &self.buf) {
            return self.run(stop);
        }
        let result = match self.writes {
            true => unaligned::write(&self.file, self.offset, len, Some(&self.buf), stop),
            false => unaligned::read(&self.file, self.offset, &mut self.buf, stop),
        };
        let durable = self.durable;
        self.ended(result.map(|()| durable))
    }

    /// `result`: a sync is to follow.
    fn ended(mut self, result: Result<bool, DiskError>) -> Finished {
        self.hold(false);
        let len = self.buf.len() as u64;
        if let Err(error) = &result {
            self.file.failed(if self.writes { "write" } else { "read" }, self.offset, len, error);
        }
        let result = result.and_then(|sync| self.buf.check().map(|()| sync)).and_then(|sync| match sync {
            true => self.file.sync(self.file.syncs().ticket()),
            false => Ok(()),
        });
        (result.map(|()| Moved::Plain), Some(self.buf))
    }

    /// Past the page cache the kernel has the pages of the guest themselves.
    fn hold(&mut self, begins: bool) {
        if let (IoBuf::Guest(buf), true) = (&mut self.buf, self.file.direct().is_some()) {
            buf.hold(begins);
        }
    }
}
