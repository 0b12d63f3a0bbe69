//! Namespaces come, go and change their size while a host uses the device.

use serde_json::{Value, json};

use super::{NAMESPACE_CHANGED, NOTICES, start};
use crate::host::daemon::run;
use crate::host::nvme::{admin, io, st};
use crate::host::*;

/// Log 04h.
fn changed(host: &mut Host) -> Vec<u32> {
    let (_, log) = host.log(0x04, 0xffff_ffff, 0, 4096);
    log.chunks_exact(4).map(|nsid| le::u32_at(nsid, 0)).take_while(|nsid| *nsid != 0).collect()
}

/// Active namespaces.
fn active(host: &mut Host) -> Vec<u32> {
    let list = host.identify(2, 0);
    list.chunks_exact(4).map(|nsid| le::u32_at(nsid, 0)).take_while(|nsid| *nsid != 0).collect()
}

fn verify(host: &mut Host, nsid: u32, slba: u64) -> u16 {
    host.exec(1, Sqe::new(io::VERIFY).nsid(nsid).lba(slba, 1)).status
}

#[test]
fn sizes_change_both_ways() {
    let (mut daemon, mut control) = start(
        "--nvme-ns drive={}/a,size=1M --nvme-ns drive=memory,size=1M \
         --nvme-ns drive={}/b,size=1M,logical_block_size=4096,cache=none",
    );
    let mut host = Host::with_queues(&daemon, 1, 16);
    host.set_feature(NOTICES.0, NOTICES.1).ok();
    for nsid in [1, 2, 3] {
        let event = host.submit(0, Sqe::new(admin::AER));
        let mut ns = Ns::identify(&mut host, nsid);
        host.fill(1, &mut ns, nsid.into());
        let end = ns.nsze;
        let answer = control.ok(json!({ "command": "resize", "nsid": nsid, "size": "3M" }));
        assert_eq!(json!([answer["size"], answer["image_resized"]]), json!([3 << 20, true]));
        assert_eq!(host.wait(0, event).dw0, NAMESPACE_CHANGED);
        assert_eq!(changed(&mut host), [nsid]);
        let mut larger = Ns::identify(&mut host, nsid);
        assert_eq!(larger.nsze, 3 * end);
        // What was there is there, what is new is zero, and all of it can be written.
        assert!(host.read(1, &larger, 0, 8) == ns.at(0, 8));
        assert!(host.read(1, &larger, end - 8, 8) == ns.at(end - 8, 8));
        assert!(host.read(1, &larger, end, 8).iter().all(|byte| *byte == 0));
        host.fill(1, &mut larger, 7);
        larger.verify(&mut host, 1);
        // Cut off, it is gone: it does not come back.
        let answer = control.ok(json!({ "command": "resize", "nsid": nsid, "size": 1 << 20 }));
        assert_eq!(answer["image_resized"], true);
        assert_eq!([verify(&mut host, nsid, end), verify(&mut host, nsid, end - 1)], [st::LBA_RANGE, st::OK]);
        control.ok(json!({ "command": "resize", "nsid": nsid, "size": 2 << 20 }));
        assert!(host.read(1, &larger, end, 8).iter().all(|byte| *byte == 0));
        assert!(host.read(1, &larger, end - 8, 8) == larger.at(end - 8, 8));
        assert_eq!(
            [verify(&mut host, nsid, 2 * end), verify(&mut host, nsid, 2 * end - 1)],
            [st::LBA_RANGE, st::OK]
        );
        assert_eq!(changed(&mut host), [nsid]);
    }
    for name in ["a", "b"] {
        assert_eq!(std::fs::metadata(daemon.file(name)).unwrap().len(), 2 << 20);
    }
    daemon.stop();
}

#[test]
fn a_size_that_cannot_be() {
    let (mut daemon, mut control) = start(
        "--nvme-ns drive=memory,size=1M --nvme-ns drive={}/a,size=1M,logical_block_size=4096 \
         --nvme-ns drive=memory,size=1M,readonly=on",
    );
    for (nsid, size, text) in [
        (1, json!("16M"), "room for 8388608 bytes"),
        (1, json!(0), "size cannot be 0"),
        (1, json!(1000), "size cannot be 1000"),
        (2, json!(512), "size cannot be 512"),
        (2, json!(u64::MAX - 4095), "size cannot be"),
        (3, json!("2M"), "for reading only"),
        (4, json!("2M"), "no namespace 4"),
    ] {
        let (is, _) = control.refused(json!({ "command": "resize", "nsid": nsid, "size": size }));
        assert!(is.contains(text), "{nsid} {size}: {is}");
    }
    // A limit of the process is one too, and nothing has changed.
    let limits = rustix::process::Rlimit { current: Some(2 << 20), maximum: Some(2 << 20) };
    let pid = rustix::process::Pid::from_raw(daemon.pid() as i32);
    rustix::process::prlimit(pid, rustix::process::Resource::Fsize, limits).unwrap();
    let (text, _) = control.refused(json!({ "command": "resize", "nsid": 2, "size": "4M" }));
    assert!(text.contains("keeps its length of 1048576 bytes"), "{text}");
    let mut host = Host::with_queues(&daemon, 1, 16);
    for nsid in [1, 2, 3] {
        let ns = Ns::facts(&mut host, nsid);
        assert_eq!(ns.nsze * ns.lba as u64, 1 << 20);
    }
    let mut ns = Ns::identify(&mut host, 2);
    host.fill(1, &mut ns, 1);
    ns.verify(&mut host, 1);
    daemon.stop();
}

#[test]
fn namespaces_come_and_go() {
    let (mut daemon, mut control) = start("--nvme-ns drive={}/a,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    host.set_feature(NOTICES.0, NOTICES.1).ok();
    let event = host.submit(0, Sqe::new(admin::AER));
    let file = daemon.file("b");
    let list = format!("drive={},size=2M,mssrl=9", file.display());
    let added = control.ok(json!({ "command": "add", "ns": list }));
    assert_eq!(
        json!([added["nsid"], added["attached"], added["size"], added["mssrl"]]),
        json!([2, true, 2 << 20, 9])
    );
    assert_eq!(host.wait(0, event).dw0, NAMESPACE_CHANGED);
    assert_eq!((changed(&mut host), active(&mut host)), (vec![2], vec![1, 2]));
    let mut ns = Ns::identify(&mut host, 2);
    host.fill(1, &mut ns, 5);
    // Detached it is out of reach, but ours.
    let gone = control.ok(json!({ "command": "detach", "nsid": 2 }));
    assert_eq!(
        json!([gone["attached"], gone["commands_ended"], gone["durable"]]),
        json!([false, true, true])
    );
    assert_eq!((verify(&mut host, 2, 0), active(&mut host)), (st::INVALID_FIELD, vec![1]));
    let status = control.ok(json!({ "command": "status" }));
    let namespaces: Vec<_> = status["namespaces"].as_array().unwrap().iter().collect();
    assert_eq!(json!([namespaces[1]["nsid"], namespaces[1]["attached"]]), json!([2, false]));
    let other = daemon.file("t");
    let serve =
        ["serve", "--socket", other.to_str().unwrap(), "--nvme-ns", &format!("drive={}", file.display())];
    assert_eq!(run(&serve).status.code(), Some(2), "it is locked");
    control.ok(json!({ "command": "attach", "nsid": 2 }));
    ns.verify(&mut host, 1);
    assert_eq!(changed(&mut host), [2]);
    // Removed it is closed, whether it was attached or not.
    let gone = control.ok(json!({ "command": "remove", "nsid": 2 }));
    assert_eq!(
        gone,
        json!({ "nsid": 2, "drive": file.to_str().unwrap(), "commands_ended": true, "durable": true })
    );
    assert_eq!(verify(&mut host, 2, 0), st::INVALID_FIELD);
    ns.verify_image(&file);
    let again = control
        .ok(json!({ "command": "add", "ns": format!("drive={},nsid=7", file.display()), "detached": true }));
    assert_eq!(json!([again["nsid"], again["attached"]]), json!([7, false]));
    control.ok(json!({ "command": "remove", "nsid": 7 }));
    control.ok(json!({ "command": "add", "ns": format!("drive={},nsid=7", file.display()) }));
    let mut ns = Ns::identify(&mut host, 7);
    host.fill(1, &mut ns, 6);
    ns.verify(&mut host, 1);
    // All of them may go, and the device stays.
    for nsid in [1, 7] {
        control.ok(json!({ "command": "remove", "nsid": nsid }));
    }
    assert_eq!(active(&mut host), Vec::<u32>::new());
    ns.verify_image(&file);
    control.ok(json!({ "command": "add", "ns": "drive=memory,size=1M" }));
    assert_eq!((verify(&mut host, 1, 0), active(&mut host)), (st::OK, vec![1]));
    daemon.stop();
}

#[test]
fn a_namespace_that_cannot_be() {
    let (mut daemon, mut control) =
        start("--nvme-ns drive={}/a,size=1M --nvme-ns drive=memory,size=1M,nsid=5");
    let place = daemon.dir().to_str().unwrap().to_owned();
    let add = |ns: &str| json!({ "command": "add", "ns": ns.replace("{}", &place) });
    for (request, text) in [
        (add("drive=memory,size=1M,mssrl=0"), "--nvme-ns mssrl=0: must be 1 to 65535"),
        (add("drive=memory"), "needs a size"),
        (add("drive=memory,sise=1M"), "did you mean size?"),
        (add("drive={}/none"), "no such image"),
        (add("drive={}/a"), "is the image of namespace 1 too"),
        (add("drive=memory,size=1M,nsid=5"), "nsid=5: is that of another namespace"),
        (add("drive=memory,size=1M,nsid=257"), "nsid=257"),
        (json!({ "command": "remove", "nsid": 9 }), "no namespace 9"),
        (json!({ "command": "detach", "nsid": 2 }), "no namespace 2"),
        (json!({ "command": "attach", "nsid": 1 }), "no namespace 1 is detached"),
    ] {
        let (is, _) = control.refused(request.clone());
        assert!(is.contains(text), "{request}: {is}");
    }
    let nsids = |status: &Value| {
        let all = status["namespaces"].as_array().unwrap();
        all.iter().map(|ns| ns["nsid"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(nsids(&control.ok(json!({ "command": "status" }))), [1, 5]);
    // Two controllers, one set of namespaces.
    daemon.stop();
}

/// Descriptors and memory of what went are given back.
#[test]
fn nothing_is_left_of_what_went() {
    let (mut daemon, mut control) = start("");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let list = format!("drive={},size=1M,nsid=3", daemon.file("b").display());
    let mut round = |control: &mut Control| {
        control.ok(json!({ "command": "add", "ns": list }));
        let mut ns = Ns::identify(&mut host, 3);
        host.write(1, &mut ns, 0, 8, 1);
        control.ok(json!({ "command": "remove", "nsid": 3 }));
    };
    round(&mut control);
    let before = daemon.open_files();
    (0..20).for_each(|_| round(&mut control));
    assert_eq!(daemon.open_files(), before);
    daemon.stop();
}
