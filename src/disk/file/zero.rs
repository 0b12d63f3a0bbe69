//! Ranges that are made zero or given back. For a thread that may block, and that has locked the range.

use super::image::{Ability, ImageFile};
use super::transfer::write_zeroes;
use super::unaligned;
use crate::disk::sys::Call;
use crate::disk::{DiskError, Stop};

/// Makes a range zero; with `unmap` its blocks may go.
pub(super) fn zero(
    file: &ImageFile,
    offset: u64,
    len: u64,
    unmap: bool,
    stop: &Stop,
) -> Result<(), DiskError> {
    if (unmap && fallocate(file, Ability::PunchHole, offset, len)?)
        || fallocate(file, Ability::ZeroRange, offset, len)?
    {
        return Ok(());
    }
    match file.alignment() {
        None => write_zeroes(file, offset, len, stop),
        Some(_) => unaligned::write(file, offset, len, None, stop),
    }
}

/// Gives a range back, as far as the file can: it is a hint.
pub(super) fn discard(file: &ImageFile, offset: u64, len: u64) -> Result<(), DiskError> {
    fallocate(file, Ability::PunchHole, offset, len).map(|_| ())
}

/// `false` where the file cannot, or not this range.
fn fallocate(file: &ImageFile, ability: Ability, offset: u64, len: u64) -> Result<bool, DiskError> {
    if !file.can(ability) {
        return Ok(false);
    }
    let mode = match ability {
        Ability::PunchHole => libc::FALLOC_FL_PUNCH_HOLE,
        _ => libc::FALLOC_FL_ZERO_RANGE,
    };
    // A file truncated under us is not grown by zeroing what it lost.
    match file.call(Call::Fallocate { mode: mode | libc::FALLOC_FL_KEEP_SIZE, offset, len }) {
        Ok(_) => Ok(true),
        Err(libc::EOPNOTSUPP | libc::ENOSYS) => {
            file.remember_lack(ability);
            Ok(false)
        }
        // Only this range is refused (a block device wants whole blocks), so nothing is remembered.
        Err(libc::EINVAL) => Ok(false),
        Err(errno) => Err(DiskError::of_errno(errno)),
    }
}
