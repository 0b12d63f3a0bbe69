//! Copy by every method and under every overlap policy, against a model that copies block by block.

use crate::engines;
use crate::host::le::u16_at;
use crate::host::nvme::{Range, admin, copy, io, st};
use crate::host::storm::{copied, list, random_copy};
use crate::host::*;

const METHODS: [&str; 4] = ["auto", "reflink", "offload", "bounce"];

struct Bench {
    d: Daemon,
    h: Host,
    nss: Vec<Ns>,
}

impl Bench {
    /// A memory and two file namespaces with these properties.
    fn new(aio: &str, lba: usize, properties: &str) -> Bench {
        let d = Daemon::start(&format!(
            "--nvme-ns drive=memory,size=1M,logical_block_size={lba},{properties} \
             --nvme-ns drive={{}}/a.img,size=2M,logical_block_size={lba},aio={aio},{properties} \
             --nvme-ns drive={{}}/b.img,size=1M,logical_block_size={lba},aio={aio},{properties}"
        ));
        let mut h = Host::with_queues(&d, 1, 64);
        let nss = [1, 2, 3].map(|nsid| {
            let mut ns = Ns::identify(&mut h, nsid);
            h.fill(1, &mut ns, 1);
            ns
        });
        h.set_cdfe(4).ok();
        Bench { d, h, nss: nss.into() }
    }

    fn exec(&mut self, to: usize, sdlba: u64, ranges: &[Range], format: u8, rng: &mut Rng) -> Cqe {
        let mark = self.h.ram.mark();
        let data = list(&mut self.h, ranges, format, true, rng);
        let mut sqe = copy(self.nss[to].nsid, sdlba, ranges.len(), format).data(&data);
        if rng.chance(4) {
            sqe = sqe.fua();
        }
        let c = self.h.exec(1, sqe);
        self.h.ram.release(mark);
        c
    }

    fn verify(&mut self) {
        for ns in &mut self.nss {
            ns.verify(&mut self.h, 1);
        }
        self.nss[1].verify_image(&self.d.file("a.img"));
        self.nss[2].verify_image(&self.d.file("b.img"));
    }
}

#[test]
fn random_copies_by_every_method() {
    for aio in engines() {
        for (i, method) in METHODS.iter().enumerate() {
            let lba = [512, 4096][i % 2];
            let mut b = Bench::new(aio, lba, &format!("copy_method={method}"));
            let mut rng = Rng::new(0x3e7 + i as u64);
            let mut n = 0;
            while n < 80 {
                let to = rng.below(3) as usize;
                let most = (*rng.pick(&[8, 40, 1000])).min(b.nss[to].nsze / 2);
                let Some((ranges, sdlba, format)) = random_copy(&b.nss, true, &mut rng, to, most) else {
                    continue;
                };
                let c = b.exec(to, sdlba, &ranges, format, &mut rng);
                c.is(st::OK, &format!("{method}: {ranges:?} to {to}:{sdlba}"));
                assert_eq!(c.dw0, 0);
                let bytes = copied(&b.nss, &ranges, b.nss[to].nsid);
                b.nss[to].set(sdlba, &bytes);
                n += 1;
            }
            b.verify();
        }
    }
}

/// Ranges in and about their destination, in format 0.
fn tangled(ns: &Ns, rng: &mut Rng) -> (Vec<Range>, u64) {
    let count = rng.within(1, 12);
    let most = *rng.pick(&[2, 10, ns.nsze / 16]);
    let lens: Vec<u64> = (0..count).map(|_| rng.within(1, most.max(1))).collect();
    let total: u64 = lens.iter().sum();
    let sdlba = rng.below(ns.nsze - total + 1);
    let ranges = lens.iter().map(|&len| {
        let low = sdlba.saturating_sub(total / 2);
        let high = (sdlba + total + total / 2).min(ns.nsze) - len;
        Range::of(ns.nsid, rng.within(low, high.max(low)), len as u32)
    });
    (ranges.collect(), sdlba)
}

#[test]
fn random_overlaps_under_every_policy() {
    for aio in engines() {
        for (i, policy) in ["snapshot", "in-order", "reject"].iter().enumerate() {
            for method in ["auto", "bounce"] {
                let lba = [4096, 512][i % 2];
                let mut b = Bench::new(aio, lba, &format!("copy_overlap={policy},copy_method={method}"));
                let mut rng = Rng::new(0x0e71 + i as u64);
                for _ in 0..60 {
                    let to = rng.below(3) as usize;
                    let (ranges, sdlba) = tangled(&b.nss[to], &mut rng);
                    let total: u64 = ranges.iter().map(|r| u64::from(r.blocks)).sum();
                    let meet =
                        ranges.iter().any(|r| r.slba < sdlba + total && sdlba < r.slba + u64::from(r.blocks));
                    let what = format!("{policy}: {ranges:?} to {to}:{sdlba}");
                    // In format 2 never.
                    if meet {
                        let c = b.exec(to, sdlba, &ranges, 2, &mut rng);
                        assert_eq!((c.status, c.dw0), (st::OVERLAP, 0), "{what}");
                    }
                    let c = b.exec(to, sdlba, &ranges, 0, &mut rng);
                    assert_eq!(c.dw0, 0);
                    let nsid = b.nss[to].nsid;
                    match *policy {
                        "reject" if meet => {
                            c.is(st::OVERLAP, &what);
                        }
                        "in-order" => {
                            c.is(st::OK, &what);
                            let mut at = sdlba;
                            for r in &ranges {
                                let bytes = copied(&b.nss, &[*r], nsid);
                                b.nss[to].set(at, &bytes);
                                at += u64::from(r.blocks);
                            }
                        }
                        _ => {
                            c.is(st::OK, &what);
                            let bytes = copied(&b.nss, &ranges, nsid);
                            b.nss[to].set(sdlba, &bytes);
                        }
                    }
                }
                b.verify();
            }
        }
    }
}

/// Offered formats are those of the property, in Identify and in what is taken.
#[test]
fn offered_formats() {
    let d = Daemon::start(
        "--nvme serial=x,ocfs=0x3,cdfe=0xc --nvme-ns drive=memory,size=256K --nvme-ns drive=memory,size=256K",
    );
    let mut h = Host::with_queues(&d, 1, 16);
    let id = h.identify(1, 0);
    assert_eq!(u16_at(&id, 534), 0x3);
    h.send(1, copy(1, 8, 1, 0), &Range::new(0, 1).bytes(0)).ok();
    h.send(1, copy(1, 8, 1, 2), &Range::of(2, 0, 1).bytes(2)).is(st::INVALID_FIELD, "not offered");
}

/// SMART by the definitions of the NVM Command Set: Copy is a host read, a host write and data units written.
#[test]
fn smart_counts_copies() {
    let d = Daemon::start("--nvme-ns drive=memory,size=8M,logical_block_size=512");
    let mut h = Host::with_queues(&d, 1, 16);
    let counts = |h: &mut Host| {
        let (c, log) = h.log(2, u32::MAX, 0, 512);
        c.ok();
        [32, 48, 64, 80].map(|at| crate::host::le::u64_at(&log, at))
    };
    let before = counts(&mut h);
    h.send(1, copy(1, 4000, 1, 0), &Range::new(0, 4000).bytes(0)).ok();
    let after = counts(&mut h);
    assert_eq!(after, [before[0], before[1] + 4, before[2] + 1, before[3] + 1]);
    // A refused one is none.
    h.send(1, copy(1, 1 << 40, 1, 0), &Range::new(0, 4000).bytes(0)).is(st::LBA_RANGE, "far");
    assert_eq!(counts(&mut h), after);
    h.exec(1, Sqe::new(io::VERIFY).nsid(1).cdw(12, 3999)).ok();
    let verified = counts(&mut h);
    assert_eq!(verified, [after[0] + 4, after[1], after[2], after[3]]);
}

/// A long Copy within memory, all of which is done in the worker's own time, lets other commands through, and an Abort
/// or the deletion of its queue ends it between segments with a true DW0.
#[test]
fn long_copies_make_room_and_can_be_stopped() {
    let d = Daemon::start(
        "--nvme-ns drive=memory,size=512M,logical_block_size=4096,mssrl=65535,mcl=1000000,msrc=255",
    );
    let mut h = Host::with_queues(&d, 2, 64);
    let ns = Ns::facts(&mut h, 1);
    let half = ns.nsze / 2;
    let mut stopped = 0;
    for round in 0..40 {
        let ranges: Vec<Range> = (0..64).map(|i| Range::new(i * 1024, 1024)).collect();
        let data = list(&mut h, &ranges, 0, false, &mut Rng::fixed());
        let cid = h.queue(1, copy(1, half, 64, 0).data(&data));
        h.ring_sq(1);
        // On the other queue everything goes on meanwhile.
        let mark = h.ram.mark();
        h.read(2, &ns, 7, 1);
        h.ram.release(mark);
        if round % 2 == 0 {
            h.exec(0, Sqe::new(admin::ABORT).cdw(10, u32::from(cid) << 16 | 1));
        }
        let c = h.wait(1, cid);
        if c.status == st::OK {
            assert_eq!(c.dw0, 0);
        } else {
            c.is(st::ABORT_REQUESTED, "aborted");
            assert!(c.dw0 < 64);
            stopped += 1;
        }
    }
    assert!(stopped > 0, "no Abort of 20 came in time");
    // The queue goes: nothing of the Copy is left to complete afterwards.
    for _ in 0..6 {
        let ranges: Vec<Range> = (0..64).map(|i| Range::new(i * 1024, 1024)).collect();
        let data = list(&mut h, &ranges, 0, false, &mut Rng::fixed());
        let cid = h.queue(1, copy(1, half, 64, 0).data(&data));
        h.ring_sq(1);
        h.read(2, &ns, 7, 1);
        let deleted = h.submit(0, Sqe::new(admin::DELETE_SQ).cdw(10, 1));
        let c = h.wait(1, cid);
        h.wait(0, deleted).ok();
        h.forget(1);
        assert!(matches!(c.status, st::OK | st::ABORT_REQUESTED) && c.dw0 < 64, "{c:?}");
        h.create_sq(1, 64, 1);
    }
}
