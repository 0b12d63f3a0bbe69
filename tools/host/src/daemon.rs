//! The daemon as a child process: its folder, its log, its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Client, DEADLINE, program};

/// The program that serves.
fn server() -> PathBuf {
    program("vfio-user-nvme")
}

pub struct Daemon {
    child: Child,
    dir: TempDir,
    /// What a shell does first; it ends with the daemon in its place, as `"$@"`.
    script: Option<String>,
    args: Vec<String>,
    ended: Option<ExitStatus>,
    killed: bool,
}

/// Splits words; no argument of ours holds a space.
fn words(args: &str) -> impl Iterator<Item = String> {
    args.split_whitespace().map(str::to_owned)
}

impl Daemon {
    /// `serve` with these arguments besides `--socket`; `{}` in them stands for the daemon's folder.
    pub fn start(args: &str) -> Daemon {
        Daemon::start_in(tempfile::tempdir().expect("folder"), args)
    }

    pub fn start_in(dir: TempDir, args: &str) -> Daemon {
        Daemon::launch(dir, None, args)
    }

    /// As [`Daemon::start`], by a shell that runs `script` in the daemon's folder: limits, redirections,
    /// another user. It has to end with `exec ... "$@"`.
    pub fn start_by(script: &str, args: &str) -> Daemon {
        Daemon::launch(tempfile::tempdir().expect("folder"), Some(script), args)
    }

    fn launch(dir: TempDir, script: Option<&str>, args: &str) -> Daemon {
        let place = dir.path().to_str().unwrap();
        let args: Vec<String> = words(args).map(|a| a.replace("{}", place)).collect();
        let child = spawn(dir.path(), script, &args);
        let d = Daemon { child, dir, script: script.map(str::to_owned), args, ended: None, killed: false };
        d.wait_for_socket();
        d
    }

    fn wait_for_socket(&self) {
        let start = Instant::now();
        while !self.socket().exists() {
            assert!(start.elapsed() < DEADLINE && self.alive(), "the daemon did not come up: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts it again after its end, with the same arguments in the same folder.
    pub fn again(&mut self) {
        assert!(self.ended.is_some());
        let log = self.dir.path().join("log");
        fs::rename(&log, self.dir.path().join("log.before")).unwrap();
        self.child = spawn(self.dir.path(), self.script.as_deref(), &self.args);
        self.ended = None;
        self.killed = false;
        // The socket file of a killed daemon is still there: wait for a listener, not for the file.
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(start.elapsed() < DEADLINE && self.alive(), "{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.file("s")
    }

    /// The log when nothing has come for a while: the daemon writes it in its own time.
    pub fn log(&self) -> String {
        let read = || fs::read(self.file("log")).unwrap_or_default();
        let mut log = read();
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let now = read();
            if now.len() == log.len() {
                return String::from_utf8_lossy(&now).into_owned();
            }
            log = now;
        }
    }

    /// The log once `word` is in it, `times` times.
    #[track_caller]
    pub fn log_with(&self, word: &str, times: usize) -> String {
        let start = Instant::now();
        loop {
            let log = self.log();
            if log.matches(word).count() >= times {
                return log;
            }
            assert!(start.elapsed() < DEADLINE, "{word:?} is not in the log {times} times: {log}");
        }
    }

    /// A client that agreed on the version; whoever had the socket a moment ago (another daemon that looked
    /// whether it is in use) may still be leaving.
    pub fn client(&self) -> Client {
        Client::attach_when_free(&self.socket())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn alive(&self) -> bool {
        // A child that ended and was not waited for is a zombie.
        self.stat().is_some_and(|s| s[0] != "Z")
    }

    /// Fields of /proc/PID/stat from the third (state) on.
    fn stat(&self) -> Option<Vec<String>> {
        let s = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        let rest = s.rsplit_once(')')?.1;
        Some(rest.split_whitespace().map(str::to_owned).collect())
    }

    /// Clock ticks spent, user and system.
    pub fn ticks(&self) -> u64 {
        let s = self.stat().expect("alive");
        s[11].parse::<u64>().unwrap() + s[12].parse::<u64>().unwrap()
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let s = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("alive");
        let line = s.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }

    pub fn signal(&self, s: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).unwrap();
        kill_process(pid, s).expect("signal");
    }

    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(s) = self.child.try_wait().unwrap() {
                self.ended = Some(s);
                return s;
            }
            assert!(start.elapsed() < limit, "the daemon did not end within {limit:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGTERM, and the clean end it must lead to.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let s = self.wait(DEADLINE);
        assert_eq!(s.code(), Some(0), "after SIGTERM: {s}; {}", self.log());
        assert!(!self.socket().exists(), "the socket file is left behind");
    }

    pub fn kill(&mut self) {
        self.killed = true;
        self.child.kill().unwrap();
        self.wait(DEADLINE);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.ended.is_none() {
            if std::thread::panicking() {
                // What it was doing, for the log below.
                self.signal(Signal::USR1);
                std::thread::sleep(Duration::from_millis(100));
            }
            let early = self.child.try_wait().ok().flatten();
            if early.is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            if let Some(s) = early
                && !std::thread::panicking()
            {
                panic!("the daemon ended by itself: {s}; {}", self.log());
            }
        }
        if std::thread::panicking() {
            eprintln!("daemon {:?}\n{}", self.args, self.log());
        }
    }
}

fn spawn(dir: &Path, script: Option<&str>, args: &[String]) -> Child {
    let log = File::create(dir.join("log")).expect("log");
    let mut command = match script {
        None => Command::new(server()),
        Some(script) => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", script, "sh"]).arg(server()).current_dir(dir);
            shell
        }
    };
    command
        .arg("serve")
        .arg("--socket")
        .arg(dir.join("s"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("the daemon's program")
}

/// Starts the program that serves, with its output in pipes.
pub fn start(args: &[&str]) -> Child {
    start_program(&server(), args)
}

/// Starts a program with its output in pipes.
pub fn start_program(program: &Path, args: &[&str]) -> Child {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program")
}

/// Runs the program that serves to its end, which must come soon.
pub fn run(args: &[&str]) -> Output {
    run_program(&server(), args)
}

/// Runs a program to its end, which must come soon.
pub fn run_program(program: &Path, args: &[&str]) -> Output {
    let mut child = start_program(program, args);
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > DEADLINE {
            let _ = child.kill();
            let o = child.wait_with_output().unwrap();
            panic!("{args:?} does not end: {o:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait_with_output().unwrap()
}
