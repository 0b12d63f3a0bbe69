//! Folders to measure in.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder on the file system in question; a loop mount goes when this is dropped.
pub struct Place {
    dir: tempfile::TempDir,
    mounted: bool,
}

impl Place {
    /// A folder of the file system that BENCH_DIR, or the build's own folder, lies on.
    pub fn plain() -> Self {
        let base = std::env::var_os("BENCH_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        Self { dir: tempfile::tempdir_in(base).expect("folder"), mounted: false }
    }

    /// A fresh loop-mounted file system of `gib` GiB; why not, where that is impossible.
    pub fn mount(kind: &str, gib: u64) -> Result<Self, String> {
        let mut place = Self::plain();
        let image = place.dir.path().join("fs.img");
        let file = std::fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(gib << 30).map_err(|e| e.to_string())?;
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))?;
        let point = place.dir.path().join("m");
        std::fs::create_dir(&point).map_err(|e| e.to_string())?;
        run(Command::new("mount").args(["-o", "loop", "-t", kind]).arg(&image).arg(&point))?;
        place.mounted = true;
        Ok(place)
    }

    /// The folder.
    pub fn path(&self) -> PathBuf {
        if self.mounted { self.dir.path().join("m") } else { self.dir.path().to_owned() }
    }

    /// Bytes in use on its file system.
    pub fn used(&self) -> u64 {
        sync(&self.path());
        let stat = rustix::fs::statvfs(self.path()).expect("statvfs");
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mounted {
            let _ = run(Command::new("umount").arg(self.path()));
        }
    }
}

/// Makes everything below `path` durable, so that no run pays for the one before.
pub fn sync(path: &Path) {
    if let Ok(file) = std::fs::File::open(path) {
        let _ = rustix::fs::syncfs(file);
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{name}: {}", text.trim())) }
}
