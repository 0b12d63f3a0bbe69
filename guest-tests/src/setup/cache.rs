//! The cache folder: where it is, who works in it, what is complete in it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;

use crate::progress;

/// Goes up whenever the recipe changes what it leaves behind.
const RECIPE: &str = "guest-2";

/// Names the folder itself, for machines whose home is small or slow.
pub(super) const OVERRIDE: &str = "VFIO_USER_NVME_GUEST_DIR";

/// The folder, created. Private to the user: a guest boots what is in it.
pub(super) fn folder() -> anyhow::Result<PathBuf> {
    let dir = choose(&|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))?;
    if dir.starts_with(workspace()) {
        bail!("{} lies inside the source tree; set {OVERRIDE} to a folder outside", dir.display());
    }
    fs::create_dir_all(&dir).with_context(|| {
        format!(
            "cannot create the cache folder {}; set {OVERRIDE} to a folder you may write to",
            dir.display()
        )
    })?;
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(dir)
}

fn choose(var: &dyn Fn(&str) -> Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let base = if let Some(dir) = var(OVERRIDE) {
        dir
    } else if let Some(dir) = var("XDG_CACHE_HOME").filter(|d| d.is_absolute()) {
        dir.join("vfio-user-nvme")
    } else if let Some(home) = var("HOME") {
        home.join(".cache/vfio-user-nvme")
    } else {
        bail!("no HOME and no XDG_CACHE_HOME: set {OVERRIDE} to a folder for the guest environment");
    };
    Ok(std::path::absolute(base)?.join(RECIPE))
}

/// The source tree this harness was built from.
pub(crate) fn workspace() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Held while one process works in the folder; others wait.
pub(super) fn lock(root: &Path) -> anyhow::Result<File> {
    let path = root.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let wait = || rustix::fs::flock(&file, FlockOperation::LockExclusive);
        progress::during("waiting: another process works in the cache folder", String::new, wait)
            .context("lock the cache folder")?;
    }
    Ok(file)
}

/// What earlier recipes left beside `root`.
pub(super) fn older(root: &Path) -> Vec<PathBuf> {
    let beside = root.parent().and_then(|parent| fs::read_dir(parent).ok());
    let mut found: Vec<PathBuf> = beside.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let recipe = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("guest-"));
    found.retain(|path| recipe(path) && path != root);
    found
}

/// Is `part` complete?
pub(super) fn stamped(root: &Path, part: &str) -> bool {
    root.join(format!("complete-{part}")).exists()
}

/// `part` is complete from now on.
pub(super) fn stamp(root: &Path, part: &str) -> anyhow::Result<()> {
    Ok(fs::write(root.join(format!("complete-{part}")), "")?)
}

/// Removes a folder that may not be there.
pub(super) fn remove(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Bytes in all files below.
pub(super) fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(m) if m.is_dir() => size(&entry.path()),
            Ok(m) if m.is_file() => m.len(),
            _ => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
        choose(&|name| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| PathBuf::from(v)))
    }

    #[test]
    fn override_beats_xdg_beats_home() {
        let all = [(OVERRIDE, "/o"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(with(&all).unwrap(), Path::new("/o").join(RECIPE));
        assert_eq!(with(&all[1..]).unwrap(), Path::new("/x/vfio-user-nvme").join(RECIPE));
        assert_eq!(with(&all[2..]).unwrap(), Path::new("/h/.cache/vfio-user-nvme").join(RECIPE));
        assert!(with(&[]).unwrap_err().to_string().contains(OVERRIDE));
        // The XDG specification says that relative paths are to be ignored.
        assert!(with(&[("XDG_CACHE_HOME", "rel"), ("HOME", "/h")]).unwrap().starts_with("/h"));
    }
}
