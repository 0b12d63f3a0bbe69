//! Cargo, for what is built while we run: the daemon and the guest's agent.

use std::process::Command;

use anyhow::ensure;

use crate::child::Child;
use crate::progress::{self, Detail};
use crate::setup::workspace;

/// A cargo that works on this workspace, from wherever we were started.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        // What cargo sets for the program it runs would be taken for changed settings of the build.
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command.current_dir(workspace());
    command
}

/// Runs cargo to build `what`, saying so, and what it is at when it takes long.
///
/// # Errors
/// What the compiler says.
pub(crate) fn run(command: Command, what: &str) -> anyhow::Result<()> {
    let at = Detail::default();
    let out = progress::during(
        &format!("building {what}"),
        || at.get(),
        || Child::output(command, "cargo", &|line| at.set(line.trim())),
    )?;
    ensure!(
        out.status.success(),
        "{what}: does not build\n{}",
        faults(&String::from_utf8_lossy(&out.stderr))
    );
    Ok(())
}

/// Cargo's words without those about what went well.
fn faults(stderr: &str) -> String {
    const PROGRESS: [&str; 7] =
        ["Blocking", "Compiling", "Downloaded", "Downloading", "Finished", "Locking", "Updating"];
    let told = |line: &&str| !PROGRESS.iter().any(|word| line.trim_start().starts_with(word));
    stderr.lines().filter(told).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_faults_of_a_build_are_told() {
        let stderr =
            "    Updating index\n   Compiling a v1.0.0 (/a)\nerror[E0308]: mismatched types\n  --> a.rs\n";
        assert_eq!(faults(stderr), "error[E0308]: mismatched types\n  --> a.rs");
    }
}
