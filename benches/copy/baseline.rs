//! What the host does with the same bytes, without NVMe.

use std::fs::File;
use std::os::unix::fs::FileExt;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use vfio_user_nvme::disk::{Buffer, Slab};

use super::driver::Copy;

/// memmove of the same ranges inside one buffer, one thread.
pub fn memmove(memory: &mut [u8], lbads: u8, copies: &[Copy]) {
    each(lbads, copies, |from, to, len| {
        memory.copy_within(from as usize..(from + len) as usize, to as usize);
    });
}

/// Memory for [`memmove`] with data in it, on huge pages where the kernel has some, as ours is.
pub fn memory(len: u64) -> Vec<u8> {
    use rustix::mm::{Advice, madvise};
    let mut memory: Vec<u8> = Vec::with_capacity(len as usize);
    let skip = memory.as_ptr().align_offset(4096);
    // SAFETY: whole pages of the vector's own; the advice changes no byte.
    let _ =
        unsafe { madvise(memory.as_mut_ptr().add(skip).cast(), len as usize - skip, Advice::LinuxHugepage) };
    memory.resize(len as usize, 1);
    memory
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

/// Bytes of one read and one write of [`Linked`].
const PIECE: u64 = 1 << 20;

/// Reads and writes of 1 MiB on a ring, each write linked to its read; so many pairs in flight. The buffers
/// lie on huge pages, without which it is luck whether a disk gets a request in one piece of memory or in
/// 256: that made a factor of two from one run to the next.
pub struct Linked {
    ring: IoUring,
    bufs: Vec<Buffer>,
}

impl Linked {
    pub fn new(depth: usize) -> Self {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        let ring = builder.build(64).expect("ring");
        let buf = |_| Slab::new().expect("address space").lend(PIECE as usize).expect("all is free");
        Self { ring, bufs: (0..depth).map(buf).collect() }
    }

    pub fn run(&mut self, file: &File, lbads: u8, copies: &[Copy]) {
        let mut pieces = Vec::new();
        each(lbads, copies, |from, to, len| {
            for at in (0..len).step_by(PIECE as usize) {
                pieces.push((from + at, to + at, (len - at).min(PIECE) as u32));
            }
        });
        let mut pieces = pieces.into_iter();
        let mut free: Vec<usize> = (0..self.bufs.len()).collect();
        let mut in_flight = 0;
        loop {
            while let Some(slot) = free.pop() {
                let Some(piece) = pieces.next() else {
                    free.push(slot);
                    break;
                };
                self.push(file, slot, piece);
                in_flight += 2;
            }
            if in_flight == 0 {
                return;
            }
            self.ring.submit_and_wait(1).expect("enter");
            for cqe in self.ring.completion() {
                // A read that is cut short or fails takes its write with it.
                assert!(cqe.result() > 0, "{}", std::io::Error::from_raw_os_error(-cqe.result()));
                in_flight -= 1;
                if cqe.user_data() & 1 == 1 {
                    free.push((cqe.user_data() >> 1) as usize);
                }
            }
        }
    }

    fn push(&mut self, file: &File, slot: usize, (from, to, len): (u64, u64, u32)) {
        use std::os::fd::AsRawFd;
        let (fd, data) = (Fd(file.as_raw_fd()), slot as u64 * 2);
        let buf = self.bufs[slot].as_mut_ptr();
        let read = opcode::Read::new(fd, buf, len).offset(from).build().user_data(data);
        let write = opcode::Write::new(fd, buf, len).offset(to).build().user_data(data + 1);
        // SAFETY: the buffer lives as long as the ring, and its slot is free again only after the write.
        let pushed =
            unsafe { self.ring.submission().push_multiple(&[read.flags(squeue::Flags::IO_LINK), write]) };
        pushed.expect("room for 8 pairs");
    }
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
