//! The open file behind a raw image, as all its jobs share it: descriptor and what was learnt about it.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use super::align::Alignment;
use super::failures::{Failure, Failures};
use super::file_job::{Call, JobKind};
use super::page_cache::PageCache;
use super::relay;
use super::shortcut::{self, FileFacts, Refusals, Way};
use super::turns::{Claim, Turns};
use super::uneven::ROOM;
use super::{BackendError, CacheMode, Shortcuts};

/// Watches the real calls on one image, on whatever thread makes them: the seam of the durability
/// laboratory. Without one a job pays a test of an `Option` for each call.
pub trait Tap: Send + Sync + std::fmt::Debug {
    /// The image was opened and locked; no call was made yet.
    fn opened(&self, _image: &File, _len: u64) -> std::io::Result<()> {
        Ok(())
    }
    /// `call` is about to be made; `data` is what a `Pwritev` hands over, or the source's content for
    /// `CloneRange` and `CopyRange` (it may move less), else empty.
    /// Returns a number that comes back with the end of the call.
    fn issued(&self, call: &Call, data: &[u8]) -> u64;
    /// The call ended: bytes moved (0 where none are), or errno.
    fn completed(&self, ticket: u64, call: &Call, result: Result<u32, i32>);
}

/// An ability the kernel may lack for a file; once refused, it is not asked again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ability {
    PunchHole,
    ZeroRange,
    DsyncWrite,
}

/// See the module docs.
#[derive(Debug)]
pub(super) struct ImageFile {
    file: File,
    id: ImageId,
    facts: FileFacts,
    writes_wait: bool,
    page_cache: PageCache,
    refusals: Refusals,
    lacks: [AtomicBool; 3],
    /// errno of the first failed fdatasync, or 0.
    sync_error: AtomicI32,
    tap: Option<Arc<dyn Tap>>,
    cache: CacheMode,
    /// Of an image opened with O_DIRECT.
    direct: Option<Direct>,
    turns: Arc<Turns>,
    /// Bytes that it had when it was opened.
    len: u64,
    /// Bytes that it has, as far as is known, and at most `len`.
    intact: AtomicU64,
    failures: Failures,
}

/// Reads are not to be noted in the file's access time: to look whether they are to be costs a twentieth of a small
/// read. Only the owner may say so; for others it stays as it is.
pub(super) fn ignore_access_time(file: &File) {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let _ = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::NOATIME));
}

/// Tells open images apart. Unlike a descriptor it is never given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ImageId(u64);

/// How an image is to be accessed past the page cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Direct {
    pub(super) align: Alignment,
    /// Parts of blocks may be written: then every write says which blocks it touches.
    pub(super) parts: bool,
}

impl ImageFile {
    pub(super) fn new(file: File, tap: Option<Arc<dyn Tap>>) -> Self {
        let page_cache = PageCache::of(&file);
        if tap.is_some() {
            // A tap sees every call.
            page_cache.ignore();
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        ImageFile {
            id: ImageId(NEXT.fetch_add(1, Ordering::Relaxed)),
            page_cache,
            facts: FileFacts::of(&file),
            writes_wait: relay::writes_wait(&file),
            refusals: Refusals::default(),
            file,
            lacks: Default::default(),
            sync_error: AtomicI32::new(0),
            tap,
            cache: CacheMode::default(),
            direct: None,
            turns: Arc::default(),
            len: u64::MAX,
            intact: AtomicU64::new(u64::MAX),
            failures: Failures::of("an image".into()),
        }
    }

    /// An image of this name and length in bytes.
    pub(super) fn known_as(mut self, name: &str, len: u64) -> Self {
        self.failures = Failures::of(name.into());
        self.len = len;
        self.intact = AtomicU64::new(len);
        self
    }

    /// Cached otherwise; `direct` belongs to a file opened with O_DIRECT.
    pub(super) fn cached(mut self, cache: CacheMode, direct: Option<Direct>) -> Self {
        self.cache = cache;
        self.direct = direct;
        self.facts = self.facts.directly(direct.is_some());
        self
    }

    #[cfg(test)]
    pub(super) fn ask_for(&mut self, direct: Direct) {
        self.direct = Some(direct);
    }

    pub(super) fn id(&self) -> ImageId {
        self.id
    }

    /// Never gives blocks back.
    pub(super) fn keeping_blocks(self) -> Self {
        self.lacks[Ability::PunchHole as usize].store(true, Ordering::Relaxed);
        self
    }

    pub(super) fn page_cache(&self) -> &PageCache {
        &self.page_cache
    }

    pub(super) fn cache(&self) -> CacheMode {
        self.cache
    }

    /// What transfers must be like.
    pub(super) fn alignment(&self) -> Option<Alignment> {
        self.direct.map(|direct| direct.align)
    }

    pub(super) fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// What an operation on this range, not empty, has to take before it may go; `bounces`: by a buffer of ours.
    pub(super) fn claim(&self, offset: u64, len: u64, writes: bool, bounces: bool) -> Option<Claim> {
        let Direct { align, parts } = self.direct?;
        let block = align.block;
        let (start, end) = (offset - offset % block, (offset + len).next_multiple_of(block));
        let mut claim = Claim::default();
        if writes && parts {
            let edge = |at: u64| if at.is_multiple_of(block) { 0 } else { block };
            claim = Claim { range: start..end, head: edge(offset), tail: edge(offset + len), bounce: 0 };
        }
        if bounces {
            claim.bounce = (end - start).min(ROOM as u64) as usize;
        }
        (claim != Claim::default()).then_some(claim)
    }

    /// Said to be on a file system that shares blocks.
    #[cfg(test)]
    pub(super) fn sharing(mut self, block: u64) -> Self {
        self.facts = self.facts.sharing(Some(block));
        self.writes_wait = false;
        self
    }

    /// Said to be on a file system like ext4: its writes wait, and it shares nothing.
    #[cfg(test)]
    pub(super) fn waiting(mut self) -> Self {
        self.facts = self.facts.sharing(None);
        self.writes_wait = true;
        self
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Ways from `source` to this file.
    pub(super) fn shortcuts_from(&self, source: &ImageFile) -> Shortcuts {
        let relay = self.relays_from(source);
        Shortcuts { relay, ..shortcut::between(&source.facts, &self.facts, &self.refusals) }
    }

    /// Does a relay from `source` cost less than reads and a write by a ring? (O_DIRECT is for a ring anyway, and wants
    /// its reads aligned.)
    pub(super) fn relays_from(&self, source: &ImageFile) -> bool {
        self.writes_wait && source.direct.is_none()
    }

    /// The kernel answered `errno` to `way` from `source` to this file.
    pub(super) fn refused(&self, source: &ImageFile, way: Way, errno: i32) {
        if let Some(id) = source.facts.id() {
            self.refusals.remember(id, way, errno);
        }
    }

    /// Both are open on the same file or device.
    pub(super) fn is_same(&self, other: &ImageFile) -> bool {
        self.facts.is_same_place(&other.facts)
    }

    /// What a copy of this range would move, for a tap.
    pub(super) fn content(&self, from: u64, len: u64) -> Vec<u8> {
        // By another description where this one would want aligned memory.
        let other = self.direct.and_then(|_| File::open(format!("/proc/self/fd/{}", self.fd())).ok());
        let file = other.as_ref().unwrap_or(&self.file);
        let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
        let mut got = 0;
        while let Some(left) = data.get_mut(got..)
            && let Ok(more @ 1..) = file.read_at(left, from + got as u64)
        {
            got += more;
        }
        data.truncate(got);
        data
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
            self.intact.store(stat.stx_size.min(self.len), Ordering::Relaxed);
        }
    }

    /// For the log: the host failed to do this with `len` bytes at `offset`. What only the guest can mend is left out.
    #[cold]
    pub(super) fn failed(&self, kind: JobKind, offset: u64, len: u64, error: &BackendError) {
        let what = match kind {
            JobKind::Read => "read",
            JobKind::Write => "write",
            JobKind::Flush => "flush",
            JobKind::WriteZeroes => "zeroing",
            JobKind::Discard => "discard",
            JobKind::Copy | JobKind::Relay => "copy",
            JobKind::Probe => "search for blocks",
        };
        let (errno, why) = match error {
            BackendError::Io(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                let remedy = match errno {
                    libc::ENOSPC | libc::EDQUOT => "; make room on its file system",
                    libc::EFBIG => "; allow larger files (ulimit -f)",
                    _ => "",
                };
                (errno, format!("{error}{remedy}"))
            }
            BackendError::Truncated => {
                self.measure();
                let (has, had) = (self.intact(), self.len);
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

    /// The kernel reports lost writeback once and marks the pages clean, so a later fdatasync would succeed
    /// over lost data. Hence all later Flush and FUA fail until the image is opened anew.
    pub(super) fn sync_failed(&self, errno: i32) {
        let _ = self.sync_error.compare_exchange(0, errno, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// errno of a sync that failed earlier.
    pub(super) fn sync_error(&self) -> Option<i32> {
        match self.sync_error.load(Ordering::Relaxed) {
            0 => None,
            errno => Some(errno),
        }
    }

    pub(super) fn tap(&self) -> Option<&dyn Tap> {
        self.tap.as_deref()
    }
}
