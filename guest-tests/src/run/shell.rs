//! A shell on the guest's console, in our terminal.

use std::fs;
use std::io::BufReader;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use guest_agent::wire::{self, Reply};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::Deadline;
use super::ends;
use super::options::Options;
use crate::case::Folder;
use crate::child::Child;
use crate::died::{Died, last_words};
use crate::guest::{QEMU_COMMAND, listen, qemu_ended};
use crate::setup::Qemu;
use crate::undo::Undo;
use crate::vm::{Vm, typed};

/// Boots and waits until QEMU is gone; the exit code is the shell's.
pub(super) fn run(options: &Options, qemu: &Qemu, vm: &Vm, folder: &Folder) -> anyhow::Result<ExitCode> {
    eprintln!("a shell in the guest; end it with `exit`, QEMU with Ctrl-A X");
    // QEMU puts the terminal back itself, unless it is killed.
    let _terminal = tcgetattr(std::io::stdin()).ok().map(|saved| {
        Undo::new(move || {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &saved);
        })
    });
    let deadline = Deadline::new(options.timeout);
    let end = listen_for_the_end(listen(folder.path())?);
    let command = vm.command(qemu, folder.path());
    fs::write(folder.file(QEMU_COMMAND), typed(&command) + "\n")?;
    let mut qemu = Child::spawn_in_terminal(command, "QEMU")?;
    let status = loop {
        if let Some(status) = qemu.ended()? {
            break status;
        }
        if deadline.over() {
            return deadline.blame(anyhow::anyhow!("the shell has not ended"));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if !last_words(folder.path()).is_empty() {
        return Err(Died::new(folder.path(), "the guest ended").into());
    }
    if !status.success() {
        return Err(ends::before(qemu_ended(status, folder.path())));
    }
    // Nothing is said by a kernel without the port, nor when somebody else than the shell ends the guest.
    let code = end.recv_timeout(Duration::from_millis(500)).unwrap_or(0);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// What the guest's init says when the shell has ended.
fn listen_for_the_end(listener: UnixListener) -> Receiver<i32> {
    let (say, said) = channel();
    std::thread::spawn(move || {
        let connected = listener.set_nonblocking(false).and_then(|()| listener.accept());
        let Ok((stream, _)) = connected else { return };
        let mut from = BufReader::new(stream);
        while let Ok(Some((reply, _))) = wire::receive::<Reply>(&mut from) {
            if let Reply::Exit { code, .. } = reply {
                let _ = say.send(code);
            }
        }
    });
    said
}
