//! What a device says that it has done and has in hand.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{NAMESPACE_CHANGED, NOTICES, copied, ctl, event, start};
use crate::host::nvme::admin;
use crate::host::*;

/// The count of this id in a list of counts.
fn count(list: &Value, id: &str) -> u64 {
    let found = list.as_array().unwrap().iter().find(|counted| counted["id"] == id);
    found.map_or(0, |counted| counted["count"].as_u64().unwrap())
}

#[test]
fn stats_count_what_was_done() {
    let (mut daemon, mut control) = start("--nvme-ns drive=memory,size=1M");
    let stats = |control: &mut Control| control.ok(json!({ "command": "stats" }))["controllers"][0].clone();
    let fresh = stats(&mut control);
    assert_eq!(json!([fresh["copies"], fresh["enabled"], fresh["events"]]), json!([0, 0, []]));
    let mut host = Host::with_queues(&daemon, 1, 16);
    let mut ns = Ns::identify(&mut host, 1);
    host.write(1, &mut ns, 0, 8, 1);
    host.read(1, &ns, 0, 8);
    copied(&mut host, 16).ok();
    host.exec(1, Sqe::new(nvme::io::VERIFY).nsid(1).lba(1 << 40, 1));
    host.set_feature(NOTICES.0, NOTICES.1).ok();
    let next = host.submit(0, Sqe::new(admin::AER));
    let before = stats(&mut control);
    assert_eq!(count(&before["log_pages"], "0x04"), 0);
    control.ok(json!({ "command": "set", "nsid": 1, "mssrl": 5 }));
    assert_eq!(host.wait(0, next).dw0, NAMESPACE_CHANGED);
    host.log(0x04, 0xffff_ffff, 0, 4096);
    let now = stats(&mut control);
    assert_eq!([count(&now["log_pages"], "0x04"), count(&now["events"], "0x040002")], [1, 1]);
    assert_eq!(count(&now["admin_commands"], "0x0c"), 1);
    assert_eq!(
        json!([now["copies"], now["bytes_copied"], now["bytes_written"], now["bytes_read"]]),
        json!([1, 8192, 12288, 4096])
    );
    assert_eq!(
        json!([
            now["host_read_commands"],
            now["host_write_commands"],
            now["error_log_entries"],
            now["enabled"]
        ]),
        json!([2, 2, 1, 1])
    );
    let log = now["log_pages"].as_array().unwrap().iter().find(|log| log["id"] == "0x04").unwrap();
    assert_eq!(log["name"], "Changed Attached Namespace List");
    // A reset forgets none of it.
    host.enable();
    let after = stats(&mut control);
    assert_eq!(json!([after["copies"], after["enabled"]]), json!([1, 2]));
    daemon.stop();
}

/// Each sample of the text format, by its name and labels.
fn samples(text: &str) -> BTreeMap<String, u64> {
    let mut typed = String::new();
    let mut all = BTreeMap::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a type");
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            typed = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').expect("a sample and its value");
            let metric = name.split('{').next().unwrap();
            assert_eq!(metric, typed, "{line}");
            assert!(name.ends_with('}') && all.insert(name.to_owned(), value.parse().unwrap()).is_none());
        }
    }
    all
}

#[test]
fn prometheus_can_read_it() {
    let (mut daemon, _control) =
        start("--socket {}/t --nvme-ns drive=memory,size=1M,mssrl=7 --nvme-ns drive=memory,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    copied(&mut host, 1).ok();
    host.log(2, 0xffff_ffff, 0, 512);
    let (code, out, err) = ctl(&daemon, &["stats", "prometheus"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let samples = samples(&out);
    for (name, value) in [
        (r#"vfio_user_nvme_copies_total{cntlid="0"}"#, 1),
        (r#"vfio_user_nvme_copies_total{cntlid="1"}"#, 0),
        (r#"vfio_user_nvme_log_pages_read_total{cntlid="0",lid="0x02"}"#, 1),
        (r#"vfio_user_nvme_namespace_mssrl_blocks{nsid="1"}"#, 7),
        (r#"vfio_user_nvme_namespace_size_bytes{nsid="2"}"#, 1 << 20),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name} in {out}");
    }
    daemon.stop();
}

#[test]
fn inspect_shows_registers_and_queues() {
    let (mut daemon, mut control) = start("--nvme iothreads=2 --nvme-ns drive=memory,size=1M");
    let inspect = control.ok(json!({ "command": "inspect" }));
    let controller = &inspect["controllers"][0];
    assert_eq!(
        json!([
            controller["cntlid"],
            controller["quiet"],
            controller["admin_queue"],
            controller["bus_master"]
        ]),
        json!([0, true, null, false])
    );
    let mut host = Host::with_queues(&daemon, 3, 16);
    host.set_feature(NOTICES.0, NOTICES.1).ok();
    let cid = host.submit(0, Sqe::new(admin::AER));
    assert!(event(&mut host, cid).is_none());
    let inspect = control.ok(json!({ "command": "inspect" }));
    let controller = &inspect["controllers"][0];
    assert_eq!(
        json!([
            controller["registers"]["cc"],
            controller["registers"]["csts"],
            controller["bus_master"],
            controller["async_event_requests"],
            controller["async_event_configuration"],
        ]),
        json!(["0x00460001", "0x00000001", true, 1, "0x00000100"])
    );
    assert_eq!(controller["admin_queue"]["sq_size"], 32);
    assert_eq!(controller["admin_queue"]["sq_head"], controller["admin_queue"]["sq_tail"]);
    let qids = |worker: usize| -> Vec<u64> {
        let state = &controller["workers"][worker]["state"];
        assert_eq!(json!([state["in_flight"], state["commands"]]), json!([0, []]));
        state["submission_queues"].as_array().unwrap().iter().map(|sq| sq["qid"].as_u64().unwrap()).collect()
    };
    assert_eq!([qids(0), qids(1)], [vec![1, 3], vec![2]]);
    // An event that nobody has room for, and what it is about.
    control.ok(json!({ "command": "set", "nsid": 1, "mssrl": 5 }));
    host.wait(0, cid);
    control.ok(json!({ "command": "set", "nsid": 1, "mssrl": 6 }));
    let inspect = control.ok(json!({ "command": "inspect" }));
    let controller = &inspect["controllers"][0];
    assert_eq!(
        json!([controller["logs_unread"], controller["events_waiting"], controller["namespaces_changed"]]),
        json!([[4], ["0x040002"], [1]])
    );
    let (code, out, err) = ctl(&daemon, &["inspect"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("cc: 0x00460001") && out.contains("submission_queues:"), "{out}");
    daemon.stop();
}
