//! Python for the one case that runs somebody else's Python. Not part of the guest's programs: it is as big
//! as all of them.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::cpio::Cpio;
use super::{Sysroot, apt, cache, write_whole};
use crate::undo::Undo;

/// Named one by one: what the interpreter's other packages bring, the test has no use for.
const PACKAGES: [&str; 3] = ["python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib"];
const PROGRAM: &str = "usr/bin/python3.13";
/// Folder of the archive. A root of its own, so that its C library need not be the one the guest's programs
/// run on.
const HOME: &str = "python";
/// Where the archive, once unpacked in the guest's root, has the command.
pub const PYTHON: &str = "/python/python3";
/// Parts of the standard library that cost room and are for people.
const LEFT_OUT: [&str; 5] = ["__pycache__", "idlelib", "ensurepip", "pydoc_data", "turtledemo"];

/// The archive (newc), to be unpacked in a guest's root; made when it is not there yet.
///
/// # Errors
/// Text for a human: what could not be done.
pub fn python() -> anyhow::Result<PathBuf> {
    let root = cache::folder()?;
    let _lock = cache::lock(&root)?;
    let archive = root.join("python.cpio");
    if !cache::stamped(&root, HOME) {
        bring(&root, &archive).context("Python for the guest")?;
        cache::stamp(&root, HOME)?;
    }
    Ok(archive)
}

fn bring(root: &Path, archive: &Path) -> anyhow::Result<()> {
    let apt = apt::Apt::new(&root.join("apt"))?;
    apt.update()?;
    let packages = apt.closure(&PACKAGES)?;
    let dir = root.join("python-root");
    cache::remove(&dir)?;
    let _scratch = Undo::removes(&dir);
    let sysroot = Sysroot::new(dir.clone());
    sysroot.prepare()?;
    for file in apt.download(&packages, "Python for the guest")? {
        sysroot.unpack(&file)?;
    }
    sysroot.trim()?;
    sysroot.prove(PROGRAM)?;
    write_whole(archive, |file| {
        let mut cpio = Cpio::new(BufWriter::new(file));
        for inside in [PROGRAM, "usr/lib", "usr/lib64"] {
            add(&mut cpio, &sysroot.path(inside), &format!("{HOME}/{inside}"))?;
        }
        let wrapper = format!(
            "#!/bin/sh\nPYTHONHOME=/{HOME}/usr exec /{HOME}/usr/lib64/ld-linux-x86-64.so.2 --library-path \
             /{HOME}/usr/lib/x86_64-linux-gnu --argv0 python3 /{HOME}/{PROGRAM} \"$@\"\n"
        );
        cpio.file(PYTHON.trim_start_matches('/'), 0o755, wrapper.as_bytes())?;
        cpio.finish()?;
        Ok(())
    })
}

/// Adds `path` as `name`, with all that is below it.
fn add<W: Write>(cpio: &mut Cpio<W>, path: &Path, name: &str) -> anyhow::Result<()> {
    let meta = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    if meta.is_symlink() {
        cpio.link(name, fs::read_link(path)?.to_str().context("name of a link's target")?)?;
    } else if meta.is_dir() {
        cpio.folder(name)?;
        let mut entries: Vec<_> = fs::read_dir(path)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let own = entry.file_name();
            let own = own.to_str().context("file name")?;
            if !LEFT_OUT.contains(&own) {
                add(cpio, &entry.path(), &format!("{name}/{own}"))?;
            }
        }
    } else {
        cpio.file(name, 0o755, &fs::read(path)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_added_with_its_links_and_without_what_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/__pycache__")).unwrap();
        fs::write(dir.path().join("a/__pycache__/x"), "gone").unwrap();
        fs::write(dir.path().join("a/b"), "kept").unwrap();
        std::os::unix::fs::symlink("b", dir.path().join("a/link")).unwrap();
        let mut cpio = Cpio::new(Vec::new());
        add(&mut cpio, dir.path(), "top").unwrap();
        let text = String::from_utf8_lossy(&cpio.finish().unwrap()).into_owned();
        assert!(text.contains("top/a/b\0") && text.contains("kept") && text.contains("top/a/link\0"));
        assert!(!text.contains("__pycache__") && !text.contains("gone"));
    }
}
