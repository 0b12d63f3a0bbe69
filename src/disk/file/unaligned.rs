//! Direct transfers that the kernel does not take as they are: by way of an aligned buffer; a block of which only a part is
//! written is read, changed and written back. For a thread that may block, and that has locked what it writes.

use super::align::Alignment;
use super::image::ImageFile;
use super::transfer::{read_all, write_all};
use crate::disk::{Buffer, DiskError, IoBuf, Stop};

/// Bytes of the buffer, at most; a block of a file has fewer.
const ROOM: u64 = 256 << 10;

/// Does the kernel take all of this memory as it is?
pub(super) fn fits_memory(align: Alignment, buf: &IoBuf) -> bool {
    match (buf, buf.ours()) {
        (IoBuf::Guest(buf), _) => align.fits_memory(buf.iovecs()),
        (_, bytes) => bytes.is_some_and(|bytes| bytes.as_ptr().addr().is_multiple_of(align.memory)),
    }
}

/// Fills `buf` from `offset`; rounded out to whole blocks the range lies in the file.
pub(super) fn read(file: &ImageFile, offset: u64, buf: &mut IoBuf, stop: &Stop) -> Result<(), DiskError> {
    by_blocks(file, offset, buf.len() as u64, stop, |whole, start, done, part| {
        read_all(file, start, whole).map_err(|(_, error)| error)?;
        buf.store(done, whole.get(part).ok_or(DiskError::Truncated)?)
    })
}

/// Writes `len` bytes of `buf`, or zeroes without it, at `offset`.
pub(super) fn write(
    file: &ImageFile,
    offset: u64,
    len: u64,
    buf: Option<&IoBuf>,
    stop: &Stop,
) -> Result<(), DiskError> {
    let block = file.alignment().map_or(1, |align| align.block as usize);
    by_blocks(file, offset, len, stop, |whole, start, done, part| {
        let last = whole.len() - block;
        let first_is_partial = part.start > 0;
        let last_is_partial = part.end < whole.len() && (last > 0 || !first_is_partial);
        for (_, at) in [(first_is_partial, 0), (last_is_partial, last)].into_iter().filter(|edge| edge.0) {
            let edge = whole.get_mut(at..at + block).ok_or(DiskError::Truncated)?;
            read_all(file, start + at as u64, edge).map_err(|(_, error)| error)?;
        }
        let bytes = whole.get_mut(part).ok_or(DiskError::Truncated)?;
        match buf {
            Some(buf) => buf.load(done, bytes)?,
            None => bytes.fill(0),
        }
        write_all(file, start, whole)
    })
}

/// Calls `each` with a buffer for the whole blocks of each part of a range, where in the file they start, how many bytes
/// of the range lie before, and where in the buffer the part is.
fn by_blocks(
    file: &ImageFile,
    offset: u64,
    len: u64,
    stop: &Stop,
    mut each: impl FnMut(&mut [u8], u64, usize, std::ops::Range<usize>) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let block = file.alignment().map_or(1, |align| align.block);
    let mut bounce = Buffer::zeroed((len + 2 * block).next_multiple_of(block).min(ROOM) as usize);
    let mut done = 0;
    while done < len && !stop.is_set() {
        let at = offset + done;
        let skip = at % block;
        let count = (len - done).min(bounce.len() as u64 - skip);
        let end = (skip + count).next_multiple_of(block) as usize;
        let whole = bounce.get_mut(..end).ok_or(DiskError::Truncated)?;
        each(whole, at - skip, done as usize, skip as usize..(skip + count) as usize)?;
        done += count;
    }
    Ok(())
}
