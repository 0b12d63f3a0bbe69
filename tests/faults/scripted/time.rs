//! Commands that take their time, or that of others.

use std::time::{Duration, Instant};

use super::{MS, Rig};
use crate::host::nvme::io;
use crate::host::{DEADLINE, Sqe};

fn flush() -> Sqe {
    Sqe::new(io::FLUSH).nsid(1)
}

fn verify() -> Sqe {
    Sqe::new(io::VERIFY).nsid(1).lba(0, 8)
}

#[test]
fn a_command_is_delayed_and_others_are_not() {
    let mut rig = Rig::new(1);
    rig.add("op=flush delay=200ms");
    let start = Instant::now();
    let late = rig.host.submit(1, flush());
    rig.host.exec(1, verify()).ok();
    assert!(rig.host.try_wait(1, late, Duration::ZERO).is_none());
    rig.host.wait(1, late).ok();
    assert!(start.elapsed() >= 200 * MS);
    rig.ends_well();
}

/// Before it begins nothing is done; where it has ended, all is.
#[test]
fn where_a_command_is_held() {
    for (at, done) in [("begin", false), ("end", true)] {
        let mut rig = Rig::new(1);
        let name = rig.add(&format!("op=write-zeroes stall at={at}"));
        let held = rig.host.submit(1, Sqe::new(io::WRITE_ZEROES).nsid(1).lba(8, 8));
        assert!(rig.host.try_wait(1, held, 100 * MS).is_none());
        let zeroes = rig.host.read(1, &rig.ns[0], 8, 8) == [0; 4096];
        assert_eq!((zeroes, rig.rule(&name).held), (done, 1), "{at}");
        assert_eq!(rig.faults.release(Some(&name), DEADLINE), Some(1));
        rig.host.wait(1, held).ok();
        rig.ns[0].set(8, &[0; 4096]);
        assert_eq!(rig.rule(&name).held, 0);
        rig.ends_well();
    }
}

#[test]
fn what_a_rule_holds_goes_on_when_it_is_cleared() {
    let mut rig = Rig::new(1);
    let name = rig.add("op=flush stall");
    let held = rig.host.submit(1, flush());
    assert!(rig.host.try_wait(1, held, 50 * MS).is_none());
    assert_eq!(rig.faults.clear(Some(&name), DEADLINE), 1);
    rig.host.wait(1, held).ok();
    rig.ends_well();
}

/// A reset does not wait for it.
#[test]
fn a_stalled_command_ends_with_a_reset() {
    let mut rig = Rig::new(1);
    rig.add("op=write stall");
    let data = rig.host.ram.pages(1);
    rig.host.submit(1, Sqe::new(io::WRITE).nsid(1).lba(8, 8).prp(data, 0));
    rig.host.exec(1, flush()).ok();
    rig.host.forget(1);
    rig.host.enable();
    rig.host.io_queues(1, 64);
    rig.ends_well();
}

#[test]
fn completions_come_out_of_order() {
    let mut rig = Rig::new(1);
    rig.add("op=flush reorder=2 times=1");
    let first = rig.host.submit(1, flush());
    let second = rig.host.submit(1, verify());
    rig.host.wait(1, second).ok();
    assert!(rig.host.try_wait(1, first, 20 * MS).is_none(), "one more is to come first");
    let third = rig.host.submit(1, verify());
    rig.host.wait(1, third).ok();
    rig.host.wait(1, first).ok();
    // And where none comes, it is told of in the end.
    rig.add("op=flush reorder=2 times=1");
    let start = Instant::now();
    rig.host.exec(1, flush()).ok();
    assert!(start.elapsed() >= 900 * MS, "{:?}", start.elapsed());
    rig.ends_well();
}

#[test]
fn a_queue_is_busy() {
    let mut rig = Rig::new(2);
    rig.add("op=flush busy=300ms times=1");
    let start = Instant::now();
    let first = rig.host.submit(1, flush());
    rig.host.wait(1, first).ok();
    let waits = rig.host.submit(1, verify());
    rig.host.exec(2, verify()).ok();
    assert!(start.elapsed() < 250 * MS, "the other queue is not busy");
    rig.host.wait(1, waits).ok();
    assert!(start.elapsed() >= 290 * MS);
    rig.ends_well();
}
