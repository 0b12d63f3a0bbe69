//! SPDK's. The table is in the module above.

use std::fs::File;

use crate::engines;
use crate::host::data::{SGL_DATA, descriptor};
use crate::host::le::u16_at;
use crate::host::nvme::{Range, admin, copy, io, st};
use crate::host::*;

const READ_ERROR: u16 = 0x0281;
const CAPACITY: u16 = 0x0081;

/// SPDK makes Internal Errors of bad ids, pointers and bounds, and of whatever went wrong on the medium.
#[test]
fn spdk_fault_1_each_error_has_its_name() {
    for aio in engines() {
        let d = Daemon::start(&format!(
            "--nvme serial=x,cdfe=4 --nvme-ns drive=memory,size=4M,logical_block_size=512 \
             --nvme-ns drive={{}}/x.img,size=4M,logical_block_size=512,aio={aio} \
             --nvme-ns drive={{}}/y.img,size=4M,logical_block_size=512,aio={aio},copy_method=offload"
        ));
        let mut h = Host::with_queues(&d, 1, 16);
        let mut one = Ns::identify(&mut h, 1);
        h.fill(1, &mut one, 1);
        let n = one.nsze;
        let list = Data::prp(&mut h.ram, 32);
        let nowhere = Data { pieces: Vec::new(), dptr: descriptor(0x77_0000_0000, 32, SGL_DATA), psdt: 1 };
        for (what, range, sqe, data, status) in [
            ("NSID", Range::of(1, 0, 1), copy(1000, 0, 1, 2), &list, st::INVALID_NS),
            ("SNSID", Range::of(1000, 0, 1), copy(1, 0, 1, 2), &list, st::INVALID_NS),
            ("pointer", Range::of(1, 0, 1), copy(1, 0, 1, 2), &nowhere, st::DATA_TRANSFER),
            ("destination", Range::of(2, 0, 2), copy(1, n - 1, 1, 2), &list, st::LBA_RANGE),
            ("source", Range::of(2, n - 1, 2), copy(1, 0, 1, 2), &list, st::LBA_RANGE),
        ] {
            list.put(&h.ram, &range.bytes(2));
            let c = h.exec(1, sqe.data(data));
            assert_eq!((c.status, c.dw0), (status, 0), "{what}");
        }
        // The medium: the image ends before its namespace does. What is written behind its end lengthens it.
        for (from, to, at) in [(2, 1, 2048), (2, 3, 3000), (2, 2, 4000), (3, 3, 2040), (3, 2, 2047)] {
            for blocks in [16, 1000] {
                for name in ["x.img", "y.img"] {
                    let file = File::options().write(true).open(d.file(name));
                    file.and_then(|file| file.set_len(1 << 20)).expect("shorter");
                }
                let ranges = [Range::of(1, 0, 8), Range::of(from, at, blocks)];
                let bytes: Vec<u8> = ranges.iter().flat_map(|r| r.bytes(2)).collect();
                let c = h.send(1, copy(to, if from == to { 0 } else { 5000 }, 2, 2), &bytes);
                assert_eq!(c.status, READ_ERROR, "{from}:{at}+{blocks} to {to}: {c:?}");
                assert!(c.dw0 <= 1, "{c:?}");
            }
        }
        assert_eq!(h.csts(), 1);
    }
}

/// The same of a destination without room: a thin namespace out of capacity, no Internal Error, by every method. What
/// DW0 says is done is done.
#[test]
fn spdk_fault_1_a_full_file_system() {
    for (kind, size) in [("ext4", 32), ("xfs", 512), ("btrfs", 256)] {
        let Some(mount) = Mount::new(kind, size << 20) else { continue };
        for (method, from) in [("auto", 1), ("bounce", 1), ("auto", 2), ("offload", 2), ("bounce", 2)] {
            // What is shared takes no room.
            if kind == "ext4" || from == 1 || method == "bounce" {
                fill(&mount, kind, 2 * size, method, from);
            }
        }
    }
}

/// Copies 16 MiB of namespace `from` again and again, until there is no more room.
fn fill(mount: &Mount, kind: &str, len: u64, method: &str, from: u32) {
    const BLOCKS: u64 = 4096;
    let image = mount.path().join("image").display().to_string();
    let mut d = Daemon::start(&format!(
        "--nvme serial=x,cdfe=4 \
         --nvme-ns drive=memory,size=64M,logical_block_size=4096 \
         --nvme-ns drive={image},size={len}M,logical_block_size=4096,copy_method={method}"
    ));
    let mut h = Host::with_queues(&d, 1, 16);
    let mut nss = [1, 2].map(|nsid| Ns::facts(&mut h, nsid));
    let source = &mut nss[from as usize - 1];
    source.shadow = vec![0; BLOCKS as usize * source.lba];
    for at in (0..BLOCKS).step_by(32) {
        h.write(1, source, at, 32, 3);
    }
    let list: Vec<u8> = (0..16).flat_map(|i| Range::of(from, i * 256, 256).bytes(2)).collect();
    let mut at = BLOCKS;
    let c = loop {
        assert!(at + BLOCKS <= nss[1].nsze, "{kind}: it is never full");
        let c = h.send(1, copy(2, at, 16, 2), &list);
        if c.status != st::OK {
            break c;
        }
        at += BLOCKS;
    };
    let what = format!("{kind}, {method} from {from}: {c:?}");
    c.is(CAPACITY, &what);
    assert!(c.dw0 < 16, "{what}");
    let whole = |range: u64, h: &mut Host| {
        (range * 256..(range + 1) * 256)
            .step_by(32)
            .all(|block| h.read(1, &nss[1], at + block, 32) == nss[from as usize - 1].at(block, 32))
    };
    assert!((0..u64::from(c.dw0)).all(|range| whole(range, &mut h)), "{what}: DW0 is too high");
    assert!(!whole(c.dw0.into(), &mut h), "{what}: DW0 is too low");
    // Onto what has its room already.
    let c = h.send(1, copy(2, BLOCKS, 1, 2), &Range::of(from, 0, 256).bytes(2));
    assert!(c.status == st::OK || kind == "btrfs", "{what}: {c:?}");
    assert_eq!(h.csts(), 1);
    drop(h);
    // What was delayed may not find its place either: the end need not be a good one.
    d.kill();
    std::fs::remove_file(image).expect("removed");
}

/// SPDK moves the parts of a long overlapping range in parallel, or by a memcpy: the second part reads what the first
/// has written. Here it is as if all had been read before.
#[test]
fn spdk_fault_2_an_overlapping_range_is_moved() {
    for aio in engines() {
        for method in ["auto", "offload", "bounce"] {
            let d = Daemon::start(&format!(
                "--nvme-ns drive=memory,size=16M,logical_block_size=512,copy_method={method} \
                 --nvme-ns drive={{}}/x.img,size=16M,logical_block_size=512,aio={aio},copy_method={method} \
                 --nvme-ns drive={{}}/y.img,size=16M,logical_block_size=512,aio={aio},copy_method={method},cache=none"
            ));
            let mut h = Host::with_queues(&d, 1, 16);
            for nsid in 1..=3 {
                let mut ns = Ns::identify(&mut h, nsid);
                h.fill(1, &mut ns, 1);
                let len = 16000;
                for shift in [0, 1, 7, 8, 255, 511, 512, 1024, 5000] {
                    for (from, to) in [(8000, 8000 + shift), (8000 + shift, 8000)] {
                        let what = format!("{aio}, {method}: {from} to {to} of {nsid}");
                        h.send(1, copy(nsid, to, 1, 0), &Range::new(from, len).bytes(0)).is(st::OK, &what);
                        let bytes = ns.at(from, len).to_vec();
                        ns.set(to, &bytes);
                    }
                }
                ns.verify(&mut h, 1);
            }
        }
    }
}

/// SPDK measures every list by entries of 32 bytes. Here the list of a format with 40-byte entries is not: what is
/// wrong with the command is its format, however long the list is.
#[test]
fn spdk_fault_6_entries_of_either_length() {
    let d = Daemon::start("--nvme serial=x,ocfs=0xf,cdfe=0xc --nvme-ns drive=memory,size=256K");
    let mut h = Host::with_queues(&d, 1, 16);
    for format in [1, 3] {
        for bytes in [64, 79, 80, 81, 4096] {
            let data = Data::sgl(&mut h.ram, &[Sgl::Block { len: bytes, offset: 0 }], &[]);
            let c = h.exec(1, copy(1, 0, 2, format).data(&data));
            let want = if bytes < 80 { [st::SGL_LENGTH, st::INVALID_NS] } else { [st::INVALID_NS; 2] };
            assert!(want.contains(&c.status), "format {format}, {bytes} bytes: {c:?}");
        }
    }
    for (bytes, status) in [(63, st::SGL_LENGTH), (64, st::OK), (80, st::OK), (4096, st::OK)] {
        let mut entries = [Range::new(1, 1).bytes(0), Range::new(2, 1).bytes(0)].concat();
        entries.resize(bytes.max(64), 0);
        entries.truncate(bytes);
        let data = Data::sgl(&mut h.ram, &[Sgl::Block { len: bytes, offset: 0 }], &[]);
        data.put(&h.ram, &entries);
        h.exec(1, copy(1, 8, 2, 0).data(&data)).is(status, &format!("{bytes} bytes of 64"));
    }
}

/// Reservations are later work. SPDK has them, and lets a Copy through that they forbid; here none is claimed, and none
/// can be made that a Copy could pass by.
#[test]
fn spdk_fault_7_no_reservations() {
    let d = Daemon::start("--nvme-ns drive=memory,size=256K --nvme-ns drive={}/x.img,size=256K");
    let mut h = Host::with_queues(&d, 1, 16);
    assert_eq!(u16_at(&h.identify(1, 0), 520) & (1 << 5), 0, "ONCS: reservations");
    for nsid in [1, 2] {
        let id = h.identify(0, nsid);
        assert_eq!((id[30], id[31]), (0, 0), "NMIC, RESCAP");
        // Register, Report, Acquire, Release.
        for opcode in [0x0d, 0x0e, 0x11, 0x15] {
            let data = Data::prp(&mut h.ram, 4096);
            h.exec(1, Sqe::new(opcode).nsid(nsid).data(&data)).is(st::INVALID_OPCODE, "a reservation");
        }
    }
}

/// SPDK reports nothing of what a Copy did that ended midway. Here, when an Abort has stopped it: all ranges below DW0
/// are copied, and the one it names is not.
#[test]
fn spdk_fault_8_dw0_of_a_copy_that_was_stopped() {
    const RANGES: u64 = 64;
    const BLOCKS: u32 = 128;
    for image in ["drive=memory", "drive={}/x.img", "drive={}/x.img,copy_method=bounce"] {
        let d = Daemon::start(&format!("--nvme-ns {image},size=64M,logical_block_size=4096"));
        let mut h = Host::with_queues(&d, 1, 16);
        let mut ns = Ns::identify(&mut h, 1);
        let half = RANGES * u64::from(BLOCKS);
        for at in (0..half).step_by(32) {
            h.write(1, &mut ns, at, 32, 1);
        }
        let list: Vec<u8> =
            (0..RANGES).flat_map(|i| Range::new(i * u64::from(BLOCKS), BLOCKS).bytes(0)).collect();
        let data = Data::prp(&mut h.ram, list.len());
        data.put(&h.ram, &list);
        let (mut stopped, mut rounds) = (0, 0);
        while stopped < 4 && rounds < 400 {
            rounds += 1;
            h.exec(1, Host::rw(io::WRITE_ZEROES, &ns, half, half as u32)).ok();
            let cid = h.submit(1, copy(1, half, RANGES as usize, 0).data(&data));
            // Later and later, until it is too late.
            std::thread::sleep(std::time::Duration::from_micros(rounds % 40 * 200));
            h.exec(0, Sqe::new(admin::ABORT).cdw(10, u32::from(cid) << 16 | 1)).ok();
            let c = h.wait(1, cid);
            if c.status == st::OK {
                continue;
            }
            c.is(st::ABORT_REQUESTED, "aborted");
            let mut is_copied = |range: u64| {
                (0..u64::from(BLOCKS)).step_by(32).all(|at| {
                    let at = range * u64::from(BLOCKS) + at;
                    h.read(1, &ns, half + at, 32) == ns.at(at, 32)
                })
            };
            let dw0 = u64::from(c.dw0);
            assert!(dw0 < RANGES);
            assert!((0..dw0).all(&mut is_copied), "{image}: DW0 {dw0} is too high");
            assert!(!is_copied(dw0), "{image}: DW0 {dw0} is too low");
            stopped += u64::from(dw0 > 0);
        }
        assert!(stopped > 0, "{image}: no Abort of {rounds} came in the middle");
    }
}
