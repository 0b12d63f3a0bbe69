//! The guest's first root, put together from archives that change at different times: programs, modules, the
//! agent.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};

use super::cpio::Cpio;
use super::{Sysroot, write_whole};

/// Archive with `programs`, their libraries and busybox's commands as links.
pub(super) fn programs(root: &Sysroot, programs: &[&str], to: &Path) -> anyhow::Result<()> {
    let mut files: BTreeSet<String> = programs.iter().map(|p| (*p).to_owned()).collect();
    for program in programs {
        files.extend(root.libraries(program)?);
    }
    let busybox =
        programs.iter().find(|p| p.ends_with("/busybox")).context("no busybox among the programs")?;
    let listed = Command::new(root.path(busybox)).arg("--list").output().context("busybox --list")?;
    ensure!(listed.status.success(), "busybox --list failed");
    let applets = String::from_utf8_lossy(&listed.stdout).into_owned();
    write_whole(to, |file| {
        let mut cpio = Cpio::new(BufWriter::new(file));
        for name in ["bin", "sbin", "lib", "lib64"] {
            cpio.folder(&format!("usr/{name}"))?;
            cpio.link(name, &format!("usr/{name}"))?;
        }
        for name in ["dev", "proc", "sys", "tmp", "run", "mnt", "etc", "root"] {
            cpio.folder(name)?;
        }
        for path in &files {
            let data = fs::read(root.path(path)).with_context(|| path.clone())?;
            cpio.file(path, 0o755, &data)?;
        }
        // The loader is asked for by the name in every program; its file is where the library package puts
        // it.
        let own =
            |applet: &str| ["usr/bin", "usr/sbin"].iter().any(|d| files.contains(&format!("{d}/{applet}")));
        for applet in applets.lines().filter(|a| !own(a)) {
            cpio.link(&format!("usr/bin/{applet}"), "busybox")?;
        }
        cpio.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
        cpio.file("etc/group", 0o644, b"root:x:0:\n")?;
        cpio.file("etc/mke2fs.conf", 0o644, &fs::read(root.path("etc/mke2fs.conf")).unwrap_or_default())?;
        cpio.link("etc/mtab", "/proc/self/mounts")?;
        cpio.finish()?;
        Ok(())
    })
}

/// Archive with the modules of one kernel, in the order they must be loaded in.
pub(super) fn modules(modules: &[(String, Vec<u8>)], to: &Path) -> anyhow::Result<()> {
    write_whole(to, |file| {
        let mut cpio = Cpio::new(BufWriter::new(file));
        let mut order = String::new();
        for (name, data) in modules {
            cpio.file(&format!("guest/modules/{name}"), 0o644, data)?;
            order.push_str(name);
            order.push('\n');
        }
        cpio.file("guest/modules/order", 0o644, order.as_bytes())?;
        cpio.finish()?;
        Ok(())
    })
}

/// One file of `parts` and the agent; made once for each combination, kept in `dir`.
pub(super) fn join(dir: &Path, parts: &[PathBuf], agent: &Path) -> anyhow::Result<PathBuf> {
    let agent = fs::read(agent).context("the guest agent")?;
    let mut key = DefaultHasher::new();
    agent.hash(&mut key);
    for part in parts {
        let meta = fs::metadata(part).with_context(|| part.display().to_string())?;
        (part, meta.len(), meta.modified()?).hash(&mut key);
    }
    let path = dir.join(format!("{:016x}.cpio", key.finish()));
    if let Ok(file) = fs::File::open(&path) {
        // Marks it as in use; see `prune`.
        file.set_modified(SystemTime::now())?;
        return Ok(path);
    }
    fs::create_dir_all(dir)?;
    prune(dir)?;
    write_whole(&path, |file| {
        let mut to = BufWriter::new(file);
        for part in parts {
            let mut from = fs::File::open(part)?;
            let n = std::io::copy(&mut from, &mut to)?;
            // The kernel looks for the next archive at multiples of four bytes only.
            let gap = n.next_multiple_of(512) - n;
            to.write_all(&vec![0; usize::try_from(gap)?])?;
        }
        let mut cpio = Cpio::new(to);
        cpio.file("guest/guest-agent", 0o755, &agent)?;
        cpio.finish()?.flush()?;
        Ok(())
    })?;
    Ok(path)
}

/// Removes what was not used for a day: every change of the agent makes another file of some 70 MB.
fn prune(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
        if age > Duration::from_secs(24 * 3600) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_at_whole_sectors_once() {
        let dir = tempfile::tempdir().unwrap();
        let (first, agent) = (dir.path().join("first"), dir.path().join("agent"));
        fs::write(&first, b"F").unwrap();
        fs::write(&agent, b"A").unwrap();
        let boot = dir.path().join("boot");
        let joined = join(&boot, std::slice::from_ref(&first), &agent).unwrap();
        let bytes = fs::read(&joined).unwrap();
        assert_eq!(bytes[..2], *b"F\0");
        assert_eq!(bytes[512..518], *b"070701");
        assert_eq!(join(&boot, std::slice::from_ref(&first), &agent).unwrap(), joined);
        fs::write(&agent, b"B").unwrap();
        assert_ne!(join(&boot, &[first], &agent).unwrap(), joined);
        // Yesterday's goes when a new one is made.
        let old = SystemTime::now() - Duration::from_secs(25 * 3600);
        fs::File::open(&joined).unwrap().set_modified(old).unwrap();
        prune(&boot).unwrap();
        assert!(!joined.exists());
        assert_eq!(fs::read_dir(&boot).unwrap().count(), 1);
    }
}
