//! A disk in a regular file or a block device, byte for byte.

mod align;
mod backing;
mod cache;
mod copy;
mod extents;
mod failures;
mod format;
pub(super) mod image;
pub(super) mod job;
mod lock;
mod open;
pub(super) mod page_cache;
mod probe;
mod range_locks;
mod sync;
mod transfer;
mod unaligned;
pub(super) mod ways;
mod zero;

#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod job_tests;

use std::fs::File;
use std::sync::Arc;

pub use cache::CacheMode;
pub use open::{FileOptions, OpenError, OpenFault, is_same_image};

use self::copy::{FileCopy, is_short};
use self::image::{Direct, ImageFile, ignore_access_time};
use self::job::FileJob;
use self::open::Opened;
use self::unaligned::fits_memory;
use super::lane::{Class, Work};
use super::{
    Cached, CachedRead, Disk, DiskError, Done, Handle, How, Inline, Lane, Moved, Op, ResizeError, Stop, Tag,
    Ways,
};
use crate::memory::Transient;

/// See the module docs.
#[derive(Debug)]
pub struct FileDisk {
    name: String,
    read_only: bool,
    unit: Option<u64>,
    unmaps: bool,
    file: Arc<ImageFile>,
    created: bool,
    /// Locks and claims on what is under it.
    _beneath: Vec<File>,
}

impl FileDisk {
    /// Opens an image, or creates it.
    pub fn open(options: FileOptions) -> Result<Self, OpenError> {
        let Opened { file, len, direct, created, beneath } = open::open(&options)?;
        let path = &options.path;
        ignore_access_time(&file);
        let name = path.display().to_string();
        let unit = extents::unit(&file, path, len, options.read_only);
        let mut image = ImageFile::new(file, len, options.tap, options.cache, direct).known_as(&name);
        if !options.unmap {
            image = image.keeping_blocks();
        }
        Ok(FileDisk {
            unmaps: options.unmap,
            name,
            read_only: options.read_only,
            unit,
            file: Arc::new(image),
            created,
            _beneath: beneath,
        })
    }

    /// Its file was made when it was opened, or was empty and got its length.
    pub fn is_created(&self) -> bool {
        self.created
    }

    /// As if its file system asked for blocks of so many bytes.
    #[cfg(test)]
    pub(in crate::disk) fn asking_for(mut self, block: u64) -> Self {
        let align = align::Alignment { memory: block as usize, block };
        let image = Arc::get_mut(&mut self.file).expect("nobody uses it yet");
        image.ask_for(image::Direct { align, parts: true });
        self
    }

    /// The range of `op`, if it may be done. A file that somebody cut is noticed by what fails and where durability is
    /// promised; from then on no write lengthens it again, which would make zeroes of what is lost.
    fn check(&self, op: &Op) -> Result<(u64, u64), DiskError> {
        let (offset, len) = op.check(self.file.len(), self.read_only)?;
        let durable = self.is_durable(op);
        // A Flush promises something of all that was written.
        let end = if durable && matches!(op, Op::Flush) { self.file.len() } else { offset + len };
        // What was found to be cut may have its length again.
        let is_cut = (durable || end > self.file.intact()) && self.file.is_cut(end);
        match () {
            () if is_cut => Err(DiskError::Truncated),
            () if durable => self.file.syncs().check(),
            () => Ok(()),
        }
        .inspect_err(|error| self.file.failed(name(op), offset, len, error))?;
        Ok((offset, len))
    }

    /// Is what was written durable when `op` is over?
    fn is_durable(&self, op: &Op) -> bool {
        let asked = match op {
            Op::Flush => return !self.read_only && !self.file.cache().is_unsafe(),
            Op::Write { fua, .. } | Op::WriteZeroes { fua, .. } | Op::Copy { durable: fua, .. } => *fua,
            _ => false,
        };
        op.is_write() && self.file.is_durable(asked)
    }

    /// Hands `op`, which was checked and is not empty, to the ring or to a thread.
    fn begin(&self, tag: Tag, op: Op, (offset, len): (u64, u64), lane: &mut Lane) {
        let (file, id) = (Arc::clone(&self.file), self.file.id());
        let (writes, durable) = (op.is_write(), self.is_durable(&op));
        let work = match op {
            Op::Read { buf, .. } | Op::Write { buf, .. } => {
                let direct = file.direct().filter(|Direct { align, parts }| {
                    (writes && *parts) || !align.fits(offset, len) || !fits_memory(*align, &buf)
                });
                let job = FileJob::new(Arc::clone(&file), writes, offset, buf, durable);
                let Some(direct) = direct else { return lane.ring(tag, job) };
                Work::new(id, Class::Change, move |stop| {
                    let _guard = writes.then(|| file.lock(offset, len));
                    job.run_direct(direct, stop)
                })
            }
            Op::Copy { from, pieces, at, how, buf, .. } => {
                let source = from.handle().get::<Arc<ImageFile>>().cloned();
                let Some(source) = source.filter(|source| self.leads(source, &pieces, at, how)) else {
                    return lane.done(Done { tag, result: Err(DiskError::NoWay), buf });
                };
                let class = if is_short(how, len) { Class::ShortCopy } else { Class::LongCopy };
                let copy = FileCopy { source, target: file, pieces, at, len, how, durable };
                Work::new(id, class, move |stop| copy.run(buf, stop))
            }
            op => {
                let class = match op {
                    Op::Flush => Class::Sync,
                    Op::Probe { .. } => Class::Short,
                    _ => Class::Change,
                };
                // Flushes that wait for one under way share the next.
                let flush = matches!(op, Op::Flush).then(|| file.syncs().ticket());
                Work::new(id, class, move |stop| {
                    let changed = run(&file, &op, (offset, len), stop);
                    let result = changed.inspect_err(|error| file.failed(name(&op), offset, len, error));
                    let ticket = flush.unwrap_or_else(|| file.syncs().ticket());
                    let sync = || if durable { file.sync(ticket) } else { Ok(()) };
                    (result.and_then(|()| sync()).map(|()| Moved::Plain), None)
                })
            }
        };
        lane.block(tag, work);
    }

    /// Does the way lead from there to here?
    fn leads(&self, source: &ImageFile, pieces: &[(u64, u64)], at: u64, how: How) -> bool {
        match (pieces, how) {
            (_, How::ReadWrite { .. }) => self.file.ways_from(source).read_write,
            (&[(from, len)], how) => self.file.allows(source, from, at, len, how),
            _ => false,
        }
    }
}

/// What is to be done for an operation without memory, on a thread that may block; but for its sync.
fn run(file: &ImageFile, op: &Op, (offset, len): (u64, u64), stop: &Stop) -> Result<(), DiskError> {
    let _guard = op.is_write().then(|| file.lock(offset, len));
    match op {
        Op::Probe { .. } => probe::probe(file, offset, len),
        Op::WriteZeroes { unmap, .. } => zero::zero(file, offset, len, *unmap, stop),
        Op::Discard { .. } => zero::discard(file, offset, len),
        _ => Ok(()),
    }
}

/// What `op` does, for the log.
fn name(op: &Op) -> &'static str {
    match op {
        Op::Read { .. } => "read",
        Op::Write { .. } => "write",
        Op::Flush => "flush",
        Op::WriteZeroes { .. } => "zeroing",
        Op::Discard { .. } => "discard",
        Op::Probe { .. } => "search for blocks",
        Op::Copy { .. } => "copy",
    }
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&self, tag: Tag, op: Op, lane: &mut Lane) {
        let result = match (self.check(&op), &op) {
            (Err(error), _) => Err(error),
            (Ok(_), Op::Flush) if !self.is_durable(&op) => Ok(Moved::Plain),
            (Ok(_), Op::Probe { .. }) if self.unit.is_none() => Ok(Moved::Plain),
            (Ok((_, 0)), op) if !matches!(op, Op::Flush) => Ok(Moved::Plain),
            (Ok(range), _) => return self.begin(tag, op, range, lane),
        };
        lane.done(Done { tag, result, buf: op.into_buf() });
    }

    fn inline(&self) -> Inline<'_> {
        Inline::Cached(self)
    }

    fn allocation_unit(&self) -> Option<u64> {
        self.unit
    }

    fn volatile_cache(&self) -> bool {
        !self.file.cache().is_write_through()
    }

    fn is_direct(&self) -> bool {
        self.file.alignment().is_some()
    }

    fn unmaps(&self) -> bool {
        self.unmaps
    }

    fn handle(&self) -> Handle<'_> {
        Handle::of(&self.file)
    }

    fn is_same_place(&self, other: &Handle<'_>) -> bool {
        other.get::<Arc<ImageFile>>().is_some_and(|other| self.file.is_same(other))
    }

    fn ways_from(&self, source: &Handle<'_>) -> Ways {
        match source.get::<Arc<ImageFile>>() {
            Some(source) if !self.read_only => self.file.ways_from(source),
            _ => Ways::default(),
        }
    }

    fn resize(&self, len: u64) -> Result<(), ResizeError> {
        if self.read_only {
            return Err(ResizeError::ReadOnly);
        }
        self.file.resize(len)
    }

    fn sync(&self) -> Result<(), DiskError> {
        if self.read_only || self.file.cache().is_unsafe() {
            return Ok(());
        }
        self.file.syncs().check()?;
        self.file.sync(self.file.syncs().ticket())
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Cached for FileDisk {
    fn is_worth_a_try(&self) -> bool {
        self.file.page_cache().is_worth_a_try()
    }

    fn read<'a>(&'a self, offset: u64, to: &'a Transient<'_>) -> CachedRead<'a> {
        CachedRead::new(&self.file, offset, to)
    }
}
