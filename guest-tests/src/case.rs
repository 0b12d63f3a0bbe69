//! The folder of one case: its logs, sockets and images. Removed when all went well, kept and named when not.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

use crate::undo::{self, Undo};

/// A folder below the system's temporary one, private to the user.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Removes it; `None` once it is to be kept.
    undo: Option<Undo>,
}

impl Folder {
    /// Makes the folder. The name is kept short: paths of UNIX sockets end at 107 bytes.
    ///
    /// # Errors
    /// When the temporary folder cannot be written to.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(32).collect();
        let path = std::env::temp_dir().join(format!("vun-{}-{n}-{name}", std::process::id()));
        let undo = Some(Undo::removes(&path));
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(Self { path, undo })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Leaves it behind for a human.
    pub fn keep(&mut self) {
        self.undo.take().into_iter().for_each(Undo::keep);
    }

    /// Leaves it behind and says so, unless a signal ends us.
    pub fn keep_and_say(&mut self) {
        self.keep();
        if !undo::interrupted() {
            eprintln!("logs and images are in {}", self.path.display());
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep();
        }
    }
}

/// Last `lines` lines of a log, for an error message; empty when there is none.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_unless_kept() {
        let folder = Folder::new("a/b c").unwrap();
        let path = folder.path().to_owned();
        fs::write(folder.file("x"), "1\n2\n3\n").unwrap();
        assert_eq!(tail(&folder.file("x"), 2), "2\n3");
        drop(folder);
        assert!(!path.exists());
        let mut folder = Folder::new("kept").unwrap();
        folder.keep();
        let path = folder.path().to_owned();
        drop(folder);
        assert!(path.exists());
        fs::remove_dir_all(path).unwrap();
    }
}
