//! How commands end: statuses, and completions that are lost, doubled, wrong or untold.

use std::time::{Duration, Instant};

use super::{MS, Rig};
use crate::host::nvme::{io, st};
use crate::host::{DEADLINE, Sqe};

fn verify() -> Sqe {
    Sqe::new(io::VERIFY).nsid(1).lba(0, 8)
}

#[test]
fn any_status_with_dnr_more_crd_and_dw0() {
    let mut rig = Rig::new(1);
    rig.add("name=a op=write status=write-fault dnr crd=2 dw0=7 times=1");
    let cqe = rig.write(8, 8, 2);
    assert_eq!((cqe.status, cqe.more, cqe.dw0), (0x5280, true, 7));
    let (_, log) = rig.host.log(1, 0, 0, 64);
    assert_eq!(u16::from_le_bytes([log[12], log[13]]) >> 1, 0x7280, "the Error Information log has it");
    rig.add("op=read status=3/0x71 more=off times=1");
    let cqe = rig.read(8, 8);
    assert_eq!((cqe.status, cqe.more, cqe.dw0), (0x371, false, 0));
    rig.read(8, 8).ok();
    assert_eq!(rig.fired("a"), 1);
    rig.ends_well();
}

/// A status of the device's own that means something to it elsewhere.
#[test]
fn a_status_that_the_device_gives_itself() {
    let mut rig = Rig::new(1);
    rig.add("op=verify status=command-abort-requested times=1");
    rig.host.exec(1, verify()).is(st::ABORT_REQUESTED, "nobody aborted it");
    rig.ends_well();
}

#[test]
fn a_write_that_never_was() {
    let mut rig = Rig::new(1);
    rig.add("op=write status=success");
    rig.write(8, 8, 2).ok();
    rig.ends_well();
}

#[test]
fn fails_after_it_was_done() {
    let mut rig = Rig::new(1);
    rig.add("op=write status=write-fault partial=all");
    rig.write(8, 8, 2).is(0x280, "");
    let bytes = rig.ns[0].pattern(8, 8, 2);
    rig.ns[0].set(8, &bytes);
    rig.ends_well();
}

#[test]
fn a_completion_is_dropped_and_the_command_done() {
    let mut rig = Rig::new(1);
    rig.add("op=write drop times=1");
    let bytes = rig.ns[0].pattern(8, 8, 2);
    let data = rig.host.ram.pages(1);
    rig.host.ram.write(data, &bytes);
    let lost = rig.host.submit(1, Sqe::new(io::WRITE).nsid(1).lba(8, 8).prp(data, 0));
    rig.host.exec(1, verify()).ok();
    assert!(rig.host.try_wait(1, lost, 50 * MS).is_none());
    rig.host.forget(1);
    rig.ns[0].set(8, &bytes);
    rig.ends_well();
}

#[test]
fn a_completion_comes_twice_or_with_a_wrong_cid() {
    let mut rig = Rig::new(1);
    rig.add("op=verify twice nth=1");
    rig.add("op=flush cid=0xfffe nth=1");
    // Taken by hand, for the host would complain.
    let next = |rig: &mut Rig| {
        let start = Instant::now();
        loop {
            if let Some(cqe) = rig.host.take_entry(1) {
                rig.host.ring_cq(1);
                return cqe.cid;
            }
            assert!(start.elapsed() < DEADLINE, "no completion");
        }
    };
    let cid = rig.host.submit(1, verify());
    assert_eq!([next(&mut rig), next(&mut rig)], [cid, cid]);
    rig.host.submit(1, Sqe::new(io::FLUSH).nsid(1));
    assert_eq!(next(&mut rig), 0xfffe);
    rig.host.forget(1);
    rig.ends_well();
}

#[test]
fn an_interrupt_is_lost_and_another_comes_for_no_reason() {
    let mut rig = Rig::new(1);
    let vector = usize::from(rig.host.cqs[&1].vector.expect("it has one"));
    // What earlier commands raised.
    std::thread::sleep(20 * MS);
    rig.host.fired(vector);
    rig.add("op=flush irq=lost times=1");
    rig.host.submit(1, Sqe::new(io::FLUSH).nsid(1));
    let start = Instant::now();
    while !rig.host.pending(1) {
        assert!(start.elapsed() < DEADLINE, "it is there all the same");
    }
    std::thread::sleep(50 * MS);
    assert_eq!(rig.host.fired(vector), 0);
    rig.host.take(1).expect("it is there").ok();
    rig.host.ring_cq(1);
    rig.add("op=verify irq=spurious drop times=1");
    rig.host.submit(1, verify());
    let start = Instant::now();
    while rig.host.fired(vector) == 0 {
        assert!(start.elapsed() < DEADLINE, "no interrupt");
    }
    assert!(!rig.host.pending(1));
    rig.host.forget(1);
    rig.ends_well();
}

#[test]
fn the_controller_goes_fatal_and_is_well_after_a_reset() {
    let mut rig = Rig::new(1);
    rig.add("op=flush cfs times=1");
    rig.host.submit(1, Sqe::new(io::FLUSH).nsid(1));
    rig.host.wait_csts(2, 2);
    rig.host.forget(1);
    rig.host.enable();
    rig.host.io_queues(1, 64);
    rig.host.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
    rig.ends_well();
}

/// With each worker's queue: which of them meets a command does not matter.
#[test]
fn counts_are_of_all_queues_together() {
    let mut rig = Rig::new(2);
    let name = rig.add("op=verify every_nth=3 status=internal-error count=-2");
    let statuses: Vec<u16> = (0..12).map(|n| rig.host.exec(1 + n % 2, verify()).status & 0x7ff).collect();
    assert_eq!(statuses, [0, 0, 6, 0, 0, 6, 0, 0, 0, 0, 0, 0]);
    let report = rig.rule(&name);
    assert_eq!((report.matched, report.fired, report.spent), (6, 2, true));
    rig.ends_well();
}

#[test]
fn a_rule_for_one_queue_or_depth() {
    let mut rig = Rig::new(2);
    rig.add("op=verify queue=2 status=internal-error");
    rig.host.exec(1, verify()).ok();
    assert_eq!(rig.host.exec(2, verify()).code(), 6);
    rig.faults.clear(None, DEADLINE);
    let deep = rig.add("op=verify depth=3 status=internal-error");
    rig.add("op=flush stall");
    rig.host.exec(1, verify()).ok();
    let held = [(); 2].map(|()| rig.host.submit(1, Sqe::new(io::FLUSH).nsid(1)));
    assert_eq!(rig.host.exec(1, verify()).code(), 6, "the third in flight");
    assert_eq!(rig.fired(&deep), 1);
    assert_eq!(rig.faults.release(None, Duration::from_secs(10)), Some(2));
    for cid in held {
        rig.host.wait(1, cid).ok();
    }
    rig.ends_well();
}
