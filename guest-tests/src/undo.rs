//! What must not stay behind: undone when its owner drops it, and when a signal ends the program.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::child;

type Action = Box<dyn FnOnce() + Send>;

static OPEN: Mutex<BTreeMap<u64, Action>> = Mutex::new(BTreeMap::new());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn open() -> MutexGuard<'static, BTreeMap<u64, Action>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An action that is still to be done, once, whoever comes first: the owner or a signal.
#[derive(Debug)]
pub struct Undo(u64);

impl Undo {
    /// Does `action` when dropped; it must not make or drop another one.
    pub fn new(action: impl FnOnce() + Send + 'static) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        open().insert(id, Box::new(action));
        Self(id)
    }

    /// Removes the file or folder at `path`, which need not be there, when dropped.
    #[must_use]
    pub fn removes(path: &Path) -> Self {
        let path = path.to_owned();
        Self::new(move || remove(&path))
    }

    /// What was made is whole and stays. Not after a signal: then nothing stays.
    pub fn keep(self) {
        if !interrupted() {
            open().remove(&self.0);
        }
        std::mem::forget(self);
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // Done under the lock: a signal's thread that found nothing to do would end the program in the middle
        // of it.
        let mut open = open();
        if let Some(action) = open.remove(&self.0) {
            action();
        }
    }
}

/// Whoever makes something in `path` may be a moment behind the signal that ends us, so this tries again.
fn remove(path: &PathBuf) {
    for _ in 0..20 {
        let gone = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        match gone {
            Ok(()) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// From now on a signal that ends the program ends its children first and undoes what is open.
///
/// # Errors
/// From the operating system.
pub fn when_interrupted() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            INTERRUPTED.store(true, Ordering::SeqCst);
            child::stop_all(Duration::from_secs(5));
            // Not given back: what is begun from now on would be left behind.
            let mut open = open();
            for action in std::mem::take(&mut *open).into_values() {
                action();
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Has a signal come that ends the program? What fails from then on fails by our own doing and is not worth a
/// word.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// To be called before the program ends: after a signal, waits for the end that the signal's thread brings.
pub fn settle() {
    while interrupted() {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder, whole) =
            (dir.path().join("file"), dir.path().join("folder"), dir.path().join("whole"));
        let undo = [Undo::removes(&file), Undo::removes(&folder), Undo::removes(&dir.path().join("none"))];
        let kept = Undo::removes(&whole);
        fs::create_dir_all(folder.join("deep")).unwrap();
        fs::write(&file, "").unwrap();
        fs::write(&whole, "").unwrap();
        drop(undo);
        kept.keep();
        assert!(!file.exists() && !folder.exists() && whole.exists());
    }
}
