//! Process 1: mounts, modules, then one child, the server (or a shell on the console), whose end is the
//! guest's end.
//!
//! It does nothing else, so that it can reap every orphan without taking a child's exit status from the
//! server.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount};
use rustix::process::WaitOptions;
use rustix::system::RebootCommand;

/// Where the harness puts modules to load, and `order`, their names in the order to load them.
const MODULES: &str = "/guest/modules";

/// Never returns: the guest powers off when the server ends.
pub fn run() -> ! {
    for dir in ["/proc", "/sys", "/dev", "/tmp", "/run", "/mnt"] {
        let _ = fs::create_dir_all(dir);
    }
    for (kind, at) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp"), ("tmpfs", "/run")]
    {
        if let Err(error) = mount(kind, at, kind, MountFlags::empty(), None)
            && error != rustix::io::Errno::BUSY
        {
            say(&format!("mount {at}: {error}"));
        }
    }
    load_modules();
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let asked = |word: &str| words.split_whitespace().any(|w| w == word);
    if asked("guest.share") {
        mount_share();
    }
    let shell = asked("guest.shell");
    let mut command = if shell { shell_on_console() } else { Command::new("/proc/self/exe") };
    if !shell {
        command.arg("serve");
    }
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/guest").env("HOME", "/").env("TERM", "linux");
    match command.spawn() {
        Ok(child) => {
            let pid = i32::try_from(child.id()).unwrap_or(-1);
            // Any child: orphans of tests come here too and must not stay as zombies.
            while let Ok(ended) = rustix::process::wait(WaitOptions::empty()) {
                if let Some((_, status)) = ended.filter(|(p, _)| p.as_raw_nonzero().get() == pid) {
                    if shell {
                        let signal = || 128 + status.terminating_signal().unwrap_or(0);
                        crate::serve::shell_ended(status.exit_status().unwrap_or_else(signal));
                    }
                    break;
                }
            }
        }
        Err(error) => say(&format!("cannot start the server: {error}")),
    }
    leave(RebootCommand::PowerOff)
}

/// Syncs and restarts or powers off; never returns.
pub fn leave(how: RebootCommand) -> ! {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(how) {
        say(&format!("reboot: {error}"));
    }
    loop {
        std::thread::park();
    }
}

fn say(text: &str) {
    // The console is the only place left when something this early fails.
    let _ = fs::write("/dev/kmsg", format!("<4>guest-agent: {text}\n"));
    eprintln!("guest-agent: {text}");
}

/// The host's folder. Not fatal: whoever asked for it looks whether it is there.
fn mount_share() {
    let mounted = fs::create_dir_all("/share").map_err(|e| e.to_string()).and_then(|()| {
        mount("share", "/share", "virtiofs", MountFlags::empty(), None).map_err(|e| e.to_string())
    });
    if let Err(error) = mounted {
        say(&format!("mount /share: {error}"));
    }
}

fn shell_on_console() -> Command {
    // `cttyhack` gives the shell a controlling terminal: without one, Ctrl-C would not interrupt a command.
    let mut command = Command::new("/bin/busybox");
    command.arg0("busybox").args(["setsid", "cttyhack", "sh"]);
    command
}

fn load_modules() {
    let Ok(order) = fs::read_to_string(Path::new(MODULES).join("order")) else {
        load_from_initrd();
        return;
    };
    for name in order.lines() {
        let path = Path::new(MODULES).join(name);
        let loaded = fs::File::open(&path)
            .map_err(|e| e.to_string())
            .and_then(|f| rustix::system::finit_module(f, c"", 0).map_err(|e| e.to_string()));
        if let Err(error) = loaded {
            say(&format!("module {name}: {error}"));
        }
    }
}

/// A user's own initramfs brings the modules of a user's own kernel; those we need may not be built in.
fn load_from_initrd() {
    if !Path::new("/lib/modules").exists() {
        return;
    }
    for module in ["virtio_pci", "virtio_console", "virtiofs", "nvme"] {
        let _ = Command::new("/bin/busybox").args(["modprobe", "-q", module]).status();
    }
}
