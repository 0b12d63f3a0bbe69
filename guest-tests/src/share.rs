//! A folder of the host in the guest, by virtiofs: both of our kernels have it built in, and neither has 9p.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use crate::case::tail;
use crate::child::Child;
use crate::setup::{Environment, VIRTIOFSD};

/// Where the guest has it.
pub const MOUNTED: &str = "/share";
/// Name of its server's log in the folder.
pub const LOG: &str = "share.log";
const START_LIMIT: Duration = Duration::from_secs(20);

/// The server of one shared folder. Dropping it ends it.
#[derive(Debug)]
pub struct Share {
    _server: Child,
    socket: PathBuf,
}

impl Share {
    /// Serves `dir` on a socket in `folder`.
    ///
    /// # Errors
    /// When there is no such folder, or the server does not start; the text has the end of its log.
    pub fn start(environment: &Environment, dir: &Path, folder: &Path) -> anyhow::Result<Self> {
        ensure!(dir.is_dir(), "--share {}: no such folder", dir.display());
        let socket = folder.join("share");
        let mut command = environment.sysroot.command(VIRTIOFSD);
        command.arg("--socket-path").arg(&socket).arg("--shared-dir").arg(std::path::absolute(dir)?);
        // A sandbox takes namespaces, which need rights of their own; the guest is the user's as the folder
        // is.
        command.args(["--sandbox", "none"]);
        let log = fs::File::create(folder.join(LOG))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut server = Child::spawn(command, "virtiofsd")?;
        let until = Instant::now() + START_LIMIT;
        while !socket.exists() {
            let log = || tail(&folder.join(LOG), 10);
            if let Some(status) = server.ended()? {
                bail!("--share {}: virtiofsd ended with {status}\n{}", dir.display(), log());
            }
            ensure!(Instant::now() < until, "virtiofsd does not listen\n{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { _server: server, socket })
    }

    /// For [`crate::vm::Vm::share`].
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// Did the guest's init mount it?
///
/// # Errors
/// When it did not, or the guest cannot be asked.
pub fn check(guest: &crate::Guest) -> anyhow::Result<()> {
    let mounts = guest.sh("cat /proc/mounts")?;
    ensure!(
        mounts.contains(&format!(" {MOUNTED} virtiofs ")),
        "the guest did not mount {MOUNTED}: its kernel needs CONFIG_VIRTIO_FS (see --kernel-config)"
    );
    Ok(())
}
