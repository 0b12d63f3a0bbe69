//! Creating, filling, wrapping and deleting queues.

use std::time::Duration;

use crate::host::client::{BAR0, NO_REPLY, access, cmd, message, unmap_body};
use crate::host::ctrl::reg;
use crate::host::nvme::{admin, io, st};
use crate::host::storm::Storm;
use crate::host::*;

const SOON: Duration = Duration::from_millis(20);

#[test]
fn creation_errors() {
    let d = Daemon::start("");
    let mut h = Host::attach(&d);
    let pairs = (h.get_feature(0x07).ok().dw0 & 0xffff) as u16 + 1;
    let mqes = (h.client.r64(reg::CAP) & 0xffff) as u16;
    let page = h.ram.pages(32);
    let vectors = h.client.irq_info(2).count;
    h.set_queue_count(2);

    let cq = |qid, entries: u32, base, cdw11| {
        Sqe::new(admin::CREATE_CQ)
            .prp(base, 0)
            .cdw(10, (entries.wrapping_sub(1) & 0xffff) << 16 | u32::from(qid))
            .cdw(11, cdw11)
    };
    let sq = |qid, entries: u32, base, cdw11| {
        let mut s = cq(qid, entries, base, cdw11);
        s.0[0] = admin::CREATE_SQ;
        s
    };
    for (s, want, what) in [
        (cq(0, 8, page, 1), st::QID_INVALID, "QID 0"),
        (cq(pairs + 1, 8, page, 1), st::QID_INVALID, "QID too large"),
        (cq(0xffff, 8, page, 1), st::QID_INVALID, "QID FFFFh"),
        (cq(1, 1, page, 1), st::QUEUE_SIZE, "one entry"),
        (cq(1, u32::from(mqes) + 2, page, 1), st::QUEUE_SIZE, "MQES + 1"),
        (cq(1, 0x1_0000, page, 1), if mqes == 0xffff { 0 } else { st::QUEUE_SIZE }, "64 Ki"),
        (cq(1, 8, page + 8, 1), st::PRP_OFFSET, "unaligned"),
        (cq(1, 8, page, 0), st::INVALID_FIELD, "PC 0"),
        (cq(1, 8, page, vectors << 16 | 3), st::VECTOR_INVALID, "vector past the table"),
        (cq(1, 8, page, 0xffff << 16 | 3), st::VECTOR_INVALID, "vector FFFFh"),
        (cq(1, 8, page, 1), st::OK, "good"),
        (cq(1, 8, page, 1), st::QID_INVALID, "in use"),
        (sq(0, 8, page, 1 << 16 | 1), st::QID_INVALID, "SQID 0"),
        (sq(pairs + 1, 8, page, 1 << 16 | 1), st::QID_INVALID, "SQID too large"),
        (sq(1, 1, page, 1 << 16 | 1), st::QUEUE_SIZE, "SQ of one"),
        (sq(1, u32::from(mqes) + 2, page, 1 << 16 | 1), st::QUEUE_SIZE, "SQ MQES + 1"),
        (sq(1, 8, page + 64, 1 << 16 | 1), st::PRP_OFFSET, "SQ unaligned"),
        (sq(1, 8, page, 1 << 16), st::INVALID_FIELD, "SQ PC 0"),
        (sq(1, 8, page, 2 << 16 | 1), st::CQ_INVALID, "CQ not there"),
        (sq(1, 8, page, 1), st::QID_INVALID, "CQ 0"),
        (sq(1, 8, page, 0xffff << 16 | 1), st::QID_INVALID, "CQ out of range"),
        (sq(1, 8, page, 1 << 16 | 1), st::OK, "SQ good"),
        (sq(1, 8, page, 1 << 16 | 1), st::QID_INVALID, "SQ in use"),
    ] {
        h.admin(s).is(want, what);
    }
    let del = |op, qid| Sqe::new(op).cdw(10, qid);
    for (s, want, what) in [
        (del(admin::DELETE_CQ, 1), st::QUEUE_DELETION, "CQ with an SQ"),
        (del(admin::DELETE_CQ, 0), st::QID_INVALID, "CQ 0"),
        (del(admin::DELETE_CQ, 2), st::QID_INVALID, "absent CQ"),
        (del(admin::DELETE_CQ, 0xffff), st::QID_INVALID, "CQ FFFFh"),
        (del(admin::DELETE_SQ, 0), st::QID_INVALID, "SQ 0"),
        (del(admin::DELETE_SQ, 2), st::QID_INVALID, "absent SQ"),
        (del(admin::DELETE_SQ, 1), st::OK, "SQ"),
        (del(admin::DELETE_SQ, 1), st::QID_INVALID, "SQ again"),
        (del(admin::DELETE_CQ, 1), st::OK, "CQ"),
        (del(admin::DELETE_CQ, 1), st::QID_INVALID, "CQ again"),
    ] {
        h.admin(s).is(want, what);
    }
    assert_eq!(h.csts(), 1);
}

#[test]
fn create_use_delete_again_and_again() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::attach(&d);
    h.set_queue_count(4);
    let mut ns = Ns::identify(&mut h, 1);
    let before = (d.threads(), d.open_files());
    for round in 0..60u16 {
        let mark = h.ram.mark();
        let (cq, sq) = (1 + round % 4, 1 + round / 4 % 4);
        h.create_cq(cq, 2 + round, None);
        h.create_sq(sq, 2 + round, cq);
        for i in 0..5 {
            h.write(sq, &mut ns, u64::from(round * 5 + i), 1, 3);
        }
        h.delete_sq(sq).ok();
        h.delete_cq(cq).ok();
        h.ram.release(mark);
    }
    assert_eq!((d.threads(), d.open_files()), before, "threads, descriptors");
    h.create_cq(1, 8, None);
    h.create_sq(1, 8, 1);
    ns.verify(&mut h, 1);
}

#[test]
fn deepest_queue() {
    let d = Daemon::start("--nvme-ns drive=memory,size=4M");
    let mut h = Host::attach(&d);
    let size = (h.client.r64(reg::CAP) & 0xffff) as u16 + 1;
    h.set_queue_count(1);
    h.create_cq(1, size, Some(1));
    h.create_sq(1, size, 1);
    let mut ns = Ns::identify(&mut h, 1);
    h.fill(1, &mut ns, 1);
    // All but one entry in one doorbell, three times: two wraps.
    let data = Data::prp(&mut h.ram, ns.lba);
    for _ in 0..3 {
        let cids: Vec<u16> = (0..size - 1)
            .map(|i| {
                let s = Host::rw(io::READ, &ns, u64::from(i) % ns.nsze, 1).data(&data);
                h.queue(1, s)
            })
            .collect();
        h.ring_sq(1);
        for cid in cids {
            h.wait(1, cid).ok();
        }
    }
    ns.verify(&mut h, 1);
}

/// Queue memory that crosses a border between two DMA maps.
#[test]
fn queue_across_two_maps() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::attach(&d);
    h.set_queue_count(1);
    let border = h.ram.pieces[1].iova;
    h.create_cq_at(1, 512, None, border - 4096);
    let border = h.ram.pieces[2].iova;
    h.create_sq_at(1, 128, 1, border - 4096);
    let mut ns = Ns::identify(&mut h, 1);
    for i in 0..600 {
        h.write(1, &mut ns, i % 250, 1, i);
    }
    ns.verify(&mut h, 1);
}

/// CQ of two entries has room for one completion. The host does not take it: no second one may come.
#[test]
fn full_completion_queue_holds_back() {
    for image in ["drive=memory", "drive={}/x.img"] {
        let d = Daemon::start(&format!("--nvme-ns {image},size=1M"));
        let mut h = Host::attach(&d);
        h.set_queue_count(3);
        h.create_cq(1, 2, None);
        h.create_sq(1, 64, 1);
        h.create_cq(2, 3, None);
        h.create_sq(2, 64, 2);
        h.create_sq(3, 64, 2);
        let mut ns = Ns::identify(&mut h, 1);
        h.fill(1, &mut ns, 9);
        for (cq, sqs) in [(1u16, vec![1u16]), (2, vec![2, 3])] {
            let room = usize::from(h.cqs[&cq].ring.size) - 1;
            let mut want = Vec::new();
            for i in 0..60u64 {
                let sq = sqs[i as usize % sqs.len()];
                let data = Data::prp(&mut h.ram, ns.lba);
                want.push((sq, h.queue(sq, Host::rw(io::READ, &ns, i, 1).data(&data)), i, data));
            }
            for &sq in &sqs {
                h.ring_sq(sq);
            }
            // Entries there that nobody has given back: as many as fit, and no more however long we wait.
            let mut seen = 0;
            let start = std::time::Instant::now();
            while seen < room {
                seen += usize::from(h.take(cq).is_some());
                assert!(start.elapsed() < DEADLINE, "{seen} of {room} in CQ {cq}");
            }
            std::thread::sleep(SOON);
            assert!(!h.pending(cq), "CQ {cq} overflows");
            h.ring_cq(cq);
            for (sq, cid, i, data) in want {
                h.wait(sq, cid).ok();
                assert_eq!(data.get(&h.ram), ns.at(i, 1));
            }
        }
    }
}

/// While its CQ is full, other queues and the admin queue go on.
#[test]
fn full_completion_queue_blocks_nobody_else() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::attach(&d);
    h.set_queue_count(2);
    h.create_cq(1, 2, None);
    h.create_sq(1, 32, 1);
    h.create_cq(2, 32, None);
    h.create_sq(2, 32, 2);
    let mut ns = Ns::identify(&mut h, 1);
    let held: Vec<u16> = (0..20).map(|_| h.submit(1, Sqe::new(io::FLUSH).nsid(1))).collect();
    for i in 0..100 {
        h.write(2, &mut ns, i, 1, i);
        h.get_feature(0x07).ok();
    }
    // And such a queue can be deleted.
    h.delete_sq(1).ok();
    h.delete_cq(1).ok();
    assert_eq!(held.len(), 20);
    h.create_cq(1, 16, None);
    h.create_sq(1, 16, 1);
    ns.verify(&mut h, 1);
}

/// Two-entry queues everywhere: every command wraps, phase and SQHD at each step.
#[test]
fn tiny_queues_wrap() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::attach(&d);
    h.set_queue_count(3);
    for (q, sq, cq) in [(1, 2, 2), (2, 3, 2), (3, 2, 3)] {
        h.create_cq(q, cq, Some(q));
        h.create_sq(q, sq, q);
    }
    let mut ns = Ns::identify(&mut h, 1);
    for i in 0..300 {
        h.write(1 + (i % 3) as u16, &mut ns, i % 250, 1, i);
    }
    ns.verify(&mut h, 2);
}

#[test]
fn several_sqs_on_one_cq() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M --nvme-ns drive={}/x.img,size=1M");
    let mut h = Host::attach(&d);
    h.set_queue_count(5);
    h.create_cq(3, 7, Some(2));
    h.create_cq(1, 64, None);
    for (sq, size, cq) in [(1, 2, 3), (2, 9, 3), (3, 64, 3), (4, 5, 1), (5, 33, 1)] {
        h.create_sq(sq, size, cq);
    }
    let mut nss = [Ns::identify(&mut h, 1), Ns::identify(&mut h, 2)];
    let s = Storm {
        sqs: &[1, 2, 3, 4, 5],
        commands: 1500,
        depth: 60,
        max: 16 << 10,
        sgl: true,
        copy: true,
        cross: false,
    };
    storm::run(&mut h, &mut nss, &s, &mut Rng::new(31));
    for ns in &mut nss {
        ns.verify(&mut h, 3);
    }
}

/// One SQ that is always full must not starve the others of its CQ.
#[test]
fn a_busy_queue_starves_nobody() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::attach(&d);
    h.set_queue_count(2);
    h.create_cq(1, 4, None);
    h.create_sq(1, 256, 1);
    h.create_sq(2, 4, 1);
    let ns = Ns::facts(&mut h, 1);
    let data = Data::prp(&mut h.ram, ns.lba);
    let read = Host::rw(io::READ, &ns, 0, 1).data(&data);
    for _ in 0..200 {
        h.queue(1, read);
    }
    h.ring_sq(1);
    let cid = h.submit(2, read);
    let mut others = 0;
    loop {
        match h.take(1) {
            Some(c) if c.sqid == 2 => break assert_eq!(c.cid, cid),
            Some(_) => others += 1,
            None => std::thread::sleep(Duration::from_micros(20)),
        }
        h.ring_cq(1);
        assert!(others < 100, "SQ 2 waits behind all of SQ 1");
    }
    h.ring_cq(1);
}

/// Every queue with its own vector, and no vector fires for another's completions.
#[test]
fn interrupts_go_where_they_belong() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::attach(&d);
    h.set_queue_count(3);
    h.create_cq(1, 16, Some(1));
    h.create_cq(2, 16, Some(3));
    h.create_cq(3, 16, None);
    for q in 1..=3 {
        h.create_sq(q, 16, q);
    }
    std::thread::sleep(SOON);
    for v in 0..h.vectors.len() {
        h.fired(v);
    }
    for (q, vector) in [(1u16, Some(1)), (2, Some(3)), (3, None)] {
        let cid = h.submit(q, Sqe::new(io::FLUSH).nsid(1));
        let start = std::time::Instant::now();
        while !h.pending(q) {
            assert!(start.elapsed() < DEADLINE);
        }
        if let Some(v) = vector {
            while h.fired(v) == 0 {
                assert!(start.elapsed() < DEADLINE, "SQ {q}: no interrupt");
            }
        }
        std::thread::sleep(SOON);
        for v in 0..h.vectors.len() {
            assert_eq!(h.fired(v), 0, "SQ {q}, vector {v}");
        }
        h.drain(q);
        h.try_wait(q, cid, SOON).unwrap().ok();
    }
}

#[test]
fn deleting_a_queue_with_commands_in_flight() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=32M");
    let mut h = Host::attach(&d);
    h.set_queue_count(2);
    let ns = Ns::facts(&mut h, 1);
    let len = 128 * 1024;
    let blocks = (len / ns.lba) as u32;
    for round in 0..10 {
        let mark = h.ram.mark();
        h.create_cq(1, 64, None);
        h.create_sq(1, 64, 1);
        let bufs: Vec<Data> = (0..60).map(|_| Data::prp(&mut h.ram, len)).collect();
        for (i, b) in bufs.iter().enumerate() {
            let slba = ((i + round) as u64 * 3 % 200) * u64::from(blocks);
            h.queue(1, Host::rw(io::READ, &ns, slba, blocks).data(b));
        }
        h.ring_sq(1);
        let del = Sqe::new(admin::DELETE_SQ).cdw(10, 1);
        h.admin(del).ok();
        // What completes did so before the Delete: with success or "aborted, SQ deleted".
        let mut n = 0;
        while let Some(c) = h.take(1) {
            assert!(matches!(c.code(), 0 | 0x8), "{c:?}");
            n += 1;
        }
        assert!(n <= 60);
        let fill = vec![0x33; len];
        for b in &bufs {
            b.put(&h.ram, &fill);
        }
        std::thread::sleep(SOON);
        assert!(!h.pending(1), "a CQE after the queue's end");
        for b in &bufs {
            assert!(b.get(&h.ram) == fill, "data after the queue's end");
        }
        h.sqs.remove(&1);
        h.forget(1);
        h.delete_cq(1).ok();
        h.ram.release(mark);
    }
}

/// Admin work that needs the worker (fences, queues) while it comes and goes to sleep: each answer comes at once. A
/// lost wake-up shows as a wait for some time-out.
#[test]
fn no_message_to_a_worker_is_lost() {
    for aio in crate::engines() {
        let d = Daemon::start(&format!("--nvme serial=x,aio={aio} --nvme-ns drive={{}}/x.img,size=1M"));
        let mut h = Host::attach(&d);
        h.set_queue_count(2);
        h.create_cq(1, 64, Some(1));
        h.create_sq(1, 64, 1);
        let ns = Ns::facts(&mut h, 1);
        let data = Data::prp(&mut h.ram, ns.lba);
        let extra = Ram::new(0x20_0000_0000, 1 << 16);
        let piece = extra.pieces[0];
        let base = h.ram.pages(1);
        for i in 0..400u64 {
            // Something to be awake for, and to fall asleep after.
            let cid = h.submit(1, Host::rw(io::READ, &ns, i % 8, 1).data(&data));
            if i % 3 == 0 {
                std::thread::sleep(Duration::from_micros(i));
            }
            let start = std::time::Instant::now();
            let a = h.client.dma_map(piece.iova, piece.len, 3, Some((extra.fd(), piece.offset)));
            assert!(matches!(a, Answer::Done(..)));
            let a = h.client.dma_unmap(piece.iova, piece.len);
            assert!(matches!(a, Answer::Done(..)));
            h.admin(Host::create_cq_sqe(2, 4, base, None)).ok();
            h.admin(Host::create_sq_sqe(2, 4, base, 2)).ok();
            h.admin(Sqe::new(admin::DELETE_SQ).cdw(10, 2)).ok();
            h.admin(Sqe::new(admin::DELETE_CQ).cdw(10, 2)).ok();
            let took = start.elapsed();
            assert!(took < Duration::from_secs(2), "round {i}: {took:?}");
            h.wait(1, cid).ok();
        }
        assert_eq!(h.csts(), 1);
    }
}

/// The same with a fence that meets the worker at every moment of a short turn: doorbell, a few reads of a register to
/// pass the time, unmap, all in one packet.
#[test]
fn a_fence_at_any_moment_is_answered() {
    for aio in crate::engines() {
        let d = Daemon::start(&format!("--nvme serial=x,aio={aio} --nvme-ns drive=memory,size=1M"));
        let mut h = Host::attach(&d);
        h.set_queue_count(1);
        h.create_cq(1, 64, None);
        h.create_sq(1, 64, 1);
        let ns = Ns::facts(&mut h, 1);
        let data = Data::prp(&mut h.ram, ns.lba);
        let extra = Ram::new(0x20_0000_0000, 1 << 16);
        let piece = extra.pieces[0];
        let mut rng = Rng::new(17);
        for i in 0..500 {
            let a = h.client.dma_map(piece.iova, piece.len, 3, Some((extra.fd(), piece.offset)));
            assert!(matches!(a, Answer::Done(..)));
            let cid = h.queue(1, Host::rw(io::READ, &ns, 0, 1).data(&data));
            let mut body = access(BAR0, reg::DOORBELLS + 8, 4).to_vec();
            body.extend(u32::from(h.sqs[&1].ring.tail).to_le_bytes());
            let mut packet = message(0, cmd::REGION_WRITE, NO_REPLY, &body);
            let reads = rng.below(30);
            for _ in 0..reads {
                packet.extend(message(1, cmd::REGION_READ, 0, &access(BAR0, reg::VS, 4)));
            }
            packet.extend(message(2, cmd::DMA_UNMAP, 0, &unmap_body(piece.iova, piece.len)));
            let start = std::time::Instant::now();
            h.client.send_raw(&packet, &[]).unwrap();
            for _ in 0..=reads {
                assert_eq!(h.client.recv().unwrap().unwrap().error, None);
            }
            let took = start.elapsed();
            assert!(took < Duration::from_secs(2), "round {i}: {took:?}");
            h.wait(1, cid).ok();
        }
    }
}
