//! `cache=` and `discard=` of QEMU, over the socket: what direct access asks of memory is never the host's affair.

use crate::engines;
use crate::host::nvme::{io, st};
use crate::host::storm::Storm;
use crate::host::*;

const VWC: usize = 525;
const DLFEAT: usize = 33;

/// Every kind of command at once, Copies among them, with PRP offsets and SGL pieces of any kind; then the image as
/// others see it.
fn storm(drive: &str, properties: &str, aio: &str) {
    let mut d = Daemon::start(&format!(
        "--nvme-ns drive={drive}/a.img,size=4M,logical_block_size=512,aio={aio},{properties} \
         --nvme-ns drive={drive}/b.img,size=8M,logical_block_size=4096,aio={aio},{properties} \
         --nvme-ns drive=memory,size=2M"
    ));
    let mut h = Host::with_queues(&d, 3, 64);
    let mut nss: Vec<Ns> = (1..=3).map(|n| Ns::identify(&mut h, n)).collect();
    h.set_cdfe(4).ok();
    let s = Storm {
        sqs: &[1, 2, 3],
        commands: 1500,
        depth: 100,
        max: 512 << 10,
        sgl: true,
        copy: true,
        cross: true,
    };
    storm::run(&mut h, &mut nss, &s, &mut Rng::new(2027));
    for ns in &mut nss {
        ns.verify(&mut h, 1);
    }
    drop(h);
    d.stop();
    let folder = drive.replace("{}", d.dir().to_str().expect("a plain path"));
    for (ns, name) in nss.iter_mut().zip(["a.img", "b.img"]) {
        ns.verify_image(&std::path::Path::new(&folder).join(name));
    }
}

#[test]
fn storm_in_every_cache_mode() {
    for aio in engines() {
        for cache in ["none", "directsync", "writethrough", "unsafe"] {
            storm("{}", &format!("cache={cache}"), aio);
        }
    }
}

/// On the file systems that matter, which ask for different things and share blocks or not.
#[test]
fn storm_past_the_page_cache_of_other_file_systems() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let Some(mount) = Mount::new(kind, 512 << 20) else { continue };
        let folder = mount.path();
        let folder = folder.to_str().expect("a plain path");
        for aio in engines() {
            storm(folder, "cache=none", aio);
            std::fs::remove_file(format!("{folder}/a.img")).expect("it is there");
            std::fs::remove_file(format!("{folder}/b.img")).expect("it is there");
        }
    }
}

/// Single commands whose memory is odd in every way that PRP and SGL allow, each with its neighbours checked.
#[test]
fn odd_memory_past_the_page_cache() {
    for aio in engines() {
        let d = Daemon::start(&format!(
            "--nvme serial=x,iothreads=2 --nvme-ns drive={{}}/a.img,size=2M,cache=none,aio={aio}"
        ));
        let mut h = Host::with_queues(&d, 2, 16);
        let mut ns = Ns::identify(&mut h, 1);
        h.fill(1, &mut ns, 1);
        let mut rng = Rng::new(77);
        let mut shapes = Vec::new();
        for blocks in [1, 7, 8, 9, 100] {
            shapes.extend([0, 4, 512, 2052, 4092].map(|offset| (blocks * 512, offset)));
        }
        for (n, (len, offset)) in shapes.into_iter().enumerate() {
            for sgl in [false, true] {
                let mark = h.ram.mark();
                let data = if sgl {
                    let first = (len / 3) | 1;
                    let of = [
                        Sgl::Block { len: first, offset: offset + 1 },
                        Sgl::Block { len: 100, offset: 0 },
                        Sgl::Block { len: len - first - 100, offset: 3 },
                    ];
                    Data::sgl(&mut h.ram, &of, &[2])
                } else {
                    Data::prp_shape(&mut h.ram, len, Prp { offset, slot: 0, scatter: true }, &mut rng)
                };
                let (slba, blocks) = (13 + 11 * n as u64, (len / 512) as u32);
                let bytes = ns.pattern(slba, blocks, n as u64);
                data.put(&h.ram, &bytes);
                let mut write = Host::rw(io::WRITE, &ns, slba, blocks).data(&data);
                if n % 3 == 0 {
                    write = write.fua();
                }
                h.exec(1 + (n % 2) as u16, write).ok();
                ns.set(slba, &bytes);
                data.put(&h.ram, &vec![0xee; len]);
                h.exec(1, Host::rw(io::READ, &ns, slba, blocks).data(&data)).ok();
                ns.check(slba, &data.get(&h.ram));
                h.ram.release(mark);
            }
        }
        ns.verify(&mut h, 1);
        ns.verify_image(&d.file("a.img"));
    }
}

/// Reads that are made many with one call, of an image of which some pages are in memory and some are not: neighbours
/// and scattered ones, over images, and of more than a call takes.
#[test]
fn reads_of_what_is_partly_in_the_page_cache() {
    for aio in engines() {
        let mut d = Daemon::start(&format!(
            "--nvme-ns drive={{}}/a.img,size=1M,aio={aio} --nvme-ns drive={{}}/b.img,size=1M,aio={aio}"
        ));
        let mut h = Host::with_queues(&d, 1, 64);
        let mut nss: Vec<Ns> = (1..=2).map(|n| Ns::identify(&mut h, n)).collect();
        for ns in &mut nss {
            h.fill(1, ns, 7);
        }
        h.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
        let mut rng = Rng::new(31);
        for round in 0..12_u64 {
            let image = std::fs::File::open(d.file("a.img")).expect("it is there");
            for page in (0..256).filter(|page| round % 3 > 0 && page % (2 + round) == 0) {
                let one = std::num::NonZeroU64::new(4096);
                rustix::fs::fadvise(&image, page * 4096, one, rustix::fs::Advice::DontNeed)
                    .expect("pages may go");
            }
            let mark = h.ram.mark();
            let (count, start) = (1 + rng.below(60), rng.below(128));
            let reads: Vec<_> = (0..count)
                .map(|n| {
                    let nsid = if round % 4 == 3 { (n % 2) as usize } else { 0 };
                    let page = if round % 2 == 0 { start + n } else { rng.below(256) };
                    let data = Data::prp(&mut h.ram, 4096);
                    data.put(&h.ram, &[0xee; 4096]);
                    let cid = h.queue(1, Host::rw(io::READ, &nss[nsid], page * 8, 8).data(&data));
                    (nsid, page, data, cid)
                })
                .collect();
            // All of them with one doorbell.
            h.ring_sq(1);
            for (nsid, page, data, cid) in reads {
                h.wait(1, cid).ok();
                nss[nsid].check(page * 8, &data.get(&h.ram));
            }
            h.ram.release(mark);
        }
        drop(h);
        d.stop();
    }
}

/// A host learns whether there is a cache to flush, and what deallocation leaves behind.
#[test]
fn what_identify_says() {
    for (properties, cache, dlfeat) in [
        ("cache=writeback", 1, 9),
        ("cache=none", 1, 9),
        ("cache=unsafe", 1, 9),
        ("cache=writethrough", 0, 9),
        ("cache=directsync,discard=ignore", 0, 0),
    ] {
        let d = Daemon::start(&format!("--nvme-ns drive={{}}/a.img,size=1M,{properties}"));
        let mut h = Host::with_queues(&d, 1, 16);
        assert_eq!(h.identify(1, 0)[VWC] & 1, cache, "{properties}");
        assert_eq!(h.identify(0, 1)[DLFEAT], dlfeat, "{properties}");
        let want = if cache == 1 { st::OK } else { st::INVALID_FIELD };
        assert_eq!(h.set_feature(0x06, 1).status, want, "{properties}");
        assert_eq!(h.get_feature(0x06).status, want, "{properties}");
        h.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
        let mut ns = Ns::identify(&mut h, 1);
        h.fill(1, &mut ns, 3);
        let list = [0u32.to_le_bytes(), 8u32.to_le_bytes(), [0; 4], [0; 4]].concat();
        h.send(1, Sqe::new(io::DSM).nsid(1).cdw(11, 4), &list).ok();
        if dlfeat == 9 {
            ns.set(0, &[0; 8 * 512]);
        }
        let deac = Host::rw(io::WRITE_ZEROES, &ns, 100, 8).cdw(12, 1 << 25 | 7);
        h.exec(1, deac).ok();
        ns.set(100, &[0; 8 * 512]);
        ns.verify(&mut h, 1);
    }
    // One cache among several is a cache.
    let d =
        Daemon::start("--nvme-ns drive={}/a.img,size=1M,cache=writethrough --nvme-ns drive={}/b.img,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    assert_eq!(h.identify(1, 0)[VWC] & 1, 1);
}
