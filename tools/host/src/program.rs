//! Programs of this workspace, for whoever starts them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Where the program `name` is, in the profile of the test or benchmark that asks. Cargo has built the
/// programs of the package it tests, and says where they are. One of another package may be there too, as new
/// as its sources; otherwise it is built here.
pub fn program(name: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    if let Some(path) = std::env::var_os(format!("CARGO_BIN_EXE_{name}")) {
        return path.into();
    }
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built.entry(name.to_owned()).or_insert_with(|| build(name)).clone()
}

fn build(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this program's place");
    // target/PROFILE/deps/THIS
    let profile = own.ancestors().nth(2).expect("a folder that cargo builds into");
    if is_fresh(&profile.join(name)) {
        return profile.join(name);
    }
    let target = profile.parent().expect("a folder that cargo builds into");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (variable, _) in std::env::vars_os() {
        // What cargo sets for the program it runs would be taken for changed settings of the build.
        let text = variable.to_str().unwrap_or_default();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(variable);
        }
    }
    // Of the whole workspace: the same build as everybody else's.
    cargo.args(["build", "--quiet", "--workspace", "--bin", name]).arg("--target-dir").arg(target);
    match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(profile) => drop(cargo.args(["--profile", profile])),
    }
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace"));
    let done = cargo.output().expect("cargo");
    assert!(done.status.success(), "{name} does not build:\n{}", String::from_utf8_lossy(&done.stderr));
    profile.join(name)
}

/// Is the program newer than all its sources? Cargo writes their names beside it, for make.
fn is_fresh(program: &Path) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let Some(built) = changed(program) else { return false };
    let Ok(rule) = std::fs::read_to_string(program.with_extension("d")) else { return false };
    let Some((_, sources)) = rule.trim_end().split_once(": ") else { return false };
    // Spaces within a name are escaped.
    let sources = sources.replace("\\ ", "\0");
    sources
        .split(' ')
        .all(|source| changed(Path::new(&source.replace('\0', " "))).is_some_and(|changed| changed < built))
}
