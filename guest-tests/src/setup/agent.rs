//! Builds the guest's agent: a static program, so that it runs in any root and under any kernel.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::build;

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
    let mut command = build::cargo();
    command
        .args(["build", "--release", "--package", "guest-agent", "--bin", "guest-agent", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        // Flags in the environment win over flags in configuration, so ours must be in the environment.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env_remove("RUSTFLAGS")
        // Nobody debugs it in the guest, and every guest carries it.
        .envs([("CARGO_PROFILE_RELEASE_DEBUG", "none"), ("CARGO_PROFILE_RELEASE_STRIP", "symbols")]);
    build::run(command, "the guest's agent")?;
    Ok(target_dir.join(TARGET).join("release/guest-agent"))
}
