//! What is set of a controller while a host uses it.

use serde_json::json;

use super::{copied, event, start};
use crate::host::nvme::{Range, admin, copy, io, st};
use crate::host::*;

/// Log pages.
const SMART: u8 = 0x02;
const EFFECTS: u8 = 0x05;
/// Bytes of Identify Controller.
const MDTS: usize = 77;
const ONCS: usize = 520;
const OCFS: usize = 534;
/// ONCS, and the dword of the effects log.
const COPY: u16 = 1 << 8;
const COPY_EFFECT: usize = 1024 + 0x19 * 4;

fn identify(host: &mut Host) -> Vec<u8> {
    host.identify(1, 0)
}

#[test]
fn formats_come_and_go() {
    let (mut daemon, mut control) = start("--nvme-ns drive=memory,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let format = |host: &mut Host, format: u8| {
        let range = Range::of(1, 0, 8).bytes(format);
        host.send(1, copy(1, 1000, 1, format), &range).status
    };
    assert_eq!([format(&mut host, 0), format(&mut host, 2)], [st::OK, st::INVALID_FIELD]);
    // As if the host had enabled it; it reads so, too.
    let set = control.ok(json!({ "command": "set", "cdfe": "0x4" }));
    assert_eq!(set["controllers"][0]["cdfe"], "0x4");
    assert_eq!(([format(&mut host, 0), format(&mut host, 2)], host.cdfe()), ([st::OK; 2], 4));
    control.ok(json!({ "command": "set", "ocfs": 1 }));
    assert_eq!(le::u16_at(&identify(&mut host), OCFS), 1);
    assert_eq!([format(&mut host, 0), format(&mut host, 2)], [st::OK, st::INVALID_FIELD]);
    // Without format 0h no kernel could copy at all.
    let (text, expected) = control.refused(json!({ "command": "set", "ocfs": 4 }));
    assert!(text.contains("ocfs cannot be 0x4") && expected.contains("allow=broken"), "{text}; {expected}");
    control.ok(json!({ "command": "set", "ocfs": 4, "allow": "broken" }));
    assert_eq!([format(&mut host, 0), format(&mut host, 2)], [st::INVALID_FIELD, st::OK]);
    let (text, _) = control.refused(json!({ "command": "set", "cdfe": 3 }));
    assert!(text.contains("cdfe cannot be 0x3"), "{text}");
    daemon.stop();
}

#[test]
fn copy_goes_and_comes() {
    let (mut daemon, mut control) = start("--nvme-ns drive=memory,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let offered = |host: &mut Host| {
        let oncs = le::u16_at(&identify(host), ONCS) & COPY != 0;
        let (_, log) = host.log(EFFECTS, 0xffff_ffff, 0, 4096);
        assert_eq!(log[COPY_EFFECT] & 1 != 0, oncs, "the effects log differs");
        oncs
    };
    assert!(offered(&mut host));
    let (text, expected) = control.refused(json!({ "command": "set", "copy": "off" }));
    assert!(text.contains("copy cannot be off") && expected.contains("allow=broken"), "{text}; {expected}");
    control.ok(json!({ "command": "set", "copy": "off", "allow": "broken" }));
    assert!(!offered(&mut host));
    copied(&mut host, 1).is(st::INVALID_OPCODE, "there is no Copy");
    control.ok(json!({ "command": "set", "copy": "on" }));
    assert!(offered(&mut host));
    copied(&mut host, 1).ok();
    daemon.stop();
}

#[test]
fn mdts_waits_for_the_next_reset() {
    let (mut daemon, mut control) = start("--nvme-ns drive=memory,size=4M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let ns = Ns::identify(&mut host, 1);
    let reads = |host: &mut Host, kib: u32| {
        let data = Data::prp(&mut host.ram, kib as usize * 1024);
        host.exec(1, Host::rw(io::READ, &ns, 0, kib * 2).data(&data)).status
    };
    let set = control.ok(json!({ "command": "set", "mdts": 1 }));
    let controller = &set["controllers"][0];
    assert_eq!(json!([controller["mdts"], controller["mdts_after_reset"]]), json!([7, 1]));
    // The host has read 7, and may go by it.
    assert_eq!((identify(&mut host)[MDTS], reads(&mut host, 512)), (7, st::OK));
    host.enable();
    host.io_queues(1, 16);
    assert_eq!(identify(&mut host)[MDTS], 1);
    assert_eq!([reads(&mut host, 8), reads(&mut host, 12)], [st::OK, st::INVALID_FIELD]);
    let controller = &control.ok(json!({ "command": "status" }))["controllers"][0];
    assert_eq!(json!([controller["mdts"], controller["mdts_after_reset"]]), json!([1, null]));
    // While nobody has enabled it there is nobody to wait for.
    host.disable();
    let set = control.ok(json!({ "command": "set", "mdts": 2 }));
    assert_eq!(set["controllers"][0]["mdts"], 2);
    daemon.stop();
}

#[test]
fn health_is_what_is_said_of_it() {
    let (mut daemon, mut control) = start("--nvme-ns drive=memory,size=1M --nvme-ns drive=memory,size=1M");
    let mut host = Host::with_queues(&daemon, 1, 16);
    let smart = |host: &mut Host| {
        let (_, log) = host.log(SMART, 0xffff_ffff, 0, 512);
        (log[0], le::u16_at(&log, 1), log[3])
    };
    assert_eq!(smart(&mut host), (0, 310, 100));
    // What nobody has asked for nobody hears of.
    control.ok(json!({ "command": "set", "temperature": 350 }));
    assert_eq!(smart(&mut host), (2, 350, 100));
    control.ok(json!({ "command": "set", "temperature": 310 }));
    let asked = 0x3f;
    host.set_feature(0x0b, asked).ok();
    let mut next = host.submit(0, Sqe::new(admin::AER));
    for (set, dw0, log) in [
        (json!({ "temperature": 343 }), 0x02_01_01, (2, 343, 100)),
        (json!({ "temperature": 300, "spare": 9 }), 0x02_02_01, (1, 300, 9)),
        (json!({ "spare": 10, "smart_critical_warning": 0x10 }), 0x02_00_01, (0x10, 300, 10)),
        (json!({ "smart_critical_warning": "0x4" }), 0x02_00_01, (4, 300, 10)),
    ] {
        let mut request = set.clone();
        request["command"] = "set".into();
        control.ok(request.clone());
        assert_eq!(host.wait(0, next).dw0, dw0, "{set}");
        assert_eq!(smart(&mut host), log, "{set}");
        next = host.submit(0, Sqe::new(admin::AER));
        // Said again it is no news.
        control.ok(request);
        assert!(event(&mut host, next).is_none(), "{set}");
    }
    control.ok(json!({ "command": "set", "smart_critical_warning": 0 }));
    assert_eq!(smart(&mut host), (0, 300, 10));
    // All media is read-only when each namespace is.
    control.ok(json!({ "command": "set", "nsid": 1, "readonly": "on" }));
    assert_eq!(smart(&mut host).0, 0);
    assert!(event(&mut host, next).is_none());
    control.ok(json!({ "command": "set", "nsid": 2, "readonly": "on" }));
    assert_eq!(host.wait(0, next).dw0, 0x02_00_01);
    assert_eq!(smart(&mut host).0, 8);
    // A reset leaves the device in the health it is in.
    host.enable();
    assert_eq!(smart(&mut host), (8, 300, 10));
    daemon.stop();
}

#[test]
fn one_controller_of_several() {
    let (mut daemon, mut control) = start("--socket {}/t");
    let set = control.ok(json!({ "command": "set", "cntlid": 1, "temperature": 400 }));
    let controllers = set["controllers"].as_array().unwrap();
    assert_eq!(json!([controllers.len(), controllers[0]["cntlid"]]), json!([1, 1]));
    let status = control.ok(json!({ "command": "status" }));
    let temperature = |at: usize| status["controllers"][at]["temperature"].clone();
    assert_eq!([temperature(0), temperature(1)], [json!(310), json!(400)]);
    let (text, expected) = control.refused(json!({ "command": "set", "cntlid": 7, "spare": 1 }));
    assert!(text.contains("no controller 7") && expected.contains("status"), "{text}; {expected}");
    for (request, text) in [
        (json!({ "command": "set", "cntlid": 1 }), "nothing is to be set"),
        (json!({ "command": "set", "nsid": 1, "spare": 1 }), "spare is a controller's"),
        (json!({ "command": "set", "spare": 1, "mssrl": 1 }), "mssrl is a namespace's"),
    ] {
        let (is, _) = control.refused(request.clone());
        assert!(is.contains(text), "{request}: {is}");
    }
    daemon.stop();
}
