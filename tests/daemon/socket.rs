//! Who may connect, and a socket that somebody else has made.

use std::fs::Permissions;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};

use crate::host::ctrl::reg;
use crate::host::daemon::{run, start};
use crate::host::*;

fn access(d: &Daemon) -> (u32, u32) {
    let metadata = std::fs::metadata(d.socket()).unwrap();
    (metadata.mode() & 0o7777, metadata.gid())
}

/// Whatever umask it is started with.
#[test]
fn the_mode_is_the_one_that_was_asked_for() {
    for (umask, args, mode) in [
        ("000", "", 0o600),
        ("777", "", 0o600),
        ("077", "--socket-mode 0660", 0o660),
        ("022", "--socket-mode 666", 0o666),
    ] {
        let mut d = Daemon::start_by(&format!(r#"umask {umask}; exec "$@""#), args);
        d.client();
        assert_eq!(access(&d).0, mode, "umask {umask} {args}");
        d.stop();
    }
}

/// By name or number; who gives a group means that it may connect.
#[test]
fn the_group_is_the_one_that_was_asked_for() {
    let mine = rustix::process::getgid().as_raw();
    let (args, gid) = if rustix::process::getuid().is_root() {
        (vec!["--socket-group daemon".to_owned(), "--socket-group 1".to_owned()], 1)
    } else {
        (vec![format!("--socket-group {mine}")], mine)
    };
    for args in args {
        let d = Daemon::start(&args);
        d.client();
        assert_eq!(access(&d), (0o660, gid), "{args}");
    }
    let d = Daemon::start(&format!("--socket-group {mine} --socket-mode 0620"));
    d.client();
    assert_eq!(access(&d), (0o620, mine));
}

#[test]
fn mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let socket = socket.to_str().unwrap();
    let file = std::fs::File::create(folder.path().join("file")).unwrap();
    let (pair, _other) = UnixStream::pair().unwrap();
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    fcntl_setfd(&pair, FdFlags::empty()).unwrap();
    let (file, pair) = (file.as_raw_fd().to_string(), pair.as_raw_fd().to_string());
    for (args, names) in [
        (&["--socket", socket, "--socket-mode", "0899"][..], &["--socket-mode", "0899", "0660"][..]),
        (&["--socket", socket, "--socket-mode", "1777"], &["--socket-mode", "1777"]),
        (&["--socket", socket, "--socket-group", "nobody-has-this"], &["--socket-group", "nobody-has-this"]),
        (&["--socket", socket, "--fd", "3"], &["--socket", "--fd"]),
        (&["--fd", "3", "--socket-mode", "0660"], &["--fd", "--socket-mode"]),
        (&["--fd", "987"], &["--fd", "987"]),
        (&["--fd", "-1"], &["--fd", "-1"]),
        (&["--fd", &file], &["--fd", &file, "socket"]),
        (&["--fd", &pair], &["--fd", &pair, "listen"]),
    ] {
        let mut all = vec!["serve"];
        all.extend(args);
        let o = run(&all);
        let text = String::from_utf8_lossy(&o.stderr);
        assert_eq!(o.status.code(), Some(2), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        for name in names {
            assert!(text.contains(name), "{args:?}: {name:?} is not named in: {text}");
        }
    }
    assert!(!std::path::Path::new(socket).exists());
}

/// As systemd starts a service when the first client comes: the client that has come already is served, and
/// the socket stays where it is for the next time.
#[test]
fn a_socket_of_somebody_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let mut early = Some(Client::connect(&path));
    fcntl_setfd(&listener, FdFlags::empty()).unwrap();
    let mut serials = Vec::new();
    for _ in 0..2 {
        let mut child = start(&["serve", "--fd", &listener.as_raw_fd().to_string()]);
        if let Some(mut early) = early.take() {
            early.version(0, None);
        }
        let mut h = Host::with_client(Client::attach_when_free(&path));
        assert_eq!(h.client.r32(reg::VS), 0x0002_0000);
        h.enable();
        serials.push(h.identify(1, 0)[4..24].to_vec());
        drop(h);
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < DEADLINE);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let o = child.wait_with_output().unwrap();
        assert!(o.status.success(), "{o:?}");
        let said = String::from_utf8_lossy(&o.stdout);
        assert!(said.contains(path.to_str().unwrap()), "{said}");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o640, "it is not ours");
    }
    assert_eq!(serials[0], serials[1], "the socket's path names the device");
}
