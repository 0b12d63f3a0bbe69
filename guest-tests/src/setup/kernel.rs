//! A kernel package becomes an uncompressed image and an archive of the few modules guests need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use super::{cache, initramfs, sysroot};
use crate::child::Child;

/// What the cases need and the cloud kernel does not have built in; those that are built in are passed over.
const MODULES: [&str; 1] = ["xfs"];

/// Unpacks `packages` and leaves `vmlinux` and `modules.cpio` in `dir`.
pub(super) fn bring(packages: &[PathBuf], dir: &Path) -> anyhow::Result<()> {
    let tree = dir.join("tree");
    fs::create_dir_all(&tree)?;
    for package in packages {
        sysroot::unpack(package, &tree)?;
    }
    let image = find(&tree, &|name| name == "vmlinuz" || name.starts_with("vmlinuz-"))
        .context("the kernel package has no vmlinuz")?;
    let packed = fs::read(&image)?;
    let vmlinux = uncompressed(&packed, dir).with_context(|| image.display().to_string())?;
    fs::write(dir.join("vmlinux"), vmlinux)?;
    fs::write(dir.join("release"), release(&packed).with_context(|| image.display().to_string())?)?;
    let modules = modules(&tree, dir)?;
    initramfs::modules(&modules, &dir.join("modules.cpio"))?;
    cache::remove(&tree)
}

fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(dir).ok()?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    entries.into_iter().find_map(|entry| {
        let kind = entry.file_type().ok()?;
        if kind.is_dir() {
            find(&entry.path(), wanted)
        } else {
            wanted(entry.file_name().to_str()?).then(|| entry.path())
        }
    })
}

/// The kernel proper out of a bzImage (Documentation/arch/x86/boot.rst: `setup_sects`, `payload_offset`,
/// `payload_length`).
fn uncompressed(image: &[u8], scratch: &Path) -> anyhow::Result<Vec<u8>> {
    let payload = payload(image)?;
    let suffix = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zst",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x1f, 0x8b, ..] => "gz",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [b'B', b'Z', b'h', ..] => "bz2",
        _ => bail!("unknown compression"),
    };
    let elf = decompress(payload, suffix, scratch)?;
    ensure!(elf.starts_with(b"\x7fELF"), "what was unpacked is no ELF file");
    Ok(elf)
}

fn payload(image: &[u8]) -> anyhow::Result<&[u8]> {
    let field = |at: usize| -> anyhow::Result<usize> {
        let bytes = image.get(at..at + 4).context("too short for a kernel image")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "no kernel image (HdrS missing)");
    let sectors = usize::from(*image.get(0x1f1).context("too short")?);
    let start = (if sectors == 0 { 4 } else { sectors } + 1) * 512 + field(0x248)?;
    image.get(start..start + field(0x24c)?).context("payload lies outside the image")
}

/// What `uname -r` will say (boot.rst: `kernel_version`, the offset of a text behind the boot sector).
fn release(image: &[u8]) -> anyhow::Result<String> {
    let at = image.get(0x20e..0x210).context("too short for a kernel image")?;
    let text =
        image.get(usize::from(u16::from_le_bytes([at[0], at[1]])) + 512..).context("no version text")?;
    let end = text.iter().position(|b| b" \0".contains(b)).context("no end of the version text")?;
    Ok(String::from_utf8_lossy(&text[..end]).into_owned())
}

/// apt's own helper knows every compression packages come in, and is on every machine that got this far.
fn decompress(data: &[u8], suffix: &str, scratch: &Path) -> anyhow::Result<Vec<u8>> {
    let file = scratch.join(format!("scratch.{suffix}"));
    fs::write(&file, data)?;
    let mut command = Command::new("/usr/lib/apt/apt-helper");
    command.arg("cat-file").arg(&file);
    let out = Child::output(command, "apt-helper", &|_| {})?;
    fs::remove_file(&file)?;
    // For a kernel's payload the size behind the compressed stream is trailing garbage: output complete,
    // status not.
    ensure!(!out.stdout.is_empty(), "apt-helper: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(out.stdout)
}

/// [`MODULES`] and what they depend on, each behind all it needs.
fn modules(tree: &Path, scratch: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = BTreeMap::new();
    collect(tree, &mut files);
    let mut order = Vec::new();
    let mut todo: Vec<String> = MODULES.iter().rev().map(|m| (*m).to_owned()).collect();
    while let Some(name) = todo.pop() {
        let Some(path) = files.get(&name) else { continue };
        let data = fs::read(path)?;
        let data = match path.extension().and_then(|e| e.to_str()) {
            Some(suffix @ ("xz" | "zst" | "gz")) => decompress(&data, suffix, scratch)?,
            _ => data,
        };
        todo.extend(depends(&data).into_iter().rev());
        order.retain(|(n, _)| *n != name);
        order.push((name, data));
    }
    // Found from the top down; loaded from the bottom up.
    order.reverse();
    Ok(order.into_iter().map(|(n, d)| (format!("{n}.ko"), d)).collect())
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect(&path, files);
        } else if let Some((stem, _)) =
            path.file_name().and_then(|n| n.to_str()).and_then(|n| n.split_once(".ko"))
        {
            files.insert(stem.replace('-', "_"), path.clone());
        }
    }
}

/// Names behind `depends=` in the module's information section.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|&b| b == 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&value[..end]);
    text.split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_is_found_by_the_header_and_never_outside() {
        let mut image = vec![0u8; 4096];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&8u32.to_le_bytes());
        image[1040..1048].copy_from_slice(b"payload!");
        assert_eq!(payload(&image).unwrap(), b"payload!");
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(payload(&image).is_err());
        assert!(payload(b"MZ").is_err());
        image[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
        image[0x500..0x50f].copy_from_slice(b"6.1.0-x (build)");
        assert_eq!(release(&image).unwrap(), "6.1.0-x");
        assert!(release(b"MZ").is_err());
    }

    #[test]
    fn dependencies_are_read_from_the_information_section() {
        assert_eq!(depends(b"\0license=GPL\0depends=libcrc32c,a-b\0name=xfs\0"), ["libcrc32c", "a_b"]);
        assert!(depends(b"\0depends=\0name=x\0").is_empty());
        assert!(depends(b"none").is_empty());
    }
}
