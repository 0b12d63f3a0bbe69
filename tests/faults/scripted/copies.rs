//! Copies that fail in part, and exactly so.

use vfio_user_nvme::disk::LaneKind;

use super::{MS, Rig};
use crate::host::nvme::{Range, copy, io};
use crate::host::{DEADLINE, Sqe};
use crate::with_each_lane;

/// Four ranges of 8, 1, 16 and 40 blocks.
fn ranges() -> Vec<Range> {
    vec![Range::new(0, 8), Range::new(100, 1), Range::new(50, 16), Range::new(200, 40)]
}

/// Where each of them begins in the destination, and the end.
const STARTS: [u64; 5] = [0, 8, 9, 25, 65];

/// Runs a Copy that `rule` bends, in memory and in files, with each lane: what of it lands is what `lands` says, and DW0 is
/// right.
fn bent(rule: &str, status: u16, dw0: u32, lands: impl Fn(u64) -> bool + Copy + Sync) {
    with_each_lane(|kind| {
        for files in [false, true] {
            let mut rig = Rig::with(1, kind, files);
            rig.add(rule);
            let cqe = rig.copy(1000, &ranges());
            assert_eq!((cqe.code(), cqe.dw0), (status, dw0), "{rule}");
            rig.copied(1000, &ranges(), lands);
            rig.ends_well();
        }
    });
}

#[test]
fn nothing_is_written() {
    bent("op=copy status=write-fault partial=nothing", 0x280, 0, |_| false);
    // As soon as it is fetched.
    bent("op=copy status=internal-error", 6, 0, |_| false);
}

#[test]
fn a_prefix_is_written() {
    bent("op=copy status=write-fault partial=prefix:2", 0x280, 2, |block| block < 9);
    bent("op=copy status=write-fault partial=prefix:2+3", 0x280, 2, |block| block < 12);
}

#[test]
fn it_fails_at_one_range() {
    bent("op=copy range=3 status=unrecovered-read-error", 0x281, 3, |block| block < 25);
    bent("op=copy range=0 status=write-fault", 0x280, 0, |_| false);
}

#[test]
fn more_is_written_than_dw0_says() {
    bent("op=copy status=write-fault partial=beyond:1", 0x280, 1, |_| true);
}

#[test]
fn it_succeeds_and_wrote_half() {
    bent("op=copy status=success partial=prefix:2", 0, 0, |block| block < 9);
}

/// The same blocks for the same seed, whatever the image; and DW0 is the first range that is not whole.
#[test]
fn blocks_are_scattered_as_the_seed_says() {
    let lands = |kind, files, seed: u64| {
        let mut rig = Rig::with(1, kind, files);
        rig.add(&format!("op=copy status=write-fault partial=scattered:{seed}"));
        let cqe = rig.copy(1000, &ranges());
        assert_eq!(cqe.code(), 0x280);
        rig.faults.clear(None, DEADLINE);
        let got = rig.host.read(1, &rig.ns[0], 1000, 65);
        let before = rig.ns[0].at(1000, 65).to_vec();
        let lands: Vec<bool> = got.chunks(512).zip(before.chunks(512)).map(|(now, old)| now != old).collect();
        rig.copied(1000, &ranges(), |block| lands[block as usize]);
        let whole = |at: &usize| (STARTS[*at]..STARTS[at + 1]).all(|block| lands[block as usize]);
        assert_eq!(cqe.dw0 as usize, (0..4).take_while(whole).count());
        rig.ends_well();
        lands
    };
    let first = lands(LaneKind::Threads, false, 7);
    let count = first.iter().filter(|lands| **lands).count();
    assert!((15..50).contains(&count), "about half of 65: {count}");
    assert_eq!(lands(LaneKind::Threads, true, 7), first);
    assert_ne!(lands(LaneKind::Threads, false, 8), first);
}

#[test]
fn a_torn_write_inside_a_copy() {
    let mut rig = Rig::new(1);
    rig.add("op=copy range=2 torn=700");
    rig.copy(1000, &ranges()).ok();
    // 700 bytes of range 2: its first block, and 188 bytes of the second.
    rig.copied(1000, &ranges(), |block| !(10..25).contains(&block));
    let source = rig.ns[0].at(51, 1)[..188].to_vec();
    let mut torn = rig.ns[0].at(1010, 1).to_vec();
    torn[..188].copy_from_slice(&source);
    rig.ns[0].set(1010, &torn);
    rig.ends_well();
}

#[test]
fn bits_are_flipped_inside_a_copy() {
    let mut rig = Rig::new(1);
    rig.add("op=copy range=1 xor=80@511");
    rig.copy(1000, &ranges()).ok();
    rig.copied(1000, &ranges(), |_| true);
    let mut block = rig.ns[0].at(1008, 1).to_vec();
    block[511] ^= 0x80;
    rig.ns[0].set(1008, &block);
    rig.ends_well();
}

/// Sources that the Copy overwrites are read first, bent or not.
#[test]
fn overlapping_ranges_come_from_what_was_there() {
    let mut rig = Rig::new(1);
    rig.add("op=copy status=write-fault partial=prefix:1+20");
    let ranges = [Range::new(1010, 30), Range::new(990, 30)];
    assert_eq!(rig.copy(1000, &ranges).code(), 0x280);
    rig.copied(1000, &ranges, |block| block < 50);
    rig.ends_well();
}

#[test]
fn one_range_is_late_and_the_others_are_not() {
    let mut rig = Rig::new(2);
    let name = rig.add("op=copy range=2 stall");
    let list: Vec<u8> = ranges().iter().flat_map(|range| range.bytes(0)).collect();
    let data = rig.host.ram.pages(1);
    rig.host.ram.write(data, &list);
    let cid = rig.host.submit(1, copy(1, 1000, 4, 0).prp(data, 0));
    assert!(rig.host.try_wait(1, cid, 100 * MS).is_none());
    let held = |rig: &mut Rig| rig.host.read(2, &rig.ns[0], 1000, 65);
    let now = held(&mut rig);
    let old = rig.ns[0].at(1000, 65).to_vec();
    rig.copied(1000, &ranges(), |block| !(9..25).contains(&block));
    assert_eq!(now, rig.ns[0].at(1000, 65), "all but range 2");
    assert_eq!(now[9 * 512..25 * 512], old[9 * 512..25 * 512]);
    assert_eq!(rig.faults.release(Some(&name), DEADLINE), Some(1));
    rig.host.wait(1, cid).ok();
    rig.copied(1000, &ranges(), |block| (9..25).contains(&block));
    rig.ends_well();
}

#[test]
fn copies_are_met_by_their_blocks() {
    let mut rig = Rig::new(1);
    let source = rig.add("op=copy source=60-70 status=unrecovered-read-error");
    let target = rig.add("op=copy lba=1500 status=write-fault");
    assert_eq!(rig.copy(1000, &[Range::new(0, 8), Range::new(50, 16)]).code(), 0x281);
    rig.copy(1000, &[Range::new(0, 8), Range::new(50, 10)]).ok();
    rig.copied(1000, &[Range::new(0, 8), Range::new(50, 10)], |_| true);
    assert_eq!(rig.copy(1490, &[Range::new(0, 8), Range::new(10, 8)]).code(), 0x280);
    assert_eq!((rig.fired(&source), rig.fired(&target)), (1, 1));
    // One that is refused by its own checks is none yet.
    assert_eq!(rig.copy(1500, &[Range::new(1 << 30, 8)]).code(), 0x80);
    assert_eq!(rig.rule(&target).matched, 1);
    rig.ends_well();
}

/// From another namespace, which formats 2h and 3h allow.
#[test]
fn a_copy_between_namespaces_is_bent_too() {
    let mut rig = Rig::with(1, LaneKind::Threads, true);
    rig.add("op=copy range=1 status=write-fault");
    let ranges = [Range::of(2, 0, 8), Range::of(1, 8, 8)];
    let list: Vec<u8> = ranges.iter().flat_map(|range| range.bytes(2)).collect();
    let cqe = rig.host.send(1, copy(1, 1000, 2, 2), &list);
    assert_eq!((cqe.code(), cqe.dw0), (0x280, 1));
    let bytes = rig.ns[1].at(0, 8).to_vec();
    rig.ns[0].set(1000, &bytes);
    rig.ends_well();
}

/// It waits before it has done anything, and an Abort ends it.
#[test]
fn a_stalled_copy_can_be_aborted() {
    let mut rig = Rig::new(1);
    rig.add("op=copy stall");
    let data = rig.host.ram.pages(1);
    rig.host.ram.write(data, &Range::new(0, 8).bytes(0));
    let cid = rig.host.submit(1, copy(1, 1000, 1, 0).prp(data, 0));
    assert!(rig.host.try_wait(1, cid, 50 * MS).is_none());
    let abort = Sqe::new(8).cdw(10, u32::from(cid) << 16 | 1);
    assert_eq!(rig.host.admin(abort).ok().dw0, 0, "it was aborted");
    rig.host.wait(1, cid).is(7, "");
    rig.host.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
    rig.ends_well();
}
