//! The steps that make the environment. What one of them leaves unfinished goes again.

use std::path::Path;

use super::{Kernel, Qemu, Sysroot, apt, cache, initramfs, kernel, space};
use crate::progress::{during, say};
use crate::undo::Undo;

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
/// Programs that run on the host, beside QEMU.
const HOST_PROGRAMS: [&str; 2] = ["usr/sbin/debugfs", super::VIRTIOFSD];

/// Packages behind [`GUEST_PROGRAMS`] and [`HOST_PROGRAMS`].
const PACKAGES: [&str; 7] =
    ["busybox-static", "nvme-cli", "fio", "e2fsprogs", "xfsprogs", "fdisk", "virtiofsd"];

/// Makes `programs` (the private root and the guest's programs) if wanted, and `kernels`.
pub(super) fn bring(root: &Path, programs: bool, kernels: &[Kernel]) -> anyhow::Result<()> {
    say(&format!("guest environment: {}", root.display()));
    space::check(root, programs)?;
    let apt = apt::Apt::new(&root.join("apt"))?;
    apt.update()?;
    if programs {
        bring_programs(&apt, root)?;
    }
    for &kernel in kernels {
        bring_kernel(&apt, root, kernel)?;
    }
    drop(apt);
    cache::remove(&root.join("boot"))?;
    say(&format!("guest environment: done, {} MB on disk", cache::size(root) >> 20));
    for old in cache::older(root) {
        say(&format!("{} is of an older version; nothing here needs it any more", old.display()));
    }
    Ok(())
}

fn bring_programs(apt: &apt::Apt, root: &Path) -> anyhow::Result<()> {
    let mut wanted = PACKAGES.to_vec();
    let installed = Qemu::installed();
    match &installed {
        Some(qemu) => say(&format!("QEMU: {} is installed and knows vfio-user-pci", qemu.version())),
        None => wanted.extend(["qemu-system-x86", "seabios"]),
    }
    let packages = apt.closure(&wanted)?;
    let qemu = if installed.is_none() { "QEMU, " } else { "" };
    let files = apt.download(&packages, &format!("{qemu}programs for the guest"))?;
    let dir = root.join("sysroot");
    cache::remove(&dir)?;
    let unfinished = Undo::removes(&dir);
    let sysroot = Sysroot::new(dir);
    sysroot.prepare()?;
    during("unpacking them", String::new, || files.iter().try_for_each(|file| sysroot.unpack(file)))?;
    sysroot.trim()?;
    say("every program finds its libraries in the private folder only");
    let mut proven = [&GUEST_PROGRAMS[..], &HOST_PROGRAMS].concat();
    if installed.is_none() {
        proven.push("usr/bin/qemu-system-x86_64");
    }
    for program in proven {
        sysroot.prove(program)?;
    }
    Qemu::find(&sysroot)?;
    initramfs::programs(&sysroot, &GUEST_PROGRAMS, &root.join("programs.cpio"))?;
    cache::stamp(root, "programs")?;
    unfinished.keep();
    Ok(())
}

fn bring_kernel(apt: &apt::Apt, root: &Path, kernel: Kernel) -> anyhow::Result<()> {
    let packages = apt.kernel_packages(kernel)?;
    let files = apt.download(&packages, &format!("guest kernel ({kernel})"))?;
    let dir = root.join(format!("kernel-{kernel}"));
    cache::remove(&dir)?;
    let unfinished = Undo::removes(&dir);
    during("unpacking it", String::new, || kernel::bring(&files, &dir))?;
    cache::stamp(root, kernel.name())?;
    unfinished.keep();
    Ok(())
}
