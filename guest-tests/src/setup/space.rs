//! Room on the disk: what the environment and the build take, and what to do when there is not enough.

use std::path::Path;

use anyhow::ensure;

use super::cache::OVERRIDE;

/// MB in the cache folder with one kernel, and with both.
const CACHE: [u64; 2] = [390, 530];
/// MB that must be free to make the programs, and to make a kernel.
const MAKING: [u64; 2] = [600, 250];
/// What the build takes, as cargo's default settings make it.
const BUILD: &str = "1.7 GB";

/// Fails before anything is fetched when what is missing, `programs` or only a kernel, will not fit into
/// `root`.
pub(super) fn check(root: &Path, programs: bool) -> anyhow::Result<()> {
    let stat = rustix::fs::statvfs(root)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
    let needed = if programs { MAKING[0] } else { MAKING[1] };
    ensure!(free >= needed, "{free} MB are free in {}, {needed} are needed. {}", root.display(), remedy());
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
        "Disk full? The guest environment takes {} to {} MB ({} while it is made), the build {BUILD}: \
         make room, or set {OVERRIDE} and CARGO_TARGET_DIR to folders on another disk",
        CACHE[0], CACHE[1], MAKING[0]
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
