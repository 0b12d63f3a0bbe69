//! Which files guest memory may lie in.
//!
//! Whoever touches a page of a file may have to wait for who serves it, and a descriptor from a client can be
//! of any file: a FUSE or network file system hangs the thread that copies for as long as its server likes,
//! and already fstat() asks it. So a file is accepted for what this kernel knows of it without asking
//! anybody.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::map_error::MapError;

/// File systems that this kernel serves from memory or disks. Overlays are the root of most containers; only
/// the administrator can mount one that we see, and answers for what it is laid over.
const LOCAL: &[&str] =
    &["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "overlay", "ramfs"];

/// Refuses a file whose pages might not come.
pub(super) fn check(file: BorrowedFd<'_>) -> Result<(), MapError> {
    // Files of tmpfs and hugetlbfs, memfds among them, and only they have seals. Most guest memory ends here.
    if rustix::fs::fcntl_get_seals(file).is_ok() {
        return Ok(());
    }
    let kind = file_system(file.as_raw_fd()).unwrap_or_else(|| "an unknown file system".into());
    if LOCAL.contains(&kind.as_str()) { Ok(()) } else { Err(MapError::Foreign(kind)) }
}

/// The type of the file system, as this process's table of mounts has it: statfs() asks the server. `None`
/// for what has no path, and for mounts of other namespaces.
fn file_system(fd: i32) -> Option<String> {
    // What is no file can wait too, when it is asked for more than its name (an epoll set for its members).
    let path = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    if !path.is_absolute() {
        return None;
    }
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    find_type(&String::from_utf8_lossy(&mounts), mount)
}

/// The type of mount `id` in the text of a `mountinfo`; proc(5).
fn find_type(mounts: &str, id: &str) -> Option<String> {
    let mount = mounts.lines().find(|line| line.split(' ').next() == Some(id))?;
    let (_, after) = mount.split_once(" - ")?;
    after.split(' ').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::memory::testing::memfd;

    #[test]
    fn memory_and_local_files() {
        check(memfd(4096).as_fd()).unwrap();
        // Not on tmpfs: beside the program itself.
        let program = fs::File::open("/proc/self/exe").unwrap();
        check(program.as_fd()).unwrap();
    }

    #[test]
    fn what_others_serve_or_is_no_file() {
        let (pipe, _writer) = std::io::pipe().unwrap();
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        let proc = fs::File::open("/proc/self/maps").unwrap();
        for (file, kind) in [(pipe.as_fd(), "unknown"), (epoll.as_fd(), "unknown"), (proc.as_fd(), "proc")] {
            let error = check(file).unwrap_err();
            assert!(matches!(&error, MapError::Foreign(named) if named.contains(kind)), "{error}");
        }
    }

    #[test]
    fn mountinfo() {
        let text = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                    7 21 0:40 / /a\\040-\\040b rw,nosuid shared:5 master:1 - fuse.sshfs host: rw\n\
                    210 21 0:41 / /c rw - nfs4 host:/ rw\n";
        assert_eq!(find_type(text, "21").as_deref(), Some("ext4"));
        assert_eq!(find_type(text, "7").as_deref(), Some("fuse.sshfs"));
        assert_eq!(find_type(text, "210").as_deref(), Some("nfs4"));
        assert_eq!(find_type(text, "2"), None);
    }
}
