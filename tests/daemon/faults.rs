//! Fault rules on the command line and by the control socket. What each of them does: tests/faults/scripted.

use std::time::Duration;

use serde_json::{Value, json};

use crate::host::daemon::run;
use crate::host::nvme::io;
use crate::host::*;

fn flush() -> Sqe {
    Sqe::new(io::FLUSH).nsid(1)
}

fn verify() -> Sqe {
    Sqe::new(io::VERIFY).nsid(1).lba(0, 8)
}

fn start(args: &str) -> (Daemon, Control) {
    let daemon = Daemon::start(&format!("--control {{}}/c --nvme-ns drive=memory,size=1M {args}"));
    let control = Control::connect(&daemon.file("c"));
    (daemon, control)
}

fn list(control: &mut Control) -> Value {
    control.ok(json!({ "command": "fault", "action": "list" }))["rules"].take()
}

#[test]
fn rules_of_the_command_line_meet_the_first_command() {
    let (mut daemon, mut control) = start(
        "--fault op=flush,status=internal-error,times=1,name=cut --fault op=verify,after=cut,drop,times=1",
    );
    let mut host = Host::with_queues(&daemon, 1, 16);
    host.exec(1, verify()).ok();
    assert_eq!(host.exec(1, flush()).code(), 6);
    let lost = host.submit(1, verify());
    host.exec(1, flush()).ok();
    assert!(host.try_wait(1, lost, Duration::from_millis(50)).is_none());
    host.forget(1);
    let rules = list(&mut control);
    assert_eq!(
        rules[0],
        json!({
            "name": "cut", "rule": "op=flush,status=internal-error,times=1,name=cut", "seed": null, "matched": 1,
            "fired": 1, "held": 0, "bad_blocks": null, "spent": true,
        })
    );
    assert_eq!(json!([rules[1]["name"], rules[1]["fired"]]), json!(["1", 1]));
    daemon.stop();
    assert!(daemon.log().contains("fault cut fired (1): Flush sqid 1"), "{}", daemon.log());
}

#[test]
fn rules_come_and_go_by_the_control_socket() {
    let (mut daemon, mut control) = start("--socket {}/t");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let path = daemon.file("c");
    let ctl = |words: &[&str]| {
        let output = run(&[&["ctl", path.to_str().unwrap(), "fault"], words].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    // In words, as they are typed.
    let (code, out, err) = ctl(&["add", "name=stuck", "op=flush", "stall", "times=1"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("name: stuck\nrule: name=stuck op=flush stall times=1\n"), "{out}");
    let held = host.submit(1, flush());
    host.exec(1, verify()).ok();
    assert_eq!(list(&mut control)[0]["held"], 1);
    assert_eq!(ctl(&["release", "stuck"]).1, "released: 1\n");
    host.wait(1, held).ok();
    // Rules are for all controllers.
    control.ok(json!({ "command": "fault", "action": "add", "rule": "op=verify status=MEDIUM dnr" }));
    let mut other = Host::cold(&daemon.file("t"));
    other.enable();
    other.io_queues(1, 16);
    for host in [&mut host, &mut other] {
        assert_eq!(host.exec(1, verify()).status, 0x4281);
    }
    assert_eq!(ctl(&["clear", "all"]).1, "cleared: 2\n");
    host.exec(1, verify()).ok();
    for (words, code, said) in [
        (&["add", "op=flush"][..], 1, "the rule: does nothing; expected say what the command meets"),
        (&["add"], 1, "fault add needs a rule"),
        (&["add", "statsu=IOERR"], 1, "statsu: is no word of a rule; expected did you mean status?"),
        (&["clear", "gone"], 1, "no rule is called \"gone\"; expected a rule; there is none"),
        (&["release", "gone"], 1, "no rule is called \"gone\""),
        (&["list", "gone"], 1, "no rule is called \"gone\""),
        (&["lists"], 2, "action cannot be \"lists\"; expected action: add|list|clear|release"),
    ] {
        let (is, out, err) = ctl(words);
        assert_eq!((is, out.as_str()), (Some(code), ""), "{words:?}: {err}");
        assert!(err.contains(said) && err.lines().count() == 1, "{words:?}: {err}");
    }
    daemon.stop();
}

#[test]
fn a_rule_that_cannot_be_is_a_mistake() {
    for (rules, said) in [
        (&["op=cpoy drop"][..], "--fault op=cpoy: \"cpoy\" is no command; write io, admin"),
        (
            &["op=flush after=x drop"],
            "--fault after=x: is the name of no rule; add that one first, with name=",
        ),
        (
            &["name=a drop", "name=a drop"],
            "--fault name=a: is the name of a rule already; choose another one",
        ),
    ] {
        let mut words = vec!["serve", "--socket", "/tmp/never.sock"];
        rules.iter().for_each(|rule| words.extend(["--fault", rule]));
        let output = run(&words);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{err}");
        // Rules that were good are in the log before it.
        assert!(err.lines().last().unwrap().contains(said), "{err}");
    }
}

/// The device sleeps as long as it holds something.
#[test]
fn holding_costs_no_processor() {
    let (daemon, _control) =
        start("--fault op=flush,stall --fault op=verify,delay=600ms --fault op=get-features,stall");
    let mut host = Host::with_queues(&daemon, 1, 16);
    host.submit(1, flush());
    host.submit(0, Sqe::new(nvme::admin::GET_FEATURES).cdw(10, 7));
    let late = host.submit(1, verify());
    std::thread::sleep(Duration::from_millis(50));
    let before = daemon.ticks();
    host.wait(1, late).ok();
    let used = daemon.ticks() - before;
    assert!(used < 6, "{used} of 55 ticks");
}
