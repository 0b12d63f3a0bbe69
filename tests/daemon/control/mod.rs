//! The control socket: what it shows, what it changes, and whom it does not let near.

mod clients;
mod controllers;
mod namespaces;
mod shown;

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::host::daemon::run;
use crate::host::nvme::{Range, copy, st};
use crate::host::*;

/// Notice, Attached Namespace Attribute Changed, log 04h.
const NAMESPACE_CHANGED: u32 = 0x04_00_02;
const ASYNC_EVENT_REQUEST: u8 = 0x0c;
/// Feature 0Bh and its Attached Namespace Attribute Notices.
const NOTICES: (u8, u32) = (0x0b, 1 << 8);

fn start(args: &str) -> (Daemon, Control) {
    let daemon = Daemon::start(&format!("--control {{}}/c {args}"));
    let control = Control::connect(&daemon.file("c"));
    (daemon, control)
}

/// `ctl` with these words; what it prints.
#[track_caller]
fn ctl(daemon: &Daemon, words: &[&str]) -> (Option<i32>, String, String) {
    let path = daemon.file("c");
    let output = run(&[&["ctl", path.to_str().unwrap()], words].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The event that ends this request, if one comes.
fn event(host: &mut Host, cid: u16) -> Option<Cqe> {
    host.try_wait(0, cid, std::time::Duration::from_millis(50))
}

/// A Copy of so many blocks.
fn copied(host: &mut Host, nlb: u16) -> Cqe {
    host.send(1, copy(1, 1000, 1, 0), &Range::new(0, nlb.into()).bytes(0))
}

#[test]
fn status_is_what_there_is() {
    let (mut daemon, mut control) =
        start("--socket {}/t --nvme-ns drive=memory,size=1M,mssrl=7 --nvme-ns drive={}/x,size=4M,nsid=5");
    let status = control.ok(json!({ "command": "status" }));
    assert_eq!(status["pid"], daemon.pid());
    let idle = |cntlid: u16| json!([cntlid, Value::Null, false, false, false]);
    let of =
        |port: &Value| json!([port["cntlid"], port["client"], port["enabled"], port["ready"], port["fatal"]]);
    let ports = status["controllers"].as_array().unwrap();
    assert_eq!(ports.iter().map(of).collect::<Vec<_>>(), [idle(0), idle(1)]);
    assert_eq!(ports[1]["socket"], daemon.file("t").to_str().unwrap());
    assert_eq!(
        status["namespaces"][0],
        json!({
            "nsid": 1, "attached": true, "drive": "memory", "size": 1 << 20, "logical_block_size": 512,
            "nsze": 2048, "readonly": false, "mssrl": 7, "mcl": 131_072, "msrc": 126,
            "copy_overlap": "snapshot", "copy_method": "auto",
        })
    );
    assert_eq!(status["namespaces"][1]["drive"], daemon.file("x").to_str().unwrap());
    let host = Host::attach(&daemon);
    let status = control.ok(json!({ "command": "status" }));
    let port = &status["controllers"][0];
    assert!(port["client"].as_str().unwrap().contains(&format!("process {}", std::process::id())), "{port}");
    assert_eq!(json!([port["enabled"], port["ready"]]), json!([true, true]));
    drop(host);
    daemon.stop();
    assert!(!daemon.file("c").exists(), "the control socket is left behind");
}

#[test]
fn a_limit_changes_under_a_host() {
    let (mut daemon, mut control) = start("--nvme-ns drive=memory,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    host.set_feature(NOTICES.0, NOTICES.1).ok();
    let event = host.submit(0, Sqe::new(ASYNC_EVENT_REQUEST));
    copied(&mut host, 64).ok();
    let now = control.ok(json!({ "command": "set", "nsid": 1, "mssrl": 63, "mcl": 126, "msrc": 1 }));
    assert_eq!(json!([now["mssrl"], now["mcl"], now["msrc"]]), json!([63, 126, 1]));
    assert_eq!(host.wait(0, event).dw0, NAMESPACE_CHANGED);
    let (_, log) = host.log(0x04, 0xffff_ffff, 0, 4096);
    assert_eq!((&log[..4], &log[4..8]), (&[1, 0, 0, 0][..], &[0; 4][..]));
    let facts = Ns::facts(&mut host, 1);
    assert_eq!((facts.mssrl, facts.mcl, host.identify(0, 1)[80]), (63, 126, 1));
    copied(&mut host, 64).is(st::SIZE_LIMIT, "one block too many");
    copied(&mut host, 63).ok();
    // By words.
    let (code, out, err) = ctl(&daemon, &["set", "nsid=1", "mssrl=64", "copy_overlap=reject"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("\nmssrl: 64\n") && out.contains("\ncopy_overlap: reject\n"), "{out}");
    copied(&mut host, 64).ok();
    let onto_itself = Range::new(999, 2).bytes(0);
    host.send(1, copy(1, 1000, 1, 0), &onto_itself).is(st::OVERLAP, "rejected");
    daemon.stop();
}

#[test]
fn writes_stop_and_go_on() {
    let (mut daemon, mut control) =
        start("--nvme-ns drive=memory,size=1M --nvme-ns drive={}/x,size=1M,readonly=off");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let mut ns = Ns::identify(&mut host, 1);
    host.write(1, &mut ns, 0, 8, 1);
    control.ok(json!({ "command": "set", "nsid": 1, "readonly": "on" }));
    let write = |host: &mut Host| host.exec(1, Sqe::new(nvme::io::WRITE_ZEROES).nsid(1).lba(0, 8));
    write(&mut host).is(st::WRITE_PROTECTED, "read-only");
    assert_eq!(host.identify(0, 1)[99] & 1, 1, "NSATTR");
    ns.verify(&mut host, 1);
    control.ok(json!({ "command": "set", "nsid": 1, "readonly": false }));
    write(&mut host).ok();
    daemon.stop();
}

#[test]
fn what_is_refused_says_what_was_expected() {
    let (daemon, mut control) =
        start("--nvme-ns drive=memory,size=1M --nvme-ns drive=memory,size=1M,nsid=3,readonly=on");
    for (request, text, expected) in [
        (json!({ "command": "statu" }), "no command \"statu\"", "status, set"),
        (json!({ "command": "status", "all": true }), "no argument \"all\"", "no argument"),
        (json!({ "command": "set" }), "nothing is to be set", "nsid and some of mssrl"),
        (json!({ "command": "resize", "nsid": 1 }), "needs size", "size: bytes"),
        (json!({ "command": "set", "mssrl": 1 }), "mssrl is a namespace's", "nsid as well"),
        (json!({ "command": "set", "nsid": 2, "msrc": 0 }), "no namespace 2", "nsid: 1, 3"),
        (json!({ "command": "set", "nsid": 1 }), "nothing is to be set", "mssrl"),
        (json!({ "command": "set", "nsid": 1, "mssrl": 65536 }), "mssrl cannot be 65536", "mssrl: 0..65535"),
        (json!({ "command": "set", "nsid": 1, "mssrl": "many" }), "mssrl cannot be \"many\"", "0..65535"),
        (json!({ "command": "set", "nsid": 1, "mssrl": 0 }), "mssrl cannot be 0", "allow=broken"),
        (json!({ "command": "set", "nsid": 1, "mcl": 0, "mssrl": 1 }), "mcl cannot be 0", "allow=broken"),
        (json!({ "command": "set", "nsid": 1, "copy_method": "magic" }), "\"magic\"", "auto|reflink|offload"),
        (json!({ "command": "set", "nsid": 3, "readonly": "off" }), "for reading only", "readonly=on"),
    ] {
        let (is_text, is_expected) = control.refused(request.clone());
        assert!(is_text.contains(text), "{request}: {is_text}");
        assert!(is_expected.contains(expected), "{request}: {is_expected}");
    }
    // Nothing has changed.
    let mut host = Host::with_queues(&daemon, 1, 16);
    assert_eq!(Ns::facts(&mut host, 1).mssrl, 32768);
    // What no device may have, for hosts that must survive it.
    control.ok(json!({ "command": "set", "nsid": 1, "mssrl": 0, "mcl": 0, "allow": "broken" }));
    let facts = Ns::facts(&mut host, 1);
    assert_eq!((facts.mssrl, facts.mcl), (0, 0));
    copied(&mut host, 1).is(st::SIZE_LIMIT, "no block at all");
}

#[test]
fn mistakes_of_ctl() {
    let (daemon, _control) = start("");
    for (words, code, said) in [
        (&["statu"][..], 2, "no command \"statu\"; expected help, status"),
        (&["set", "nsid=1", "mssrl=x"], 2, "mssrl cannot be \"x\"; expected mssrl: 0..65535"),
        (&["set", "nsid=9", "mssrl=1"], 1, "no namespace 9"),
        (&["status", "--all"], 2, "no argument \"all\""),
    ] {
        let (is, out, err) = ctl(&daemon, words);
        assert_eq!((is, out.as_str()), (Some(code), ""), "{words:?}: {err}");
        assert!(err.starts_with("error: ") && err.contains(said) && err.lines().count() == 1, "{err}");
    }
    let none = run(&["ctl", "/nowhere/c", "status"]);
    let err = String::from_utf8_lossy(&none.stderr);
    assert!(none.status.code() == Some(1) && err.contains("/nowhere/c: cannot connect"), "{err}");
    // As JSON it is what the device sent.
    let (code, out, err) = ctl(&daemon, &["status", "--json"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let status: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((status["pid"].as_u64(), out.lines().count()), (Some(daemon.pid().into()), 1));
}

#[test]
fn the_socket_is_its_owners_alone() {
    let (daemon, _control) = start("");
    let mode = std::fs::metadata(daemon.file("c")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // One that is in use is not taken away; one that nobody listens on is replaced, and nothing else is.
    let other = daemon.file("t");
    let taken =
        run(&["serve", "--socket", other.to_str().unwrap(), "--control", daemon.file("c").to_str().unwrap()]);
    let err = String::from_utf8_lossy(&taken.stderr);
    assert!(taken.status.code() == Some(2) && err.contains("--control: ") && err.contains("in use"), "{err}");
    let file = daemon.file("precious");
    std::fs::write(&file, "data").unwrap();
    let refused = run(&["serve", "--socket", other.to_str().unwrap(), "--control", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(std::fs::read(&file).unwrap(), b"data");
    let mut daemon = daemon;
    daemon.kill();
    assert!(daemon.file("c").exists(), "nobody was there to remove it");
    daemon.again();
    Control::connect(&daemon.file("c"));
    daemon.stop();
}
