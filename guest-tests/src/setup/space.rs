//! Room on the disk: what the environment and the build take, and what to do when there is not enough.

use std::path::Path;

use anyhow::ensure;

use super::cache::OVERRIDE;

/// MiB in the cache folder with one kernel, with both, and while they are made.
const CACHE: [u64; 2] = [390, 530];
const MAKING: u64 = 600;
/// What the build takes, as cargo's default settings make it.
const BUILD: &str = "1.6 GB";

/// Fails before anything is fetched when the environment will not fit into `root`.
pub(super) fn check(root: &Path) -> anyhow::Result<()> {
    let stat = rustix::fs::statvfs(root)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
    ensure!(free >= MAKING, "{} MB are free in {}. {}", free, root.display(), remedy());
    Ok(())
}

/// What an error text has to say more when it comes from a full disk.
#[must_use]
pub fn advice(error: &str) -> Option<String> {
    // The words of ENOSPC and EDQUOT: programs we run say no more than these.
    let full = ["No space left on device", "Disk quota exceeded"].iter().any(|words| error.contains(words));
    full.then(remedy)
}

fn remedy() -> String {
    format!(
        "Disk full? The guest environment takes {} to {} MB ({MAKING} while it is made), the build {BUILD}: make room, or \
         set {OVERRIDE} and CARGO_TARGET_DIR to folders on another disk",
        CACHE[0], CACHE[1]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_recognised_by_the_words_of_any_program() {
        assert!(advice("dpkg-deb: error: ...: No space left on device").unwrap().contains(OVERRIDE));
        assert!(advice("write: No space left on device (os error 28)").is_some());
        assert_eq!(advice("Permission denied"), None);
    }
}
