//! The oracle: it accuses who is guilty, by name, and nobody else.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};

use crate::host::nvme::{Range, copy, io};
use crate::host::*;

/// Memory as namespace 1, a file as 2.
const NAMESPACES: &str = "--nvme cdfe=0xc --nvme-ns drive=memory,size=1M,oracle=on \
    --nvme-ns drive={}/a.img,size=1M,copy_method=bounce,oracle=on";

fn start(args: &str) -> (Daemon, Control) {
    let daemon = Daemon::start(&format!("--control {{}}/c {NAMESPACES} {args}"));
    let control = Control::connect(&daemon.file("c"));
    (daemon, control)
}

fn write(host: &mut Host, nsid: u32, slba: u64, fill: u8) {
    host.send(1, Sqe::new(io::WRITE).nsid(nsid).lba(slba, 8), &[fill; 4096]).ok();
}

fn copy_to(host: &mut Host, nsid: u32, sdlba: u64, ranges: &[Range]) {
    let list: Vec<u8> = ranges.iter().flat_map(|range| range.bytes(0)).collect();
    host.send(1, copy(nsid, sdlba, ranges.len(), 0), &list).ok();
}

fn scan(control: &mut Control) -> Value {
    control.ok(json!({ "command": "oracle" }))
}

#[track_caller]
fn accused(control: &mut Control, of: &str) {
    let (text, _) = control.refused(json!({ "command": "oracle" }));
    assert!(text.contains(of), "{text}");
}

#[test]
fn a_device_that_is_right_is_not_accused() {
    let (mut daemon, mut control) = start("");
    let mut host = Host::with_queues(&daemon, 1, 16);
    for nsid in [1, 2] {
        for fill in 1..9 {
            write(&mut host, nsid, u64::from(fill) * 8, fill);
        }
        copy_to(&mut host, nsid, 1000, &[Range::new(8, 8), Range::new(32, 3)]);
        // Over its own sources.
        copy_to(&mut host, nsid, 20, &[Range::new(16, 8), Range::new(24, 8)]);
        host.exec(1, Sqe::new(io::WRITE_ZEROES).nsid(nsid).lba(1002, 4)).ok();
    }
    let answer = scan(&mut control);
    let all = json!({ "checked": 2048, "unknown": 0, "never": 0, "differing": 0 });
    assert_eq!(answer["scans"][0]["blocks"], all);
    assert_eq!(answer["scans"][1]["blocks"]["differing"], 0);
    assert_eq!(scan(&mut control)["scans"][1]["blocks"]["never"], 0, "known by now");
    daemon.stop();
    assert!(daemon.log().contains("none differs"), "{}", daemon.log());
}

#[test]
fn a_copy_that_says_more_than_it_did_is_found() {
    for nsid in [1, 2] {
        let (mut daemon, mut control) = start("--fault op=copy,status=success,partial=prefix:1");
        let mut host = Host::with_queues(&daemon, 1, 16);
        write(&mut host, nsid, 0, 1);
        write(&mut host, nsid, 8, 2);
        write(&mut host, nsid, 1000, 3);
        write(&mut host, nsid, 1008, 3);
        copy_to(&mut host, nsid, 1000, &[Range::new(0, 8), Range::new(8, 8)]);
        accused(&mut control, &format!("nsid {nsid} LBA 0x3f0 should hold the data of Copy"));
        daemon.stop();
        assert!(daemon.log().contains(&format!("oracle: nsid {nsid} LBA 0x3f0")), "{}", daemon.log());
    }
}

#[test]
fn what_was_flipped_on_its_way_is_found_at_the_read() {
    for op in ["read", "write"] {
        let (mut daemon, mut control) = start(&format!("--fault op={op},lba=17,xor=01@5"));
        let mut host = Host::with_queues(&daemon, 1, 16);
        write(&mut host, 2, 16, 7);
        host.send(1, Sqe::new(io::READ).nsid(2).lba(16, 8), &[0; 4096]).ok();
        accused(&mut control, "nsid 2 LBA 0x11 should hold the data of Write");
        daemon.stop();
    }
}

#[test]
fn an_image_that_somebody_else_changes_is_found() {
    let (mut daemon, mut control) = start("");
    let mut host = Host::with_queues(&daemon, 1, 16);
    write(&mut host, 2, 40, 5);
    scan(&mut control);
    let image = OpenOptions::new().write(true).open(daemon.file("a.img")).expect("the image");
    image.write_all_at(&[0; 512], 43 * 512).expect("written");
    accused(&mut control, "nsid 2 LBA 0x2b");
    daemon.stop();
    assert!(daemon.log().contains("and holds zeroes"), "{}", daemon.log());
}

#[test]
fn without_it_there_is_nothing() {
    let mut daemon = Daemon::start("--control {}/c --nvme-ns drive=memory,size=1M");
    let mut control = Control::connect(&daemon.file("c"));
    assert_eq!(scan(&mut control), json!({ "differs": false, "scans": [], "seen": [] }));
    daemon.stop();
    assert!(!daemon.log().contains("oracle"), "{}", daemon.log());
}
