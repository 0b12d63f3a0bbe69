//! The file that a copy log is written to. Whatever becomes of it, the device goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::record::{Dropped, Line};
use super::text::Stamp;

/// What every copy log begins with.
const FIRST: &[u8] = br#"{"record":"log","#;

/// A file that takes no copy log, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// It cannot be opened.
    #[error("{0}; name a file that can be written")]
    Open(#[from] io::Error),
    /// It is something else, which would be lost.
    #[error("is there and is no copy log; name another file, or remove this one")]
    Other,
    /// A disk would be overwritten.
    #[error("is a block device; name a file")]
    Device,
}

/// See the module docs.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    path: PathBuf,
    /// Half a line was written, and could not be taken back.
    torn: bool,
    /// Copies whose lines could not be written since the last that were, and why.
    missing: Option<(u64, String)>,
}

impl LogFile {
    /// Opens a file to begin a log in it: a new one, an empty one, or an old log, which is overwritten. Also a pipe or a
    /// terminal.
    ///
    /// # Errors
    /// It cannot be opened, or is something that must not be overwritten.
    pub fn open(path: &Path) -> Result<Self, LogFileError> {
        // Readable, so that what is in it can be looked at; and then a named pipe does not wait for who reads it.
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let kind = file.metadata()?.file_type();
        if kind.is_block_device() {
            return Err(LogFileError::Device);
        }
        if kind.is_file() {
            let mut first = [0; FIRST.len()];
            let found = read_first(&mut file, &mut first)?;
            if found > 0 && first != *FIRST {
                return Err(LogFileError::Other);
            }
            file.set_len(0)?;
        }
        Ok(Self { file, path: path.to_owned(), torn: false, missing: None })
    }

    /// Writes whole lines. `copies`: how many Copies they tell of, dropped ones included.
    pub(super) fn write(&mut self, lines: &[u8], copies: u64) {
        match self.try_write(lines) {
            Ok(()) => {
                if let Some((count, _)) = self.missing.take() {
                    log::warn!(
                        "copy log {}: is written again; {count} Copies are missing",
                        self.path.display()
                    );
                }
            }
            Err(error) => {
                let why = error.to_string();
                let before = self.missing.take();
                if before.as_ref().is_none_or(|(_, last)| *last != why) {
                    log::error!("copy log {}: {why}; Copies go on without it", self.path.display());
                }
                self.missing = Some((before.map_or(0, |(count, _)| count).saturating_add(copies), why));
            }
        }
    }

    /// Copies that the file will never have: nothing was written after them.
    pub(super) fn missing(&self) -> u64 {
        self.missing.as_ref().map_or(0, |(count, _)| *count)
    }

    fn try_write(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut all = Vec::new();
        if self.torn {
            all.push(b'\n');
        }
        if let Some((count, why)) = &self.missing {
            let why = format!("the file could not be written: {why}");
            let line = Line::Dropped(Dropped { count: *count, why, time: Stamp::now() });
            serde_json::to_writer(&mut all, &line)?;
            all.push(b'\n');
        }
        let lines = if all.is_empty() {
            lines
        } else {
            all.extend_from_slice(lines);
            &all
        };
        let before = self.file.metadata().ok().filter(|found| found.is_file());
        let written = self.file.write_all(lines);
        self.torn = match (&written, before) {
            (Ok(()), _) => false,
            // No half lines: what was written of them is taken back.
            (Err(_), Some(before)) => self.file.set_len(before.len()).is_err(),
            (Err(_), None) => true,
        };
        written
    }
}

/// As many bytes as there are of `first`.
fn read_first(file: &mut File, first: &mut [u8]) -> io::Result<usize> {
    let mut found = 0;
    while let Some(rest) = first.get_mut(found..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(bytes) => found += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn nothing_but_a_log_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        LogFile::open(&path).unwrap().write(b"{\"record\":\"log\",\"a\":1}\n", 0);
        LogFile::open(&path).unwrap().write(b"{\"record\":\"log\",\"a\":2}\n", 0);
        assert_eq!(lines(&path), ["{\"record\":\"log\",\"a\":2}"]);
        for other in ["image", "{\"record\":\"lo"] {
            fs::write(&path, other).unwrap();
            assert!(matches!(LogFile::open(&path), Err(LogFileError::Other)), "{other}");
            assert_eq!(fs::read_to_string(&path).unwrap(), other);
        }
        assert!(matches!(LogFile::open(dir.path()), Err(LogFileError::Open(_))));
        assert!(LogFile::open(Path::new("/dev/null")).is_ok());
    }

    /// /dev/full answers every write with ENOSPC.
    #[test]
    fn what_could_not_be_written_is_told_when_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let good = std::mem::replace(&mut log.file, full);
        log.write(b"one\n", 1);
        log.write(b"two\nthree\n", 2);
        assert_eq!(log.missing(), 3);
        log.file = good;
        log.write(b"four\n", 1);
        assert_eq!(log.missing(), 0);
        let lines = lines(&path);
        let [torn, dropped, four] = lines.as_slice() else { panic!("{lines:?}") };
        assert_eq!((torn.as_str(), four.as_str()), ("", "four"), "no pipe takes back what it took");
        let Line::Dropped(dropped) = serde_json::from_str(dropped).unwrap() else { panic!("{dropped}") };
        assert_eq!(dropped.count, 3);
        assert!(dropped.why.contains("os error 28"), "{}", dropped.why);
    }

    /// A limit on the file's size has a write end in the middle.
    #[test]
    fn a_line_is_written_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        log.write(b"first\n", 1);
        let sealed = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&sealed, 0).unwrap();
        rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::GROW).unwrap();
        let good = std::mem::replace(&mut log.file, sealed.into());
        log.write(b"second\n", 1);
        assert!(!log.torn && log.missing() == 1);
        log.file = good;
        log.write(b"third\n", 1);
        let lines = lines(&path);
        assert!(lines.len() == 3 && lines[0] == "first" && lines[2] == "third", "{lines:?}");
    }
}
