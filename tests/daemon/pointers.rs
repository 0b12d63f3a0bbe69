//! PRP and SGL: every legal shape moves the right bytes, every illegal one has its status and moves none.

use crate::host::data::{SGL_BUCKET, SGL_DATA, SGL_LAST, SGL_SEGMENT, descriptor, prp_list, segments};
use crate::host::le::u32_at;
use crate::host::nvme::{io, st};
use crate::host::ram::PAGE;
use crate::host::*;

const NOWHERE: u64 = 0x77_0000_0000;

fn setup(args: &str) -> (Daemon, Host, Ns) {
    let d = Daemon::start(args);
    let mut h = Host::with_queues(&d, 1, 16);
    let mut ns = Ns::identify(&mut h, 1);
    h.fill(1, &mut ns, 1);
    (d, h, ns)
}

/// Writes through `data` and reads back through it, both checked; nothing beside the pieces may change.
fn round_trip(h: &mut Host, ns: &mut Ns, data: &Data, salt: u64, what: &str) {
    let blocks = (data.len() / ns.lba) as u32;
    let slba = salt % (ns.nsze - u64::from(blocks));
    let bytes = ns.pattern(slba, blocks, salt);
    data.put(&h.ram, &bytes);
    h.exec(1, Host::rw(io::WRITE, ns, slba, blocks).data(data)).is(0, what);
    ns.set(slba, &bytes);
    let straight = h.read(1, ns, slba, blocks);
    ns.check(slba, &straight);

    let canary = |h: &Host, set: bool| {
        for &(at, len) in &data.pieces {
            for edge in [at.wrapping_sub(8), at + len as u64] {
                let inside = data.pieces.iter().any(|p| edge < p.0 + p.1 as u64 && p.0 < edge + 8);
                if at == 0 || inside || edge < h.ram.base() {
                    continue;
                }
                if set {
                    h.ram.write(edge, b"canary!!");
                } else {
                    assert_eq!(h.ram.read(edge, 8), b"canary!!", "{what}: beside {at:#x}+{len}");
                }
            }
        }
    };
    data.put(&h.ram, &vec![0xee; data.len()]);
    canary(h, true);
    h.exec(1, Host::rw(io::READ, ns, slba, blocks).data(data)).is(0, what);
    canary(h, false);
    ns.check(slba, &data.get(&h.ram));
}

#[test]
fn prp_shapes() {
    let (_d, mut h, mut ns) =
        setup("--nvme serial=x,mdts=10 --nvme-ns drive=memory,size=8M,logical_block_size=512");
    let mut rng = Rng::new(404);
    let mut n = 0;
    let mut go = |h: &mut Host, len: usize, shape: Prp, rng: &mut Rng| {
        let mark = h.ram.mark();
        h.ram.alloc(64, 8);
        let data = Data::prp_shape(&mut h.ram, len, shape, rng);
        h.ram.alloc(64, 8);
        n += 1;
        round_trip(h, &mut ns, &data, n * 37, &format!("{len} bytes, {shape:?}"));
        h.ram.release(mark);
    };
    for blocks in [1, 7, 8, 9, 15, 16, 17, 24] {
        for offset in [0, 4, 512, 2048, 3584, 4092] {
            for slot in [0, 509, 510, 511] {
                let shape = Prp { offset, slot, scatter: true };
                go(&mut h, blocks * 512, shape, &mut rng);
            }
        }
    }
    // 512 entries fill a list page exactly: the last is data. One more and it is a link.
    for pages in [512, 513, 514, 1023, 1024] {
        for (offset, slot) in [(0, 0), (0, 1), (8, 0), (0, 511)] {
            let len = (pages - usize::from(offset != 0)) * 4096;
            let shape = Prp { offset, slot, scatter: true };
            go(&mut h, len, shape, &mut rng);
        }
    }
    for _ in 0..150 {
        let shape =
            Prp { offset: rng.below(1024) * 4, slot: rng.below(512) as usize, scatter: rng.chance(2) };
        let blocks = rng.within(1, 400) as usize;
        go(&mut h, blocks * 512, shape, &mut rng);
    }
    ns.verify(&mut h, 1);
}

#[test]
fn prp_errors() {
    let (_d, mut h, mut ns) = setup("--nvme-ns drive=memory,size=1M,logical_block_size=4096");
    let p = h.ram.pages(40);
    let entries: Vec<u64> = (1..40).map(|i| p + i * PAGE).collect();
    let list = prp_list(&mut h.ram, &entries, 0);
    let chained = prp_list(&mut h.ram, &entries, 510);
    // The slot before the end holds the link.
    let link = (chained & !0xfff) + 511 * 8;
    let with = |h: &mut Host, index: usize, v: u64| {
        let mut e = entries.clone();
        e[index] = v;
        prp_list(&mut h.ram, &e, 0)
    };
    let odd_entry = with(&mut h, 3, p + 4 * PAGE + 8);
    let lost_entry = with(&mut h, 3, NOWHERE);
    let zero_entry = with(&mut h, 3, 0);
    let last = h.ram.end() - PAGE;

    let cases: Vec<(&str, u32, u64, u64, u16)> = vec![
        ("PRP2 with offset, two pages", 2, p, p + PAGE + 16, st::PRP_OFFSET),
        ("PRP2 with offset, PRP1 too", 1, p + 8, p + PAGE + 16, st::PRP_OFFSET),
        ("list pointer not qword aligned", 3, p, list + 4, st::PRP_OFFSET),
        ("list entry with offset", 8, p, odd_entry, st::PRP_OFFSET),
        ("PRP1 nowhere", 1, NOWHERE, 0, st::DATA_TRANSFER),
        ("PRP1 zero", 1, 0, 0, st::DATA_TRANSFER),
        ("PRP1 at the end of the world", 1, !0xfff, 0, st::DATA_TRANSFER),
        ("PRP2 nowhere", 2, p, NOWHERE, st::DATA_TRANSFER),
        ("PRP2 zero", 2, p, 0, st::PRP_OFFSET),
        ("list nowhere", 3, p, NOWHERE, st::DATA_TRANSFER),
        ("list zero", 3, p, 0, st::PRP_OFFSET),
        ("entry nowhere", 8, p, lost_entry, st::DATA_TRANSFER),
        ("entry zero", 8, p, zero_entry, st::PRP_OFFSET),
        ("PRP2 just behind memory", 2, last, h.ram.end(), st::DATA_TRANSFER),
        ("PRP2 ignored", 1, p, NOWHERE | 7, st::OK),
        ("last page", 1, last, 0, st::OK),
    ];
    for op in [io::READ, io::WRITE, io::COMPARE] {
        for &(what, blocks, prp1, prp2, want) in &cases {
            let content = ns.at(5, 1).to_vec();
            if want == st::OK {
                h.ram.write(prp1, &content);
            }
            h.exec(1, Host::rw(op, &ns, 5, blocks).prp(prp1, prp2))
                .is(want, &format!("opcode {op:#x}: {what}"));
        }
        for (v, want) in [(NOWHERE, st::DATA_TRANSFER), (p + 16, st::PRP_OFFSET), (0, st::PRP_OFFSET)] {
            let good = h.ram.read(link, 8);
            h.ram.write(link, &v.to_le_bytes());
            h.exec(1, Host::rw(op, &ns, 5, 8).prp(p, chained))
                .is(want, &format!("opcode {op:#x}: link {v:#x}"));
            h.ram.write(link, &good);
        }
        // Bits 1:0 of PRP1 are reserved: refused, or taken as they are.
        let c = h.exec(1, Host::rw(op, &ns, 5, 1).prp(p + 2, p + PAGE));
        assert!(matches!(c.status, st::PRP_OFFSET | st::OK | st::COMPARE_FAILURE), "{c:?}");
        if op == io::WRITE && c.status == st::OK {
            let now = h.ram.read(p + 2, 4096);
            ns.set(5, &now);
        }
    }
    // A list that links to itself ends where the transfer ends.
    let page = h.ram.alloc(PAGE, PAGE);
    h.ram.write(page, &page.to_le_bytes().repeat(512));
    let c = h.exec(1, Host::rw(io::WRITE, &ns, 0, 128).prp(p, page));
    assert_eq!(c.status, st::OK);
    let first = h.ram.read(p, 4096);
    let rest = h.ram.read(page, 4096).repeat(127);
    ns.set(0, &[first, rest].concat());
    ns.verify(&mut h, 1);
}

/// An entry of 0 is one that the host has not set, even where there is memory at 0. PRP1 may be 0: it is always used.
#[test]
fn an_unset_entry_is_not_guest_address_0() {
    let (_d, mut h, mut ns) = setup("--nvme-ns drive=memory,size=1M,logical_block_size=4096");
    let low = Ram::new(0, 1 << 20);
    h.client.map_ram(&low);
    low.write(0, &[0x5a; 2 * PAGE as usize]);
    let p = h.ram.pages(8);
    let entries: Vec<u64> = (1..8).map(|i| if i == 3 { 0 } else { p + i * PAGE }).collect();
    let unset = prp_list(&mut h.ram, &entries, 0);
    let chained = prp_list(&mut h.ram, &entries, 510);
    h.ram.write((chained & !0xfff) + 511 * 8, &[0; 8]);
    for op in [io::READ, io::WRITE, io::COMPARE] {
        for (what, blocks, prp2) in [
            ("PRP2", 2, 0),
            ("list", 3, 0),
            ("list, 8 pages", 8, 0),
            ("entry", 8, unset),
            ("link", 8, chained),
        ] {
            h.exec(1, Host::rw(op, &ns, 5, blocks).prp(p, prp2))
                .is(st::PRP_OFFSET, &format!("{op:#x}: {what}"));
        }
    }
    ns.verify(&mut h, 1);
    assert!(low.read(0, 2 * PAGE as usize).iter().all(|&byte| byte == 0x5a), "written to");
    h.exec(1, Host::rw(io::READ, &ns, 5, 1).prp(0, 0)).ok();
    assert_eq!(low.read(0, PAGE as usize), ns.at(5, 1));
}

#[test]
fn sgl_shapes() {
    let (_d, mut h, mut ns) = setup("--nvme-ns drive=memory,size=4M,logical_block_size=512");
    let dword = u32_at(&h.identify(1, 0), 536) & 3 == 2;
    let align = if dword { 4 } else { 1 };
    let mut rng = Rng::new(911);
    let block = |len, offset| Sgl::Block { len, offset };
    for (of, split) in [
        (vec![block(512, 0)], vec![]),
        (vec![block(512, 4088)], vec![]),
        (vec![block(65536, 100)], vec![]),
        (vec![block(512, 0)], vec![1]),
        (vec![block(4, 0), block(508, 4)], vec![]),
        (vec![block(4, 0), block(508, 4)], vec![1]),
        (vec![block(4, 0), block(508, 4)], vec![0]),
        (vec![block(0, 0), block(512, 0), block(0, 0)], vec![1, 1]),
        (vec![block(4096, 4092); 16], vec![3, 1, 5]),
        (vec![block(16, 8); 1024], vec![]),
        (vec![block(16, 8); 1024], vec![200, 300]),
    ] {
        let mark = h.ram.mark();
        let data = Data::sgl(&mut h.ram, &of, &split);
        let what = format!("{} pieces, split {split:?}", of.len());
        round_trip(&mut h, &mut ns, &data, 99, &what);
        h.ram.release(mark);
    }
    for i in 0..150 {
        let mark = h.ram.mark();
        let len = rng.within(1, 200) as usize * 512;
        let data = Data::random(&mut h.ram, len, true, align, &mut rng);
        round_trip(&mut h, &mut ns, &data, i * 31, &format!("{:?}", data.pieces));
        h.ram.release(mark);
    }
    // Bit buckets swallow what a Read brings.
    for of in [
        vec![Sgl::Bucket { len: 512 }, block(512, 0)],
        vec![block(512, 0), Sgl::Bucket { len: 512 }],
        vec![block(256, 0), Sgl::Bucket { len: 512 }, block(256, 16)],
        vec![Sgl::Bucket { len: 1000 }, Sgl::Bucket { len: 24 }],
        vec![Sgl::Bucket { len: 0 }, block(1024, 0)],
    ] {
        for split in [vec![], vec![1]] {
            let data = Data::sgl(&mut h.ram, &of, &split);
            data.put(&h.ram, &[0xee; 1024]);
            // A lone or first bucket needs a segment: the command itself must not hold one.
            h.exec(1, Host::rw(io::READ, &ns, 40, 2).data(&data)).is(0, &format!("{of:?}"));
            let got = data.get(&h.ram);
            let mut at = 0;
            for &(iova, len) in &data.pieces {
                if iova != 0 {
                    assert_eq!(got[at..at + len], ns.at(40, 2)[at..at + len], "{of:?}");
                }
                at += len;
            }
        }
    }
    ns.verify(&mut h, 1);
}

#[test]
fn sgl_errors() {
    let (_d, mut h, mut ns) = setup("--nvme-ns drive=memory,size=1M,logical_block_size=4096");
    let sgls = u32_at(&h.identify(1, 0), 536);
    let p = h.ram.pages(16);
    let data = |len| descriptor(p, len, SGL_DATA);
    let seg = |h: &mut Host, descs: &[[u8; 16]], id: u8, len: Option<u32>| {
        let at = h.ram.alloc(16 * descs.len().max(1) as u64, 16);
        h.ram.write(at, &descs.concat());
        descriptor(at, len.unwrap_or(16 * descs.len() as u32), id)
    };
    let good = seg(&mut h, &[data(4096)], SGL_LAST, None);
    let mut cases: Vec<(&str, [u8; 16], &[u16])> = Vec::new();
    let first = &[st::SGL_SEGMENT, st::SGL_TYPE];
    for (what, id) in
        [("keyed block", 0x40), ("transport block", 0x50), ("reserved type", 0x60), ("vendor type", 0xf0)]
    {
        cases.push((what, descriptor(p, 4096, id), first));
    }
    for (what, len) in [("length 0", 0), ("length 8", 8), ("length 17", 17), ("length 31", 31)] {
        let d = seg(&mut h, &[data(4096), data(4096)], SGL_LAST, Some(len));
        cases.push((what, d, &[st::SGL_SEGMENT]));
        let d = seg(&mut h, &[data(4096), good], SGL_SEGMENT, Some(len));
        cases.push((what, d, &[st::SGL_SEGMENT]));
    }
    for id in [SGL_SEGMENT, SGL_LAST] {
        let mut inner = good;
        inner[15] = id;
        let d = seg(&mut h, &[data(2048), inner], SGL_LAST, None);
        cases.push(("a last segment that goes on", d, &[st::SGL_SEGMENT, st::SGL_COUNT]));
        let d = seg(&mut h, &[inner, data(4096)], SGL_SEGMENT, None);
        cases.push(("a link in the middle", d, &[st::SGL_COUNT]));
    }
    // A Segment descriptor leads to a segment that must end in a link.
    let d = seg(&mut h, &[data(1024), descriptor(p, 4096, 0x60)], SGL_LAST, None);
    cases.push(("reserved type inside", d, &[st::SGL_TYPE]));
    let d = seg(&mut h, &[data(4000)], SGL_LAST, None);
    cases.push(("too short", d, &[st::SGL_LENGTH]));
    cases.push(("too short, inline", data(4092), &[st::SGL_LENGTH]));
    cases.push(("length 0, inline", data(0), &[st::SGL_LENGTH]));
    if sgls >> 18 & 1 == 0 {
        let d = seg(&mut h, &[data(4096), data(4)], SGL_LAST, None);
        cases.push(("too long", d, &[st::SGL_LENGTH]));
        cases.push(("too long, inline", data(8192), &[st::SGL_LENGTH]));
    } else {
        cases.push(("longer is fine", data(8192), &[st::OK]));
    }
    let wraps = descriptor(u64::MAX - 100, 4096, SGL_DATA);
    cases.push(("address wraps", wraps, &[st::SGL_LENGTH, st::DATA_TRANSFER]));
    let lost = descriptor(NOWHERE, 4096, SGL_DATA);
    cases.push(("block nowhere", lost, &[st::DATA_TRANSFER]));
    cases.push(("block at 0", descriptor(0, 4096, SGL_DATA), &[st::DATA_TRANSFER]));
    let half_out = descriptor(h.ram.end() - 2048, 4096, SGL_DATA);
    cases.push(("block ends outside", half_out, &[st::DATA_TRANSFER]));
    cases.push(("segment nowhere", descriptor(NOWHERE, 16, SGL_LAST), &[st::DATA_TRANSFER]));
    let d = seg(&mut h, &[data(2048), descriptor(NOWHERE, 16, SGL_LAST)], SGL_SEGMENT, None);
    cases.push(("next segment nowhere", d, &[st::DATA_TRANSFER]));
    let subtype = &[0x4016, st::SGL_TYPE, st::SGL_SEGMENT];
    cases.push(("offset subtype", descriptor(p, 4096, 0x01), subtype));
    cases.push(("transport subtype", descriptor(p, 4096, 0x0a), subtype));

    for op in [io::READ, io::WRITE, io::COMPARE] {
        for (what, dptr, want) in &cases {
            let content = ns.at(7, 1).to_vec();
            h.ram.write(p, &content);
            let d = Data { pieces: Vec::new(), dptr: *dptr, psdt: 1 };
            let c = h.exec(1, Host::rw(op, &ns, 7, 1).data(&d));
            assert!(want.contains(&c.status), "opcode {op:#x}: {what}: {c:x?}");
        }
    }
    // PSDT 2 differs only in the metadata pointer, which nobody uses here.
    let d = Data { pieces: Vec::new(), dptr: data(4096), psdt: 2 };
    let c = h.exec(1, Host::rw(io::READ, &ns, 7, 1).data(&d));
    assert!(matches!(c.status, st::OK | st::INVALID_FIELD), "{c:?}");
    ns.verify(&mut h, 1);
}

/// Chains without an end, or too long to be meant: an error, in time.
#[test]
fn endless_sgls() {
    let (_d, mut h, mut ns) = setup("--nvme-ns drive=memory,size=1M,logical_block_size=4096");
    let at = h.ram.pages(1);
    let p = h.ram.pages(1);
    let own = descriptor(at, 16, SGL_SEGMENT);
    h.ram.write(at, &own);
    let io = |h: &mut Host, ns: &Ns, dptr| {
        let d = Data { pieces: Vec::new(), dptr, psdt: 1 };
        h.exec(1, Host::rw(io::READ, ns, 0, 1).data(&d))
    };
    assert_ne!(io(&mut h, &ns, own).status, 0, "a link to itself");

    let two = [descriptor(p, 0, SGL_DATA), descriptor(at, 32, SGL_SEGMENT)];
    h.ram.write(at, &two.concat());
    let c = io(&mut h, &ns, two[1]);
    assert_ne!(c.status, 0, "empty blocks in a circle");

    let two = [descriptor(0, 0, SGL_BUCKET), descriptor(at, 32, SGL_SEGMENT)];
    h.ram.write(at, &two.concat());
    assert_ne!(io(&mut h, &ns, two[1]).status, 0, "empty buckets in a circle");

    // A segment that claims all of memory.
    for id in [SGL_LAST, SGL_SEGMENT] {
        let c = io(&mut h, &ns, descriptor(at, 0xffff_fff0, id));
        assert_ne!(c.status, 0, "a 4 GiB segment");
    }
    // 64 MiB of empty blocks, all of it mapped.
    let big = 64 << 20;
    let from = h.ram.alloc(big, 16);
    let c = io(&mut h, &ns, descriptor(from, big as u32, SGL_LAST));
    assert_ne!(c.status, 0, "four million empty blocks");
    // A long legal chain, one block per segment.
    let descs = vec![descriptor(p, 64, SGL_DATA); 64];
    let dptr = segments(&mut h.ram, &descs, &[1; 63]);
    let c = io(&mut h, &ns, dptr);
    assert_eq!(c.status, 0);
    ns.verify(&mut h, 1);
}

#[test]
fn rights_of_a_map_are_kept() {
    let (_d, mut h, mut ns) = setup("--nvme-ns drive=memory,size=1M,logical_block_size=4096");
    let ro = Ram::new(0x20_0000_0000, 1 << 16);
    let wo = Ram::new(0x21_0000_0000, 1 << 16);
    for (ram, rights) in [(&ro, 1), (&wo, 2)] {
        for p in &ram.pieces {
            let a = h.client.dma_map(p.iova, p.len, rights, Some((ram.fd(), p.offset)));
            assert!(matches!(a, Answer::Done(..)));
        }
    }
    let data = Data::prp(&mut h.ram, 4096);
    let at = |op, ns: &Ns, prp1| Host::rw(op, ns, 3, 1).prp(prp1, 0);
    // Host memory the device may only read: good for a Write, not for a Read.
    let bytes = ns.pattern(3, 1, 8);
    ro.write(ro.base(), &bytes);
    let s = at(io::WRITE, &ns, ro.base());
    h.exec(1, s).ok();
    ns.set(3, &bytes);
    let s = at(io::READ, &ns, ro.base());
    h.exec(1, s).is(st::DATA_TRANSFER, "read into ROM");
    assert_eq!(ro.read(ro.base(), 4096), bytes);
    let s = at(io::READ, &ns, wo.base());
    h.exec(1, s).ok();
    assert_eq!(wo.read(wo.base(), 4096), bytes);
    wo.write(wo.base(), &ns.pattern(3, 1, 9));
    let s = at(io::WRITE, &ns, wo.base());
    h.exec(1, s).is(st::DATA_TRANSFER, "write from memory that may not be read");
    // Half of a transfer there.
    let mixed = Data {
        pieces: vec![],
        dptr: [data.pieces[0].0.to_le_bytes(), ro.base().to_le_bytes()].concat().try_into().unwrap(),
        psdt: 0,
    };
    h.exec(1, Host::rw(io::READ, &ns, 3, 2).data(&mixed)).is(st::DATA_TRANSFER, "second page in ROM");
    ns.verify(&mut h, 1);
}

/// Guest RAM that is not shared with the daemon: each command fails, one message names the remedy.
#[test]
fn memory_without_descriptor() {
    let (d, mut h, mut ns) = setup("--nvme-ns drive=memory,size=1M,logical_block_size=4096");
    let at = 0x30_0000_0000u64;
    let a = h.client.dma_map(at, 1 << 20, 3, None);
    assert!(matches!(a, Answer::Done(..)));
    for op in [io::READ, io::WRITE, io::COMPARE] {
        for i in 0..5 {
            let s = Host::rw(op, &ns, 3, 1).prp(at + i * PAGE, 0);
            h.exec(1, s).is(st::DATA_TRANSFER, "no descriptor");
        }
    }
    ns.verify(&mut h, 1);
    let log = d.log_with("memory-backend-memfd", 1);
    let n = log.lines().filter(|l| l.contains("memory-backend-memfd")).count();
    // The line printed at the start may name it as well.
    assert!((1..=2).contains(&n), "{n} lines name the remedy:\n{log}");
}

/// Memory that goes away between commands, and comes back.
#[test]
fn unmap_and_map_again() {
    let (_d, mut h, mut ns) = setup("--nvme-ns drive={}/x.img,size=1M,logical_block_size=4096");
    let extra = Ram::new(0x20_0000_0000, 1 << 20);
    for i in 0..30u64 {
        let from = extra.base();
        let s = Host::rw(io::READ, &ns, i, 16).prp(from, from + PAGE);
        h.exec(1, s).is(st::DATA_TRANSFER, "not mapped yet");
        h.client.map_ram(&extra);
        let data = Data {
            pieces: vec![(from, 4096), (from + PAGE, 4096)],
            dptr: [from.to_le_bytes(), (from + PAGE).to_le_bytes()].concat().try_into().unwrap(),
            psdt: 0,
        };
        let bytes = ns.pattern(i, 2, i);
        data.put(&extra, &bytes);
        h.exec(1, Host::rw(io::WRITE, &ns, i, 2).data(&data)).ok();
        ns.set(i, &bytes);
        for p in &extra.pieces {
            let a = h.client.dma_unmap(p.iova, p.len);
            assert!(matches!(a, Answer::Done(..)));
        }
    }
    ns.verify(&mut h, 1);
}

/// An unmap is answered when nothing in flight can touch the memory any more.
#[test]
fn unmap_waits_for_commands_in_flight() {
    for aio in crate::engines() {
        let d = Daemon::start(&format!("--nvme-ns drive={{}}/x.img,size=32M,aio={aio}"));
        let mut h = Host::with_queues(&d, 1, 64);
        let ns = Ns::facts(&mut h, 1);
        let len = 128 << 10;
        let blocks = (len / ns.lba) as u32;
        for round in 0..5 {
            let mut extra = Ram::new(0x20_0000_0000, 16 << 20);
            h.client.map_ram(&extra);
            let bufs: Vec<Data> = (0..60).map(|_| Data::prp(&mut extra, len)).collect();
            let cids: Vec<u16> = bufs
                .iter()
                .enumerate()
                .map(|(i, b)| {
                    let slba = (i + round) as u64 * 3 * u64::from(blocks);
                    h.queue(1, Host::rw(io::READ, &ns, slba, blocks).data(b))
                })
                .collect();
            h.ring_sq(1);
            for p in extra.pieces.clone() {
                let a = h.client.dma_unmap(p.iova, p.len);
                assert!(matches!(a, Answer::Done(..)), "{a:?}");
            }
            let fill = vec![0x77; len];
            for b in &bufs {
                b.put(&extra, &fill);
            }
            for cid in cids {
                let c = h.wait(1, cid);
                assert!(matches!(c.status, st::OK | st::DATA_TRANSFER), "{c:?}");
            }
            for b in &bufs {
                assert!(b.get(&extra) == fill, "written after the unmap was answered");
            }
        }
    }
}
