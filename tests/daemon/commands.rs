//! The I/O commands, on memory and raw images, on both engines.

use std::os::unix::fs::MetadataExt;

use crate::engines;
use crate::host::le::{put32, put64};
use crate::host::nvme::{io, st};
use crate::host::storm::Storm;
use crate::host::*;

/// Every kind of command, several queues, several namespaces, a shadow of every block; then the image from outside.
#[test]
fn storm_on_every_engine() {
    for aio in engines() {
        let mut d = Daemon::start(&format!(
            "--nvme-ns drive=memory,size=2M,logical_block_size=512 \
             --nvme-ns drive={{}}/a.img,size=4M,logical_block_size=512,aio={aio} \
             --nvme-ns drive={{}}/b.img,size=8M,logical_block_size=4096,aio={aio} \
             --nvme-ns drive=memory,size=3M,logical_block_size=4096"
        ));
        let mut h = Host::with_queues(&d, 3, 64);
        let mut nss: Vec<Ns> = (1..=4).map(|n| Ns::identify(&mut h, n)).collect();
        h.set_cdfe(4).ok();
        let s = Storm {
            sqs: &[1, 2, 3],
            commands: 3000,
            depth: 100,
            max: 512 << 10,
            sgl: true,
            copy: true,
            cross: true,
        };
        storm::run(&mut h, &mut nss, &s, &mut Rng::new(2026));
        for ns in &mut nss {
            ns.verify(&mut h, 1);
        }
        nss[1].verify_image(&d.file("a.img"));
        nss[2].verify_image(&d.file("b.img"));
        drop(h);
        d.stop();
        nss[1].verify_image(&d.file("a.img"));
        nss[2].verify_image(&d.file("b.img"));
    }
}

/// As a guest without interrupts and SGLs does it, with doorbells that are answered (cloud-hypervisor).
#[test]
fn storm_polled() {
    let d = Daemon::start("--nvme-ns drive={}/a.img,size=2M");
    let mut h = Host::attach(&d);
    h.posted = false;
    h.set_queue_count(1);
    h.create_cq(1, 16, None);
    h.create_sq(1, 16, 1);
    let mut nss = [Ns::identify(&mut h, 1)];
    let s =
        Storm { sqs: &[1], commands: 600, depth: 15, max: 64 << 10, sgl: false, copy: true, cross: false };
    storm::run(&mut h, &mut nss, &s, &mut Rng::new(5));
    nss[0].verify(&mut h, 1);
    nss[0].verify_image(&d.file("a.img"));
}

#[test]
fn fresh_namespaces_read_as_zeroes() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M --nvme-ns drive={}/x.img,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    for nsid in [1, 2] {
        Ns::identify(&mut h, nsid).verify(&mut h, 1);
    }
    // Created sparse, of the size asked for.
    let m = std::fs::metadata(d.file("x.img")).unwrap();
    assert_eq!((m.len(), m.blocks()), (1 << 20, 0));
}

#[test]
fn transfer_size_limit() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=4M,logical_block_size=512");
    let mut h = Host::with_queues(&d, 1, 16);
    let mut ns = Ns::identify(&mut h, 1);
    let most = (512 << 10) / 512;
    h.write(1, &mut ns, 3, most, 1);
    assert_eq!(h.read(1, &ns, 3, most), ns.at(3, most));
    let data = Data::prp(&mut h.ram, (512 << 10) + 512);
    for op in [io::READ, io::WRITE, io::COMPARE] {
        h.exec(1, Host::rw(op, &ns, 0, most + 1).data(&data))
            .is(st::INVALID_FIELD, &format!("opcode {op:#x}, MDTS + 1 block"));
        // The 0-based count in full: nothing may wrap to 0.
        h.exec(1, Host::rw(op, &ns, 0, 0x1_0000).data(&data))
            .is(st::INVALID_FIELD, &format!("opcode {op:#x}, NLB FFFFh"));
    }
    // No data moves over the bus here, so MDTS does not count (and no other limit is advertised).
    let id = h.identify(6, 0);
    assert_eq!((id[0], id[1]), (0, 0), "VSL, WZSL");
    h.exec(1, Host::rw(io::VERIFY, &ns, 0, 8192)).ok();
    ns.verify(&mut h, 1);
    h.exec(1, Host::rw(io::WRITE_ZEROES, &ns, 0, 8192)).ok();
    let size = ns.shadow.len();
    ns.set(0, &vec![0; size]);
    ns.verify(&mut h, 1);
    // 65536 blocks of a large namespace.
    let d = Daemon::start("--nvme-ns drive=memory,size=64M,logical_block_size=512");
    let mut h = Host::with_queues(&d, 1, 16);
    let mut ns = Ns::identify(&mut h, 1);
    for at in [0, 65535, 65536] {
        h.write(1, &mut ns, at, 1, 3);
    }
    h.exec(1, Host::rw(io::WRITE_ZEROES, &ns, 0, 0x1_0000)).ok();
    ns.set(0, &vec![0; 512 * 0x1_0000]);
    for at in [0, 65535, 65536] {
        assert_eq!(h.read(1, &ns, at, 1), ns.at(at, 1), "block {at}");
    }
}

#[test]
fn blocks_out_of_range() {
    let d = Daemon::start(
        "--nvme-ns drive=memory,size=1M,logical_block_size=512 \
         --nvme-ns drive={}/x.img,size=1M,logical_block_size=4096",
    );
    let mut h = Host::with_queues(&d, 1, 16);
    for nsid in [1, 2] {
        let mut ns = Ns::identify(&mut h, nsid);
        h.fill(1, &mut ns, 4);
        let n = ns.nsze;
        let data = Data::prp(&mut h.ram, 8 * ns.lba);
        let bytes_wrap = u64::MAX / ns.lba as u64 + 1;
        for (slba, blocks) in [
            (n, 1),
            (n - 1, 2),
            (n - 7, 8),
            (n + 1, 1),
            (u64::from(u32::MAX), 1),
            (1 << 32, 1),
            (bytes_wrap, 1),
            (bytes_wrap - 1, 2),
            (1 << 63, 4),
            (u64::MAX - 1, 1),
            (u64::MAX, 1),
            (u64::MAX, 2),
            (u64::MAX - 3, 8),
        ] {
            for op in [io::READ, io::WRITE, io::COMPARE, io::WRITE_ZEROES, io::VERIFY] {
                h.exec(1, Host::rw(op, &ns, slba, blocks).data(&data))
                    .is(st::LBA_RANGE, &format!("{op:#x} {slba:#x}+{blocks}"));
            }
        }
        for op in [io::WRITE_ZEROES, io::VERIFY] {
            h.exec(1, Host::rw(op, &ns, 1, 0x1_0000)).is(st::LBA_RANGE, "FFFFh");
        }
        // The last block itself is fine.
        h.write(1, &mut ns, n - 1, 1, 5);
        ns.verify(&mut h, 1);
    }
}

#[test]
fn namespace_ids() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M --nvme-ns drive=memory,size=1M,nsid=3");
    let mut h = Host::with_queues(&d, 1, 16);
    let nn = crate::host::le::u32_at(&h.identify(1, 0), 516);
    let data = Data::prp(&mut h.ram, 4096);
    let all = [io::READ, io::WRITE, io::COMPARE, io::WRITE_ZEROES, io::VERIFY, io::DSM, io::COPY, io::FLUSH];
    for op in all {
        for (nsid, want) in [
            (0, st::INVALID_NS),
            (2, st::INVALID_FIELD),
            (nn + 1, st::INVALID_NS),
            (0xffff_fffe, st::INVALID_NS),
            (0xffff_ffff, st::INVALID_NS),
        ] {
            if op == io::FLUSH && nsid == u32::MAX {
                continue;
            }
            h.exec(1, Sqe::new(op).nsid(nsid).data(&data))
                .is(want, &format!("opcode {op:#x}, NSID {nsid:#x}"));
        }
    }
    let vwc = h.identify(1, 0)[525];
    let c = h.exec(1, Sqe::new(io::FLUSH).nsid(u32::MAX));
    match vwc >> 1 & 3 {
        3 => c.is(st::OK, "Flush of all"),
        _ => c.is(st::INVALID_NS, "Flush of all"),
    };
    // Data goes to the namespace that was named.
    let (mut a, mut b) = (Ns::identify(&mut h, 1), Ns::identify(&mut h, 3));
    h.fill(1, &mut a, 1);
    h.fill(1, &mut b, 2);
    a.verify(&mut h, 1);
    b.verify(&mut h, 1);
}

#[test]
fn flag_byte() {
    let d = Daemon::start("");
    let mut h = Host::with_queues(&d, 1, 16);
    let ns = Ns::facts(&mut h, 1);
    let data = Data::prp(&mut h.ram, ns.lba);
    for fuse in 1..=3 {
        let c = h.exec(1, Host::rw(io::READ, &ns, 0, 1).data(&data).flags(fuse));
        assert_eq!(c.code(), 0x002, "FUSE {fuse}");
    }
    let c = h.exec(1, Host::rw(io::READ, &ns, 0, 1).data(&data).flags(3 << 6));
    assert_eq!(c.code(), 0x002, "PSDT 3");
}

/// As one on a file; all zero, which is what there is to be read and copied.
#[test]
fn read_only_memory() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M,readonly=on --nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    let ns = Ns::identify(&mut h, 1);
    assert_eq!(h.identify(0, 1)[99] & 1, 1, "NSATTR: write protected");
    let data = Data::prp(&mut h.ram, 4096);
    let mut range = [0; 16];
    put32(&mut range, 4, 1);
    h.set_cdfe(4).ok();
    for (what, sqe, list) in [
        ("write", Host::rw(io::WRITE, &ns, 0, 1), vec![0xaa; 4096]),
        ("write zeroes", Host::rw(io::WRITE_ZEROES, &ns, 0, 1), vec![0; 4096]),
        ("DSM", Sqe::new(io::DSM).nsid(1).cdw(11, 4), range.to_vec()),
        ("copy", nvme::copy(1, 9, 1, 0), nvme::Range::new(0, 1).bytes(0).to_vec()),
        ("copy from another", nvme::copy(1, 9, 1, 2), nvme::Range::of(2, 0, 1).bytes(2).to_vec()),
    ] {
        data.put(&h.ram, &[&list[..], &[0; 4096]].concat()[..4096]);
        h.exec(1, sqe.data(&data)).is(st::WRITE_PROTECTED, what);
    }
    h.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
    assert!(h.read(1, &ns, 0, 20).iter().all(|byte| *byte == 0));
    h.send(1, nvme::copy(2, 1, 1, 2), &nvme::Range::of(1, 7, 20).bytes(2)).ok();
}

#[test]
fn read_only_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let content = Rng::new(8).bytes(1 << 20);
    std::fs::write(dir.path().join("x.img"), &content).unwrap();
    for aio in engines() {
        let d = Daemon::start(&format!(
            "--nvme-ns drive={}/x.img,readonly=on,aio={aio} --nvme-ns drive=memory,size=1M",
            dir.path().display()
        ));
        let mut h = Host::with_queues(&d, 1, 16);
        let mut ns = Ns::identify(&mut h, 1);
        ns.shadow = content.clone();
        assert_eq!(h.identify(0, 1)[99] & 1, 1, "NSATTR: write protected");
        let data = Data::prp(&mut h.ram, 4096);
        let mut range = [0; 16];
        put32(&mut range, 4, 1);
        for (what, sqe) in [
            ("write", Host::rw(io::WRITE, &ns, 0, 1)),
            ("write zeroes", Host::rw(io::WRITE_ZEROES, &ns, 0, 1)),
            ("DSM", Sqe::new(io::DSM).nsid(1).cdw(11, 4)),
            ("copy", nvme::copy(1, 9, 1, 0)),
        ] {
            match what {
                "DSM" => data.put(&h.ram, &[&range[..], &[0; 4080]].concat()),
                _ => data.put(&h.ram, &[0; 4096]),
            }
            let c = h.exec(1, sqe.data(&data));
            assert!(matches!(c.status, st::WRITE_PROTECTED | st::READ_ONLY_RANGE), "{what}: {c:?}");
        }
        h.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
        h.exec(1, Host::rw(io::VERIFY, &ns, 0, 8)).ok();
        ns.verify(&mut h, 1);
        // As a source of Copy it is welcome.
        h.set_cdfe(4).ok();
        let list = [nvme::Range::of(1, 7, 20)];
        let bytes = list[0].bytes(2);
        h.send(1, nvme::copy(2, 1, 1, 2), &bytes).ok();
        let two = Ns::facts(&mut h, 2);
        assert_eq!(h.read(1, &two, 1, 20), ns.at(7, 20));
    }
    assert!(std::fs::read(dir.path().join("x.img")).unwrap() == content);
}

#[test]
fn compare_finds_every_bit() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M --nvme-ns drive={}/x.img,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    let mut rng = Rng::new(77);
    for nsid in [1, 2] {
        let mut ns = Ns::identify(&mut h, nsid);
        h.fill(1, &mut ns, 6);
        let good = ns.at(11, 5).to_vec();
        let sqe = Host::rw(io::COMPARE, &ns, 11, 5);
        h.send(1, sqe, &good).ok();
        let last = good.len() * 8 - 1;
        for bit in [0, 7, 4096 * 8 - 1, 4096 * 8, last].into_iter().filter(|&b| b <= last) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            h.send(1, sqe, &bad).is(st::COMPARE_FAILURE, &format!("bit {bit}"));
        }
        for _ in 0..50 {
            let mut bad = good.clone();
            let bit = rng.below(last as u64) as usize;
            bad[bit / 8] ^= 1 << (bit % 8);
            h.send(1, sqe, &bad).is(st::COMPARE_FAILURE, &format!("bit {bit}"));
        }
        // A write between, the compare follows it.
        h.write(1, &mut ns, 13, 1, 1);
        h.send(1, sqe, &good).is(st::COMPARE_FAILURE, "after a write");
        let now = ns.at(11, 5).to_vec();
        h.send(1, sqe, &now).ok();
    }
}

fn dsm(nsid: u32, ranges: &[(u64, u32)], attributes: u32) -> (Sqe, Vec<u8>) {
    let mut b = vec![0; 16 * ranges.len()];
    for (i, &(slba, blocks)) in ranges.iter().enumerate() {
        put32(&mut b, 16 * i + 4, blocks);
        put64(&mut b, 16 * i + 8, slba);
    }
    let s = Sqe::new(io::DSM).nsid(nsid).cdw(10, ranges.len() as u32 - 1).cdw(11, attributes);
    (s, b)
}

#[test]
fn deallocate() {
    for aio in engines() {
        let d = Daemon::start(&format!(
            "--nvme-ns drive={{}}/x.img,size=8M,logical_block_size=512,aio={aio} \
             --nvme-ns drive=memory,size=8M,logical_block_size=4096"
        ));
        let mut h = Host::with_queues(&d, 1, 16);
        for nsid in [1, 2] {
            let mut ns = Ns::identify(&mut h, nsid);
            h.fill(1, &mut ns, 6);
            h.exec(1, Sqe::new(io::FLUSH).nsid(nsid)).ok();
            // Hints without AD change nothing.
            let (s, b) = dsm(nsid, &[(0, ns.nsze as u32)], 3);
            h.send(1, s, &b).ok();
            ns.verify(&mut h, 1);

            // Many ranges, some of them empty, unaligned to anything.
            let mut ranges: Vec<(u64, u32)> = (0..200).map(|i| (i * 5 + 3, (i % 3) as u32)).collect();
            ranges.extend([(1024, 0), (ns.nsze - 1, 1)]);
            let (s, b) = dsm(nsid, &ranges, 4);
            h.send(1, s, &b).ok();
            for (slba, n) in ranges {
                ns.trimmed.extend(slba..slba + u64::from(n));
            }
            ns.verify(&mut h, 1);
            // All 256 ranges, from a buffer that ends where the list ends.
            let ranges: Vec<(u64, u32)> = (0..256).map(|i| (i * 2, 1)).collect();
            let (s, b) = dsm(nsid, &ranges, 4);
            assert_eq!(b.len(), 4096);
            h.send(1, s, &b).ok();
            ns.trimmed.extend((0..256).map(|i| i * 2));
            ns.verify(&mut h, 1);

            // Out of range: the command fails.
            for (slba, n) in [(ns.nsze, 1), (ns.nsze - 1, 2), (u64::MAX, 1), (0, u32::MAX)] {
                let (s, b) = dsm(nsid, &[(0, 1), (slba, n)], 4);
                h.send(1, s, &b).is(st::LBA_RANGE, &format!("{slba:#x}+{n:#x}"));
                ns.trimmed.insert(0);
            }
            let (s, _) = dsm(nsid, &[(0, 1)], 4);
            h.exec(1, s.prp(0x77_0000_0000, 0)).is(st::DATA_TRANSFER, "no list");
            ns.verify(&mut h, 1);

            // All of it: zeroes, and the file gives its space back.
            let (s, b) = dsm(nsid, &[(0, ns.nsze as u32)], 4);
            h.send(1, s, &b).ok();
            let size = ns.shadow.len();
            ns.set(0, &vec![0; size]);
            ns.verify(&mut h, 1);
        }
        let m = std::fs::metadata(d.file("x.img")).unwrap();
        assert_eq!(m.len(), 8 << 20);
        assert!(m.blocks() * 512 < 1 << 20, "{} KiB are still allocated", m.blocks() / 2);
    }
}

#[test]
fn write_zeroes_with_and_without_deallocate() {
    for aio in engines() {
        let d = Daemon::start(&format!(
            "--nvme-ns drive={{}}/x.img,size=4M,logical_block_size=512,aio={aio} \
             --nvme-ns drive=memory,size=4M,logical_block_size=512"
        ));
        let mut h = Host::with_queues(&d, 1, 16);
        for nsid in [1, 2] {
            let mut ns = Ns::identify(&mut h, nsid);
            h.fill(1, &mut ns, 2);
            for (i, (slba, blocks)) in
                [(1u64, 1u32), (9, 7), (16, 1000), (3000, 4096), (8191, 1)].into_iter().enumerate()
            {
                let mut s = Host::rw(io::WRITE_ZEROES, &ns, slba, blocks);
                if i % 2 == 0 {
                    s = s.cdw(12, 1 << 25 | (blocks - 1)); // DEAC
                }
                if i % 3 == 0 {
                    s = s.fua();
                }
                h.exec(1, s).ok();
                ns.set(slba, &vec![0; blocks as usize * 512]);
            }
            ns.verify(&mut h, 1);
        }
    }
}

/// Blocks that were never written cost nothing.
#[test]
fn untouched_memory_namespace_is_free() {
    let d = Daemon::start("");
    let mut h = Host::with_queues(&d, 1, 64);
    let ns = Ns::facts(&mut h, 1);
    assert_eq!(ns.nsze * ns.lba as u64, 1 << 30, "the default namespace");
    let step = (512 << 10) / ns.lba as u64;
    for i in 0..100 {
        let n = h.read(1, &ns, i * 20 * step, step as u32);
        assert!(n.iter().all(|&x| x == 0));
    }
    h.exec(1, Host::rw(io::VERIFY, &ns, 0, 0x1_0000)).ok();
    let used = d.resident();
    assert!(used < 100 << 20, "{} MiB resident", used >> 20);
}

#[test]
fn flush_and_fua_succeed_everywhere() {
    for aio in engines() {
        let d = Daemon::start(&format!(
            "--nvme-ns drive={{}}/x.img,size=1M,aio={aio} --nvme-ns drive=memory,size=1M"
        ));
        let mut h = Host::with_queues(&d, 1, 16);
        for nsid in [1, 2] {
            let mut ns = Ns::identify(&mut h, nsid);
            for i in 0..20 {
                let bytes = ns.pattern(i, 2, i);
                let s = Host::rw(io::WRITE, &ns, i, 2).fua();
                h.send(1, s, &bytes).ok();
                ns.set(i, &bytes);
                h.exec(1, Sqe::new(io::FLUSH).nsid(nsid)).ok();
            }
            // FUA on a Read, and LR, are legal.
            let data = Data::prp(&mut h.ram, ns.lba);
            h.exec(1, Host::rw(io::READ, &ns, 0, 1).data(&data).fua()).ok();
            ns.verify(&mut h, 1);
        }
    }
}
