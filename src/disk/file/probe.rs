//! Is a range of a file allocated? For a thread that may block.

use super::image::ImageFile;
use crate::disk::DiskError;
use crate::disk::sys::Call;

/// Succeeds if every byte of the range, which is not empty, has blocks. A hole is believed only where the extent map
/// knows of no blocks that were never filled with data.
pub(super) fn probe(file: &ImageFile, offset: u64, len: u64) -> Result<(), DiskError> {
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let hole = match file.call(Call::Seek { whence: libc::SEEK_HOLE, offset: at }) {
            Ok(hole) => hole,
            // The file ends before this.
            Err(libc::ENXIO) => return Err(DiskError::Truncated),
            // A file system that knows no holes: all counts as allocated.
            Err(libc::EINVAL | libc::EOPNOTSUPP) => return Ok(()),
            Err(errno) => return Err(DiskError::of_errno(errno)),
        };
        at = hole.max(at);
        if at >= end {
            return Ok(());
        }
        let extent = match file.call(Call::ExtentEnd { offset: at, len: end - at }) {
            Ok(extent) => extent,
            // Without an extent map (tmpfs) a hole is a hole.
            Err(libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS | libc::EINVAL) => at,
            Err(errno) => return Err(DiskError::of_errno(errno)),
        };
        if extent <= at {
            // It is a hole, unless the file ends before the range does.
            return Err(if file.is_cut(end) { DiskError::Truncated } else { DiskError::Deallocated });
        }
        at = extent;
    }
    Ok(())
}
