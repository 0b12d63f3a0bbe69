//! Reads and writes whose data is not what it should be.

use vfio_user_nvme::disk::LaneKind;

use super::Rig;
use crate::host::nvme::{Range, io};
use crate::host::{Host, Sqe};
use crate::with_each_lane;

fn set(rig: &mut Rig, slba: u64, blocks: u32, salt: u64) {
    let bytes = rig.ns[0].pattern(slba, blocks, salt);
    rig.ns[0].set(slba, &bytes);
}

#[test]
fn a_write_fails_in_the_middle() {
    with_each_lane(|kind| {
        for files in [false, true] {
            let mut rig = Rig::with(1, kind, files);
            rig.add("op=write status=write-fault partial=prefix:3 times=1");
            assert_eq!(rig.write(8, 8, 2).code(), 0x280);
            set(&mut rig, 8, 3, 2);
            rig.add("op=write-zeroes status=write-fault partial=prefix:2 times=1");
            assert_eq!(rig.host.exec(1, Sqe::new(io::WRITE_ZEROES).nsid(1).lba(100, 8)).code(), 0x280);
            rig.ns[0].set(100, &[0; 1024]);
            rig.ends_well();
        }
    });
}

#[test]
fn a_read_fails_in_the_middle_and_brings_the_rest_of_nothing() {
    with_each_lane(|kind| {
        for files in [false, true] {
            let mut rig = Rig::with(1, kind, files);
            rig.add("op=read status=unrecovered-read-error partial=prefix:3");
            let to = rig.host.ram.pages(1);
            rig.host.ram.write(to, &[0xee; 4096]);
            let cqe = rig.host.exec(1, Sqe::new(io::READ).nsid(1).lba(8, 8).prp(to, 0));
            assert_eq!(cqe.code(), 0x281);
            let got = rig.host.ram.read(to, 4096);
            assert_eq!((&got[..1536], &got[1536..]), (rig.ns[0].at(8, 3), &[0xee; 2560][..]));
            rig.ends_well();
        }
    });
}

#[test]
fn a_torn_write_says_success() {
    let mut rig = Rig::new(1);
    rig.add("op=write torn=1000 times=1");
    rig.write(8, 8, 2).ok();
    let new = rig.ns[0].pattern(8, 8, 2);
    let mut torn = rig.ns[0].at(8, 8).to_vec();
    torn[..1000].copy_from_slice(&new[..1000]);
    rig.ns[0].set(8, &torn);
    rig.ends_well();
}

/// Of one block, whichever command reads it, and of no other.
#[test]
fn bits_are_flipped_on_the_way_to_the_host() {
    let mut rig = Rig::with(1, LaneKind::Threads, true);
    rig.add("op=read lba=100 xor=01ff@17");
    let Rig { host, ns, .. } = &mut rig;
    for (slba, blocks) in [(100, 1), (96, 8), (100, 8)] {
        let mut want = ns[0].at(slba, blocks).to_vec();
        let at = (100 - slba as usize) * 512 + 17;
        want[at] ^= 0x01;
        want[at + 1] ^= 0xff;
        assert_eq!(host.read(1, &ns[0], slba, blocks), want, "{slba}+{blocks}");
    }
    assert_eq!(host.read(1, &ns[0], 101, 8), ns[0].at(101, 8));
    rig.ends_well();
}

#[test]
fn bits_are_flipped_on_the_way_to_the_image() {
    let mut rig = Rig::new(1);
    rig.add("op=write xor=40 every_nth=2");
    for slba in [8, 16] {
        rig.write(slba, 8, 2).ok();
        set(&mut rig, slba, 8, 2);
    }
    let mut block = rig.ns[0].at(16, 1).to_vec();
    block[0] ^= 0x40;
    rig.ns[0].set(16, &block);
    rig.ends_well();
}

#[test]
fn bad_blocks_are_healed_by_writes() {
    let mut rig = Rig::with(1, LaneKind::Threads, true);
    let name = rig.add("nsid=1 lba=100-103 bad");
    rig.read(90, 10).ok();
    assert_eq!(rig.read(90, 11).code(), 0x281);
    let compare = Sqe::new(io::VERIFY).nsid(1).lba(103, 1);
    assert_eq!(rig.host.exec(1, compare).code(), 0x281);
    // Range 0 is whole by then.
    let cqe = rig.copy(1000, &[Range::new(0, 8), Range::new(98, 4)]);
    assert_eq!((cqe.code(), cqe.dw0 < 2), (0x281, true), "{cqe:?}");
    let copied = rig.host.read(1, &rig.ns[0], 1000, 12);
    rig.ns[0].set(1000, &copied);
    // Of namespace 2 nothing is bad.
    assert_eq!(rig.host.read(1, &rig.ns[1], 100, 4), rig.ns[1].at(100, 4));
    rig.write(101, 2, 2).ok();
    set(&mut rig, 101, 2, 2);
    assert_eq!(rig.rule(&name).bad_blocks, Some(2));
    rig.read(101, 2).ok();
    assert_eq!(rig.read(100, 2).code(), 0x281);
    // A Copy writes, too.
    rig.copy(100, &[Range::new(0, 4)]).ok();
    rig.copied(100, &[Range::new(0, 4)], |_| true);
    let report = rig.rule(&name);
    assert_eq!((report.bad_blocks, report.spent, report.fired), (Some(0), true, 4));
    let at = Host::rw(io::VERIFY, &rig.ns[0], 90, 20);
    rig.host.exec(1, at).ok();
    rig.ends_well();
}
