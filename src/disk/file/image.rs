//! The open file behind a disk, as all operations on it share it: descriptor, and what was learnt about it.
#![expect(unsafe_code, reason = "system calls on iovecs; a tap is shown what they point at")]

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libc::iovec;

use super::align::Alignment;
use super::cache::CacheMode;
use super::failures::{Failure, Failures};
use super::page_cache::PageCache;
use super::range_locks::{Guard, RangeLocks};
use super::sync::{SyncTicket, Syncs};
use super::ways::{self, FileFacts, ImageId, Refusals, Way};
use crate::disk::sys::{Call, Tap, call};
use crate::disk::{DiskError, How, ResizeError, Ways};

/// A file that answers EAGAIN or EINTR this often in a row is not going to change its mind.
pub(in crate::disk) const MAX_AGAIN: u32 = 1000;

/// An ability the kernel may lack for a file; once refused, it is not asked again.
#[derive(Clone, Copy, Debug)]
pub(in crate::disk) enum Ability {
    PunchHole,
    ZeroRange,
    DsyncWrite,
}

/// How an image is to be accessed past the page cache.
#[derive(Clone, Copy, Debug)]
pub(in crate::disk) struct Direct {
    pub(in crate::disk) align: Alignment,
    /// Parts of blocks may be written: then no two writes may touch one block at once.
    pub(in crate::disk) parts: bool,
}

/// See the module docs.
#[derive(Debug)]
pub(in crate::disk) struct ImageFile {
    file: File,
    /// Bytes that it had when it was opened, or was given since.
    len: AtomicU64,
    /// Bytes that it has, as far as is known, and at most `len`.
    intact: AtomicU64,
    failures: Failures,
    facts: FileFacts,
    page_cache: PageCache,
    refusals: Refusals,
    lacks: [AtomicBool; 3],
    syncs: Syncs,
    tap: Option<Arc<dyn Tap>>,
    cache: CacheMode,
    /// Of an image opened with O_DIRECT.
    direct: Option<Direct>,
    locks: RangeLocks,
}

/// Reads are not to be noted in the file's access time: to look whether they are to be costs a twentieth of a small
/// read. Only the owner may say so; for others it stays as it is.
pub(super) fn ignore_access_time(file: &File) {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let _ = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::NOATIME));
}

impl ImageFile {
    /// `direct` belongs to a file opened with O_DIRECT.
    pub(in crate::disk) fn new(
        file: File,
        len: u64,
        tap: Option<Arc<dyn Tap>>,
        cache: CacheMode,
        direct: Option<Direct>,
    ) -> Self {
        let page_cache = PageCache::of(&file);
        if tap.is_some() {
            // A tap sees every call.
            page_cache.ignore();
        }
        ImageFile {
            facts: FileFacts::of(&file),
            len: AtomicU64::new(len),
            intact: AtomicU64::new(len),
            failures: Failures::of("an image".into()),
            page_cache,
            refusals: Refusals::default(),
            file,
            lacks: Default::default(),
            syncs: Syncs::default(),
            tap,
            cache,
            direct,
            locks: RangeLocks::default(),
        }
    }

    /// As people call it.
    pub(super) fn known_as(mut self, name: &str) -> Self {
        self.failures = Failures::of(name.into());
        self
    }

    /// Never gives blocks back.
    pub(super) fn keeping_blocks(self) -> Self {
        self.lacks[Ability::PunchHole as usize].store(true, Ordering::Relaxed);
        self
    }

    /// Said to be on a file system like this: sharing blocks, or with writes that wait.
    #[cfg(test)]
    pub(in crate::disk) fn on(self, clones: Option<u64>, writes_wait: bool) -> Self {
        ImageFile { facts: self.facts.said(clones, writes_wait), ..self }
    }

    #[cfg(test)]
    pub(super) fn ask_for(&mut self, direct: Direct) {
        self.direct = Some(direct);
    }

    pub(in crate::disk) fn id(&self) -> ImageId {
        self.facts.image()
    }

    /// Bytes that it is to have.
    pub(in crate::disk) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Gives the file another length, durably. One that is longer has it before anybody may use it, one that is shorter loses
    /// nothing that somebody may still use.
    pub(super) fn resize(&self, len: u64) -> Result<(), ResizeError> {
        if let Some(align) = self.alignment().filter(|align| !len.is_multiple_of(align.block)) {
            return Err(ResizeError::Uneven(align.block));
        }
        let old = self.len();
        if self.file.metadata()?.file_type().is_file() {
            if len < old {
                self.len.store(len, Ordering::Relaxed);
            }
            if let Err(error) = self.file.set_len(len).and_then(|()| self.file.sync_all()) {
                self.len.store(old, Ordering::Relaxed);
                return Err(error.into());
            }
        } else {
            // A device has the length that it has.
            let has = (&self.file).seek(SeekFrom::End(0))?;
            if len > has {
                return Err(ResizeError::Device(has));
            }
            self.intact.store(len, Ordering::Relaxed);
        }
        self.len.store(len, Ordering::Relaxed);
        self.measure();
        Ok(())
    }

    pub(in crate::disk) fn page_cache(&self) -> &PageCache {
        &self.page_cache
    }

    pub(super) fn cache(&self) -> CacheMode {
        self.cache
    }

    /// Is what is written to be durable when it completes? `fua`: it was asked for.
    pub(super) fn is_durable(&self, fua: bool) -> bool {
        (fua || self.cache.is_write_through()) && !self.cache.is_unsafe()
    }

    /// A direct transfer does so only where the file ends, or the room on the disk.
    pub(super) fn ends_within_a_block(&self, moved: u64) -> bool {
        self.alignment().is_some_and(|align| !moved.is_multiple_of(align.block))
    }

    pub(super) fn direct(&self) -> Option<Direct> {
        self.direct
    }

    /// What transfers must be like.
    pub(super) fn alignment(&self) -> Option<Alignment> {
        self.direct.map(|direct| direct.align)
    }

    pub(in crate::disk) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Waits until a change of this range may begin. `None`: nothing on this image need wait for another.
    pub(super) fn lock(&self, offset: u64, len: u64) -> Option<Guard<'_>> {
        let Direct { align, parts } = self.direct?;
        let end = (offset + len).next_multiple_of(align.block);
        parts.then(|| self.locks.lock(offset - offset % align.block..end))
    }

    /// Ways from `source` to this file.
    pub(super) fn ways_from(&self, source: &ImageFile) -> Ways {
        ways::between(&source.facts, &self.facts, &self.refusals)
    }

    /// Is a copy of these ranges, which lie in both files, one that the kernel may be asked for?
    pub(super) fn allows(&self, source: &ImageFile, from: u64, at: u64, len: u64, how: How) -> bool {
        let ways = self.ways_from(source);
        // The kernel refuses direct access to parts of blocks, and pages that are shifted against them.
        let mut direct = [source, self].into_iter().filter_map(ImageFile::alignment);
        if direct.any(|align| !align.fits(from, len) || !align.fits(at, len)) {
            return false;
        }
        // And both ways when the ranges overlap.
        if self.is_same(source) && from.abs_diff(at) < len {
            return false;
        }
        match how {
            How::MemMove | How::ReadWrite { .. } => false,
            How::Offload => ways.offload,
            How::Reflink => ways.reflink.is_some_and(|block| {
                let to_both_ends = from + len == source.len() && at + len == self.len();
                let aligned = |n: u64| n.is_multiple_of(block);
                aligned(from) && aligned(at) && (aligned(len) || to_both_ends)
            }),
        }
    }

    /// The kernel answered `errno` to `way` from `source` to this file.
    pub(super) fn refused(&self, source: &ImageFile, way: Way, errno: i32) {
        self.refusals.remember(source.id(), way, errno);
    }

    /// Both are open on the same file or device.
    pub(super) fn is_same(&self, other: &ImageFile) -> bool {
        self.facts.is_same_place(&other.facts)
    }

    /// Bytes from its start that may be read and written: its length, or what somebody left of it. A write behind that would
    /// lengthen it, and what is lost would read as zeroes.
    pub(super) fn intact(&self) -> u64 {
        self.intact.load(Ordering::Relaxed)
    }

    /// Finds out whether it still has its length; whoever cut it may have lengthened it again. Never waits for a server.
    pub(super) fn measure(&self) {
        use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        if let Ok(stat) = statx(&self.file, "", flags, StatxFlags::TYPE | StatxFlags::SIZE)
            && FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile
        {
            self.intact.store(stat.stx_size.min(self.len()), Ordering::Relaxed);
        }
    }

    /// Does it end before byte `end` by now?
    pub(super) fn is_cut(&self, end: u64) -> bool {
        self.measure();
        self.intact() < end
    }

    /// For the log: the host failed to do this with `len` bytes at `offset`. What only the guest can mend is left out.
    #[cold]
    pub(super) fn failed(&self, what: &'static str, offset: u64, len: u64, error: &DiskError) {
        let (errno, why) = match error {
            DiskError::Io(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                let remedy = match errno {
                    libc::ENOSPC | libc::EDQUOT => "; make room on its file system",
                    libc::EFBIG => "; allow larger files (ulimit -f)",
                    _ => "",
                };
                (errno, format!("{error}{remedy}"))
            }
            DiskError::Truncated => {
                self.measure();
                let (has, had) = (self.intact(), self.len());
                let cut = format!(
                    "somebody cut it to {has} of {had} bytes; restore it, what lies behind them is lost"
                );
                (0, if has < had { cut } else { error.to_string() })
            }
            _ => return,
        };
        self.failures.note(&Failure { what, offset, len, errno, why });
    }

    pub(super) fn can(&self, ability: Ability) -> bool {
        !self.lacks[ability as usize].load(Ordering::Relaxed)
    }

    pub(super) fn remember_lack(&self, ability: Ability) {
        if !self.lacks[ability as usize].swap(true, Ordering::Relaxed) {
            log::debug!("an image lacks {ability:?}; the next best is used from now on");
        }
    }

    pub(super) fn syncs(&self) -> &Syncs {
        &self.syncs
    }

    /// Returns when what `ticket` was taken for is durable: for a thread that may block.
    pub(in crate::disk) fn sync(&self, ticket: SyncTicket) -> Result<(), DiskError> {
        let result = self.syncs.sync(ticket, || self.call(Call::Fdatasync));
        result.inspect_err(|error| self.failed("flush", 0, 0, error))
    }

    pub(super) fn is_tapped(&self) -> bool {
        self.tap.is_some()
    }

    /// Makes a call that moves no memory, again where it was interrupted: an offset or 0, or errno.
    pub(super) fn call(&self, call: Call) -> Result<u64, i32> {
        self.copy(call, self)
    }

    /// The same, of a copy from `source`.
    pub(super) fn copy(&self, call: Call, source: &ImageFile) -> Result<u64, i32> {
        // SAFETY: there are no iovecs.
        unsafe { self.make(call, source, &[]) }
    }

    /// Makes a call, again where it was interrupted: bytes, an offset or 0, or errno.
    ///
    /// # Safety
    /// As [`call::make`].
    pub(super) unsafe fn make(&self, call: Call, source: &ImageFile, iovecs: &[iovec]) -> Result<u64, i32> {
        let mut again = 0;
        loop {
            let ticket = self.issued(&call, source, iovecs);
            let result = self.answer(&call, iovecs).unwrap_or_else(|| {
                // SAFETY: the caller's promise.
                unsafe { call::make(call, self.fd(), source.fd(), iovecs) }
            });
            match self.completed(ticket, &call, result) {
                Err(libc::EINTR | libc::EAGAIN) if again < MAX_AGAIN => again += 1,
                result => return result,
            }
        }
    }

    /// Tells the tap of a call that is about to be made; its ticket. The iovecs lead to memory that can be read.
    pub(super) fn issued(&self, call: &Call, source: &ImageFile, iovecs: &[iovec]) -> u64 {
        let Some(tap) = &self.tap else { return 0 };
        let mut data = Vec::new();
        let written = if matches!(call, Call::Pwritev { .. }) { iovecs } else { &[] };
        for iov in written {
            let at = data.len();
            data.resize(at + iov.iov_len, 0);
            // SAFETY: the iovecs of a write lie in memory that is there as long as the call. The guest may write there
            // meanwhile, and the bytes are nobody's reference.
            unsafe { std::ptr::copy(iov.iov_base.cast(), data.as_mut_ptr().add(at), iov.iov_len) };
        }
        tap.issued(call, &data, &source.file)
    }

    /// What the tap answers in the kernel's place.
    pub(super) fn answer(&self, call: &Call, iovecs: &[iovec]) -> Option<i64> {
        self.tap.as_ref()?.answer(call, iovecs.iter().map(|iov| iov.iov_len as u64).sum())
    }

    /// Tells the tap how a call ended, and the caller in a form to be understood.
    pub(super) fn completed(&self, ticket: u64, call: &Call, result: i64) -> Result<u64, i32> {
        let errno = i32::try_from(result.wrapping_neg()).unwrap_or(libc::EIO);
        let result = u64::try_from(result).map_err(|_| errno);
        if let Some(tap) = &self.tap {
            // What a tap is told of moves less than 2 GiB in a call.
            tap.completed(ticket, call, result.map(|moved| u32::try_from(moved).unwrap_or(u32::MAX)));
        }
        result
    }
}
