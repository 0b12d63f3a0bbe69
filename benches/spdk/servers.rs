//! The two servers: child processes on a processor of their own, that can be stopped for a while.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

/// Bytes of the namespace on either side.
pub const SIZE: u64 = 64 << 20;
/// Bytes of a block on either side.
pub const BLOCK: u64 = 512;
/// The name SPDK's target gives what it serves, and its client asks for; ours takes any.
pub const NQN: &str = "nqn.2019-07.io.spdk:cnode0";
/// MiB of huge pages that SPDK's target gets.
const TARGET_MIB: u64 = 320;
/// MiB that its client gets.
pub const CLIENT_MIB: u64 = 256;
/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Programs of an SPDK that is built.
pub struct Tree {
    target: PathBuf,
    pub perf: PathBuf,
}

impl Tree {
    /// By SPDK_TREE.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    pub fn find() -> Result<Self, String> {
        let tree = std::env::var_os("SPDK_TREE").ok_or(
            "SPDK_TREE is not set; set it to the folder of an SPDK that is built (configured with --with-vfio-user)",
        )?;
        let tree = fs::canonicalize(&tree).map_err(|error| format!("SPDK_TREE: {error}"))?;
        let program = |name: &str| {
            let path = tree.join("build/bin").join(name);
            if path.is_file() { Ok(path) } else { Err(format!("SPDK_TREE: there is no {}", path.display())) }
        };
        let tree = Tree { target: program("nvmf_tgt")?, perf: program("spdk_nvme_perf")? };
        let wanted = (TARGET_MIB + CLIENT_MIB) / 2;
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let free = meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
        let free: u64 = free.and_then(|free| free.trim().parse().ok()).unwrap_or(0);
        if free < wanted {
            return Err(format!(
                "SPDK wants {wanted} free huge pages and there are {free}: reserve them in /proc/sys/vm/nr_hugepages"
            ));
        }
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        if !mounts.lines().any(|line| line.split_whitespace().nth(2) == Some("hugetlbfs")) {
            return Err("SPDK wants a mounted hugetlbfs: mount -t hugetlbfs nodev /mnt/huge".to_owned());
        }
        Ok(tree)
    }
}

/// A processor for a child.
#[derive(Clone, Copy)]
pub struct Pinned(pub usize);

impl Pinned {
    /// Spawns a child on it: a child inherits what its parent's thread may use.
    pub fn spawn(self, command: &mut Command) -> Result<Child, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", command.get_program().display());
        let before = sched_getaffinity(None).map_err(|errno| failed(errno.into()))?;
        let mut one = CpuSet::new();
        one.set(self.0);
        sched_setaffinity(None, &one).map_err(|errno| format!("processor {}: {errno}", self.0))?;
        let child = command.spawn();
        sched_setaffinity(None, &before).map_err(|errno| format!("the processors of before: {errno}"))?;
        child.map_err(|error| format!("{}: {error}", command.get_program().display()))
    }
}

fn make(place: &Path, name: &str) -> Result<PathBuf, String> {
    let folder = place.join(name);
    fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

/// A server: a folder that has its socket, named `cntrl` as SPDK wants it.
pub struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    /// Ours.
    pub fn ours(place: &Path, at: Pinned) -> Result<Self, String> {
        let folder = make(place, "ours")?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_vfio-user-nvme"));
        command.arg("serve").arg("--socket").arg(folder.join("cntrl")).args(["--log", "warn"]);
        command.args(["--nvme", "doorbells=mmap,poll=always"]);
        command.arg("--nvme-ns").arg(format!("drive=memory,size={SIZE},logical_block_size={BLOCK}"));
        Self::start(command, folder, at)
    }

    /// SPDK's, whose memory device has the same size and blocks.
    pub fn spdk(tree: &Tree, place: &Path, at: Pinned) -> Result<Self, String> {
        let folder = make(place, "spdk")?;
        let call = |method: &str, params: Value| json!({ "method": method, "params": params });
        let config = json!({ "subsystems": [
            { "subsystem": "bdev", "config": [
                call("bdev_malloc_create", json!({ "name": "M0", "num_blocks": SIZE / BLOCK, "block_size": BLOCK })),
            ] },
            { "subsystem": "nvmf", "config": [
                call("nvmf_create_transport", json!({ "trtype": "VFIOUSER" })),
                call("nvmf_create_subsystem", json!({ "nqn": NQN, "allow_any_host": true, "serial_number": "S0" })),
                call("nvmf_subsystem_add_ns", json!({ "nqn": NQN, "namespace": { "nsid": 1, "bdev_name": "M0" } })),
                call("nvmf_subsystem_add_listener", json!({ "nqn": NQN, "listen_address":
                    { "trtype": "VFIOUSER", "traddr": folder, "trsvcid": "0" } })),
            ] },
        ] });
        let file = place.join("spdk.json");
        fs::write(&file, config.to_string()).map_err(|error| format!("{}: {error}", file.display()))?;
        let mut command = Command::new(&tree.target);
        // One processor, so much memory, and a socket for RPC of its own.
        command.args(["-m", &format!("{:#x}", 1_u64 << at.0), "-s", &TARGET_MIB.to_string()]);
        command.arg("-r").arg(place.join("rpc")).arg("--json").arg(file);
        Self::start(command, folder, at)
    }

    fn start(mut command: Command, folder: PathBuf, at: Pinned) -> Result<Self, String> {
        let log = folder.with_extension("log");
        let file = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let again = file.try_clone().map_err(|error| error.to_string())?;
        // Whatever it leaves behind (SPDK's at its end a core, here) goes with the folder.
        command.current_dir(&folder).stdin(Stdio::null()).stdout(again).stderr(file);
        let mut server = Server { child: at.spawn(&mut command)?, folder };
        let begun = Instant::now();
        while !server.socket().exists() {
            let ended = server.child.try_wait().is_ok_and(|status| status.is_some());
            if ended || begun.elapsed() > PATIENCE {
                let said = fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("{} did not come up:\n{said}", command.get_program().display()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("cntrl")
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // One that has ended shows at its next turn.
            let _ = kill_process(pid, signal);
        }
    }

    pub fn rest(&self) {
        self.signal(Signal::STOP);
    }

    pub fn wake(&self) {
        self.signal(Signal::CONT);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.wake();
        self.signal(Signal::TERM);
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
