//! An image in anonymous memory. What was never written costs nothing; all is lost with the process.
//!
//! Several workers may use it at once: copies are volatile, and two operations that meet in a block leave
//! there the bytes of either, as on a disk.
#![expect(unsafe_code, reason = "sysconf, and madvise on the mapping")]

use std::io;

use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;
use vm_memory::volatile_memory::VolatileSlice;

use super::engine::Engine;
use super::{Backend, BackendError, Completion, IoBuf, Nature, Op, Shortcut, Shortcuts, Tag};

const ZEROES: [u8; 4096] = [0; 4096];

/// Are so many bytes (of a page at most) from `at` on all zero?
fn is_zero(slice: &VolatileSlice<'_>, at: usize, len: usize) -> bool {
    // Data is seldom zero in its first word, and then no more than that is looked at.
    let mut word = [0; 8];
    let Ok(start) = slice.subslice(at, len.min(word.len())) else {
        return false;
    };
    start.copy_to(&mut word);
    word == [0; 8] && is_all_zero(slice, at, len)
}

/// Apart, so that the common case does without the buffer.
#[inline(never)]
fn is_all_zero(slice: &VolatileSlice<'_>, at: usize, len: usize) -> bool {
    let mut bytes = [0; ZEROES.len()];
    let (Some(bytes), Some(zeroes), Ok(part)) =
        (bytes.get_mut(..len), ZEROES.get(..len), slice.subslice(at, len))
    else {
        return false;
    };
    part.copy_to(bytes);
    bytes == zeroes
}

/// See the module docs.
#[derive(Debug)]
pub struct MemoryBackend {
    region: MmapRegion,
    page: usize,
}

impl MemoryBackend {
    /// An image of `len` bytes, all zero. Fails when the address space (or a strict overcommit policy) does
    /// not have it, or for 0.
    pub fn new(len: u64) -> io::Result<Self> {
        let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        // Private, anonymous, MAP_NORESERVE: reading an untouched page maps the kernel's page of zeroes.
        let region = MmapRegion::new(usize::try_from(len).map_err(too_large)?)
            .map_err(|e| io::Error::other(format!("cannot map {len} bytes of memory: {e}")))?;
        Ok(MemoryBackend {
            region,
            // SAFETY: no pointer is passed. Linux knows this name on every machine.
            page: unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize,
        })
    }

    fn execute(&self, op: &mut Op) -> Result<(), BackendError> {
        op.check(self.len(), false)?;
        let (offset, len) = op.range();
        // The check holds both below the length of the mapping, which is a usize.
        let (offset, len) = (offset as usize, len as usize);
        match op {
            Op::Flush => Ok(()),
            Op::Read { buf, .. } => self.transfer(offset, buf, |image, piece| {
                image.copy_to_volatile_slice(piece);
            }),
            Op::Write { buf, .. } => self.transfer(offset, buf, |image, piece| {
                piece.copy_to_volatile_slice(image);
            }),
            Op::WriteZeroes { unmap: false, .. } => self.zero(offset, len),
            Op::WriteZeroes { unmap: true, .. } | Op::Discard { .. } => self.give_back(offset, len),
            Op::CopyFrom { source, from, how, .. } => match (source.nature(), how) {
                (Nature::Memory(source), Shortcut::MemMove) => self.move_from(source, *from, offset, len),
                _ => Err(BackendError::NoShortcut),
            },
            Op::Relay { .. } => Err(BackendError::NoShortcut),
        }
    }

    /// Calls `copy` with each piece of the image and the piece of the buffer that belongs to it.
    fn transfer(
        &self,
        offset: usize,
        buf: &mut IoBuf,
        copy: impl Fn(vm_memory::VolatileSlice<'_>, vm_memory::VolatileSlice<'_>),
    ) -> Result<(), BackendError> {
        let mut result = Ok(());
        buf.for_each_piece(|at, piece| match self.region.get_slice(offset + at, piece.len()) {
            Ok(image) => copy(image, piece),
            Err(_) => result = Err(BackendError::Truncated),
        });
        result.and(buf.check())
    }

    /// Moves `len` bytes from `from` of `source`, which may be this image, to `offset`.
    fn move_from(
        &self,
        source: &MemoryBackend,
        from: u64,
        offset: usize,
        len: usize,
    ) -> Result<(), BackendError> {
        let beyond = |_| BackendError::Truncated;
        let from = usize::try_from(from).map_err(|_| BackendError::Truncated)?;
        let from = source.region.get_slice(from, len).map_err(beyond)?;
        let to = self.region.get_slice(offset, len).map_err(beyond)?;
        if self.overlaps(source, &from, &to) {
            // A memmove, in one go: only that takes them in the right order.
            from.copy_to_volatile_slice(to);
        } else {
            self.move_what_is_not_zero(&from, &to)?;
        }
        Ok(())
    }

    /// Do the two slices share a byte?
    fn overlaps(&self, source: &MemoryBackend, from: &VolatileSlice<'_>, to: &VolatileSlice<'_>) -> bool {
        let address = |slice: &VolatileSlice<'_>| slice.ptr_guard().as_ptr().addr();
        std::ptr::eq(self, source) && address(from).abs_diff(address(to)) < from.len()
    }

    /// What is zero in a page of `to` and is to be zero is left alone: most likely neither it nor its source was
    /// ever written, and writing zeroes would cost it memory. Whoever writes there meanwhile wrote after us.
    fn move_what_is_not_zero(
        &self,
        from: &VolatileSlice<'_>,
        to: &VolatileSlice<'_>,
    ) -> Result<(), BackendError> {
        let beyond = |_| BackendError::Truncated;
        let page = self.page.min(ZEROES.len());
        let len = to.len();
        let move_run = |start: usize, end: usize| -> Result<(), BackendError> {
            if start < end {
                let run = from.subslice(start, end - start).map_err(beyond)?;
                run.copy_to_volatile_slice(to.subslice(start, end - start).map_err(beyond)?);
            }
            Ok(())
        };
        // What has to be moved and was not yet.
        let mut start = 0;
        let mut at = 0;
        // Pieces that end with a page, and what is left.
        let mut end = page - to.ptr_guard().as_ptr().addr() % page;
        while at < len {
            let piece = end.min(len) - at;
            if is_zero(from, at, piece) && is_zero(to, at, piece) {
                move_run(start, at)?;
                start = at + piece;
            }
            at += piece;
            end += page;
        }
        move_run(start, len)
    }

    fn zero(&self, offset: usize, len: usize) -> Result<(), BackendError> {
        let image = self.region.get_slice(offset, len).map_err(|_| BackendError::Truncated)?;
        let mut at = 0;
        while at < len {
            let take = (len - at).min(ZEROES.len());
            image.subslice(at, take).map_err(|_| BackendError::Truncated)?.copy_from(&ZEROES[..take]);
            at += take;
        }
        Ok(())
    }

    /// Zeroes the range; its whole pages go back to the kernel.
    fn give_back(&self, offset: usize, len: usize) -> Result<(), BackendError> {
        let end = offset + len;
        let first = offset.next_multiple_of(self.page);
        let last = end - end % self.page;
        if first >= last {
            return self.zero(offset, len);
        }
        self.zero(offset, first - offset)?;
        self.zero(last, end - last)?;
        let pages = self.region.get_slice(first, last - first).map_err(|_| BackendError::Truncated)?;
        // SAFETY: whole pages of our own private mapping, to which no reference exists: everybody copies
        // in and out volatilely and finds either the old bytes or zeroes.
        let given_back = unsafe {
            rustix::mm::madvise(
                pages.ptr_guard_mut().as_ptr().cast(),
                last - first,
                rustix::mm::Advice::LinuxDontNeed,
            )
        };
        match given_back {
            Ok(()) => Ok(()),
            // Locked pages (mlockall) do not go back.
            Err(_) => self.zero(first, last - first),
        }
    }
}

impl Backend for MemoryBackend {
    fn len(&self) -> u64 {
        self.region.size() as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&self, tag: Tag, mut op: Op, _engine: &mut dyn Engine) -> Option<Completion> {
        let result = self.execute(&mut op);
        Some(Completion { tag, result, buf: op.into_buf() })
    }

    fn nature(&self) -> Nature<'_> {
        Nature::Memory(self)
    }

    fn shortcuts_from(&self, source: &dyn Backend) -> Shortcuts {
        Shortcuts { memmove: matches!(source.nature(), Nature::Memory(_)), ..Shortcuts::default() }
    }

    fn name(&self) -> &str {
        "memory"
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{Rig, pool};
    use super::super::engine::{EngineKind, create};
    use super::*;

    fn rig(len: u64) -> Rig {
        let engine = create(EngineKind::Threads).expect("the engine starts");
        Rig::new(MemoryBackend::new(len).expect("the memory is there"), engine)
    }

    /// Pages of `backend` that have memory of their own.
    fn own_pages(backend: &MemoryBackend) -> usize {
        use std::os::unix::fs::FileExt;
        let pages = backend.region.size() / backend.page;
        let map = std::fs::File::open("/proc/self/pagemap").expect("the page map opens");
        let mut bytes = vec![0; pages * 8];
        let first = backend.region.as_ptr().addr() / backend.page;
        map.read_exact_at(&mut bytes, first as u64 * 8).expect("the page map is read");
        // Bit 63: present; bit 56: mapped here alone, which the page of zeroes is not.
        bytes
            .chunks_exact(8)
            .map(|entry| u64::from_ne_bytes(entry.try_into().expect("8 bytes")))
            .filter(|entry| entry & (1 << 63) != 0 && entry & (1 << 56) != 0)
            .count()
    }

    #[test]
    fn what_was_never_written_costs_nothing() {
        let backend = MemoryBackend::new(64 << 30).expect("the address space is there");
        assert_eq!(backend.len(), 64 << 30);
        drop(backend);
        let backend = MemoryBackend::new(64 << 20).expect("the memory is there");
        let mut read = Op::Read { offset: 0, buf: pool(vec![1; 64 << 20]) };
        backend.execute(&mut read).expect("the read succeeds");
        let buf = read.into_buf().expect("a read has a buffer");
        assert!(matches!(buf, IoBuf::Pool(bytes) if bytes.iter().all(|b| *b == 0)));
        assert_eq!(own_pages(&backend), 0);
    }

    #[test]
    fn whole_pages_go_back() {
        let backend = MemoryBackend::new(8 << 20).expect("the memory is there");
        let full =
            own_pages_after(&backend, Op::Write { offset: 0, buf: pool(vec![1; 8 << 20]), fua: false });
        assert_eq!(full, 2048);
        let discard = Op::Discard { offset: 100, len: 1 << 20 };
        // The pages at either end keep bytes.
        assert_eq!(own_pages_after(&backend, discard), full - 255);
        let unmap = |unmap| Op::WriteZeroes { offset: 4 << 20, len: 1 << 20, unmap, fua: false };
        assert_eq!(own_pages_after(&backend, unmap(false)), full - 255);
        assert_eq!(own_pages_after(&backend, unmap(true)), full - 255 - 256);
    }

    fn own_pages_after(backend: &MemoryBackend, mut op: Op) -> usize {
        backend.execute(&mut op).expect("the operation succeeds");
        own_pages(backend)
    }

    #[test]
    fn an_impossible_length_is_an_error() {
        assert!(MemoryBackend::new(0).is_err());
        assert!(MemoryBackend::new(u64::MAX).is_err());
        assert!(MemoryBackend::new(1 << 60).is_err());
    }

    /// Zeroes moved over zeroes cost nothing, at whatever offsets; all else arrives.
    #[test]
    fn what_was_never_written_is_moved_for_nothing() {
        let len = 8 << 20;
        let image = || std::sync::Arc::new(MemoryBackend::new(len).expect("the memory is there"));
        let (source, target) = (image(), image());
        let moved = |from, offset, len| Op::CopyFrom {
            source: source.clone(),
            from,
            offset,
            len,
            how: Shortcut::MemMove,
        };
        for (from, offset) in [(0, 0), (512, 1024), (1, 2)] {
            assert_eq!(own_pages_after(&target, moved(from, offset, len - 8192)), 0);
        }
        assert_eq!(own_pages(&source), 0);
        let data = Op::Write { offset: (1 << 20) + 4095, buf: pool(vec![7; 2]), fua: false };
        assert_eq!(own_pages_after(&source, data), 2);
        assert_eq!(own_pages_after(&target, moved(0, 0, len)), 2);
        assert_eq!(own_pages_after(&target, moved(0, 4096, len - 4096)), 3);
        // Zeroes over data are moved.
        assert_eq!(own_pages_after(&target, moved(4 << 20, 1 << 20, 1 << 20)), 3);
        let mut read = Op::Read { offset: 0, buf: pool(vec![1; len as usize]) };
        target.execute(&mut read).expect("the read succeeds");
        let buf = read.into_buf().expect("a read has a buffer");
        let IoBuf::Pool(bytes) = buf else { panic!("{buf:?}") };
        assert!(bytes.iter().all(|b| *b == 0));
    }

    /// Several workers on one image at once: each finds its own blocks as it left them.
    #[test]
    fn shared_by_workers() {
        let mut first = rig(1 << 20);
        let shared = std::sync::Arc::clone(&first.backend);
        std::thread::scope(|scope| {
            for n in 0..4u8 {
                let shared = std::sync::Arc::clone(&shared);
                scope.spawn(move || {
                    let mut engine = create(EngineKind::Threads).expect("the engine starts");
                    for round in 0..50u64 {
                        for block in (u64::from(n)..2048).step_by(4) {
                            let value = (block + round) as u8 ^ n;
                            let write =
                                Op::Write { offset: block * 512, buf: pool(vec![value; 512]), fua: false };
                            shared.submit(Tag(0), write, &mut *engine);
                            let read = Op::Read { offset: block * 512, buf: pool(vec![0; 512]) };
                            let done = shared.submit(Tag(0), read, &mut *engine);
                            let buf = done.and_then(|done| done.buf).expect("done at once");
                            assert!(matches!(buf, IoBuf::Pool(b) if *b == [value; 512]));
                        }
                    }
                });
            }
        });
        assert_eq!(first.read(2047 * 512, 512), [(2047u64 + 49) as u8 ^ 3; 512]);
    }
}
