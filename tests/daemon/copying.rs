//! Copy, formats 0 and 2: against an independent model block by block, and every refusal with proof that nothing
//! moved.

use crate::engines;
use crate::host::data::{SGL_DATA, SGL_LAST, descriptor};
use crate::host::le::{put16, u16_at, u32_at};
use crate::host::nvme::{Range, copy, io, st};
use crate::host::ram::PAGE;
use crate::host::storm::{copied, list, random_copy};
use crate::host::*;

const NOWHERE: u64 = 0x77_0000_0000;

struct Bench {
    daemon: Daemon,
    h: Host,
    nss: Vec<Ns>,
}

impl Bench {
    /// Namespaces filled with patterns; the given NSIDs, in order, are `nss[0]`, `nss[1]`, ...
    fn new(args: &str, nsids: &[u32]) -> Bench {
        let daemon = Daemon::start(args);
        let mut h = Host::with_queues(&daemon, 1, 64);
        let mut nss = Vec::new();
        for &n in nsids {
            let mut ns = Ns::identify(&mut h, n);
            h.fill(1, &mut ns, 1);
            nss.push(ns);
        }
        Bench { daemon, h, nss }
    }

    fn index(&self, nsid: u32) -> usize {
        self.nss.iter().position(|n| n.nsid == nsid).unwrap()
    }

    fn exec(&mut self, nsid: u32, sdlba: u64, ranges: &[Range], format: u8) -> Cqe {
        self.exec_with(copy(nsid, sdlba, ranges.len(), format), ranges, format)
    }

    fn exec_with(&mut self, sqe: Sqe, ranges: &[Range], format: u8) -> Cqe {
        let mark = self.h.ram.mark();
        let data = list(&mut self.h, ranges, format, false, &mut Rng::fixed());
        let c = self.h.exec(1, sqe.data(&data));
        self.h.ram.release(mark);
        c
    }

    /// Runs a Copy that must succeed and applies it to the model.
    #[track_caller]
    fn good(&mut self, nsid: u32, sdlba: u64, ranges: &[Range], format: u8) {
        let c = self.exec(nsid, sdlba, ranges, format);
        c.is(st::OK, &format!("{ranges:?} to {nsid}:{sdlba}"));
        assert_eq!(c.dw0, 0);
        self.apply(nsid, sdlba, ranges, format);
    }

    fn apply(&mut self, nsid: u32, sdlba: u64, ranges: &[Range], format: u8) {
        let own: Vec<Range> =
            ranges.iter().map(|r| Range { snsid: if format == 0 { nsid } else { r.snsid }, ..*r }).collect();
        let bytes = copied(&self.nss, &own, nsid);
        let i = self.index(nsid);
        self.nss[i].set(sdlba, &bytes);
    }

    /// A refusal: status and DNR exact, DW0 0, and no byte of any namespace changed.
    #[track_caller]
    fn refused(&mut self, c: Cqe, want: u16, what: &str) {
        c.is(want, what);
        assert_eq!(c.dw0, 0, "{what}: DW0");
        self.verify();
    }

    #[track_caller]
    fn verify(&mut self) {
        for ns in &mut self.nss {
            ns.verify(&mut self.h, 1);
        }
    }
}

#[test]
fn random_copies_against_the_model() {
    for aio in engines() {
        for lba in [512, 4096] {
            let mut b = Bench::new(
                &format!(
                    "--nvme-ns drive=memory,size=1M,logical_block_size={lba},msrc=255 \
                     --nvme-ns drive={{}}/a.img,size=2M,logical_block_size={lba},aio={aio} \
                     --nvme-ns drive={{}}/b.img,size=1M,logical_block_size={lba},aio={aio}"
                ),
                &[1, 2, 3],
            );
            b.h.set_cdfe(4).ok();
            let mut rng = Rng::new(0xc0b1);
            let mut n = 0;
            while n < 250 {
                let to = rng.below(3) as usize;
                let most = *rng.pick(&[8, 40, 200]);
                let Some((ranges, sdlba, format)) = random_copy(&b.nss, true, &mut rng, to, most) else {
                    continue;
                };
                let mark = b.h.ram.mark();
                let data = list(&mut b.h, &ranges, format, true, &mut rng);
                let nsid = b.nss[to].nsid;
                let mut sqe = copy(nsid, sdlba, ranges.len(), format).data(&data);
                if rng.chance(4) {
                    sqe = sqe.fua();
                }
                let c = b.h.exec(1, sqe);
                c.is(st::OK, &format!("{ranges:?} to {nsid}:{sdlba}"));
                assert_eq!(c.dw0, 0);
                b.h.ram.release(mark);
                b.apply(nsid, sdlba, &ranges, format);
                // Where it was written, and a block on either side.
                let total: u64 = ranges.iter().map(|r| u64::from(r.blocks)).sum();
                let ns = &mut b.nss[to];
                let from = sdlba.saturating_sub(1);
                let to = (sdlba + total + 1).min(ns.nsze);
                let mut at = from;
                while at < to {
                    let n = (to - at).min((128 << 10) / ns.lba as u64) as u32;
                    let got = b.h.read(1, ns, at, n);
                    ns.check(at, &got);
                    at += u64::from(n);
                }
                n += 1;
            }
            b.verify();
            b.nss[1].verify_image(&b.daemon.file("a.img"));
            b.nss[2].verify_image(&b.daemon.file("b.img"));
        }
    }
}

/// The largest Copy the default limits allow: 128 Ki blocks in ranges of 32 Ki.
#[test]
fn up_to_the_default_limits() {
    for image in ["drive=memory", "drive={}/x.img"] {
        let d = Daemon::start(&format!("--nvme-ns {image},size=160M,logical_block_size=512"));
        let mut h = Host::with_queues(&d, 1, 64);
        let mut ns = Ns::facts(&mut h, 1);
        let n = 131_072u64;
        assert_eq!((ns.mssrl, u64::from(ns.mcl)), (32768, n));
        let marks: Vec<u64> = (0..32).map(|i| i * 4096).chain([n - 1]).collect();
        for &at in &marks {
            h.write(1, &mut ns, at, 1, at);
        }
        let ranges: Vec<Range> = [3u64, 1, 0, 2].iter().map(|i| Range::new(i * 32768, 32768)).collect();
        let bytes: Vec<u8> = ranges.iter().flat_map(|r| r.bytes(0)).collect();
        let c = h.send(1, copy(1, n, 4, 0), &bytes);
        c.is(st::OK, "MCL blocks");
        for (k, r) in ranges.iter().enumerate() {
            for &at in marks.iter().filter(|&&m| m / 32768 == r.slba / 32768) {
                let to = n + k as u64 * 32768 + at % 32768;
                assert!(h.read(1, &ns, to, 1) == ns.pattern(at, 1, at), "{at} -> {to}");
            }
            let to = n + k as u64 * 32768 + 1;
            assert!(h.read(1, &ns, to, 1).iter().all(|&x| x == 0));
        }
        // 127 ranges of one block, the most; and one more.
        let mut ranges: Vec<Range> = (0..127).map(|i| Range::new(i % 32 * 4096, 1)).collect();
        let bytes = |r: &[Range]| r.iter().flat_map(|r| r.bytes(0)).collect::<Vec<u8>>();
        h.send(1, copy(1, n, 127, 0), &bytes(&ranges)).ok();
        for i in 0..127 {
            let at = i % 32 * 4096;
            assert!(h.read(1, &ns, n + i, 1) == ns.pattern(at, 1, at), "range {i}");
        }
        ranges.push(Range::new(5, 1));
        h.send(1, copy(1, n + 500, 128, 0), &bytes(&ranges)).is(st::SIZE_LIMIT, "128 ranges");
    }
}

/// Limits up to what the fields hold.
#[test]
fn limits_at_the_fields_ends() {
    let mut b = Bench::new(
        "--nvme-ns drive=memory,size=64M,logical_block_size=512,mssrl=65535,mcl=4294967295,msrc=255",
        &[],
    );
    let ns = Ns::facts(&mut b.h, 1);
    assert_eq!((ns.mssrl, ns.mcl, ns.ranges), (65535, u32::MAX, 256));
    let mut ns = Ns::identify(&mut b.h, 1);
    for at in [0, 1, 65534, 65535, 300] {
        b.h.write(1, &mut ns, at, 1, 5);
    }
    b.nss.push(ns);
    b.good(1, 65536, &[Range::new(0, 65535)], 0);
    b.good(1, 1000, &(0..256).map(|i| Range::new(i, 1)).collect::<Vec<_>>(), 0);
    // NLB FFFFh can never satisfy MSSRL.
    let c = b.exec(1, 65536, &[Range::new(0, 65536)], 0);
    b.refused(c, st::SIZE_LIMIT, "NLB FFFFh");
}

/// (what, NSID, SDLBA, ranges, format, status)
type Refusal = (&'static str, u32, u64, Vec<Range>, u8, u16);

fn limited() -> Bench {
    limited_with("")
}

/// `more`: properties of namespace 1.
fn limited_with(more: &str) -> Bench {
    // 1: small limits; 2: other limits; 4: other block size; 5: not there; 6: same as 2 but on a file.
    let mut b = Bench::new(
        &format!(
            "--nvme-ns drive=memory,size=256K,logical_block_size=512,mssrl=16,mcl=40,msrc=3{more} \
             --nvme-ns drive=memory,size=256K,logical_block_size=512,mssrl=8,mcl=100,msrc=15 \
             --nvme-ns drive={{}}/x.img,size=256K,logical_block_size=512,nsid=6 \
             --nvme-ns drive=memory,size=256K,logical_block_size=4096,nsid=4"
        ),
        &[1, 2, 6, 4],
    );
    b.h.set_cdfe(4).ok();
    b
}

#[test]
fn refusals() {
    let mut b = limited();
    let n = b.nss[0].nsze;
    let nn = u32_at(&b.h.identify(1, 0), 516);
    let r = Range::new;
    let of = Range::of;
    let max = u64::MAX;
    // Earlier ranges are fine in many of these: nothing of them may be copied either.
    let cases: Vec<Refusal> = vec![
        ("NSID 0", 0, 0, vec![r(9, 1)], 0, st::INVALID_NS),
        ("NSID all ones", u32::MAX, 0, vec![r(9, 1)], 0, st::INVALID_NS),
        ("NSID beyond NN", nn + 1, 0, vec![r(9, 1)], 0, st::INVALID_NS),
        ("NSID inactive", 5, 0, vec![r(9, 1)], 0, st::INVALID_FIELD),
        ("NR > MSRC", 1, 0, vec![r(9, 1); 5], 0, st::SIZE_LIMIT),
        ("NR > MSRC, format 2", 1, 0, vec![of(2, 9, 1); 5], 2, st::SIZE_LIMIT),
        ("sum > MCL", 1, 0, vec![r(100, 10), r(200, 16), r(300, 15)], 0, st::SIZE_LIMIT),
        ("sum > MCL, format 2", 1, 0, vec![of(6, 0, 16), of(6, 0, 16), of(6, 0, 9)], 2, st::SIZE_LIMIT),
        ("range > MSSRL", 1, 0, vec![r(100, 17)], 0, st::SIZE_LIMIT),
        ("last range > MSSRL", 1, 0, vec![r(100, 2), r(200, 2), r(300, 17)], 0, st::SIZE_LIMIT),
        ("range > MSSRL of its source", 1, 0, vec![of(1, 100, 16), of(2, 5, 9)], 2, st::SIZE_LIMIT),
        ("destination ends outside", 1, n - 3, vec![r(100, 2), r(200, 2)], 0, st::LBA_RANGE),
        ("destination starts outside", 1, n, vec![r(100, 1)], 0, st::LBA_RANGE),
        ("destination far", 1, 1 << 40, vec![r(100, 1)], 0, st::LBA_RANGE),
        ("destination wraps", 1, max, vec![r(100, 2)], 0, st::LBA_RANGE),
        ("destination wraps to the start", 1, max - 3, vec![r(100, 5)], 0, st::LBA_RANGE),
        ("source ends outside", 1, 0, vec![r(100, 2), r(n - 1, 2)], 0, st::LBA_RANGE),
        ("source starts outside", 1, 0, vec![r(n, 1)], 0, st::LBA_RANGE),
        ("source far", 1, 0, vec![r(1 << 55, 1)], 0, st::LBA_RANGE),
        ("source at the end of numbers", 1, 0, vec![r(max, 1)], 0, st::LBA_RANGE),
        ("source wraps", 1, 0, vec![r(100, 1), r(max, 2)], 0, st::LBA_RANGE),
        ("source wraps, format 2", 1, 0, vec![of(2, 100, 1), of(2, max - 1, 4)], 2, st::LBA_RANGE),
        ("other's source outside", 1, 0, vec![of(1, 99, 1), of(6, 512, 1)], 2, st::LBA_RANGE),
        ("SNSID 0", 1, 0, vec![of(2, 9, 1), of(0, 9, 1)], 2, st::INVALID_NS),
        ("SNSID all ones", 1, 0, vec![of(2, 9, 1), of(u32::MAX, 9, 1)], 2, st::INVALID_NS),
        ("SNSID beyond NN", 1, 0, vec![of(2, 9, 1), of(nn + 1, 9, 1)], 2, st::INVALID_NS),
        ("SNSID inactive", 1, 0, vec![of(2, 9, 1), of(5, 9, 1)], 2, st::INVALID_FIELD),
        ("other block size", 1, 0, vec![of(2, 9, 1), of(4, 9, 1)], 2, st::INCOMPATIBLE_NS),
        ("other block size, the other way", 4, 0, vec![of(4, 9, 1), of(6, 9, 1)], 2, st::INCOMPATIBLE_NS),
    ];
    for (what, nsid, sdlba, ranges, format, want) in cases {
        let c = b.exec(nsid, sdlba, &ranges, format);
        b.refused(c, want, what);
    }
    // One inside each limit.
    b.good(1, 0, &[r(100, 16), r(200, 16), r(300, 7), r(400, 1)], 0);
    b.good(1, 0, &[of(6, 0, 24), of(6, 40, 16)], 2);
    b.good(1, n - 4, &[r(100, 2), r(200, 2)], 0);
    b.good(1, 0, &[r(n - 2, 2)], 0);
    b.verify();
}

/// QEMU's fault 3: bounds are looked at range by range, so what lies before the faulty one is written when the Copy is
/// refused.
#[test]
fn qemu_fault_3_a_copy_that_runs_out_of_bounds_late_writes_nothing() {
    let r = Range::new;
    for image in ["drive=memory", "drive={}/x.img"] {
        let mut b = Bench::new(&format!("--nvme-ns {image},size=1M,logical_block_size=512"), &[1]);
        let n = b.nss[0].nsze;
        let far: Vec<Range> = (0..100).map(|i| r(i * 8, 8)).chain([r(n - 7, 8)]).collect();
        for (what, sdlba, ranges) in [
            ("destination, in the first range", n - 7, vec![r(0, 8)]),
            ("destination, in the second range", n - 8, vec![r(0, 8), r(100, 1)]),
            ("destination, after all but one block", n - 799, (0..100).map(|i| r(i * 8, 8)).collect()),
            ("source, second range", 1000, vec![r(0, 8), r(n, 1)]),
            ("source, last of 101 ranges", 1000, far),
        ] {
            let c = b.exec(1, sdlba, &ranges, 0);
            b.refused(c, st::LBA_RANGE, what);
        }
    }
}

/// SPDK's fault 3: what Identify says of MSSRL and MCL is not kept, so NLB 65536 passes where 65535 is the limit.
#[test]
fn spdk_fault_3_a_block_more_than_the_limits_is_refused() {
    let mut b =
        Bench::new("--nvme-ns drive=memory,size=64M,logical_block_size=512,mssrl=65535,mcl=65535", &[]);
    let ns = Ns::identify(&mut b.h, 1);
    assert_eq!((ns.mssrl, ns.mcl), (65535, 65535));
    b.nss.push(ns);
    let Bench { h, nss, .. } = &mut b;
    for at in [0, 65534, 65535] {
        h.write(1, &mut nss[0], at, 1, 3);
    }
    for (what, ranges) in
        [("MSSRL", vec![Range::new(0, 65536)]), ("MCL", vec![Range::new(0, 65535), Range::new(65535, 1)])]
    {
        let c = b.exec(1, 65536, &ranges, 0);
        b.refused(c, st::SIZE_LIMIT, what);
    }
    b.good(1, 65536, &[Range::new(0, 65535)], 0);
    b.verify();
}

#[test]
fn refused_forms_of_the_command() {
    let mut b = limited();
    let r = [Range::of(1, 9, 1)];
    let id = b.h.identify(1, 0);
    let ocfs = u16_at(&id, 534);
    for format in (0..16).filter(|f| ![0, 2].contains(f)) {
        // An offered format that needs no enabling is wrong only for a namespace without protection.
        let want = if format == 1 && ocfs & 2 != 0 { st::INVALID_NS } else { st::INVALID_FIELD };
        let c = b.exec_with(copy(1, 0, 1, format), &r, 0);
        b.refused(c, want, &format!("format {format}"));
    }
    if ocfs & 8 != 0 {
        b.h.set_cdfe(0xc).ok();
        let c = b.exec_with(copy(1, 0, 1, 3), &r, 0);
        b.refused(c, st::INVALID_NS, "format 3, enabled");
    }
    for fuse in 1..=3 {
        let c = b.exec_with(copy(1, 0, 1, 0).flags(fuse), &r, 0);
        assert_eq!((c.code(), c.dw0), (0x002, 0), "FUSE");
        b.verify();
    }
    let dw12 = |bits: u32| copy(1, 0, 1, 0).cdw(12, bits);
    for (what, sqe) in [("CETYPE", dw12(1 << 16)), ("DTYPE", dw12(1 << 20))] {
        let c = b.exec_with(sqe, &r, 0);
        b.refused(c, st::INVALID_FIELD, what);
    }
    // Protection fields mean nothing without protection; LR is a hint.
    for bits in [0xf << 12, 0xf << 26, 1 << 31, 1 << 30] {
        let c = b.exec_with(copy(1, 0, 1, 0).cdw(12, bits).cdw(14, 77).cdw(15, u32::MAX), &r, 0);
        c.is(st::OK, &format!("CDW12 {bits:#x}"));
        b.apply(1, 0, &r, 0);
    }
    // Fast Copy Only: nothing here is fast.
    let fco = [Range::of(6, 1, 1), Range { sopt: 1 << 15, ..Range::of(6, 9, 1) }];
    let c = b.exec(1, 0, &fco, 2);
    assert_eq!((c.code(), c.dw0), (st::NOT_FAST, 0), "fast copy only");
    b.verify();
}

#[test]
fn refused_range_lists() {
    let mut b = limited();
    let r = [Range::of(1, 9, 1), Range::of(1, 30, 1)];
    let bytes: Vec<u8> = r.iter().flat_map(|r| r.bytes(0)).collect();
    let p = b.h.ram.pages(2);
    b.h.ram.write(p, &bytes);
    let sgl = |dptr| Data { pieces: Vec::new(), dptr, psdt: 1 };
    let end = b.h.ram.end();
    let cross = p + PAGE - 32;
    b.h.ram.write(cross, &bytes);
    for (what, sqe, want) in [
        ("list nowhere", copy(1, 0, 2, 0).prp(NOWHERE, 0), st::DATA_TRANSFER),
        ("list at 0", copy(1, 0, 2, 0).prp(0, 0), st::DATA_TRANSFER),
        ("second page nowhere", copy(1, 0, 2, 0).prp(cross, NOWHERE), st::DATA_TRANSFER),
        ("list ends outside", copy(1, 0, 2, 0).prp(end - 32, end), st::DATA_TRANSFER),
        ("PRP2 with offset", copy(1, 0, 2, 0).prp(cross, p + PAGE + 8), st::PRP_OFFSET),
        ("SGL too short", copy(1, 0, 2, 0).data(&sgl(descriptor(p, 32, SGL_DATA))), st::SGL_LENGTH),
        ("SGL one byte short", copy(1, 0, 2, 0).data(&sgl(descriptor(p, 63, SGL_DATA))), st::SGL_LENGTH),
        ("SGL nowhere", copy(1, 0, 2, 0).data(&sgl(descriptor(NOWHERE, 64, SGL_DATA))), st::DATA_TRANSFER),
        (
            "SGL segment nowhere",
            copy(1, 0, 2, 0).data(&sgl(descriptor(NOWHERE, 16, SGL_LAST))),
            st::DATA_TRANSFER,
        ),
    ] {
        let c = b.h.exec(1, sqe);
        b.refused(c, want, what);
    }
    // The same list, right: across two pages, and by SGL in two blocks.
    let c = b.h.exec(1, copy(1, 0, 2, 0).prp(cross, p + PAGE));
    c.ok();
    b.apply(1, 0, &r, 0);
    let data =
        Data::sgl(&mut b.h.ram, &[Sgl::Block { len: 20, offset: 4 }, Sgl::Block { len: 44, offset: 0 }], &[]);
    data.put(&b.h.ram, &bytes);
    b.h.exec(1, copy(1, 10, 2, 0).data(&data)).ok();
    b.apply(1, 10, &r, 0);
    b.verify();
}

/// QEMU's fault 2: it looks at the end of the source only, and at a destination that slides along with its progress:
/// real overlaps pass, and neighbours are refused. Here it is exact in both directions, against the whole destination,
/// in every format.
#[test]
fn qemu_fault_2_overlap() {
    overlapping(limited_with(",copy_overlap=reject"), true);
    // By default formats 0 and 1 get what the sources held before the first write.
    overlapping(limited(), false);
}

/// `reject`: in format 0 as well.
fn overlapping(mut b: Bench, reject: bool) {
    let r = Range::new;
    // (destination, ranges, overlaps?)
    let cases: Vec<(u64, Vec<Range>, bool)> = vec![
        (100, vec![r(100, 10)], true),
        (100, vec![r(99, 10)], true),
        (100, vec![r(101, 10)], true),
        (100, vec![r(91, 10)], true),
        (100, vec![r(90, 10)], false),
        (100, vec![r(109, 10)], true),
        (100, vec![r(110, 10)], false),
        // QEMU misses this one: the source's end lies behind the destination's.
        (5, vec![r(10, 10)], true),
        // One block, next to and upon.
        (50, vec![r(49, 1)], false),
        (50, vec![r(50, 1)], true),
        (50, vec![r(51, 1)], false),
        // A later source that an earlier range overwrites.
        (400, vec![r(10, 8), r(396, 8)], true),
        (400, vec![r(10, 8), r(407, 1)], true),
        // A source inside a later range's part of the destination.
        (400, vec![r(408, 4), r(10, 8)], true),
        // QEMU's false alarm: near, not upon.
        (300, vec![r(10, 8), r(315, 7)], false),
        (300, vec![r(10, 8), r(314, 7)], true),
        (300, vec![r(293, 7), r(314, 7)], false),
        // A source that covers the destination, one that lies within it.
        (200, vec![r(196, 12), r(0, 1)], true),
        (200, vec![r(204, 2), r(0, 16), r(16, 16)], true),
        // Sources may overlap each other.
        (200, vec![r(10, 8), r(12, 8), r(10, 8)], false),
    ];
    for (sdlba, ranges, bad) in &cases {
        for format in [0, 2] {
            let list: Vec<Range> = ranges.iter().map(|x| Range { snsid: 1, ..*x }).collect();
            let what = format!("format {format}: {list:?} to {sdlba}");
            let c = b.exec(1, *sdlba, &list, format);
            if *bad && (reject || format == 2) {
                b.refused(c, st::OVERLAP, &what);
            } else {
                c.is(st::OK, &what);
                b.apply(1, *sdlba, &list, format);
                b.verify();
            }
        }
        // The same numbers in another namespace are no overlap.
        let list: Vec<Range> = ranges.iter().map(|x| Range { snsid: 6, ..*x }).collect();
        b.good(1, *sdlba, &list, 2);
        if *bad {
            // And a foreign range before or after does not hide it.
            let mut mixed = list[..1].to_vec();
            mixed[0].blocks = 1;
            mixed.extend(ranges.iter().map(|x| Range { snsid: 1, ..*x }));
            if mixed.len() <= 4 {
                let c = b.exec(1, sdlba.wrapping_sub(1), &mixed, 2);
                b.refused(c, st::OVERLAP, &format!("{mixed:?} to {sdlba} - 1"));
            }
        }
    }
    b.verify();
}

/// QEMU's fault 1: it keeps reading from the last foreign namespace when a list returns to its own.
#[test]
fn qemu_fault_1_a_list_returns_to_its_own_namespace() {
    let mut b = limited();
    let of = Range::of;
    for (to, other) in [(1, 2), (1, 6), (6, 1), (2, 6)] {
        b.good(to, 200, &[of(other, 0, 1), of(to, 1, 1)], 2);
        b.good(to, 300, &[of(to, 3, 2), of(other, 7, 2), of(to, 5, 2), of(other, 9, 2)], 2);
        b.verify();
    }
    // Format 2 within one namespace; format 0 ignores where SNSID would be.
    b.good(1, 100, &[of(1, 400, 4)], 2);
    let mut bytes = Range::new(410, 3).bytes(0);
    put16(&mut bytes, 0, 0x6666);
    let c = b.h.send(1, copy(1, 110, 1, 0), &bytes);
    if c.status == st::OK {
        b.apply(1, 110, &[Range::new(410, 3)], 0);
    } else {
        c.is(st::INVALID_FIELD, "a reserved field");
    }
    b.verify();
}

/// With locking=off two namespaces may lie on one image. What overlaps there does, whatever its namespace is called.
#[test]
fn overlap_of_two_namespaces_on_one_image() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    two_namespaces_on(image.path());
    if let Some(device) = LoopDevice::new(1 << 20) {
        two_namespaces_on(device.path());
    }
}

fn two_namespaces_on(image: &std::path::Path) {
    let drive = format!("drive={},locking=off", image.display());
    for policy in ["snapshot", "in-order"] {
        let mut b = Bench::new(
            &format!(
                "--nvme serial=x,cdfe=4 --nvme-ns {drive},copy_overlap={policy} --nvme-ns {drive} \
                 --nvme-ns drive=memory,size=1M"
            ),
            &[1, 3],
        );
        let of = Range::of;
        for (what, sdlba, ranges) in [
            ("up", 101, vec![of(2, 100, 1000)]),
            ("down", 100, vec![of(2, 101, 1000)]),
            ("the last of three", 500, vec![of(3, 500, 8), of(1, 100, 8), of(2, 515, 8)]),
        ] {
            let c = b.exec(1, sdlba, &ranges, 2);
            b.refused(c, st::OVERLAP, what);
        }
        // Side by side, and onto another image.
        for (to, sdlba, ranges) in
            [(1, 500, vec![of(2, 484, 8), of(2, 516, 8)]), (3, 500, vec![of(1, 500, 8), of(2, 500, 8)])]
        {
            let own: Vec<Range> = ranges.iter().map(|r| of(1, r.slba, r.blocks)).collect();
            b.exec(to, sdlba, &ranges, 2).ok();
            b.apply(to, sdlba, &own, 2);
        }
        b.verify();
    }
}

/// Limits belong to different namespaces: MSRC and MCL to the destination, MSSRL to each source.
#[test]
fn whose_limits() {
    let mut b = limited();
    let of = Range::of;
    // 2 has MSSRL 8, MCL 100, MSRC 15; 6 has the defaults.
    b.good(2, 0, &[of(6, 0, 100)], 2);
    let c = b.exec(2, 0, &[of(6, 0, 101)], 2);
    b.refused(c, st::SIZE_LIMIT, "MCL of the destination");
    b.good(6, 0, &[of(2, 0, 8), of(1, 0, 16), of(2, 8, 8)], 2);
    let c = b.exec(6, 0, &[of(1, 0, 16), of(2, 0, 9)], 2);
    b.refused(c, st::SIZE_LIMIT, "MSSRL of the source");
    b.good(2, 0, &[of(6, 0, 1); 16], 2);
    let c = b.exec(2, 0, &[of(6, 0, 1); 17], 2);
    b.refused(c, st::SIZE_LIMIT, "MSRC of the destination");
    b.verify();
}

#[test]
fn formats_the_host_must_enable() {
    let mut b = Bench::new("--nvme-ns drive=memory,size=256K --nvme-ns drive=memory,size=256K", &[1, 2]);
    let r = [Range::of(2, 3, 2)];
    assert_eq!(b.h.cdfe(), 0);
    let c = b.exec(1, 0, &r, 2);
    b.refused(c, st::INVALID_FIELD, "not enabled yet");
    b.good(1, 50, &[Range::new(0, 1)], 0);
    b.h.set_cdfe(0x4).ok();
    assert_eq!(b.h.cdfe(), 0x4);
    b.good(1, 0, &r, 2);
    // The whole structure is replaced.
    b.h.set_cdfe(0).ok();
    assert_eq!(b.h.cdfe(), 0);
    let c = b.exec(1, 4, &r, 2);
    b.refused(c, st::INVALID_FIELD, "disabled again");
    b.h.set_cdfe(0x4).ok();
    b.good(1, 4, &r, 2);
    // A controller reset clears it.
    b.h.enable();
    b.h.io_queues(1, 64);
    assert_eq!(b.h.cdfe(), 0);
    let c = b.exec(1, 8, &r, 2);
    b.refused(c, st::INVALID_FIELD, "after a reset");
    // Formats that are not offered: refused now, or never of use.
    let c = b.h.set_cdfe(0x10);
    assert!(matches!(c.status, st::OK | st::INVALID_FIELD), "{c:?}");
    let c = b.exec(1, 8, &r, 4);
    b.refused(c, st::INVALID_FIELD, "format 4");
}

/// `cdfe=`: enabled whatever the host sets, through resets and clients.
#[test]
fn formats_enabled_by_property() {
    let d = Daemon::start(
        "--nvme serial=x,cdfe=0x4 --nvme-ns drive=memory,size=256K --nvme-ns drive=memory,size=256K",
    );
    let r = Range::of(2, 3, 2).bytes(2);
    for _ in 0..2 {
        let mut h = Host::with_queues(&d, 1, 16);
        let mut ns = Ns::identify(&mut h, 2);
        h.write(1, &mut ns, 3, 2, 5);
        for round in 0..4 {
            assert_eq!(h.cdfe() & 4, 4, "the effective mask, round {round}");
            h.send(1, copy(1, 8 * round, 1, 2), &r).ok();
            let got = h.read(1, &ns, 3, 2);
            let one = Ns::facts(&mut h, 1);
            assert!(h.read(1, &one, 8 * round, 2) == got);
            match round {
                0 => {
                    // As Linux rewrites it.
                    h.set_cdfe(0).ok();
                }
                1 => {
                    h.enable();
                    h.io_queues(1, 16);
                }
                _ => {
                    h.client.reset();
                    h.cqs.clear();
                    h.sqs.clear();
                    h.connect_interrupts();
                    h.enable();
                    h.io_queues(1, 16);
                }
            }
        }
    }
}

/// What Linux copy offload as posted (May 2025) takes for granted, and what it sends: format 0 in a page of 4096 bytes
/// behind PRP1, whatever NR says; a long copy as commands filled to the brim that are outstanding together; and, when
/// its own checks let something through, counts and lengths that no limit allows.
#[test]
fn linux_copy_offload() {
    for (image, lba) in [("drive=memory", 512), ("drive={}/x.img", 512), ("drive={}/x.img", 4096)] {
        let size = lba * 5000;
        let d = Daemon::start(&format!("--nvme-ns {image},size={size},logical_block_size={lba}"));
        let mut h = Host::with_queues(&d, 1, 64);
        assert_ne!(u16_at(&h.identify(1, 0), 520) & 1 << 8, 0, "ONCS");
        let ns = Ns::facts(&mut h, 1);
        assert!(u64::from(ns.mcl) * (ns.lba as u64) < 1 << 32, "bytes in 32 bits");
        assert!(ns.mcl.is_multiple_of(ns.mssrl) && ns.ranges < 128, "what its splits stand");
        drop((h, d));
        // Limits that make a short copy many commands.
        let d = Daemon::start(&format!(
            "--nvme-ns {image},size={size},logical_block_size={lba},mssrl=16,mcl=64,msrc=5"
        ));
        let mut h = Host::with_queues(&d, 1, 64);
        let mut ns = Ns::identify(&mut h, 1);
        h.fill(1, &mut ns, 1);
        let page = |h: &mut Host, ranges: &[Range]| {
            let list: Vec<u8> = ranges.iter().flat_map(|r| r.bytes(0)).collect();
            let at = h.ram.pages(1);
            h.ram.write(at, &vec![0; PAGE as usize]);
            h.ram.write(at, &list);
            at
        };
        // Sources of one copy, as long as they like; the destination touches the last of them.
        let (sources, sdlba) = ([(7, 1000), (100, 1), (2000, 333), (90, 16), (3000, 96)], 3096);
        let (mut flights, mut ranges, mut at) = (Vec::new(), Vec::new(), sdlba);
        let mut send = |h: &mut Host, ranges: &mut Vec<Range>| {
            let blocks: u64 = ranges.iter().map(|r| u64::from(r.blocks)).sum();
            let prp1 = page(h, ranges);
            flights.push((
                h.submit(1, copy(1, at, ranges.len(), 0).prp(prp1, 0)),
                at,
                std::mem::take(ranges),
            ));
            at += blocks;
        };
        for (mut slba, mut left) in sources {
            while left > 0 {
                let used: u32 = ranges.iter().map(|r: &Range| r.blocks).sum();
                let blocks = left.min(16).min(64 - used);
                ranges.push(Range::new(slba, blocks));
                (slba, left) = (slba + u64::from(blocks), left - blocks);
                if used + blocks == 64 || ranges.len() == 6 {
                    send(&mut h, &mut ranges);
                }
            }
        }
        if !ranges.is_empty() {
            send(&mut h, &mut ranges);
        }
        assert!(flights.len() > 20);
        for (cid, at, ranges) in flights {
            h.wait(1, cid).ok();
            let bytes = copied(&[ns.clone()], &ranges, 1);
            ns.set(at, &bytes);
        }
        ns.verify(&mut h, 1);
        // No sources at all, and one of no sectors: NR FFh and NLB FFFFh. A source past the end.
        let zeroes = page(&mut h, &[]);
        let c = h.exec(1, copy(1, 0, 256, 0).prp(zeroes, 0));
        assert_eq!((c.status, c.dw0), (st::SIZE_LIMIT, 0));
        for (range, status) in
            [(Range::new(0, 65536), st::SIZE_LIMIT), (Range::new(ns.nsze - 1, 2), st::LBA_RANGE)]
        {
            let prp1 = page(&mut h, &[Range::new(9, 3), range]);
            let c = h.exec(1, copy(1, 0, 2, 0).prp(prp1, 0));
            assert_eq!((c.status, c.dw0), (status, 0));
        }
        // Onto itself.
        let prp1 = page(&mut h, &[Range::new(50, 16)]);
        h.exec(1, copy(1, 50, 1, 0).prp(prp1, 0)).ok();
        ns.verify(&mut h, 1);
    }
}

/// A source that fails halfway: DW0 names the lowest range not done, and what DW0 says is done is done.
#[test]
fn failing_source() {
    for aio in engines() {
        let mut b = Bench::new(
            &format!(
                "--nvme-ns drive=memory,size=256K,logical_block_size=512 \
                 --nvme-ns drive={{}}/x.img,size=256K,logical_block_size=512,aio={aio}"
            ),
            &[1, 2],
        );
        b.h.set_cdfe(4).ok();
        let f = std::fs::File::options().write(true).open(b.daemon.file("x.img")).unwrap();
        f.set_len(128 << 10).unwrap();
        let of = Range::of;
        let ranges = [of(2, 0, 4), of(1, 300, 4), of(2, 254, 4), of(1, 310, 4), of(2, 0, 1)];
        let c = b.exec(1, 8, &ranges, 2);
        assert_ne!(c.status, st::OK);
        // Neighbouring short ranges may have been one write, which then did not happen at all.
        let done = c.dw0 as usize;
        assert!(done <= 2, "lowest range not done: {c:?}");
        let bytes = copied(&b.nss, &ranges[..done], 1);
        b.nss[0].set(8, &bytes);
        if done > 0 {
            let got = b.h.read(1, &b.nss[0], 8, 4 * done as u32);
            b.nss[0].check(8, &got);
        }
        // Beyond the last range nothing was written.
        let got = b.h.read(1, &b.nss[0], 8 + 17, 4);
        b.nss[0].check(8 + 17, &got);
        let c = b.exec(1, 100, &[of(2, 300, 1)], 2);
        assert_ne!(c.status, st::OK);
        assert_eq!(c.dw0, 0);
        assert_eq!(b.h.csts(), 1, "the controller is well");
        let good = b.h.read(1, &b.nss[1], 0, 4);
        b.nss[1].check(0, &good);
    }
}

/// Many Copies at once, between each other and among reads and writes, and none lost.
#[test]
fn copies_in_parallel() {
    for aio in engines() {
        let d = Daemon::start(&format!(
            "--nvme-ns drive=memory,size=4M,logical_block_size=512 \
             --nvme-ns drive={{}}/a.img,size=4M,logical_block_size=512,aio={aio}"
        ));
        let mut h = Host::with_queues(&d, 1, 256);
        let mut nss = vec![Ns::identify(&mut h, 1), Ns::identify(&mut h, 2)];
        for ns in &mut nss {
            h.fill(1, ns, 1);
        }
        h.set_cdfe(4).ok();
        let n = nss[0].nsze;
        // 200 Copies of 8 ranges from the first half to the second, crosswise between the two.
        let mut flights = Vec::new();
        for i in 0..200u64 {
            let to = (i % 2) as usize;
            let sdlba = n / 2 + i / 2 * 40;
            let ranges: Vec<Range> = (0..8)
                .map(|k| Range::of(nss[k % 2].nsid, (i * 13 + k as u64 * 97) % (n / 2 - 8), 5))
                .collect();
            let data = list(&mut h, &ranges, 2, true, &mut Rng::fixed());
            let cid = h.queue(1, copy(nss[to].nsid, sdlba, 8, 2).data(&data));
            flights.push((cid, to, sdlba, ranges));
        }
        h.ring_sq(1);
        for (cid, to, sdlba, ranges) in flights {
            h.wait(1, cid).ok();
            let bytes = copied(&nss, &ranges, 0);
            nss[to].set(sdlba, &bytes);
        }
        for ns in &mut nss {
            ns.verify(&mut h, 1);
        }
        h.exec(1, Sqe::new(io::FLUSH).nsid(2)).ok();
        nss[1].verify_image(&d.file("a.img"));
    }
}

/// Reset in the middle of large Copies: what was never asked for is untouched, and the next life works.
#[test]
fn reset_during_copies() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=64M,logical_block_size=4096");
    let mut h = Host::with_queues(&d, 1, 64);
    let mut ns = Ns::identify(&mut h, 1);
    for at in 0..64 {
        h.write(1, &mut ns, at * 64, 1, 3);
    }
    for round in 0..6 {
        let bytes: Vec<u8> = (0..4).flat_map(|i| Range::new(i * 1024, 1024).bytes(0)).collect();
        for i in 0..3 {
            let data = Data::prp(&mut h.ram, bytes.len());
            data.put(&h.ram, &bytes);
            h.queue(1, copy(1, 4096 + i * 4096, 4, 0).data(&data));
        }
        h.ring_sq(1);
        if round % 2 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        h.enable();
        h.io_queues(1, 64);
        let got = h.read(1, &ns, 0, 64);
        assert!(got == ns.at(0, 64));
    }
    h.send(1, copy(1, 4096, 1, 0), &Range::new(0, 4096).bytes(0)).ok();
    for at in 0..64 {
        assert!(h.read(1, &ns, 4096 + at * 64, 1) == ns.at(at * 64, 1));
    }
}

/// Bounce buffers lie ready for the next Copy, and are given back when none comes.
#[test]
fn a_device_at_rest_keeps_no_bounce_memory() {
    for engine in engines() {
        let ns =
            |name: &str| format!("--nvme-ns drive={{}}/{name}.img,size=32M,copy_method=bounce,aio={engine}");
        let mut b = Bench::new(&format!("{} {}", ns("a"), ns("b")), &[1, 2]);
        let status = format!("/proc/{}/status", b.daemon.pid());
        let own = || {
            let status = std::fs::read_to_string(&status).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        let before = own();
        let ranges: Vec<Range> = (0..3).map(|n| Range::new(8192 * n + 8, 8192)).collect();
        b.good(1, 32_776, &ranges, 0);
        let after = own();
        assert!(after > before + 768, "{before} KiB before, {after} after");
        let start = std::time::Instant::now();
        while own() > before + 256 {
            assert!(start.elapsed() < DEADLINE, "{before} KiB before, still {}", own());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
