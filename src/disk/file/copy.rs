//! A copy from one file to another. For a thread that may block, and that has locked the target's range.
//!
//! A way that the kernel refuses is no way, and the caller takes the next: that one copies all of the range again.

use std::sync::Arc;

use super::image::ImageFile;
use super::job::{FileJob, Finished};
use super::transfer::read_all;
use super::ways::{Way, is_no_way};
use super::zero::zero;
use crate::disk::sys::Call;
use crate::disk::{DiskError, How, IoBuf, Moved, Pieces, Stop};

/// One call shares or copies at most this, however long the range: it cannot be cancelled.
pub(super) const MAX_CALL: u64 = 256 << 20;
/// Fewer bytes are copied by the kernel where it may. copy_file_range writes 64 KiB at a time, and each write to ext4 costs
/// the more the larger the file's folios are: so more are faster read and written in few large pieces, by two threads.
pub(super) const SHORT: u64 = 128 << 10;

/// A copy of pieces that lie in the source, to where they lie in the target.
#[derive(Debug)]
pub(super) struct FileCopy {
    pub(super) source: Arc<ImageFile>,
    pub(super) target: Arc<ImageFile>,
    /// At least one.
    pub(super) pieces: Pieces,
    pub(super) at: u64,
    /// Of all pieces together.
    pub(super) len: u64,
    pub(super) how: How,
    /// What is copied is durable afterwards.
    pub(super) durable: bool,
}

/// How long a copy takes its thread.
pub(super) fn is_short(how: How, len: u64) -> bool {
    matches!(how, How::ReadWrite { .. }) && len < SHORT
}

impl FileCopy {
    /// Copies; `buf` is that of [`How::ReadWrite`]. Stops half way when nobody will hear of the end.
    pub(super) fn run(&self, buf: Option<IoBuf>, stop: &Stop) -> Finished {
        let _guard = self.target.lock(self.at, self.len);
        let result = match (self.how, buf) {
            (How::Reflink, _) => self.by_kernel(Way::Clone, 0, self.len, stop).map(|()| Moved::Shared),
            (How::Offload, _) => self.offload(stop).map(|()| Moved::KernelCopy),
            (How::ReadWrite { or_kernel }, Some(buf)) => {
                // Whatever is wrong with it, reading and writing will tell.
                if or_kernel
                    && !self.durable
                    && self.is_for_the_kernel()
                    && self.by_kernel(Way::CopyRange, 0, self.len, stop).is_ok()
                {
                    return (Ok(Moved::KernelCopy), Some(buf));
                }
                return self.read_and_write(buf, stop);
            }
            (How::MemMove | How::ReadWrite { .. }, _) => Err(DiskError::NoWay),
        };
        let result = result.inspect_err(|error| match error {
            // Only the source can be too short.
            DiskError::Truncated => self.source.failed("read", self.from(), self.len, error),
            _ => self.target.failed("copy", self.at, self.len, error),
        });
        let sync = || if self.durable { self.target.sync(self.target.syncs().ticket()) } else { Ok(()) };
        (result.and_then(|moved| sync().map(|()| moved)), None)
    }

    /// Where the first piece lies in the source: the only one but of [`How::ReadWrite`].
    fn from(&self) -> u64 {
        self.pieces.first().map_or(0, |piece| piece.0)
    }

    /// May the kernel copy what is to be read and written? It must not share blocks, nor leave it to a server what becomes
    /// of holes: what is read and written is allocated afterwards.
    fn is_for_the_kernel(&self) -> bool {
        // A tap hears of every read of its image; and the kernel refuses ranges that overlap.
        let overlap = self.source.is_same(&self.target) && self.from().abs_diff(self.at) < self.len;
        if self.pieces.len() > 1 || self.len >= SHORT || self.source.is_tapped() || overlap {
            return false;
        }
        let ways = self.target.ways_from(&self.source);
        ways.offload && !ways.offload_pays
    }

    /// Shares or copies from byte `done` of the range to `end`.
    fn by_kernel(&self, way: Way, mut done: u64, end: u64, stop: &Stop) -> Result<(), DiskError> {
        while done < end && !stop.is_set() {
            let (from, offset, len) = (self.from() + done, self.at + done, (end - done).min(MAX_CALL));
            let call = match way {
                Way::Clone => Call::CloneRange { from, offset, len },
                Way::CopyRange => Call::CopyRange { from, offset, len },
            };
            match self.target.copy(call, &self.source) {
                Ok(_) if way == Way::Clone => done += len,
                Ok(0) => return Err(DiskError::Truncated),
                Ok(moved) => done += moved.min(len),
                Err(libc::EINVAL) if self.source.is_cut(self.from() + self.len) => {
                    return Err(DiskError::Truncated);
                }
                Err(errno) if is_no_way(way, errno) => {
                    self.target.refused(&self.source, way, errno);
                    return Err(DiskError::NoWay);
                }
                Err(errno) => return Err(DiskError::of_errno(errno)),
            }
        }
        Ok(())
    }

    /// Copies all of it, holes as holes.
    fn offload(&self, stop: &Stop) -> Result<(), DiskError> {
        let mut done = 0;
        while done < self.len && !stop.is_set() {
            let (end, is_hole) = self.next_part(done)?;
            match is_hole {
                true => zero(&self.target, self.at + done, end - done, true, stop)?,
                false => self.by_kernel(Way::CopyRange, done, end, stop)?,
            }
            done = end;
        }
        Ok(())
    }

    /// Where the data or the hole ends that begins at byte `done` of the range, and whether it is a hole.
    fn next_part(&self, done: u64) -> Result<(u64, bool), DiskError> {
        loop {
            for (whence, is_hole) in [(libc::SEEK_HOLE, false), (libc::SEEK_DATA, true)] {
                let found = self.source.call(Call::Seek { whence, offset: self.from() + done });
                match found.map(|offset| offset.saturating_sub(self.from()).min(self.len)) {
                    Ok(end) if end > done => return Ok((end, is_hole)),
                    // The other of the two, unless it changes meanwhile.
                    Ok(_) => {}
                    // No data from here on: the last hole reaches to the end of the file.
                    Err(libc::ENXIO) if is_hole && !self.source.is_cut(self.from() + self.len) => {
                        return Ok((self.len, true));
                    }
                    Err(libc::ENXIO) => return Err(DiskError::Truncated),
                    // A file system that knows no holes.
                    Err(libc::EINVAL | libc::EOPNOTSUPP) => return Ok((self.len, false)),
                    Err(errno) => return Err(DiskError::of_errno(errno)),
                }
            }
        }
    }

    /// Reads all pieces into the buffer, then writes it.
    fn read_and_write(&self, mut buf: IoBuf, stop: &Stop) -> Finished {
        let mut rest = buf.ours_mut().unwrap_or_default();
        let mut got = 0;
        for &(from, len) in &self.pieces {
            let here = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
            let (piece, later) = std::mem::take(&mut rest).split_at_mut(here);
            if let Err((read, error)) = read_all(&self.source, from, piece) {
                self.source.failed("read", from + read, len - read, &error);
                return (Err(DiskError::Source { at: got + read, error: Box::new(error) }), Some(buf));
            }
            got += len;
            rest = later;
        }
        let (result, buf) = FileJob::new(self.target.clone(), true, self.at, buf, self.durable).run(stop);
        (result.map(|_| Moved::ReadWrite), buf)
    }
}
