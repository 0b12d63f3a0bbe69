//! The control socket of a device whose disks or workers hang.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vfio_user_nvme::disk::LaneKind;

use crate::device::{Device, folder, image, memory, namespace};
use crate::doubles::{Hang, Job, Kind, panicking, plain};
use crate::host::nvme::{Range, copy, io, st};
use crate::host::{DEADLINE, Host, Ns, Sqe};
use crate::with_each_lane;

const IMAGE: usize = 1 << 20;
const LAST: u64 = IMAGE as u64 / 512 - 1;
/// What the image is full of.
const ON_DISK: u8 = 0xd1;
/// What would have ended long ago if it were not held.
const A_WHILE: Duration = Duration::from_millis(300);
/// A worker may take a second for its answer, and the machine may be busy.
const PATIENCE: Duration = Duration::from_millis(3500);

/// Reads to the end of the image, and Copies, by whatever way they go.
fn hangs(job: &Job) -> bool {
    let to_the_end = job.range.0 + job.range.1 == IMAGE as u64;
    matches!(job.kind, Kind::Copy | Kind::ReadWrite) || job.kind == Kind::Read && to_the_end
}

/// In namespace 1 they hang; namespace 2 is memory.
fn device(kind: LaneKind) -> (Device, Hang) {
    let (hang, folder) = (Hang::default(), folder());
    let list = vec![
        namespace(1, Arc::new(image(&folder, "a", &[ON_DISK; IMAGE], None))),
        namespace(2, memory(IMAGE as u64)),
    ];
    let doubles = hang.disks(kind, hangs);
    (Device::start(folder, "iothreads=2", list, doubles), hang)
}

/// A Read of the last block that hangs: its CID, and where its data goes.
fn hung_read(host: &mut Host, hang: &Hang) -> (u16, u64) {
    let to = host.ram.pages(1);
    let cid = host.submit(1, Sqe::new(io::READ).nsid(1).lba(LAST, 1).prp(to, 0));
    hang.wait_held(1);
    (cid, to)
}

fn verify(host: &mut Host, slba: u64) -> u16 {
    host.exec(2, Sqe::new(io::VERIFY).nsid(1).lba(slba, 1)).status
}

#[test]
fn what_is_in_flight_ends_under_the_old_size() {
    with_each_lane(|kind| {
        let (device, hang) = device(kind);
        let mut host = device.host(2);
        let (cid, to) = hung_read(&mut host, &hang);
        std::thread::scope(|scope| {
            let mut control = device.control();
            let resize =
                scope.spawn(move || control.ok(json!({ "command": "resize", "nsid": 1, "size": IMAGE / 2 })));
            let start = Instant::now();
            while Ns::facts(&mut host, 1).nsze > LAST {
                assert!(start.elapsed() < DEADLINE, "the host does not see the new size");
            }
            // New commands go by it, while the old one still has what it was promised.
            assert_eq!([verify(&mut host, LAST), verify(&mut host, 0)], [st::LBA_RANGE, st::OK]);
            assert_eq!(device.file("a").len(), IMAGE);
            hang.end();
            host.wait(1, cid).ok();
            assert_eq!(host.ram.read(to, 512), [ON_DISK; 512]);
            let answer = resize.join().expect("it is resized");
            assert_eq!(json!([answer["nsze"], answer["image_resized"]]), json!([LAST.div_ceil(2), true]));
        });
        assert_eq!(device.file("a").len(), IMAGE / 2);
        drop(host);
        device.ends_well();
    });
}

#[test]
fn nothing_is_cut_off_under_a_command_that_hangs() {
    let (device, hang) = device(LaneKind::Threads);
    let mut host = device.host(2);
    let (cid, _) = hung_read(&mut host, &hang);
    let mut control = device.control();
    let mut other = device.control();
    let answer = control.ok(json!({ "command": "resize", "nsid": 1, "size": "512K" }));
    assert_eq!(json!([answer["size"], answer["image_resized"]]), json!([512 << 10, false]));
    assert!(answer["why"].as_str().unwrap().contains("have not ended"), "{answer}");
    assert_eq!(device.file("a").len(), IMAGE);
    // It goes all the same, and is closed when the command has ended.
    let answer = other.ok(json!({ "command": "remove", "nsid": 1 }));
    assert_eq!(json!([answer["commands_ended"], answer["durable"]]), json!([false, false]));
    assert_eq!(verify(&mut host, 0), st::INVALID_FIELD);
    hang.end();
    host.wait(1, cid).ok();
    drop(host);
    device.ends_well();
}

/// The commands of a controller's workers.
fn commands(inspect: &Value) -> Vec<Value> {
    let workers = inspect["controllers"][0]["workers"].as_array().unwrap();
    workers.iter().flat_map(|worker| worker["state"]["commands"].as_array().unwrap().clone()).collect()
}

#[test]
fn inspect_shows_what_hangs() {
    let (device, hang) = device(LaneKind::Threads);
    let mut host = device.host(2);
    let mut control = device.control();
    let (cid, _) = hung_read(&mut host, &hang);
    let [command] = &commands(&control.ok(json!({ "command": "inspect" })))[..] else {
        panic!("not one command");
    };
    assert_eq!(
        json!([command["name"], command["sqid"], command["cid"], command["nsid"], command["slba"]]),
        json!(["Read", 1, cid, 1, LAST])
    );
    assert_eq!(json!([command["opcode"], command["copy"]]), json!([io::READ, null]));
    // A Copy tells its plan.
    let list = host.ram.pages(1);
    host.ram.write(list, &Range::new(LAST - 7, 8).bytes(0));
    let copied = host.submit(1, copy(1, 16, 1, 0).prp(list, 0));
    hang.wait_held(2);
    let inspect = control.ok(json!({ "command": "inspect" }));
    let all = commands(&inspect);
    let copy = all.iter().find(|command| command["name"] == "Copy").expect("the Copy is in flight");
    assert_eq!(
        copy["copy"],
        json!({ "nsid": 1, "sdlba": 16, "nlb": 8, "ranges": 1,
                "first_ranges": [{ "nsid": 1, "slba": LAST - 7, "nlb": 8 }] })
    );
    let queue = &inspect["controllers"][0]["workers"][0]["state"]["submission_queues"][0];
    assert_eq!(json!([queue["qid"], queue["in_flight"]]), json!([1, 2]));
    hang.end();
    for cid in [cid, copied] {
        host.wait(1, cid).ok();
    }
    assert_eq!(commands(&control.ok(json!({ "command": "inspect" }))), Vec::<Value>::new());
    drop(host);
    device.ends_well();
}

#[test]
fn a_drain_waits_and_holds() {
    let (device, hang) = device(LaneKind::Threads);
    let mut host = device.host(2);
    let mut control = device.control();
    let (cid, _) = hung_read(&mut host, &hang);
    let (text, expected) = control.refused(json!({ "command": "drain", "timeout_ms": 200 }));
    assert!(
        text.contains("not all commands in flight have ended in time") && expected.contains("timeout_ms"),
        "{text}; {expected}"
    );
    // It goes on as if nothing had been asked.
    assert_eq!(verify(&mut host, 0), st::OK);
    hang.end();
    host.wait(1, cid).ok();
    let answer = control.ok(json!({ "command": "drain", "hold": true }));
    assert_eq!(answer, json!({ "durable": true, "paused": true }));
    let cid = host.submit(2, Sqe::new(io::VERIFY).nsid(1).lba(0, 1));
    assert!(host.try_wait(2, cid, A_WHILE).is_none(), "it was fetched");
    // The admin queue is not meant; and what was paused stays so.
    assert_eq!(Ns::facts(&mut host, 1).nsze, LAST + 1);
    assert_eq!(control.ok(json!({ "command": "drain" }))["paused"], true);
    assert_eq!(control.ok(json!({ "command": "status" }))["controllers"][0]["paused"], true);
    control.ok(json!({ "command": "resume" }));
    host.wait(2, cid).ok();
    assert_eq!(control.ok(json!({ "command": "drain" })), json!({ "durable": true, "paused": false }));
    assert_eq!(verify(&mut host, 0), st::OK);
    drop(host);
    device.ends_well();
}

/// A worker that does not come back from a call is seen as such, and all others are seen.
#[test]
fn inspect_does_not_wait_for_a_worker_that_hangs() {
    let hangs = Arc::new(AtomicBool::new(false));
    let entered = Arc::new(AtomicBool::new(false));
    let (shut, inside) = (Arc::clone(&hangs), Arc::clone(&entered));
    let blocks = move |job: &Job| {
        while job.kind == Kind::Read && shut.load(Ordering::SeqCst) {
            inside.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    };
    let folder = folder();
    let disk = image(&folder, "a", &[ON_DISK; IMAGE], None);
    let doubles = panicking(plain(LaneKind::Threads), blocks);
    let device = Device::start(folder, "iothreads=2", vec![namespace(1, Arc::new(disk))], doubles);
    let mut host = device.host(2);
    let mut control = device.control();
    hangs.store(true, Ordering::SeqCst);
    let to = host.ram.pages(1);
    let cid = host.submit(1, Sqe::new(io::READ).nsid(1).lba(0, 1).prp(to, 0));
    let start = Instant::now();
    while !entered.load(Ordering::SeqCst) {
        assert!(start.elapsed() < DEADLINE, "the worker never came there");
    }
    // As often as one likes: nothing piles up in front of it.
    for _ in 0..2 {
        let start = Instant::now();
        let inspect = control.ok(json!({ "command": "inspect" }));
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        let answered = |worker: usize| inspect["controllers"][0]["workers"][worker]["answered"].clone();
        assert_eq!([answered(0), answered(1)], [json!(false), json!(true)]);
        assert_eq!(inspect["controllers"][0]["registers"]["csts"], "0x00000001");
    }
    // And whatever else is asked is answered.
    assert_eq!(control.ok(json!({ "command": "set", "nsid": 1, "mssrl": 5 }))["mssrl"], 5);
    assert_eq!(Ns::facts(&mut host, 1).mssrl, 5);
    hangs.store(false, Ordering::SeqCst);
    host.wait(1, cid).ok();
    let inspect = control.ok(json!({ "command": "inspect" }));
    assert_eq!(inspect["controllers"][0]["workers"][0]["answered"], true);
    drop(host);
    device.ends_well();
}
