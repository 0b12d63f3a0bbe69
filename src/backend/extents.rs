//! Which bytes of a file have blocks: whether its file system can tell, and what it tells.
//!
//! SEEK_HOLE alone takes blocks that are allocated but were never written with data (unwritten extents) for a hole, and
//! that is what zeroing a range leaves behind; the extent map knows better. So a preallocated image counts as
//! allocated throughout.
#![expect(unsafe_code, reason = "FIEMAP has no wrapper")]

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};

use super::shortcut::answer;

/// A larger unit is not believed.
const MAX_UNIT: u64 = 1 << 20;
/// f_type of tmpfs.
const TMPFS: u32 = 0x0102_1994;

/// Bytes of a unit of allocation of an image of `len` bytes at `path`; `None` where nobody can tell which bytes have
/// blocks: a block device does not say what it has unmapped, and a file system that knows no holes takes every byte of
/// a sparse file for data. Changes nothing.
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

/// The kernel's struct fiemap with room for so many extents.
#[repr(C)]
struct Fiemap<const ROOM: usize> {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; ROOM],
}

/// The kernel's struct fiemap_extent.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

impl Extent {
    fn end(&self) -> u64 {
        self.logical.saturating_add(self.length)
    }
}

/// _IOWR('f', 11, struct fiemap), the struct being 32 bytes without extents.
const FS_IOC_FIEMAP: libc::Ioctl = libc::_IOWR::<[u8; 32]>(b'f' as u32, 11);

const _: () = assert!(size_of::<Fiemap<0>>() == 32 && size_of::<Fiemap<2>>() == 32 + 2 * 56);

/// What is asked for where one extent does not tell.
const MANY: usize = 64;
/// No file system has extents that end within as many bytes.
const LEAST: u64 = 4096;

/// FIEMAP: the end of a part of the extent that holds the byte at `offset`, or `offset` if there is none; or -errno.
/// Some kernels cut what they report to the `len` bytes that are asked for.
pub(super) fn extent_end(fd: RawFd, offset: u64, len: u64) -> i64 {
    let answer = ask::<1>(fd, offset, len).and_then(|answer| match answer {
        Answer::Before => ask::<MANY>(fd, offset, len),
        answer => Ok(answer),
    });
    let end = match answer {
        Ok(Answer::End(end)) => end,
        Ok(Answer::None) => offset,
        // All the same the byte lies in that extent: but for that btrfs would not begin with its parts.
        Ok(Answer::Before) => (offset - offset % LEAST).saturating_add(LEAST),
        Err(error) => return error,
    };
    i64::try_from(end).unwrap_or(i64::MAX)
}

/// What the kernel says of a byte.
enum Answer {
    /// It lies in an extent that ends here.
    End(u64),
    /// It lies in none.
    None,
    /// The extents in the answer, which is full, lie before it. Of blocks that were allocated together, and of which
    /// some have data by now, btrfs reports all parts from the first on, wherever the question begins.
    Before,
}

fn ask<const ROOM: usize>(fd: RawFd, offset: u64, len: u64) -> Result<Answer, i64> {
    let mut map = Fiemap {
        start: offset,
        length: len,
        flags: 0,
        mapped_extents: 0,
        extent_count: ROOM as u32,
        reserved: 0,
        extents: [Extent::default(); ROOM],
    };
    // SAFETY: the kernel reads and writes the struct during the call, no more extents than there is room for; no other
    // memory is passed.
    let result = answer(i64::from(unsafe { libc::ioctl(fd, FS_IOC_FIEMAP, &raw mut map) }));
    if result < 0 {
        return Err(result);
    }
    let mapped = map.extents.iter().take(map.mapped_extents as usize);
    Ok(match mapped.clone().find(|extent| extent.end() > offset) {
        Some(extent) if extent.logical <= offset => Answer::End(extent.end()),
        None if mapped.len() == ROOM => Answer::Before,
        _ => Answer::None,
    })
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
