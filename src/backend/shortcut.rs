//! What leads from one file to another without a buffer of ours: facts of the two, and what the kernel refused.
#![expect(unsafe_code, reason = "FICLONERANGE and copy_file_range on ranges have no wrapper")]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Shortcuts;

/// How long a refusal that may pass (a full disk, a file swapped on) is taken for an answer.
const PASSING: Duration = Duration::from_secs(60);
/// Sources whose refusals are remembered; the memory starts anew beyond. There are as many sources as images.
const MAX_SOURCES: usize = 256;
/// A file system with larger blocks than this is not believed.
const MAX_BLOCK: u64 = 1 << 20;

/// Names a file in the running kernel: st_dev and st_ino. Two images may be open on the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    dev: u64,
    ino: u64,
}

/// Facts of an open file, asked once.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileFacts {
    /// Of a regular file; nothing leads from or to another kind.
    id: Option<FileId>,
    /// Of a block device.
    device: Option<u64>,
    /// Blocks can be shared within its file system, in units of so many bytes.
    clones: Option<u64>,
    /// A server copies by itself.
    served: bool,
    /// Opened with O_DIRECT.
    direct: bool,
}

impl FileFacts {
    pub(super) fn of(file: &File) -> Self {
        let regular = |stat: &rustix::fs::Stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
        };
        let device = |stat: &rustix::fs::Stat| {
            let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            (kind == rustix::fs::FileType::BlockDevice).then_some(stat.st_rdev)
        };
        let none = FileFacts { id: None, device: None, clones: None, served: false, direct: false };
        let (Ok(stat), Ok(system)) = (rustix::fs::fstat(file), rustix::fs::fstatfs(file)) else {
            return none;
        };
        if !regular(&stat) {
            return FileFacts { device: device(&stat), ..none };
        }
        // f_type is of one type or another by architecture; magic numbers have 32 bits.
        let served = SERVED.contains(&(system.f_type as u32));
        let block = believed(u64::try_from(system.f_bsize).unwrap_or(0));
        let clones = block.filter(|_| shares_blocks(file));
        let id = Some(FileId { dev: stat.st_dev, ino: stat.st_ino });
        FileFacts { id, clones, served, ..none }
    }

    pub(super) fn directly(self, direct: bool) -> Self {
        FileFacts { direct, ..self }
    }

    #[cfg(test)]
    pub(super) fn sharing(self, clones: Option<u64>) -> Self {
        FileFacts { clones, ..self }
    }

    pub(super) fn id(&self) -> Option<FileId> {
        self.id
    }

    /// Are both of one file or device?
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        (self.id.is_some() && self.id == other.id) || (self.device.is_some() && self.device == other.device)
    }
}

/// NFS, SMB (cifs), SMB2, Ceph: copy_file_range is an order to the server there.
const SERVED: [u32; 4] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400];

/// What a file system calls the size of its blocks, where that can be.
fn believed(block: u64) -> Option<u64> {
    (block.is_power_of_two() && block <= MAX_BLOCK).then_some(block)
}

/// Does the file's file system share blocks? Asked for one byte onto itself, which changes nothing whatever the
/// answer is: those that share refuse it for its alignment or its overlap, all others for lack of the ability.
fn shares_blocks(file: &File) -> bool {
    let fd = file.as_raw_fd();
    let answer = clone_range(fd, 1, fd, 1, 1);
    answer == 0 || answer == -i64::from(libc::EINVAL)
}

/// FICLONERANGE: 0 or -errno. A length of 0 would mean "to the end": never passed.
pub(super) fn clone_range(source: RawFd, from: u64, target: RawFd, offset: u64, len: u64) -> i64 {
    let range = libc::file_clone_range {
        src_fd: i64::from(source),
        src_offset: from,
        src_length: len,
        dest_offset: offset,
    };
    // SAFETY: the kernel reads the struct during the call; no other memory is passed.
    answer(i64::from(unsafe { libc::ioctl(target, libc::FICLONERANGE, &raw const range) }))
}

/// copy_file_range: bytes or -errno.
pub(super) fn copy_range(source: RawFd, mut from: i64, target: RawFd, mut offset: i64, len: usize) -> i64 {
    // SAFETY: the kernel writes the offsets during the call; no other memory is passed.
    answer(unsafe { libc::copy_file_range(source, &raw mut from, target, &raw mut offset, len, 0) } as i64)
}

/// Does copy_file_range say by this that it does not lead from one file to the other?
pub(super) fn is_no_way(errno: i32) -> bool {
    matches!(
        errno,
        libc::EOPNOTSUPP | libc::EXDEV | libc::ENOSYS | libc::EINVAL | libc::ETXTBSY | libc::EPERM
    )
}

/// The result of a call as a ring gives it: what it returned, or -errno.
pub(super) fn answer(result: i64) -> i64 {
    if result < 0 {
        -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    } else {
        result
    }
}

/// A way that the kernel may refuse for a pair of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Clone,
    CopyRange,
}

/// How long a refusal holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Final,
    Until(Instant),
}

/// What the kernel refused to do from each source to one file.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    by_source: Mutex<HashMap<FileId, [Option<Refusal>; 2]>>,
}

impl Refusals {
    /// `errno` was the answer for `way` from `source`.
    pub(super) fn remember(&self, source: FileId, way: Way, errno: i32) {
        let refusal = match errno {
            libc::EOPNOTSUPP | libc::EXDEV | libc::ENOSYS | libc::ENOTTY => Refusal::Final,
            _ => Refusal::Until(Instant::now() + PASSING),
        };
        let mut by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        if by_source.len() >= MAX_SOURCES && !by_source.contains_key(&source) {
            by_source.clear();
        }
        let known = by_source.entry(source).or_default();
        if known[way as usize].replace(refusal).is_none() {
            let error = io::Error::from_raw_os_error(errno);
            log::debug!("no {way:?} from one image to another ({error}); the next best way is used");
        }
    }

    fn refused(&self, source: FileId, now: Instant) -> [bool; 2] {
        let by_source = self.by_source.lock().unwrap_or_else(PoisonError::into_inner);
        by_source.get(&source).map_or([false; 2], |known| {
            known.map(|refusal| match refusal {
                None => false,
                Some(Refusal::Final) => true,
                Some(Refusal::Until(until)) => now < until,
            })
        })
    }
}

/// The ways from a file with the facts `source` to one with the facts `target`, of which `refusals` tells.
pub(super) fn between(source: &FileFacts, target: &FileFacts, refusals: &Refusals) -> Shortcuts {
    between_at(source, target, refusals, Instant::now())
}

fn between_at(source: &FileFacts, target: &FileFacts, refusals: &Refusals, now: Instant) -> Shortcuts {
    let (Some(from), Some(to)) = (source.id, target.id) else {
        return Shortcuts::default();
    };
    // Other devices can be the same file system (subvolumes) or server; both are left to reading and writing.
    if from.dev != to.dev {
        return Shortcuts::default();
    }
    let [no_clone, no_copy] = refusals.refused(from, now);
    let clones = target.clones.filter(|_| !no_clone);
    let offload = !no_copy;
    Shortcuts {
        memmove: false,
        reflink: clones,
        offload,
        // Measured on ext4 and tmpfs: the splice inside the kernel is no faster than a pread and pwrite of 1 MiB.
        // Past the page cache it takes twice the time, so there it has to clone.
        offload_pays: offload && (clones.is_some() || (target.served && !target.direct && !source.direct)),
        offload_clones: offload && clones.is_some(),
        relay: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(dev: u64, ino: u64, clones: Option<u64>) -> FileFacts {
        FileFacts { id: Some(FileId { dev, ino }), device: None, clones, served: false, direct: false }
    }

    #[test]
    fn other_devices_and_kinds_have_no_ways() {
        let refusals = Refusals::default();
        let target = facts(1, 1, Some(4096));
        let special = FileFacts { id: None, ..target };
        for (source, target) in [(facts(2, 1, Some(4096)), target), (special, target), (target, special)] {
            assert_eq!(between(&source, &target, &refusals), Shortcuts::default());
        }
        let all = between(&target, &target, &refusals);
        assert_eq!(all.reflink, Some(4096));
        assert!(all.offload && all.offload_pays && all.offload_clones && !all.memmove);
        let plain = between(&target, &facts(1, 2, None), &refusals);
        assert_eq!(plain, Shortcuts { offload: true, ..Shortcuts::default() });
        let served = FileFacts { served: true, ..facts(1, 2, None) };
        assert!(between(&target, &served, &refusals).offload_pays);
        assert!(!between(&target.directly(true), &served, &refusals).offload_pays);
        assert!(!between(&target, &served.directly(true), &refusals).offload_pays);
        assert!(between(&target, &target.directly(true), &refusals).offload_pays, "it clones");
    }

    #[test]
    fn refusals_hold_for_good_or_for_a_while() {
        let refusals = Refusals::default();
        let (one, other) = (facts(1, 1, Some(512)), facts(1, 2, Some(512)));
        let id = |facts: &FileFacts| facts.id.expect("a regular file");
        let at = |source: &FileFacts, after| between_at(source, &one, &refusals, Instant::now() + after);
        refusals.remember(id(&other), Way::Clone, libc::ENOSPC);
        refusals.remember(id(&other), Way::CopyRange, libc::EOPNOTSUPP);
        assert_eq!(at(&other, Duration::ZERO), Shortcuts::default());
        assert_eq!(at(&other, PASSING / 2), Shortcuts::default());
        let later = at(&other, PASSING + Duration::from_secs(1));
        assert_eq!(later, Shortcuts { reflink: Some(512), ..Shortcuts::default() });
        assert_eq!(at(&one, Duration::ZERO).reflink, Some(512));
        assert!(at(&one, Duration::ZERO).offload);
    }

    #[test]
    fn the_memory_of_refusals_is_bounded() {
        let refusals = Refusals::default();
        // As many as it holds stay, though one is refused again.
        for ino in (0..MAX_SOURCES as u64).chain([7]) {
            refusals.remember(FileId { dev: 1, ino }, Way::Clone, libc::EXDEV);
        }
        assert_eq!(refusals.by_source.lock().expect("nothing panicked").len(), MAX_SOURCES);
        let refusals = Refusals::default();
        for ino in 0..3 * MAX_SOURCES as u64 {
            refusals.remember(FileId { dev: 1, ino }, Way::Clone, libc::EXDEV);
            let by_source = refusals.by_source.lock().expect("nothing panicked");
            assert!(by_source.len() <= MAX_SOURCES && by_source.contains_key(&FileId { dev: 1, ino }));
        }
    }

    #[test]
    fn block_sizes_that_can_be() {
        for block in [512, 4096, MAX_BLOCK] {
            assert_eq!(believed(block), Some(block));
        }
        for block in [0, 3 * 512, MAX_BLOCK + 512, 2 * MAX_BLOCK] {
            assert_eq!(believed(block), None);
        }
    }

    /// The probe is harmless, and says no where there is nothing to ask.
    #[test]
    fn the_probe_changes_nothing() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().expect("a file for the test");
        file.write_all_at(b"untouched", 0).expect("it is written");
        let facts = FileFacts::of(&file);
        assert!(facts.id.is_some());
        let mut bytes = [0; 9];
        file.read_exact_at(&mut bytes, 0).expect("it is read");
        assert_eq!(&bytes, b"untouched");
        assert_eq!(file.metadata().expect("it has").len(), 9);
        // It says the truth: as the next block of the same file system is shared, or not.
        let (block, other) = (4096, tempfile::tempfile().expect("a file for the test"));
        file.write_all_at(&vec![1; block], 0).expect("it is written");
        let shared = clone_range(file.as_raw_fd(), 0, other.as_raw_fd(), 0, block as u64);
        assert_eq!((facts.clones.is_some(), facts.direct), (shared == 0, false));
        let special = File::open("/dev/null").expect("it opens");
        assert!(FileFacts::of(&special).id.is_none());
    }
}
