//! Copy by every method and under every overlap policy, on every kind of image, against a model that copies block by
//! block.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::engines;
use crate::host::le::u16_at;
use crate::host::nvme::{Range, admin, copy, io, st};
use crate::host::storm::{copied, list, random_copy};
use crate::host::*;

const METHODS: [&str; 4] = ["auto", "reflink", "offload", "bounce"];

/// Drives of the two namespaces that are not memory, of 2 and 1 MiB; `{}` is the daemon's folder.
struct Images([String; 2]);

impl Images {
    fn in_daemons_folder() -> Images {
        Images(["{}/a.img", "{}/b.img"].map(str::to_owned))
    }

    fn at(a: &Path, b: &Path) -> Images {
        Images([a, b].map(|p| p.to_str().expect("a plain path").to_owned()))
    }
}

struct Bench {
    _daemon: Daemon,
    h: Host,
    nss: Vec<Ns>,
    images: [PathBuf; 2],
}

impl Bench {
    /// A memory and two image namespaces with these properties.
    fn new(images: &Images, aio: &str, lba: usize, properties: &str) -> Bench {
        let [a, b] = &images.0;
        let d = Daemon::start(&format!(
            "--nvme-ns drive=memory,size=1M,logical_block_size={lba},{properties} \
             --nvme-ns drive={a},size=2M,logical_block_size={lba},aio={aio},{properties} \
             --nvme-ns drive={b},size=1M,logical_block_size={lba},aio={aio},{properties}"
        ));
        let mut h = Host::with_queues(&d, 1, 64);
        let nss = [1, 2, 3].map(|nsid| {
            let mut ns = Ns::identify(&mut h, nsid);
            h.fill(1, &mut ns, 1);
            ns
        });
        h.set_cdfe(4).ok();
        let folder = d.dir().to_str().expect("a plain path");
        let images = [a, b].map(|drive| drive.replace("{}", folder).into());
        Bench { _daemon: d, h, nss: nss.into(), images }
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
        for (ns, image) in self.nss[1..].iter_mut().zip(&self.images) {
            ns.verify_image(image);
        }
    }
}

fn random_copies(images: &Images) {
    for aio in engines() {
        for (i, method) in METHODS.iter().enumerate() {
            let lba = [512, 4096][i % 2];
            let mut b = Bench::new(images, aio, lba, &format!("copy_method={method}"));
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

fn random_overlaps(images: &Images) {
    for aio in engines() {
        for (i, policy) in ["snapshot", "in-order", "reject"].iter().enumerate() {
            for method in ["auto", "bounce"] {
                let lba = [4096, 512][i % 2];
                let properties = format!("copy_overlap={policy},copy_method={method}");
                let mut b = Bench::new(images, aio, lba, &properties);
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

#[test]
fn random_copies_by_every_method() {
    random_copies(&Images::in_daemons_folder());
}

/// One range each, about as long as what the kernel copies by itself at most, between two files and within one.
#[test]
fn single_ranges() {
    for aio in engines() {
        let mut b = Bench::new(&Images::in_daemons_folder(), aio, 512, "copy_method=auto");
        let mut rng = Rng::new(0x51);
        for _ in 0..80 {
            let (to, from) = (rng.within(1, 2) as usize, rng.within(1, 2) as usize);
            let blocks = *rng.pick(&[1, 7, 128, 255, 256, 257, 600]);
            let [slba, sdlba] = [from, to].map(|ns| rng.below(b.nss[ns].nsze - blocks + 1));
            if from == to && slba.abs_diff(sdlba) < blocks {
                continue;
            }
            let ranges = [Range::of(b.nss[from].nsid, slba, blocks as u32)];
            let c = b.exec(to, sdlba, &ranges, 2, &mut rng);
            c.is(st::OK, &format!("{blocks} from {from}:{slba} to {to}:{sdlba}"));
            let bytes = copied(&b.nss, &ranges, b.nss[to].nsid);
            b.nss[to].set(sdlba, &bytes);
        }
        b.verify();
    }
}

#[test]
fn random_overlaps_under_every_policy() {
    random_overlaps(&Images::in_daemons_folder());
}

const MIB: usize = 1 << 20;

/// A namespace of all of this image.
fn halves(image: &Path, aio: &str, method: &str) -> (Daemon, Host, Ns) {
    let d = Daemon::start(&format!(
        "--nvme-ns drive={},logical_block_size=512,aio={aio},copy_method={method}",
        image.display()
    ));
    let mut h = Host::with_queues(&d, 1, 16);
    let ns = Ns::facts(&mut h, 1);
    (d, h, ns)
}

/// Copies the lower half up, its quarters in another order.
fn copy_up(h: &mut Host, ns: &Ns) {
    let quarter = ns.nsze / 8;
    for (i, from) in [2, 0, 3, 1].into_iter().enumerate() {
        let (at, half) = (i as u64 * quarter, ns.nsze / 2);
        let n = (quarter / 2) as u32;
        let ranges = [Range::new(from * quarter, n), Range::new(from * quarter + u64::from(n), n)];
        let bytes: Vec<u8> = ranges.iter().flat_map(|r| r.bytes(0)).collect();
        h.send(1, copy(1, half + at, 2, 0), &bytes).ok();
    }
}

/// What [`copy_up`] makes of a lower half.
fn carried(lower: &[u8]) -> Vec<u8> {
    let quarter = lower.len() / 4;
    [2, 0, 3, 1].iter().flat_map(|q| &lower[q * quarter..(q + 1) * quarter]).copied().collect()
}

/// An aligned Copy by reflink takes no new space.
fn sharing_takes_no_space(mount: &Mount) {
    let half = 32 * MIB;
    for aio in engines() {
        for method in ["reflink", "auto"] {
            let image = mount.path().join(format!("{aio}-{method}"));
            let lower = Rng::new(0x5a).bytes(half);
            std::fs::write(&image, &lower).expect("image");
            File::options()
                .write(true)
                .open(&image)
                .and_then(|f| f.set_len(2 * half as u64))
                .expect("length");
            let (daemon, mut h, ns) = halves(&image, aio, method);
            let before = mount.used();
            copy_up(&mut h, &ns);
            let grown = mount.used() as i64 - before as i64;
            // Metadata, and what a file system allots to it in advance.
            assert!(grown < half as i64 / 8, "{aio}, {method}: {grown} bytes more");
            let got = std::fs::read(&image).expect("image");
            assert!(got[..half] == lower && got[half..] == carried(&lower), "{aio}, {method}");
            drop((h, daemon));
            std::fs::remove_file(image).expect("removed");
        }
    }
}

/// Holes of the source are holes of the destination, whatever was there.
fn holes_stay_holes(folder: &Path, methods: &[&str]) {
    let half = 4 * MIB;
    for aio in engines() {
        for method in methods {
            let image = folder.join(format!("{aio}-{method}"));
            let file = File::create(&image).expect("image");
            let data = Rng::new(7).bytes(64 << 10);
            file.write_all_at(&data, MIB as u64).expect("source");
            file.write_all_at(&Rng::new(9).bytes(half), half as u64).expect("destination");
            // What is delayed is counted when it is written.
            let allocated = || {
                file.sync_all().expect("sync");
                file.metadata().expect("image").blocks() * 512
            };
            assert!(allocated() >= half as u64);
            let (daemon, mut h, ns) = halves(&image, aio, method);
            copy_up(&mut h, &ns);
            let left = allocated();
            assert!(left < MIB as u64, "{aio}, {method}: {left} bytes of 128 KiB");
            let got = std::fs::read(&image).expect("image");
            let mut lower = vec![0; half];
            lower[MIB..MIB + data.len()].copy_from_slice(&data);
            assert!(got[..half] == lower && got[half..] == carried(&lower), "{aio}, {method}");
            drop((h, daemon));
            std::fs::remove_file(image).expect("removed");
        }
    }
}

/// All of the above on a file system that shares blocks.
fn on_sharing_file_system(kind: &str) {
    let Some(mount) = Mount::new(kind, 512 << 20) else { return };
    let folder = mount.path();
    let images = Images::at(&folder.join("a.img"), &folder.join("b.img"));
    random_copies(&images);
    random_overlaps(&images);
    sharing_takes_no_space(&mount);
    holes_stay_holes(&folder, &["reflink", "offload", "auto"]);
}

#[test]
fn on_xfs() {
    on_sharing_file_system("xfs");
}

#[test]
fn on_btrfs() {
    on_sharing_file_system("btrfs");
}

#[test]
fn on_block_devices() {
    let Some(a) = LoopDevice::new(2 << 20) else { return };
    let Some(b) = LoopDevice::new(1 << 20) else { return };
    let images = Images::at(a.path(), b.path());
    random_copies(&images);
    random_overlaps(&images);
}

#[test]
fn holes_stay_holes_where_nothing_is_shared() {
    let folder = tempfile::tempdir().expect("folder");
    holes_stay_holes(folder.path(), &["offload"]);
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
        assert!(matches!(c.status, st::OK | st::SQ_DELETION) && c.dw0 < 64, "{c:?}");
        h.create_sq(1, 64, 1);
    }
}
