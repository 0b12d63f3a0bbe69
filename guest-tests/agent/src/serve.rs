//! The command server: requests from the port, each program in its own threads, answers under one lock.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use guest_agent::wire::{self, PORT, Reply, Request};
use rustix::process::{Pid, Signal};
use rustix::system::RebootCommand;

#[derive(Clone)]
struct Server {
    port: Arc<Mutex<File>>,
    running: Arc<Mutex<HashMap<u64, Pid>>>,
}

/// Serves until the port fails for good.
pub fn run() -> anyhow::Result<()> {
    let path = find_port()?;
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let mut from = BufReader::new(Patient(port.try_clone()?));
    let server = Server { port: Arc::new(Mutex::new(port)), running: Arc::default() };
    server.reply(&hello(), &[]);
    while let Some((request, payload)) = wire::receive::<Request>(&mut from)? {
        server.handle(request, &payload);
    }
    Ok(())
}

fn hello() -> Reply {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    Reply::Hello {
        boot: text("/proc/sys/kernel/random/boot_id"),
        kernel: text("/proc/sys/kernel/osrelease"),
        uptime: text("/proc/uptime").split(' ').next().and_then(|s| s.parse().ok()).unwrap_or(0.0),
    }
}

fn find_port() -> anyhow::Result<PathBuf> {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            let device = Path::new("/dev").join(entry.file_name());
            if name.trim() == PORT && device.exists() {
                return Ok(device);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("no virtio-serial port named {PORT}: is virtio_console in the kernel?")
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

    fn handle(&self, request: Request, payload: &[u8]) {
        match request {
            Request::Run { id, argv } => {
                let server = self.clone();
                std::thread::spawn(move || server.run_program(id, &argv));
            }
            Request::Put { id, path, mode } => match put(&path, mode, payload) {
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

    fn run_program(&self, id: u64, argv: &[String]) {
        let Some((program, args)) = argv.split_first() else {
            self.reply(&Reply::Exit { id, code: 127 }, &[]);
            return;
        };
        let spawned = Command::new(program)
            .args(args)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                self.reply(&Reply::Err { id }, format!("{program}: {error}\n").as_bytes());
                self.reply(&Reply::Exit { id, code: 127 }, &[]);
                return;
            }
        };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            lock(&self.running).insert(id, pid);
        }
        let (out, err) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            scope.spawn(|| self.stream(out, &Reply::Out { id }));
            scope.spawn(|| self.stream(err, &Reply::Err { id }));
        });
        let code = child.wait().map_or(126, |s| s.code().unwrap_or_else(|| 128 + s.signal().unwrap_or(0)));
        lock(&self.running).remove(&id);
        self.reply(&Reply::Exit { id, code }, &[]);
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
    use std::io::Write;
    if let Some(dir) = Path::new(path).parent() {
        fs::create_dir_all(dir)?;
    }
    OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?.write_all(payload)
}
