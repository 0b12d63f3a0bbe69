//! Makes the guest environment: QEMU, kernels, programs for the guest. No root, nothing outside one cache folder.
//!
//! The folder's name carries a version of this recipe; a stamp in it says what is complete. So a second call does
//! nothing, an interrupted one starts over, and a new recipe never meets an old folder.

mod agent;
mod apt;
mod cache;
mod cpio;
mod initramfs;
mod kernel;
mod python;
mod qemu;
mod sysroot;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};

pub(crate) use agent::cargo;
pub use python::{PYTHON, python};
pub use qemu::Qemu;
pub use sysroot::Sysroot;

/// Programs that must be in the guest, with the place their package puts them.
const GUEST_PROGRAMS: [&str; 8] = [
    "usr/bin/busybox",
    "usr/sbin/nvme",
    "usr/bin/fio",
    "usr/sbin/mkfs.ext4",
    "usr/sbin/e2fsck",
    "usr/sbin/mkfs.xfs",
    "usr/sbin/xfs_repair",
    "usr/sbin/sfdisk",
];

/// Packages behind [`GUEST_PROGRAMS`].
const GUEST_PACKAGES: [&str; 6] = ["busybox-static", "nvme-cli", "fio", "e2fsprogs", "xfsprogs", "fdisk"];

/// Which guest kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kernel {
    /// The stable release's (6.12): user space may set Host Behavior Support, so Copy formats 2 and 3 can be tried.
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

    /// Initial file system for our kernel `kernel`, or for a foreign one (no modules), put behind `before` if there is one.
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

    /// The cache folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.root
    }
}

/// Makes what is missing for `kernels` and answers the environment. Safe to call from several processes at once.
///
/// `progress` gets a line for each step that takes time, none when there is nothing to do.
///
/// # Errors
/// Text for a human: what could not be done and what to do instead.
pub fn setup(kernels: &[Kernel], progress: &dyn Fn(&str)) -> anyhow::Result<Environment> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "guests are x86_64 only so far, and this harness was built for another processor"
    );
    let root = cache::folder()?;
    let _lock = cache::lock(&root)?;
    let missing: Vec<Kernel> = kernels.iter().copied().filter(|k| !cache::stamped(&root, k.name())).collect();
    let programs_missing = !cache::stamped(&root, "programs");
    if programs_missing || !missing.is_empty() {
        bring(&root, programs_missing, &missing, progress)
            .with_context(|| format!("the guest environment could not be made in {}", root.display()))?;
    }
    let sysroot = Sysroot::new(root.join("sysroot"));
    let qemu = Qemu::find(&sysroot)?;
    Ok(Environment { sysroot, qemu, root })
}

fn bring(root: &Path, programs: bool, kernels: &[Kernel], progress: &dyn Fn(&str)) -> anyhow::Result<()> {
    let start = Instant::now();
    let say = |text: String| progress(&format!("[{:5.1} s] {text}", start.elapsed().as_secs_f32()));
    say(format!("guest environment: {}", root.display()));
    let installed = if programs { Qemu::installed() } else { None };
    let apt = apt::Apt::new(&root.join("apt"))?;
    say(format!("package lists from {}", apt.base()));
    apt.update()?;
    if programs {
        let sysroot_dir = root.join("sysroot");
        cache::remove(&sysroot_dir)?;
        let mut wanted = GUEST_PACKAGES.to_vec();
        match &installed {
            Some(qemu) => say(format!("QEMU: {} is installed and knows vfio-user-pci", qemu.version())),
            None => wanted.extend(["qemu-system-x86", "seabios"]),
        }
        let packages = apt.closure(&wanted)?;
        say(format!("{} packages, {} MB", packages.len(), megabytes(&packages)));
        let files = apt.download(&packages)?;
        say("unpacking".into());
        let sysroot = Sysroot::new(sysroot_dir);
        sysroot.prepare()?;
        for file in &files {
            sysroot.unpack(file)?;
        }
        sysroot.trim()?;
        let mut proven: Vec<&str> = GUEST_PROGRAMS.to_vec();
        proven.push("usr/sbin/debugfs");
        if installed.is_none() {
            proven.push("usr/bin/qemu-system-x86_64");
        }
        say("every program finds its libraries in the private folder only".into());
        for program in proven {
            sysroot.prove(program)?;
        }
        let qemu = Qemu::find(&sysroot)?;
        say(format!("QEMU {}", qemu.version()));
        initramfs::programs(&sysroot, &GUEST_PROGRAMS, &root.join("programs.cpio"))?;
        cache::stamp(root, "programs")?;
    }
    for &kernel in kernels {
        let packages = apt.kernel_packages(kernel)?;
        let names: Vec<&str> = packages.iter().map(|p| p.name.as_str()).collect();
        say(format!("guest kernel: {}, {} MB", names.join(" "), megabytes(&packages)));
        let files = apt.download(&packages)?;
        let dir = root.join(format!("kernel-{kernel}"));
        cache::remove(&dir)?;
        kernel::bring(&files, &dir)?;
        cache::stamp(root, kernel.name())?;
    }
    apt.clean()?;
    cache::remove(&root.join("boot"))?;
    say(format!("done, {} MB on disk", cache::size(root) >> 20));
    Ok(())
}

fn megabytes(packages: &[apt::Package]) -> u64 {
    packages.iter().map(|p| p.size).sum::<u64>().div_ceil(1 << 20)
}

/// Writes a file so that it is there completely or not at all.
fn write_whole(path: &Path, write: impl FnOnce(&mut fs::File) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let part = path.with_extension("part");
    let mut file = fs::File::create(&part).with_context(|| format!("create {}", part.display()))?;
    write(&mut file)?;
    fs::rename(&part, path).with_context(|| format!("rename to {}", path.display()))
}
