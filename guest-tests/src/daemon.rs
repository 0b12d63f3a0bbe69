//! The program under test as a child process.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::Signal;

use crate::build;
use crate::case::tail;
use crate::child::Child;
use crate::vm::typed;

/// Name of its control socket in the folder.
const CONTROL: &str = "control.sock";
/// Name of the daemon's log in the folder.
pub const LOG: &str = "daemon.log";
/// Name of the file with its command line.
pub(crate) const COMMAND: &str = "daemon.cmdline";
/// Names a daemon that is already built.
const OVERRIDE: &str = "VFIO_USER_NVME_BIN";
const NAME: &str = "vfio-user-nvme";
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    folder: PathBuf,
    program: PathBuf,
}

impl Daemon {
    /// Starts it, with a control socket, and waits until it says that it listens. Sockets and log lie in `folder`.
    ///
    /// # Errors
    /// When it does not build, ends, or does not listen; the text has the end of its log.
    pub fn start(folder: &Path, nvme: &[String], namespaces: &[String]) -> anyhow::Result<Self> {
        let control = folder.join(CONTROL);
        let more = ["--control".as_ref(), control.as_os_str()];
        Self::start_program(&binary()?, folder, nvme, namespaces, &more)
    }

    /// [`Self::start`] with a program of the caller's choice, and what else it is to be told.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_program(
        program: &Path,
        folder: &Path,
        nvme: &[String],
        namespaces: &[String],
        more: &[&OsStr],
    ) -> anyhow::Result<Self> {
        let socket = folder.join("nvme.sock");
        let mut command = Command::new(program);
        command.arg("serve").arg("--socket").arg(&socket);
        if !nvme.is_empty() {
            // The option may be given once only.
            command.arg("--nvme").arg(nvme.join(","));
        }
        for namespace in namespaces {
            command.arg("--nvme-ns").arg(namespace);
        }
        command.args(more);
        fs::write(folder.join(COMMAND), typed(&command) + "\n")?;
        // Appended: a case may start it more than once.
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.join(LOG))?;
        let before = log.metadata()?.len();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = Child::spawn(command, NAME)?;
        let mut daemon = Self { child, socket, folder: folder.to_owned(), program: program.to_owned() };
        daemon.await_ready(before)?;
        Ok(daemon)
    }

    /// Its one line on start names the socket; a socket file alone may be one that nobody listens on yet.
    fn await_ready(&mut self, before: u64) -> anyhow::Result<()> {
        let until = Instant::now() + START_LIMIT;
        let name = self.socket.to_string_lossy().into_owned();
        loop {
            let log = fs::read(self.folder.join(LOG))?;
            let new = log.get(usize::try_from(before)?..).unwrap_or_default();
            if self.socket.exists() && String::from_utf8_lossy(new).contains(&name) {
                return Ok(());
            }
            if let Some(status) = self.child.ended()? {
                bail!("{NAME} ended with {status}\n{}", self.log());
            }
            ensure!(Instant::now() < until, "{NAME} does not say that it listens\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Has its own `ctl` ask it for something by its control socket; the answer.
    ///
    /// # Errors
    /// What `ctl` says when the device refuses.
    pub fn ctl(&self, words: &[&str]) -> anyhow::Result<serde_json::Value> {
        let mut command = Command::new(&self.program);
        command.arg("ctl").arg(self.folder.join(CONTROL)).args(words).arg("--json");
        let out = command.output().context("ctl")?;
        ensure!(out.status.success(), "{}: {}", typed(&command), String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).with_context(|| typed(&command))
    }

    /// End of its log.
    #[must_use]
    pub fn log(&self) -> String {
        tail(&self.folder.join(LOG), 20)
    }

    /// Process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Does it still run?
    ///
    /// # Errors
    /// When it ended by itself.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.child.ended()? {
            None => Ok(()),
            Some(status) => bail!("{NAME} ended with {status}\n{}", self.log()),
        }
    }

    /// SIGTERM, then its exit status.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn terminate(mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        self.child.signal(Signal::TERM)?;
        self.child.wait(limit).with_context(|| self.log())
    }

    /// SIGKILL: nothing it holds in its own memory survives.
    pub fn kill(mut self) {
        self.child.kill();
    }

    /// Processor time used so far, user and system, in clock ticks, all threads.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn cpu_ticks(&self) -> anyhow::Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The second field is the program's name in brackets and may hold anything, so count from behind it.
        let (_, fields) = stat.rsplit_once(") ").context("/proc stat")?;
        let ticks = |n: usize| -> anyhow::Result<u64> {
            Ok(fields.split(' ').nth(n).context("/proc stat")?.parse()?)
        };
        Ok(ticks(11)? + ticks(12)?)
    }

    /// Memory that belongs to it alone (anonymous and its share of memory files, without what it maps of the
    /// guest), in bytes.
    ///
    /// # Errors
    /// When `/proc` does not tell.
    pub fn private_bytes(&self) -> anyhow::Result<u64> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.pid()))?;
        Ok(own_bytes(&smaps))
    }
}

/// Resident bytes of all mappings but those of the guest's memory, which QEMU accounts for.
fn own_bytes(smaps: &str) -> u64 {
    let mut guest = false;
    let mut total = 0;
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some(kib) = line.strip_prefix("Rss:") {
            let kib: u64 = kib.trim().trim_end_matches("kB").trim().parse().unwrap_or(0);
            total += if guest { 0 } else { kib << 10 };
        } else if first.contains('-') && !first.ends_with(':') {
            guest = line.contains("memory-backend-memfd");
        }
    }
    total
}

/// Builds the program if need be, so that no case pays for it.
///
/// # Errors
/// What the compiler says.
pub fn prepare() -> anyhow::Result<()> {
    binary().map(drop)
}

/// The daemon's program, built if need be, in the profile this harness was built in.
fn binary() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| compile(false).map_err(|e| format!("{e:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

/// The daemon's program with optimizations, built if need be, whatever profile this harness was built in.
///
/// # Errors
/// What the compiler says.
pub fn optimized() -> anyhow::Result<PathBuf> {
    compile(true)
}

/// The folder cargo builds into.
///
/// # Errors
/// When this program lies in no such folder.
pub fn target() -> anyhow::Result<PathBuf> {
    Ok(profile()?.parent().context("target folder")?.to_owned())
}

/// The part of [`target`] this program was built into.
fn profile() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let profile = own.parent().context("where is this program?")?;
    let profile =
        if profile.ends_with("deps") { profile.parent().context("target folder")? } else { profile };
    Ok(profile.to_owned())
}

fn compile(optimized: bool) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(OVERRIDE).filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    let target = target()?;
    let profile = if optimized { target.join("release") } else { profile()? };
    let mut command = build::cargo();
    // For the whole workspace, so that it is the same build as that of `cargo test --workspace` and done
    // already there.
    command.args(["build", "--workspace", "--bin", NAME]).arg("--target-dir").arg(target);
    if profile.ends_with("release") {
        command.arg("--release");
    }
    build::run(command, "the daemon")?;
    Ok(profile.join(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_not_counted() {
        let smaps = "55-56 r-xp 0 fe:00 1 /bin/x\nSize: 8 kB\nRss:                 8 kB\n\
                     7f-80 rw-s 0 00:01 2 /memfd:memory-backend-memfd (deleted)\nRss:  1000 kB\n\
                     80-81 rw-p 0 00:00 0 \nRss:   4 kB\nVmFlags: rd wr-x\n";
        assert_eq!(own_bytes(smaps), 12 << 10);
    }
}
