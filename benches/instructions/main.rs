//! `cargo bench --bench instructions`: how many instructions a worker spends on a 4 KiB read and a 4 KiB
//! write, counted by Callgrind in a run that is always the same. A busy machine does not change the figures,
//! so a regression shows.
//!
//! The program starts itself under valgrind, which counts only inside [`nvme_bench_measured`]: turns of a
//! worker, without the host. The image is memory, or a file in the page cache that the worker itself reads,
//! so no command waits for anything; of the kernel's part nothing is counted. Compares with `baseline.json`
//! beside this file and fails where a row is more than 3 % above it; `-- --save` writes that file, `--
//! --profile` shows where the instructions of each row are spent.

#![allow(unsafe_code, reason = "a name that valgrind can be told")]

#[path = "../lone/mod.rs"]
mod lone;
mod profile;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use vfio_user_nvme::disk::LaneKind;
use vfio_user_nvme::disk::{FileDisk, FileOptions, MemoryDisk, SharedDisk};

use self::profile::Profile;

/// Names the row to the copy of this program that runs under valgrind.
const ROW: &str = "VFIO_USER_NVME_INSTRUCTIONS_ROW";

/// Commands counted in a row, a multiple of every depth.
const COMMANDS: u64 = 3200;

/// More than this above the baseline is a regression. The count itself varies by nothing; compilers and C
/// libraries do.
const SLACK: f64 = 0.03;

struct Row {
    name: &'static str,
    opc: u8,
    depth: u16,
    of_file: bool,
}

const ROWS: [Row; 6] = [
    Row { name: "4 KiB read, depth 1", opc: lone::READ, depth: 1, of_file: false },
    Row { name: "4 KiB read, depth 32", opc: lone::READ, depth: 32, of_file: false },
    Row { name: "4 KiB write, depth 1", opc: lone::WRITE, depth: 1, of_file: false },
    Row { name: "4 KiB write, depth 32", opc: lone::WRITE, depth: 32, of_file: false },
    Row { name: "file, 4 KiB read, depth 1", opc: lone::READ, depth: 1, of_file: true },
    Row { name: "file, 4 KiB read, depth 32", opc: lone::READ, depth: 32, of_file: true },
];

/// What is counted.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nvme_bench_measured(host: &mut lone::Host) {
    while host.turn() {}
}

fn main() -> ExitCode {
    if let Ok(row) = std::env::var(ROW) {
        ROWS.iter().filter(|r| r.name == row).for_each(run);
        return ExitCode::SUCCESS;
    }
    let has = |word: &str| std::env::args().any(|arg| arg == word);
    match report(has("--save"), has("--profile")) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// One row, in the program that is counted.
fn run(row: &Row) {
    const LEN: u64 = 8 << 20;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let disk: SharedDisk = if row.of_file {
        let path = folder.path().join("image");
        // Written here and not by the worker, whose lane would have to wait; then it is in the page cache.
        std::fs::write(&path, vec![0xa5; LEN as usize]).expect("an image");
        Arc::new(FileDisk::open(FileOptions::new(&path)).expect("an image"))
    } else {
        Arc::new(MemoryDisk::new(LEN).expect("memory"))
    };
    let mut host = lone::Host::new(disk, LaneKind::Threads);
    // All of it written, and every path walked once, before anything counts.
    for opc in [lone::WRITE, lone::READ].into_iter().filter(|opc| *opc == lone::READ || !row.of_file) {
        for _ in 0..LEN / 4096 / 16 {
            host.submit(opc, 32);
            while host.turn() {}
            assert_eq!(host.reap(), 32);
        }
    }
    for _ in 0..COMMANDS / u64::from(row.depth) {
        host.submit(row.opc, row.depth);
        nvme_bench_measured(&mut host);
        assert_eq!(host.reap(), row.depth);
    }
}

/// Prints the table; false when a row has become worse.
fn report(save: bool, show_profile: bool) -> Result<bool, String> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/baseline.json");
    let before: BTreeMap<String, f64> =
        std::fs::read(&place).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let mut now = BTreeMap::new();
    let mut sound = true;
    println!("{:<28} {:>12} {:>14} {:>10} {:>8}", "row", "per command", "without copies", "committed", "");
    for row in &ROWS {
        let profile = count(row)?;
        let per_command = |count: u64| count as f64 / COMMANDS as f64;
        let (all, copies) = (per_command(profile.total()), per_command(profile.of_copies()));
        // How many instructions a copy takes is the C library's and the processor's affair.
        let ours = ((all - copies) * 10.0).round() / 10.0;
        let verdict = match before.get(row.name) {
            Some(old) if ours > old * (1.0 + SLACK) => {
                sound = false;
                "WORSE"
            }
            Some(old) if ours < old * (1.0 - SLACK) => "better",
            Some(_) => "same",
            None => "new",
        };
        let old = before.get(row.name).map_or("-".into(), |old| format!("{old:.1}"));
        println!("{:<28} {all:>12.1} {ours:>14.1} {old:>10} {verdict:>8}", row.name);
        if show_profile {
            for (name, count) in profile.top(15) {
                println!("    {:>8.1}  {name}", per_command(count));
            }
        }
        now.insert(row.name, ours);
    }
    if save {
        let text = serde_json::to_string_pretty(&now).map_err(|e| e.to_string())? + "\n";
        std::fs::write(&place, text).map_err(|e| format!("{}: {e}", place.display()))?;
        return Ok(true);
    }
    Ok(sound)
}

fn count(row: &Row) -> Result<Profile, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let out: PathBuf = dir.path().join("callgrind.out");
    let this = std::env::current_exe().map_err(|e| e.to_string())?;
    let done = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=nvme_bench_measured"])
        .args(["--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(this)
        .env(ROW, row.name)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| {
            format!("valgrind cannot be started ({e}); it is in every distribution: install valgrind")
        })?;
    if !done.status.success() {
        return Err(format!("{}: {}\n{}", row.name, done.status, String::from_utf8_lossy(&done.stderr)));
    }
    let text = std::fs::read_to_string(&out).map_err(|e| e.to_string())?;
    let profile = Profile::parse(&text);
    // A counter that counts nothing would call everything better.
    if profile.total() < COMMANDS * 100 {
        return Err(format!(
            "{}: callgrind counted {} instructions, which cannot be",
            row.name,
            profile.total()
        ));
    }
    Ok(profile)
}
