//! What the host does with the same bytes, without NVMe.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::driver::Copy;

/// memmove of the same ranges inside one buffer, one thread.
pub fn memmove(memory: &mut [u8], lbads: u8, copies: &[Copy]) {
    each(lbads, copies, |from, to, len| {
        memory.copy_within(from as usize..(from + len) as usize, to as usize);
    });
}

/// copy_file_range for each range.
pub fn copy_file_range(file: &File, lbads: u8, copies: &[Copy]) {
    each(lbads, copies, |mut from, mut to, len| {
        let end = from + len;
        while from < end {
            let left = (end - from) as usize;
            let moved = rustix::fs::copy_file_range(file, Some(&mut from), file, Some(&mut to), left);
            assert!(moved.expect("copy_file_range") > 0);
        }
    });
}

/// pread and pwrite, 1 MiB at a time.
pub fn read_write(file: &File, lbads: u8, copies: &[Copy], buf: &mut [u8]) {
    each(lbads, copies, |from, to, len| {
        let mut at = 0;
        while at < len {
            let piece = &mut buf[..(len - at).min(1 << 20) as usize];
            file.read_exact_at(piece, from + at).expect("pread");
            file.write_all_at(piece, to + at).expect("pwrite");
            at += piece.len() as u64;
        }
    });
}

/// FICLONERANGE for each range.
pub fn clone_range(file: &File, lbads: u8, copies: &[Copy]) {
    use std::os::fd::AsRawFd;
    each(lbads, copies, |from, to, len| {
        let range = libc::file_clone_range {
            src_fd: file.as_raw_fd().into(),
            src_offset: from,
            src_length: len,
            dest_offset: to,
        };
        // SAFETY: the structure is initialised and lives through the call, which keeps no pointer.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::FICLONERANGE, &range) };
        assert_eq!(result, 0, "FICLONERANGE: {}", std::io::Error::last_os_error());
    });
}

fn each(lbads: u8, copies: &[Copy], mut copy: impl FnMut(u64, u64, u64)) {
    for command in copies {
        let mut to = command.sdlba << lbads;
        for (slba, nlb) in &command.ranges {
            let len = u64::from(*nlb) << lbads;
            copy(slba << lbads, to, len);
            to += len;
        }
    }
}
