//! Guest memory: a memfd, mapped for the device in pieces that are neighbours as guest addresses but not in
//! the file, so that anything that crosses a border has to be translated twice.
//!
//! The host side reads and writes the memfd with pread and pwrite: no mapping, so a test may truncate the
//! file and stay alive, and there is nothing unsafe here.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::MemfdFlags;

use super::Page;

pub const PAGE: u64 = 4096;

#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub iova: u64,
    pub len: u64,
    /// Where it starts in the memfd.
    pub offset: u64,
}

pub struct Ram {
    file: File,
    pub pieces: Vec<Piece>,
    next: u64,
}

impl Ram {
    /// `len` bytes (a multiple of 64 KiB) at guest address `iova`, in four pieces lying backwards in the
    /// file.
    pub fn new(iova: u64, len: u64) -> Ram {
        let part = len / 4;
        let pieces =
            (0..4).map(|i| Piece { iova: iova + i * part, len: part, offset: (3 - i) * part }).collect();
        Ram::with_pieces(pieces)
    }

    pub fn with_pieces(pieces: Vec<Piece>) -> Ram {
        let fd = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC).expect("memfd");
        let file = File::from(fd);
        let len = pieces.iter().map(|p| p.offset + p.len).max().unwrap();
        file.set_len(len).expect("memfd size");
        let next = pieces[0].iova;
        Ram { file, pieces, next }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub fn base(&self) -> u64 {
        self.pieces[0].iova
    }

    pub fn end(&self) -> u64 {
        self.pieces.iter().map(|p| p.iova + p.len).max().unwrap()
    }

    /// The page at a guest address, mapped.
    pub fn page(&self, iova: u64) -> Page {
        let p = self.pieces.iter().find(|p| (p.iova..p.iova + p.len).contains(&iova)).expect("guest memory");
        Page::map(self.fd(), p.offset + (iova - p.iova))
    }

    /// Shrinks (or grows again) the file under everybody's mappings.
    pub fn truncate(&self, len: u64) {
        self.file.set_len(len).expect("truncate");
    }

    /// Bytes the allocator can still give.
    pub fn left(&self) -> u64 {
        self.end() - self.next
    }

    /// Fresh memory; its content is whatever was there.
    pub fn alloc(&mut self, len: u64, align: u64) -> u64 {
        let at = self.next.next_multiple_of(align);
        assert!(at + len <= self.end(), "guest memory of the test is used up");
        self.next = at + len;
        at
    }

    /// Fresh zeroed pages.
    pub fn pages(&mut self, n: u64) -> u64 {
        let at = self.alloc(n * PAGE, PAGE);
        self.write(at, &vec![0; (n * PAGE) as usize]);
        at
    }

    pub fn mark(&self) -> u64 {
        self.next
    }

    /// Gives back all that was allocated since `mark`.
    pub fn release(&mut self, mark: u64) {
        self.next = mark;
    }

    fn each(&self, iova: u64, len: usize, mut f: impl FnMut(u64, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let at = iova + done as u64;
            let p = self
                .pieces
                .iter()
                .find(|p| (p.iova..p.iova + p.len).contains(&at))
                .unwrap_or_else(|| panic!("{at:#x} is not guest memory"));
            let n = ((p.iova + p.len - at) as usize).min(len - done);
            f(p.offset + (at - p.iova), done..done + n);
            done += n;
        }
    }

    pub fn write(&self, iova: u64, bytes: &[u8]) {
        self.each(iova, bytes.len(), |off, r| {
            self.file.write_all_at(&bytes[r], off).expect("guest memory");
        });
    }

    /// Bytes past a truncated end read as zeroes.
    pub fn read(&self, iova: u64, len: usize) -> Vec<u8> {
        let mut v = vec![0; len];
        self.read_into(iova, &mut v);
        v
    }

    pub fn read_array<const N: usize>(&self, iova: u64) -> [u8; N] {
        let mut v = [0; N];
        self.read_into(iova, &mut v);
        v
    }

    fn read_into(&self, iova: u64, v: &mut [u8]) {
        self.each(iova, v.len(), |off, r| {
            let mut part = &mut v[r];
            let mut off = off;
            while !part.is_empty() {
                match self.file.read_at(part, off).expect("guest memory") {
                    0 => break,
                    n => {
                        off += n as u64;
                        part = &mut part[n..];
                    }
                }
            }
        });
    }
}
