//! What leads from one file to another without a buffer of ours: facts of the two, and what the kernel refused.
#![expect(unsafe_code, reason = "a probe is a system call")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::Ways;
use crate::disk::sys::call::clone_range;

/// A file system with larger blocks than this is not believed.
const MAX_BLOCK: u64 = 1 << 20;

/// Names a file in the running kernel: st_dev and st_ino. Two images may be open on the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    dev: u64,
    ino: u64,
}

/// Tells open images apart. Unlike a descriptor it is never given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::disk) struct ImageId(u64);

impl ImageId {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        ImageId(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn bit(self) -> u64 {
        1 << (self.0 % u64::from(u64::BITS))
    }
}

/// Facts of an open file, asked once.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileFacts {
    image: ImageId,
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
    /// A write has to wait, so a ring would hand it on to a thread.
    writes_wait: bool,
}

impl FileFacts {
    pub(super) fn of(file: &File) -> Self {
        let mut facts = FileFacts {
            image: ImageId::new(),
            id: None,
            device: None,
            clones: None,
            served: false,
            direct: is_direct(file),
            writes_wait: writes_wait(file),
        };
        let (Ok(stat), Ok(system)) = (rustix::fs::fstat(file), rustix::fs::fstatfs(file)) else {
            return facts;
        };
        match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::RegularFile => {
                facts.id = Some(FileId { dev: stat.st_dev, ino: stat.st_ino });
                // f_type is of one type or another by architecture; magic numbers have 32 bits.
                facts.served = SERVED.contains(&(system.f_type as u32));
                let block = believed(u64::try_from(system.f_bsize).unwrap_or(0));
                facts.clones = block.filter(|_| shares_blocks(file));
            }
            rustix::fs::FileType::BlockDevice => facts.device = Some(stat.st_rdev),
            _ => {}
        }
        facts
    }

    #[cfg(test)]
    pub(super) fn said(self, clones: Option<u64>, writes_wait: bool) -> Self {
        FileFacts { clones, writes_wait, ..self }
    }

    pub(super) fn image(&self) -> ImageId {
        self.image
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

/// A way that the kernel may refuse for a pair of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Clone,
    CopyRange,
}

/// Does the kernel say by this that the way does not lead from one file to the other, or not now?
pub(super) fn is_no_way(way: Way, errno: i32) -> bool {
    // Sharing wants room for its records where copying may need none.
    let no_room = way == Way::Clone && matches!(errno, libc::ENOSPC | libc::EDQUOT);
    let refused = matches!(
        errno,
        libc::EOPNOTSUPP
            | libc::EXDEV
            | libc::ENOSYS
            | libc::ENOTTY
            | libc::EINVAL
            | libc::ETXTBSY
            | libc::EPERM
    );
    no_room || refused
}

/// What the kernel refused for good to do from each source to one file: a bit for each source. Sources that share a bit, of
/// which there are some beyond 64 images, share its refusals: the next best way is used.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    by_source: [AtomicU64; 2],
}

impl Refusals {
    /// `errno` was the answer for `way` from `source`. What may pass (a full disk, a file swapped on) is asked for again.
    pub(super) fn remember(&self, source: ImageId, way: Way, errno: i32) {
        let passes = matches!(errno, libc::ENOSPC | libc::EDQUOT | libc::ETXTBSY | libc::EPERM);
        if passes {
            return;
        }
        let bit = source.bit();
        if self.by_source[way as usize].fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            let error = io::Error::from_raw_os_error(errno);
            log::debug!("no {way:?} from one image to another ({error}); the next best way is used");
        }
    }

    fn has(&self, source: ImageId, way: Way) -> bool {
        self.by_source[way as usize].load(Ordering::Relaxed) & source.bit() != 0
    }
}

/// The ways from a file with the facts `source` to one with the facts `target`, of which `refusals` tells.
pub(super) fn between(source: &FileFacts, target: &FileFacts, refusals: &Refusals) -> Ways {
    // O_DIRECT is for a ring anyway, and wants its reads aligned.
    let bounced = Ways { read_write: target.writes_wait && !source.direct, ..Ways::default() };
    // Other devices can be the same file system (subvolumes) or server; both are left to reading and writing.
    let one_system = source.id.zip(target.id).is_some_and(|(from, to)| from.dev == to.dev);
    if !one_system {
        return bounced;
    }
    let clones = target.clones.filter(|_| !refusals.has(source.image, Way::Clone));
    let offload = !refusals.has(source.image, Way::CopyRange);
    Ways {
        reflink: clones,
        offload,
        // Measured on ext4 and tmpfs: the splice inside the kernel is no faster than a pread and pwrite of 1 MiB.
        // Past the page cache it takes twice the time, so there it has to clone.
        offload_pays: offload && (clones.is_some() || (target.served && !target.direct && !source.direct)),
        offload_clones: offload && clones.is_some(),
        ..bounced
    }
}

/// Is it open for O_DIRECT?
pub(super) fn is_direct(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::DIRECT))
}

/// Does a write to the file have to wait, so that a ring hands it on to a thread? Not one of O_DIRECT, nor one through
/// the page cache of XFS or btrfs; but one through that of ext4, or of a block device.
///
/// Asked with a write that cannot take place: of a byte at an address that is never mapped.
pub(super) fn writes_wait(file: &File) -> bool {
    let nowhere = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
    // SAFETY: the kernel reads the iovec, which lives through the call, and refuses the address in it.
    let answer = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const nowhere, 1, 0, libc::RWF_NOWAIT) };
    let errno = io::Error::last_os_error().raw_os_error();
    answer == -1 && errno == Some(libc::EOPNOTSUPP) && !is_direct(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(dev: u64, ino: u64, clones: Option<u64>) -> FileFacts {
        let (image, id) = (ImageId::new(), Some(FileId { dev, ino }));
        FileFacts { device: None, served: false, direct: false, writes_wait: false, id, image, clones }
    }

    fn directly(facts: FileFacts) -> FileFacts {
        FileFacts { direct: true, ..facts }
    }

    #[test]
    fn other_devices_and_kinds_have_no_ways() {
        let refusals = Refusals::default();
        let target = facts(1, 1, Some(4096));
        let special = FileFacts { id: None, ..target };
        for (source, target) in [(facts(2, 1, Some(4096)), target), (special, target), (target, special)] {
            assert_eq!(between(&source, &target, &refusals), Ways::default());
        }
        let all = between(&target, &target, &refusals);
        assert_eq!(all.reflink, Some(4096));
        assert!(all.offload && all.offload_pays && all.offload_clones && !all.memmove);
        let plain = between(&target, &facts(1, 2, None), &refusals);
        assert_eq!(plain, Ways { offload: true, ..Ways::default() });
        let served = FileFacts { served: true, ..facts(1, 2, None) };
        assert!(between(&target, &served, &refusals).offload_pays);
        assert!(!between(&directly(target), &served, &refusals).offload_pays);
        assert!(!between(&target, &directly(served), &refusals).offload_pays);
        assert!(between(&target, &directly(target), &refusals).offload_pays, "it clones");
    }

    #[test]
    fn refusals_hold_for_good_or_not_at_all() {
        let refusals = Refusals::default();
        let (one, other) = (facts(1, 1, Some(512)), facts(1, 2, Some(512)));
        for errno in [libc::ENOSPC, libc::EDQUOT, libc::ETXTBSY, libc::EPERM] {
            refusals.remember(other.image, Way::Clone, errno);
        }
        assert_eq!(between(&other, &one, &refusals).reflink, Some(512));
        refusals.remember(other.image, Way::CopyRange, libc::EOPNOTSUPP);
        assert_eq!(between(&other, &one, &refusals), Ways { reflink: Some(512), ..Ways::default() });
        refusals.remember(other.image, Way::Clone, libc::EXDEV);
        assert_eq!(between(&other, &one, &refusals), Ways::default());
        assert!(between(&one, &one, &refusals).offload);
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

    #[test]
    fn direct_files_are_known() {
        use std::os::unix::fs::OpenOptionsExt;
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("image");
        assert!(!is_direct(&File::create(&path).expect("a file for the test")));
        for write in [false, true] {
            let mut options = File::options();
            match options.read(true).write(write).custom_flags(libc::O_DIRECT).open(&path) {
                Ok(file) => assert!(is_direct(&file) && !writes_wait(&file)),
                Err(why) => eprintln!("O_DIRECT is left out: {why}"),
            }
        }
    }

    /// The probe is harmless, whatever the answer, and says no where nothing can be written.
    #[test]
    fn the_probe_of_writes_changes_nothing() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().expect("a file for the test");
        file.write_all_at(b"untouched", 0).expect("it is written");
        let answer = writes_wait(&file);
        assert_eq!(writes_wait(&file), answer);
        let mut bytes = [0; 9];
        file.read_exact_at(&mut bytes, 0).expect("it is read");
        assert_eq!((&bytes, file.metadata().expect("it has").len()), (b"untouched", 9));
        assert!(!writes_wait(&File::open("/dev/null").expect("it opens")));
    }
}
