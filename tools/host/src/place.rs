//! Where images may lie besides the daemon's folder: other file systems, and block devices.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// For one tool; generous, for mkfs and umount wait for a disk that others use too.
const LIMIT: Duration = Duration::from_secs(30);

/// A fresh file system in a sparse loop file, mounted until this is dropped. Daemons that have files open
/// there must end before.
pub struct Mount {
    dir: TempDir,
}

impl Mount {
    /// `kind` as `mkfs.KIND` and `mount -t KIND` take it, `size` in bytes; nothing, with the reason printed,
    /// where that is impossible.
    pub fn new(kind: &str, size: u64) -> Option<Mount> {
        let (dir, image) = sparse(size);
        let point = dir.path().join("m");
        std::fs::create_dir(&point).expect("mount point");
        tool(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))
            .and_then(|_| tool(Command::new("mount").args(["-o", "loop", "-t", kind]).args([&image, &point])))
            .inspect_err(|why| eprintln!("{kind} left out: {why}"))
            .ok()?;
        Some(Mount { dir })
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("m")
    }

    /// Bytes in use, once all that was delayed has its place.
    pub fn used(&self) -> u64 {
        let root = File::open(self.path()).expect("mounted");
        rustix::fs::syncfs(root).expect("sync");
        let stat = rustix::fs::statvfs(self.path()).expect("statvfs");
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The kernel lets go of a killed daemon's rings, and with them its files, a little after its end.
        for _ in 0..20 {
            if tool(Command::new("umount").arg(self.path())).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        if let Err(why) = tool(Command::new("umount").arg("--lazy").arg(self.path())) {
            eprintln!("{} stays mounted: {why}", self.path().display());
        }
    }
}

/// A block device on a sparse loop file, detached when this is dropped.
pub struct LoopDevice {
    path: PathBuf,
    _dir: TempDir,
}

impl LoopDevice {
    /// `size` in bytes; nothing, with the reason printed, where that is impossible.
    pub fn new(size: u64) -> Option<LoopDevice> {
        let (dir, image) = sparse(size);
        let out = tool(Command::new("losetup").args(["--find", "--show"]).arg(&image))
            .inspect_err(|why| eprintln!("block devices left out: {why}"))
            .ok()?;
        Some(LoopDevice { path: PathBuf::from(out.trim()), _dir: dir })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // One still in use goes with its last user.
        if let Err(why) = tool(Command::new("losetup").arg("--detach").arg(&self.path)) {
            eprintln!("{} stays: {why}", self.path.display());
        }
    }
}

fn sparse(size: u64) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("folder");
    let image = dir.path().join("loop");
    File::create(&image).and_then(|f| f.set_len(size)).expect("loop file");
    (dir, image)
}

/// Runs a tool of few words to its end and gives what it said.
fn tool(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |why: &dyn std::fmt::Display| format!("{name}: {why}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| failed(&e))?;
    let start = Instant::now();
    while child.try_wait().map_err(|e| failed(&e))?.is_none() {
        if start.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(&"takes too long"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let out = child.wait_with_output().map_err(|e| failed(&e))?;
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(failed(&text(&out.stderr))) }
}
