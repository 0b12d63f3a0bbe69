//! FIEMAP: where an extent of a file ends.
#![expect(unsafe_code, reason = "FIEMAP has no wrapper")]

use std::os::fd::RawFd;

use super::answer;

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

/// FIEMAP: the end of a part of the extent that holds the byte at `offset`, or `offset` if there is none; or
/// -errno. Some kernels cut what they report to the `len` bytes that are asked for.
pub(in crate::disk) fn extent_end(fd: RawFd, offset: u64, len: u64) -> i64 {
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
    /// The extents in the answer, which is full, lie before it. Of blocks that were allocated together, and
    /// of which some have data by now, btrfs reports all parts from the first on, wherever the question
    /// begins.
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
    // SAFETY: the kernel reads and writes the struct during the call, no more extents than there is room for;
    // no other memory is passed.
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
