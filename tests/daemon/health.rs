//! What the device says of its own state: critical warnings and their events, the Error Information log.

use std::time::Duration;

use crate::host::le::{u16_at, u32_at, u64_at};
use crate::host::nvme::{Range, admin, copy, io, st};
use crate::host::*;

const SOON: Duration = Duration::from_millis(50);
/// Bits of Critical Warning, and of the SMART half of Async Event Config.
const TEMPERATURE: u8 = 1 << 1;
const READ_ONLY: u8 = 1 << 3;

fn smart(h: &mut Host) -> Vec<u8> {
    let (c, log) = h.log(2, u32::MAX, 0, 512);
    c.ok();
    log
}

fn error_log(h: &mut Host) -> Vec<Vec<u8>> {
    let (c, log) = h.log(1, 0, 0, 64 * 64);
    c.ok();
    let entries: Vec<Vec<u8>> = log.chunks(64).map(<[u8]>::to_vec).collect();
    let used = entries.iter().take_while(|entry| u64_at(entry, 0) != 0).count();
    assert!(entries[used..].iter().flatten().all(|&byte| byte == 0), "entries follow each other");
    entries[..used].to_vec()
}

/// Temperature Threshold of the composite temperature: over (0) or under (1).
fn threshold(h: &mut Host, under: u32, kelvin: u16) {
    h.set_feature(0x04, under << 20 | u32::from(kelvin)).ok();
}

#[test]
fn the_temperature_warning_goes_with_its_event() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::attach(&d);
    let now = u16_at(&smart(&mut h), 1);
    h.set_feature(0x0b, TEMPERATURE.into()).ok();
    let aer = h.submit(0, Sqe::new(admin::AER));
    // At the threshold counts, on both sides.
    for (under, good) in [(0, now + 1), (1, now - 1)] {
        threshold(&mut h, under, good);
        assert_eq!(smart(&mut h)[0], 0, "under {under}");
    }
    assert!(h.try_wait(0, aer, SOON).is_none(), "an event without a warning");
    let mut aer = aer;
    for (under, good, bad) in [(0, now + 1, now), (1, now - 1, now), (0, u16::MAX, 0), (1, 0, u16::MAX)] {
        threshold(&mut h, under, bad);
        assert_eq!(h.wait(0, aer).ok().dw0, 0x02_01_01, "under {under}");
        assert_eq!(smart(&mut h)[0], TEMPERATURE, "under {under}");
        threshold(&mut h, under, good);
        assert_eq!(smart(&mut h)[0], 0, "under {under}");
        aer = h.submit(0, Sqe::new(admin::AER));
    }
    // The warning is there whether its event is wanted or not; the event comes when it is wanted.
    h.set_feature(0x0b, 0).ok();
    threshold(&mut h, 0, 0);
    assert_eq!(smart(&mut h)[0], TEMPERATURE);
    assert!(h.try_wait(0, aer, SOON).is_none(), "an event that nobody wants");
    h.set_feature(0x0b, TEMPERATURE.into()).ok();
    assert_eq!(h.wait(0, aer).ok().dw0, 0x02_01_01);
    // A reset brings the thresholds back, and with them the end of the warning.
    h.enable();
    assert_eq!(smart(&mut h)[0], 0);
}

#[test]
fn media_that_cannot_be_written_is_a_warning() {
    let written = Daemon::start("--nvme-ns drive=memory,size=1M,readonly=on --nvme-ns drive=memory,size=1M");
    assert_eq!(smart(&mut Host::attach(&written))[0], 0, "one can be written");
    let d = Daemon::start(
        "--nvme-ns drive=memory,size=1M,readonly=on --nvme-ns drive=memory,size=1M,readonly=on",
    );
    let mut h = Host::attach(&d);
    assert_eq!(smart(&mut h)[0], READ_ONLY);
    let aer = h.submit(0, Sqe::new(admin::AER));
    h.set_feature(0x0b, READ_ONLY.into()).ok();
    assert_eq!(h.wait(0, aer).ok().dw0, 0x02_00_01, "reliability");
    h.enable();
    assert_eq!(smart(&mut h)[0], READ_ONLY, "for as long as it is so");
}

#[test]
fn failed_commands_are_in_the_error_log() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M --nvme-ns drive={}/a.img,size=1M");
    let mut h = Host::with_queues(&d, 2, 64);
    let ns = Ns::facts(&mut h, 1);
    assert_eq!(u64_at(&smart(&mut h), 176), 0);
    let read = |nsid, slba| Sqe::new(io::READ).nsid(nsid).lba(slba, 1);
    let data = Data::prp(&mut h.ram, ns.lba);
    let cases: Vec<(u16, Sqe, u16, u64, u16)> = vec![
        (1, read(1, ns.nsze).data(&data), st::LBA_RANGE, ns.nsze, 0xffff),
        (2, read(700, 3).data(&data), st::INVALID_NS, 3, 0xffff),
        (2, read(1, 9).prp(0x77_0000_0000, 0), st::DATA_TRANSFER, 9, 0xffff),
        (1, Sqe::new(0xff).nsid(1).cdw(10, 4), st::INVALID_OPCODE, 0, 0),
        (0, Sqe::new(0xff).nsid(1), st::INVALID_OPCODE, 0, 0),
        (0, Sqe::new(admin::GET_FEATURES).nsid(2).cdw(10, 0x7c), st::INVALID_FIELD, 0, 0xffff),
        (1, copy(1, 40, 128, 0).data(&data), st::SIZE_LIMIT, 40, 0xffff),
    ];
    let mut seen = Vec::new();
    for (at, &(qid, sqe, status, lba, location)) in (1..).zip(&cases) {
        let cid = h.submit(qid, sqe);
        let c = h.wait(qid, cid);
        c.is(status, &format!("case {at}"));
        assert!(c.more, "case {at}: M");
        let log = error_log(&mut h);
        assert_eq!(log.len(), at, "case {at}");
        let e = &log[0];
        assert_eq!(u64_at(e, 0), at as u64, "count");
        assert_eq!((u16_at(e, 8), u16_at(e, 10)), (qid, cid), "case {at}: SQID and CID");
        assert_eq!(u16_at(e, 12) >> 1 & !0x2000, status, "case {at}: status");
        assert_eq!(u16_at(e, 14), location, "case {at}: location");
        assert_eq!(u64_at(e, 16), lba, "case {at}: LBA");
        assert_eq!(u32_at(e, 24), u32_at(&sqe.0, 4), "case {at}: NSID");
        assert_eq!((e[30], e[31], e[63]), (0, sqe.0[0], 1), "case {at}: command set, opcode, version");
        seen.insert(0, e.clone());
        assert_eq!(log, seen, "newest first");
        assert_eq!(u64_at(&smart(&mut h), 176), at as u64, "SMART");
    }
    // What succeeds leaves nothing, nor does what the host itself had aborted.
    assert!(!h.exec(1, read(1, 0).data(&data)).more);
    let aer = h.submit(0, Sqe::new(admin::AER));
    h.admin(Sqe::new(admin::ABORT).cdw(10, u32::from(aer) << 16)).ok();
    assert_eq!(h.wait(0, aer).code(), st::ABORT_REQUESTED);
    assert_eq!(error_log(&mut h).len(), seen.len());
    // A bad doorbell has no command to name.
    h.doorbell(2 * 3, 1);
    let log = error_log(&mut h);
    assert_eq!((log.len(), u16_at(&log[0], 8), u16_at(&log[0], 10)), (seen.len() + 1, 0xffff, 0xffff));
    // A reset empties the log; counts go on.
    h.enable();
    assert_eq!(error_log(&mut h), Vec::<Vec<u8>>::new());
    let before = seen.len() as u64 + 1;
    assert_eq!(u64_at(&smart(&mut h), 176), before);
    h.admin(Sqe::new(0xff)).is(st::INVALID_OPCODE, "the first after it");
    assert_eq!(u64_at(&error_log(&mut h)[0], 0), before + 1);
}

/// The log is bounded, the count is not; whoever fails commands as fast as possible holds nobody up.
#[test]
fn a_flood_of_failures_is_counted_and_bounded() {
    const FLOOD: u64 = 2000;
    let d = Daemon::start("--nvme serial=x,iothreads=2 --nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 2, 64);
    let elpe = usize::from(h.identify(1, 0)[262]) + 1;
    for at in 0..FLOOD / 2 {
        let cids = [1, 2].map(|qid| h.submit(qid, Sqe::new(0xff).nsid(1)));
        for (qid, cid) in [1, 2].into_iter().zip(cids) {
            h.wait(qid, cid).is(st::INVALID_OPCODE, "opcode");
        }
        if at % 256 == 0 {
            h.get_feature(0x07).ok();
        }
    }
    let log = error_log(&mut h);
    assert_eq!(log.len(), elpe);
    assert_eq!(u64_at(&smart(&mut h), 176), FLOOD);
    let counts: Vec<u64> = log.iter().map(|entry| u64_at(entry, 0)).collect();
    assert!(counts.windows(2).all(|two| two[0] > two[1]), "newest first: {counts:?}");
    assert!(counts[0] <= FLOOD && counts[0] + 64 > FLOOD, "{counts:?}");
}

/// What Identify says has no limit has none: Write Zeroes and Verify of more than MDTS, Dataset Management of all ranges
/// that its field can count, each of them the whole namespace.
#[test]
fn limits_of_zero_are_none() {
    let d = Daemon::start("--nvme serial=x,mdts=1 --nvme-ns drive=memory,size=32M,logical_block_size=512");
    let mut h = Host::with_queues(&d, 1, 16);
    let id = h.identify(6, 0);
    assert_eq!(id[..16], [0; 16], "VSL, WZSL, WUSL, DMRL, DMRSL, DMSL");
    let ns = Ns::facts(&mut h, 1);
    h.exec(1, Host::rw(io::WRITE_ZEROES, &ns, 0, 65536)).ok();
    h.exec(1, Host::rw(io::VERIFY, &ns, 0, 65536)).ok();
    let mut ranges = vec![0; 16 * 256];
    for range in ranges.chunks_mut(16) {
        range[4..8].copy_from_slice(&65536_u32.to_le_bytes());
    }
    h.send(1, Sqe::new(io::DSM).nsid(1).cdw(10, 255).cdw(11, 4), &ranges).ok();
}

/// MSRC is 0-based: 0 is one range.
#[test]
fn one_range_is_a_limit_too() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M,msrc=0");
    let mut h = Host::with_queues(&d, 1, 16);
    let mut ns = Ns::identify(&mut h, 1);
    assert_eq!(ns.ranges, 1);
    h.write(1, &mut ns, 0, 8, 1);
    let list = [Range::new(0, 4).bytes(0), Range::new(4, 4).bytes(0)].concat();
    h.send(1, copy(1, 100, 2, 0), &list).is(st::SIZE_LIMIT, "two");
    h.send(1, copy(1, 100, 1, 0), &list[..32]).ok();
    let moved = ns.at(0, 4).to_vec();
    ns.set(100, &moved);
    ns.verify(&mut h, 1);
}
