//! An image in a regular file or a block device, byte for byte.

use std::fs::File;
use std::sync::Arc;

use super::copy_steps::CopySteps;
use super::engine::Engine;
use super::extents;
use super::file_job::{FileJob, JobKind};
use super::image_file::{ImageFile, ignore_access_time};
use super::open::{self, OpenError, Opened, RawOptions};
use super::page_cache::TryRead;
use super::relay::Relay;
use super::{Backend, BackendError, Completion, Nature, Op, Shortcut, Shortcuts, Tag};
use crate::memory::Transient;

/// See the module docs.
#[derive(Debug)]
pub struct RawBackend {
    name: String,
    len: u64,
    read_only: bool,
    unit: Option<u64>,
    unmaps: bool,
    created: bool,
    file: Arc<ImageFile>,
    /// Locks and claims on what is under it.
    _beneath: Vec<File>,
}

impl RawBackend {
    /// Opens an image, or creates it.
    pub fn open(options: RawOptions) -> Result<Self, OpenError> {
        let Opened { file, len, direct, created, beneath } = open::open(&options)?;
        let path = &options.path;
        ignore_access_time(&file);
        let name = path.display().to_string();
        let unit = extents::unit(&file, path, len, options.read_only);
        let mut image = ImageFile::new(file, options.tap).cached(options.cache, direct).known_as(&name, len);
        if !options.unmap {
            image = image.keeping_blocks();
        }
        Ok(RawBackend {
            unmaps: options.unmap,
            name,
            len,
            read_only: options.read_only,
            unit,
            created,
            file: Arc::new(image),
            _beneath: beneath,
        })
    }
}

impl RawBackend {
    /// Its file was made when it was opened, or was empty and got its length.
    pub fn is_created(&self) -> bool {
        self.created
    }
}

impl Backend for RawBackend {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&self, tag: Tag, op: Op, engine: &mut dyn Engine) -> Option<Completion> {
        if let Err(error) = self.check(&op) {
            return Some(Completion { tag, result: Err(error), buf: op.into_buf() });
        }
        let none_to_make = match op {
            Op::Flush => self.read_only,
            Op::Probe { .. } => self.unit.is_none(),
            _ => false,
        };
        if none_to_make {
            return Some(Completion { tag, result: Ok(()), buf: None });
        }
        let job = match op {
            Op::CopyFrom { source, from, offset, len, how } => {
                match self.copy_job(&*source, from, offset, len, how) {
                    Some(job) => job,
                    None => {
                        return Some(Completion { tag, result: Err(BackendError::NoShortcut), buf: None });
                    }
                }
            }
            Op::MoveFrom { .. } => {
                return Some(Completion { tag, result: Err(BackendError::NoShortcut), buf: None });
            }
            Op::Relay { .. } => match self.relay_job(op) {
                Ok(job) => job,
                Err(op) => {
                    let result = Err(BackendError::NoShortcut);
                    return Some(Completion { tag, result, buf: op.into_buf() });
                }
            },
            op => FileJob::new(Arc::clone(&self.file), op),
        };
        if job.is_done() {
            return Some(job.finish(tag));
        }
        engine.submit(tag, job.waked_by(|| engine.waker()));
        None
    }

    fn may_try_read(&self) -> bool {
        self.file.page_cache().is_worth_a_try()
    }

    fn to_try<'a>(&'a self, offset: u64, to: &'a Transient<'_>) -> Option<TryRead<'a>> {
        Some(TryRead::new(&self.file, offset, to))
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

    fn nature(&self) -> Nature<'_> {
        Nature::File(self)
    }

    fn is_same_image(&self, other: &dyn Backend) -> bool {
        matches!(other.nature(), Nature::File(other) if self.file.is_same(&other.file))
    }

    fn shortcuts_from(&self, source: &dyn Backend) -> Shortcuts {
        match source.nature() {
            Nature::File(source) if !self.read_only => self.file.shortcuts_from(&source.file),
            _ => Shortcuts::default(),
        }
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl RawBackend {
    /// A file that somebody cut is noticed by what fails and where durability is promised; from then on no write lengthens
    /// it again, which would make zeroes of what is lost.
    fn check(&self, op: &Op) -> Result<(), BackendError> {
        op.check(self.len, self.read_only)?;
        let durable = match op {
            Op::Flush => !self.read_only,
            Op::Write { fua, .. } | Op::WriteZeroes { fua, .. } | Op::Relay { fua, .. } if *fua => true,
            _ => op.is_write() && self.file.cache().is_write_through(),
        };
        if durable {
            self.file.measure();
        }
        let (offset, len) = op.range();
        // A Flush promises something of all that was written.
        let end = if durable && matches!(op, Op::Flush) { self.len } else { offset + len };
        let fits = || end <= self.file.intact();
        if !fits() {
            // It may have its length again.
            self.file.measure();
            if !fits() {
                self.file.failed(JobKind::of(op), offset, len, &BackendError::Truncated);
                return Err(BackendError::Truncated);
            }
        }
        Ok(())
    }

    /// For a relay whose ranges lie in both images; the operation again if no such way leads here.
    #[expect(clippy::result_large_err, reason = "it is given back as it came")]
    fn relay_job(&self, mut op: Op) -> Result<FileJob, Op> {
        let Op::Relay { source, pieces, buf, .. } = &mut op else { return Err(op) };
        let source = match source.nature() {
            Nature::File(source) if buf.ours().is_some() && self.file.relays_from(&source.file) => {
                Arc::clone(&source.file)
            }
            _ => return Err(op),
        };
        let relay = Relay::new(source, std::mem::take(pieces));
        Ok(FileJob::relay(Arc::clone(&self.file), op, relay))
    }

    /// As if its file system asked for blocks of so many bytes.
    #[cfg(test)]
    pub(super) fn asking_for(mut self, block: u64) -> Self {
        use super::{align::Alignment, image_file::Direct};

        let align = Alignment { memory: block as usize, block };
        let image = Arc::get_mut(&mut self.file).expect("nobody uses it yet");
        image.ask_for(Direct { align, parts: true });
        self
    }

    /// For a range that lies in both images; nothing if `how` does not lead from there to here.
    fn copy_job(
        &self,
        source: &dyn Backend,
        from: u64,
        offset: u64,
        len: u64,
        how: Shortcut,
    ) -> Option<FileJob> {
        let ways = self.shortcuts_from(source);
        let Nature::File(source) = source.nature() else {
            return None;
        };
        // The kernel refuses direct access to parts of blocks, and pages that are shifted against them.
        let mut direct = [&source.file, &self.file].into_iter().filter_map(|file| file.alignment());
        if direct.any(|align| !align.fits(from, len) || !align.fits(offset, len)) {
            return None;
        }
        // The kernel refuses both ways when the ranges overlap.
        if source.file.is_same(&self.file) && from.abs_diff(offset) < len {
            return None;
        }
        let clone = match how {
            Shortcut::MemMove => return None,
            Shortcut::Offload if !ways.offload => return None,
            Shortcut::Offload => None,
            Shortcut::Reflink => {
                let block = ways.reflink?;
                let to_both_ends = from + len == source.len && offset + len == self.len;
                let aligned = |n: u64| n.is_multiple_of(block);
                if !aligned(from) || !aligned(offset) || !(aligned(len) || to_both_ends) {
                    return None;
                }
                Some(block)
            }
        };
        let steps = CopySteps::new(Arc::clone(&source.file), from, offset, len, clone);
        Some(FileJob::copy(Arc::clone(&self.file), offset, len, steps))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::conformance::{folder, guest, pool};
    use super::super::places::LoopDevice;
    use super::super::shortcut::Way;
    use super::super::{CacheMode, MemoryBackend, SharedBackend};
    use super::*;

    fn open(path: &Path, size: Option<u64>) -> Result<RawBackend, OpenError> {
        RawBackend::open(RawOptions { size, ..RawOptions::new(path) })
    }

    fn changed(backend: RawBackend, change: impl FnOnce(ImageFile) -> ImageFile) -> Arc<RawBackend> {
        let file = Arc::into_inner(backend.file).expect("nobody uses it yet");
        Arc::new(RawBackend { file: Arc::new(change(file)), ..backend })
    }

    /// Whole blocks are shared, and what is left of one where both images end. What the kernel would refuse is not asked
    /// of it, for then it would not be asked for the rest either.
    #[test]
    fn copies_that_are_made() {
        let folder = folder();
        let image = |name: &str, sectors: u64| {
            let backend = open(&folder.path().join(name), Some(sectors * 512)).expect("it opens");
            changed(backend, |file| file.sharing(4096))
        };
        let (source, target) = (image("source", 17), image("target", 33));
        let job = |how, from: u64, offset: u64, len: u64| {
            target.copy_job(&*source, from * 512, offset * 512, len * 512, how).is_some()
        };
        for (from, offset, len) in [(0, 0, 8), (8, 24, 8), (16, 32, 1), (8, 24, 9)] {
            assert!(job(Shortcut::Reflink, from, offset, len), "{from} {offset} {len}");
        }
        for (from, offset, len) in [(0, 1, 8), (1, 0, 8), (1, 1, 8), (0, 0, 7), (16, 0, 1), (0, 32, 1)] {
            assert!(!job(Shortcut::Reflink, from, offset, len), "{from} {offset} {len}");
            assert!(job(Shortcut::Offload, from, offset, len), "{from} {offset} {len}");
        }
        assert!(!job(Shortcut::MemMove, 0, 0, 8));
        for (from, offset, possible) in [(0, 8, true), (8, 0, true), (0, 7, false), (7, 0, false)] {
            let job = target.copy_job(&*target, from * 512, offset * 512, 8 * 512, Shortcut::Offload);
            assert_eq!(job.is_some(), possible, "{from} {offset}");
        }
        target.file.refused(&source.file, Way::CopyRange, libc::EXDEV);
        assert!(!job(Shortcut::Offload, 0, 0, 8) && job(Shortcut::Reflink, 0, 0, 8));
    }

    /// Where a ring would hand its writes on, and from a buffer of ours.
    #[test]
    fn relays_that_are_made() {
        let folder = folder();
        let image = |name: &str| open(&folder.path().join(name), Some(1 << 20)).expect("it opens");
        let source = changed(image("source"), |file| file);
        let waiting = changed(image("waiting"), ImageFile::waiting);
        let sharing = changed(image("sharing"), |file| file.sharing(4096));
        let memory: SharedBackend = Arc::new(MemoryBackend::new(1 << 20).expect("the memory is there"));
        let made = |target: &RawBackend, source: &SharedBackend, buf| {
            let source = Arc::clone(source);
            let op =
                Op::Relay { source, pieces: [(0, 512)].into(), offset: 0, buf, fua: false, offload: true };
            target.relay_job(op).is_ok()
        };
        let source: SharedBackend = source;
        assert!(made(&waiting, &source, pool(vec![0; 512])));
        assert!(!made(&waiting, &source, guest(&[0; 512], &[512])));
        assert!(!made(&waiting, &memory, pool(vec![0; 512])));
        assert!(!made(&sharing, &source, pool(vec![0; 512])));
    }

    #[test]
    fn operations_on_a_block_device() {
        use super::super::conformance::{Rig, engines};
        use super::super::engine::create;

        let folder = folder();
        let image = folder.path().join("image");
        let file = File::create(&image).expect("the image is made");
        file.set_len(1 << 20).expect("it has a length");
        let Some(device) = LoopDevice::new(&image) else { return };
        let caches = [CacheMode::Writeback, CacheMode::None];
        for (kind, cache) in engines().into_iter().flat_map(|kind| caches.map(|cache| (kind, cache))) {
            let options = RawOptions { cache, ..RawOptions::new(device.path()) };
            let backend = RawBackend::open(options).expect("it opens");
            let mut rig = Rig::new(backend, create(kind).expect("the engine starts"));
            let mut model = vec![5; 1 << 20];
            rig.ok(Op::Write { offset: 0, buf: guest(&model, &[4096]), fua: true });
            // Whole blocks, and what a device refuses because they are not.
            for (offset, len) in [(4096, 8192), (20_000, 1000), (512 * 100, 512), (70_001, 30_000)] {
                for unmap in [false, true] {
                    let range = offset as usize..(offset + len) as usize;
                    rig.ok(Op::Write { offset, buf: pool(vec![9; len as usize]), fua: false });
                    rig.ok(Op::WriteZeroes { offset, len, unmap, fua: true });
                    model[range].fill(0);
                }
            }
            assert!(rig.read(0, 1 << 20) == model);
            rig.ok(Op::Discard { offset: 512, len: 512 });
            rig.ok(Op::Discard { offset: 1, len: 700 });
            rig.ok(Op::Flush);
            let mut past = rig.read(0, 4096);
            past[512..1024].fill(5);
            assert!(past == model[..4096]);
        }
    }
}
