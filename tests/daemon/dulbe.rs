//! Deallocated or Unwritten Logical Block errors (Error Recovery, DULBE) on memory and sparse files.

use crate::engines;
use crate::host::le::{put32, put64, u16_at};
use crate::host::nvme::{Range, admin, copy, io, st};
use crate::host::*;

const DULBE: u32 = 1 << 16;
/// NSFEAT: DULBE is supported; NPDG and NPDA count.
const DAE: u8 = 1 << 2;
const OPTPERF: u8 = 1 << 4;

fn set(h: &mut Host, nsid: u32, cdw11: u32) -> Cqe {
    h.admin(Sqe::new(admin::SET_FEATURES).nsid(nsid).cdw(10, 5).cdw(11, cdw11))
}

/// `select`: current, default, saved, capabilities.
fn get(h: &mut Host, nsid: u32, select: u32) -> Cqe {
    h.admin(Sqe::new(admin::GET_FEATURES).nsid(nsid).cdw(10, 5 | select << 8))
}

fn deallocate(h: &mut Host, ns: &Ns, slba: u64, blocks: u32) {
    let mut range = [0; 16];
    put32(&mut range, 4, blocks);
    put64(&mut range, 8, slba);
    h.send(1, Sqe::new(io::DSM).nsid(ns.nsid).cdw(11, 4), &range).ok();
}

/// Blocks of a unit of allocation.
fn unit(h: &mut Host, nsid: u32) -> u64 {
    let id = h.identify(0, nsid);
    assert_eq!(id[24] & (DAE | OPTPERF), DAE | OPTPERF, "NSFEAT of {nsid}");
    assert_eq!(u16_at(&id, 68), u16_at(&id, 70), "NPDG, NPDA");
    u64::from(u16_at(&id, 68)) + 1
}

/// Read, Compare and Verify all say the same; nothing that is refused reaches the host's memory.
#[track_caller]
fn all(h: &mut Host, ns: &Ns, slba: u64, blocks: u32, status: u16) {
    let what = format!("ns {} {slba}+{blocks}", ns.nsid);
    let mark = h.ram.mark();
    let len = ns.lba * blocks as usize;
    let d = Data::prp(&mut h.ram, len);
    d.put(&h.ram, &vec![0xee; len]);
    h.exec(1, Host::rw(io::READ, ns, slba, blocks).data(&d)).is(status, &format!("read {what}"));
    let got = d.get(&h.ram);
    if status == st::OK {
        assert!(got == ns.at(slba, blocks), "{what}");
    } else {
        assert!(got.iter().all(|b| *b == 0xee), "{what} moved");
    }
    d.put(&h.ram, ns.at(slba, blocks));
    h.exec(1, Host::rw(io::COMPARE, ns, slba, blocks).data(&d)).is(status, &format!("compare {what}"));
    h.ram.release(mark);
    h.exec(1, Host::rw(io::VERIFY, ns, slba, blocks)).is(status, &format!("verify {what}"));
}

/// Namespaces 1 (memory, 512), 2 (file, 512), 3 (file, 4096), 4 (memory, 4096), all sparse.
fn device(aio: &str) -> Daemon {
    Daemon::start(&format!(
        "--nvme-ns drive=memory,size=2M,logical_block_size=512 \
         --nvme-ns drive={{}}/a.img,size=2M,logical_block_size=512,aio={aio} \
         --nvme-ns drive={{}}/b.img,size=2M,logical_block_size=4096,aio={aio} \
         --nvme-ns drive=memory,size=2M,logical_block_size=4096"
    ))
}

#[test]
fn blocks_are_what_the_host_made_of_them() {
    for aio in engines() {
        let d = device(aio);
        let mut h = Host::with_queues(&d, 1, 64);
        for nsid in 1..=4 {
            let mut ns = Ns::identify(&mut h, nsid);
            let unit = unit(&mut h, nsid);
            let blocks = unit as u32;
            // Without it a fresh namespace reads as zeroes.
            all(&mut h, &ns, 0, 3 * blocks, st::OK);
            set(&mut h, nsid, DULBE).ok();
            all(&mut h, &ns, 0, 3 * blocks, st::DEALLOCATED);
            all(&mut h, &ns, ns.nsze - 1, 1, st::DEALLOCATED);
            // One block makes its unit.
            h.write(1, &mut ns, 2 * unit - 1, 1, 1);
            all(&mut h, &ns, unit, blocks, st::OK);
            all(&mut h, &ns, unit - 1, 1, st::DEALLOCATED);
            all(&mut h, &ns, unit - 1, blocks + 1, st::DEALLOCATED);
            all(&mut h, &ns, unit, blocks + 1, st::DEALLOCATED);
            // Zeroes are written, unless the host asks for deallocation.
            h.exec(1, Host::rw(io::WRITE_ZEROES, &ns, 2 * unit, 2 * blocks)).ok();
            all(&mut h, &ns, unit, 3 * blocks, st::OK);
            h.exec(1, Host::rw(io::WRITE_ZEROES, &ns, 2 * unit, blocks).cdw(12, (blocks - 1) | 1 << 25)).ok();
            all(&mut h, &ns, 2 * unit, 1, st::DEALLOCATED);
            all(&mut h, &ns, 3 * unit, blocks, st::OK);
            // A part of a unit is not deallocated; a unit is, and comes back by a write.
            h.write(1, &mut ns, 8 * unit, 4 * blocks, 2);
            if unit > 1 {
                deallocate(&mut h, &ns, 9 * unit, 1);
                h.exec(1, Host::rw(io::VERIFY, &ns, 9 * unit, blocks)).is(st::OK, "a part");
            }
            deallocate(&mut h, &ns, 9 * unit, blocks);
            let zeroes = vec![0; ns.lba * blocks as usize];
            ns.set(9 * unit, &zeroes);
            all(&mut h, &ns, 8 * unit, 4 * blocks, st::DEALLOCATED);
            all(&mut h, &ns, 8 * unit, blocks, st::OK);
            all(&mut h, &ns, 10 * unit, 2 * blocks, st::OK);
            h.write(1, &mut ns, 9 * unit, blocks, 3);
            all(&mut h, &ns, 8 * unit, 4 * blocks, st::OK);
            // Other checks come before it.
            h.exec(1, Host::rw(io::VERIFY, &ns, ns.nsze, 1)).is(st::LBA_RANGE, "out of range");
            // And off again.
            set(&mut h, nsid, 0).ok();
            all(&mut h, &ns, 0, 3 * blocks, st::OK);
        }
        let (c, smart) = h.log(2, u32::MAX, 0, 512);
        c.ok();
        assert_eq!(smart[160..168], [0; 8], "no error of the medium");
    }
}

/// The image was written by somebody else before: what has blocks there is allocated.
#[test]
fn an_image_brings_its_holes() {
    use std::os::unix::fs::FileExt;
    for aio in engines() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        image.as_file().write_all_at(&[7; 65536], 131_072).unwrap();
        let path = image.path().to_str().unwrap();
        for properties in ["", ",readonly=on"] {
            let d = Daemon::start(&format!(
                "--nvme-ns drive={path},logical_block_size=512,aio={aio}{properties}"
            ));
            let mut h = Host::with_queues(&d, 1, 16);
            let mut ns = Ns::identify(&mut h, 1);
            ns.set(256, &[7; 65536]);
            set(&mut h, 1, DULBE).ok();
            all(&mut h, &ns, 256, 128, st::OK);
            all(&mut h, &ns, 255, 2, st::DEALLOCATED);
            all(&mut h, &ns, 383, 2, st::DEALLOCATED);
        }
    }
}

struct Bench {
    h: Host,
    nss: Vec<Ns>,
    _daemon: Daemon,
}

impl Bench {
    fn copy(&mut self, to: usize, sdlba: u64, ranges: &[Range], format: u8) -> Cqe {
        let list: Vec<u8> = ranges.iter().flat_map(|range| range.bytes(format)).collect();
        self.h.send(1, copy(self.nss[to].nsid, sdlba, ranges.len(), format), &list)
    }

    /// The destination is as it was, read with DULBE off.
    #[track_caller]
    fn unchanged(&mut self) {
        for ns in &mut self.nss {
            let was = get(&mut self.h, ns.nsid, 0).dw0;
            set(&mut self.h, ns.nsid, 0).ok();
            ns.verify(&mut self.h, 1);
            set(&mut self.h, ns.nsid, was).ok();
        }
    }
}

#[test]
fn copy_asks_before_it_writes() {
    for aio in engines() {
        let d = device(aio);
        let mut h = Host::with_queues(&d, 1, 64);
        h.set_cdfe(4).ok();
        let nss: Vec<Ns> = [1, 2].map(|nsid| Ns::identify(&mut h, nsid)).into();
        let mut b = Bench { h, nss, _daemon: d };
        for i in 0..2 {
            // Units 0..8 are written, 4 is given back.
            let unit = unit(&mut b.h, b.nss[i].nsid);
            let mut ns = b.nss[i].clone();
            b.h.write(1, &mut ns, 0, 8 * unit as u32, 1);
            deallocate(&mut b.h, &ns, 4 * unit, unit as u32);
            ns.set(4 * unit, &vec![0; ns.lba * unit as usize]);
            b.nss[i] = ns;
        }
        for (from, to) in [(0, 0), (1, 1), (0, 1), (1, 0)] {
            let (source, target) = (b.nss[from].nsid, b.nss[to].nsid);
            let unit = unit(&mut b.h, source);
            let part = |at: u64, units: u64| Range::of(source, at * unit, (units * unit) as u32);
            let format = if from == to { 0 } else { 2 };
            let what = format!("{aio} {source} to {target}");
            set(&mut b.h, source, DULBE).ok();
            for ranges in [
                vec![part(0, 8)],
                vec![part(0, 2), part(5, 3), part(3, 3)],
                vec![part(0, 4), part(4, 1), part(5, 1), part(4, 1)],
                (0..40).map(|i| part(if i < 33 { i % 4 } else { 3 + i % 4 }, 1)).collect(),
            ] {
                let c = b.copy(to, 2000, &ranges, format);
                c.is(st::DEALLOCATED, &what);
                // The ranges before the faulty one are not copied either.
                assert_eq!(c.dw0, 0, "{what} {ranges:?}");
                b.unchanged();
            }
            // What is allocated is copied, whatever lies between.
            let ranges = [part(5, 3), part(0, 4)];
            let c = b.copy(to, 2000, &ranges, format);
            c.is(st::OK, &what);
            let mut at = 2000;
            for range in ranges {
                let bytes = b.nss[from].at(range.slba, range.blocks).to_vec();
                b.nss[to].set(at, &bytes);
                at += u64::from(range.blocks);
            }
            b.unchanged();
            // The destination's setting does not count, and without the source's the hole reads as zeroes.
            set(&mut b.h, source, 0).ok();
            if from != to {
                set(&mut b.h, target, DULBE).ok();
            }
            b.copy(to, 2000, &[part(3, 3)], format).is(st::OK, &what);
            set(&mut b.h, target, 0).ok();
            let bytes = b.nss[from].at(3 * unit, 3 * unit as u32).to_vec();
            b.nss[to].set(2000, &bytes);
            b.unchanged();
        }
    }
}

/// Blocks that were zeroed have been written, and so have their copies: also where the file system shares blocks, and
/// makes a hole of what it knows to be zeroes.
fn copies_of_zeroes(kind: &str) {
    let Some(mount) = Mount::new(kind, 512 << 20) else { return };
    for method in ["auto", "reflink", "offload", "bounce"] {
        let image = mount.path().join(method).display().to_string();
        let _daemon = Daemon::start(&format!(
            "--nvme-ns drive={image},size=8M,logical_block_size=4096,copy_method={method}"
        ));
        let mut h = Host::with_queues(&_daemon, 1, 16);
        let ns = Ns::identify(&mut h, 1);
        let mut b = Bench { h, nss: vec![ns], _daemon };
        set(&mut b.h, 1, DULBE).ok();
        b.h.exec(1, Host::rw(io::WRITE_ZEROES, &b.nss[0], 0, 256)).ok();
        all(&mut b.h, &b.nss[0], 0, 64, st::OK);
        b.copy(0, 1024, &[Range::new(0, 256)], 0).is(st::OK, method);
        b.h.exec(1, Host::rw(io::VERIFY, &b.nss[0], 1024, 256)).is(st::OK, &format!("{kind} {method}"));
        all(&mut b.h, &b.nss[0], 1024 + 256, 1, st::DEALLOCATED);
    }
}

#[test]
fn copies_of_zeroes_on_xfs() {
    copies_of_zeroes("xfs");
}

#[test]
fn copies_of_zeroes_on_btrfs() {
    copies_of_zeroes("btrfs");
}

/// Blocks that were zeroed at once, and then written here and there: btrfs answers a question about the last of them with
/// the first parts of the extent that all of them lie in.
#[test]
fn zeroed_and_written_in_part_on_btrfs() {
    let Some(mount) = Mount::new("btrfs", 512 << 20) else { return };
    for (name, pieces) in [("a", 1), ("b", 3), ("c", 100), ("d", 400)] {
        let image = mount.path().join(name).display().to_string();
        let d = Daemon::start(&format!("--nvme-ns drive={image},size=64M,logical_block_size=4096"));
        let mut h = Host::with_queues(&d, 1, 16);
        let mut ns = Ns::identify(&mut h, 1);
        set(&mut h, 1, DULBE).ok();
        let blocks = 2 * pieces + 1;
        h.exec(1, Host::rw(io::WRITE_ZEROES, &ns, 0, blocks as u32)).ok();
        for piece in 0..pieces {
            h.write(1, &mut ns, 2 * piece + 1, 1, 1);
        }
        for block in (0..blocks).rev().step_by(2).take(40).chain([0]) {
            h.exec(1, Host::rw(io::VERIFY, &ns, block, 1)).is(st::OK, &format!("{block} of {blocks}"));
        }
        h.exec(1, Host::rw(io::VERIFY, &ns, 0, blocks as u32)).is(st::OK, &format!("all {blocks}"));
        h.exec(1, Host::rw(io::VERIFY, &ns, blocks - 1, 2)).is(st::DEALLOCATED, "and one that was not");
        h.send(1, copy(1, 8000, 1, 0), &Range::new(0, blocks as u32).bytes(0)).is(st::OK, "copy");
        let bytes = ns.at(0, blocks as u32).to_vec();
        ns.set(8000, &bytes);
        all(&mut h, &ns, 8000, blocks.min(32) as u32, st::OK);
    }
}

#[test]
fn the_feature() {
    let d = device(engines()[0]);
    let mut h = Host::with_queues(&d, 1, 16);
    let ns = Ns::identify(&mut h, 1);
    for select in [0, 1, 2] {
        assert_eq!(get(&mut h, 1, select).ok().dw0, 0);
    }
    assert_eq!(get(&mut h, 1, 3).ok().dw0, 6, "changeable, of a namespace, not saveable");
    // TLER is kept beside it.
    set(&mut h, 2, DULBE | 17).ok();
    assert_eq!(get(&mut h, 2, 0).dw0, DULBE | 17);
    assert_eq!((get(&mut h, 2, 1).dw0, get(&mut h, 2, 2).dw0), (0, 0), "default, saved");
    assert_eq!(get(&mut h, 1, 0).dw0, 0);
    h.exec(1, Host::rw(io::VERIFY, &ns, 0, 1)).is(st::OK, "another namespace's");
    // All at once.
    set(&mut h, u32::MAX, DULBE).ok();
    for nsid in 1..=4 {
        assert_eq!(get(&mut h, nsid, 0).dw0, DULBE);
    }
    h.exec(1, Host::rw(io::VERIFY, &ns, 0, 1)).is(st::DEALLOCATED, "all");
    get(&mut h, u32::MAX, 0).is(st::INVALID_NS, "get of all");
    for (nsid, status) in [(0, st::INVALID_NS), (0x1_0000, st::INVALID_NS), (5, st::INVALID_FIELD)] {
        set(&mut h, nsid, DULBE).is(status, "set");
        get(&mut h, nsid, 0).is(status, "get");
    }
    let saved = h.admin(Sqe::new(admin::SET_FEATURES).nsid(1).cdw(10, 5 | 1 << 31).cdw(11, 0));
    saved.is(0x410d, "saving");
    h.exec(1, Host::rw(io::VERIFY, &ns, 0, 1)).is(st::DEALLOCATED, "as before");
    // A reset forgets it.
    h.enable();
    h.io_queues(1, 16);
    assert_eq!(get(&mut h, 1, 0).dw0, 0);
    h.exec(1, Host::rw(io::VERIFY, &ns, 0, 1)).ok();
}

/// A device does not say what it has unmapped: nothing is promised, and nothing can be enabled.
#[test]
fn block_devices_do_not_know() {
    let Some(device) = LoopDevice::new(1 << 20) else { return };
    let path = device.path().display().to_string();
    let d = Daemon::start(&format!("--nvme-ns drive={path} --nvme-ns drive=memory,size=1M"));
    let mut h = Host::with_queues(&d, 1, 16);
    assert_eq!(h.identify(0, 1)[24] & (DAE | OPTPERF), 0);
    set(&mut h, 1, DULBE).is(st::INVALID_FIELD, "set");
    set(&mut h, 1, 5).ok();
    // The others get it.
    set(&mut h, u32::MAX, DULBE).ok();
    assert_eq!((get(&mut h, 1, 0).dw0, get(&mut h, 2, 0).dw0), (0, DULBE));
    let ns = Ns::identify(&mut h, 1);
    h.exec(1, Host::rw(io::VERIFY, &ns, 0, 8)).ok();
    drop((h, d));
}
