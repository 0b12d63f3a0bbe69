//! What was acknowledged as durable survives a power cut, at whatever moment it comes: the whole device over its
//! socket, on images with a volatile cache. With the sync calls taken out the same checks fail.

use std::collections::HashMap;
use std::ops::Range as Span;
use std::sync::Arc;
use std::time::Duration;

use vfio_user_nvme::disk::LaneKind;
use vfio_user_nvme::disk::VolatileLog;

use crate::device::{Device, folder, image, namespace};
use crate::doubles::{Doubles, Hang, Job, Kind, LeftOut, Unsynced, plain};
use crate::host::ctrl::{CC_EN, CC_LINUX, reg};
use crate::host::nvme::{Range, admin, copy, io};
use crate::host::{Cqe, Data, Host, Rng, Sqe};
use crate::with_each_lane;

const BLOCK: usize = 512;
const BROADCAST: u32 = 0xffff_ffff;
const WRITE_CACHE: u8 = 0x06;
/// Write Zeroes: the blocks may be deallocated.
const DEAC: u32 = 1 << 25;

const NOTHING: LeftOut = LeftOut { flush: false, fua: false };
const FLUSH: LeftOut = LeftOut { flush: true, fua: false };
const FUA: LeftOut = LeftOut { flush: false, fua: true };
const BOTH: LeftOut = LeftOut { flush: true, fua: true };

/// A device whose namespaces 1.. lie on images of this content, and what power cuts leave of them.
fn device(doubles: Doubles, contents: &[Vec<u8>], without: LeftOut) -> (Device, Vec<Arc<VolatileLog>>) {
    let folder = folder();
    let logs: Vec<_> = contents.iter().map(|_| VolatileLog::new()).collect();
    let list = contents.iter().zip(&logs).zip(1..).map(|((content, log), nsid)| {
        let image = image(&folder, &nsid.to_string(), content, Some(log.clone()));
        namespace(nsid, Arc::new(Unsynced { image, without }))
    });
    let list = list.collect();
    (Device::start(folder, "iothreads=2", list, doubles), logs)
}

/// Shutdown notification by CC.SHN: 1 normal, 2 abrupt.
fn shutdown(host: &mut Host, how: u32) {
    host.client.w32(reg::CC, CC_LINUX | CC_EN | how << 14);
    host.wait_csts(3 << 2, 2 << 2);
}

// One kind of acknowledgement at a time.

const IMAGE: usize = 4 << 20;
const BEFORE: u8 = 0x11;
const AFTER: u8 = 0x22;
const FIRST: u64 = 4096;

struct Bench {
    device: Device,
    host: Host,
}

impl Bench {
    /// Writes [`AFTER`] to 16 blocks from [`FIRST`].
    fn write(&mut self, fua: bool) {
        let sqe = Sqe::new(io::WRITE).nsid(1).lba(FIRST, 16);
        self.host.send(1, if fua { sqe.fua() } else { sqe }, &[AFTER; 16 * BLOCK]).ok();
    }

    fn write_zeroes(&mut self, deac: u32, fua: bool) {
        let sqe = Sqe::new(io::WRITE_ZEROES).nsid(1).lba(FIRST, 16).cdw(12, 15 | deac);
        self.host.exec(2, if fua { sqe.fua() } else { sqe }).ok();
    }

    /// Copies from block 0 on, where the image holds zeroes, to [`FIRST`].
    fn copy(&mut self, blocks: u32, fua: bool) {
        let sqe = copy(1, FIRST, 1, 0);
        let list = Range::new(0, blocks).bytes(0);
        self.host.send(1, if fua { sqe.fua() } else { sqe }, &list).ok();
    }

    fn deallocate(&mut self) {
        let mut range = [0; 16];
        range[4..8].copy_from_slice(&16_u32.to_le_bytes());
        range[8..].copy_from_slice(&FIRST.to_le_bytes());
        self.host.send(1, Sqe::new(io::DSM).nsid(1).cdw(11, 1 << 2), &range).ok();
    }

    fn cache(&mut self, on: bool) {
        self.host.set_feature(WRITE_CACHE, on.into()).ok();
    }

    fn flush(&mut self, nsid: u32) {
        self.host.exec(2, Sqe::new(io::FLUSH).nsid(nsid)).ok();
    }
}

/// What is done, and what the blocks from [`FIRST`] on are then sure to hold.
type Point = (&'static str, fn(&mut Bench), usize, u8);

/// Everything that makes data durable.
const POINTS: &[Point] = &[
    ("flush", |b| (b.write(false), b.flush(1)).1, 16, AFTER),
    ("broadcast flush", |b| (b.write(false), b.flush(BROADCAST)).1, 16, AFTER),
    ("FUA write", |b| b.write(true), 16, AFTER),
    ("cache turned off", |b| (b.write(false), b.cache(false)).1, 16, AFTER),
    ("write, cache off", |b| (b.cache(false), b.write(false)).1, 16, AFTER),
    ("FUA write zeroes", |b| b.write_zeroes(0, true), 16, 0),
    ("FUA write zeroes, deallocating", |b| b.write_zeroes(DEAC, true), 16, 0),
    ("write zeroes, cache off", |b| (b.cache(false), b.write_zeroes(0, false)).1, 16, 0),
    ("deallocate and flush", |b| (b.deallocate(), b.flush(1)).1, 16, 0),
    ("deallocate, cache off", |b| (b.cache(false), b.deallocate()).1, 16, 0),
    ("FUA copy", |b| b.copy(16, true), 16, 0),
    ("large FUA copy", |b| b.copy(3072, true), 3072, 0),
    ("copy, cache off", |b| (b.cache(false), b.copy(16, false)).1, 16, 0),
    ("large copy, cache off", |b| (b.cache(false), b.copy(3072, false)).1, 3072, 0),
    ("shutdown", |b| (b.write(false), shutdown(&mut b.host, 1)).1, 16, AFTER),
    ("abrupt shutdown", |b| (b.write(false), shutdown(&mut b.host, 2)).1, 16, AFTER),
    ("shutdown, disabled", |b| (b.write(false), b.host.disable(), shutdown_disabled(b)).2, 16, AFTER),
    ("stop", |b| (b.write(false), b.device.stop()).0, 16, AFTER),
];

/// Commands that promise nothing.
const VOLATILE: &[Point] = &[
    ("write", |b| b.write(false), 16, AFTER),
    ("write zeroes", |b| b.write_zeroes(0, false), 16, 0),
    ("copy", |b| b.copy(16, false), 16, 0),
    ("deallocate", |b| b.deallocate(), 16, 0),
    ("write, cache off and on", |b| (b.cache(false), b.cache(true), b.write(false)).2, 16, AFTER),
    ("write, cache on by reset", |b| (b.cache(false), renew(&mut b.host), b.write(false)).2, 16, AFTER),
];

fn shutdown_disabled(b: &mut Bench) {
    b.host.client.w32(reg::CC, CC_LINUX | 1 << 14);
    b.host.wait_csts(3 << 2, 2 << 2);
}

fn renew(host: &mut Host) {
    host.enable();
    host.io_queues(2, 64);
    host.set_cdfe(1 << 2).ok();
}

/// The image: its first half, from which is copied, zeroes.
fn before() -> Vec<u8> {
    let mut before = vec![BEFORE; IMAGE];
    before[..IMAGE / 2].fill(0);
    before
}

/// Can a power cut after `point` undo it?
fn can_lose(kind: LaneKind, point: &Point, without: LeftOut) -> bool {
    let (_, act, blocks, content) = *point;
    let (device, logs) = device(plain(kind), &[before()], without);
    let host = device.host(2);
    let mut bench = Bench { device, host };
    act(&mut bench);
    lost(&logs[0], blocks, content)
}

/// Is there a power cut after which the blocks from [`FIRST`] on hold anything else?
fn lost(log: &VolatileLog, blocks: usize, content: u8) -> bool {
    let at = FIRST as usize * BLOCK;
    let wanted = vec![content; blocks * BLOCK];
    (0..24).any(|seed| log.power_cut(seed)[at..at + wanted.len()] != wanted)
}

#[test]
fn every_acknowledgement_holds() {
    with_each_lane(|kind| {
        for point in POINTS {
            assert!(!can_lose(kind, point, NOTHING), "{kind}: {}", point.0);
        }
    });
}

/// The images do lose what is not durable, and the check sees it.
#[test]
fn every_acknowledgement_would_fail_without_sync() {
    with_each_lane(|kind| {
        for point in VOLATILE {
            assert!(can_lose(kind, point, NOTHING), "{kind}: {}", point.0);
        }
        for point in POINTS {
            assert!(can_lose(kind, point, BOTH), "{kind}: {}", point.0);
        }
    });
}

/// A command that was under way when the cache was turned off, and is acknowledged afterwards.
#[test]
fn turning_the_cache_off_overtakes_nothing() {
    with_each_lane(|kind| {
        let write = Sqe::new(io::WRITE).nsid(1).lba(FIRST, 16);
        let zeroes = Sqe::new(io::WRITE_ZEROES).nsid(1).lba(FIRST, 16);
        let small = copy(1, FIRST, 1, 0);
        for (sqe, blocks, content) in [(write, 16, AFTER), (zeroes, 16, 0), (small, 16, 0), (small, 3072, 0)]
        {
            for without in [NOTHING, FLUSH] {
                let hang = Hang::default();
                let changes = |job: &Job| matches!(job.kind, Kind::Write | Kind::WriteZeroes);
                let (device, logs) = device(hang.disks(kind, changes), &[before()], without);
                let mut host = device.host(2);
                let data = Data::prp(&mut host.ram, 16 * BLOCK);
                let mut bytes = vec![AFTER; 16 * BLOCK];
                if sqe.0[0] == io::COPY {
                    bytes[..32].copy_from_slice(&Range::new(0, blocks).bytes(0));
                }
                data.put(&host.ram, &bytes);
                let cid = host.submit(1, sqe.data(&data));
                hang.wait_held(1);
                host.set_feature(WRITE_CACHE, 0).ok();
                hang.end();
                host.wait(1, cid).ok();
                let lost = lost(&logs[0], blocks as usize, content);
                assert_eq!(lost, without == FLUSH, "{kind}: opcode {:#x}, {without:?}", sqe.0[0]);
            }
        }
    });
}

/// A second Set Features that finds the cache off already waits for the flush of the first.
#[test]
fn turning_the_cache_off_twice() {
    with_each_lane(|kind| {
        let hang = Hang::default();
        let doubles = hang.disks(kind, |job| job.kind == Kind::Flush);
        let (device, logs) = device(doubles, &[before()], NOTHING);
        let mut bench = Bench { host: device.host(2), device };
        bench.write(false);
        let off = Sqe::new(admin::SET_FEATURES).cdw(10, WRITE_CACHE.into());
        let cids = [bench.host.submit(0, off), bench.host.submit(0, off)];
        for cid in cids {
            let early = bench.host.try_wait(0, cid, Duration::from_millis(100));
            assert_eq!(early, None, "completed before the data is durable");
        }
        hang.end();
        for cid in cids {
            bench.host.wait(0, cid).ok();
        }
        assert!(!lost(&logs[0], 16, AFTER));
    });
}

// Everything at once, power cuts at random moments.

const BLOCKS: u64 = 256;

/// All that a block ever held, oldest first: a number n stands for a block full of it, 0 for zeroes.
#[derive(Clone)]
struct Block {
    history: Vec<u64>,
    /// The last of them whose command has completed.
    completed: usize,
    /// The last of them that was acknowledged as durable: nothing older may come back.
    durable: usize,
}

enum Effect {
    Change {
        durable: bool,
    },
    /// By namespace and block the last completed state when the Flush was submitted.
    Flush {
        covers: Vec<Vec<usize>>,
    },
}

/// Namespace (0-based) and blocks.
type Place = (usize, Span<u64>);

struct Flight {
    effect: Effect,
    to: Option<Place>,
    from: Option<Place>,
}

fn filled(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK / 8)
}

fn clash(a: &Place, b: &Place) -> bool {
    a.0 == b.0 && a.1.start < b.1.end && b.1.start < a.1.end
}

struct Run {
    host: Host,
    logs: Vec<Arc<VolatileLog>>,
    model: Vec<Vec<Block>>,
    flights: HashMap<(u16, u16), Flight>,
    cache: bool,
    rng: Rng,
    cuts: Cuts,
}

/// What the power cuts of a run met.
#[derive(Default)]
struct Cuts {
    made: usize,
    /// Completed writes were lost, which is allowed.
    lossy: usize,
}

impl Run {
    fn place(&mut self) -> Place {
        let ns = self.rng.below(self.model.len() as u64) as usize;
        let first = self.rng.below(BLOCKS);
        (ns, first..(first + 1 + self.rng.below(12)).min(BLOCKS))
    }

    fn is_free(&self, place: &Place, to_change: bool) -> bool {
        !self.flights.values().any(|f| {
            f.to.as_ref().is_some_and(|to| clash(to, place))
                || to_change && f.from.as_ref().is_some_and(|from| clash(from, place))
        })
    }

    fn blocks(&mut self, place: &Place) -> &mut [Block] {
        &mut self.model[place.0][place.1.start as usize..place.1.end as usize]
    }

    /// Submits a random command; `value` is what it writes.
    fn submit(&mut self, value: u64) {
        let to = self.place();
        let choice = self.rng.below(16);
        let qid = 1 + self.rng.below(2) as u16;
        if choice < 3 {
            let nsid = if choice == 0 { BROADCAST } else { to.0 as u32 + 1 };
            let covered = |ns: usize| nsid == BROADCAST || nsid as usize == ns + 1;
            let covers = self.model.iter().enumerate().map(|(ns, blocks)| {
                blocks.iter().map(|b| if covered(ns) { b.completed } else { 0 }).collect()
            });
            let effect = Effect::Flush { covers: covers.collect() };
            let cid = self.host.submit(qid, Sqe::new(io::FLUSH).nsid(nsid));
            self.flights.insert((qid, cid), Flight { effect, to: None, from: None });
            return;
        }
        if !self.is_free(&to, true) {
            return;
        }
        let fua = self.rng.chance(4);
        let blocks = (to.1.end - to.1.start) as u32;
        let nsid = to.0 as u32 + 1;
        let plain = |opcode| Sqe::new(opcode).nsid(nsid).lba(to.1.start, blocks);
        let mut values = vec![value; blocks as usize];
        let mut from = None;
        let data = |host: &mut Host, bytes: &[u8]| {
            let data = Data::prp(&mut host.ram, bytes.len());
            data.put(&host.ram, bytes);
            data
        };
        let mut durable = fua;
        let sqe = match choice {
            3 | 4 => {
                values.fill(0);
                let sqe = plain(io::WRITE_ZEROES);
                if choice == 3 { sqe.cdw(12, (blocks - 1) | DEAC) } else { sqe }
            }
            5 => {
                values.fill(0);
                durable = false;
                let mut range = [0; 16];
                range[4..8].copy_from_slice(&blocks.to_le_bytes());
                range[8..].copy_from_slice(&to.1.start.to_le_bytes());
                Sqe::new(io::DSM).nsid(nsid).cdw(11, 1 << 2).data(&data(&mut self.host, &range))
            }
            6..9 => {
                let ns = self.rng.below(self.model.len() as u64) as usize;
                let first = self.rng.below(BLOCKS - u64::from(blocks));
                let source = (ns, first..first + u64::from(blocks));
                if clash(&source, &to) || !self.is_free(&source, false) {
                    return;
                }
                let last = |b: &Block| *b.history.last().expect("it held something");
                values = self.blocks(&source).iter().map(last).collect();
                let list = Range::of(ns as u32 + 1, first, blocks).bytes(2);
                from = Some(source);
                copy(nsid, to.1.start, 1, 2).data(&data(&mut self.host, &list))
            }
            _ => {
                let bytes = filled(value).repeat(blocks as usize);
                plain(io::WRITE).data(&data(&mut self.host, &bytes))
            }
        };
        for (block, value) in self.blocks(&to).iter_mut().zip(values) {
            block.history.push(value);
        }
        let sqe = if durable { sqe.fua() } else { sqe };
        let effect = Effect::Change { durable };
        let cid = self.host.submit(qid, sqe);
        self.flights.insert((qid, cid), Flight { effect, to: Some(to), from });
    }

    fn completed(&mut self, done: Cqe) -> Result<(), String> {
        done.ok();
        let flight = self.flights.remove(&(done.sqid, done.cid)).expect("one of ours");
        match flight.effect {
            Effect::Change { durable } => {
                // Acknowledged with the cache off is durable, whenever it was submitted; the converse holds only for FUA.
                let durable = durable || !self.cache;
                for block in self.blocks(&flight.to.expect("it changes something")) {
                    // One change at a time is in flight for a block: it is the newest.
                    block.completed = block.history.len() - 1;
                    if durable {
                        block.durable = block.completed;
                    }
                }
                if durable { self.cut() } else { Ok(()) }
            }
            Effect::Flush { covers } => {
                for (block, covers) in self.model.iter_mut().flatten().zip(covers.into_iter().flatten()) {
                    block.durable = block.durable.max(covers);
                }
                self.cut()
            }
        }
    }

    /// All that has completed is durable now.
    fn all_durable(&mut self) -> Result<(), String> {
        for block in self.model.iter_mut().flatten() {
            block.durable = block.completed;
        }
        (0..4).try_for_each(|_| self.cut())
    }

    fn wait_all(&mut self) -> Result<(), String> {
        while !self.flights.is_empty() {
            let done = self.host.wait_any(&[1, 2]);
            self.completed(done)?;
        }
        Ok(())
    }

    /// Cuts the power now; what was lost that must not be.
    fn cut(&mut self) -> Result<(), String> {
        let seed = self.rng.next();
        let mut lossy = false;
        for ((log, model), nsid) in self.logs.iter().zip(&self.model).zip(1..) {
            let image = log.power_cut(seed);
            for (at, (read, block)) in image.chunks(BLOCK).zip(model).enumerate() {
                let is = |values: &[u64]| values.iter().any(|value| read == filled(*value));
                if !is(&block.history[block.durable..]) {
                    let found = u64::from_le_bytes(read[..8].try_into().expect("8 bytes"));
                    let allowed = &block.history[block.durable..];
                    return Err(format!("namespace {nsid} block {at} reads {found}, not one of {allowed:?}"));
                }
                lossy |= !is(&block.history[block.completed..]);
            }
        }
        self.cuts.made += 1;
        self.cuts.lossy += usize::from(lossy);
        Ok(())
    }

    fn set_cache(&mut self, on: bool) -> Result<(), String> {
        let covers: Vec<_> = self.model.iter().flatten().map(|b| b.completed).collect();
        self.cache |= on;
        self.host.set_feature(WRITE_CACHE, on.into()).ok();
        self.cache = on;
        if !on {
            for (block, covers) in self.model.iter_mut().flatten().zip(covers) {
                block.durable = block.durable.max(covers);
            }
            self.cut()?;
        }
        Ok(())
    }
}

/// Random commands with power cuts between them, then a stop with commands in flight.
fn power_cuts(kind: LaneKind, seed: u64, without: LeftOut) -> Result<Cuts, String> {
    let (mut device, logs) = device(plain(kind), &vec![vec![0; BLOCKS as usize * BLOCK]; 2], without);
    let fresh = Block { history: vec![0], completed: 0, durable: 0 };
    let mut host = Host::cold(&device.socket());
    renew(&mut host);
    let mut run = Run {
        host,
        logs,
        model: vec![vec![fresh; BLOCKS as usize]; 2],
        flights: HashMap::new(),
        cache: true,
        rng: Rng::new(seed),
        cuts: Cuts::default(),
    };
    let mark = run.host.ram.mark();
    for round in 1..=300 {
        run.submit(round);
        let depth = run.rng.below(16) as usize;
        while run.flights.len() > depth {
            let done = run.host.wait_any(&[1, 2]);
            run.completed(done)?;
        }
        match run.rng.below(40) {
            0..8 => run.cut()?,
            8 => {
                let on = run.rng.chance(2);
                run.set_cache(on)?;
            }
            9 => {
                run.wait_all()?;
                run.host.ram.release(mark);
                shutdown(&mut run.host, 1);
                run.all_durable()?;
                renew(&mut run.host);
                run.cache = true;
            }
            _ => {}
        }
    }
    let (success, took) = device.stop();
    assert!(success && took < Duration::from_secs(5), "{success} {took:?}");
    run.all_durable()?;
    if without == NOTHING {
        assert!(run.logs.iter().all(|log| log.volatile_writes() == 0));
    }
    Ok(run.cuts)
}

#[test]
fn acknowledged_durable_survives_power_cuts() {
    with_each_lane(|kind| {
        let (mut made, mut lossy) = (0, 0);
        for seed in 0..6 {
            let cuts = power_cuts(kind, seed, NOTHING);
            let cuts = cuts.unwrap_or_else(|lost| panic!("{kind}, seed {seed}: {lost}"));
            made += cuts.made;
            lossy += cuts.lossy;
        }
        eprintln!("{kind}: {made} power cuts, {lossy} of them with losses");
        assert!(lossy > 100, "only {lossy} of {made} cuts lost anything");
    });
}

/// The check is worth something: with either of the syncs taken out it fails, every time.
#[test]
fn without_sync_the_check_fails() {
    with_each_lane(|kind| {
        for seed in 0..2 {
            for without in [FLUSH, FUA, BOTH] {
                assert!(power_cuts(kind, seed, without).is_err(), "{kind}, seed {seed}: {without:?}");
            }
        }
    });
}
