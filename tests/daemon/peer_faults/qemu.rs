//! QEMU's. The table is in the module above.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::host::le::{put32, put64, u16_at, u32_at, u64_at};
use crate::host::nvme::{Range, admin, copy, io, st};
use crate::host::*;

/// QEMU compares metadata and protection only, so 128 blocks of 512 bytes land in 16 of 4096, and memory beyond its
/// buffer is read: whatever the command says of protection, blocks of other sizes do not go together.
#[test]
fn qemu_fault_4_block_sizes_that_differ() {
    let d = Daemon::start(
        "--nvme serial=x,cdfe=0xc --nvme-ns drive=memory,size=1M,logical_block_size=512 \
         --nvme-ns drive=memory,size=1M,logical_block_size=4096",
    );
    let mut h = Host::with_queues(&d, 1, 16);
    let mut nss = [1, 2].map(|nsid| Ns::identify(&mut h, nsid));
    for ns in &mut nss {
        h.fill(1, ns, 1);
    }
    // PRINFOW and PRINFOR: insert and strip, together and alone.
    for protection in [0, 1 << 29, 1 << 15, 1 << 29 | 1 << 15] {
        for (from, to, blocks) in [(1, 2, 128), (2, 1, 16), (1, 2, 1), (2, 1, 1)] {
            let sqe = copy(to, 0, 1, 2);
            let cdw12 = 2 << 8 | protection;
            h.send(1, sqe.cdw(12, cdw12), &Range::of(from, 0, blocks).bytes(2))
                .is(st::INCOMPATIBLE_NS, &format!("{blocks} blocks from {from} to {to}, {protection:#x}"));
        }
    }
    for ns in &mut nss {
        ns.verify(&mut h, 1);
    }
}

/// QEMU says in ONCS that the write of a Copy is one write for atomicity, offers units of that, and makes one write for
/// each range. Here the bit is set too, as it must be; but no unit or boundary is claimed that a Copy would have to keep.
#[test]
fn qemu_fault_6_no_atomicity_is_claimed() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=1M --nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    let id = h.identify(1, 0);
    let oncs = u16_at(&id, 520);
    assert_eq!(oncs & (1 << 8), 1 << 8, "Copy");
    assert_eq!(oncs & (1 << 9), 1 << 9, "single atomicity");
    assert_eq!(id[526..530], [0; 4], "AWUN, AWUPF: a block");
    assert_eq!((u16_at(&id, 522), u16_at(&id, 532)), (0, 0), "FUSES, ACWU");
    for nsid in [1, 2] {
        let id = h.identify(0, nsid);
        assert_eq!(id[24] & 2, 0, "NSFEAT: units of its own");
        assert_eq!(id[34..46], [0; 12], "NAWUN, NAWUPF, NACWU, NABSN, NABO, NABSPF");
    }
}

/// Fast Copy Only for each of `ranges` that says so.
fn fast_only(h: &mut Host, nsid: u32, sdlba: u64, ranges: &[(Range, bool)]) -> Cqe {
    let list = ranges.iter().map(|(range, fast)| Range { sopt: u16::from(*fast) << 15, ..*range });
    let list: Vec<u8> = list.flat_map(|range| range.bytes(2)).collect();
    h.send(1, copy(nsid, sdlba, ranges.len(), 2), &list)
}

/// QEMU says in ONCS that all Copies are fast, bounces each of them, and never looks at Fast Copy Only. Here it is
/// claimed nowhere, and a range that asks for it where memory is moved or blocks are written anew ends the Copy before
/// it began.
#[test]
fn qemu_fault_7_what_is_not_fast_is_not_said_to_be() {
    let d = Daemon::start(
        "--nvme-ns drive={}/x.img,size=1M,copy_method=bounce --nvme-ns drive=memory,size=1M \
         --nvme-ns drive={}/y.img,size=1M,copy_method=offload",
    );
    let mut h = Host::with_queues(&d, 1, 16);
    assert_eq!(u16_at(&h.identify(1, 0), 520) & (1 << 10), 0, "all fast copy");
    let mut nss = [1, 2, 3].map(|nsid| Ns::identify(&mut h, nsid));
    for ns in &mut nss {
        h.fill(1, ns, 1);
    }
    h.set_cdfe(4).ok();
    for (from, to) in [(1, 1), (2, 2), (3, 3), (1, 2), (2, 1), (1, 3)] {
        for ranges in [
            vec![(Range::of(from, 1024, 8), true)],
            vec![(Range::of(from, 1024, 128), false), (Range::of(from, 1280, 8), true)],
        ] {
            let c = fast_only(&mut h, to, 0, &ranges);
            assert_eq!((c.code(), c.dw0), (st::NOT_FAST, 0), "{from} to {to}");
        }
    }
    for ns in &mut nss {
        ns.verify(&mut h, 1);
    }
}

#[test]
fn qemu_fault_7_fast_is_what_shares_blocks_on_xfs() {
    fast_is_what_shares_blocks("xfs");
}

#[test]
fn qemu_fault_7_fast_is_what_shares_blocks_on_btrfs() {
    fast_is_what_shares_blocks("btrfs");
}

/// Where blocks can be shared, Fast Copy Only is kept: either they are, or nothing is copied.
fn fast_is_what_shares_blocks(kind: &str) {
    const LEN: u64 = 16 << 20;
    let Some(mount) = Mount::new(kind, 512 << 20) else { return };
    let path = |name: &str| mount.path().join(name).display().to_string();
    let d = Daemon::start(&format!(
        "--nvme-ns drive={},size=64M,logical_block_size=512 \
         --nvme-ns drive={},size=64M,logical_block_size=512,copy_method=bounce \
         --nvme-ns drive={},size=64M,logical_block_size=512,copy_method=reflink",
        path("auto"),
        path("bounce"),
        path("reflink"),
    ));
    let mut h = Host::with_queues(&d, 1, 16);
    assert_eq!(u16_at(&h.identify(1, 0), 520) & (1 << 10), 0, "all fast copy");
    h.set_cdfe(4).ok();
    let mut nss = [1, 2, 3].map(|nsid| Ns::identify(&mut h, nsid));
    let blocks = LEN / 512;
    for at in (0..blocks).step_by(256) {
        h.write(1, &mut nss[0], at, 256, at);
    }
    h.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
    let all = || Range::of(1, 0, 32768);
    for to in [1, 3] {
        let before = mount.used();
        fast_only(&mut h, to, 65536, &[(all(), true)]).ok();
        let grown = mount.used() as i64 - before as i64;
        assert!(grown < LEN as i64 / 8, "{kind}: {grown} bytes more, so it was not fast");
        let bytes = nss[0].at(0, 32768).to_vec();
        nss[to as usize - 1].set(65536, &bytes);
    }
    for (what, to, sdlba, ranges) in [
        ("the source shifted", 1, 100_000, vec![(Range::of(1, 1, 1024), true)]),
        ("the destination shifted", 1, 100_001, vec![(Range::of(1, 0, 1024), true)]),
        ("both in step, but parts of blocks", 1, 100_001, vec![(Range::of(1, 1, 1024), true)]),
        ("an end within a block", 3, 100_000, vec![(Range::of(1, 0, 1023), true)]),
        ("the last of three", 3, 102_400, [1024, 1024, 7].map(|n| (Range::of(1, 0, n), n == 7)).to_vec()),
        (
            "shifted by the one before it",
            1,
            102_400,
            vec![(Range::of(1, 0, 3), false), (Range::of(1, 0, 8192), true)],
        ),
        ("by a method that writes", 2, 65536, vec![(all(), true)]),
    ] {
        let c = fast_only(&mut h, to, sdlba, &ranges);
        assert_eq!((c.code(), c.dw0), (st::NOT_FAST, 0), "{kind}: {what}");
    }
    // Who does not ask for it gets it as it comes.
    fast_only(&mut h, 1, 102_400, &[(Range::of(1, 0, 3), false), (Range::of(1, 8, 9), false)]).ok();
    let bytes = [nss[0].at(0, 3), nss[0].at(8, 9)].concat();
    nss[0].set(102_400, &bytes);
    for ns in &mut nss {
        ns.verify(&mut h, 1);
    }
}

/// Protection information is later work. QEMU never matches 64-bit guards and makes escape tags of sources that were
/// never written; SPDK copies tags to blocks they do not belong to. Here no namespace claims to have any, the formats
/// for it are refused whatever their list says, and in the others all its fields mean nothing: never written blocks
/// are copied like any others.
#[test]
fn qemu_faults_5_and_9_spdk_fault_4_protection_is_refused_or_means_nothing() {
    let d = Daemon::start(
        "--nvme serial=x,cdfe=0xc --nvme-ns drive=memory,size=1M,logical_block_size=512 \
         --nvme-ns drive={}/x.img,size=1M,logical_block_size=512",
    );
    let mut h = Host::with_queues(&d, 1, 16);
    let mut nss = [1, 2].map(|nsid| Ns::identify(&mut h, nsid));
    for ns in &mut nss {
        let id = h.identify(0, ns.nsid);
        assert_eq!(id[27..30], [0; 3], "MC, DPC, DPS");
        assert_eq!(h.identify(5, ns.nsid), [0; 4096], "PIC, STS, PIF");
        // The destination is written, the source is not.
        for at in (0..1024).step_by(128) {
            h.write(1, ns, at, 128, 1);
        }
    }
    for (format, to, from) in [(1, 1, 1), (1, 2, 2), (3, 1, 2), (3, 2, 1), (3, 1, 1)] {
        let mut entry = [0; 40];
        put32(&mut entry, 0, if format == 3 { from } else { 0 });
        put64(&mut entry, 8, 1200);
        for protection in [0, 1 << 29, 1 << 15, 1 << 29 | 1 << 15] {
            let sqe = copy(to, 0, 2, format).cdw(12, u32::from(format) << 8 | 1 | protection);
            let c = h.send(1, sqe, &[entry, entry].concat());
            assert_eq!((c.status, c.dw0), (st::INVALID_NS, 0), "format {format}");
        }
    }
    for ns in &mut nss {
        ns.verify(&mut h, 1);
    }
    // PRINFOR, STCW, STCR, PRINFOW.
    for bits in [0xf << 12, 1 << 24, 1 << 25, 0xf << 26, 0x3f00_f000] {
        for (format, to, from) in [(0, 1, 1), (0, 2, 2), (2, 1, 2), (2, 2, 1)] {
            let mut range = Range::of(from, 1200, 16).bytes(format);
            range[24..32].fill(0xff);
            let sqe = copy(to, 0, 1, format).cdw(12, u32::from(format) << 8 | bits);
            let sqe = sqe.cdw(2, u32::MAX).cdw(3, u32::MAX).cdw(14, u32::MAX).cdw(15, u32::MAX);
            h.send(1, sqe, &range).is(st::OK, &format!("CDW12 {bits:#x}, {from} to {to}"));
            nss[to as usize - 1].set(0, &[0; 16 * 512]);
        }
    }
    for ns in &mut nss {
        ns.verify(&mut h, 1);
    }
}

/// SMART: data units read and written, host reads and writes; media errors.
fn smart(h: &mut Host) -> [u64; 5] {
    let (c, log) = h.log(2, u32::MAX, 0, 512);
    c.ok();
    [32, 48, 64, 80, 160].map(|at| u64_at(&log, at))
}

/// QEMU looks at the limits of a Copy when it has opened a zone for it, and starts the count of it before it knows.
/// Zones are later work. Whatever a Copy is refused for, here the destination was not even made ready for it, and it
/// counts nowhere.
#[test]
fn qemu_faults_8_and_11_a_refused_copy_leaves_no_trace() {
    const DULBE: u32 = 1 << 16;
    let d = Daemon::start(
        "--nvme serial=x,cdfe=4 --nvme-ns drive={}/x.img,size=8M,logical_block_size=4096,mssrl=16,mcl=32,msrc=3 \
         --nvme-ns drive=memory,size=8M,logical_block_size=4096,mssrl=16,mcl=32,msrc=3 \
         --nvme-ns drive={}/y.img,size=1M,logical_block_size=512,nsid=5",
    );
    let mut h = Host::with_queues(&d, 1, 16);
    // Two of these come out as 16 MiB of nothing.
    let allocated = || std::fs::metadata(d.file("x.img")).expect("image").blocks();
    let nss = [1, 2].map(|nsid| Ns::facts(&mut h, nsid));
    for ns in &nss {
        h.send(1, Host::rw(io::WRITE, ns, 0, 16), &[7; 16 * 4096]).ok();
        h.admin(Sqe::new(admin::SET_FEATURES).nsid(ns.nsid).cdw(10, 5).cdw(11, DULBE)).ok();
    }
    h.exec(1, Sqe::new(io::FLUSH).nsid(u32::MAX)).ok();
    let before = (smart(&mut h), allocated());
    let of = Range::of;
    for ns in &nss {
        let (to, n) = (ns.nsid, ns.nsze);
        for (what, sdlba, ranges, status) in [
            ("MSRC", 100, vec![of(to, 0, 1); 5], st::SIZE_LIMIT),
            ("MSSRL", 100, vec![of(to, 0, 16), of(to, 0, 17)], st::SIZE_LIMIT),
            ("MCL", 100, vec![of(to, 0, 16), of(to, 0, 16), of(to, 0, 1)], st::SIZE_LIMIT),
            ("destination", n - 16, vec![of(to, 0, 16), of(to, 0, 1)], st::LBA_RANGE),
            ("source", 100, vec![of(to, 0, 16), of(to, n - 1, 2)], st::LBA_RANGE),
            ("SNSID", 100, vec![of(to, 0, 16), of(0, 0, 2)], st::INVALID_NS),
            ("inactive", 100, vec![of(to, 0, 16), of(4, 0, 2)], st::INVALID_FIELD),
            ("block size", 100, vec![of(to, 0, 16), of(5, 0, 2)], st::INCOMPATIBLE_NS),
            ("overlap", 100, vec![of(to, 0, 16), of(to, 101, 1)], st::OVERLAP),
            ("unwritten", 100, vec![of(to, 0, 16), of(to, 64, 2)], st::DEALLOCATED),
        ] {
            let list: Vec<u8> = ranges.iter().flat_map(|r| r.bytes(2)).collect();
            let c = h.send(1, copy(to, sdlba, ranges.len(), 2).fua(), &list);
            c.is(status, &format!("{what} of {to}"));
            assert_eq!(c.dw0, 0, "{what} of {to}");
            for at in [16, 100, 116, n - 16, n - 1] {
                h.exec(1, Host::rw(io::VERIFY, ns, at, 1))
                    .is(st::DEALLOCATED, &format!("{what}: block {at}"));
            }
        }
    }
    assert_eq!((smart(&mut h), allocated()), before);
}

/// Streams and placement are later work. QEMU takes a Copy with a placement id and forgets that. Here no directive is
/// offered, so a Copy that has one is refused; without a directive its value means nothing.
#[test]
fn qemu_fault_10_placement_is_refused() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=256K,logical_block_size=512");
    let mut h = Host::with_queues(&d, 1, 16);
    let id = h.identify(1, 0);
    assert_eq!(u32_at(&id, 96) & (1 << 19), 0, "CTRATT: flexible data placement");
    assert_eq!(u16_at(&id, 256) & (1 << 5), 0, "OACS: directives");
    let mut ns = Ns::identify(&mut h, 1);
    h.fill(1, &mut ns, 1);
    for dtype in 1..16 {
        for dspec in [0, 1, 0xffff] {
            let sqe = copy(1, 0, 1, 0).cdw(12, dtype << 20).cdw(13, dspec << 16);
            let c = h.send(1, sqe, &Range::new(9, 4).bytes(0));
            assert_eq!((c.status, c.dw0), (st::INVALID_FIELD, 0), "DTYPE {dtype}");
        }
    }
    ns.verify(&mut h, 1);
    h.send(1, copy(1, 0, 1, 0).cdw(13, 0xffff << 16), &Range::new(9, 4).bytes(0)).ok();
    let bytes = ns.at(9, 4).to_vec();
    ns.set(0, &bytes);
    ns.verify(&mut h, 1);
}

/// QEMU counts a Copy as an operation of no bytes. Here it is a host read, a host write and the data units that it
/// wrote, once, whatever way it takes and however many ranges and namespaces it has; one that fails is none of these,
/// but an error of the medium.
#[test]
fn qemu_fault_11_smart_counts_each_copy_once() {
    let d = Daemon::start(
        "--nvme serial=x,cdfe=4 --nvme-ns drive=memory,size=32M,logical_block_size=512 \
         --nvme-ns drive={}/a.img,size=32M,logical_block_size=512 \
         --nvme-ns drive={}/b.img,size=32M,logical_block_size=512,copy_method=bounce",
    );
    let mut h = Host::with_queues(&d, 1, 16);
    let units = |bytes: u64| bytes.div_ceil(512_000);
    let mut bytes = 0;
    let mut before = smart(&mut h);
    assert_eq!(before, [0; 5]);
    for (from, to) in [(1, 1), (2, 2), (3, 3), (1, 2), (2, 1), (2, 3)] {
        // At once, within a segment, in many; in one range and in several.
        for (blocks, count) in [(1, 1), (100, 1), (3000, 1), (1, 3), (3000, 8)] {
            let ranges: Vec<Range> = (0..count).map(|i| Range::of(from, i * 3500, blocks)).collect();
            let list: Vec<u8> = ranges.iter().flat_map(|r| r.bytes(2)).collect();
            h.send(1, copy(to, 32768, ranges.len(), 2), &list).ok();
            bytes += u64::from(blocks) * count * 512;
            let [read, _, reads, writes, errors] = before;
            let after = smart(&mut h);
            assert_eq!(after, [read, units(bytes), reads + 1, writes + 1, errors], "{count} of {blocks}");
            before = after;
        }
    }
    File::options().write(true).open(d.file("a.img")).and_then(|f| f.set_len(8 << 20)).expect("truncated");
    for to in [1, 2, 3] {
        // What is left of it is there to be written.
        let c = h.send(1, copy(to, 10000, 1, 2), &Range::of(2, 30000, 100).bytes(2));
        assert_eq!(c.code(), 0x281);
        before[4] += 1;
        assert_eq!(smart(&mut h), before, "to {to}");
    }
}

/// QEMU compares MCL without a byte swap. Here it is four bytes, least significant first, in Identify and where it is
/// kept.
#[test]
fn qemu_fault_12_mcl_byte_by_byte() {
    for mcl in [0x100u32, 0x0001_0203, 0x00fe_0000] {
        let d = Daemon::start(&format!(
            "--nvme-ns drive=memory,size=64M,logical_block_size=512,mssrl=65535,msrc=255,mcl={mcl}"
        ));
        let mut h = Host::with_queues(&d, 1, 16);
        let id = h.identify(0, 1);
        assert_eq!(id[76..80], mcl.to_le_bytes());
        assert_eq!(u32_at(&id, 76), mcl);
        let ranges = |blocks: u32| {
            let whole = (0..blocks / 65535).map(|_| Range::new(0, 65535));
            let rest = (!blocks.is_multiple_of(65535)).then(|| Range::new(0, blocks % 65535));
            whole.chain(rest).collect::<Vec<Range>>()
        };
        let mut of = |blocks: u32, sdlba| {
            let list = ranges(blocks);
            let bytes: Vec<u8> = list.iter().flat_map(|r| r.bytes(0)).collect();
            h.send(1, copy(1, sdlba, list.len(), 0), &bytes)
        };
        if mcl < 0x10000 {
            of(mcl, 65536).ok();
            of(mcl + 1, 65536).is(st::SIZE_LIMIT, "one more");
        } else {
            // Beyond the namespace, wherever it goes: within the limit, that is what is wrong with it.
            of(mcl, 131_000).is(st::LBA_RANGE, "as many as MCL");
            of(mcl + 1, 131_000).is(st::SIZE_LIMIT, "one more");
        }
    }
}

/// QEMU asks whether the destination is being formatted, and not whether a source is. The state of namespaces that
/// there is here: read-only. It forbids the destination, and a source may well have it. Format and Sanitize are later
/// work: whoever brings them has to bring their states to both sides of a Copy.
#[test]
fn qemu_fault_13_the_state_of_either_side() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=256K,logical_block_size=512");
    let mut h = Host::with_queues(&d, 1, 16);
    let mut ns = Ns::identify(&mut h, 1);
    h.fill(1, &mut ns, 1);
    let image = d.file("x.img");
    drop(h);
    let mut first = d;
    first.stop();
    let d = Daemon::start(&format!(
        "--nvme serial=x,cdfe=0x4 --nvme-ns drive={},readonly=on,logical_block_size=512 \
         --nvme-ns drive=memory,size=256K,logical_block_size=512",
        image.display()
    ));
    let mut h = Host::with_queues(&d, 1, 16);
    let mut other = Ns::identify(&mut h, 2);
    h.fill(1, &mut other, 2);
    h.send(1, copy(2, 8, 1, 2), &Range::of(1, 3, 5).bytes(2)).ok();
    other.set(8, ns.at(3, 5));
    h.send(1, copy(1, 8, 1, 2), &Range::of(2, 3, 5).bytes(2))
        .is(st::WRITE_PROTECTED, "a read-only destination");
    assert_eq!(u16_at(&h.identify(1, 0), 256) & (1 << 1), 0, "OACS: Format NVM");
    for opcode in [0x80, 0x84] {
        h.admin(Sqe::new(opcode).nsid(2)).is(st::INVALID_OPCODE, "Format NVM, Sanitize");
    }
    ns.verify(&mut h, 1);
    other.verify(&mut h, 1);
}

/// QEMU allocates what the longest range may have, for each Copy. Here it is the most memory one Copy could make a
/// device take at once, many times over: the daemon stays as small as its bounce memory lets it.
#[test]
fn qemu_fault_14_memory_is_bounded() {
    let d = Daemon::start(
        "--nvme-ns drive={}/x.img,size=1G,logical_block_size=4096,mssrl=65535,mcl=4294967295,\
         copy_method=bounce",
    );
    let mut h = Host::with_queues(&d, 1, 64);
    let before = d.resident();
    let cids: Vec<u16> = (0..20)
        .map(|_| {
            let mark = Data::prp(&mut h.ram, 32);
            mark.put(&h.ram, &Range::new(0, 65535).bytes(0));
            h.queue(1, copy(1, 65536, 1, 0).data(&mark))
        })
        .collect();
    h.ring_sq(1);
    let mut most = 0;
    for cid in cids {
        // What is still to be done is no use to the test. An Abort that overtakes its Copy finds nothing to do.
        let c = loop {
            most = most.max(d.resident());
            h.exec(0, Sqe::new(admin::ABORT).cdw(10, u32::from(cid) << 16 | 1)).ok();
            if let Some(c) = h.try_wait(1, cid, std::time::Duration::from_millis(100)) {
                break c;
            }
        };
        assert!(c.status == st::OK || c.code() == st::ABORT_REQUESTED, "{c:?}");
    }
    // One such Copy is 256 MiB.
    assert!(most < before + (96 << 20), "{before} before, {most} during the Copies");
}

/// QEMU's Abort stops a Copy and says that it did not. Here bit 0 of DW0 is clear when the Copy was aborted, and only
/// then; the Copy is over by then.
#[test]
fn qemu_fault_15_abort_says_what_it_did() {
    let d = Daemon::start(
        "--nvme-ns drive=memory,size=512M,logical_block_size=4096,mssrl=65535,mcl=1000000,msrc=255 \
         --nvme-ns drive={}/x.img,size=512M,logical_block_size=4096,mssrl=65535,mcl=1000000,msrc=255",
    );
    let mut h = Host::with_queues(&d, 1, 64);
    let half = Ns::facts(&mut h, 1).nsze / 2;
    let list: Vec<u8> = (0..64).flat_map(|i| Range::new(i * 1024, 1024).bytes(0)).collect();
    for nsid in [1, 2] {
        let (mut aborted, mut rounds) = (0, 0);
        while aborted < 3 && rounds < 100 {
            rounds += 1;
            let mark = h.ram.mark();
            let data = Data::prp(&mut h.ram, list.len());
            data.put(&h.ram, &list);
            let cid = h.submit(1, copy(nsid, half, 64, 0).data(&data));
            let abort = h.exec(0, Sqe::new(admin::ABORT).cdw(10, u32::from(cid) << 16 | 1));
            h.drain(1);
            let c = h.try_wait(1, cid, Duration::ZERO).expect("over, like its Abort");
            let was_aborted = c.code() == st::ABORT_REQUESTED;
            assert!(was_aborted || c.status == st::OK, "{c:?}");
            assert_eq!(abort.ok().dw0 & 1, u32::from(!was_aborted));
            aborted += u32::from(was_aborted);
            h.ram.release(mark);
        }
        assert!(aborted > 0, "no Abort of {rounds} came in time");
    }
}
