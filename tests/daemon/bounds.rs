//! Commands that take long, or memory, beside short ones of another queue.

use std::time::{Duration, Instant};

use crate::host::data::{SGL_DATA, SGL_LAST, descriptor};
use crate::host::nvme::{Range, Sqe, io};
use crate::host::*;

const MIB: u64 = 1 << 20;

/// The longest list of pieces that is followed, and one that is not: of pieces of 128 bytes, none beside another.
const PIECES: u64 = 4096;
const TOO_MANY: u64 = 60_000;

/// A device with 32 MiB of memory, all written, and as much of a file; and a host with three queues.
fn setup() -> (Daemon, Host, [Ns; 2]) {
    let device = Daemon::start(
        "--nvme-ns drive=memory,size=32M,msrc=255 --nvme-ns drive={}/file.img,size=32M,msrc=255",
    );
    let mut host = Host::attach(&device);
    host.set_queue_count(3);
    for (qid, size) in [(1, 1024), (2, 1024), (3, 64)] {
        host.create_cq(qid, size, Some(qid));
        host.create_sq(qid, size, qid);
    }
    let mut memory = Ns::identify(&mut host, 1);
    let file = Ns::facts(&mut host, 2);
    host.fill(3, &mut memory, 7);
    (device, host, [memory, file])
}

/// A list of `pieces` pieces, and a Read of as many blocks as they have, or of one.
fn scattered(host: &mut Host, ns: &Ns, pieces: u64, blocks: u32) -> Sqe {
    let data = host.ram.alloc(256 * pieces.min(PIECES), 4096);
    let list = host.ram.alloc(16 * pieces, 4096);
    let bytes: Vec<u8> = (0..pieces)
        .flat_map(|n| descriptor(data + n % PIECES * 256, if blocks > 1 { 128 } else { 0 }, SGL_DATA))
        .collect();
    host.ram.write(list, &bytes);
    let data = Data { pieces: Vec::new(), dptr: descriptor(list, bytes.len() as u32, SGL_LAST), psdt: 1 };
    Host::rw(io::READ, ns, 0, blocks).data(&data)
}

/// What takes long or much, one of each kind.
fn heavy(host: &mut Host, [memory, file]: &[Ns; 2]) -> Vec<(&'static str, Sqe)> {
    let blocks = memory.nsze as u32;
    let ranges: Vec<u8> = (0..256).flat_map(|_| [0, blocks, 0, 0]).flat_map(u32::to_le_bytes).collect();
    let all = host.ram.pages(1);
    host.ram.write(all, &ranges);
    // Each block goes somewhere else, half of them up and half of them down.
    let ranges: Vec<Range> = (0..256).map(|n| Range::new((n * 167 + 5) % 256 * 128, 128)).collect();
    let bytes: Vec<u8> = ranges.iter().flat_map(|range| range.bytes(0)).collect();
    let list = host.ram.pages(2);
    host.ram.write(list, &bytes);
    let buf = Data::prp(&mut host.ram, 512 << 10);
    let zeroes = |flags: u32| Sqe::new(io::WRITE_ZEROES).nsid(1).lba(0, blocks).cdw(12, 0xffff | flags);
    vec![
        ("Write Zeroes", zeroes(0)),
        ("Write Zeroes with deallocation", zeroes(1 << 25)),
        ("Dataset Management", Sqe::new(io::DSM).nsid(1).cdw(10, 255).cdw(11, 4).prp(all, 0)),
        ("Copy in memory", nvme::copy(1, 0, 256, 0).prp(list, list + 4096)),
        ("Copy in a file", nvme::copy(2, 0, 256, 0).prp(list, list + 4096)),
        ("Compare", Host::rw(io::COMPARE, memory, 0, 1024).data(&buf)),
        ("Verify", Sqe::new(io::VERIFY).nsid(2).lba(0, blocks)),
        ("Read of many pieces of memory", scattered(host, memory, PIECES, 1024)),
        ("Read of many pieces of a file", scattered(host, file, PIECES, 1024)),
        ("Read of too many pieces", scattered(host, memory, TOO_MANY, 1)),
        ("Read", Host::rw(io::READ, memory, 0, 1024).data(&buf)),
    ]
}

/// Whatever one queue is full of: another one's short reads of memory are done long before all that.
#[test]
fn a_queue_full_of_long_commands_leaves_room_for_another() {
    let (device, mut host, nss) = setup();
    let page = host.ram.pages(1);
    let short = Host::rw(io::READ, &nss[0], 0, 1).prp(page, 0);
    for (what, sqe) in heavy(&mut host, &nss) {
        let before = device.resident();
        for _ in 0..300 {
            host.queue(1, sqe);
        }
        host.ring_sq(1);
        let (mut left, mut reads, begin) = (300, 0, Instant::now());
        while left > 0 && reads < 50 {
            host.exec(3, short).ok();
            reads += 1;
            left -= host.drain(1);
        }
        // Some are over so soon that a busy host gets few reads in; but then none of those waited.
        let soon = begin.elapsed() < Duration::from_secs(1);
        assert!(reads >= 10 || soon, "{what}: only {reads} reads beside 300 of them");
        let more = device.resident().saturating_sub(before);
        assert!(more < 160 * MIB, "{what}: {} MiB more", more >> 20);
        // What is left ends with its queue, early where it takes long.
        host.delete_sq(1).ok();
        host.delete_cq(1).ok();
        host.create_cq(1, 1024, Some(1));
        host.create_sq(1, 1024, 1);
    }
}

/// The same for as long as `STORM_SECONDS` says (600 unless it does), two queues full of everything, and with figures:
/// `cargo test --release --test daemon storm -- --ignored --nocapture`.
#[test]
#[ignore = "takes ten minutes"]
fn storm() {
    let seconds = std::env::var("STORM_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(600);
    let (device, mut host, nss) = setup();
    let page = host.ram.pages(1);
    let short = [0, 1].map(|at: usize| Host::rw(io::READ, &nss[at], 0, 1).prp(page, 0));
    let heavy = heavy(&mut host, &nss);
    let mut rng = Rng::new(9);
    let begin = Instant::now();
    let (mut took, mut ended) = ([Vec::new(), Vec::new()], 0_u64);
    let (mut warm, mut most, mut said) = (0, 0, begin);
    while begin.elapsed() < Duration::from_secs(seconds) {
        for qid in 1..=2 {
            while host.outstanding(qid) < 900 {
                let sqe = heavy[rng.below(heavy.len() as u64) as usize].1;
                host.queue(qid, sqe);
            }
            host.ring_sq(qid);
        }
        for (at, sqe) in short.iter().enumerate() {
            let start = Instant::now();
            host.exec(3, *sqe).ok();
            took[at].push(start.elapsed());
        }
        for qid in 1..=2 {
            ended += host.drain(qid) as u64;
            host.forget_taken(qid);
        }
        most = most.max(device.resident());
        if said.elapsed() > Duration::from_secs(10) {
            said = Instant::now();
            if warm == 0 {
                warm = most;
            }
            eprintln!("{:4} s: {ended} ended, {} MiB resident", begin.elapsed().as_secs(), most >> 20);
        }
    }
    for (what, took) in ["memory", "file"].into_iter().zip(&mut took) {
        took.sort();
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
        eprintln!(
            "{} short reads of {what}: median {:?}, p99 {:?}, p99.9 {:?}, most {:?}",
            took.len(),
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
        assert!(at(0.999) < Duration::from_millis(100));
    }
    eprintln!("{ended} long commands; {} MiB after 10 s, {} MiB at most", warm >> 20, most >> 20);
    assert!(warm == 0 || most < warm + 32 * MIB, "memory grows");
}
