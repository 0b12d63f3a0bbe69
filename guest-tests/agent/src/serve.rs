//! The command server: requests from the port, each program in its own threads, answers under one lock.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_agent::wire::{self, PORT, Reply, Request};
use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;

/// A part of a program's input, behind the number of the request that brought it.
type Part = (u64, Vec<u8>);

#[derive(Clone)]
struct Server {
    port: Arc<Mutex<File>>,
    running: Arc<Mutex<HashMap<u64, Pid>>>,
    /// Where the input of each program goes that has one.
    inputs: Arc<Mutex<HashMap<u64, Sender<Part>>>>,
}

/// Serves until the port fails for good.
pub fn run() -> anyhow::Result<()> {
    let path = find_port(Duration::from_secs(20))?;
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let mut from = BufReader::new(Patient(port.try_clone()?));
    let server = Server { port: Arc::new(Mutex::new(port)), running: Arc::default(), inputs: Arc::default() };
    server.reply(&hello(), &[]);
    while let Some((request, payload)) = wire::receive::<Request>(&mut from)? {
        server.handle(request, payload);
    }
    Ok(())
}

/// Says how the shell on the console ended, if the kernel has the port.
pub fn shell_ended(code: i32) {
    if let Ok(path) = find_port(Duration::ZERO)
        && let Ok(mut port) = OpenOptions::new().write(true).open(path)
    {
        let _ = wire::send(&mut port, &Reply::Exit { id: 0, code }, &[]);
    }
}

fn hello() -> Reply {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    Reply::Hello {
        boot: text("/proc/sys/kernel/random/boot_id"),
        kernel: text("/proc/sys/kernel/osrelease"),
        uptime: text("/proc/uptime").split(' ').next().and_then(|s| s.parse().ok()).unwrap_or(0.0),
    }
}

fn find_port(patience: Duration) -> anyhow::Result<PathBuf> {
    let until = Instant::now() + patience;
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            let device = Path::new("/dev").join(entry.file_name());
            if name.trim() == PORT && device.exists() {
                return Ok(device);
            }
        }
        ensure!(
            Instant::now() < until,
            "no virtio-serial port named {PORT}: is virtio_console in the kernel?"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The port reads as ended while no host is connected; that passes.
struct Patient(File);

impl Read for Patient {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let n = self.0.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    fn reply(&self, reply: &Reply, payload: &[u8]) {
        // A host that went away is no reason to stop: the guest is shut down by other means then.
        let _ = wire::send(&mut *lock(&self.port), reply, payload);
    }

    fn handle(&self, request: Request, payload: Vec<u8>) {
        match request {
            Request::Run { id, argv, input } => {
                // At once: the first input may be the next request.
                let input = input.then(|| {
                    let (to, input) = channel();
                    lock(&self.inputs).insert(id, to);
                    input
                });
                let server = self.clone();
                std::thread::spawn(move || server.run_program(id, &argv, input));
            }
            Request::Input { id, job } => {
                let sent = lock(&self.inputs).get(&job).is_some_and(|to| to.send((id, payload)).is_ok());
                if !sent {
                    self.reply(&Reply::Failed { id, why: "nobody reads it".into() }, &[]);
                }
            }
            Request::Put { id, path, mode } => match put(&path, mode, &payload) {
                Ok(()) => self.reply(&Reply::Done { id }, &[]),
                Err(error) => self.reply(&Reply::Failed { id, why: format!("{path}: {error}") }, &[]),
            },
            Request::Get { id, path } => match fs::read(&path) {
                Ok(data) => self.reply(&Reply::Done { id }, &data),
                Err(error) => self.reply(&Reply::Failed { id, why: format!("{path}: {error}") }, &[]),
            },
            Request::Kill { id } => {
                if let Some(pid) = lock(&self.running).get(&id) {
                    // The whole group: a script's children would otherwise keep its output open.
                    let _ = rustix::process::kill_process_group(*pid, Signal::KILL);
                }
            }
            Request::Poweroff => crate::init::leave(RebootCommand::PowerOff),
            Request::Reboot => crate::init::leave(RebootCommand::Restart),
        }
    }

    fn run_program(&self, id: u64, argv: &[String], input: Option<Receiver<Part>>) {
        let code = self.run_to_its_end(id, argv, input).unwrap_or_else(|error| {
            let program = argv.first().map_or("", String::as_str);
            self.reply(&Reply::Err { id }, format!("{program}: {error}\n").as_bytes());
            127
        });
        lock(&self.running).remove(&id);
        lock(&self.inputs).remove(&id);
        self.reply(&Reply::Exit { id, code }, &[]);
    }

    /// Its exit code, 128 + signal number when a signal ended it.
    fn run_to_its_end(
        &self,
        id: u64,
        argv: &[String],
        input: Option<Receiver<Part>>,
    ) -> std::io::Result<i32> {
        let (program, args) = argv.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut child = Command::new(program)
            .args(args)
            .process_group(0)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            lock(&self.running).insert(id, pid);
        }
        if let (Some(input), Some(stdin)) = (input, child.stdin.take()) {
            let server = self.clone();
            // Not waited for: it may hang on a program that reads nothing and has left its input to a child.
            std::thread::spawn(move || server.feed(&input, stdin));
        }
        let (out, err) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            scope.spawn(|| self.stream(out, &Reply::Out { id }));
            scope.spawn(|| self.stream(err, &Reply::Err { id }));
        });
        Ok(child.wait().map_or(126, |s| s.code().unwrap_or_else(|| 128 + s.signal().unwrap_or(0))))
    }

    /// Until the end of the input, or the program reads no more of it.
    fn feed(&self, input: &Receiver<Part>, mut stdin: impl Write) {
        for (id, bytes) in input {
            match stdin.write_all(&bytes) {
                Ok(()) => self.reply(&Reply::Done { id }, &[]),
                Err(error) => return self.reply(&Reply::Failed { id, why: error.to_string() }, &[]),
            }
            if bytes.is_empty() {
                return;
            }
        }
    }

    fn stream(&self, from: Option<impl Read>, reply: &Reply) {
        let Some(mut from) = from else { return };
        let mut buf = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buf) {
            self.reply(reply, &buf[..n]);
        }
    }
}

fn put(path: &str, mode: u32, payload: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = Path::new(path).parent() {
        fs::create_dir_all(dir)?;
    }
    OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?.write_all(payload)
}
