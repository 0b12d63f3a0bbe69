//! A medium with errors: each has its status, is counted where it should be, and harms nothing else.

use std::sync::Arc;
use std::time::Duration;

use vfio_user_nvme::disk::LaneKind;

use crate::device::{Device, folder, image, namespace};
use crate::doubles::{Bad, Fault, Kind, plain};
use crate::host::ctrl::RDY;
use crate::host::nvme::{Range, admin, copy, io, st};
use crate::host::{Cqe, Host, Ns, Sqe};
use crate::with_each_lane;

const SMALL: usize = 1 << 20;
const LARGE: usize = 16 << 20;
const BLOCK: u64 = 512;

const READ_ERROR: u16 = 0x0281;
const WRITE_FAULT: u16 = 0x0280;
const CAPACITY: u16 = 0x0081;

fn content(len: usize) -> Vec<u8> {
    (0..len / 8).flat_map(|word| (word as u64 ^ 0x5eed_0000_0000).to_le_bytes()).collect()
}

struct Bench {
    device: Device,
    host: Host,
    ns: Ns,
    bad: Bad,
}

impl Bench {
    fn new(kind: LaneKind, len: usize) -> Bench {
        let (bad, folder) = (Bad::default(), folder());
        let a = image(&folder, "a", &content(len), Some(Arc::new(bad.clone())));
        let device = Device::start(folder, "", vec![namespace(1, Arc::new(a))], plain(kind));
        let mut host = device.host(1);
        let mut ns = Ns::identify(&mut host, 1);
        ns.shadow = content(len);
        Bench { device, host, ns, bad }
    }

    /// SMART: Media and Data Integrity Errors.
    fn media_errors(&mut self) -> u64 {
        let (done, log) = self.host.log(2, 0xffff_ffff, 0, 512);
        done.ok();
        u64::from_le_bytes(log[160..168].try_into().expect("8 bytes"))
    }

    /// A command on blocks 64..80, with their content as its data.
    fn command(&mut self, sqe: Sqe) -> Cqe {
        let content = self.ns.at(64, 16).to_vec();
        self.host.send(1, sqe.nsid(1).lba(64, 16), &content)
    }

    /// The device lives and all blocks are as they should be.
    fn ends_well(&mut self) {
        self.bad.clear();
        assert_eq!(self.host.csts(), RDY);
        self.ns.verify(&mut self.host, 1);
        assert!(self.device.file("a") == self.ns.shadow);
    }
}

fn eio() -> Fault {
    Fault::Errno(libc::EIO)
}

fn enospc() -> Fault {
    Fault::Errno(libc::ENOSPC)
}

fn efault() -> Fault {
    Fault::Errno(libc::EFAULT)
}

#[test]
fn each_error_has_its_status() {
    /// Job, fault, command, status, whether it is a media error.
    type Case = (Kind, fn() -> Fault, u8, u16, bool);
    const CASES: &[Case] = &[
        (Kind::Read, eio, io::READ, READ_ERROR, true),
        (Kind::Read, eio, io::COMPARE, READ_ERROR, true),
        (Kind::Read, eio, io::VERIFY, READ_ERROR, true),
        (Kind::Probe, eio, io::READ, READ_ERROR, true),
        (Kind::Probe, eio, io::COMPARE, READ_ERROR, true),
        (Kind::Probe, eio, io::VERIFY, READ_ERROR, true),
        // The image ends before these blocks.
        (Kind::Probe, || Fault::Errno(libc::ENXIO), io::READ, READ_ERROR, true),
        (Kind::Write, eio, io::WRITE, WRITE_FAULT, true),
        (Kind::WriteZeroes, eio, io::WRITE_ZEROES, WRITE_FAULT, true),
        // A full file system is a thin namespace out of capacity, no fault of the medium.
        (Kind::Write, enospc, io::WRITE, CAPACITY, false),
        (Kind::WriteZeroes, enospc, io::WRITE_ZEROES, CAPACITY, false),
        (Kind::Write, || Fault::Errno(libc::EDQUOT), io::WRITE, CAPACITY, false),
        // Guest memory that cannot be reached is none either.
        (Kind::Read, efault, io::READ, st::DATA_TRANSFER, false),
        (Kind::Write, efault, io::WRITE, st::DATA_TRANSFER, false),
        // The image ends, or takes nothing more.
        (Kind::Read, || Fault::Nothing, io::READ, READ_ERROR, true),
        (Kind::Read, || Fault::Nothing, io::COMPARE, READ_ERROR, true),
        (Kind::Write, || Fault::Nothing, io::WRITE, WRITE_FAULT, true),
    ];
    with_each_lane(|kind| {
        let mut b = Bench::new(kind, SMALL);
        let mut media_errors = 0;
        // DULBE: blocks are asked for before they are read, which an error is the end of.
        b.host.admin(Sqe::new(admin::SET_FEATURES).nsid(1).cdw(10, 5).cdw(11, 1 << 16)).ok();
        for (job, fault, opcode, status, counts) in CASES {
            let what = format!("{kind}: {job:?}, opcode {opcode:#x}");
            let strikes = b.bad.strikes();
            b.bad.set(*job, BLOCK * 70, fault());
            b.command(Sqe::new(*opcode)).is(*status, &what);
            assert_eq!(b.bad.strikes(), strikes + 1, "{what}");
            media_errors += u64::from(*counts);
            assert_eq!(b.media_errors(), media_errors, "{what}");
            // Neighbours are well all the time, and the block itself once the fault is over.
            b.host.write(1, &mut b.ns, 80, 8, 1);
            assert!(b.host.read(1, &b.ns, 48, 16) == b.ns.at(48, 16));
            b.bad.clear();
            b.command(Sqe::new(if *opcode == io::WRITE_ZEROES { io::READ } else { *opcode })).is(0, &what);
        }
        // A comparison that fails is no error of the medium.
        let other = b.ns.pattern(64, 16, 9);
        b.host.send(1, Host::rw(io::COMPARE, &b.ns, 64, 16), &other).is(st::COMPARE_FAILURE, "compare");
        assert_eq!(b.media_errors(), media_errors);
        b.ends_well();
        drop(b.host);
        b.device.ends_well();
    });
}

/// A Copy whose sources cannot be asked for has read nothing and written nothing.
#[test]
fn a_copy_whose_probe_fails() {
    with_each_lane(|kind| {
        let mut b = Bench::new(kind, SMALL);
        b.host.admin(Sqe::new(admin::SET_FEATURES).nsid(1).cdw(10, 5).cdw(11, 1 << 16)).ok();
        let ranges: Vec<u8> = (0..4).flat_map(|i| Range::new(10 * i, 5).bytes(0)).collect();
        b.bad.set(Kind::Probe, BLOCK * 22, eio());
        let done = b.host.send(1, copy(1, 500, 4, 0), &ranges);
        done.is(READ_ERROR, "copy");
        assert_eq!((done.dw0, b.bad.strikes(), b.media_errors()), (0, 1, 1));
        b.ends_well();
        b.host.send(1, copy(1, 500, 4, 0), &ranges).ok();
        for i in 0..4 {
            let block = b.ns.at(10 * i, 5).to_vec();
            b.ns.set(500 + 5 * i, &block);
        }
        b.ends_well();
        drop(b.host);
        b.device.ends_well();
    });
}

/// After a failed fdatasync nobody can say what of the older data is safe: Flush and FUA fail from then on.
#[test]
fn a_failed_sync_is_not_forgotten() {
    with_each_lane(|kind| {
        let mut b = Bench::new(kind, SMALL);
        b.command(Sqe::new(io::FLUSH)).ok();
        b.bad.set(Kind::Flush, 0, eio());
        b.command(Sqe::new(io::FLUSH)).is(WRITE_FAULT, "flush");
        assert_eq!(b.media_errors(), 1);
        b.ends_well();
        b.command(Sqe::new(io::FLUSH)).is(WRITE_FAULT, "flush again");
        b.command(Sqe::new(io::WRITE).fua()).is(WRITE_FAULT, "FUA");
        b.host.set_feature(6, 0).is(WRITE_FAULT, "the write cache cannot be turned off");
        // A command that failed has changed nothing.
        assert_eq!(b.host.get_feature(6).ok().dw0, 1);
        b.command(Sqe::new(io::WRITE)).ok();
        b.ends_well();
        drop(b.host);
        let (success, took) = b.device.stop();
        assert!(!success && took < Duration::from_secs(5), "{success} {took:?}");
    });
}

/// Calls that are interrupted are made again.
#[test]
fn interrupted_transfers() {
    with_each_lane(|kind| {
        let mut b = Bench::new(kind, SMALL);
        for salt in 0..2 {
            b.bad.set(Kind::Read, BLOCK * 70, Fault::Interrupted);
            assert!(b.host.read(1, &b.ns, 64, 16) == b.ns.at(64, 16));
            b.command(Sqe::new(io::COMPARE)).ok();
            b.bad.set(Kind::Write, BLOCK * 70, Fault::Interrupted);
            b.host.write(1, &mut b.ns, 64, 16, salt);
        }
        // Three times each, and then it is made.
        assert_eq!(b.bad.strikes(), 24);
        assert_eq!(b.media_errors(), 0);
        b.ends_well();
        drop(b.host);
        b.device.ends_well();
    });
}

const RANGES: u64 = 8;
/// Of each range.
const BLOCKS: u32 = 2048;
const TARGET: u64 = RANGES * BLOCKS as u64;

/// A Copy of the first half of the image to the second, in ranges of 1 MiB.
fn copy_half(b: &mut Bench, fua: bool) -> Cqe {
    let list: Vec<u8> =
        (0..RANGES).flat_map(|n| Range::new(n * u64::from(BLOCKS), BLOCKS).bytes(0)).collect();
    let sqe = copy(1, TARGET, RANGES as usize, 0);
    b.host.send(1, if fua { sqe.fua() } else { sqe }, &list)
}

/// A Copy that fails midway: the status of the failure, DW0 tells the lowest range that is not complete, all ranges
/// before it are, and no block is anything but old or new.
#[test]
fn copy_fails_midway() {
    with_each_lane(|kind| {
        let mut b = Bench::new(kind, LARGE);
        let source = content(LARGE)[..LARGE / 2].to_vec();
        let range = BLOCKS as usize * BLOCK as usize;
        let mut highest = 0;
        let mut errors = 0;
        for (job, fault, status) in [
            (Kind::Read, eio as fn() -> Fault, READ_ERROR),
            (Kind::Write, eio, WRITE_FAULT),
            (Kind::Write, enospc, CAPACITY),
            (Kind::Write, || Fault::Nothing, WRITE_FAULT),
        ] {
            for bad in [0, 1, RANGES - 1] {
                // The target is known, and nowhere like the source.
                for n in 0..RANGES {
                    // Where the fault will be, too: what an earlier round copied there looks like the source.
                    for block in [0, 900] {
                        b.host.write(1, &mut b.ns, TARGET + n * u64::from(BLOCKS) + block, 256, n);
                    }
                }
                let before = b.device.file("a")[LARGE / 2..].to_vec();
                let at = bad * u64::from(BLOCKS) + 1000;
                b.bad.set(job, BLOCK * if job == Kind::Read { at } else { TARGET + at }, fault());
                let done = copy_half(&mut b, false);
                b.bad.clear();
                let what = format!("{kind}: {job:?} of range {bad}");
                done.is(status, &what);
                let dw0 = u64::from(done.dw0);
                assert!(dw0 <= bad, "{what}: DW0 {dw0}");
                highest = highest.max(dw0);
                let after = b.device.file("a")[LARGE / 2..].to_vec();
                let whole = dw0 as usize * range;
                assert!(after[..whole] == source[..whole], "{what}: DW0 {dw0} is too high");
                let next = whole..whole + range;
                assert!(after[next.clone()] != source[next], "{what}: DW0 {dw0} is too low");
                let size = BLOCK as usize;
                for ((now, old), new) in after.chunks(size).zip(before.chunks(size)).zip(source.chunks(size))
                {
                    assert!(now == old || now == new, "{what}");
                }
                b.ns.shadow[LARGE / 2..].copy_from_slice(&after);
                errors += u64::from(status != CAPACITY);
                assert_eq!(b.media_errors(), errors, "{what}");
            }
        }
        assert!(highest > 0, "no Copy failed after its first range");
        assert_eq!(copy_half(&mut b, true).ok().dw0, 0);
        b.ns.shadow[LARGE / 2..].copy_from_slice(&source);
        assert!(b.device.file("a") == b.ns.shadow);
        // Nothing is durable without the barrier.
        b.bad.set(Kind::Flush, 0, eio());
        let done = copy_half(&mut b, true);
        assert_eq!((done.status, done.dw0), (WRITE_FAULT, 0));
        assert!(b.device.file("a") == b.ns.shadow);
    });
}
