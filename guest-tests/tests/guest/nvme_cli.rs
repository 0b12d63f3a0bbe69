//! nvme-cli's own end-to-end copy test, unchanged, from a development tree the user names.

use std::time::Duration;

use anyhow::{Context, ensure};
use guest_tests::nvme_cli::{TREE, Tree, verdict};
use guest_tests::setup::{self, PYTHON};

use crate::Outcome;
use crate::copy::Target;
use crate::session::{Session, Skip};

/// Each step of the test starts nvme, and Python compiles its library first: a minute by translation.
const LIMIT: Duration = Duration::from_secs(200);

pub fn copy_test(s: &Session) -> Outcome {
    let Some(tree) = Tree::named()? else {
        return Skip::because(&format!(
            "{TREE} names no development tree of nvme-cli (see \"Tests\" in README.md)"
        ));
    };
    let archive = setup::python()?;
    s.guest.put("/tmp/python.cpio", 0o600, &std::fs::read(archive)?)?;
    s.guest.sh("cd /; cpio -id < /tmp/python.cpio 2>&1; rm /tmp/python.cpio")?;
    tree.put(&s.guest)?;

    let mut t = Target::fill(s, 1, 500)?;
    let report = "/tmp/nvme-cli-report.json";
    let words = Tree::words(PYTHON, &t.node, report);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let out = s.guest.run(&words, LIMIT)?;
    ensure!(out.code == 0, "the test's runner: exit code {}\n{}", out.code, out.all());
    let lines = serde_json::from_slice(&s.guest.get(report)?)
        .context("the test's report")
        .and_then(|report| verdict(&report))
        .with_context(|| out.all())?;
    for line in lines {
        println!("nvme-cli's {line}");
    }
    // The test looks at exit codes only. Each of its copies is blocks 2 and 3 to 0; the formats leave the
    // same.
    t.model.copy(None, 0, &[(2, 2)])?;
    t.check(s)?;
    Ok(None)
}
