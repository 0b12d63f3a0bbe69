//! Identify, features, logs, abort, events.

use std::time::Duration;

use crate::host::le::{u16_at, u32_at, u64_at};
use crate::host::nvme::{admin, io, st};
use crate::host::*;

const SOON: Duration = Duration::from_millis(50);

fn text(b: &[u8]) -> &str {
    let s = std::str::from_utf8(b).expect("ASCII");
    assert!(!s.contains('\0'), "padded with NUL instead of spaces: {s:?}");
    s.trim_end()
}

#[test]
fn identify_controller() {
    let d = Daemon::start("--nvme serial=S-4711");
    let mut h = Host::attach(&d);
    let ids = ctrl::pci_ids(&mut h.client);
    let b = h.identify(1, 0);
    assert_eq!((u16_at(&b, 0), u16_at(&b, 2) != 0), (ids.0, true), "VID");
    assert_eq!(text(&b[4..24]), "S-4711");
    assert!(!text(&b[24..64]).is_empty(), "model");
    assert!(!text(&b[64..72]).is_empty(), "firmware");
    assert_eq!(b[77], 7, "MDTS");
    assert_eq!(b[76] & 0xe, 0, "CMIC: one controller");
    assert_eq!(u32_at(&b, 80), 0x0002_0000);
    assert_eq!(b[111], 1, "an I/O controller");
    assert!(u32_at(&b, 92) & 0x100 != 0, "OAES: without it Linux sends no AER");
    let ctratt = u32_at(&b, 96);
    assert_eq!(ctratt & 0x8000, 0, "ELBAS makes Linux overwrite CDFE");
    assert_eq!(&b[128..134], [0; 6], "CRDT1 does the same");
    assert_eq!(u32_at(&b, 272), 0, "HMPRE makes Linux give away memory");
    assert_eq!(b[265], 0, "APSTA");
    assert_eq!((b[512], b[513]), (0x66, 0x44), "SQES, CQES");
    assert!(u32_at(&b, 516) >= 1, "NN");
    let oncs = u16_at(&b, 520);
    for (bit, what) in
        [(0, "compare"), (2, "DSM"), (3, "write zeroes"), (7, "verify"), (8, "copy"), (9, "NVMCSA")]
    {
        assert_eq!(oncs >> bit & 1, 1, "ONCS: {what}");
    }
    assert_eq!(oncs >> 10 & 1, 0, "not every copy is a fast one");
    assert_eq!(u16_at(&b, 534) & 0x5, 0x5, "OCFS: formats 0 and 2");
    let sgls = u32_at(&b, 536);
    assert!(sgls & 3 == 1 || sgls & 3 == 2, "SGLS {sgls:#x}");
    assert_eq!(sgls >> 16 & 1, 1, "bit bucket");
    let nqn = &b[768..1024];
    let end = nqn.iter().position(|&c| c == 0).expect("NUL");
    let nqn = std::str::from_utf8(&nqn[..end]).unwrap();
    assert!(nqn.starts_with("nqn.") && nqn.len() < 223, "{nqn}");
    assert!(b[2048..2050] != [0, 0], "PSD0: power of state 0");
}

/// Two devices must not look like one subsystem to a host.
#[test]
fn identities_differ_between_devices() {
    let read = || {
        let d = Daemon::start("");
        let mut h = Host::attach(&d);
        let c = h.identify(1, 0);
        let n = h.identify(0, 1);
        (c[768..1024].to_vec(), n[104..128].to_vec())
    };
    let (a, b) = (read(), read());
    assert_ne!(a.0, b.0, "SUBNQN");
    assert_ne!(a.1, b.1, "NGUID and EUI64");
}

#[test]
fn mdts_and_aerl_by_property() {
    let d = Daemon::start("--nvme serial=x,mdts=5,aerl=1,max_ioqpairs=3");
    let mut h = Host::attach(&d);
    let b = h.identify(1, 0);
    assert_eq!((b[77], b[259]), (5, 1));
    let n = h.set_feature(0x07, 0x001f_001f).dw0;
    assert_eq!(n, 0x0002_0002, "queue pairs, 0-based");
    h.io_queues(3, 8);
    let base = h.ram.pages(1);
    h.admin(Host::create_cq_sqe(4, 8, base, None)).is(st::QID_INVALID, "a fourth CQ");
    let ns = Ns::facts(&mut h, 1);
    let blocks = (128 * 1024 / ns.lba) as u32;
    h.read(3, &ns, 0, blocks);
    let data = Data::prp(&mut h.ram, 132 * 1024);
    h.exec(1, Host::rw(io::READ, &ns, 0, blocks + 1).data(&data)).is(st::INVALID_FIELD, "MDTS");
}

#[test]
fn identify_namespaces() {
    let d = Daemon::start(
        "--nvme-ns drive=memory,size=1M,logical_block_size=512 \
         --nvme-ns drive={}/a.img,size=8M,logical_block_size=4096,nsid=5,mssrl=10,mcl=40,msrc=3 \
         --nvme-ns drive=memory,size=2M,nsid=2",
    );
    let mut h = Host::attach(&d);
    let nn = u32_at(&h.identify(1, 0), 516);
    assert!(nn >= 5, "NN");
    let list = |b: &[u8]| -> Vec<u32> {
        let v: Vec<u32> = (0..1024).map(|i| u32_at(b, 4 * i)).collect();
        let n = v.iter().position(|&x| x == 0).unwrap();
        assert!(v[n..].iter().all(|&x| x == 0));
        v[..n].to_vec()
    };
    assert_eq!(list(&h.identify(2, 0)), [1, 2, 5]);
    assert_eq!(list(&h.identify(2, 1)), [2, 5]);
    assert_eq!(list(&h.identify(2, 4)), [5]);
    assert_eq!(list(&h.identify(2, 5)), [] as [u32; 0]);
    assert_eq!(list(&h.identify(2, 0xffff_fffd)), [] as [u32; 0]);
    assert_eq!(h.identify_status(2, 0xffff_fffe), st::INVALID_NS);
    assert_eq!(h.identify_status(2, 0xffff_ffff), st::INVALID_NS);

    for (nsid, lba, size) in [(1, 512, 1u64 << 20), (5, 4096, 8 << 20)] {
        let ns = Ns::facts(&mut h, nsid);
        assert_eq!((ns.lba, ns.nsze), (lba, size / lba as u64));
        let b = h.identify(0, nsid);
        assert_eq!(u64_at(&b, 8), ns.nsze, "NCAP");
        assert!(u64_at(&b, 16) <= ns.nsze, "NUSE");
        assert_eq!(b[28] | b[29] | b[27], 0, "no metadata, no PI");
        assert_eq!(b[33] & 7, 1, "DLFEAT: deallocated reads as zeroes");
        assert_eq!(b[99] & 1, 0, "not write protected");
        assert!(b[104..120] != [0; 16] || b[120..128] != [0; 8], "an identifier");
        let (nlbaf, flbas) = (usize::from(b[25]), usize::from(b[26] & 0xf));
        assert!(flbas <= nlbaf && nlbaf < 16);
    }
    let one = Ns::facts(&mut h, 1);
    assert_eq!((one.mssrl, one.mcl, one.ranges), (32768, 131_072, 127), "defaults");
    let five = Ns::facts(&mut h, 5);
    assert_eq!((five.mssrl, five.mcl, five.ranges), (10, 40, 4), "by property");

    for cns in [0u8, 3, 5, 8] {
        assert_eq!(h.identify_status(cns, 0), st::INVALID_NS, "CNS {cns} of 0");
        assert_eq!(h.identify_status(cns, nn + 1), st::INVALID_NS, "CNS {cns} past NN");
        if cns != 0 {
            assert_eq!(h.identify_status(cns, u32::MAX), st::INVALID_NS, "CNS {cns}");
        }
    }
    // Valid but not active: all zeroes.
    for cns in [0, 5, 8] {
        assert!(h.identify(cns, 3).iter().all(|&x| x == 0), "CNS {cns}");
    }
    assert_eq!(h.identify_status(3, 3), st::INVALID_FIELD);
    for cns in [0x09, 0x0a, 0x14, 0x1d, 0x30, 0xff] {
        assert_eq!(h.identify_status(cns, 1), st::INVALID_FIELD, "CNS {cns:#x}");
    }

    // Descriptors: lengths that fit their types, at least one of them, ended by NIDL 0.
    let mut seen = Vec::new();
    for nsid in [1, 2, 5] {
        let b = h.identify(3, nsid);
        let mut at = 0;
        while b[at + 1] != 0 {
            let (nidt, nidl) = (b[at], usize::from(b[at + 1]));
            let want = [8, 16, 16, 1][usize::from(nidt) - 1];
            assert_eq!(nidl, want, "NIDT {nidt}");
            if nidt < 4 {
                seen.push(b[at + 4..at + 4 + nidl].to_vec());
            }
            at += 4 + nidl;
        }
        assert!(at > 0 && b[at..].iter().all(|&x| x == 0));
        let c = h.identify(8, nsid);
        assert_eq!(c[14] & 1, 1, "NSTAT: ready, or Linux does not add it");
        h.identify(5, nsid);
    }
    let n = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), n, "namespaces share an identifier");
    h.identify(6, 0);
}

/// A namespace identifier that changes with each start would lose the guest's mounts.
#[test]
fn identifiers_of_an_image_stay() {
    let mut d = Daemon::start("--nvme serial=q1 --nvme-ns drive={}/a.img,size=1M");
    let read = |d: &Daemon| {
        let mut h = Host::attach(d);
        (h.identify(3, 1), h.identify(0, 1)[104..128].to_vec())
    };
    let before = read(&d);
    d.stop();
    d.again();
    assert!(read(&d) == before);
}

#[test]
fn identify_into_any_page() {
    let d = Daemon::start("");
    let mut h = Host::attach(&d);
    let want = h.identify(1, 0);
    // Crossing a page, with PRP2.
    let data = Data::prp_shape(
        &mut h.ram,
        4096,
        Prp { offset: 2048, scatter: true, ..Prp::default() },
        &mut Rng::fixed(),
    );
    let s = Sqe::new(admin::IDENTIFY).cdw(10, 1).data(&data);
    h.admin(s).ok();
    assert_eq!(data.get(&h.ram), want);
    // SGLs are not for admin commands on PCIe.
    let sgl = Data::sgl(&mut h.ram, &[Sgl::Block { len: 4096, offset: 0 }], &[]);
    let s = Sqe::new(admin::IDENTIFY).cdw(10, 1).data(&sgl);
    h.admin(s).is(st::INVALID_FIELD, "SGL");
    let s = Sqe::new(admin::IDENTIFY).cdw(10, 1).prp(0x77_0000_0000, 0);
    h.admin(s).is(st::DATA_TRANSFER, "no memory there");
}

#[test]
fn unknown_commands() {
    let d = Daemon::start("");
    let mut h = Host::with_queues(&d, 1, 16);
    for op in [0x03, 0x07, 0x0b, 0x0d, 0x10, 0x11, 0x14, 0x19, 0x1c, 0x7f, 0x81, 0xc0, 0xff] {
        h.admin(Sqe::new(op)).is(st::INVALID_OPCODE, "admin");
    }
    for op in [0x03, 0x04, 0x0a, 0x0d, 0x11, 0x12, 0x18, 0x1a, 0x79, 0x7d, 0x80, 0xff] {
        h.exec(1, Sqe::new(op).nsid(1)).is(st::INVALID_OPCODE, "I/O");
    }
    h.admin(Sqe::new(admin::KEEP_ALIVE)).ok();
}

#[test]
fn features() {
    let d = Daemon::start("");
    let mut h = Host::attach(&d);
    for fid in [0x01, 0x02, 0x04, 0x07, 0x08, 0x09, 0x0a, 0x0b] {
        h.get_feature(fid).is(0, &format!("FID {fid:#x}"));
    }
    let s = Sqe::new(admin::GET_FEATURES).nsid(1).cdw(10, 0x05);
    h.admin(s).is(0, "error recovery");
    for fid in [0x00, 0x7c, 0x99, 0xff] {
        assert_eq!(h.get_feature(fid).status, st::INVALID_FIELD, "FID {fid:#x}");
        assert_eq!(h.set_feature(fid, 0).status, st::INVALID_FIELD, "FID {fid:#x}");
    }
    assert_eq!(h.set_feature(0x07, 0xffff_0000).status, st::INVALID_FIELD);
    assert_eq!(h.set_feature(0x07, 0x0000_ffff).status, st::INVALID_FIELD);
    let n = h.set_feature(0x07, 0).dw0;
    assert_eq!(h.get_feature(0x07).ok().dw0, n);

    h.set_feature(0x0b, 0x0000_0103).ok();
    assert_eq!(h.get_feature(0x0b).dw0, 0x0000_0103);
    h.set_feature(0x08, 0x0502).ok();
    assert_eq!(h.get_feature(0x08).dw0 & 0xffff, 0x0502);
    assert_eq!(h.set_feature(0x02, 0x1f).status, st::INVALID_FIELD, "power state 31");
    h.set_feature(0x02, 0).ok();

    let vwc = h.identify(1, 0)[525];
    if vwc & 1 == 1 {
        for v in [0, 1] {
            h.set_feature(0x06, v).ok();
            assert_eq!(h.get_feature(0x06).dw0 & 1, v);
        }
    }
    // After I/O queues exist, their number cannot be talked about.
    h.io_queues(1, 8);
    assert_eq!(h.set_feature(0x07, 0).status, st::SEQUENCE);
    h.get_feature(0x07).ok();
    // A reset forgets what was set.
    h.enable();
    assert_ne!(h.get_feature(0x0b).dw0, 0x0000_0103);
    h.set_feature(0x07, 0).ok();
}

#[test]
fn log_pages() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    let mut ns = Ns::identify(&mut h, 1);
    let counters = |b: &[u8]| (u64_at(b, 32), u64_at(b, 48), u64_at(b, 64), u64_at(b, 80));

    let (c, smart) = h.log(2, u32::MAX, 0, 512);
    c.ok();
    assert_eq!(smart[0], 0, "critical warning");
    assert!((273..400).contains(&u16_at(&smart, 1)), "kelvin");
    h.fill(1, &mut ns, 1);
    ns.verify(&mut h, 1);
    let (_, after) = h.log(2, u32::MAX, 0, 512);
    let (a, b) = (counters(&smart), counters(&after));
    assert!(b.2 >= a.2 + 8 && b.3 >= a.3 + 8, "host commands {a:?} {b:?}");
    assert!(b.0 > a.0 && b.1 > a.1, "data units {a:?} {b:?}");

    let (c, effects) = h.log(5, 0, 0, 4096);
    c.ok();
    for op in [admin::IDENTIFY, admin::CREATE_SQ, admin::GET_LOG, admin::AER] {
        assert_eq!(u32_at(&effects, 4 * usize::from(op)) & 1, 1, "admin {op:#x}");
    }
    assert_eq!(u32_at(&effects, 4 * 0xff), 0);
    for (op, bits) in [(io::READ, 1), (io::FLUSH, 1), (io::COMPARE, 1), (io::VERIFY, 1)] {
        assert_eq!(u32_at(&effects, 1024 + 4 * usize::from(op)) & 3, bits, "I/O {op:#x}");
    }
    for op in [io::WRITE, io::WRITE_ZEROES, io::DSM, io::COPY] {
        // More bits than these make Linux warn and refuse unprivileged passthrough.
        assert_eq!(u32_at(&effects, 1024 + 4 * usize::from(op)), 3, "I/O {op:#x}");
    }
    h.log(1, 0, 0, 64).0.ok();
    let (c, fw) = h.log(3, 0, 0, 512);
    c.ok();
    let id = h.identify(1, 0);
    assert_eq!(fw[8..16], id[64..72], "revision in slot 1");
    h.log(4, 0, 0, 4096).0.ok();
    let (c, supported) = h.log(0, 0, 0, 1024);
    if c.status == 0 {
        for lid in [1, 2, 3, 5] {
            assert_eq!(u32_at(&supported, 4 * lid) & 1, 1, "LID {lid}");
        }
    }

    // In parts, with an offset, and longer than 64 Ki dwords would need in NUMDL alone.
    for (at, len) in [(0u64, 4usize), (4, 8), (1024, 1024), (4092, 4), (2048, 2048)] {
        let (c, part) = h.log(5, 0, at, len);
        c.ok();
        assert_eq!(part, effects[at as usize..at as usize + len], "{at}+{len}");
    }
    for (at, what) in [(2u64, "unaligned"), (4100, "beyond"), (1 << 40, "far beyond")] {
        h.log(5, 0, at, 4).0.is(st::INVALID_FIELD, what);
    }
    for lid in [0x6f, 0xbe, 0xff] {
        h.log(lid, 0, 0, 64).0.is(st::LOG_PAGE_INVALID, "LID");
    }
}

#[test]
fn abort() {
    let d = Daemon::start("");
    let mut h = Host::with_queues(&d, 1, 16);
    let sqe = |sqid: u16, cid: u16| Sqe::new(admin::ABORT).cdw(10, u32::from(cid) << 16 | u32::from(sqid));
    let c = h.admin(sqe(1, 77));
    assert_eq!((c.status, c.dw0 & 1), (0, 1), "nothing to abort");
    let c = h.admin(sqe(0, 77));
    assert_eq!((c.status, c.dw0 & 1), (0, 1));
    let c = h.admin(sqe(999, 77));
    assert!(matches!(c.status, st::OK | st::INVALID_FIELD), "{c:?}");
    // An AER can be aborted for certain: it only waits.
    let aer = h.submit(0, Sqe::new(admin::AER));
    let c = h.admin(sqe(0, aer));
    c.ok();
    if c.dw0 & 1 == 0 {
        assert_eq!(h.wait(0, aer).code(), st::ABORT_REQUESTED);
    } else {
        assert!(h.try_wait(0, aer, SOON).is_none());
    }
}

#[test]
fn event_requests_are_limited() {
    let d = Daemon::start("--nvme serial=x,aerl=2");
    let mut h = Host::attach(&d);
    let held: Vec<u16> = (0..3).map(|_| h.submit(0, Sqe::new(admin::AER))).collect();
    let one_more = h.admin(Sqe::new(admin::AER));
    assert_eq!(one_more.code(), st::AER_LIMIT & 0x7ff);
    for cid in held {
        assert!(h.try_wait(0, cid, SOON).is_none(), "completed for no reason");
    }
    // They vanish at reset, and all can be given again.
    h.enable();
    for _ in 0..3 {
        h.submit(0, Sqe::new(admin::AER));
    }
    h.get_feature(0x07).ok();
}

/// Event type Error with this information; log 01h.
fn event(h: &mut Host, aer: u16, info: u32, what: &str) {
    let c = h.wait(0, aer);
    c.is(0, what);
    assert_eq!(c.dw0, 0x01 << 16 | info << 8, "{what}: {:#x}", c.dw0);
    h.log(1, 0, 0, 64).0.ok();
}

#[test]
fn bad_doorbells_raise_the_error_event_and_nothing_else() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 2, 8);
    let mut ns = Ns::identify(&mut h, 1);
    let mut aer = h.submit(0, Sqe::new(admin::AER));
    let far = 2 * 500;
    for (index, value, info, what) in [
        (2 * 3, 1, 0, "SQ that does not exist"),
        (2 * 3 + 1, 1, 0, "CQ that does not exist"),
        (far, 0, 0, "far SQ"),
        (2, 8, 1, "SQ tail = size"),
        (2, 0xffff, 1, "SQ tail wild"),
        (4, 9, 1, "SQ tail > size"),
        (3, 8, 1, "CQ head = size"),
        (5, 0xfffe, 1, "CQ head wild"),
        (0, 32, 1, "admin SQ tail"),
        (1, 32, 1, "admin CQ head"),
    ] {
        h.doorbell(index, value);
        event(&mut h, aer, info, what);
        aer = h.submit(0, Sqe::new(admin::AER));
        for q in [1, 2] {
            h.write(q, &mut ns, u64::from(index as u32 % 100), 2, 1);
        }
    }
    // Once reported, the type is silent until its log is read.
    h.doorbell(2, 100);
    let c = h.wait(0, aer);
    assert_eq!(c.dw0 & 7, 0);
    let aer = h.submit(0, Sqe::new(admin::AER));
    h.doorbell(2, 100);
    assert!(h.try_wait(0, aer, SOON).is_none(), "masked");
    ns.verify(&mut h, 1);
    assert_eq!(h.csts(), 1);
}

/// The upper half of a doorbell is reserved; neighbours that are not doorbells are harmless.
#[test]
fn doorbells_of_odd_shape() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 1, 8);
    let ns = Ns::facts(&mut h, 1);
    let data = Data::prp(&mut h.ram, ns.lba);
    let cid = h.queue(1, Host::rw(io::READ, &ns, 0, 1).data(&data));
    h.doorbell(2, 0xdead_0000 | 1);
    h.wait(1, cid).ok();
    // Doorbells are write-only; what a read gives is nobody's business, but it gives something.
    h.client.region_read(0, 0x1000, 4);
    for (at, n) in [(0x1009u64, 1), (0x100a, 2), (0x1008, 8), (0x1ffc, 4)] {
        h.client.region_write(0, at, &vec![0; n]);
    }
    h.read(1, &ns, 0, 1);
}
