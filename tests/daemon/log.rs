//! What the log tells of a guest that does not get on.

use std::time::{Duration, Instant};

use crate::host::*;

/// Waits until the log has a line with all these words; gives it back.
#[track_caller]
fn told(d: &Daemon, words: &[&str]) -> String {
    let start = Instant::now();
    loop {
        let log = d.log();
        if let Some(line) = log.lines().find(|line| words.iter().all(|word| line.contains(word))) {
            return line.to_owned();
        }
        assert!(start.elapsed() < DEADLINE, "no line with {words:?} in: {log}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A VMM that shares no memory gives us the descriptor of it all the same, and the guest writes to copies of
/// its own pages: here is nothing but zeroes.
#[test]
fn memory_that_is_not_shared_is_named() {
    let d = Daemon::start("");
    let mut h = Host::attach(&d);
    h.ram.write(h.sqs[&0].ring.base, &[0; 64]);
    h.doorbell(0, 1);
    let line = told(&d, &["WARN", "share=on"]);
    assert!(line.contains("shared=on"), "cloud-hypervisor's word: {line}");
    assert_eq!(h.csts(), 1);
}

/// Of a guest whose memory is shared nothing like that is said.
#[test]
fn shared_memory_is_not_complained_of() {
    let mut d = Daemon::start("");
    let mut h = Host::with_queues(&d, 1, 16);
    for _ in 0..2 * u32::from(ctrl::ADMIN_ENTRIES) {
        h.get_feature(7).ok();
    }
    d.stop();
    assert!(!d.log().contains("WARN"), "{}", d.log());
}

/// With `--log debug`, for those who write drivers: what was asked for, what it was taken for, and why not.
#[test]
fn copies_are_told_of_at_debug() {
    let d =
        Daemon::start("--log debug --nvme-ns drive=memory,size=1M,mssrl=64 --nvme-ns drive={}/x.img,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    let list: Vec<u8> = [(0, 8), (100, 16)].map(|(at, n)| nvme::Range::new(at, n).bytes(0)).concat();
    let c = h.send(1, nvme::copy(1, 1000, 2, 0), &list);
    c.ok();
    told(
        &d,
        &[
            "DEBUG",
            &format!("Copy cid {:#x}", c.cid),
            "12288 bytes",
            "to nsid 1 lba 1000",
            "0+8",
            "100+16",
            "memmove",
        ],
    );
    let c = h.send(1, nvme::copy(1, 1000, 1, 0), &nvme::Range::new(0, 65).bytes(0));
    assert_ne!(c.status, 0);
    told(&d, &["DEBUG", &format!("Copy cid {:#x} refused", c.cid), "MSSRL"]);
    let c = h.send(1, nvme::copy(2, 0, 1, 0), &nvme::Range::new(512, 512).bytes(0));
    c.ok();
    told(
        &d,
        &[&format!("Copy cid {:#x}", c.cid), "262144 bytes", "to nsid 2 lba 0", "nsid 2 by ", "512+512"],
    );
}
