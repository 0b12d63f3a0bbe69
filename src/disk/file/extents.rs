//! Which bytes of a file have blocks: whether its file system can tell, and what it tells.
//!
//! SEEK_HOLE alone takes blocks that are allocated but were never written with data (unwritten extents) for a
//! hole, and that is what zeroing a range leaves behind; the extent map knows better. So a preallocated image
//! counts as allocated throughout.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};

use crate::disk::sys::fiemap::extent_end;

/// A larger unit is not believed.
const MAX_UNIT: u64 = 1 << 20;
/// f_type of tmpfs.
const TMPFS: u32 = 0x0102_1994;

/// Bytes of a unit of allocation of an image of `len` bytes at `path`; `None` where nobody can tell which
/// bytes have blocks: a block device does not say what it has unmapped, and a file system that knows no holes
/// takes every byte of a sparse file for data. Changes nothing.
pub(super) fn unit(file: &File, path: &Path, len: u64, read_only: bool) -> Option<u64> {
    let stat = rustix::fs::fstat(file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let own = rustix::fs::seek(file, SeekFrom::Hole(0)).is_ok_and(|hole| hole < len);
    // A full image shows nothing; nor does it matter in one that stays full, because it is read-only.
    if !own && (read_only || !beside(path, stat.st_dev)?) {
        return None;
    }
    let system = rustix::fs::fstatfs(file).ok()?;
    // Without an extent map zeroed blocks look like holes, but for tmpfs, which zeroes by writing.
    if extent_end(file.as_raw_fd(), 0, len) < 0 && system.f_type as u32 != TMPFS {
        return None;
    }
    let unit = u64::try_from(system.f_bsize).ok()?;
    (unit.is_power_of_two() && unit <= MAX_UNIT).then_some(unit)
}

/// Does a file without a name in the image's folder, which never has data, say that it is a hole?
fn beside(path: &Path, dev: u64) -> Option<bool> {
    let path = std::fs::canonicalize(path).ok()?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(path.parent()?, flags, Mode::RUSR | Mode::WUSR).ok()?;
    if rustix::fs::fstat(&file).ok()?.st_dev != dev {
        return None; // the image is mounted here by itself
    }
    rustix::fs::ftruncate(&file, MAX_UNIT).ok()?;
    Some(rustix::fs::seek(&file, SeekFrom::Hole(0)).ok()? == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn extents_are_where_something_was_written() {
        let file = tempfile::tempfile().expect("a file for the test");
        file.set_len(1 << 20).expect("it has a length");
        let end = |offset| extent_end(file.as_raw_fd(), offset, 1 << 20);
        let none = end(65536);
        if none == -i64::from(libc::EOPNOTSUPP) {
            eprintln!("not tested: this file system has no extent map");
            return;
        }
        assert_eq!(none, 65536);
        file.write_all_at(&[1; 8192], 65536).expect("it is written");
        assert_eq!((end(65536 + 5000), end(65535), end(65536 + 8192)), (65536 + 8192, 65535, 65536 + 8192));
        file.sync_all().expect("it is synced");
        assert_eq!(end(65536), 65536 + 8192);
        // Zeroed without a write: a hole for SEEK_HOLE, but blocks are there.
        let zero = rustix::fs::FallocateFlags::ZERO_RANGE | rustix::fs::FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&file, zero, 262_144, 8192).is_ok() {
            assert_eq!(end(262_144), 262_144 + 8192);
        }
    }

    #[test]
    fn who_cannot_tell_says_so() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("image");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("it is made");
        file.set_len(1 << 20).expect("it has a length");
        let sparse = unit(&file, &path, 1 << 20, true);
        file.write_all_at(&vec![1; 1 << 20], 0).expect("it is written");
        assert_eq!(unit(&file, &path, 1 << 20, false), sparse, "full or not, it is the same file system");
        assert_eq!(unit(&file, &path, 1 << 20, true), None, "nothing is ever given back");
        let special = File::open("/dev/null").expect("it opens");
        assert_eq!(unit(&special, Path::new("/dev/null"), 1 << 20, false), None);
    }
}
