//! Admin commands that meet rules.

use std::time::Instant;

use super::{MS, Rig};
use crate::host::nvme::{admin, io};
use crate::host::{DEADLINE, Sqe};

/// Identify Controller, and a command that sends nothing.
const CONTROLLER: u8 = 1;

fn get_feature() -> Sqe {
    Sqe::new(admin::GET_FEATURES).cdw(10, 7)
}

#[test]
fn any_byte_of_a_payload_is_replaced() {
    let mut rig = Rig::new(1);
    let before = rig.host.identify(CONTROLLER, 0);
    rig.add("op=identify cdw10=1/0xff payload=77:05+520:0000");
    let mut want = before.clone();
    want[77] = 5;
    want[520..522].fill(0);
    assert_eq!(rig.host.identify(CONTROLLER, 0), want, "MDTS, and no Copy in ONCS");
    assert_eq!(rig.host.identify(0, 1)[77], 0, "another CNS");
    rig.add("op=get-log-page cdw10=2/0xff payload=0:02");
    assert_eq!(rig.host.log(2, 0xffff_ffff, 0, 512).1[0], 2, "a critical warning");
    rig.faults.clear(None, DEADLINE);
    assert_eq!(rig.host.identify(CONTROLLER, 0), before);
    rig.ends_well();
}

#[test]
fn an_admin_command_fails_stalls_or_is_lost() {
    let mut rig = Rig::new(1);
    rig.add("op=get-features status=internal-error dnr dw0=9 times=1");
    let cqe = rig.host.admin(get_feature());
    assert_eq!((cqe.status, cqe.dw0), (0x4006, 9));
    rig.host.admin(get_feature()).ok();
    for at in ["begin", "end"] {
        let name = rig.add(&format!("op=get-features stall at={at} times=1"));
        let held = rig.host.submit(0, get_feature());
        rig.host.identify(CONTROLLER, 0);
        assert!(rig.host.try_wait(0, held, 50 * MS).is_none());
        assert_eq!(rig.faults.release(Some(&name), DEADLINE), Some(1), "{at}");
        rig.host.wait(0, held).ok();
    }
    rig.add("op=get-features delay=100ms times=1");
    let start = Instant::now();
    rig.host.admin(get_feature()).ok();
    assert!(start.elapsed() >= 100 * MS);
    // More than the queue has entries: a lost completion holds none.
    rig.add("op=get-features drop times=100");
    for _ in 0..100 {
        rig.host.submit(0, get_feature());
        rig.host.identify(CONTROLLER, 0);
    }
    rig.host.forget(0);
    rig.host.admin(get_feature()).ok();
    rig.ends_well();
}

#[test]
fn an_abort_fails() {
    let mut rig = Rig::new(1);
    let stall = rig.add("op=flush stall times=1");
    rig.add("op=abort status=success dw0=1");
    let held = rig.host.submit(1, Sqe::new(io::FLUSH).nsid(1));
    let abort = Sqe::new(admin::ABORT).cdw(10, u32::from(held) << 16 | 1);
    assert_eq!(rig.host.admin(abort).ok().dw0, 1, "not aborted");
    assert!(rig.host.try_wait(1, held, 50 * MS).is_none());
    assert_eq!(rig.faults.release(Some(&stall), DEADLINE), Some(1));
    rig.host.wait(1, held).ok();
    rig.ends_well();
}

/// A command that ends with a worker's answer.
#[test]
fn what_completes_later_is_bent_too() {
    let mut rig = Rig::new(2);
    rig.add("op=delete-sq status=internal-error partial=all");
    assert_eq!(rig.host.admin(Sqe::new(admin::DELETE_SQ).cdw(10, 2)).code(), 6);
    rig.faults.clear(None, DEADLINE);
    assert_eq!(rig.host.admin(Sqe::new(admin::DELETE_SQ).cdw(10, 2)).code(), 0x101, "it is gone");
    rig.host.forget(2);
    rig.ends_well();
}

#[test]
fn an_admin_command_makes_the_controller_fatal() {
    let mut rig = Rig::new(1);
    rig.add("op=get-features cfs times=1");
    rig.host.submit(0, get_feature());
    rig.host.wait_csts(2, 2);
    rig.host.forget(0);
    rig.host.enable();
    rig.host.io_queues(1, 64);
    rig.host.admin(get_feature()).ok();
    rig.ends_well();
}
