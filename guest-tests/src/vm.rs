//! QEMU's command line for one guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use guest_agent::wire::PORT;

use crate::setup::Qemu;

/// How the guest's processor is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the host's processor.
    Kvm,
    /// By translation: works everywhere.
    Tcg,
}

/// The NVMe device of the guest.
#[derive(Debug, Clone)]
pub enum Nvme {
    /// None at all.
    None,
    /// Our daemon's, listening on a socket.
    VfioUser(PathBuf),
    /// QEMU's own, to compare with.
    Qemu(QemuNvme),
    /// Several beside each other; at most one of them QEMU's own.
    Several(Vec<Self>),
}

/// QEMU's own NVMe device.
#[derive(Debug, Clone, Default)]
pub struct QemuNvme {
    /// Properties of `-device nvme`, `name=value`.
    pub controller: Vec<String>,
    /// Namespaces in the order of their numbers.
    pub namespaces: Vec<QemuNs>,
    /// Value of `aio=` for all drives; QEMU's default if there is none.
    pub aio: Option<String>,
}

/// One namespace of [`QemuNvme`].
#[derive(Debug, Clone)]
pub struct QemuNs {
    /// Raw image, exists.
    pub drive: PathBuf,
    /// Properties of `-device nvme-ns`, `name=value`.
    pub properties: Vec<String>,
    /// Refuse writes.
    pub readonly: bool,
}

/// Where the guest's serial console goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// Into `serial.log` in the folder.
    Log,
    /// To the terminal we run in.
    Terminal,
}

/// One virtual machine.
#[derive(Debug, Clone)]
pub struct Vm {
    /// `vmlinux` or `bzImage`.
    pub kernel: PathBuf,
    /// Initial root file system.
    pub initramfs: PathBuf,
    /// Guest memory in MiB.
    pub memory: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// Acceleration.
    pub accel: Accel,
    /// The device under test.
    pub nvme: Nvme,
    /// More words for the kernel's command line.
    pub append: Vec<String>,
    /// Serial console.
    pub console: Console,
    /// May the guest restart? If not, a restart (and so a panic) ends QEMU.
    pub reboots: bool,
    /// Socket of a [`crate::share::Share`], which the guest mounts.
    pub share: Option<PathBuf>,
    /// Port of this host where QEMU waits for a debugger before it starts the guest.
    pub gdb: Option<u16>,
    /// More words for QEMU's command line.
    pub qemu_args: Vec<String>,
}

/// Name of the agent's socket in the folder; we listen, QEMU connects.
pub const AGENT_SOCKET: &str = "agent";
/// Name of the serial log in the folder.
pub const SERIAL_LOG: &str = "serial.log";

impl Vm {
    /// A machine by translation with two processors and 1 GiB, without a device.
    #[must_use]
    pub fn new(kernel: PathBuf, initramfs: PathBuf) -> Self {
        Self {
            kernel,
            initramfs,
            memory: 1024,
            cpus: 2,
            accel: Accel::Tcg,
            nvme: Nvme::None,
            append: vec![],
            console: Console::Log,
            reboots: false,
            share: None,
            gdb: None,
            qemu_args: vec![],
        }
    }

    /// The whole command line; sockets and logs lie in `folder`.
    #[must_use]
    pub fn command(&self, qemu: &Qemu, folder: &Path) -> Command {
        let mut c = qemu.command();
        let accel = match self.accel {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg,thread=multi",
        };
        c.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-nic",
            "none",
            "-accel",
            accel,
            "-cpu",
            "max",
        ]);
        c.args(["-smp", &self.cpus.to_string()]);
        // Shared and with a descriptor: a device in another process must be able to map it.
        c.args(["-object", &format!("memory-backend-memfd,id=m0,size={}M,share=on", self.memory)]);
        c.args(["-M", "q35,memory-backend=m0", "-m", &format!("{}M", self.memory)]);
        if !self.reboots {
            c.arg("-no-reboot");
        }
        c.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        // panic=-1: restart at once, which ends QEMU where restarts are not allowed. no_timer_check: on a
        // host too busy to deliver ticks in time, the kernel would take the timer for broken and give up.
        let mut append =
            vec!["rdinit=/guest/guest-agent", "panic=-1", "mitigations=off", "nokaslr", "no_timer_check"];
        append.extend(["console=ttyS0", "quiet"]);
        let serial = escaped(&folder.join(SERIAL_LOG));
        match self.console {
            Console::Log => {
                c.arg("-serial").arg(format!("file:{serial}"));
            }
            Console::Terminal => {
                // With the monitor on the same terminal, Ctrl-C goes to the guest and not to QEMU.
                c.args(["-chardev", &format!("stdio,id=terminal,mux=on,signal=off,logfile={serial}")]);
                c.args(["-serial", "chardev:terminal", "-monitor", "chardev:terminal"]);
                append.push("guest.shell");
            }
        }
        if let Some(socket) = &self.share {
            c.arg("-chardev").arg(format!("socket,id=share,path={}", escaped(socket)));
            c.args(["-device", "vhost-user-fs-pci,chardev=share,tag=share"]);
            append.push("guest.share");
        }
        append.extend(self.append.iter().map(String::as_str));
        c.args(["-append", &append.join(" ")]);
        c.arg("-chardev").arg(format!("socket,id=agent,path={}", escaped(&folder.join(AGENT_SOCKET))));
        c.args(["-device", "virtio-serial-pci"]);
        c.args(["-device", &format!("virtserialport,chardev=agent,name={PORT}")]);
        if let Some(port) = self.gdb {
            c.args(["-S", "-gdb", &format!("tcp:127.0.0.1:{port}")]);
        }
        self.nvme.arguments(&mut c);
        c.args(&self.qemu_args);
        c
    }
}

impl Nvme {
    fn arguments(&self, c: &mut Command) {
        match self {
            Self::None => {}
            Self::Several(all) => all.iter().for_each(|nvme| nvme.arguments(c)),
            Self::VfioUser(socket) => {
                c.arg("-device").arg(vfio_user_device(socket));
            }
            Self::Qemu(nvme) => {
                let mut device = String::from("nvme,id=nv0");
                if !nvme.controller.iter().any(|p| p.starts_with("serial=")) {
                    device.push_str(",serial=qemu0");
                }
                for property in &nvme.controller {
                    device.push(',');
                    device.push_str(property);
                }
                c.args(["-device", &device]);
                for (n, ns) in nvme.namespaces.iter().enumerate() {
                    let readonly = if ns.readonly { "on" } else { "off" };
                    let file = escaped(&ns.drive);
                    let aio = nvme.aio.as_ref().map_or(String::new(), |aio| format!("aio={aio},"));
                    c.args([
                        "-drive",
                        &format!(
                            "if=none,id=d{n},format=raw,cache=writeback,{aio}readonly={readonly},file={file}"
                        ),
                    ]);
                    let mut device = format!("nvme-ns,drive=d{n},bus=nv0");
                    for property in &ns.properties {
                        device.push(',');
                        device.push_str(property);
                    }
                    c.args(["-device", &device]);
                }
            }
        }
    }
}

/// QEMU's `-device` argument for a daemon on `socket`. Only JSON can carry the address.
#[must_use]
pub fn vfio_user_device(socket: &Path) -> String {
    let path = socket.to_string_lossy();
    serde_json::json!({"driver": "vfio-user-pci", "socket": {"path": path, "type": "unix"}}).to_string()
}

/// Commas separate options; a doubled one is a comma.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// A command line as one would type it, for the folder of a case.
#[must_use]
pub fn typed(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<String> = words
        .map(|word| {
            let word = word.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
            if !word.is_empty() && word.chars().all(plain) {
                word.into_owned()
            } else {
                format!("'{}'", word.replace('\'', "'\\''"))
            }
        })
        .collect();
    quoted.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_command_can_be_pasted() {
        let mut command = Command::new("q");
        command.args(["-device", &vfio_user_device(Path::new("/t/it's")), ""]);
        assert_eq!(
            typed(&command),
            r#"q -device '{"driver":"vfio-user-pci","socket":{"path":"/t/it'\''s","type":"unix"}}' ''"#
        );
    }
}
