//! Clients that behave badly, or too many: the device goes on, and its memory stays what it is.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{ctl, start};
use crate::host::*;

/// What a device may grow by for whatever is done at its control socket.
const SLACK: u64 = 4 << 20;

/// An answer that waits for nothing.
const AT_ONCE: Duration = Duration::from_secs(2);

/// The device serves its host and its owner, soon.
fn is_well(host: &mut Host, control: &mut Control) {
    let start = Instant::now();
    let mut ns = Ns::identify(host, 1);
    host.write(1, &mut ns, 0, 8, 1);
    ns.verify(host, 1);
    assert_eq!(control.ok(json!({ "command": "status" }))["controllers"][0]["ready"], true);
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
}

#[test]
fn a_thousand_malformed_requests() {
    let (mut daemon, mut control) = start("--nvme-ns drive=memory,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let mut rng = Rng::new(7);
    let good = [
        json!({ "id": 1, "command": "set", "nsid": 1, "mssrl": 64, "copy_overlap": "reject" }),
        json!({ "id": "x", "command": "resize", "nsid": 1, "size": "1M" }),
        json!({ "command": "add", "ns": "drive=memory,size=1M" }),
    ]
    .map(|request| request.to_string());
    let mut round = |control: &mut Control, count: usize| {
        for n in 0..count {
            // A good one with a byte less, a byte changed or its end cut off; and plain noise.
            let mut bytes = good[n % 3].clone().into_bytes();
            let at = rng.below(bytes.len() as u64) as usize;
            match rng.below(4) {
                0 => drop(bytes.remove(at)),
                1 => bytes[at] = rng.below(256) as u8,
                2 => bytes.truncate(at),
                _ => bytes = (0..at * 7).map(|_| rng.below(256) as u8).collect(),
            }
            bytes.retain(|byte| *byte != b'\n');
            // Nothing of it may change what the next test counts on.
            bytes.extend_from_slice(b"{}\n");
            control.send(&bytes);
            let answer = control.line().expect("every line is answered");
            let error = &answer["error"];
            assert!(error["text"].is_string() && error["expected"].is_string(), "{answer}");
        }
    };
    round(&mut control, 100);
    let before = daemon.resident();
    round(&mut control, 1000);
    let grown = daemon.resident().saturating_sub(before);
    assert!(grown < SLACK, "{grown} bytes more");
    is_well(&mut host, &mut control);
    daemon.stop();
}

#[test]
fn a_line_without_end() {
    let (mut daemon, mut control) = start("--nvme-ns drive=memory,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let mut other = Control::connect(&daemon.file("c"));
    // As long as can be is fine.
    let line =
        format!("{:width$}", json!({ "id": 5, "command": "help" }).to_string(), width = (64 << 10) - 1);
    other.send(line.as_bytes());
    other.send(b"\n");
    assert_eq!(other.line().expect("an answer")["id"], 5);
    let before = daemon.resident();
    let piece = [b'x'; 4096];
    let stream = other.from.get_mut();
    // The device hangs up in the middle of it.
    let sent = (0..100_000).take_while(|_| stream.write_all(&piece).is_ok()).count();
    assert!(sent < 1000, "{sent} pieces");
    let grown = daemon.resident().saturating_sub(before);
    assert!(grown < SLACK, "{grown} bytes more");
    // What is wrong was said, if the hanging up has not overtaken it.
    let mut other = Control::connect(&daemon.file("c"));
    other.send(&[b'x'; 64 << 10]);
    let answer = other.line().expect("it is said");
    assert!(answer["error"]["expected"].as_str().unwrap().contains("65536 bytes"), "{answer}");
    assert_eq!(other.line(), None);
    is_well(&mut host, &mut control);
    daemon.stop();
}

#[test]
fn one_client_too_many() {
    let (mut daemon, mut control) = start("--nvme-ns drive=memory,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let mut all: Vec<_> = (1..32).map(|_| Control::connect(&daemon.file("c"))).collect();
    all.iter_mut().for_each(|one| assert!(one.ok(json!({ "command": "help" })).is_array()));
    let mut text = String::new();
    UnixStream::connect(daemon.file("c")).unwrap().read_to_string(&mut text).unwrap();
    let refused: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(refused["error"]["text"], "32 clients are connected already");
    let (code, _, err) = ctl(&daemon, &["status"]);
    assert!(code == Some(1) && err.contains("32 clients are connected already"), "{err}");
    is_well(&mut host, &mut control);
    // Who goes makes room.
    all.truncate(30);
    let start = Instant::now();
    while ctl(&daemon, &["status"]).0 != Some(0) {
        assert!(start.elapsed() < DEADLINE, "there is still no room");
    }
    daemon.stop();
}

#[test]
fn a_client_that_never_reads() {
    let (mut daemon, mut control) = start("--nvme-ns drive=memory,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let threads = daemon.threads();
    let before = daemon.resident();
    let mut deaf = UnixStream::connect(daemon.file("c")).unwrap();
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    // Until the device takes no more of them: it does not keep answers that nobody takes.
    let request = b"{\"command\":\"help\"}\n".repeat(1000);
    while deaf.write_all(&request).is_ok() {}
    let start = Instant::now();
    let mut most = 0;
    while start.elapsed() < DEADLINE * 2 {
        is_well(&mut host, &mut control);
        most = most.max(daemon.resident());
        if daemon.threads() == threads {
            assert!(most.saturating_sub(before) < SLACK, "{before} bytes, then {most}");
            daemon.stop();
            return;
        }
    }
    panic!("the client is not let go");
}

#[test]
fn a_ctl_that_is_killed() {
    let (mut daemon, mut control) = start("--nvme-ns drive=memory,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let (files, threads) = (daemon.open_files(), daemon.threads());
    let path = daemon.file("c");
    for n in 0..60 {
        let mut child = std::process::Command::new(program("vfio-user-nvme"))
            .args(["ctl", path.to_str().unwrap(), ["status", "inspect", "drain"][n % 3]])
            .stdout(Stdio::null())
            .spawn()
            .expect("ctl");
        std::thread::sleep(Duration::from_micros(100 * n as u64));
        let _ = child.kill();
        child.wait().unwrap();
    }
    let start = Instant::now();
    while (daemon.open_files(), daemon.threads()) != (files, threads) {
        assert!(start.elapsed() < DEADLINE, "something is left of clients that were killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    is_well(&mut host, &mut control);
    daemon.stop();
}

/// What is asked while it ends is answered, or said to be over; nobody waits for it.
#[test]
fn quit_ends_it_as_sigterm_does() {
    let (mut daemon, mut control) = start("--nvme-ns drive={}/a,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let mut ns = Ns::identify(&mut host, 1);
    host.fill(1, &mut ns, 1);
    let mut idle = Control::connect(&daemon.file("c"));
    let (code, out, err) = ctl(&daemon, &["quit"]);
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "", ""));
    assert_eq!(daemon.wait(DEADLINE).code(), Some(0));
    assert!(daemon.log().contains("flushed"), "{}", daemon.log());
    assert_eq!([daemon.file("s").exists(), daemon.file("c").exists()], [false, false]);
    assert_eq!([idle.line(), control.line()], [None, None]);
    ns.verify_image(&daemon.file("a"));
}
