//! A development tree of nvme-cli and its own end-to-end copy test, which we run but do not bring.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::guest::Guest;

/// Names the tree.
pub const TREE: &str = "NVME_CLI_TREE";
/// The test module, unchanged.
pub const MODULE: &str = "nvme_copy_test";
/// Where the tree's tests are put in the guest.
const SOURCE: &str = "/nvme-cli";
/// Where its nvme is put, with the libraries it was linked against: they need not be the guest's.
const PROGRAM: &str = "/nvme-cli/bin";

/// A tree that holds the test and a built nvme.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
    nvme: PathBuf,
}

impl Tree {
    /// The tree the environment names; `None` when it names none.
    ///
    /// # Errors
    /// When there is no such tree, its test is another generation's, or nothing was built in it.
    pub fn named() -> anyhow::Result<Option<Self>> {
        match std::env::var_os(TREE).filter(|v| !v.is_empty()) {
            Some(path) => Self::at(Path::new(&path)).map(Some).context(TREE),
            None => Ok(None),
        }
    }

    /// The tree at `root`.
    ///
    /// # Errors
    /// As [`Self::named`].
    pub fn at(root: &Path) -> anyhow::Result<Self> {
        for needed in ["tests/nvme-cli-e2e", "tests/nvme_test.py", &format!("tests/e2e/{MODULE}.py")] {
            ensure!(
                root.join(needed).is_file(),
                "{} has no {needed}: a development tree of 3.0 or later is needed",
                root.display()
            );
        }
        let mut folders: Vec<PathBuf> =
            fs::read_dir(root)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
        folders.sort();
        let built = folders.into_iter().find(|f| f.join("build.ninja").is_file() && f.join("nvme").is_file());
        let built = built.with_context(|| {
            format!(
                "no nvme is built in {0}: meson setup {0}/.build {0} && ninja -C {0}/.build",
                root.display()
            )
        })?;
        Ok(Self { root: root.to_owned(), nvme: built.join("nvme") })
    }

    /// Puts tests, nvme and its libraries into the guest.
    ///
    /// # Errors
    /// When a file cannot be read or put, or a library of nvme is missing.
    pub fn put(&self, guest: &Guest) -> anyhow::Result<()> {
        let mut files = vec![self.root.join("tests/nvme-cli-e2e")];
        python_files(&self.root.join("tests"), &mut files)?;
        for file in files {
            let own = file.strip_prefix(&self.root)?.to_str().context("file name")?;
            guest.put(&format!("{SOURCE}/{own}"), 0o755, &fs::read(&file)?)?;
        }
        let out = Command::new("ldd").arg(&self.nvme).env("LC_ALL", "C").output().context("ldd")?;
        let (loader, libraries) = libraries(&String::from_utf8_lossy(&out.stdout))?;
        for (name, path) in libraries.iter().chain([&("loader".to_owned(), loader)]) {
            guest.put(&format!("{PROGRAM}/{name}"), 0o755, &fs::read(path)?)?;
        }
        guest.put(&format!("{PROGRAM}/program"), 0o755, &fs::read(&self.nvme)?)?;
        let wrapper = format!(
            "#!/bin/sh\nexec {PROGRAM}/loader --library-path {PROGRAM} --argv0 nvme {PROGRAM}/program \"$@\"\n"
        );
        guest.put(&format!("{PROGRAM}/nvme"), 0o755, wrapper.as_bytes())
    }

    /// The words that run the test in the guest on the namespace at `node`, reporting into the file `report`.
    #[must_use]
    pub fn words(python: &str, node: &str, report: &str) -> Vec<String> {
        vec![
            python.into(),
            format!("{SOURCE}/tests/nvme-cli-e2e"),
            "--controller=/dev/nvme0".into(),
            format!("--ns1={node}"),
            "--log-dir=/tmp/nvme-cli-logs".into(),
            format!("--nvme-bin={PROGRAM}/nvme"),
            format!("--json-report={report}"),
            MODULE.into(),
        ]
    }
}

fn python_files(dir: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            python_files(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "py") {
            found.push(path);
        }
    }
    Ok(())
}

/// Loader and libraries (name, file) in what `ldd` prints.
fn libraries(ldd: &str) -> anyhow::Result<(PathBuf, Vec<(String, PathBuf)>)> {
    let mut loader = None;
    let mut found = Vec::new();
    for line in ldd.lines().map(str::trim) {
        ensure!(!line.contains("not found"), "nvme does not find its library: {line}");
        let target = |text: &str| PathBuf::from(text.split(" (").next().unwrap_or(text));
        match line.split_once(" => ") {
            Some((name, path)) => found.push((name.to_owned(), target(path))),
            None if line.starts_with('/') => loader = Some(target(line)),
            None => {}
        }
    }
    Ok((loader.context("nvme is no dynamic program, or ldd did not understand it")?, found))
}

/// Holds the test's own report against what must come out: formats 0 and 2 pass, 1 and 3 (which need
/// protection information and Namespace Management) are skipped. Answers a line for each test.
///
/// # Errors
/// Names the tests that came out otherwise, with the message in the report.
pub fn verdict(report: &Value) -> anyhow::Result<Vec<String>> {
    let tests = report["tests"].as_array().context("the report lists no tests")?;
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    let mut seen = [false; 4];
    for test in tests {
        let name = test["name"].as_str().context("a test without name")?;
        let outcome = test["outcome"].as_str().context("a test without outcome")?;
        let message = test["message"].as_str().unwrap_or_default();
        let format = name.strip_prefix("test_copy_format_").and_then(|rest| rest.get(..1)?.parse().ok());
        let expected = match format {
            Some(0 | 2) => "pass",
            Some(1 | 3) => "skip",
            // A test that today's tree does not have: it must not fail, more cannot be asked.
            _ if matches!(outcome, "pass" | "skip") => outcome,
            _ => "pass",
        };
        if let Some(seen) = format.and_then(|f: usize| seen.get_mut(f)) {
            *seen = true;
        }
        lines.push(format!("{name}: {outcome} {}", message.lines().next().unwrap_or_default()));
        if outcome != expected {
            wrong.push(format!("{name}: {outcome}, not {expected}\n{message}"));
        }
    }
    if let Some(missing) = seen.iter().position(|s| !s) {
        bail!("no test of format {missing} in the report: {lines:?}");
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: [&str; 4]) -> Value {
        let tests: Vec<Value> = outcomes
            .iter()
            .enumerate()
            .map(|(n, o)| serde_json::json!({"name": format!("test_copy_format_{n}"), "outcome": o}))
            .collect();
        serde_json::json!({ "tests": tests })
    }

    #[test]
    fn only_the_expected_outcome_of_every_format_will_do() {
        assert_eq!(verdict(&report(["pass", "skip", "pass", "skip"])).unwrap().len(), 4);
        for outcomes in [
            ["skip", "skip", "pass", "skip"],
            ["pass", "skip", "skip", "skip"],
            ["pass", "skip", "fail", "skip"],
            ["pass", "pass", "pass", "skip"],
            ["pass", "skip", "pass", "error"],
        ] {
            assert!(verdict(&report(outcomes)).is_err(), "{outcomes:?}");
        }
        let mut less = report(["pass", "skip", "pass", "skip"]);
        less["tests"].as_array_mut().unwrap().remove(2);
        assert!(verdict(&less).unwrap_err().to_string().contains("format 2"));
        let mut more = report(["pass", "skip", "pass", "skip"]);
        more["tests"]
            .as_array_mut()
            .unwrap()
            .push(serde_json::json!({"name": "test_new", "outcome": "fail"}));
        assert!(verdict(&more).is_err());
    }

    #[test]
    fn loader_and_libraries_are_found_in_what_ldd_prints() {
        let ldd = "\tlinux-vdso.so.1 (0x1)\n\tlibx.so.3 => /t/libx.so.3 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        let (loader, found) = libraries(ldd).unwrap();
        assert_eq!(loader, Path::new("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(found, [("libx.so.3".to_owned(), PathBuf::from("/t/libx.so.3"))]);
        assert!(libraries("\tlibx.so.3 => not found\n").is_err());
        assert!(libraries("\tstatically linked\n").is_err());
    }

    #[test]
    fn a_tree_without_a_build_says_how_to_make_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Tree::at(dir.path()).unwrap_err().to_string().contains("nvme-cli-e2e"));
        fs::create_dir_all(dir.path().join("tests/e2e")).unwrap();
        for file in ["tests/nvme-cli-e2e", "tests/nvme_test.py", "tests/e2e/nvme_copy_test.py"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        assert!(Tree::at(dir.path()).unwrap_err().to_string().contains("ninja"));
        fs::create_dir(dir.path().join(".build")).unwrap();
        for file in [".build/build.ninja", ".build/nvme"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        assert_eq!(Tree::at(dir.path()).unwrap().nvme, dir.path().join(".build/nvme"));
    }
}
