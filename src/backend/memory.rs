//! An image in anonymous memory. What was never written costs nothing; all is lost with the process.
//!
//! Several workers may use it at once: copies are volatile, and two operations that meet in a block leave
//! there the bytes of either, as on a disk.
#![expect(unsafe_code, reason = "sysconf, and madvise on the mapping")]

use std::io;

use vm_memory::VolatileMemory;
use vm_memory::mmap::MmapRegion;

use super::engine::Engine;
use super::{Backend, BackendError, Completion, IoBuf, Op, Tag};

const ZEROES: [u8; 4096] = [0; 4096];

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
        result
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

    fn name(&self) -> &str {
        "memory"
    }
}
