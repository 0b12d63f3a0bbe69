//! Image locks that QEMU, qemu-img and other copies of this program understand.
//!
//! QEMU's scheme: for each permission it holds, a process keeps a shared OFD lock on byte 100 + bit; for each
//! permission it does not let others have, one on byte 200 + bit. A conflict is found by testing for the
//! opposite bytes; taking one's own first and testing then means that two who come together see each other.
//! No byte of data is touched: the offsets are only names. OFD locks belong to the open file description,
//! so two opens in one process exclude each other too, and the lock goes with the last descriptor.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};

const PERM_BASE: i64 = 100;
const SHARED_BASE: i64 = 200;

const CONSISTENT_READ: u8 = 1;
const WRITE: u8 = 2;
const RESIZE: u8 = 8;
/// No current QEMU takes it; old ones tested for it.
const GRAPH_MOD: u8 = 16;
const BITS: i64 = 5;

/// The permissions that one who serves an image holds, and those that he lets nobody else have: as a QEMU disk without
/// share-rw. `part`: others may write the rest of the file.
fn permissions(read_only: bool, part: bool) -> (u8, u8) {
    let held = if read_only { CONSISTENT_READ } else { CONSISTENT_READ | WRITE };
    let not_shared = RESIZE | GRAPH_MOD;
    (held, if part { not_shared } else { not_shared | WRITE })
}

/// Why an image could not be locked.
#[derive(Debug)]
pub(super) enum LockError {
    /// Somebody else has the permission, or does not share it; in words.
    Conflict(&'static str),
    /// The file system has no such locks, or the like.
    Io(io::Error),
}

/// Locks an image, or the file that it is a `part` of, for serving it; the locks last as long as `file` is open.
pub(super) fn lock(file: &File, read_only: bool, part: bool) -> Result<(), LockError> {
    take_and_test(file, permissions(read_only, part)).inspect_err(|_| release(file))
}

fn take_and_test(file: &File, (held, not_shared): (u8, u8)) -> Result<(), LockError> {
    let bits = |mask: u8| (0..BITS).filter(move |bit| mask & (1 << bit) != 0);
    for (base, mask) in [(PERM_BASE, held), (SHARED_BASE, not_shared)] {
        for bit in bits(mask) {
            set(file, libc::F_RDLCK, base + bit).map_err(LockError::Io)?;
        }
    }
    for (base, mask) in [(SHARED_BASE, held), (PERM_BASE, not_shared)] {
        for bit in bits(mask) {
            if taken(file, base + bit).map_err(LockError::Io)? {
                return Err(LockError::Conflict(match base {
                    PERM_BASE => "it may write",
                    _ if 1 << bit == WRITE => "it lets nobody else write",
                    _ => "it lets nobody else read",
                }));
            }
        }
    }
    Ok(())
}

fn release(file: &File) {
    for bit in 0..BITS {
        for base in [PERM_BASE, SHARED_BASE] {
            // A failure leaves a lock that goes with the descriptor, which is about to be closed.
            let _ = set(file, libc::F_UNLCK, base + bit);
        }
    }
}

fn byte(kind: libc::c_int, at: i64) -> libc::flock {
    let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    libc::flock { l_type, l_whence, l_start: at, l_len: 1, l_pid: 0 }
}

fn set(file: &File, kind: libc::c_int, at: i64) -> io::Result<()> {
    Ok(fcntl(file, FcntlArg::F_OFD_SETLK(&byte(kind, at))).map(|_| ())?)
}

/// Does anybody else hold a lock on this byte?
fn taken(file: &File, at: i64) -> io::Result<bool> {
    let mut flock = byte(libc::F_WRLCK, at);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut flock))?;
    Ok(flock.l_type != libc::F_UNLCK as libc::c_short)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::path::Path;
    use std::process::{Command, Stdio};

    use crate::disk::tests::conformance::folder;
    use crate::disk::{FileDisk, FileOptions, OpenError, OpenFault};

    fn open(path: &Path, read_only: bool, locking: bool) -> Result<FileDisk, OpenError> {
        FileDisk::open(FileOptions { read_only, locking, ..FileOptions::new(path) })
    }

    fn image(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("image");
        std::fs::write(&path, [0; 65536]).expect("the image is written");
        path
    }

    #[test]
    fn two_opens_exclude_each_other_unless_both_read() {
        let folder = folder();
        let path = image(folder.path());
        for (first, second, both) in
            [(false, false, false), (false, true, false), (true, false, false), (true, true, true)]
        {
            let held = open(&path, first, true).expect("the first opens");
            match open(&path, second, true) {
                Ok(_) => assert!(both, "{first} {second}"),
                Err(e) => {
                    assert!(!both, "{first} {second}: {e}");
                    assert!(matches!(e.fault, OpenFault::Locked(_)), "{e}");
                    assert!(e.to_string().contains("locking=off"), "{e}");
                }
            }
            // A refused opener leaves nothing locked, and who does not ask is not refused.
            open(&path, second, false).expect("locking=off opens");
            drop(held);
            open(&path, second, true).expect("the lock went with its holder");
        }
    }

    /// Did the program accept the image? Nothing when it is not installed.
    fn accepts(program: &str, before: &[&str], path: &Path, after: &[&str]) -> Option<bool> {
        let output = Command::new(program).args(before).arg(path).args(after).stdin(Stdio::null()).output();
        let Ok(output) = output else {
            eprintln!("not tested: {program} is not installed");
            return None;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        // Refused for another reason it would prove nothing.
        assert!(output.status.success() || said.contains("lock"), "{said}");
        Some(output.status.success())
    }

    /// As QEMU's own disk: nobody else writes, and who wants the data to stand still is refused too.
    #[test]
    fn qemu_respects_our_locks() {
        let folder = folder();
        let path = image(folder.path());
        let copy = folder.path().join("copy");
        let copy = copy.to_str().expect("a path in UTF-8");
        let convert = |more: &[&str]| {
            let before = [&["convert"], more, &["-f", "raw", "-O", "raw"]].concat();
            accepts("qemu-img", &before, &path, &[copy])
        };
        let resize = || accepts("qemu-img", &["resize", "-f", "raw"], &path, &["64K"]);
        let write = || accepts("qemu-io", &["-f", "raw", "-c", "write 0 512"], &path, &[]);
        let Some(true) = convert(&[]) else { return };
        assert_eq!(resize(), Some(true));
        for read_only in [false, true] {
            let held = open(&path, read_only, true).expect("it opens");
            assert_eq!(convert(&[]), Some(read_only));
            assert_eq!(convert(&["-U"]), Some(true));
            assert_eq!(resize(), Some(false));
            assert_ne!(write(), Some(true));
            drop(held);
            assert_eq!(resize(), Some(true));
            assert_ne!(write(), Some(false));
        }
    }

    #[test]
    fn we_respect_qemus_locks() {
        let folder = folder();
        let path = image(folder.path());
        for reading in [false, true] {
            let mut command = Command::new("qemu-io");
            command.args(["-f", "raw"]);
            if reading {
                command.arg("-r");
            }
            let started = command.arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let Ok(mut qemu) = started else {
                return eprintln!("not tested: qemu-io is not installed");
            };
            let mut commands = qemu.stdin.take().expect("it was piped");
            let mut answers = BufReader::new(qemu.stdout.take().expect("it was piped"));
            // Its answer shows that the image is open.
            writeln!(commands, "length").expect("it listens");
            let mut line = String::new();
            while !line.contains("64 KiB") {
                line.clear();
                assert!(answers.read_line(&mut line).expect("it answers") > 0);
            }
            let to_write = open(&path, false, true).err();
            let to_read = open(&path, true, true).err();
            drop(commands);
            drop(answers);
            qemu.wait().expect("it ends");
            for refused in [to_write, to_read] {
                // Who only reads with qemu-io does not mind writers.
                match refused {
                    None => assert!(reading),
                    Some(e) => assert!(!reading && matches!(e.fault, OpenFault::Locked(_)), "{e}"),
                }
            }
            open(&path, false, true).expect("it is free again");
        }
    }
}
