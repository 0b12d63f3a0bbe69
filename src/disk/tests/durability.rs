//! What was acknowledged as durable survives a power cut, at whatever moment it comes; and the check that says
//! so fails when the sync is taken out.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::conformance::copy_op;
use super::conformance::{Random, Rig, bytes_of, engines, folder, guest, pool};
use crate::disk::*;

const SECTOR: usize = 512;
const SECTORS: u64 = 256;

/// All that a sector ever held, oldest first: a number n stands for a sector full of it, 0 for zeroes.
#[derive(Clone, Debug)]
struct Sector {
    history: Vec<u64>,
    /// The last of them whose operation has completed.
    completed: usize,
    /// The last of them that was acknowledged as durable: nothing older may come back.
    durable: usize,
}

/// A disk whose syncs do nothing: the fault the check must find. The log hears of what is really done.
#[derive(Debug)]
struct WithoutSync(Arc<VolatileLog>);

impl Tap for WithoutSync {
    fn opened(&self, image: &std::fs::File, len: u64) -> std::io::Result<()> {
        self.0.opened(image, len)
    }
    fn issued(&self, call: &Call, data: &[u8], source: &std::fs::File) -> u64 {
        match *call {
            Call::Fdatasync => 0,
            Call::Pwritev { offset, .. } => {
                self.0.issued(&Call::Pwritev { offset, dsync: false }, data, source)
            }
            _ => self.0.issued(call, data, source),
        }
    }
    fn completed(&self, ticket: u64, call: &Call, result: Result<u32, i32>) {
        match *call {
            Call::Fdatasync => {}
            Call::Pwritev { offset, .. } => {
                self.0.completed(ticket, &Call::Pwritev { offset, dsync: false }, result);
            }
            _ => self.0.completed(ticket, call, result),
        }
    }
}

enum Effect {
    Read,
    Change {
        fua: bool,
    },
    /// Per sector the last completed state when the flush was submitted.
    Flush {
        covers: Vec<usize>,
    },
}

struct Flying {
    tag: Tag,
    sectors: Range<usize>,
    /// Of a copy: where it comes from.
    source: Range<usize>,
    effect: Effect,
}

impl Flying {
    fn minds(&self, range: &Range<usize>) -> bool {
        let clash = |own: &Range<usize>| own.start < range.end && range.start < own.end;
        clash(&self.sectors) || clash(&self.source)
    }
}

fn filled(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(SECTOR / 8)
}

struct Run {
    rig: Rig,
    log: Arc<VolatileLog>,
    sectors: Vec<Sector>,
    flying: Vec<Flying>,
    /// What has completed is durable.
    through: bool,
    _folder: tempfile::TempDir,
}

impl Run {
    fn new(kind: LaneKind, sync: bool) -> Self {
        Self::by(kind, sync, CacheMode::Writeback)
    }

    fn by(kind: LaneKind, sync: bool, cache: CacheMode) -> Self {
        let folder = folder();
        let log = VolatileLog::new();
        let options = FileOptions {
            size: Some(SECTORS * SECTOR as u64),
            tap: Some(if sync { log.clone() } else { Arc::new(WithoutSync(log.clone())) }),
            cache,
            ..FileOptions::new(folder.path().join("image"))
        };
        let disk = FileDisk::open(options).expect("the image opens");
        let engine = Lane::new(kind).expect("the engine starts");
        let fresh = Sector { history: vec![0], completed: 0, durable: 0 };
        Run {
            rig: Rig::new(disk, engine),
            log,
            sectors: vec![fresh; SECTORS as usize],
            flying: Vec::new(),
            through: cache.is_write_through(),
            _folder: folder,
        }
    }

    /// Of sectors at rest, to others: they take what is there.
    fn start_copy(&mut self, random: &mut Random) {
        let count = 1 + random.below(12) as usize;
        let mut place = || random.below(SECTORS - count as u64 + 1) as usize;
        let (from, to) = (place(), place());
        let (source, target) = (from..from + count, to..to + count);
        let busy = self.flying.iter().any(|f| f.minds(&source) || f.minds(&target));
        if busy || from.abs_diff(to) < count {
            return;
        }
        for n in 0..count {
            let sector = &self.sectors[from + n];
            let value = sector.history[sector.completed];
            self.sectors[to + n].history.push(value);
        }
        let bytes = |sectors: usize| (sectors * SECTOR) as u64;
        let image = Arc::clone(&self.rig.disk);
        let op = copy_op(image, bytes(from), bytes(to), bytes(count), How::Offload);
        let tag = self.rig.start(op);
        self.flying.push(Flying { tag, sectors: target, source, effect: Effect::Change { fua: false } });
    }

    fn start_random(&mut self, random: &mut Random, value: u64) {
        let first = random.below(SECTORS);
        let last = (first + 1 + random.below(12)).min(SECTORS);
        let (mut sectors, offset) = (first as usize..last as usize, first * SECTOR as u64);
        let len = (last - first) * SECTOR as u64;
        let fua = random.below(4) == 0;
        let choice = random.below(10);
        if choice > 1 && self.flying.iter().any(|f| f.minds(&sectors)) {
            return;
        }
        let mut value = value;
        let change = Effect::Change { fua };
        let (op, effect) = match choice {
            0 | 1 => {
                sectors = 0..0;
                let covers = self.sectors.iter().map(|s| s.completed).collect();
                (Op::Flush, Effect::Flush { covers })
            }
            2 => {
                let buf = pool(vec![0; len as usize]);
                (Op::Read { offset, buf }, Effect::Read)
            }
            3 | 4 => {
                value = 0;
                let unmap = choice == 3;
                let zeroes = Op::WriteZeroes { offset, len, unmap, fua };
                (zeroes, change)
            }
            5 => {
                value = 0;
                let discard = Op::Discard { offset, len };
                (discard, Effect::Change { fua: false })
            }
            _ => {
                let buf = guest(&filled(value).repeat(sectors.len()), &[700]);
                (Op::Write { offset, buf, fua }, change)
            }
        };
        if let Effect::Change { .. } = effect {
            for sector in &mut self.sectors[sectors.clone()] {
                sector.history.push(value);
            }
        }
        self.flying.push(Flying { tag: self.rig.start(op), sectors, source: 0..0, effect });
    }

    fn collect(&mut self) {
        let run_through = self.through;
        let Run { rig, sectors: model, flying, .. } = self;
        flying.retain(|Flying { tag, sectors, effect, .. }| {
            let Some(done) = rig.take(*tag) else {
                return true;
            };
            done.result.expect("the operation succeeds");
            match effect {
                Effect::Read => {
                    let bytes = bytes_of(&done.buf.expect("a read returns its buffer"));
                    for (sector, read) in model[sectors.clone()].iter().zip(bytes.chunks(SECTOR)) {
                        assert!(read == filled(sector.history[sector.completed]));
                    }
                }
                Effect::Change { fua } => {
                    for sector in &mut model[sectors.clone()] {
                        // One change at a time is in flight for a sector: it is the newest.
                        sector.completed = sector.history.len() - 1;
                        if *fua || run_through {
                            sector.durable = sector.completed;
                        }
                    }
                }
                Effect::Flush { covers } => {
                    for (sector, covers) in model.iter_mut().zip(covers) {
                        sector.durable = sector.durable.max(*covers);
                    }
                }
            }
            false
        });
    }

    /// Cuts the power now; what was lost that must not be.
    fn cut(&self, seed: u64) -> Result<(), String> {
        let image = self.log.power_cut(seed);
        for (at, (read, sector)) in image.chunks(SECTOR).zip(&self.sectors).enumerate() {
            let allowed = &sector.history[sector.durable..];
            if !allowed.iter().any(|value| read == filled(*value)) {
                let number = u64::from_le_bytes(read[..8].try_into().expect("8 bytes"));
                return Err(format!("sector {at} reads {number}, not one of {allowed:?}"));
            }
        }
        Ok(())
    }
}

/// Random operations with power cuts between them. How many cuts had something to lose, or what was lost.
fn power_cuts(kind: LaneKind, seed: u64, sync: bool, cache: CacheMode) -> Result<usize, String> {
    let mut run = Run::by(kind, sync, cache);
    let mut random = Random(seed);
    let mut cuts = 0;
    for round in 1..=400 {
        match random.below(8) {
            0 => run.start_copy(&mut random),
            _ => run.start_random(&mut random, round),
        }
        match random.below(6) {
            0 => run.rig.turn(Some(Duration::from_millis(1))),
            1 | 2 => run.rig.poll(),
            _ if run.flying.len() > 12 => run.rig.turn(None),
            _ => {}
        }
        run.collect();
        if random.below(4) == 0 {
            cuts += usize::from(run.log.volatile_writes() > 0);
            run.cut(random.below(u64::MAX))?;
        }
    }
    while !run.flying.is_empty() {
        run.rig.turn(Some(Duration::from_secs(10)));
        run.collect();
    }
    run.rig.ok(Op::Flush);
    for sector in &mut run.sectors {
        sector.durable = sector.completed;
    }
    run.cut(seed)?;
    if sync {
        assert_eq!(run.log.volatile_writes(), 0);
    }
    Ok(cuts)
}

#[test]
fn acknowledged_durable_survives_power_cuts() {
    for kind in engines() {
        let mut cuts = 0;
        for seed in 0..12 {
            cuts += power_cuts(kind, seed, true, CacheMode::Writeback)
                .unwrap_or_else(|lost| panic!("{kind}, seed {seed}: {lost}"));
        }
        assert!(cuts > 100, "only {cuts} cuts had anything to lose");
    }
}

/// The check is worth something: with the sync calls taken out it fails, on either engine, every time.
#[test]
fn without_sync_the_check_fails() {
    for kind in engines() {
        for seed in 0..6 {
            assert!(power_cuts(kind, seed, false, CacheMode::Writeback).is_err(), "{kind}, seed {seed}");
        }
    }
}

#[test]
fn in_every_cache_mode() {
    for kind in engines() {
        for (_, cache) in CacheMode::ALL.into_iter().filter(|(_, cache)| !cache.is_unsafe()) {
            for seed in 20..23 {
                power_cuts(kind, seed, true, cache)
                    .unwrap_or_else(|lost| panic!("{kind} {cache:?} {seed}: {lost}"));
            }
        }
        // What makes the check fail: no syncs, at the orders of whoever runs it.
        assert!(power_cuts(kind, 20, false, CacheMode::Writethrough).is_err());
    }
}

/// cache=unsafe: Flush and FUA succeed, and nothing is made durable.
#[test]
fn unsafe_makes_nothing_durable() {
    for kind in engines() {
        let mut run = Run::by(kind, true, CacheMode::Unsafe);
        run.rig.ok(Op::Write { offset: 0, buf: pool(vec![1; 512]), fua: true });
        run.rig.ok(Op::WriteZeroes { offset: 512, len: 512, unmap: false, fua: true });
        run.rig.ok(Op::Flush);
        assert_eq!(run.log.volatile_writes(), 2);
    }
}

/// Flushes that wait share an fdatasync, of one worker or of several.
#[test]
fn flushes_are_shared() {
    #[derive(Debug, Default)]
    struct Count(std::sync::atomic::AtomicUsize);
    impl Tap for Count {
        fn issued(&self, call: &Call, _: &[u8], _: &std::fs::File) -> u64 {
            self.0.fetch_add(usize::from(*call == Call::Fdatasync), std::sync::atomic::Ordering::SeqCst);
            0
        }
        fn completed(&self, _: u64, _: &Call, _: Result<u32, i32>) {}
    }
    for kind in engines() {
        let folder = folder();
        let count = Arc::new(Count::default());
        let options = FileOptions {
            size: Some(1 << 20),
            tap: Some(count.clone()),
            ..FileOptions::new(folder.path().join("image"))
        };
        let image: SharedDisk = Arc::new(FileDisk::open(options).expect("the image opens"));
        let mut rigs: Vec<Rig> = (0..2)
            .map(|_| {
                let any = MemoryDisk::new(1).expect("the memory is there");
                let mut rig = Rig::new(any, Lane::new(kind).expect("the engine starts"));
                rig.disk = Arc::clone(&image);
                rig
            })
            .collect();
        let mut tags: Vec<(usize, Tag)> = Vec::new();
        for _ in 0..100 {
            for (n, rig) in rigs.iter_mut().enumerate() {
                tags.push((n, rig.start(Op::Flush)));
            }
        }
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !tags.is_empty() {
            assert!(std::time::Instant::now() < deadline, "{} flushes never end", tags.len());
            for rig in &mut rigs {
                rig.turn(Some(Duration::from_millis(1)));
            }
            tags.retain(|(n, tag)| match rigs[*n].take(*tag) {
                Some(done) => {
                    done.result.expect("the flush succeeds");
                    false
                }
                None => true,
            });
        }
        let made = count.0.load(std::sync::atomic::Ordering::SeqCst);
        // Threads may end some while others are still submitted.
        let most = 100;
        assert!((1..=most).contains(&made), "{kind}: {made} fdatasyncs for 200 flushes");
    }
}

/// Flush alone and FUA alone each make durable what they cover, and neither more nor less.
#[test]
fn each_kind_of_sync_covers_its_own() {
    for kind in engines() {
        let mut run = Run::new(kind, true);
        let write = |offset, byte, fua| Op::Write { offset, buf: pool(vec![byte; 1024]), fua };
        let losable = |run: &Run, at: usize, byte: u8| {
            let lost = |seed| run.log.power_cut(seed)[at..at + 512] != [byte; 512];
            (0..64).any(lost)
        };
        run.rig.ok(write(0, 1, false));
        run.rig.ok(write(4096, 2, true));
        assert!(losable(&run, 0, 1), "FUA covers its own write alone");
        assert!(!losable(&run, 4096, 2));
        run.rig.ok(Op::Flush);
        assert!(!losable(&run, 0, 1));
        assert!(!losable(&run, 512, 1));
        run.rig.ok(Op::Discard { offset: 0, len: 512 });
        assert!(!losable(&run, 512, 1));
        assert!(losable(&run, 0, 0));
        let zeroes = Op::WriteZeroes { offset: 4096, len: 1024, unmap: false, fua: true };
        run.rig.ok(zeroes);
        assert!(!losable(&run, 4096, 0));
        run.rig.ok(write(512, 5, false));
        assert!(losable(&run, 512, 5));
        run.rig.ok(Op::Flush);
        let source = Arc::clone(&run.rig.disk);
        let (from, offset, how) = (512, 8192, How::Offload);
        run.rig.ok(copy_op(source, from, offset, 512, how));
        assert!(losable(&run, 8192, 5), "a copy is a write");
        run.rig.ok(Op::Flush);
        assert!(!losable(&run, 8192, 5), "and durable after a Flush");
        run.rig.ok(write(512, 6, false));
        // Torn at a sector: the halves fare differently in some cut.
        let torn = (0..64).map(|seed| run.log.power_cut(seed));
        assert!(torn.into_iter().any(|cut| cut[512] != cut[1024]));
    }
}

/// Pages of the file that the kernel has yet to write; nothing where it cannot tell (before 6.5).
#[expect(unsafe_code, reason = "cachestat has no wrapper")]
fn dirty_pages(file: &std::fs::File) -> Option<u64> {
    use std::os::fd::AsRawFd;
    // The number is the same on every architecture; libc does not know it yet.
    const CACHESTAT: libc::c_long = 451;
    // struct cachestat_range { off, len }: length 0 means to the end of the file.
    let range = [0u64; 2];
    // struct cachestat { nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted }
    let mut counts = [0u64; 5];
    // SAFETY: both arrays have the layout of their structs and outlive the call.
    let result =
        unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr(), 0) };
    (result == 0).then(|| counts[1] + counts[2])
}

/// The log believes a [`Call`]; here the kernel itself says that each engine makes it as a sync.
#[test]
fn the_kernel_is_told_to_sync() {
    let folder = folder();
    let path = folder.path().join("image");
    for kind in engines() {
        let options = FileOptions { size: Some(1 << 20), ..FileOptions::new(&path) };
        let disk = FileDisk::open(options).expect("the image opens");
        let file = std::fs::File::open(&path).expect("it opens for reading");
        let mut rig = Rig::new(disk, Lane::new(kind).expect("the engine starts"));
        let write = |fua| Op::Write { offset: 0, buf: pool(vec![1; 1 << 20]), fua };
        let zeroes = Op::WriteZeroes { offset: 100, len: 100, unmap: false, fua: true };
        // Background writeback may clean pages too, but not all of them at once within a moment.
        rig.ok(write(false));
        let Some(dirty) = dirty_pages(&file) else {
            return eprintln!("not tested: the kernel has no cachestat");
        };
        assert!(dirty > 0);
        rig.ok(Op::Flush);
        if dirty_pages(&file) == Some(dirty) && folder_is_tmpfs(folder.path()) {
            return eprintln!("not tested: the folder for temporary files is a tmpfs");
        }
        assert_eq!(dirty_pages(&file), Some(0), "{kind}: Flush");
        rig.ok(write(true));
        assert_eq!(dirty_pages(&file), Some(0), "{kind}: FUA");
        rig.ok(zeroes);
        assert_eq!(dirty_pages(&file), Some(0), "{kind}: FUA of zeroes");
        let source = Arc::clone(&rig.disk);
        let copy = copy_op(source, 0, 1 << 19, 1 << 19, How::Offload);
        rig.ok(copy);
        rig.ok(Op::Flush);
        assert_eq!(dirty_pages(&file), Some(0), "{kind}: Flush after a copy");
    }
}

fn folder_is_tmpfs(folder: &std::path::Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|stat| stat.f_type == libc::TMPFS_MAGIC)
}
