//! The rows of the table.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vfio_user_nvme::disk::{CacheMode, FileDisk, FileOptions, IoBuf, MemoryDisk, Op, SharedDisk, Tag};
use vfio_user_nvme::disk::{Lane, LaneKind};
use vfio_user_nvme::namespace::Method;

use super::baseline::{self, Linked};
use super::driver::{Copy, Driver, Host, Reads, Until, method};
use super::fs::{self, Place};

const RUNS: usize = 5;
const DEPTH: u16 = 4;
/// Bytes moved in one run at least, so that a run is long enough to be measured.
const ENOUGH: u64 = 256 << 20;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// One line of the table.
pub enum Row {
    /// Commands of `size` bytes in `ranges` ranges, against the best host tool.
    Throughput { medium: Medium, lbads: u8, size: u64, ranges: u64 },
    /// The same within memory that was never written, against memmove of zeroes.
    Unwritten { size: u64, ranges: u64 },
    /// 256 one-block ranges, shuffled, against one range of 256 blocks; both ours.
    Scattered { medium: Medium, lbads: u8 },
    /// 1 GiB on a file system that shares blocks: time, and space it took.
    Shared { kind: &'static str, dirty: bool },
    /// The rate of 4 KiB reads, 32 in flight on a queue of their own, while 1 GiB is bounced within a plain
    /// file; against their rate alone.
    Rate,
    /// The latency of 4 KiB reads, one at a time, while 1 GiB is moved within memory; against the idle one.
    Latency,
}

/// What the image is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// This process's memory.
    Memory,
    /// A plain file, through the page cache.
    File,
    /// A plain file, past the page cache (`cache=none`).
    Direct,
}

/// All rows in order.
pub fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for medium in [Medium::Memory, Medium::File] {
        for (size, ranges) in [
            (4 * KIB, 1),
            (64 * KIB, 1),
            (MIB, 1),
            (MIB, 16),
            (MIB, 256),
            (32 * MIB, 1),
            (128 * MIB, 16),
            (GIB, 16),
        ] {
            rows.push(Row::Throughput { medium, lbads: 12, size, ranges });
        }
    }
    for (size, ranges) in [(64 * KIB, 1), (MIB, 1), (MIB, 16), (MIB, 256), (32 * MIB, 1), (GIB, 16)] {
        rows.push(Row::Throughput { medium: Medium::Direct, lbads: 12, size, ranges });
    }
    rows.extend([(64 * KIB, 1), (GIB, 16)].map(|(size, ranges)| Row::Unwritten { size, ranges }));
    for medium in [Medium::Memory, Medium::File] {
        rows.extend([12, 9].map(|lbads| Row::Scattered { medium, lbads }));
    }
    for kind in ["xfs", "btrfs"] {
        rows.extend([false, true].map(|dirty| Row::Shared { kind, dirty }));
    }
    rows.extend([Row::Rate, Row::Latency]);
    rows
}

impl Row {
    /// What the line is called.
    pub fn name(&self) -> String {
        match self {
            Self::Throughput { medium, size, ranges, .. } => {
                format!("{} {} in {ranges} range(s)", medium.name(), bytes(*size))
            }
            Self::Unwritten { size, ranges } => {
                format!("memory {} in {ranges} range(s), never written", bytes(*size))
            }
            Self::Scattered { medium, lbads } => {
                format!("{} 256 x {} scattered / in one", medium.name(), bytes(1 << lbads))
            }
            Self::Shared { kind, dirty } => {
                format!("{kind} 1 GiB reflink, {} source", if *dirty { "dirty" } else { "clean" })
            }
            Self::Rate => "file 4 KiB reads during a 1 GiB bounce".to_owned(),
            Self::Latency => "memory 4 KiB read p99 during a 1 GiB Copy".to_owned(),
        }
    }

    /// Measures and prints the line.
    pub fn run(&self) {
        match self {
            Self::Throughput { medium, lbads, size, ranges } => {
                self.throughput(*medium, *lbads, *size, *ranges)
            }
            Self::Unwritten { size, ranges } => self.unwritten(*size, *ranges),
            Self::Scattered { medium, lbads } => self.scattered(*medium, *lbads),
            Self::Shared { kind, dirty } => self.shared(kind, *dirty),
            Self::Rate => self.rate(),
            Self::Latency => self.latency(),
        }
    }

    fn throughput(&self, medium: Medium, lbads: u8, size: u64, ranges: u64) {
        // No two commands in flight have the same destination.
        let span = (u64::from(DEPTH) * size).clamp(64 * MIB, GIB);
        let copies = sweep(lbads, size, ranges, span);
        let moved = copies.len() as u64 * size;
        match medium {
            Medium::Memory => {
                let mut image = Image::memory(2 * span, lbads, Host::Lone);
                let mut memory = baseline::memory(2 * span);
                let pair = alternate(
                    || image.driver.run(DEPTH, &copies),
                    || baseline::memmove(&mut memory, lbads, &copies),
                );
                pair.print(&self.name(), moved, "memmove");
            }
            Medium::File => {
                let place = Place::plain();
                let mut image = Image::file(&place, 2 * span, lbads);
                let file = rw(&image.path);
                let mut buf = vec![0; MIB as usize];
                // The faster of the two is what we are held against.
                let offload =
                    median((0..3).map(|_| time(|| baseline::copy_file_range(&file, lbads, &copies))));
                let loops =
                    median((0..3).map(|_| time(|| baseline::read_write(&file, lbads, &copies, &mut buf))));
                let (name, pair) = if offload < loops {
                    let theirs = || baseline::copy_file_range(&file, lbads, &copies);
                    ("copy_file_range", alternate(|| image.driver.run(DEPTH, &copies), theirs))
                } else {
                    let theirs = || baseline::read_write(&file, lbads, &copies, &mut buf);
                    ("pread+pwrite", alternate(|| image.driver.run(DEPTH, &copies), theirs))
                };
                pair.print(&self.name(), moved, name);
            }
            Medium::Direct => {
                let place = Place::plain();
                let mut image =
                    Image::file_with(&place, 2 * span, lbads, method(), CacheMode::None, Host::Lone);
                let file = direct(&image.path);
                let alone = |depth| {
                    let mut linked = Linked::new(depth);
                    median((0..3).map(|_| time(|| linked.run(&file, lbads, &copies))))
                };
                // A short Copy is one read and one write: no more of them in flight than we are given.
                let most = if size < MIB { u64::from(DEPTH) } else { 8 };
                let best = [1, 2, 4, 8]
                    .into_iter()
                    .filter(|depth| *depth as u64 <= most)
                    .min_by_key(|depth| alone(*depth))
                    .unwrap_or(1);
                let mut linked = Linked::new(best);
                let pair =
                    alternate(|| image.driver.run(DEPTH, &copies), || linked.run(&file, lbads, &copies));
                pair.print(&self.name(), moved, &format!("linked ring, {best} in flight; goal 0.90"));
            }
        }
    }

    fn unwritten(&self, size: u64, ranges: u64) {
        let span = (u64::from(DEPTH) * size).clamp(64 * MIB, GIB);
        let copies = sweep(12, size, ranges, span);
        let disk = Arc::new(MemoryDisk::new(2 * span).expect("memory"));
        let mut driver = Driver::new(disk, 12, LaneKind::Auto, method(), Host::Lone);
        let mut memory = baseline::memory(2 * span);
        memory.fill(0);
        let pair = alternate(|| driver.run(DEPTH, &copies), || baseline::memmove(&mut memory, 12, &copies));
        pair.print(&self.name(), copies.len() as u64 * size, "memmove of zeroes");
    }

    fn scattered(&self, medium: Medium, lbads: u8) {
        let place = Place::plain();
        let span = 64 * MIB;
        let mut image = match medium {
            Medium::Memory => Image::memory(2 * span, lbads, Host::Lone),
            Medium::File | Medium::Direct => Image::file(&place, 2 * span, lbads),
        };
        let blocks = span >> lbads;
        let rounds = (ENOUGH / 8 / (256 << lbads)).max(1);
        let one: Vec<Copy> = (0..rounds)
            .map(|i| Copy {
                ranges: vec![(i * 256 % (blocks - 512), 256)],
                sdlba: blocks + i * 256 % (blocks - 512),
            })
            .collect();
        // Every second block, in an order in which no two neighbours follow each other.
        let scattered: Vec<Copy> = one
            .iter()
            .map(|copy| {
                let base = copy.ranges[0].0.min(blocks - 1024);
                let ranges = (0..256).map(|i| (base + 2 * (i * 97 % 256), 1)).collect();
                Copy { ranges, sdlba: copy.sdlba }
            })
            .collect();
        let driver = std::cell::RefCell::new(&mut image.driver);
        let pair =
            alternate(|| driver.borrow_mut().run(DEPTH, &scattered), || driver.borrow_mut().run(DEPTH, &one));
        pair.print(&self.name(), rounds * (256 << lbads), "one range, ours");
    }

    fn shared(&self, kind: &str, dirty: bool) {
        let place = match Place::mount(kind, 6) {
            Ok(place) => place,
            Err(why) => return println!("{:<44} skipped: {why}", self.name()),
        };
        let mut image = Image::file(&place, 2 * GIB, 12);
        let copies = sweep(12, GIB, 16, GIB);
        let file = rw(&image.path);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let before = place.used();
        for _ in 0..RUNS {
            prepare(&place, &file, dirty);
            ours.push(time(|| image.driver.run(DEPTH, &copies)));
            prepare(&place, &file, dirty);
            theirs.push(time(|| baseline::clone_range(&file, 12, &copies)));
        }
        let pair = Pair { ours, theirs };
        pair.print(&self.name(), GIB, "FICLONERANGE");
        let grown = place.used() as i64 - before as i64;
        println!("{:<44} {:>9.1} ms; space {:+.1} MiB", "", millis(&pair.ours), grown as f64 / MIB as f64);
    }

    fn rate(&self) {
        let place = Place::plain();
        let mut image =
            Image::file_with(&place, 2 * GIB, 12, Method::Bounce, CacheMode::Writeback, Host::Threaded);
        let (during, alone) = beside(&mut image.driver, 32);
        let rate = |runs: &[Reads]| {
            let mut rates: Vec<f64> =
                runs.iter().map(|run| run.latencies.len() as f64 / run.elapsed.as_secs_f64()).collect();
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        };
        let (ours, theirs) = (rate(&during), rate(&alone));
        println!(
            "{:<44} {:>8.0} r/s {:>8.0} r/s {:>7.2}  against alone; goal 0.50; the Copy took {:.0} ms",
            self.name(),
            ours,
            theirs,
            ours / theirs,
            1000.0 * median(during.iter().map(|run| run.elapsed)).as_secs_f64(),
        );
    }

    fn latency(&self) {
        let mut image = Image::memory(2 * GIB, 12, Host::Threaded);
        let (mut during, mut alone) = beside(&mut image.driver, 1);
        for run in during.iter_mut().chain(&mut alone) {
            run.latencies.sort();
        }
        let micros = |runs: &[Reads], percent: usize| {
            let of = |run: &Reads| run.latencies.get(run.latencies.len() * percent / 100).copied();
            1e6 * median(runs.iter().map(|run| of(run).unwrap_or(run.elapsed))).as_secs_f64()
        };
        let (ours, theirs) = (micros(&during, 99), micros(&alone, 99));
        println!(
            "{:<44} {:>9.0} us {:>9.0} us {:>+7.0}  us, against idle; goal +200; p50 {:.0} against {:.0}, {} reads",
            self.name(),
            ours,
            theirs,
            ours - theirs,
            micros(&during, 50),
            micros(&alone, 50),
            during.iter().map(|run| run.latencies.len()).sum::<usize>(),
        );
    }
}

impl Medium {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File => "file",
            Self::Direct => "cache=none",
        }
    }
}

/// A driven namespace.
struct Image {
    driver: Driver,
    path: PathBuf,
}

impl Image {
    fn memory(len: u64, lbads: u8, host: Host) -> Self {
        let disk: SharedDisk = Arc::new(MemoryDisk::new(len).expect("memory"));
        // With data in it: what was never written is not moved.
        let mut lane = Lane::new(LaneKind::Auto).expect("lane");
        for offset in (0..len).step_by(MIB as usize) {
            let data = vec![0x5a; MIB.min(len - offset) as usize];
            let op = Op::Write { offset, buf: IoBuf::Pool(data.into()), fua: false };
            disk.start(Tag(0), op, &mut lane);
            let mut written = Vec::new();
            lane.take_done(&mut written);
            written.pop().expect("memory is written at once").result.expect("write");
        }
        let driver = Driver::new(disk, lbads, LaneKind::Auto, method(), host);
        Self { driver, path: PathBuf::new() }
    }

    fn file(place: &Place, len: u64, lbads: u8) -> Self {
        Self::file_with(place, len, lbads, method(), CacheMode::Writeback, Host::Lone)
    }

    fn file_with(place: &Place, len: u64, lbads: u8, method: Method, cache: CacheMode, host: Host) -> Self {
        let path = place.path().join("image");
        let file = File::create(&path).expect("image");
        file.set_len(len).expect("length");
        fill(&file, len);
        fs::sync(&place.path());
        let unit = 1 << lbads;
        let options = FileOptions { locking: false, cache, unit, ..FileOptions::new(&path) };
        let disk = FileDisk::open(options).expect("open");
        let driver = Driver::new(Arc::new(disk), lbads, LaneKind::Auto, method, host);
        Self { driver, path }
    }
}

/// Reads from the lower GiB of an image while it is copied up, and while nothing else is done, in turns.
fn beside(driver: &mut Driver, depth: u16) -> (Vec<Reads>, Vec<Reads>) {
    let copies = sweep(12, GIB, 16, GIB);
    let (copying, idle) = (Until::Copied(&copies), Until::Elapsed(Duration::from_millis(500)));
    let mut read = |until| driver.reads(depth, GIB >> 12, until);
    // Once each to warm up, and so that all threads are there.
    read(&copying);
    read(&idle);
    let _apart = Apart::new();
    (0..RUNS).map(|_| (read(&copying), read(&idle))).unzip()
}

/// Worker and host on a processor each, where there are two; the threads that copy go where they like. Else
/// the scheduler decides once for a whole run which two of three busy threads share one, and reads are at 0.4
/// or at 0.9 of their rate.
struct Apart(Option<CpuSet>);

impl Apart {
    fn new() -> Self {
        let Ok(all) = sched_getaffinity(None) else { return Self(None) };
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu));
        let (Some(first), Some(second)) = (cpus.next(), cpus.next()) else { return Self(None) };
        let only = |cpu| {
            let mut set = CpuSet::new();
            set.set(cpu);
            set
        };
        let tasks = std::fs::read_dir("/proc/self/task").expect("threads");
        for task in tasks.flatten() {
            // Workers of rows before are gone.
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            let tid = task.file_name().to_str().and_then(|tid| tid.parse().ok()).and_then(Pid::from_raw);
            if name.starts_with("worker") && tid.is_some() {
                sched_setaffinity(tid, &only(first)).expect("a processor for the worker");
            }
        }
        sched_setaffinity(None, &only(second)).expect("a processor for the host");
        Self(Some(all))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if let Some(all) = &self.0 {
            let _ = sched_setaffinity(None, all);
        }
    }
}

fn prepare(place: &Place, file: &File, dirty: bool) {
    if dirty {
        fill(file, GIB);
    } else {
        fs::sync(&place.path());
    }
}

fn fill(file: &File, len: u64) {
    use std::os::unix::fs::FileExt;
    let piece = vec![0x5a; MIB as usize];
    for at in (0..len).step_by(MIB as usize) {
        file.write_all_at(&piece, at).expect("write");
    }
}

fn direct(path: &PathBuf) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).expect("image")
}

fn rw(path: &PathBuf) -> File {
    File::options().read(true).write(true).open(path).expect("image")
}

/// Commands of `size` bytes in `ranges` equal ranges from the first `span` bytes to the ones behind, until
/// [`ENOUGH`] is moved.
fn sweep(lbads: u8, size: u64, ranges: u64, span: u64) -> Vec<Copy> {
    let (per, all) = ((size / ranges) >> lbads, span >> lbads);
    let command = size >> lbads;
    let count = (ENOUGH / size).clamp(1, 65536);
    (0..count)
        .map(|i| {
            let at = i * command % all;
            // Ranges in reverse order, so that they are not one range in pieces.
            let ranges = (0..ranges).rev().map(|r| (at + r * per, per as u32)).collect();
            Copy { ranges, sdlba: all + at }
        })
        .collect()
}

struct Pair {
    ours: Vec<Duration>,
    theirs: Vec<Duration>,
}

fn alternate(mut ours: impl FnMut(), mut theirs: impl FnMut()) -> Pair {
    ours();
    theirs(); // once each to warm up
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        a.push(time(&mut ours));
        b.push(time(&mut theirs));
    }
    Pair { ours: a, theirs: b }
}

impl Pair {
    fn print(&self, name: &str, moved: u64, against: &str) {
        let (ours, theirs) = (median(self.ours.iter().copied()), median(self.theirs.iter().copied()));
        let rate = |time: Duration| format!("{:.2} GiB/s", moved as f64 / GIB as f64 / time.as_secs_f64());
        let spread = |times: &[Duration]| {
            let (low, high) = (times.iter().min().unwrap(), times.iter().max().unwrap());
            format!("{:.0}%", 100.0 * (high.as_secs_f64() / low.as_secs_f64() - 1.0))
        };
        println!(
            "{name:<44} {:>12} {:>12} {:>7.2}  {}/{}  against {against}",
            rate(ours),
            rate(theirs),
            theirs.as_secs_f64() / ours.as_secs_f64(),
            spread(&self.ours),
            spread(&self.theirs),
        );
    }
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(times: impl IntoIterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.into_iter().collect();
    times.sort();
    times[times.len() / 2]
}

fn millis(times: &[Duration]) -> f64 {
    median(times.iter().copied()).as_secs_f64() * 1000.0
}

fn bytes(count: u64) -> String {
    match count {
        c if c >= GIB => format!("{} GiB", c / GIB),
        c if c >= MIB => format!("{} MiB", c / MIB),
        c if c >= KIB => format!("{} KiB", c / KIB),
        c => format!("{c} B"),
    }
}
