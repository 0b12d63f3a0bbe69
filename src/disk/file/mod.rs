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
mod unaligned;
pub(super) mod ways;

#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod job_tests;

use std::fs::File;
use std::sync::Arc;

pub use cache::CacheMode;
pub use open::{FileOptions, OpenError, is_same_image};

use self::copy::{FileCopy, is_short};
use self::image::{ImageFile, ignore_access_time};
use self::job::FileJob;
use self::open::Opened;
use self::unaligned::{Unaligned, fits_memory};
use super::lane::{Class, Work};
use super::{
    Cached, CachedRead, Disk, DiskError, Done, Handle, How, Inline, Lane, Moved, Op, ResizeError, Tag, Ways,
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
        let durable = match op {
            Op::Flush => !self.read_only,
            Op::Write { fua: true, .. }
            | Op::WriteZeroes { fua: true, .. }
            | Op::Copy { durable: true, .. } => true,
            _ => op.is_write() && self.file.cache().is_write_through(),
        };
        if durable {
            self.file.measure();
        }
        // A Flush promises something of all that was written.
        let end = if durable && matches!(op, Op::Flush) { self.file.len() } else { offset + len };
        let fits = || end <= self.file.intact();
        if !fits() {
            // It may have its length again.
            self.file.measure();
            if !fits() {
                let what = match op {
                    Op::Read { .. } => "read",
                    Op::Write { .. } => "write",
                    Op::Flush => "flush",
                    Op::WriteZeroes { .. } => "zeroing",
                    Op::Discard { .. } => "discard",
                    Op::Probe { .. } => "search for blocks",
                    Op::Copy { .. } => "copy",
                };
                self.file.failed(what, offset, len, &DiskError::Truncated);
                return Err(DiskError::Truncated);
            }
        }
        Ok((offset, len))
    }

    /// Hands `op`, whose range was checked and is not empty, to the ring or to a thread.
    fn begin(&self, tag: Tag, op: Op, (offset, len): (u64, u64), lane: &mut Lane) {
        let file = Arc::clone(&self.file);
        if let Op::Copy { from, pieces, at, how, buf, durable } = op {
            let source =
                from.handle().get::<Arc<ImageFile>>().filter(|source| self.leads(source, &pieces, at, how));
            let Some(source) = source.cloned() else {
                return lane.done(Done { tag, result: Err(DiskError::NoWay), buf });
            };
            let class = if is_short(how, len) { Class::ShortCopy } else { Class::LongCopy };
            let copy = FileCopy { source, target: file, pieces, at, len, how, durable };
            return lane
                .block(tag, Work::new(self.file.id(), class, move |stop| copy.run(buf, &|| stop.is_set())));
        }
        if let Op::Probe { .. } = op {
            let probe = move || {
                let result = probe::probe(&file, offset, len);
                result
                    .inspect_err(|error| file.failed("search for blocks", offset, len, error))
                    .map(|()| Moved::Plain)
            };
            return lane.block(tag, Work::new(self.file.id(), Class::Short, move |_| (probe(), None)));
        }
        if self.is_unaligned(&op, offset, len) {
            return lane.block(tag, self.unaligned(op, offset, len));
        }
        let job = match op {
            Op::Read { buf, .. } => FileJob::read(file, offset, buf),
            Op::Write { buf, fua, .. } => FileJob::write(file, offset, buf, fua),
            Op::WriteZeroes { unmap, fua, .. } => FileJob::zero(file, offset, len, unmap, fua),
            _ => FileJob::discard(file, offset, len),
        };
        lane.ring(tag, job);
    }

    /// Does the way lead from there to here?
    fn leads(&self, source: &ImageFile, pieces: &[(u64, u64)], at: u64, how: How) -> bool {
        match (pieces, how) {
            (_, How::ReadWrite { .. }) => self.file.ways_from(source).read_write,
            (&[(from, len)], how) => self.file.allows(source, from, at, len, how),
            _ => false,
        }
    }

    /// Is it one that a ring cannot do: the kernel would refuse it, or others have to keep off its blocks?
    fn is_unaligned(&self, op: &Op, offset: u64, len: u64) -> bool {
        let Some(direct) = self.file.direct() else { return false };
        let shared_blocks = direct.parts && op.is_write();
        let fits = direct.align.fits(offset, len)
            && match op {
                Op::Read { buf, .. } | Op::Write { buf, .. } => fits_memory(direct.align, buf),
                _ => true,
            };
        shared_blocks || !fits
    }

    fn unaligned(&self, op: Op, offset: u64, len: u64) -> Work {
        let file = Arc::clone(&self.file);
        Work::new(self.file.id(), Class::Unaligned, move |stop| {
            let is_stopped = || stop.is_set();
            let (what, changes, fua) = match &op {
                Op::Write { fua, .. } => ("write", true, *fua),
                Op::WriteZeroes { fua, .. } => ("zeroing", true, *fua),
                Op::Discard { .. } => ("discard", true, false),
                _ => ("read", false, false),
            };
            let durable = changes && file.is_durable(fua);
            let run = |op: &mut Op| match op {
                Op::Read { buf, .. } => Unaligned::read(&file, offset, buf, &is_stopped),
                Op::Write { buf, .. } => Unaligned::write(&file, offset, buf, &is_stopped),
                Op::WriteZeroes { unmap, .. } => Unaligned::zero(&file, offset, len, *unmap, &is_stopped),
                _ => Unaligned::discard(&file, offset, len),
            };
            let mut op = op;
            let result = if durable { file.syncs().check() } else { Ok(()) }
                .and_then(|()| run(&mut op).inspect_err(|error| file.failed(what, offset, len, error)))
                .and_then(|()| if durable { file.sync(file.syncs().ticket()) } else { Ok(()) });
            let buf = op.into_buf();
            let lost = buf.as_ref().map_or(Ok(()), super::IoBuf::check);
            (result.and(lost).map(|()| Moved::Plain), buf)
        })
    }

    /// Flush: what was completed before is durable.
    fn flush(&self, tag: Tag, lane: &mut Lane) {
        let (file, ticket) = (Arc::clone(&self.file), self.file.syncs().ticket());
        let sync = move || file.sync(ticket).map(|()| Moved::Plain);
        lane.block(tag, Work::new(self.file.id(), Class::Sync, move |_| (sync(), None)));
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
            (Ok(_), Op::Flush) if self.read_only || self.file.cache().is_unsafe() => Ok(Moved::Plain),
            (Ok(_), Op::Flush) => match self.file.syncs().check() {
                Ok(()) => return self.flush(tag, lane),
                Err(error) => {
                    self.file.failed("flush", 0, 0, &error);
                    Err(error)
                }
            },
            (Ok((_, 0)), _) => Ok(Moved::Plain),
            (Ok(_), Op::Probe { .. }) if self.unit.is_none() => Ok(Moved::Plain),
            (Ok(range), _) => return self.begin(tag, op, range, lane),
            (Err(error), _) => Err(error),
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
