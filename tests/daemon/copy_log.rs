//! The copy log: what it says of each Copy is what was asked, what was done, and what the host was told.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::host::control::Control;
use crate::host::daemon::{run, start};
use crate::host::nvme::{Range, copy, io, st};
use crate::host::*;

/// Its lines, once there are so many Copies.
#[track_caller]
fn lines(path: &Path, copies: usize) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).expect("the log is there");
        let whole = text.lines().take(text.matches('\n').count());
        let lines: Vec<Value> = whole.map(|line| serde_json::from_str(line).expect("JSON")).collect();
        if lines.iter().filter(|line| line["record"] == "copy").count() >= copies {
            return lines;
        }
        assert!(start.elapsed() < DEADLINE, "{text}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[track_caller]
fn records(daemon: &Daemon, copies: usize) -> Vec<Value> {
    let lines = lines(&daemon.file("copies"), copies);
    let records: Vec<_> = lines.into_iter().filter(|line| line["record"] == "copy").collect();
    assert_eq!(records.len(), copies);
    records
}

/// `copy-log check` of a log with these words: exit code and what it prints.
fn check(path: &Path, words: &[&str]) -> (Option<i32>, String) {
    let output = run(&[&["copy-log", "check", path.to_str().unwrap()], words].concat());
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

#[track_caller]
fn list(h: &mut Host, nsid: u32, sdlba: u64, format: u8, ranges: &[Range]) -> Cqe {
    let bytes: Vec<u8> = ranges.iter().flat_map(|range| range.bytes(format)).collect();
    h.send(1, copy(nsid, sdlba, ranges.len(), format), &bytes)
}

fn ranges_of(record: &Value) -> Value {
    let moved = record["moved"].as_array().cloned().unwrap_or_default();
    moved.iter().map(|part| json!([part["range"], part["at"], part["len"], part["by"]])).collect()
}

/// Memory as namespaces 1 and 4, files as 2 and 3, and limits of which each can be exceeded alone.
const NAMESPACES: &str = "--nvme cdfe=0xc --nvme-ns drive=memory,size=1M,mssrl=32,mcl=48,msrc=2 \
    --nvme-ns drive={}/a.img,size=1M,copy_method=bounce --nvme-ns drive={}/b.img,size=1M,copy_overlap=reject \
    --nvme-ns drive=memory,size=1M,readonly=on --nvme-ns drive=memory,size=1M,logical_block_size=4096";

#[test]
fn every_field_and_what_moved_the_bytes() {
    let mut d = Daemon::start(&format!("--copy-log {{}}/copies {NAMESPACES}"));
    let mut h = Host::with_queues(&d, 1, 64);
    // Every field of command and descriptor that needs no protection information to be taken.
    let mut descriptor = Range::new(100, 8).bytes(0);
    descriptor[24..28].copy_from_slice(&0xdead_beef_u32.to_le_bytes());
    descriptor[28..30].copy_from_slice(&0x1234_u16.to_le_bytes());
    descriptor[30..32].copy_from_slice(&0x5678_u16.to_le_bytes());
    let bits = 1 << 31 | 1 << 30 | 5 << 26 | 1 << 25 | 1 << 24 | 3 << 12;
    let mut sqe = copy(1, 1000, 1, 0);
    let cdw12 = le::u32_at(&sqe.0, 48);
    sqe = sqe.cdw(12, cdw12 | bits).cdw(2, 0xa2).cdw(3, 0xa3);
    sqe = sqe.cdw(13, 0x0001_0002).cdw(14, 0x0403_0201).cdw(15, 0x4444_3333);
    let cid = h.send(1, sqe, &descriptor).ok().cid;
    list(&mut h, 1, 1200, 0, &[Range::new(0, 8), Range::new(64, 16)]).ok();
    list(&mut h, 2, 0, 2, &[Range::of(1, 0, 8), Range::of(3, 0, 8)]).ok();
    list(&mut h, 3, 512, 0, &[Range::new(0, 100)]).ok();
    d.stop();
    let all = records(&d, 4);
    let first = &all[0];
    assert_eq!(
        *first,
        json!({
            "record": "copy", "number": 1, "time": first["time"], "controller": 0, "sqid": 1, "cid": cid,
            "nsid": 1, "sdlba": 1000, "nr": 1, "format": 0, "fua": true, "lr": true, "prinfor": 3, "prinfow": 5,
            "stcr": true, "stcw": true, "cev": 2, "dspec": 1, "lbtl": 0x0403_0201, "lbat": 0x3333, "lbatm": 0x4444,
            "cdw2": 0xa2, "cdw3": 0xa3,
            "ranges": [{ "slba": 100, "nlb": 8, "elbt": "0xdeadbeef", "elbat": 0x1234, "elbatm": 0x5678 }],
            "namespaces": [{
                "nsid": 1, "nsze": 2048, "logical_block_size": 512, "mssrl": 32, "mcl": 48, "msrc": 2,
                "copy_method": "auto", "copy_overlap": "snapshot", "memory": true,
            }],
            "plan": {
                "bytes": 4096, "durable": true,
                "steps": [{ "order": "any", "stretches": [{ "at": 0, "len": 4096, "method": "memmove" }] }],
            },
            "moved": [{ "range": 0, "at": 0, "len": 4096, "by": "memmove" }],
            "status": { "sct": 0, "sc": 0, "name": "Successful Completion" }, "dw0": 0, "posted": "once",
            "latency_ns": first["latency_ns"],
        })
    );
    assert!(first["latency_ns"].as_u64().is_some_and(|ns| ns > 0 && ns < 60_000_000_000));
    let seen = [&all[1], &all[2], &all[3]].map(ranges_of);
    assert_eq!(seen[0], json!([[0, 0, 4096, "memmove"], [1, 4096, 8192, "memmove"]]));
    assert_eq!(seen[1], json!([[0, 0, 4096, "read-write"], [1, 4096, 4096, "read-write"]]));
    let moved: u64 =
        all[3]["moved"].as_array().unwrap().iter().map(|part| part["len"].as_u64().unwrap()).sum();
    assert_eq!(moved, 51200);
    let names: Vec<_> = all[2]["namespaces"].as_array().unwrap().iter().map(|ns| &ns["nsid"]).collect();
    assert_eq!(names, [2, 1, 3], "the destination, and each source");
    assert_eq!(json!([all[2]["format"], all[2]["ranges"][0]["snsid"]]), json!([2, 1]));
    let lines = lines(&d.file("copies"), 4);
    assert_eq!(json!([lines[0]["record"], lines[0]["schema"]]), json!(["log", 1]));
    assert_eq!(lines.last().unwrap()["record"], "end");
}

#[test]
fn every_refusal_names_its_rule() {
    let mut d = Daemon::start(&format!("--copy-log {{}}/copies {NAMESPACES}"));
    let mut h = Host::with_queues(&d, 1, 64);
    let plain = Range::new(0, 8);
    let reserved = {
        let mut bytes = plain.bytes(0);
        bytes[4] = 1;
        bytes
    };
    let extension = |at: usize| {
        let mut bytes = plain.bytes(0);
        bytes[at] = 1;
        bytes
    };
    let fast = Range { sopt: 1 << 15, ..Range::of(2, 0, 8) };
    let mut expected = Vec::new();
    let mut refused = |rule: &'static str, status: u16, cqe: Cqe| {
        cqe.is(status, rule);
        expected.push((rule, status));
    };
    refused("nsid-invalid", st::INVALID_NS, list(&mut h, 300, 0, 0, &[plain]));
    refused("nsid-inactive", st::INVALID_FIELD, list(&mut h, 9, 0, 0, &[plain]));
    refused("format", st::INVALID_FIELD, h.exec(1, copy(1, 0, 1, 4)));
    refused("directive", st::INVALID_FIELD, h.send(1, copy(1, 0, 1, 0).cdw(12, 1 << 20), &plain.bytes(0)));
    refused("extension", st::INVALID_FIELD, h.send(1, copy(1, 0, 1, 0).cdw(12, 1 << 16), &plain.bytes(0)));
    refused("msrc", st::SIZE_LIMIT, list(&mut h, 1, 0, 0, &[plain; 4]));
    refused("format-guard", st::INVALID_NS, h.send(1, copy(1, 0, 1, 1), &[0; 40]));
    refused("format-guard", st::INVALID_NS, h.send(1, copy(1, 0, 1, 3), &[0; 40]));
    refused("write-protected", st::WRITE_PROTECTED, list(&mut h, 4, 0, 0, &[plain]));
    refused("list-memory", st::DATA_TRANSFER, h.exec(1, copy(1, 0, 1, 0).prp(0x7000_0000_0000, 0)));
    refused("range-reserved", st::INVALID_FIELD, h.send(1, copy(1, 0, 1, 0), &reserved));
    refused("range-extension", st::INVALID_FIELD, h.send(1, copy(1, 0, 1, 0), &extension(18)));
    refused("snsid-invalid", st::INVALID_NS, list(&mut h, 1, 0, 2, &[Range::of(300, 0, 8)]));
    refused("snsid-inactive", st::INVALID_FIELD, list(&mut h, 1, 0, 2, &[Range::of(9, 0, 8)]));
    refused("incompatible", st::INCOMPATIBLE_NS, list(&mut h, 1, 0, 2, &[Range::of(5, 0, 8)]));
    refused("mssrl", st::SIZE_LIMIT, list(&mut h, 1, 100, 0, &[plain, Range::new(0, 33)]));
    refused("mcl", st::SIZE_LIMIT, list(&mut h, 1, 100, 0, &[Range::new(0, 32), Range::new(0, 17)]));
    refused("destination-bounds", st::LBA_RANGE, list(&mut h, 1, 2041, 0, &[plain]));
    refused("source-bounds", st::LBA_RANGE, list(&mut h, 1, 0, 0, &[plain, Range::new(2041, 8)]));
    refused("overlap", st::OVERLAP, list(&mut h, 3, 4, 0, &[plain]));
    refused("fast-copy", st::NOT_FAST | st::DNR, list(&mut h, 3, 100, 2, &[fast]));
    refused("fused", st::INVALID_FIELD, h.send(1, copy(1, 0, 1, 0).flags(1), &plain.bytes(0)));
    let records = records(&d, expected.len());
    for (record, (rule, status)) in records.iter().zip(&expected) {
        assert_eq!(record["refused"]["rule"], *rule, "{record}");
        let told = &record["status"];
        let (sct, sc) = (u64::from(status >> 8 & 7), u64::from(status & 0xff));
        assert_eq!((told["sct"].as_u64(), told["sc"].as_u64()), (Some(sct), Some(sc)), "{rule}");
        assert_eq!(told["dnr"] == true, status & st::DNR != 0, "{rule}");
        assert_eq!(told["more"], true, "{rule}: the Error Information log has it");
        assert!(record["moved"].is_null() && record["plan"].is_null() && record["dw0"] == 0, "{record}");
        assert_ne!(record["refused"]["what"], "");
    }
    let of = |rule: &str| records.iter().find(|record| record["refused"]["rule"] == rule).unwrap();
    assert_eq!(
        json!([of("mssrl")["refused"]["range"], of("source-bounds")["refused"]["range"]]),
        json!([1, 1])
    );
    assert!(of("msrc")["ranges"].is_null(), "its list was not read");
    assert_eq!(of("mcl")["ranges"][1], json!({ "slba": 0, "nlb": 17 }));
    // And `plan` says the same, from the record alone.
    let log = d.file("copies");
    for (number, (rule, _)) in (1..).zip(&expected) {
        // Of a source that was refused the record has no limits; and what memory a host had is not in it.
        if ["snsid-inactive", "snsid-invalid", "incompatible", "fast-copy", "list-memory"].contains(rule) {
            continue;
        }
        let number = number.to_string();
        let output = run(&["plan", "--log", log.to_str().unwrap(), "--number", &number]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{rule}: {text}");
        assert!(text.contains(&format!("\nrule {rule}: ")), "{rule}: {text}");
    }
    d.stop();
}

/// On a file system that shares blocks: what the log says is what the file system did.
fn shared_and_copied(kind: &str) {
    let Some(mount) = Mount::new(kind, 512 << 20) else { return };
    let image = |name: &str| mount.path().join(name).display().to_string();
    let (a, b, c) = (image("a"), image("b"), image("c"));
    let d = Daemon::start(&format!(
        "--copy-log {{}}/copies --nvme-ns drive={a},size=16M,logical_block_size=4096 \
         --nvme-ns drive={b},size=16M,logical_block_size=4096,copy_method=offload \
         --nvme-ns drive={c},size=16M,logical_block_size=512,copy_method=bounce"
    ));
    let mut h = Host::with_queues(&d, 1, 64);
    for nsid in [1, 2, 3] {
        let mut ns = Ns::identify(&mut h, nsid);
        h.fill(1, &mut ns, 1);
        list(&mut h, nsid, ns.nsze / 2, 0, &[Range::new(0, 512), Range::new(1024, 512)]).ok();
        let bytes = [0..512, 1024..1536].map(|blocks| ns.at(blocks.start, 512).to_vec()).concat();
        ns.set(ns.nsze / 2, &bytes);
        ns.verify(&mut h, 1);
    }
    let by: Vec<Value> = records(&d, 3).iter().map(ranges_of).collect();
    let all = |block: u64, by: &str| json!([[0, 0, 512 * block, by], [1, 512 * block, 512 * block, by]]);
    assert_eq!(by, [all(4096, "shared"), all(4096, "kernel"), all(512, "read-write")]);
    let log = d.file("copies");
    assert_eq!(check(&log, &["--all-offloaded", "--nsid", "1"]).0, Some(0));
    assert_eq!(check(&log, &["--moved-by", "kernel", "--nsid", "2"]).0, Some(0));
    let (code, text) = check(&log, &["--all-offloaded"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.starts_with("FAIL: copy 3 (queue 1,"), "{text}");
}

#[test]
fn what_moved_them_on_xfs() {
    shared_and_copied("xfs");
}

#[test]
fn what_moved_them_on_btrfs() {
    shared_and_copied("btrfs");
}

#[test]
fn check_tells_pass_from_fail_from_neither() {
    let mut d = Daemon::start(&format!("--copy-log {{}}/copies {NAMESPACES}"));
    let mut h = Host::with_queues(&d, 1, 64);
    // One copy of 50 blocks, as a block layer cuts it at mssrl=32 and mcl=48.
    list(&mut h, 1, 1000, 0, &[Range::new(0, 32), Range::new(32, 16)]).ok();
    list(&mut h, 1, 1048, 0, &[Range::new(48, 2)]).ok();
    let log = d.file("copies");
    records(&d, 2);
    assert_eq!(check(&log, &["--complete"]).0, Some(4), "it runs on");
    d.stop();
    let good =
        ["--max-ranges", "2", "--max-range-blocks", "32", "--max-blocks", "48", "--expect-total", "25600"];
    let good =
        [&good[..], &["--expect-copies", "2", "--no-errors", "--all-offloaded", "--tiles", "--filled"]]
            .concat();
    let (code, text) = check(&log, &[&good[..], &["--complete"]].concat());
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(
        text,
        "pass: 2 Copies, 0 failed (0 of them refused), 25600 bytes copied, 25 KiB by memmove, 0 dropped\n"
    );
    let (code, text) = check(&log, &["--max-ranges", "1", "--expect-copies", "3"]);
    assert_eq!(code, Some(1));
    let reasons = text.lines().filter(|line| line.starts_with("FAIL: ")).count();
    assert_eq!(reasons, 2, "{text}");
    for (words, names) in [
        (&["--expect-refused", "mssrll"][..], "mssrll"),
        (&["--expect-total", "1 furlong"], "furlong"),
        (&["--max-rangs", "1"], "--max-rangs"),
    ] {
        let (code, text) = check(&log, words);
        assert_eq!((code, text.lines().count()), (Some(2), 1), "{text}");
        assert!(text.contains(names) && text.contains("copy-log --help"), "{text}");
    }
    assert_eq!(check(&d.file("absent"), &[]).0, Some(4));
    std::fs::write(d.file("other"), "hello\n").unwrap();
    assert_eq!(check(&d.file("other"), &[]).0, Some(4));
    let show = run(&["copy-log", "show", log.to_str().unwrap()]);
    let table = String::from_utf8(show.stdout).unwrap();
    assert_eq!((show.status.code(), table.lines().count()), (Some(0), 4), "{table}");
    let page = d.file("page.html");
    let show = run(&["copy-log", "show", log.to_str().unwrap(), "--html", page.to_str().unwrap()]);
    assert_eq!(show.status.code(), Some(0));
    assert!(std::fs::read_to_string(page).unwrap().contains("copy 1: 32 blocks from 1:0 to 1:1000"));
}

/// Whoever follows has a log of their own; and while nobody does nothing is recorded.
#[test]
fn it_is_followed_by_its_control_socket() {
    let mut d = Daemon::start("--control {}/c --nvme-ns drive=memory,size=1M,mssrl=32");
    let mut h = Host::with_queues(&d, 1, 64);
    let mut control = Control::connect(&d.file("c"));
    list(&mut h, 1, 1000, 0, &[Range::new(0, 8)]).ok();
    assert_eq!(
        control.ok(json!({ "command": "copies" })),
        json!({ "copies": 0, "dropped": 0, "followers": 0 })
    );
    control.send(b"{\"command\":\"copies\",\"follow\":true}\n");
    let opening = control.line().expect("the first line of a log");
    assert_eq!(opening["event"]["record"], "log");
    // By words, as a log that check reads.
    let path = d.file("c");
    let mut ctl = start(&["ctl", path.to_str().unwrap(), "copies", "--follow", "--json"]);
    let checked = Command::new(program("vfio-user-nvme"))
        .args(["copy-log", "check", "-", "--complete", "--expect-copies", "2", "--expect-refused", "mssrl=1"])
        .stdin(Stdio::from(ctl.stdout.take().unwrap()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let mut other = Control::connect(&path);
    while other.ok(json!({ "command": "copies" }))["followers"] != 2 {
        assert!(start.elapsed() < DEADLINE, "it does not follow");
    }
    list(&mut h, 1, 1000, 0, &[Range::new(0, 8)]).ok();
    list(&mut h, 1, 1000, 0, &[Range::new(0, 33)]).is(st::SIZE_LIMIT, "one block too many");
    let one = control.line().expect("a Copy")["event"].take();
    assert_eq!(json!([one["record"], one["moved"][0]["by"]]), json!(["copy", "memmove"]));
    assert_eq!(control.line().expect("a Copy")["event"]["refused"]["rule"], "mssrl");
    d.stop();
    assert_eq!(control.line().expect("the end")["event"]["record"], "end");
    assert!(ctl.wait().is_ok());
    let checked = checked.wait_with_output().unwrap();
    let text = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(0), "{text}");
}

/// A full file system under the log is no matter to the device.
#[test]
fn a_log_that_cannot_be_written_hurts_nobody() {
    let mut d = Daemon::start("--copy-log /dev/full --nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 1, 64);
    let mut ns = Ns::identify(&mut h, 1);
    h.fill(1, &mut ns, 3);
    for n in 0..100 {
        list(&mut h, 1, 1000 + n, 0, &[Range::new(0, 8)]).ok();
    }
    h.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
    d.stop();
    let log = d.log();
    assert!(log.contains("copy log /dev/full: No space left on device"), "{log}");
    assert!(log.contains("the copy log ends without its last 100 Copies"), "{log}");
}

#[test]
fn a_file_that_is_no_log_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, "precious").unwrap();
    let socket = dir.path().join("s");
    let serve = |log: &Path| {
        let words = ["serve", "--socket", socket.to_str().unwrap(), "--copy-log", log.to_str().unwrap()];
        let output = run(&words);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = serve(&image);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("--copy-log ") && text.contains("is there and is no copy log"), "{text}");
    assert_eq!(std::fs::read_to_string(&image).unwrap(), "precious");
    assert_eq!(serve(dir.path()).0, Some(2));
}

/// `plan` in words, from arguments.
#[test]
fn plan_says_what_a_device_would_do() {
    let plan = |words: &[&str]| {
        let output = run(&[&["plan", "--nvme-ns", "drive=memory,size=1M,mssrl=32"], words].concat());
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, text) = plan(&["--to", "1000", "--range", "0+8", "--range", "64+32"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("1:1000+40 by memmove from 1:0+8 (range 0) 1:64+32 (range 1)\n"), "{text}");
    let (code, text) = plan(&["--to", "1000", "--range", "0+8", "--range", "64+33"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("rule mssrl: ") && text.contains("range 1: 1:64+33\n"), "{text}");
    let (code, text) = plan(&[]);
    assert_eq!((code, text.lines().count()), (Some(2), 1), "{text}");
    assert_eq!(plan(&["--log", "/nowhere", "--number", "1"]).0, Some(4));
}
