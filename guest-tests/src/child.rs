//! Child processes that cannot outlive us: killed when dropped, and by the kernel when we die without
//! dropping.
#![expect(unsafe_code, reason = "the death signal can only be set between fork and exec")]

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal};

/// A running program.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
    name: String,
}

/// Process numbers that were not waited for yet, and so cannot belong to anybody else.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Set when the program ends: a child that is started after that would be left behind.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Kills all children: whoever waits for one of them, or for a guest in one, goes on with an error. For a
/// case that hangs.
pub fn kill_all() {
    for pid in running().iter().filter_map(|&p| Pid::from_raw(i32::try_from(p).ok()?)) {
        // The group first: a compiler or a downloader has children of its own. The terminal's child leads no
        // group.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Kills all children for good, and waits until they are gone, `limit` at most: none can be started any more.
pub fn stop_all(limit: Duration) {
    STOPPED.store(true, Ordering::SeqCst);
    let until = Instant::now() + limit;
    // Once killed a child is gone but for its entry, which whoever owns it takes away.
    while running().iter().any(|&pid| !is_gone(pid)) && Instant::now() < until {
        kill_all();
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with('Z'))
}

type Order = (Command, Sender<io::Result<std::process::Child>>);

/// All children are started by one thread that never ends: the kernel sends the death signal when the
/// *thread* that forked ends, and test threads come and go.
fn spawner() -> &'static Sender<Order> {
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (to, orders) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                let _ = answer.send(command.spawn());
            }
        });
        to
    })
}

impl Child {
    /// Starts `command` in a process group of its own, so that Ctrl-C reaches us alone and we end it; `name`
    /// is for messages.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(mut command: Command, name: &str) -> anyhow::Result<Self> {
        command.process_group(0);
        Self::spawn_in_terminal(command, name)
    }

    /// Starts `command` in our process group: only there may it read from the terminal.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_in_terminal(mut command: Command, name: &str) -> anyhow::Result<Self> {
        ensure!(!STOPPED.load(Ordering::SeqCst), "{name} is not started: the program ends");
        let parent = std::process::id();
        let prepare = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above; then the signal will never come.
            let alive = rustix::process::getppid()
                .is_some_and(|p| p.as_raw_nonzero().get().cast_unsigned() == parent);
            if alive { Ok(()) } else { Err(io::Error::from(io::ErrorKind::BrokenPipe)) }
        };
        // SAFETY: `prepare` makes two system calls and allocates nothing, so it is fit to run between fork
        // and exec.
        unsafe { command.pre_exec(prepare) };
        let (answer, answered) = channel();
        spawner().send((command, answer)).ok().context("the thread that starts programs is gone")?;
        let inner = answered.recv()?.with_context(|| format!("start {name}"))?;
        running().insert(inner.id());
        Ok(Self { inner, name: name.to_owned() })
    }

    /// Runs `command` to its end and answers all it writes; `line` gets each line of its standard error at
    /// once.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn output(mut command: Command, name: &str, line: &dyn Fn(&str)) -> anyhow::Result<Output> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Self::spawn(command, name)?;
        let (out, err) = (child.inner.stdout.take(), child.inner.stderr.take());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| out.map_or(Ok(0), |mut out| out.read_to_end(&mut stdout)));
            let mut err = err.map(BufReader::new);
            let mut begin = 0;
            while err.as_mut().map_or(Ok(0), |err| err.read_until(b'\n', &mut stderr))? > 0 {
                line(String::from_utf8_lossy(&stderr[begin..]).trim_end());
                begin = stderr.len();
            }
            reader.join().map_err(|_| io::Error::other("the reader of an output panicked"))?
        })
        .with_context(|| format!("output of {name}"))?;
        let status = child.wait_forever().with_context(|| name.to_owned())?;
        Ok(Output { status, stdout, stderr })
    }

    /// Process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.id()
    }

    /// Exit status if it has ended.
    ///
    /// # Errors
    /// From the operating system.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let mut running = running();
        let status = self.inner.try_wait()?;
        if status.is_some() {
            running.remove(&self.inner.id());
        }
        Ok(status)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it still runs after `limit`; it goes on running then.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= until {
                bail!("{} (process {}) still runs after {limit:?}", self.name, self.pid());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end without limit, as long as a person works in it.
    ///
    /// # Errors
    /// From the operating system.
    pub fn wait_forever(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal, if the process still runs.
    ///
    /// # Errors
    /// From the operating system.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        // Asked first: a process number that was waited for may belong to somebody else by now.
        if self.ended()?.is_none() {
            let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("process number")?;
            rustix::process::kill_process(pid, signal)?;
        }
        Ok(())
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        let mut running = running();
        let _ = self.inner.kill();
        let _ = self.inner.wait();
        running.remove(&self.inner.id());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Child {
        let mut command = Command::new("sleep");
        command.arg("100");
        Child::spawn(command, "sleep").unwrap()
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it_but_not_its_owner() {
        let mut child = std::thread::spawn(sleeper).join().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(child.ended().unwrap().is_none());
        let pid = child.pid();
        drop(child);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn waiting_has_a_limit_and_signals_arrive() {
        let mut child = sleeper();
        assert!(child.wait(Duration::from_millis(20)).is_err());
        child.signal(Signal::TERM).unwrap();
        assert!(!child.wait(Duration::from_secs(5)).unwrap().success());
        child.signal(Signal::TERM).unwrap();
    }

    #[test]
    fn output_is_whole_and_lines_come_one_by_one() {
        let mut command = Command::new("sh");
        command.args(["-c", "seq 20000; echo one >&2; printf two >&2; exit 3"]);
        let lines = Mutex::new(Vec::new());
        let out = Child::output(command, "sh", &|line| lines.lock().unwrap().push(line.to_owned())).unwrap();
        assert_eq!(out.status.code(), Some(3));
        assert!(out.stdout.ends_with(b"\n20000\n") && out.stderr == b"one\ntwo");
        assert_eq!(lines.into_inner().unwrap(), ["one", "two"]);
    }
}
