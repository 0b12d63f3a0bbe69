//! The private root: packages unpacked side by side, their programs started by their own loader.
//!
//! No chroot and no namespaces: the loader is told where the libraries are, which needs no rights at all.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::child::Child;

const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
/// `ceph`: librados carries a run path of the host's there; a library path is looked at first.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];

/// A folder with a merged `/usr`.
#[derive(Debug, Clone)]
pub struct Sysroot {
    dir: PathBuf,
}

impl Sysroot {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where `inside`, a path without leading slash, is on the host.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        self.dir.join(inside)
    }

    /// The links a merged `/usr` needs; they belong to a package that is not unpacked.
    pub(super) fn prepare(&self) -> anyhow::Result<()> {
        for name in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(self.dir.join("usr").join(name))?;
            symlink(format!("usr/{name}"), self.dir.join(name))?;
        }
        Ok(())
    }

    pub(super) fn unpack(&self, package: &Path) -> anyhow::Result<()> {
        unpack(package, &self.dir)
    }

    /// Removes what only costs room.
    pub(super) fn trim(&self) -> anyhow::Result<()> {
        for inside in [
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
            "usr/lib/x86_64-linux-gnu/gconv",
            "usr/share/info",
        ] {
            super::cache::remove(&self.dir.join(inside))?;
        }
        for inside in ["usr/bin/qemu-system-i386", "usr/bin/qemu-system-x86_64-microvm"] {
            let _ = fs::remove_file(self.dir.join(inside));
        }
        Ok(())
    }

    fn library_path(&self) -> String {
        LIBRARIES.map(|l| self.dir.join(l).display().to_string()).join(":")
    }

    fn loader(&self) -> Command {
        let mut command = Command::new(self.dir.join(LOADER));
        command.args(["--inhibit-cache", "--library-path", &self.library_path()]);
        // A library path of the user's would be looked at too.
        command.env_remove("LD_LIBRARY_PATH").env_remove("LD_PRELOAD");
        command
    }

    /// A command that runs the root's program at `inside`.
    pub fn command(&self, inside: &str) -> Command {
        let program = self.dir.join(inside);
        let mut command = self.loader();
        let name = program.file_name().unwrap_or_else(|| OsStr::new(inside)).to_owned();
        command.arg("--argv0").arg(name).arg(program);
        command
    }

    /// Files the program at `inside` loads, as paths in the root, loader included; empty for a static
    /// program.
    pub(super) fn libraries(&self, inside: &str) -> anyhow::Result<BTreeSet<String>> {
        let program = self.dir.join(inside);
        ensure!(program.exists(), "the packages bring no {inside}");
        if !wants_loader(&fs::read(&program)?) {
            return Ok(BTreeSet::new());
        }
        let out = self
            .loader()
            .arg("--list")
            .arg(&program)
            .output()
            .with_context(|| format!("loader for {inside}"))?;
        let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        ensure!(
            out.status.success(),
            "{inside} does not find its libraries: {}",
            format!("{text}{errors}").trim()
        );
        self.inside(&text).with_context(|| inside.to_owned())
    }

    fn inside(&self, list: &str) -> anyhow::Result<BTreeSet<String>> {
        let mut found = BTreeSet::from([LOADER.to_owned()]);
        for line in list.lines().map(str::trim).filter(|l| !l.is_empty()) {
            ensure!(!line.contains("not found"), "library missing: {line}");
            let Some((_, target)) = line.split_once(" => ") else { continue };
            let path = Path::new(target.split(" (").next().unwrap_or(target));
            let own =
                path.strip_prefix(&self.dir).map_err(|_| anyhow::anyhow!("library of the host: {line}"))?;
            found.insert(own.to_str().context("library name")?.to_owned());
        }
        Ok(found)
    }

    /// The program and its libraries are all here.
    pub(super) fn prove(&self, inside: &str) -> anyhow::Result<()> {
        self.libraries(inside).map(drop)
    }
}

/// Has this ELF file a `PT_INTERP` header? Without one it is static, and the loader cannot be asked about it.
fn wants_loader(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, len: usize| -> Option<u64> {
        let mut le = [0; 8];
        le[..len].copy_from_slice(elf.get(at..at.checked_add(len)?)?);
        Some(u64::from_le_bytes(le))
    };
    // ELF64 header: e_phoff at 32, e_phentsize at 54, e_phnum at 56.
    let (Some(offset), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return false;
    };
    (0..count).any(|n| {
        let at = usize::try_from(offset.saturating_add(n * size)).unwrap_or(usize::MAX);
        number(at, 4) == Some(u64::from(PT_INTERP))
    })
}

/// Unpacks a package without running any of its scripts.
pub(super) fn unpack(package: &Path, to: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("dpkg-deb");
    command.arg("-x").arg(package).arg(to);
    let out = Child::output(command, "dpkg-deb", &|_| {})?;
    ensure!(
        out.status.success(),
        "unpacking {}: {}",
        package.display(),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_libraries_names_its_loader() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(wants_loader(&own));
        assert!(!wants_loader(b"\x7fELF"));
        assert!(!wants_loader(&[0xff; 64]));
    }

    #[test]
    fn a_library_of_the_host_is_refused() {
        let root = Sysroot::new("/cache/root".into());
        let own =
            "linux-vdso.so.1 (0x1)\n libc.so.6 => /cache/root/usr/lib/x86_64-linux-gnu/libc.so.6 (0x2)\n";
        assert!(root.inside(own).unwrap().contains("usr/lib/x86_64-linux-gnu/libc.so.6"));
        let host = "libc.so.6 => /usr/lib/x86_64-linux-gnu/libc.so.6 (0x2)";
        assert!(root.inside(host).unwrap_err().to_string().contains("library of the host"));
        assert!(root.inside("libx.so => not found").is_err());
    }
}
