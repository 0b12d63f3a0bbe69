//! Builds the guest's agent: a static program, so that it runs in any root and under any kernel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, ensure};

use super::cache::workspace;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds (once in a process) and answers the program.
pub(super) fn build(root: &Path) -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| compile(root).map_err(|e| format!("{e:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn compile(root: &Path) -> anyhow::Result<PathBuf> {
    // A target folder of its own: the workspace's may be locked by the cargo that runs us.
    let target_dir = root.join("agent");
    let mut command = cargo();
    command
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "guest-agent",
            "--bin",
            "guest-agent",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        // Flags in the environment win over flags in configuration, so ours must be in the environment.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env_remove("RUSTFLAGS");
    let out = command.output().context("cargo, to build the guest's agent")?;
    ensure!(
        out.status.success(),
        "the guest's agent does not build:\n{}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(target_dir.join(TARGET).join("release/guest-agent"))
}

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
