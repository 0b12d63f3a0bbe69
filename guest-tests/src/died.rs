//! A guest that is gone: what its kernel said about it comes first, then how it was noticed and the ends of
//! the logs.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::case::tail;
use crate::guest::QEMU_LOG;
use crate::vm::SERIAL_LOG;

/// The guest ended or stopped by itself, or never came up.
#[derive(Debug)]
pub struct Died {
    last_words: Vec<String>,
    how: String,
    logs: String,
}

impl Died {
    /// As the logs in `folder` tell it; `how` it was noticed.
    #[must_use]
    pub fn new(folder: &Path, how: &str) -> Self {
        Self { last_words: last_words(folder), how: how.to_owned(), logs: logs(folder) }
    }
}

impl fmt::Display for Died {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.last_words {
            writeln!(f, "{line}")?;
        }
        write!(f, "{}\n{}", self.how, self.logs)
    }
}

impl std::error::Error for Died {}

/// What the kernel said on its console when it gave up; empty when it did not.
#[must_use]
pub fn last_words(folder: &Path) -> Vec<String> {
    let bytes = fs::read(folder.join(SERIAL_LOG)).unwrap_or_default();
    fatal(&String::from_utf8_lossy(&bytes))
}

/// The first report of a fault, which names the cause, and the line of the panic, which may only say that
/// there was one.
fn fatal(console: &str) -> Vec<String> {
    const PANIC: &str = "Kernel panic - not syncing";
    const FAULTS: [&str; 5] =
        ["BUG: ", "kernel BUG at", "Oops: ", "general protection fault", "Unable to handle kernel"];
    let find = |wanted: &dyn Fn(&str) -> bool| console.lines().map(str::trim).find(|line| wanted(line));
    let Some(panic) = find(&|line| line.contains(PANIC)) else { return Vec::new() };
    let fault = find(&|line| FAULTS.iter().any(|fault| line.contains(fault)));
    fault.into_iter().chain([panic]).map(str::to_owned).collect()
}

/// Ends of the logs in `folder`.
pub(crate) fn logs(folder: &Path) -> String {
    let mut text = String::new();
    for (name, lines) in [(QEMU_LOG, 15), (SERIAL_LOG, 25), (crate::daemon::LOG, 15)] {
        let end = tail(&folder.join(name), lines);
        if !end.trim().is_empty() {
            text.push_str(&format!("--- end of {name} ---\n{end}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_and_the_panic_come_first() {
        let console = "[1.0] hello\r\n[2.0] BUG: kernel NULL pointer dereference, address: 0\r\n\
                       [2.1] Oops: 0002\r\n[2.2] RIP: 0010:x\r\n\
                       [2.3] Kernel panic - not syncing: Fatal exception\r\n[2.4] more\r\n";
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SERIAL_LOG), console).unwrap();
        let text = Died::new(dir.path(), "QEMU ended").to_string();
        assert!(
            text.starts_with(
                "[2.0] BUG: kernel NULL pointer dereference, address: 0\n\
                 [2.3] Kernel panic - not syncing: Fatal exception\nQEMU ended\n--- end of serial.log"
            ),
            "{text}"
        );
        // A fault that the kernel survived is no death.
        assert!(fatal("BUG: scheduling while atomic\nlogin:").is_empty());
        assert_eq!(fatal("Kernel panic - not syncing: VFS"), ["Kernel panic - not syncing: VFS"]);
    }
}
