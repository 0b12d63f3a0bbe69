//! `guest run`: any kernel with the device, a command or a shell.

mod command;
mod ends;
mod options;
mod shell;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::accel;
use crate::case::Folder;
use crate::daemon;
use crate::device::{Device, Spec};
use crate::guest::{DMESG_LOG, QEMU_COMMAND, QEMU_LOG};
use crate::progress;
use crate::setup::{self, Environment, Kernel};
use crate::share::{self, Share};
use crate::vm::{Console, SERIAL_LOG, Vm};
pub use ends::{CANNOT, code};
use ends::{Cannot, TimedOut};
pub use options::Options;

/// Everything a run leaves to be read.
const LOGS: [&str; 7] =
    [daemon::LOG, daemon::COMMAND, QEMU_LOG, QEMU_COMMAND, SERIAL_LOG, DMESG_LOG, share::LOG];

/// What a run needs and what ends with it, in this order: the guest is gone by then.
struct Ready {
    environment: Environment,
    vm: Vm,
    device: Device,
    _share: Option<Share>,
}

/// Does it; the exit code is the command's or the shell's. [`code`] has one for each error.
///
/// # Errors
/// Text for a human.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if options.kernel_config {
        print!("{}", include_str!("kernel.config"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut folder = Folder::new("run")?;
    let ready = prepare(options, &folder).map_err(Cannot)?;
    let qemu = &ready.environment.qemu;
    progress::say(&format!("booting {} ({:?})", ready.vm.kernel.display(), ready.vm.accel));
    let result = if options.command.is_empty() {
        shell::run(options, qemu, &ready.vm, &folder)
    } else {
        command::run(options, qemu, &ready.vm, &folder)
    };
    let ended = ready.device.daemon.map(|daemon| daemon.terminate(Duration::from_secs(15)));
    if result.is_err() && options.logs.is_none() {
        folder.keep_and_say();
    }
    let code = result?;
    if let Some(status) = ended.transpose()? {
        ensure!(status.success(), "the daemon ended with {status}");
    }
    Ok(code)
}

/// All that can be wrong before a guest is tried.
fn prepare(options: &Options, folder: &Folder) -> anyhow::Result<Ready> {
    let ours = match options.kernel.as_str() {
        "stable" => Some(Kernel::Stable),
        "newest" => Some(Kernel::Newest),
        _ => None,
    };
    if let Some(logs) = &options.logs {
        keep_logs_in(logs, folder.path()).with_context(|| format!("--logs {}", logs.display()))?;
    }
    let foreign = std::path::absolute(&options.kernel)?;
    ensure!(
        ours.is_some() || foreign.is_file(),
        "--kernel {}: no such file (stable and newest are ours)",
        options.kernel
    );
    if let Some(initrd) = &options.initrd {
        ensure!(initrd.is_file(), "--initrd {}: no such file", initrd.display());
    }
    let environment = setup::setup(ours.as_slice())?;
    let accel = accel::choose(options.accel, &environment)?;
    let spec = Spec { nvme: options.nvme.clone(), namespaces: options.nvme_ns.clone() };
    let device = Device::start(options.device, &spec, folder.path())?;
    let share =
        options.share.as_ref().map(|dir| Share::start(&environment, dir, folder.path())).transpose()?;
    let vm = Vm {
        memory: options.memory,
        cpus: options.cpus,
        accel,
        nvme: device.nvme.clone(),
        append: options.append.clone(),
        console: if options.command.is_empty() { Console::Terminal } else { Console::Log },
        share: share.as_ref().map(|share| share.socket().to_owned()),
        gdb: options.gdb,
        qemu_args: options.qemu_arg.clone(),
        ..Vm::new(
            ours.map_or(foreign, |kernel| environment.kernel(kernel)),
            environment.initramfs(ours, options.initrd.as_deref())?,
        )
    };
    Ok(Ready { environment, vm, device, _share: share })
}

/// The logs lie in `logs` from their first byte on, however the run ends. The folder itself has to have a
/// short name, for the sockets in it.
fn keep_logs_in(logs: &Path, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(logs)?;
    for name in LOGS {
        let log = std::path::absolute(logs)?.join(name);
        // Some are appended to; an earlier run's is not ours.
        match fs::remove_file(&log) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => symlink(log, folder.join(name))?,
        }
    }
    Ok(())
}

/// The user's limit, if there is one.
struct Deadline {
    limit: Option<Duration>,
    start: Instant,
}

impl Deadline {
    fn new(limit: Option<Duration>) -> Self {
        Self { limit, start: Instant::now() }
    }

    /// Time that is left, if there is an end to it.
    fn left(&self) -> Option<Duration> {
        self.limit.map(|limit| limit.saturating_sub(self.start.elapsed()))
    }

    fn over(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// `error`, or that the time is over, if it is.
    fn blame<T>(&self, error: anyhow::Error) -> anyhow::Result<T> {
        match self.limit {
            Some(limit) if self.over() => {
                Err(TimedOut(format!("--timeout: not done after {limit:?}: {error:#}")).into())
            }
            _ => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_written_where_they_stay() {
        let (logs, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(logs.path().join(SERIAL_LOG), "of another run").unwrap();
        keep_logs_in(logs.path(), folder.path()).unwrap();
        fs::write(folder.path().join(SERIAL_LOG), "of this one").unwrap();
        drop(folder);
        assert_eq!(fs::read_to_string(logs.path().join(SERIAL_LOG)).unwrap(), "of this one");
    }

    #[test]
    fn a_time_that_is_over_is_blamed() {
        let over = Deadline { limit: Some(Duration::ZERO), start: Instant::now() };
        assert!(over.blame::<()>(anyhow::anyhow!("x")).unwrap_err().is::<TimedOut>());
        let none = Deadline::new(None);
        assert!(!none.over() && !none.blame::<()>(anyhow::anyhow!("x")).unwrap_err().is::<TimedOut>());
    }

    #[test]
    fn every_line_of_the_kernel_configuration_is_one() {
        for line in include_str!("kernel.config").lines() {
            let symbol = line.strip_prefix("CONFIG_").and_then(|rest| rest.strip_suffix("=y"));
            let named = symbol
                .is_some_and(|s| s.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
            assert!(named || line.starts_with("# "), "{line}");
        }
    }
}
