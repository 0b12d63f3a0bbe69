//! `guest run`: any kernel with the device, a command or a shell.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::accel::{self, Wanted};
use crate::case::Folder;
use crate::child::{self, Child};
use crate::device::{Device, Kind, Spec};
use crate::guest::{BOOT_LIMIT, Guest};
use crate::setup::{self, Kernel};
use crate::vm::{Accel, Console, Nvme, Vm};

/// Options of `guest run`.
#[derive(Debug, Args)]
pub struct Options {
    /// Guest kernel: a bzImage or vmlinux file, or one of ours: stable, newest
    #[arg(long, default_value = "stable")]
    kernel: String,
    /// Initial root file system unpacked before ours: brings the modules (NVMe, virtio) of a kernel that has them not built in
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// auto (KVM if it can run the guest), kvm or tcg
    #[arg(long, default_value = "auto")]
    accel: Wanted,
    /// Properties of the controller, as for the daemon
    #[arg(long, value_name = "NAME=VALUE,...")]
    nvme: Vec<String>,
    /// One namespace, as for the daemon; may be repeated
    #[arg(long, value_name = "NAME=VALUE,...")]
    nvme_ns: Vec<String>,
    /// Who plays the device: daemon, or qemu-nvme (QEMU's own, to compare with)
    #[arg(long, default_value = "daemon")]
    device: Kind,
    /// Guest memory in MiB
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Virtual processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS")]
    append: Vec<String>,
    /// Command to run in the guest; a shell if there is none
    #[arg(last = true)]
    command: Vec<String>,
}

/// Does it; the exit code is the command's.
///
/// # Errors
/// Text for a human.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let ours = match options.kernel.as_str() {
        "stable" => Some(Kernel::Stable),
        "newest" => Some(Kernel::Newest),
        _ => None,
    };
    let environment = setup::setup(ours.as_slice())?;
    let kernel = match ours {
        Some(kernel) => environment.kernel(kernel),
        None => std::path::absolute(&options.kernel)?,
    };
    ensure!(kernel.is_file(), "--kernel {}: no such file (stable and newest are ours)", options.kernel);
    if let Some(initrd) = &options.initrd {
        ensure!(initrd.is_file(), "--initrd {}: no such file", initrd.display());
    }
    let mut vm = Vm {
        kernel,
        initramfs: environment.initramfs(ours, options.initrd.as_deref())?,
        memory: options.memory,
        cpus: options.cpus,
        accel: Accel::Tcg,
        nvme: Nvme::None,
        append: options.append.clone(),
        console: if options.command.is_empty() { Console::Terminal } else { Console::Log },
        reboots: options.command.is_empty(),
    };
    vm.accel = accel::choose(options.accel, &environment)?;
    let mut folder = Folder::new("run")?;
    leave_nothing_when_interrupted(vec![folder.path().to_owned()])?;
    let spec = Spec { nvme: options.nvme.clone(), namespaces: options.nvme_ns.clone() };
    let device = Device::start(options.device, &spec, folder.path())?;
    vm.nvme = device.nvme.clone();
    let result = if options.command.is_empty() {
        shell(&environment.qemu, &vm, &folder)
    } else {
        command(options, &environment.qemu, &vm, &folder)
    };
    if result.is_err() {
        folder.keep();
        eprintln!("logs are in {}", folder.path().display());
    }
    result
}

/// Ctrl-C during a command ends us without a chance to tidy up; so do it then.
pub(crate) fn leave_nothing_when_interrupted(folders: Vec<PathBuf>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            child::kill_all();
            for folder in folders {
                let _ = std::fs::remove_dir_all(folder);
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn command(options: &Options, qemu: &setup::Qemu, vm: &Vm, folder: &Folder) -> anyhow::Result<ExitCode> {
    let guest = Guest::boot(qemu, vm, folder.path(), BOOT_LIMIT)?;
    let argv: Vec<&str> = options.command.iter().map(String::as_str).collect();
    let mut job = guest.spawn(&argv)?;
    while let Some((out, err)) =
        job.take(Instant::now() + Duration::from_secs(3600)).with_context(|| guest.logs())?
    {
        std::io::stdout().write_all(&out)?;
        std::io::stdout().flush()?;
        std::io::stderr().write_all(&err)?;
    }
    let code = job.code().unwrap_or(1);
    drop(job);
    guest.poweroff()?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn shell(qemu: &setup::Qemu, vm: &Vm, folder: &Folder) -> anyhow::Result<ExitCode> {
    eprintln!("a shell in the guest; end it with `exit`, QEMU with Ctrl-A X");
    let saved = rustix::termios::tcgetattr(std::io::stdin()).ok();
    let mut qemu = Child::spawn(vm.command(qemu, folder.path()), "QEMU")?;
    let status = qemu.wait_forever()?;
    if let Some(saved) = saved {
        // QEMU puts the terminal back itself, unless it was killed.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, &saved);
    }
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(ExitCode::SUCCESS)
}
