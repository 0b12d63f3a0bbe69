//! CC.EN and CC.SHN, answered late, never or fatally.

use std::time::{Duration, Instant};

use super::{MS, Rig};
use crate::host::DEADLINE;
use crate::host::ctrl::{CC_EN, CC_LINUX, CFS, RDY, reg};

const SHST: u32 = 0xc;

/// CSTS is `csts` for so long at least.
#[track_caller]
fn stays(rig: &mut Rig, csts: u32, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert_eq!(rig.host.csts(), csts);
        std::thread::sleep(5 * MS);
    }
}

/// As after a reset, with queues.
fn again(rig: &mut Rig) {
    rig.host.forget(1);
    rig.host.enable();
    rig.host.io_queues(1, 64);
}

#[test]
fn a_reset_is_slow() {
    let mut rig = Rig::new(1);
    rig.add("op=disable delay=200ms times=1");
    let start = Instant::now();
    rig.host.client.w32(reg::CC, CC_LINUX);
    stays(&mut rig, RDY, 150 * MS);
    rig.host.wait_csts(RDY, 0);
    assert!(start.elapsed() >= 200 * MS);
    again(&mut rig);
    rig.ends_well();
}

#[test]
fn a_reset_never_ends_until_it_is_released() {
    let mut rig = Rig::new(1);
    let name = rig.add("op=disable stall times=1");
    rig.host.client.w32(reg::CC, CC_LINUX);
    stays(&mut rig, RDY, 100 * MS);
    assert_eq!(rig.rule(&name).held, 1);
    assert_eq!(rig.faults.release(Some(&name), DEADLINE), Some(1));
    rig.host.wait_csts(RDY, 0);
    again(&mut rig);
    rig.ends_well();
}

/// What a host does that has waited long enough.
#[test]
fn a_function_level_reset_ends_a_reset_that_does_not() {
    let mut rig = Rig::new(1);
    rig.add("op=disable stall times=1");
    rig.host.client.w32(reg::CC, CC_LINUX);
    stays(&mut rig, RDY, 50 * MS);
    rig.host.client.reset();
    rig.host.wait_csts(RDY, 0);
    rig.host.connect_interrupts();
    again(&mut rig);
    rig.ends_well();
}

#[test]
fn ready_comes_late() {
    let mut rig = Rig::new(1);
    rig.host.disable();
    rig.add("op=enable delay=200ms times=1");
    rig.host.admin_queue();
    rig.host.client.w32(reg::CC, CC_LINUX | CC_EN);
    stays(&mut rig, 0, 150 * MS);
    rig.host.wait_csts(RDY, RDY);
    again(&mut rig);
    rig.ends_well();
}

#[test]
fn ready_never_comes_and_another_try_succeeds() {
    let mut rig = Rig::new(1);
    rig.host.disable();
    rig.add("op=enable stall times=1");
    rig.host.admin_queue();
    rig.host.client.w32(reg::CC, CC_LINUX | CC_EN);
    stays(&mut rig, 0, 100 * MS);
    rig.host.client.w32(reg::CC, CC_LINUX);
    rig.host.wait_csts(RDY, 0);
    again(&mut rig);
    rig.ends_well();
}

#[test]
fn enable_and_disable_are_fatal() {
    let mut rig = Rig::new(1);
    rig.host.disable();
    rig.add("op=enable cfs times=1");
    rig.host.admin_queue();
    rig.host.client.w32(reg::CC, CC_LINUX | CC_EN);
    rig.host.wait_csts(CFS | RDY, CFS);
    rig.host.client.w32(reg::CC, CC_LINUX);
    rig.host.wait_csts(CFS | RDY, 0);
    again(&mut rig);
    rig.add("op=disable cfs times=1");
    rig.host.client.w32(reg::CC, CC_LINUX);
    rig.host.wait_csts(CFS, CFS);
    stays(&mut rig, RDY | CFS, 100 * MS);
    rig.host.client.reset();
    rig.host.wait_csts(RDY | CFS, 0);
    rig.host.connect_interrupts();
    again(&mut rig);
    rig.ends_well();
}

#[test]
fn a_shutdown_takes_its_time() {
    let mut rig = Rig::new(1);
    rig.add("op=shutdown delay=200ms times=1");
    rig.host.client.w32(reg::CC, CC_LINUX | CC_EN | 1 << 14);
    stays(&mut rig, RDY | 4, 150 * MS);
    rig.host.wait_csts(SHST, 8);
    again(&mut rig);
    rig.ends_well();
}
