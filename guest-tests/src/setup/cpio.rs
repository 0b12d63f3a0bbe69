//! Writer for the `newc` archive format, the one the kernel unpacks as its first root.

use std::collections::BTreeSet;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const REGULAR: u32 = 0o100_000;

/// Writes entries as they are added; parents of an entry are made on the way.
pub(super) struct Cpio<W> {
    to: W,
    written: u64,
    inode: u32,
    folders: BTreeSet<String>,
}

impl<W: Write> Cpio<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, written: 0, inode: 0, folders: BTreeSet::new() }
    }

    /// Regular file at `path` (no leading slash) with permission bits `mode`.
    pub(super) fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, REGULAR | mode, data)
    }

    /// Symbolic link at `path`.
    pub(super) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, SYMLINK, target.as_bytes())
    }

    /// Empty folder.
    pub(super) fn folder(&mut self, path: &str) -> io::Result<()> {
        self.parents(path)?;
        if self.folders.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, &[])?;
        }
        Ok(())
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
        for end in ends {
            let parent = &path[..end];
            if self.folders.insert(parent.to_owned()) {
                self.entry(parent, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let size =
            u32::try_from(data.len()).map_err(|_| io::Error::other("file too large for an initramfs"))?;
        let links = 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            u32::try_from(path.len() + 1).unwrap_or(0),
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)?;
        self.put(data)?;
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        let missing = self.written.next_multiple_of(to) - self.written;
        self.put(&[0; 512][..usize::try_from(missing).unwrap_or(0)])
    }

    /// Ends the archive. Another may follow: archives are unpacked one after the other.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.pad(512)?;
        self.to.flush()?;
        Ok(self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(bytes: &[u8], n: usize) -> usize {
        let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
        usize::from_str_radix(text, 16).unwrap()
    }

    fn entries(mut bytes: &[u8]) -> Vec<(String, usize, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let (mode, size, name_len) = (field(bytes, 1), field(bytes, 6), field(bytes, 11));
            let name = std::str::from_utf8(&bytes[110..110 + name_len - 1]).unwrap().to_owned();
            let start = (110 + name_len).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, mode, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_is_put_in_comes_out_with_parents_first() {
        let mut cpio = Cpio::new(Vec::new());
        cpio.file("a/b/c", 0o755, b"hello").unwrap();
        cpio.link("a/l", "b/c").unwrap();
        cpio.file("a/b/d", 0o644, b"").unwrap();
        let bytes = cpio.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let got = entries(&bytes);
        let names: Vec<&str> = got.iter().map(|e| e.0.as_str()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/l", "a/b/d"]);
        assert_eq!(got[2], ("a/b/c".into(), 0o100_755, b"hello".to_vec()));
        assert_eq!(got[3], ("a/l".into(), 0o120_777, b"b/c".to_vec()));
    }
}
