//! `cargo guest` as a user and a script see it: outputs, exit codes, what is left. One boot each, of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_tests::case::Folder;
use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;

fn guest(words: &[&str], temporary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guest"));
    command.args(words).env("TMPDIR", temporary);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(words: &[&str], temporary: &Path, input: &[u8]) -> anyhow::Result<Output> {
    let mut child = guest(words, temporary).stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("input")?;
    let input = input.to_owned();
    // A command that reads nothing closes it; that is no fault.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let out = child.wait_with_output()?;
    let _ = writer.join();
    Ok(out)
}

fn code(out: &Output, wanted: i32) -> anyhow::Result<()> {
    let told = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.code() == Some(wanted), "{} and not {wanted}\n{told}", out.status);
    Ok(())
}

/// Input, outputs, exit code, memory, a shared folder, logs.
pub fn command() -> Outcome {
    let folder = Folder::new("run-command")?;
    let (share, logs) = (folder.file("shared"), folder.file("logs"));
    fs::create_dir(&share)?;
    fs::write(share.join("from-host"), "host\n")?;
    let input = guest_agent::pattern::bytes(0, 300_000, 9);
    let script = "cat; cat /share/from-host >&2; echo guest > /share/from-guest; \
                  grep MemTotal /proc/meminfo >&2; exit 7";
    let words =
        ["run", "--memory", "640M", "--share", &share.to_string_lossy(), "--logs", &logs.to_string_lossy()];
    let out = run(&[&words[..], &["--", "sh", "-c", script]].concat(), folder.path(), &input)?;
    code(&out, 7)?;
    let err = String::from_utf8_lossy(&out.stderr);
    ensure!(out.stdout == input, "{} bytes of {} came back", out.stdout.len(), input.len());
    ensure!(err.contains("\nhost\n") && err.contains("booting"), "{err}");
    let kib =
        err.split("MemTotal:").nth(1).and_then(|rest| rest.split_whitespace().next()).context("MemTotal")?;
    ensure!((480 << 10..640 << 10).contains(&kib.parse::<u32>()?), "{kib} KiB of 640 MiB");
    ensure!(fs::read_to_string(share.join("from-guest"))? == "guest\n", "what the guest wrote is not here");
    for log in ["daemon.log", "qemu.cmdline", "serial.log", "dmesg.log"] {
        ensure!(logs.join(log).exists(), "no {log} in --logs");
    }
    Ok(None)
}

/// What the kernel says at warning priority is a fault if asked for; a debugger may hold the guest before.
pub fn warning() -> Outcome {
    let folder = Folder::new("run-warning")?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let gdb = format!("--gdb={port}");
    let words = ["run", "--fail-on-warning", &gdb, "--", "sh", "-c", "echo m > /proc/sysrq-trigger"];
    let child = guest(&words, folder.path()).spawn()?;
    let until = Instant::now() + Duration::from_secs(60);
    let mut debugger = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(debugger) => break debugger,
            Err(error) => ensure!(Instant::now() < until, "no QEMU waits for a debugger: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    // "Continue", as a debugger says it.
    debugger.write_all(b"+$c#63")?;
    let out = child.wait_with_output()?;
    code(&out, 122)?;
    ensure!(String::from_utf8_lossy(&out.stderr).contains("Mem-Info"), "the warning is not told");
    Ok(None)
}

/// The kernel's last words come first.
pub fn panic() -> Outcome {
    let folder = Folder::new("run-panic")?;
    let out = run(&["run", "--", "sh", "-c", "echo c > /proc/sysrq-trigger"], folder.path(), b"")?;
    code(&out, 123)?;
    let err = String::from_utf8_lossy(&out.stderr);
    let first = err.split("cargo guest: ").nth(1).and_then(|rest| rest.lines().next()).unwrap_or_default();
    ensure!(first.contains("Kernel panic - not syncing: sysrq triggered crash"), "{err}");
    Ok(None)
}

/// A guest that a debugger holds is not up in time; wrong words, files and arguments are told from all of
/// that.
pub fn other_ends() -> Outcome {
    let folder = Folder::new("run-ends")?;
    let cases: [(&[&str], i32); 5] = [
        (&["run", "--gdb=0", "--timeout", "2", "--", "true"], 124),
        (&["run", "--qemu-arg=-device", "--qemu-arg=nonsense", "--", "true"], 125),
        (&["run", "--kernel", "/nowhere/bzImage", "--", "true"], 125),
        (&["run", "--nvme-ns", "drive=/nowhere/x", "--", "true"], 125),
        (&["run", "--no-such-option", "--", "true"], 125),
    ];
    for (words, wanted) in cases {
        code(&run(words, folder.path(), b"")?, wanted).with_context(|| words.join(" "))?;
    }
    let out = run(&["run", "--kernel-config"], folder.path(), b"")?;
    code(&out, 0)?;
    ensure!(String::from_utf8_lossy(&out.stdout).contains("\nCONFIG_BLK_DEV_NVME=y\n"), "no fragment");
    let out = run(&["qemu", "--", "-device", "vfio-user-pci,help"], folder.path(), b"")?;
    code(&out, 0)?;
    ensure!(String::from_utf8_lossy(&out.stdout).contains("vfio-user-pci options"), "that is not QEMU");
    Ok(None)
}

/// The shell's exit code comes out, over pipes too.
pub fn shell() -> Outcome {
    let folder = Folder::new("run-shell")?;
    let mut child = guest(&["run"], folder.path()).stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("input")?;
    let mut stdout = child.stdout.take().context("output")?;
    let (mut seen, mut byte) = (Vec::new(), [0]);
    // Typed when the shell asks: what comes before is lost in the console's start.
    while !seen.ends_with(b"# ") && stdout.read(&mut byte)? == 1 {
        seen.extend(byte);
    }
    stdin.write_all(b"exit 9\n")?;
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest)?;
    code(&child.wait_with_output()?, 9).with_context(|| String::from_utf8_lossy(&rest).into_owned())?;
    Ok(None)
}

/// Ctrl-C leaves no process and no file, whether the guest is up or not.
pub fn interrupted() -> Outcome {
    let folder = Folder::new("run-interrupted")?;
    for moment in ["booting", "is up"] {
        let mut child = guest(&["run", "--", "sleep", "1000"], folder.path()).spawn()?;
        let told = await_line(&mut child, moment)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("process number")?;
        kill_process(pid, Signal::INT)?;
        let out = child.wait_with_output()?;
        ensure!(out.status.code() == Some(130), "{:?} {:?}\n{told}", out.status, out.status.signal());
        let left: Vec<_> = fs::read_dir(folder.path())?.flatten().map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "{moment}: left behind: {left:?}");
        let processes = processes_in(folder.path());
        ensure!(processes.is_empty(), "{moment}: left behind: {processes:?}");
    }
    Ok(None)
}

/// Reads standard error until a line has `text`; answers all of it.
fn await_line(child: &mut Child, text: &str) -> anyhow::Result<String> {
    let mut all = String::new();
    let mut from = BufReader::new(child.stderr.take().context("error output")?);
    let mut last = 0;
    while !all[last..].contains(text) {
        last = all.len();
        ensure!(from.read_line(&mut all)? > 0, "it ended without {text:?}: {all}");
    }
    // Somebody has to read on, or it would stop at a full pipe.
    std::thread::spawn(move || std::io::copy(&mut from, &mut std::io::sink()));
    Ok(all)
}

/// Command lines that name the folder.
fn processes_in(folder: &Path) -> Vec<String> {
    let name = folder.to_string_lossy();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(&*name))
        .collect()
}
