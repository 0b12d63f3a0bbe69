//! Image locks that QEMU, qemu-img and other copies of this program understand.
//!
//! QEMU's scheme: for each permission it holds, a process keeps a shared OFD lock on byte 100 + bit; for each
//! permission it does not let others have, one on byte 200 + bit. A conflict is found by testing for the
//! opposite bytes; taking one's own first and testing then means that two who come together see each other.
//! No byte of data is touched: the offsets are only names. OFD locks belong to the open file description,
//! so two opens in one process exclude each other too, and the lock goes with the last descriptor.
#![expect(unsafe_code, reason = "fcntl with a struct flock")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const PERM_BASE: i64 = 100;
const SHARED_BASE: i64 = 200;

const CONSISTENT_READ: u8 = 1;
const WRITE: u8 = 2;
const RESIZE: u8 = 8;
/// No current QEMU takes it; old ones tested for it.
const GRAPH_MOD: u8 = 16;
const BITS: i64 = 5;

/// What one who serves an image does and lets others do: as a QEMU disk without share-rw.
#[derive(Clone, Copy, Debug)]
struct Permissions {
    held: u8,
    not_shared: u8,
}

impl Permissions {
    const fn of(read_only: bool) -> Self {
        Permissions {
            held: if read_only { CONSISTENT_READ } else { CONSISTENT_READ | WRITE },
            not_shared: WRITE | RESIZE | GRAPH_MOD,
        }
    }
}

/// Why an image could not be locked.
#[derive(Debug)]
pub(super) enum LockError {
    /// Somebody else has the permission, or does not share it; in words.
    Conflict(&'static str),
    /// The file system has no such locks, or the like.
    Io(io::Error),
}

/// Locks an image for serving it; the locks last as long as `file` is open.
pub(super) fn lock(file: &File, read_only: bool) -> Result<(), LockError> {
    let permissions = Permissions::of(read_only);
    take_and_test(file, permissions).inspect_err(|_| release(file))
}

fn take_and_test(file: &File, Permissions { held, not_shared }: Permissions) -> Result<(), LockError> {
    for bit in 0..BITS {
        if held & (1 << bit) != 0 {
            set(file, libc::F_RDLCK, PERM_BASE + bit).map_err(LockError::Io)?;
        }
        if not_shared & (1 << bit) != 0 {
            set(file, libc::F_RDLCK, SHARED_BASE + bit).map_err(LockError::Io)?;
        }
    }
    for bit in 0..BITS {
        if held & (1 << bit) != 0 && taken(file, SHARED_BASE + bit).map_err(LockError::Io)? {
            return Err(LockError::Conflict(if 1 << bit == WRITE {
                "it lets nobody else write"
            } else {
                "it lets nobody else read"
            }));
        }
        if not_shared & (1 << bit) != 0 && taken(file, PERM_BASE + bit).map_err(LockError::Io)? {
            return Err(LockError::Conflict("it may write"));
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
    // SAFETY: flock is plain integers, for which zero is a value.
    let mut flock: libc::flock = unsafe { std::mem::zeroed() };
    flock.l_type = kind as libc::c_short;
    flock.l_whence = libc::SEEK_SET as libc::c_short;
    flock.l_start = at;
    flock.l_len = 1;
    flock
}

fn set(file: &File, kind: libc::c_int, at: i64) -> io::Result<()> {
    let flock = byte(kind, at);
    // SAFETY: the descriptor is open and `flock` outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const flock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Does anybody else hold a lock on this byte?
fn taken(file: &File, at: i64) -> io::Result<bool> {
    let mut flock = byte(libc::F_WRLCK, at);
    // SAFETY: the descriptor is open and `flock` outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut flock) } {
        0 => Ok(flock.l_type != libc::F_UNLCK as libc::c_short),
        _ => Err(io::Error::last_os_error()),
    }
}
