//! Makes the guest environment: QEMU, kernels, programs for the guest. No root, nothing outside one cache
//! folder.
//!
//! The folder's name carries a version of this recipe; a stamp in it says what is complete. So a second call
//! does nothing, an interrupted one starts over, and a new recipe never meets an old folder.

mod agent;
mod apt;
mod bring;
mod cache;
mod cpio;
mod initramfs;
mod kernel;
mod python;
mod qemu;
mod space;
mod sysroot;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::undo::Undo;
pub(crate) use cache::workspace;
pub use python::{PYTHON, python};
pub use qemu::Qemu;
pub use space::advice;
pub use sysroot::Sysroot;

/// Where its package puts the program that shares a folder of the host with a guest.
pub(crate) const VIRTIOFSD: &str = "usr/libexec/virtiofsd";

/// Which guest kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kernel {
    /// The stable release's (6.12).
    Stable,
    /// The newest the archive has (7.x).
    Newest,
}

impl Kernel {
    const fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Newest => "newest",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything a guest needs, ready to use.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Programs of the private root, also for looking at images from outside.
    pub sysroot: Sysroot,
    /// The emulator.
    pub qemu: Qemu,
    root: PathBuf,
}

impl Environment {
    /// Uncompressed kernel with a PVH entry: QEMU starts it two seconds sooner than the compressed one.
    #[must_use]
    pub fn kernel(&self, kernel: Kernel) -> PathBuf {
        self.root.join(format!("kernel-{kernel}/vmlinux"))
    }

    /// Initial file system for our kernel `kernel`, or for a foreign one (no modules), put behind `before` if
    /// there is one.
    ///
    /// # Errors
    /// When files cannot be read or written, or the agent does not build.
    pub fn initramfs(&self, kernel: Option<Kernel>, before: Option<&Path>) -> anyhow::Result<PathBuf> {
        let agent = agent::build(&self.root)?;
        let mut parts: Vec<PathBuf> = before.map(Path::to_path_buf).into_iter().collect();
        parts.push(self.root.join("programs.cpio"));
        parts.extend(kernel.map(|k| self.root.join(format!("kernel-{k}/modules.cpio"))));
        initramfs::join(&self.root.join("boot"), &parts, &agent)
    }

    /// A kernel of ours that is there, the stable one first.
    pub(crate) fn any_kernel(&self) -> Option<Kernel> {
        [Kernel::Stable, Kernel::Newest].into_iter().find(|k| cache::stamped(&self.root, k.name()))
    }

    /// What is in it, in one line: QEMU, the kernels that are there, and the guest's nvme-cli and fio.
    ///
    /// # Errors
    /// When a program does not start.
    pub fn versions(&self) -> anyhow::Result<String> {
        let mut all = vec![format!("QEMU {} ({})", self.qemu.version(), self.qemu.origin())];
        for kernel in [Kernel::Stable, Kernel::Newest] {
            if cache::stamped(&self.root, kernel.name()) {
                let release = fs::read_to_string(self.root.join(format!("kernel-{kernel}/release")))?;
                all.push(format!("Linux {release} ({kernel})"));
            }
        }
        for program in ["usr/sbin/nvme", "usr/bin/fio"] {
            let out = self.sysroot.command(program).arg("--version").output().context(program)?;
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            all.push(text.lines().next().unwrap_or("?").trim().to_owned());
        }
        Ok(all.join(", "))
    }

    /// The cache folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.root
    }
}

/// Makes what is missing for `kernels` and answers the environment. Safe to call from several processes at
/// once.
///
/// Each step that takes time says so; where there is nothing to do nothing is said.
///
/// # Errors
/// Text for a human: what could not be done and what to do instead.
pub fn setup(kernels: &[Kernel]) -> anyhow::Result<Environment> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "guests are x86_64 only so far, and this harness was built for another processor"
    );
    let root = cache::folder()?;
    let _lock = cache::lock(&root)?;
    let missing: Vec<Kernel> = kernels.iter().copied().filter(|k| !cache::stamped(&root, k.name())).collect();
    let programs_missing = !cache::stamped(&root, "programs");
    if programs_missing || !missing.is_empty() {
        bring::bring(&root, programs_missing, &missing)
            .with_context(|| format!("the guest environment could not be made in {}", root.display()))?;
    }
    let sysroot = Sysroot::new(root.join("sysroot"));
    let qemu = Qemu::find(&sysroot)?;
    Ok(Environment { sysroot, qemu, root })
}

/// Writes a file so that it is there completely or not at all.
fn write_whole(path: &Path, write: impl FnOnce(&mut fs::File) -> anyhow::Result<()>) -> anyhow::Result<()> {
    // Two processes may do this at once: each writes its own file.
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let unfinished = Undo::removes(&part);
    let mut file = fs::File::create(&part).with_context(|| format!("create {}", part.display()))?;
    write(&mut file).with_context(|| format!("write {}", part.display()))?;
    fs::rename(&part, path).with_context(|| format!("rename to {}", path.display()))?;
    unfinished.keep();
    Ok(())
}
