//! One suite for every disk and engine: what an image promises, whatever it is made of.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::*;
use crate::memory::testing::Guest;
use crate::memory::{Access, GuestBuf};

/// A small generator of reproducible numbers.
pub(in crate::disk) struct Random(pub u64);

impl Random {
    pub(in crate::disk) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub(in crate::disk) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.below(u64::MAX).to_ne_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// A disk with an engine, and the turning of a worker's loop.
pub(in crate::disk) struct Rig {
    pub(in crate::disk) disk: SharedDisk,
    pub(in crate::disk) engine: Lane,
    next: u64,
    done: HashMap<Tag, Done>,
}

impl Rig {
    pub(in crate::disk) fn new(disk: impl Disk + 'static, engine: Lane) -> Self {
        Rig { disk: Arc::new(disk), engine, next: 0, done: HashMap::new() }
    }

    pub(in crate::disk) fn start(&mut self, op: Op) -> Tag {
        let tag = Tag(self.next);
        self.next += 1;
        self.disk.start(tag, op, &mut self.engine);
        let mut done = Vec::new();
        self.engine.take_done(&mut done);
        for completion in done {
            self.done.insert(completion.tag, completion);
        }
        tag
    }

    pub(in crate::disk) fn turn(&mut self, timeout: Option<Duration>) {
        self.engine.wait(timeout);
        self.poll();
    }

    pub(in crate::disk) fn poll(&mut self) {
        let mut out = Vec::new();
        self.engine.reap(&mut out);
        for completion in out {
            assert!(self.done.insert(completion.tag, completion).is_none());
        }
    }

    pub(in crate::disk) fn take(&mut self, tag: Tag) -> Option<Done> {
        self.done.remove(&tag)
    }

    pub(in crate::disk) fn finish(&mut self, tag: Tag) -> Done {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(completion) = self.take(tag) {
                return completion;
            }
            assert!(Instant::now() < deadline, "{tag:?} never completes");
            self.turn(Some(Duration::from_secs(60)));
        }
    }

    pub(in crate::disk) fn run(&mut self, op: Op) -> Done {
        let tag = self.start(op);
        self.finish(tag)
    }

    #[track_caller]
    pub(in crate::disk) fn ok(&mut self, op: Op) -> Option<IoBuf> {
        let completion = self.run(op);
        completion.result.expect("the operation succeeds");
        completion.buf
    }

    #[track_caller]
    pub(in crate::disk) fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let buf = self.ok(Op::Read { offset, buf: pool(vec![0xee; len]) });
        bytes_of(&buf.expect("a read returns its buffer"))
    }
}

/// A Copy of one piece without a buffer; of none if it has no bytes.
pub(in crate::disk) fn copy_op(from: SharedDisk, start: u64, at: u64, len: u64, how: How) -> Op {
    let pieces = if len > 0 { [(start, len)].into() } else { Pieces::new() };
    Op::Copy { from, pieces, at, how, buf: None, durable: false }
}

pub(in crate::disk) fn pool(bytes: Vec<u8>) -> IoBuf {
    IoBuf::Pool(bytes.into())
}

/// Guest memory holding `bytes`, in pieces of these lengths, repeated as needed.
pub(in crate::disk) fn guest(bytes: &[u8], pieces: &[usize]) -> IoBuf {
    assert!(pieces.iter().all(|piece| *piece > 0));
    let mut ranges = Vec::new();
    let (mut address, mut left) = (0, bytes.len());
    for piece in pieces.iter().cycle() {
        if left == 0 {
            break;
        }
        let len = left.min(*piece);
        ranges.push((address, len));
        // A byte between them, or they would be one piece.
        address += len as u64 + 1;
        left -= len;
    }
    let guest = Guest::new(0, address.next_multiple_of(4096).max(4096));
    let dma = guest.dma();
    let mut buf = GuestBuf::default();
    for (address, len) in &ranges {
        dma.append(*address, *len, Access::Write, &mut buf).expect("the range is mapped");
    }
    assert_eq!(buf.iovecs().len(), ranges.len());
    buf.copy_in(0, bytes).expect("the memory is there");
    IoBuf::Guest(buf)
}

pub(in crate::disk) fn bytes_of(buf: &IoBuf) -> Vec<u8> {
    match buf {
        IoBuf::Pool(bytes) => bytes.to_vec(),
        IoBuf::Part(part) => part.to_vec(),
        IoBuf::Guest(buf) => {
            let mut bytes = vec![0; buf.len()];
            buf.copy_out(0, &mut bytes).expect("the memory is there");
            bytes
        }
    }
}

const LEN: u64 = 1 << 20;

/// `bytes` as a part of a larger buffer.
fn part(bytes: &[u8]) -> IoBuf {
    let mut whole = SplitBuffer::new(vec![0xee; bytes.len() + 6].into());
    let before = whole.split(3);
    let mut part = whole.split(bytes.len()).expect("there is room, and a byte at least");
    drop((before, whole));
    part.copy_from_slice(bytes);
    IoBuf::Part(part)
}

fn random_buf(random: &mut Random, bytes: Vec<u8>) -> IoBuf {
    match random.below(4) {
        0 => pool(bytes),
        3 if !bytes.is_empty() => part(&bytes),
        1 => guest(&bytes, &[4096]),
        _ => {
            let pieces: Vec<usize> = (0..5).map(|_| random.below(700) as usize + 1).collect();
            guest(&bytes, &pieces)
        }
    }
}

/// Random operations, many in flight on disjoint ranges, against a vector of bytes.
fn random_operations(rig: &mut Rig, seed: u64) {
    enum What {
        Read,
        Changed(Vec<u8>),
        Gone,
        Flushed,
    }
    let mut random = Random(seed);
    let mut model = vec![0u8; LEN as usize];
    let mut flying: Vec<(Tag, std::ops::Range<usize>, What)> = Vec::new();
    for round in 0..1500 {
        // What overlaps an operation in flight waits for its turn.
        let len = match random.below(4) {
            0 => random.below(64),
            1 => 512 * (1 + random.below(16)),
            2 => 4096 * (1 + random.below(16)),
            _ => random.below(40_000),
        };
        let offset = match random.below(2) {
            0 => random.below(LEN - len + 1),
            _ => (random.below(LEN - len + 1)) & !4095,
        };
        let range = offset as usize..(offset + len) as usize;
        let clash =
            |(_, r, _): &(Tag, std::ops::Range<usize>, What)| r.start < range.end && range.start < r.end;
        if !flying.iter().any(clash) {
            let fua = random.below(8) == 0;
            let (op, what) = match random.below(12) {
                0..4 => {
                    let buf = random_buf(&mut random, vec![0xee; len as usize]);
                    (Op::Read { offset, buf }, What::Read)
                }
                4..8 => {
                    let bytes = random.bytes(len as usize);
                    let buf = random_buf(&mut random, bytes.clone());
                    (Op::Write { offset, buf, fua }, What::Changed(bytes))
                }
                8 | 9 => {
                    let unmap = random.below(2) == 0;
                    let zeroes = Op::WriteZeroes { offset, len, unmap, fua };
                    (zeroes, What::Changed(vec![0; len as usize]))
                }
                10 => (Op::Discard { offset, len }, What::Gone),
                _ => (Op::Flush, What::Flushed),
            };
            flying.push((rig.start(op), range, what));
        }
        if flying.len() >= 24 || round % 7 == 0 {
            rig.poll();
        }
        while flying.len() >= 24 {
            settle(rig, &mut model, &mut flying);
            if flying.len() >= 24 {
                rig.turn(Some(Duration::from_secs(10)));
            }
        }
    }
    while !flying.is_empty() {
        settle(rig, &mut model, &mut flying);
        if !flying.is_empty() {
            rig.turn(Some(Duration::from_secs(10)));
        }
    }
    assert_eq!(rig.engine.in_flight(), 0);
    assert!(rig.read(0, LEN as usize) == model, "the image differs");

    fn settle(rig: &mut Rig, model: &mut [u8], flying: &mut Vec<(Tag, std::ops::Range<usize>, What)>) {
        flying.retain_mut(|(tag, range, what)| {
            let Some(completion) = rig.take(*tag) else {
                return true;
            };
            completion.result.expect("the operation succeeds");
            match what {
                What::Read => {
                    let got = bytes_of(&completion.buf.expect("a read returns its buffer"));
                    assert!(got == model[range.clone()], "a read of {range:?} differs");
                }
                What::Changed(bytes) => {
                    if let Some(buf) = &completion.buf {
                        assert!(bytes_of(buf) == *bytes, "a write changed its buffer");
                    }
                    model[range.clone()].copy_from_slice(bytes);
                }
                // All disks tested here can punch holes.
                What::Gone => model[range.clone()].fill(0),
                What::Flushed => assert!(completion.buf.is_none()),
            }
            false
        });
    }
}

fn edges(rig: &mut Rig) {
    assert_eq!(rig.disk.len(), LEN);
    assert!(!rig.disk.is_empty() && !rig.disk.read_only());
    for offset in [0, 5, LEN] {
        rig.ok(Op::Read { offset, buf: pool(Vec::new()) });
        let write = Op::Write { offset, buf: guest(&[], &[1]), fua: true };
        assert!(rig.ok(write).is_some_and(|buf| buf.is_empty()));
        for unmap in [false, true] {
            rig.ok(Op::WriteZeroes { offset, len: 0, unmap, fua: true });
        }
        rig.ok(Op::Discard { offset, len: 0 });
    }
    let beyond = [(LEN, 1), (LEN - 511, 512), (LEN + 512, 0), (u64::MAX, 1), (u64::MAX - 4095, 4096)];
    for (offset, len) in beyond {
        let ops = [
            Op::Read { offset, buf: pool(vec![0; len as usize]) },
            Op::Write { offset, buf: pool(vec![1; len as usize]), fua: false },
            Op::WriteZeroes { offset, len, unmap: true, fua: false },
            Op::Discard { offset, len },
        ];
        for op in ops {
            let has_buf = matches!(op, Op::Read { .. } | Op::Write { .. });
            let completion = rig.run(op);
            assert!(matches!(completion.result, Err(DiskError::Truncated)));
            assert_eq!(completion.buf.is_some(), has_buf);
        }
    }
    rig.ok(Op::Discard { offset: 0, len: LEN });
    assert!(rig.read(0, LEN as usize).iter().all(|b| *b == 0));
}

/// More pieces than the kernel takes in one call, of odd lengths; at an odd offset.
fn many_pieces(rig: &mut Rig) {
    let bytes = Random(7).bytes(110_001);
    let pieces = [1, 77, 13, 3, 61];
    let buf = guest(&bytes, &pieces);
    let IoBuf::Guest(guest_buf) = &buf else { unreachable!() };
    assert!(guest_buf.iovecs().len() > 3 * libc::UIO_MAXIOV as usize);
    rig.ok(Op::Write { offset: 777, buf, fua: true });
    assert!(rig.read(777, bytes.len()) == bytes);
    let back = rig.ok(Op::Read { offset: 777, buf: guest(&vec![0; bytes.len()], &[5, 64, 100]) });
    assert!(bytes_of(&back.expect("a read returns its buffer")) == bytes);
    assert!(rig.read(0, 777).iter().all(|b| *b == 0));
}

/// Far more operations at once than a ring holds.
fn many_in_flight(rig: &mut Rig) {
    let blocks = LEN / 512;
    let tags: Vec<Tag> = (0..blocks)
        .map(|n| rig.start(Op::Write { offset: n * 512, buf: guest(&[n as u8; 512], &[100]), fua: false }))
        .collect();
    for tag in tags {
        rig.finish(tag).result.expect("the write succeeds");
    }
    assert_eq!(rig.engine.in_flight(), 0);
    let image = rig.read(0, LEN as usize);
    for (n, block) in image.chunks(512).enumerate() {
        assert!(block.iter().all(|b| *b == n as u8), "block {n}");
    }
}

/// A wake-up ends a sleep, whether it comes before or during it; a timeout ends one too.
fn waking(rig: &mut Rig) {
    let waker = rig.engine.waker();
    for _ in 0..3 {
        waker.wake();
        waker.wake();
        rig.engine.wait(None);
    }
    // A look at what is complete must not eat the wake-up of a message that came just before it.
    let mut done = Vec::new();
    for _ in 0..3 {
        // A sleep that something else ended leaves the engine listening for wake-ups.
        rig.engine.wait(Some(Duration::from_millis(1)));
        waker.wake();
        rig.engine.reap(&mut done);
        let start = Instant::now();
        rig.engine.wait(Some(Duration::from_secs(5)));
        assert!(start.elapsed() < Duration::from_secs(4), "the wake-up was lost");
    }
    // Each wake-up is answered before the next one comes: one that got lost would stop both for good.
    let (woken, heard) = std::sync::mpsc::sync_channel(0);
    let thread = std::thread::spawn(move || {
        for _ in 0..500 {
            waker.wake();
            heard.recv_timeout(Duration::from_secs(20)).expect("the sleep ends");
        }
    });
    for _ in 0..500 {
        rig.engine.wait(None);
        woken.send(()).expect("the waking thread listens");
    }
    thread.join().expect("no wake-up is lost");
    // Takes what is left over.
    rig.engine.wait(Some(Duration::ZERO));
    let start = Instant::now();
    rig.engine.wait(Some(Duration::from_millis(30)));
    let slept = start.elapsed();
    assert!(slept >= Duration::from_millis(25), "slept only {slept:?}");
    assert!(slept < Duration::from_secs(10), "slept {slept:?}");
}

/// A waiting engine uses no CPU, with and without a timeout.
fn idle(rig: &mut Rig) {
    let waker = rig.engine.waker();
    rig.engine.wait(Some(Duration::ZERO));
    let before = thread_cpu();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        waker.wake();
    });
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(250) {
        rig.engine.wait(None);
    }
    let used = thread_cpu() - before;
    thread.join().expect("the waking thread ends");
    assert!(used < Duration::from_millis(20), "used {used:?} asleep");
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Dones that nobody reaped end every wait.
fn unreaped(rig: &mut Rig) {
    let tag = rig.start(Op::Write { offset: 0, buf: pool(vec![1; 4096]), fua: false });
    if rig.take(tag).is_some() {
        assert_eq!(rig.engine.in_flight(), 0);
        return;
    }
    assert_eq!(rig.engine.in_flight(), 1);
    for _ in 0..3 {
        rig.engine.wait(Some(Duration::from_secs(10)));
    }
    // The job is done by now: none of these waits sleeps out its time.
    let start = Instant::now();
    rig.engine.wait(Some(Duration::from_secs(10)));
    rig.engine.wait(Some(Duration::from_secs(10)));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(rig.engine.in_flight(), 1);
    rig.poll();
    assert_eq!(rig.engine.in_flight(), 0);
    assert!(rig.take(tag).is_some());
}

/// An engine made here is used on another thread, and dropped with work in flight.
fn moved_and_dropped(rig: Rig) {
    std::thread::spawn(move || {
        let mut rig = rig;
        rig.ok(Op::Write { offset: 0, buf: pool(vec![9; 8192]), fua: true });
        assert!(rig.read(0, 8192).iter().all(|b| *b == 9));
        for n in 0..600 {
            rig.start(Op::Write { offset: n * 512, buf: guest(&[3; 512], &[64]), fua: n % 16 == 0 });
            if n == 300 {
                rig.poll();
            }
        }
        drop(rig);
    })
    .join()
    .expect("the worker ends");
}

/// What was written is allocated, by whole units; what was given back is not.
fn allocation(rig: &mut Rig) {
    let Some(unit) = rig.disk.allocation_unit() else {
        eprintln!("allocation is not tested: it is not known here");
        return;
    };
    let probe = |rig: &mut Rig, offset, len| match rig.run(Op::Probe { offset, len }).result {
        Ok(_) => true,
        Err(DiskError::Deallocated) => false,
        Err(error) => panic!("{offset}+{len}: {error}"),
    };
    for (offset, len) in [(0, LEN), (0, 1), (LEN - 1, 1)] {
        assert!(!probe(rig, offset, len), "{offset}+{len} of a new image");
    }
    for offset in [0, LEN] {
        assert!(probe(rig, offset, 0));
    }
    let beyond = rig.run(Op::Probe { offset: LEN - 511, len: 512 });
    assert!(matches!(beyond.result, Err(DiskError::Truncated)));
    // One byte makes its unit, of zeroes too.
    rig.ok(Op::Write { offset: 3 * unit + 7, buf: pool(vec![0]), fua: false });
    assert!(probe(rig, 3 * unit, unit));
    assert!(!probe(rig, 3 * unit - 1, 2) && !probe(rig, 4 * unit - 1, 2) && !probe(rig, 0, LEN));
    // Zeroes that may not be unmapped are as good as data; a part of a unit stays.
    rig.ok(Op::WriteZeroes { offset: 4 * unit, len: 4 * unit, unmap: false, fua: false });
    assert!(probe(rig, 3 * unit, 5 * unit) && !probe(rig, 3 * unit, 5 * unit + 1));
    rig.ok(Op::Discard { offset: 4 * unit + 1, len: 2 * unit });
    assert!(probe(rig, 3 * unit, 2 * unit) && probe(rig, 6 * unit, 2 * unit) && !probe(rig, 5 * unit, unit));
    rig.ok(Op::WriteZeroes { offset: 0, len: LEN, unmap: true, fua: false });
    assert!(!probe(rig, 3 * unit, 1) && !probe(rig, 7 * unit, 1));
    rig.ok(Op::Write { offset: 0, buf: pool(vec![1; LEN as usize]), fua: true });
    assert!(probe(rig, 0, LEN));
    // Reading and asking change nothing.
    rig.ok(Op::Discard { offset: 0, len: LEN });
    rig.read(0, LEN as usize);
    assert!(!probe(rig, 0, 1) && !probe(rig, LEN - 1, 1));
}

fn suite(make: impl Fn() -> Rig) {
    edges(&mut make());
    allocation(&mut make());
    many_pieces(&mut make());
    many_in_flight(&mut make());
    waking(&mut make());
    idle(&mut make());
    unreaped(&mut make());
    for seed in 0..4 {
        random_operations(&mut make(), seed);
    }
    moved_and_dropped(make());
}

pub(in crate::disk) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder for the test")
}

pub(in crate::disk) fn raw(path: &Path) -> FileDisk {
    FileDisk::open(FileOptions { size: Some(LEN), ..FileOptions::new(path) }).expect("the image opens")
}

/// Both engines, or one where io_uring does not work.
pub(in crate::disk) fn engines() -> Vec<LaneKind> {
    match probe() {
        Ok(()) => vec![LaneKind::IoUring, LaneKind::Threads],
        Err(why) => {
            eprintln!("io_uring is not tested: {why}");
            vec![LaneKind::Threads]
        }
    }
}

fn raw_suite(kind: LaneKind, folder: &Path) {
    let numbers = std::cell::Cell::new(0);
    suite(|| {
        numbers.set(numbers.get() + 1);
        let path = folder.join(format!("{kind}-{}", numbers.get()));
        Rig::new(raw(&path), Lane::new(kind).expect("the engine starts"))
    });
}

#[test]
fn memory() {
    suite(|| {
        Rig::new(
            MemoryDisk::new(LEN).expect("the memory is there"),
            Lane::new(LaneKind::Threads).expect("the engine starts"),
        )
    });
}

#[test]
fn raw_on_io_uring() {
    if engines().contains(&LaneKind::IoUring) {
        raw_suite(LaneKind::IoUring, folder().path());
    }
}

/// Past the page cache, with requests of any alignment: memory and offsets that the kernel refuses are our
/// affair.
#[test]
fn raw_past_the_page_cache() {
    let folder = folder();
    for kind in engines() {
        for cache in [CacheMode::None, CacheMode::Directsync] {
            let numbers = std::cell::Cell::new(0);
            suite(|| {
                numbers.set(numbers.get() + 1);
                let path = folder.path().join(format!("{kind}-{cache:?}-{}", numbers.get()));
                let options = FileOptions { size: Some(LEN), cache, ..FileOptions::new(&path) };
                let image = FileDisk::open(options).expect("the image opens");
                Rig::new(image, Lane::new(kind).expect("the engine starts"))
            });
        }
    }
}

/// Neighbours within one block of the file, written at the same time by engines of several workers, are all
/// kept, whole blocks beside them too. The file is made to ask for pages.
#[test]
fn neighbours_in_one_block() {
    for kind in engines() {
        let folder = folder();
        let path = folder.path().join("image");
        let options = FileOptions { size: Some(LEN), cache: CacheMode::None, ..FileOptions::new(&path) };
        let image: SharedDisk = Arc::new(FileDisk::open(options).expect("it opens").asking_for(4096));
        let workers = 3u64;
        std::thread::scope(|scope| {
            for worker in 0..workers {
                let image = Arc::clone(&image);
                scope.spawn(move || {
                    let mut rig =
                        Rig::new(MemoryDisk::new(1).expect("memory"), Lane::new(kind).expect("engine"));
                    rig.disk = image;
                    for round in 0..20 {
                        // Each has every third sector; all of them lie in few blocks.
                        let tags: Vec<Tag> = (0..24)
                            .map(|n| {
                                let sector = n * workers + worker;
                                let byte = 1 + (sector + round) as u8;
                                let (offset, buf) = (sector * 512, pool(vec![byte; 512]));
                                rig.start(match n % 8 {
                                    7 => Op::WriteZeroes {
                                        offset,
                                        len: 512,
                                        unmap: round % 2 == 0,
                                        fua: false,
                                    },
                                    _ => Op::Write { offset, buf, fua: n % 5 == 0 },
                                })
                            })
                            .collect();
                        for tag in tags {
                            rig.finish(tag).result.expect("the write succeeds");
                        }
                        for n in 0..24 {
                            let sector = n * workers + worker;
                            let byte = if n % 8 == 7 { 0 } else { 1 + (sector + round) as u8 };
                            assert!(rig.read(sector * 512, 512) == [byte; 512], "{kind}: sector {sector}");
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn raw_on_threads() {
    raw_suite(LaneKind::Threads, folder().path());
}

/// A file system that cannot zero ranges, only punch holes.
#[test]
fn raw_on_tmpfs() {
    match tempfile::tempdir_in("/dev/shm") {
        Ok(folder) => engines().into_iter().for_each(|kind| raw_suite(kind, folder.path())),
        Err(why) => eprintln!("tmpfs is not tested: {why}"),
    }
}

#[test]
fn read_only_images_refuse_writes() {
    let folder = folder();
    let path = folder.path().join("image");
    let bytes = Random(3).bytes(LEN as usize);
    std::fs::write(&path, &bytes).expect("the image is written");
    for kind in engines() {
        let disk = FileDisk::open(FileOptions { read_only: true, ..FileOptions::new(&path) });
        let mut rig = Rig::new(disk.expect("the image opens"), Lane::new(kind).expect("the engine starts"));
        assert!(rig.disk.read_only());
        let writes = [
            Op::Write { offset: 0, buf: pool(vec![0; 512]), fua: false },
            Op::WriteZeroes { offset: 0, len: 512, unmap: true, fua: false },
            Op::Discard { offset: 0, len: 512 },
        ];
        for op in writes {
            let completion = rig.run(op);
            assert!(matches!(completion.result, Err(DiskError::ReadOnly)));
        }
        rig.ok(Op::Flush);
        assert!(rig.read(0, LEN as usize) == bytes);
    }
    assert!(std::fs::read(&path).expect("the image is read") == bytes);
}

#[test]
fn a_truncated_file_is_noticed() {
    for kind in engines() {
        let folder = folder();
        let path = folder.path().join("image");
        let mut rig = Rig::new(raw(&path), Lane::new(kind).expect("the engine starts"));
        let other = std::fs::OpenOptions::new().write(true).open(&path);
        other.and_then(|file| file.set_len(LEN / 2 + 100)).expect("the file is cut");
        for offset in [LEN / 2 - 4096, LEN / 2, LEN - 8192] {
            let completion = rig.run(Op::Read { offset, buf: guest(&[0; 8192], &[4096]) });
            assert!(matches!(completion.result, Err(DiskError::Truncated)));
            assert!(completion.buf.is_some());
        }
        rig.read(0, LEN as usize / 2);
    }
}

/// Guest memory of one page, whose page is gone.
fn lost_page() -> IoBuf {
    let guest = Guest::new(0, 4096);
    let mut buf = GuestBuf::default();
    guest.dma().append(0, 4096, Access::Write, &mut buf).expect("the page is mapped");
    rustix::fs::ftruncate(&guest.file, 0).expect("the memory shrinks");
    IoBuf::Guest(buf)
}

#[test]
fn lost_guest_memory_is_told_apart() {
    let folder = folder();
    let mut rigs = vec![Rig::new(
        MemoryDisk::new(LEN).expect("the memory is there"),
        Lane::new(LaneKind::Threads).expect("the engine starts"),
    )];
    for kind in engines() {
        let path = folder.path().join(kind.to_string());
        rigs.push(Rig::new(raw(&path), Lane::new(kind).expect("the engine starts")));
    }
    for mut rig in rigs {
        rig.ok(Op::Write { offset: 0, buf: pool(vec![1; 65536]), fua: false });
        for op in
            [Op::Read { offset: 0, buf: lost_page() }, Op::Write { offset: 0, buf: lost_page(), fua: false }]
        {
            let completion = rig.run(op);
            assert!(matches!(completion.result, Err(DiskError::GuestMemory)));
            assert!(completion.buf.is_some());
        }
    }
}

/// One transfer larger than the kernel moves at once, from one piece of memory named many times.
#[test]
fn transfers_beyond_two_gib() {
    const PIECE: usize = 32 << 20;
    const COUNT: usize = 66;
    for kind in engines() {
        // Holes cost tmpfs neither time nor memory.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| folder());
        let path = folder.path().join("image");
        let len = (PIECE * COUNT) as u64;
        let disk = FileDisk::open(FileOptions { size: Some(len + 4096), ..FileOptions::new(&path) });
        let mut rig = Rig::new(disk.expect("the image opens"), Lane::new(kind).expect("the engine starts"));
        let last = Random(5).bytes(PIECE);
        rig.ok(Op::Write { offset: len - PIECE as u64 + 512, buf: pool(last.clone()), fua: false });
        let guest = Guest::new(0, PIECE as u64);
        let mut buf = GuestBuf::default();
        for _ in 0..COUNT {
            guest.dma().append(0, PIECE, Access::Write, &mut buf).expect("the range is mapped");
        }
        assert!(buf.len() > i32::MAX as usize);
        rig.ok(Op::Read { offset: 512, buf: IoBuf::Guest(buf) });
        assert!(guest.bytes(0, PIECE) == last);
    }
}

/// Blocks are given back, not filled with zeroes.
#[test]
fn unmapping_frees_blocks() {
    use std::os::unix::fs::MetadataExt;
    for kind in engines() {
        let folder = folder();
        let path = folder.path().join("image");
        let mut rig = Rig::new(raw(&path), Lane::new(kind).expect("the engine starts"));
        let blocks = || std::fs::metadata(&path).expect("the image is there").blocks();
        assert_eq!(blocks(), 0, "a new image is sparse");
        let fill = |rig: &mut Rig| {
            rig.ok(Op::Write { offset: 0, buf: pool(vec![1; LEN as usize]), fua: true });
        };
        fill(&mut rig);
        let full = blocks();
        rig.ok(Op::Discard { offset: 100, len: LEN / 2 });
        assert!(blocks() <= full / 2 + 32);
        fill(&mut rig);
        rig.ok(Op::WriteZeroes { offset: 0, len: LEN, unmap: false, fua: true });
        assert!(blocks() >= LEN / 512, "without unmap the blocks stay");
        rig.ok(Op::WriteZeroes { offset: 0, len: LEN, unmap: true, fua: true });
        assert_eq!(blocks(), 0);
        assert_eq!(std::fs::metadata(&path).expect("it is there").len(), LEN);
    }
}

/// Zeroes over a hole leave it one, where blocks may be given back.
#[test]
fn zeroes_over_a_hole_take_no_blocks() {
    use std::os::unix::fs::MetadataExt;
    for kind in engines() {
        for cache in [CacheMode::Writeback, CacheMode::None] {
            let folder = folder();
            let path = folder.path().join("image");
            let options = FileOptions { size: Some(LEN), cache, ..FileOptions::new(&path) };
            let image = FileDisk::open(options).expect("the image opens");
            let mut rig = Rig::new(image, Lane::new(kind).expect("the engine starts"));
            rig.ok(Op::WriteZeroes { offset: 0, len: LEN, unmap: true, fua: true });
            rig.ok(Op::Discard { offset: 0, len: LEN });
            rig.ok(Op::Flush);
            assert_eq!(std::fs::metadata(&path).expect("it is there").blocks(), 0);
        }
    }
}

/// discard=ignore: nothing is given back, neither by Discard, which changes nothing, nor by zeroes.
#[test]
fn an_image_that_keeps_its_blocks() {
    use std::os::unix::fs::MetadataExt;
    for kind in engines() {
        let folder = folder();
        let path = folder.path().join("image");
        let options = FileOptions { size: Some(LEN), unmap: false, ..FileOptions::new(&path) };
        let image = FileDisk::open(options).expect("the image opens");
        assert!(!image.unmaps());
        let mut rig = Rig::new(image, Lane::new(kind).expect("the engine starts"));
        rig.ok(Op::Write { offset: 0, buf: pool(vec![1; LEN as usize]), fua: true });
        rig.ok(Op::Discard { offset: 0, len: LEN });
        assert!(rig.read(0, LEN as usize) == vec![1; LEN as usize]);
        rig.ok(Op::WriteZeroes { offset: 0, len: LEN, unmap: true, fua: true });
        assert!(rig.read(0, LEN as usize) == vec![0; LEN as usize]);
        assert!(std::fs::metadata(&path).expect("it is there").blocks() >= LEN / 512);
    }
}

/// What is done through a disk is in the file, and the other way round.
#[test]
fn the_file_is_the_image() {
    for kind in engines() {
        let folder = folder();
        let path = folder.path().join("image");
        let mut rig = Rig::new(raw(&path), Lane::new(kind).expect("the engine starts"));
        rig.ok(Op::Write { offset: 1000, buf: guest(b"from the guest", &[3]), fua: false });
        let mut file =
            std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("the file opens");
        let mut seen = [0; 14];
        file.seek(SeekFrom::Start(1000)).expect("it seeks");
        file.read_exact(&mut seen).expect("it reads");
        assert_eq!(&seen, b"from the guest");
        file.write_all(b"from outside").expect("it writes");
        assert_eq!(rig.read(1014, 12), b"from outside");
    }
}

/// A hung read holds its buffer and nothing else; when the gate opens, it ends.
#[test]
fn a_stalled_read_waits_for_its_gate() {
    for kind in engines() {
        let folder = folder();
        let gate = Gate::new();
        let image: SharedDisk = Arc::new(raw(&folder.path().join("image")));
        let stall = Stall::over(image, gate.clone(), |op| matches!(op, Op::Read { .. }));
        let mut rig = Rig::new(stall, Lane::new(kind).expect("the engine starts"));
        let read = rig.start(Op::Read { offset: 0, buf: pool(vec![1; 512]) });
        rig.ok(Op::Write { offset: 0, buf: pool(vec![7; 512]), fua: true });
        rig.turn(Some(Duration::from_millis(20)));
        assert!(rig.take(read).is_none());
        assert_eq!((rig.engine.in_flight(), gate.held()), (1, 1));
        let opener = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            gate.open();
        });
        let done = loop {
            rig.engine.wait(None);
            rig.poll();
            if let Some(done) = rig.take(read) {
                break done;
            }
        };
        opener.join().expect("the gate opens");
        assert_eq!(bytes_of(&done.buf.expect("the buffer is back")), [7; 512]);
        assert_eq!(rig.engine.in_flight(), 0);
    }
}

/// Memory taken from a hung read is not written when the read ends after all, and the read says so.
#[test]
fn a_stalled_read_of_unmapped_memory() {
    for kind in engines() {
        let folder = folder();
        let gate = Gate::new();
        let image: SharedDisk = Arc::new(raw(&folder.path().join("image")));
        let stall = Stall::over(image, gate.clone(), |op| matches!(op, Op::Read { .. }));
        let mut rig = Rig::new(stall, Lane::new(kind).expect("the engine starts"));
        rig.ok(Op::Write { offset: 0, buf: pool(vec![7; 4096]), fua: false });
        let mut guest = Guest::new(0, 4096);
        let mut buf = GuestBuf::default();
        guest.dma().append(0, 4096, Access::Write, &mut buf).expect("the page is mapped");
        let read = rig.start(Op::Read { offset: 0, buf: IoBuf::Guest(buf) });
        rig.poll();
        let unmapping = guest.space.unmap(0, 4096).expect("it was mapped");
        assert!(!unmapping.released());
        unmapping.revoke();
        gate.open();
        let completion = rig.finish(read);
        assert!(matches!(completion.result, Err(DiskError::GuestMemory)));
        assert_eq!(guest.bytes(0, 4096), [0; 4096]);
        drop(completion);
        assert!(unmapping.released());
    }
}
