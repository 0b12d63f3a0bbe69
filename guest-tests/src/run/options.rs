//! The words behind `cargo guest run`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::accel::Wanted;
use crate::device::Kind;
use crate::words;

/// Options of `guest run`.
#[derive(Debug, Args)]
#[command(after_help = super::ends::HELP)]
pub struct Options {
    /// Guest kernel: a bzImage or vmlinux file, or one of ours: stable, newest
    #[arg(long, default_value = "stable")]
    pub(super) kernel: String,
    /// Print what a kernel of your own needs, as a fragment for scripts/kconfig/merge_config.sh, and do
    /// nothing else
    #[arg(long)]
    pub(super) kernel_config: bool,
    /// Initial root file system unpacked before ours: brings the modules (NVMe, virtio) of a kernel that has
    /// them not built in
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Option<PathBuf>,
    /// auto (KVM if it can run the guest), kvm or tcg
    #[arg(long, default_value = "auto")]
    pub(super) accel: Wanted,
    /// Properties of the controller, as for the daemon
    #[arg(long, value_name = "NAME=VALUE,...")]
    pub(super) nvme: Vec<String>,
    /// One namespace, as for the daemon; may be repeated
    #[arg(long, value_name = "NAME=VALUE,...")]
    pub(super) nvme_ns: Vec<String>,
    /// Who plays the device: daemon, or qemu-nvme (QEMU's own, to compare with)
    #[arg(long, default_value = "daemon")]
    pub(super) device: Kind,
    /// Guest memory: 1G, 1536M, or a number of MiB
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = words::memory)]
    pub(super) memory: u32,
    /// Virtual processors
    #[arg(long, default_value_t = 2)]
    pub(super) cpus: u32,
    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS")]
    pub(super) append: Vec<String>,
    /// One more word for QEMU's command line; may be repeated (--qemu-arg=-device --qemu-arg=virtio-rng-pci)
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(super) qemu_arg: Vec<String>,
    /// QEMU waits for a debugger on this port of this host before it starts the guest (`target remote :1234`)
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "1234")]
    pub(super) gdb: Option<u16>,
    /// Folder of this host that the guest has at /share, to read and to write (virtiofs)
    #[arg(long, value_name = "DIR")]
    pub(super) share: Option<PathBuf>,
    /// Keep the logs of QEMU, guest and daemon in this folder
    #[arg(long, value_name = "DIR")]
    pub(super) logs: Option<PathBuf>,
    /// Time from QEMU's start to the command's end: 90, 90s, 5m or 1h. Without it, a boot may take two
    /// minutes and the command for ever
    #[arg(long, value_name = "TIME", value_parser = words::time)]
    pub(super) timeout: Option<Duration>,
    /// It is a fault if the guest's kernel warned of anything
    #[arg(long, requires = "command")]
    pub(super) fail_on_warning: bool,
    /// Command to run in the guest, with our standard input (give it </dev/null in the background); a shell
    /// if there is none
    #[arg(last = true)]
    pub(super) command: Vec<String>,
}
