//! Interrupts: put off as the host asked, or while it is at its queue; never lost.

use std::time::{Duration, Instant};

use crate::host::nvme::io;
use crate::host::*;

/// Features.
const COALESCING: u8 = 0x08;
const VECTOR: u8 = 0x09;

/// The longest aggregation time there is.
const LONGEST: Duration = Duration::from_micros(25_500);

/// Aggregation time LONGEST, threshold of 4 (0-based).
const FOUR: u32 = 0xff03;

fn flush() -> Sqe {
    Sqe::new(io::FLUSH).nsid(1)
}

/// Submits `count` commands at once on SQ 1; from there to the interrupt, and how often it came.
fn until_interrupt(h: &mut Host, count: usize) -> (Duration, u64) {
    let start = Instant::now();
    for _ in 0..count {
        h.queue(1, flush());
    }
    h.ring_sq(1);
    let fired = wait_for_interrupt(h, 1);
    (start.elapsed(), fired)
}

fn wait_for_interrupt(h: &Host, vector: usize) -> u64 {
    let start = Instant::now();
    loop {
        match h.fired(vector) {
            0 => assert!(start.elapsed() < DEADLINE, "the interrupt is lost"),
            fired => return fired,
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Takes all that was posted to CQ 1.
fn consume(h: &mut Host, count: usize) {
    let mut left = count;
    while left > 0 {
        left -= h.drain(1);
    }
    h.forget(1);
}

/// Of several tries one at least is faster than the timer, on any machine.
fn soon(h: &mut Host, count: usize) -> bool {
    (0..50).any(|_| {
        let (took, _) = until_interrupt(h, count);
        consume(h, count);
        took < LONGEST
    })
}

#[test]
fn coalescing_waits_for_others_or_for_the_time() {
    let d = Daemon::start("");
    let mut h = Host::with_queues(&d, 1, 64);
    assert!(soon(&mut h, 1), "nothing is coalesced unless the host asks for it");
    h.set_feature(COALESCING, FOUR).ok();
    assert_eq!(h.get_feature(COALESCING).ok().dw0, FOUR);
    for _ in 0..3 {
        let (took, fired) = until_interrupt(&mut h, 1);
        assert!(took >= LONGEST, "{took:?}");
        assert_eq!(fired, 1);
        consume(&mut h, 1);
    }
    assert!(soon(&mut h, 4), "four are the threshold");
    let start = Instant::now();
    h.set_feature(VECTOR, 1 << 16 | 1).ok();
    assert!(soon(&mut h, 1), "coalescing is disabled for the vector");
    h.set_feature(VECTOR, 1).ok();
    assert!(until_interrupt(&mut h, 1).0 >= LONGEST, "and enabled again");
    assert!(start.elapsed() >= LONGEST);
}

#[test]
fn admin_completions_are_not_coalesced() {
    let d = Daemon::start("");
    let mut h = Host::with_queues(&d, 1, 8);
    h.set_feature(COALESCING, 0xffff).ok();
    // The harness learns of admin completions by their interrupt alone.
    let fastest = (0..50).map(|_| {
        let start = Instant::now();
        h.get_feature(COALESCING).ok();
        start.elapsed()
    });
    assert!(fastest.min() < Some(LONGEST));
}

#[test]
fn a_host_that_leaves_its_head_where_it_is_hears_of_everything() {
    for args in ["", "--nvme poll=always", "--nvme doorbells=mmap"] {
        let d = Daemon::start(args);
        let mut h = Host::with_queues(&d, 1, 64);
        for _ in 0..60 {
            h.submit(1, flush());
            wait_for_interrupt(&h, 1);
        }
        consume(&mut h, 60);
    }
}

#[test]
fn a_host_that_moves_its_head_too_late_hears_of_the_rest() {
    let d = Daemon::start("--nvme poll=always");
    let mut h = Host::with_queues(&d, 1, 64);
    for _ in 0..500 {
        let first = h.submit(1, flush());
        wait_for_interrupt(&h, 1);
        // As an interrupt handler: takes what is there and then moves the head, while another one is posted.
        while h.take(1).is_none() {}
        let second = h.submit(1, flush());
        h.ring_cq(1);
        wait_for_interrupt(&h, 1);
        consume(&mut h, 1);
        assert_ne!(first, second);
    }
}
