//! The process of a server that is stopped while others are measured, and continued however this one ends.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// See the module docs.
#[derive(Debug)]
pub(crate) struct Paused {
    pid: Pid,
    /// A process that continues the server when its standard input ends, which it does with this process: a
    /// stopped server hangs its guest, and no handler of ours would run after a SIGKILL.
    keeper: Option<Child>,
}

impl Paused {
    /// A process that runs.
    pub(crate) fn new(pid: Pid) -> Self {
        Self { pid, keeper: None }
    }

    /// Stops it, unless nobody could be found to continue it.
    pub(crate) fn stop(&mut self) {
        if self.keeper.is_none() {
            match keeper(self.pid) {
                Ok(child) => self.keeper = Some(child),
                Err(error) => {
                    return eprintln!("note: --pause-others: {error}: process {} goes on", self.pid);
                }
            }
        }
        // A process that is gone shows at its next turn.
        let _ = kill_process(self.pid, Signal::STOP);
    }

    /// Continues it.
    pub(crate) fn wake(&self) {
        let _ = kill_process(self.pid, Signal::CONT);
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.wake();
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
    }
}

/// Not in the process group that a Ctrl-C ends.
fn keeper(pid: Pid) -> std::io::Result<Child> {
    use std::os::unix::process::CommandExt;
    Command::new("/bin/sh")
        .args(["-c", "cat > /dev/null; kill -CONT \"$0\"", &pid.to_string()])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}
