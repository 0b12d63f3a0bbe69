//! Rings, PRP and SGL walks, and a whole command.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use vfio_user_nvme::disk::LaneKind;
use vfio_user_nvme::disk::MemoryDisk;
use vfio_user_nvme::memory::{Access, prp, sgl};
use vfio_user_nvme::nvme_ctrl::{CompletionQueue, Post, SubmissionQueue};
use vfio_user_nvme::spec::Status;

use crate::lone::{self, CQ, DATA, ENTRIES, Guest, Host, SQ};

/// Where PRP and SGL lists lie.
const LIST: u64 = 0x3_0000;

/// An SQE fetched, and a CQE posted to a host that has taken the one before.
pub fn rings(criterion: &mut Criterion) {
    let guest = Guest::new();
    let map = guest.map();
    let mut group = criterion.benchmark_group("ring");
    let mut sq = SubmissionQueue::new(1, 1, SQ, ENTRIES.into());
    group.bench_function("fetch", |b| b.iter(|| black_box(sq.fetch(&map).expect("the queue is there"))));
    let mut cq = CompletionQueue::new(1, Some(1), CQ, ENTRIES.into());
    let (mut cid, mut head) = (0_u16, 0);
    group.bench_function("post", |b| {
        b.iter(|| {
            cid = cid.wrapping_add(1);
            assert!(cq.reserve());
            let post = Post { sqid: 1, sqhd: 0, cid, status: Status::SUCCESS, dw0: 0 };
            cq.post(&map, black_box(&post)).expect("the queue is there");
            head = (head + 1) % ENTRIES;
            cq.set_head(head).expect("it was posted");
        });
    });
    group.finish();
}

/// Guest addresses to a buffer: scattered pages, no two of them neighbours.
pub fn walks(criterion: &mut Criterion) {
    let guest = Guest::new();
    let map = guest.map();
    let page = |n: u64| DATA + 8192 * n;
    let entries: Vec<u8> = (1..32).flat_map(|n| page(n).to_le_bytes()).collect();
    guest.put(LIST, &entries);
    let mut group = criterion.benchmark_group("prp");
    for (name, len, prp2) in [("4k", 4 << 10, 0), ("8k", 8 << 10, page(1)), ("128k", 128 << 10, LIST)] {
        group.bench_function(name, |b| {
            b.iter(|| prp::walk(&map, black_box(page(0)), prp2, len, 4096, Access::Write).expect("a buffer"));
        });
    }
    group.finish();
    let descriptor = |address: u64, len: u32, kind: u8| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[15] = kind << 4;
        bytes
    };
    let blocks: Vec<u8> = (0..32).flat_map(|n| descriptor(page(n), 4096, 0)).collect();
    guest.put(LIST, &blocks);
    let mut group = criterion.benchmark_group("sgl");
    let one = descriptor(page(0), 4096, 0);
    let segment = descriptor(LIST, 32 * 16, 3);
    for (name, len, first) in [("4k", 4 << 10, one), ("128k", 128 << 10, segment)] {
        group.bench_function(name, |b| {
            b.iter(|| sgl::walk(&map, black_box(first), len, Access::Write).expect("a buffer"));
        });
    }
    group.finish();
}

/// A turn of a worker with so many 4 KiB commands, from doorbell to completion; the host's own part is not
/// timed.
pub fn dispatch(criterion: &mut Criterion) {
    const LEN: u64 = 8 << 20;
    let mut host = Host::new(Arc::new(MemoryDisk::new(LEN).expect("memory")), LaneKind::Auto);
    for _ in 0..LEN / 4096 / 16 {
        host.submit(lone::WRITE, 32);
        while host.turn() {}
        assert_eq!(host.reap(), 32);
    }
    let mut group = criterion.benchmark_group("dispatch");
    for (name, opc) in [("read 4k", lone::READ), ("write 4k", lone::WRITE)] {
        for depth in [1, 32] {
            group.throughput(Throughput::Elements(depth.into()));
            group.bench_function(format!("{name} x {depth}"), |b| {
                b.iter_custom(|rounds| {
                    let mut spent = std::time::Duration::ZERO;
                    for _ in 0..rounds {
                        host.submit(opc, depth);
                        let start = std::time::Instant::now();
                        while host.turn() {}
                        spent += start.elapsed();
                        assert_eq!(host.reap(), depth);
                    }
                    spent
                });
            });
        }
    }
    group.finish();
}
