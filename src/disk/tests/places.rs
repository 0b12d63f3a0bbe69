//! Where tests lay images besides a folder: block devices and file systems of their own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device on a file, where the test may make one.
pub(in crate::disk) struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    pub(in crate::disk) fn new(image: &Path) -> Option<Self> {
        Self::with(&[], image)
    }

    /// With more words for losetup.
    pub(in crate::disk) fn with(words: &[&str], image: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).args(words).arg(image).output();
        match made {
            Ok(made) if made.status.success() => {
                let path = String::from_utf8(made.stdout).expect("a path in UTF-8");
                Some(LoopDevice { path: path.trim_end().into() })
            }
            _ => {
                eprintln!("block devices are not tested: losetup needs root and loop devices");
                None
            }
        }
    }

    pub(in crate::disk) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// A mounted file system, where the test may mount one.
pub(in crate::disk) struct Mount {
    point: PathBuf,
}

impl Mount {
    /// As `mount` takes these words, at `point`.
    pub(in crate::disk) fn new<W: AsRef<OsStr>>(words: &[W], point: &Path) -> Option<Self> {
        let mounted = Command::new("mount").args(words).arg(point).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Mount { point: point.to_owned() });
        }
        eprintln!("not tested: mounting this file system needs root and a kernel that has it");
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.point).status();
    }
}
