//! A booted guest and what can be asked of it.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use guest_agent::wire::{Reply, Request};

use crate::channel::{Channel, Hello, Replies};
use crate::child::Child;
use crate::died::{self, Died};
use crate::dmesg;
use crate::job::Job;
use crate::setup::Qemu;
use crate::vm::{AGENT_SOCKET, Console, Vm, typed};

/// A boot takes about 4 s by translation on an idle machine; a loaded one gets much more.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// For commands that need no time worth naming.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Where QEMU's own words go, in the folder.
pub(crate) const QEMU_LOG: &str = "qemu.log";
/// Its command line.
pub(crate) const QEMU_COMMAND: &str = "qemu.cmdline";
/// The kernel's messages, as far as they were asked for.
pub(crate) const DMESG_LOG: &str = "dmesg.log";

/// A running guest. Dropping it kills its QEMU.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    channel: Arc<Channel>,
    hello: Hello,
    folder: PathBuf,
    /// Kernel messages below this sequence number were looked at.
    seen: Mutex<u64>,
}

/// What a program in the guest left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Both outputs as text, standard output first.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}{}", self.text(), String::from_utf8_lossy(&self.stderr))
    }
}

impl Guest {
    /// Starts QEMU and waits until the agent answers. Logs lie in `folder`.
    ///
    /// # Errors
    /// When QEMU ends or the agent is not heard within `limit`; the text has the ends of the logs.
    pub fn boot(qemu: &Qemu, vm: &Vm, folder: &Path, limit: Duration) -> anyhow::Result<Self> {
        ensure!(vm.console == Console::Log, "a guest with a terminal has no agent");
        let listener = listen(folder)?;
        let mut command = vm.command(qemu, folder);
        fs::write(folder.join(QEMU_COMMAND), typed(&command) + "\n")?;
        let log = fs::File::create(folder.join(QEMU_LOG))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut qemu = Child::spawn(command, "QEMU")?;
        let until = Instant::now() + limit;
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
            check_alive(&mut qemu, folder)?;
            ensure!(
                Instant::now() < until,
                "QEMU did not connect to the agent's socket\n{}",
                died::logs(folder)
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_nonblocking(false)?;
        let channel = Arc::new(Channel::new(stream)?);
        let hello = await_hello(&channel, &mut qemu, folder, until)?;
        Ok(Self { qemu, channel, hello, folder: folder.to_owned(), seen: Mutex::new(0) })
    }

    /// Kernel release of the guest.
    #[must_use]
    pub fn kernel(&self) -> &str {
        &self.hello.kernel
    }

    /// Seconds from the kernel's start to the agent's.
    #[must_use]
    pub fn boot_seconds(&self) -> f64 {
        self.hello.uptime
    }

    /// QEMU's process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// Starts a program and does not wait.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn spawn(&self, argv: &[&str]) -> anyhow::Result<Job<'_>> {
        self.start(argv, false)
    }

    /// [`Self::spawn`], for a program that reads what [`Job::input`] sends.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn spawn_with_input(&self, argv: &[&str]) -> anyhow::Result<Job<'_>> {
        self.start(argv, true)
    }

    fn start(&self, argv: &[&str], input: bool) -> anyhow::Result<Job<'_>> {
        let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        let replies = self.channel.request(|id| Request::Run { id, argv, input }, &[])?;
        Ok(Job::new(self, replies))
    }

    pub(crate) fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Runs a program to its end, whatever its exit code.
    ///
    /// # Errors
    /// When it does not end within `limit` (it is killed then) or the guest is gone.
    pub fn run(&self, argv: &[&str], limit: Duration) -> anyhow::Result<Output> {
        self.spawn(argv)?.finish(limit).with_context(|| format!("in the guest: {}", argv.join(" ")))
    }

    /// Runs a shell script that must succeed, and answers its standard output.
    ///
    /// # Errors
    /// As [`Self::run`], and when the exit code is not 0; the text has all output.
    pub fn sh(&self, script: &str) -> anyhow::Result<String> {
        self.sh_within(script, COMMAND_LIMIT)
    }

    /// [`Self::sh`] with a limit of its own.
    ///
    /// # Errors
    /// As [`Self::sh`].
    pub fn sh_within(&self, script: &str, limit: Duration) -> anyhow::Result<String> {
        let out = self.run(&["/bin/sh", "-ec", script], limit)?;
        ensure!(out.code == 0, "in the guest, exit code {}: {script}\n{}", out.code, out.all());
        Ok(out.text())
    }

    /// Runs one of the agent's block tools, which must succeed, and answers its output without the last
    /// line's end.
    ///
    /// # Errors
    /// As [`Self::sh`].
    pub fn tool(&self, words: &[&str]) -> anyhow::Result<String> {
        let argv = [&["/guest/guest-agent", "tool"], words].concat();
        let out = self.run(&argv, COMMAND_LIMIT * 2)?;
        ensure!(out.code == 0, "in the guest: tool {}: {}", words.join(" "), out.all());
        Ok(out.text().trim_end().to_owned())
    }

    /// Writes a file in the guest.
    ///
    /// # Errors
    /// What the guest says, or that it is gone.
    pub fn put(&self, path: &str, mode: u32, content: &[u8]) -> anyhow::Result<()> {
        let path = path.to_owned();
        self.file(self.channel.request(|id| Request::Put { id, path, mode }, content)?).map(drop)
    }

    /// Reads a file of the guest.
    ///
    /// # Errors
    /// What the guest says, or that it is gone.
    pub fn get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let path = path.to_owned();
        self.file(self.channel.request(|id| Request::Get { id, path }, &[])?)
    }

    fn file(&self, replies: Replies) -> anyhow::Result<Vec<u8>> {
        match replies.next(Instant::now() + COMMAND_LIMIT).with_context(|| self.logs())? {
            Some((Reply::Done { .. }, content)) => Ok(content),
            Some((Reply::Failed { why, .. }, _)) => bail!("in the guest: {why}"),
            Some((other, _)) => bail!("unexpected reply {other:?}"),
            None => bail!("the agent does not answer\n{}", self.logs()),
        }
    }

    /// Kernel messages since the last call that no healthy guest prints.
    ///
    /// # Errors
    /// When the guest cannot be asked.
    pub fn warnings(&self) -> anyhow::Result<Vec<String>> {
        let messages = self.messages()?;
        Ok(dmesg::suspicious(&messages))
    }

    /// Kernel messages since the last call, also kept in the folder.
    ///
    /// # Errors
    /// When the guest cannot be asked.
    pub fn messages(&self) -> anyhow::Result<Vec<dmesg::Message>> {
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let text = self.tool(&["kmsg", &seen.to_string()])?;
        let messages: Vec<dmesg::Message> = text.lines().filter_map(dmesg::Message::parse).collect();
        if let Some(last) = messages.last() {
            *seen = last.sequence + 1;
        }
        let mut log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join(DMESG_LOG))?;
        std::io::Write::write_all(&mut log, text.as_bytes())?;
        std::io::Write::write_all(&mut log, b"\n")?;
        Ok(messages)
    }

    /// Restarts the guest from inside and waits until it is up again.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn reboot(&mut self) -> anyhow::Result<()> {
        let before = self.hello.boot.clone();
        drop(self.channel.request(|_| Request::Reboot, &[])?);
        self.hello = await_hello(&self.channel, &mut self.qemu, &self.folder, Instant::now() + BOOT_LIMIT)?;
        ensure!(self.hello.boot != before, "the same boot said hello twice");
        *self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = 0;
        Ok(())
    }

    /// Powers the guest off from inside and waits for QEMU's end.
    ///
    /// # Errors
    /// When it does not end, or not well.
    pub fn poweroff(mut self) -> anyhow::Result<()> {
        drop(self.channel.request(|_| Request::Poweroff, &[])?);
        let status = self.qemu.wait(COMMAND_LIMIT).with_context(|| self.logs())?;
        ensure!(status.success(), "QEMU ended with {status}\n{}", self.logs());
        Ok(())
    }

    /// Kills QEMU: the guest's power cut.
    pub fn kill(mut self) {
        self.qemu.kill();
    }

    /// QEMU's exit status if it ended by itself.
    ///
    /// # Errors
    /// From the operating system.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.qemu.ended()?)
    }

    /// What `error`, the end of a talk with the guest, comes from: the guest's death if QEMU ends about now.
    #[must_use]
    pub fn why(&mut self, error: anyhow::Error) -> anyhow::Error {
        // The socket closes a moment before the process is gone; its exit status says more.
        match self.qemu.wait(Duration::from_secs(2)) {
            Ok(status) => qemu_ended(status, &self.folder),
            Err(_) => error,
        }
    }

    /// Ends of the logs, for an error message.
    #[must_use]
    pub fn logs(&self) -> String {
        died::logs(&self.folder)
    }
}

/// The socket in `folder` that QEMU connects the agent's port to; does not block.
pub(crate) fn listen(folder: &Path) -> anyhow::Result<UnixListener> {
    let socket = folder.join(AGENT_SOCKET);
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn await_hello(channel: &Channel, qemu: &mut Child, folder: &Path, until: Instant) -> anyhow::Result<Hello> {
    loop {
        match channel.hello(Duration::from_millis(50)) {
            Ok(Some(hello)) => return Ok(hello),
            Ok(None) => {}
            Err(error) => {
                // The socket closes a moment before the process is gone; its exit status says more.
                let _ = qemu.wait(Duration::from_secs(2));
                check_alive(qemu, folder)?;
                return Err(Died::new(folder, &format!("{error:#}")).into());
            }
        }
        check_alive(qemu, folder)?;
        let died = |how| -> anyhow::Result<()> { Err(Died::new(folder, how).into()) };
        if qemu_stopped(folder) {
            died("QEMU stopped the guest")?;
        }
        if Instant::now() >= until {
            died("the guest's agent was not heard in time")?;
        }
    }
}

/// A KVM that cannot go on leaves QEMU alive with a paused guest.
fn qemu_stopped(folder: &Path) -> bool {
    let log = fs::read_to_string(folder.join(QEMU_LOG)).unwrap_or_default();
    log.contains("KVM internal error") || log.contains("KVM: entry failed")
}

fn check_alive(qemu: &mut Child, folder: &Path) -> anyhow::Result<()> {
    match qemu.ended()? {
        Some(status) => Err(qemu_ended(status, folder)),
        None => Ok(()),
    }
}

/// The guest's death, but for what QEMU says with exit code 1: then it takes its arguments, or a file they
/// name, for wrong and has not started a guest.
pub(crate) fn qemu_ended(status: ExitStatus, folder: &Path) -> anyhow::Error {
    match status.code() {
        Some(1) => anyhow!("QEMU does not start a guest with these arguments\n{}", died::logs(folder)),
        _ => Died::new(folder, &format!("QEMU ended with {status}")).into(),
    }
}
