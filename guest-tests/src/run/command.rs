//! A command in the guest: its input is ours, its outputs and exit code become ours.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use signal_hook::consts::SIGPIPE;

use super::Deadline;
use super::ends::{self, TimedOut, Warned};
use super::options::Options;
use crate::case::Folder;
use crate::died::{Died, last_words};
use crate::guest::{BOOT_LIMIT, Guest};
use crate::job::{Input, Job};
use crate::progress;
use crate::setup::Qemu;
use crate::share;
use crate::vm::Vm;

/// For a boot under a debugger.
const DEBUG_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);
/// As much of the input as is in the guest at a time.
const PIECE: usize = 64 << 10;

/// Boots, runs, powers off.
pub(super) fn run(options: &Options, qemu: &Qemu, vm: &Vm, folder: &Folder) -> anyhow::Result<ExitCode> {
    let deadline = Deadline::new(options.timeout);
    // A debugger may hold the guest for as long as it likes.
    let limit = if vm.gdb.is_some() { DEBUG_LIMIT } else { BOOT_LIMIT };
    let limit = deadline.left().unwrap_or(limit).min(limit);
    let mut guest =
        Guest::boot(qemu, vm, folder.path(), limit).or_else(|e| deadline.blame(e)).map_err(ends::before)?;
    progress::say(&format!("Linux {} is up", guest.kernel()));
    if vm.share.is_some() {
        share::check(&guest).map_err(ends::before)?;
    }
    let result = follow(options, &guest, &deadline);
    let code = match result {
        Err(error) if !error.is::<TimedOut>() => return Err(guest.why(error)),
        other => other?,
    };
    let warnings = if options.fail_on_warning { guest.warnings()? } else { Vec::new() };
    if options.logs.is_some() {
        guest.messages()?;
    }
    guest.poweroff()?;
    if !last_words(folder.path()).is_empty() {
        return Err(Died::new(folder.path(), "the guest died when it was to power off").into());
    }
    if code == 0 && !warnings.is_empty() {
        return Err(Warned(warnings).into());
    }
    warnings.iter().for_each(|warning| eprintln!("{warning}"));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Until the command's end; answers its exit code.
fn follow(options: &Options, guest: &Guest, deadline: &Deadline) -> anyhow::Result<i32> {
    let argv: Vec<&str> = options.command.iter().map(String::as_str).collect();
    let mut job: Job<'_> = guest.spawn_with_input(&argv)?;
    let input = job.input();
    // Not waited for: it hangs on our input, and that may never come.
    std::thread::spawn(move || feed(&input));
    loop {
        let until = Instant::now() + deadline.left().unwrap_or(Duration::from_secs(3600));
        let Some((out, err)) = job.take(until)? else { break };
        match hand_on(&out, &err) {
            // As a program here would end: whoever read us has enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(128 + SIGPIPE),
            handed => handed?,
        }
        if deadline.over() {
            return deadline.blame(anyhow::anyhow!("the command has not ended"));
        }
    }
    Ok(job.code().unwrap_or(1))
}

fn hand_on(out: &[u8], err: &[u8]) -> io::Result<()> {
    io::stdout().write_all(out)?;
    io::stdout().flush()?;
    io::stderr().write_all(err)
}

fn feed(input: &Input) {
    let mut piece = vec![0; PIECE];
    loop {
        let n = match io::stdin().read(&mut piece) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A closed or broken input is an empty one.
            Err(_) => 0,
        };
        if !input.send(&piece[..n]).unwrap_or(false) || n == 0 {
            return;
        }
    }
}
