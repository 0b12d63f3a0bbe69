//! The daemon's own life: clients come and go, signals, memory and images that vanish.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::engines;
use crate::host::ctrl::{CFS, reg};
use crate::host::nvme::{io, st};
use crate::host::storm::Storm;
use crate::host::*;

fn light<'a>(commands: usize) -> Storm<'a> {
    Storm { sqs: &[1, 2], commands, depth: 40, max: 32 << 10, sgl: true, copy: true, cross: false }
}

/// Reads that are rung for once, to their end.
fn read_together(h: &mut Host, ns: &Ns, count: u64) {
    let mark = h.ram.mark();
    let data = Data::prp(&mut h.ram, ns.lba);
    let cids: Vec<u16> = (0..count).map(|i| h.queue(1, Host::rw(io::READ, ns, i, 1).data(&data))).collect();
    h.ring_sq(1);
    for cid in cids {
        h.wait(1, cid).ok();
    }
    h.ram.release(mark);
}

#[test]
fn disconnect_and_reconnect() {
    let d = Daemon::start(
        "--nvme-ns drive=memory,size=1M --nvme-ns drive={}/x.img,size=1M,logical_block_size=4096",
    );
    let mut shadows: Option<Vec<Ns>> = None;
    let mut rng = Rng::new(12);
    let mut files = 0;
    for round in 0..8 {
        let mut h = Host::cold(&d.socket());
        assert_eq!(h.csts(), 0, "round {round}: the controller was reset");
        assert_eq!(h.client.r32(reg::CC), 0);
        h.enable();
        h.io_queues(2, 32);
        match round {
            1 => files = d.open_files(),
            7 => assert!(d.open_files() <= files, "descriptors pile up"),
            _ => {}
        }
        let mut nss =
            shadows.take().unwrap_or_else(|| vec![Ns::identify(&mut h, 1), Ns::identify(&mut h, 2)]);
        for ns in &mut nss {
            ns.verify(&mut h, 1);
        }
        storm::run(&mut h, &mut nss, &light(200), &mut rng);
        if round == 0 {
            // What a worker makes late, for reads of a page cache that wait together, is there from now on. After misses
            // one read in 32 is tried.
            for _ in 0..8 {
                read_together(&mut h, &nss[1], 16);
            }
        }
        if round % 2 == 0 {
            // As QEMU: it just goes. What is in flight reads only.
            for i in 0..20 {
                let data = Data::prp(&mut h.ram, 4096);
                let s = Host::rw(io::READ, &nss[1], i, 1).data(&data);
                h.queue(1, s);
            }
            h.ring_sq(1);
        } else {
            h.disable();
        }
        drop(h);
        shadows = Some(nss);
    }
}

/// A client that leaves in the middle of its commands: what its queues suffered is no concern of the next one.
#[test]
fn nothing_of_a_client_reaches_the_next() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M --nvme-ns drive={}/x.img,size=1M");
    for round in 0..40u64 {
        let mut h = Host::cold(&d.socket());
        assert_eq!(h.csts(), 0, "round {round}");
        h.enable();
        h.io_queues(2, 64);
        let ns = Ns::facts(&mut h, 1 + (round % 2) as u32);
        let data = Data::prp(&mut h.ram, 16 * ns.lba);
        for i in 0..60 {
            h.submit(1 + (i % 2) as u16, Host::rw(io::READ, &ns, i, 16).data(&data));
        }
    }
    let mut h = Host::with_queues(&d, 1, 8);
    let ns = Ns::facts(&mut h, 1);
    std::thread::sleep(Duration::from_millis(20));
    h.read(1, &ns, 0, 1);
    assert_eq!(h.csts(), 1);
}

#[test]
fn sigterm_with_io_in_flight() {
    for aio in engines() {
        let mut d =
            Daemon::start(&format!("--nvme-ns drive={{}}/x.img,size=16M,aio={aio},logical_block_size=4096"));
        let mut h = Host::with_queues(&d, 2, 256);
        let mut ns = Ns::identify(&mut h, 1);
        let mut sent = Vec::new();
        for i in 0..200u64 {
            let bytes = ns.pattern(i * 20, 20, 7);
            let data = Data::prp(&mut h.ram, bytes.len());
            data.put(&h.ram, &bytes);
            let q = 1 + (i % 2) as u16;
            let cid = h.queue(q, Host::rw(io::WRITE, &ns, i * 20, 20).data(&data));
            sent.push((q, cid, i * 20, bytes));
        }
        h.ring_sq(1);
        h.ring_sq(2);
        let start = Instant::now();
        d.stop();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        // Completed means there; not completed means old or new, per block.
        let image = std::fs::read(d.file("x.img")).unwrap();
        for (q, cid, slba, bytes) in sent {
            let got = &image[ns.bytes(slba, 20)];
            if h.try_wait(q, cid, Duration::from_micros(1)).is_some_and(|c| c.status == 0) {
                assert!(got == bytes, "an acknowledged write is not in the image");
                ns.set(slba, &bytes);
            }
            for (g, w) in got.chunks(4096).zip(bytes.chunks(4096)) {
                assert!(g == w || g.iter().all(|&x| x == 0));
            }
        }
    }
}

#[test]
fn sigterm_and_sigint_without_client() {
    for s in [Signal::TERM, Signal::INT] {
        let mut d = Daemon::start("--nvme-ns drive={}/x.img,size=1M");
        d.signal(s);
        assert_eq!(d.wait(Duration::from_secs(5)).code(), Some(0));
        assert!(!d.socket().exists());
    }
}

/// The client learns of the end by the end of the connection.
#[test]
fn sigterm_closes_the_connection() {
    let mut d = Daemon::start("");
    let mut c = d.client();
    d.stop();
    c.wait_closed();
}

#[test]
fn kill_keeps_acknowledged_writes() {
    for aio in engines() {
        let mut d =
            Daemon::start(&format!("--nvme-ns drive={{}}/x.img,size=4M,aio={aio},logical_block_size=512"));
        let mut rng = Rng::new(3);
        let mut ns = None;
        for _ in 0..3 {
            let mut h = Host::with_queues(&d, 2, 64);
            let mut nss = [ns.take().unwrap_or_else(|| Ns::identify(&mut h, 1))];
            nss[0].verify(&mut h, 1);
            // All of them are acknowledged when the storm is over.
            storm::run(&mut h, &mut nss, &light(400), &mut rng);
            d.kill();
            let [mut n] = nss;
            n.verify_image(&d.file("x.img"));
            ns = Some(n);
            d.again();
        }
    }
}

/// Images are kept between daemons; an existing one needs no size.
#[test]
fn image_of_an_earlier_life() {
    let mut d = Daemon::start("--nvme-ns drive={}/x.img,size=1M,logical_block_size=512");
    let mut h = Host::with_queues(&d, 2, 64);
    let mut nss = [Ns::identify(&mut h, 1)];
    storm::run(&mut h, &mut nss, &light(200), &mut Rng::new(6));
    drop(h);
    d.stop();
    let drive = d.file("x.img");
    let d2 = Daemon::start(&format!("--nvme-ns drive={},logical_block_size=4096", drive.display()));
    let mut h = Host::with_queues(&d2, 1, 64);
    let mut ns = Ns::identify(&mut h, 1);
    assert_eq!((ns.lba, ns.nsze), (4096, 256));
    ns.shadow = std::mem::take(&mut nss[0].shadow);
    // What was deallocated block by block is decided by now.
    let raw = std::fs::read(&drive).unwrap();
    for b in &nss[0].trimmed {
        let at = *b as usize * 512;
        ns.shadow[at..at + 512].copy_from_slice(&raw[at..at + 512]);
    }
    ns.verify(&mut h, 1);
}

/// Guest memory whose file shrinks under the daemon: SIGBUS is contained.
#[test]
fn queue_memory_truncated() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    let mut ns = Ns::identify(&mut h, 1);
    h.fill(1, &mut ns, 1);
    for which in 0..3 {
        let extra = Ram::new(0x20_0000_0000, 1 << 20);
        h.client.map_ram(&extra);
        let here = h.ram.pages(2);
        let gone = extra.base();
        // The SQ, the CQ, or the admin queue has lost its memory.
        match which {
            0 | 1 => {
                h.delete_sq(1).ok();
                h.delete_cq(1).ok();
                let (sq, cq) = if which == 0 { (gone, here) } else { (here, gone) };
                h.create_cq_at(1, 8, None, cq);
                h.admin(Host::create_sq_sqe(1, 8, sq, 1)).ok();
                extra.truncate(0);
                h.ram.write(here, &[0; 4096]);
                h.doorbell(2, 1);
            }
            _ => {
                h.disable();
                h.admin_queue();
                h.client.w64(reg::ASQ, gone);
                h.client.w32(reg::CC, ctrl::CC_LINUX | ctrl::CC_EN);
                h.wait_csts_any();
                extra.truncate(0);
                h.doorbell(0, 1);
            }
        }
        h.wait_csts(CFS, CFS);
        for p in &extra.pieces {
            h.client.dma_unmap(p.iova, p.len);
        }
        h.enable();
        h.io_queues(1, 16);
        ns.verify(&mut h, 1);
    }
}

#[test]
fn data_memory_truncated() {
    for aio in engines() {
        let d = Daemon::start(&format!(
            "--nvme-ns drive=memory,size=1M --nvme-ns drive={{}}/x.img,size=1M,aio={aio}"
        ));
        for nsid in [1, 2] {
            let mut h = Host::with_queues(&d, 1, 16);
            let mut ns = Ns::identify(&mut h, nsid);
            h.fill(1, &mut ns, 1);
            let extra = Ram::new(0x20_0000_0000, 1 << 20);
            h.client.map_ram(&extra);
            extra.truncate(0);
            let at = extra.base();
            for op in [io::READ, io::WRITE, io::COMPARE] {
                let s = Host::rw(op, &ns, 3, 1).prp(at, 0);
                let cid = h.submit(1, s);
                // An error status or a fatal controller; not silence, not success, not death.
                let start = Instant::now();
                loop {
                    if let Some(c) = h.try_wait(1, cid, Duration::from_millis(5)) {
                        assert_ne!(c.status, st::OK, "opcode {op:#x}");
                        break;
                    }
                    if h.csts() & CFS != 0 {
                        break;
                    }
                    assert!(start.elapsed() < DEADLINE, "opcode {op:#x}: silence");
                }
                if h.csts() & CFS != 0 {
                    h.enable();
                    h.io_queues(1, 16);
                }
            }
            // The range list of a Copy there.
            let cid = h.submit(1, nvme::copy(nsid, 0, 1, 0).prp(at, 0));
            if let Some(c) = h.try_wait(1, cid, Duration::from_secs(1)) {
                assert_ne!(c.status, st::OK);
            } else {
                assert_ne!(h.csts() & CFS, 0);
            }
            drop(h);
            // The next client finds everything well. Block 3 may have been written with what was there.
            let mut h = Host::with_queues(&d, 1, 16);
            h.write(1, &mut ns, 3, 1, 9);
            ns.verify(&mut h, 1);
        }
    }
}

/// An image that shrinks under the daemon: an error for the blocks that are gone, all others live.
#[test]
fn image_truncated() {
    for aio in engines() {
        let d =
            Daemon::start(&format!("--nvme-ns drive={{}}/x.img,size=1M,aio={aio},logical_block_size=4096"));
        let mut h = Host::with_queues(&d, 1, 16);
        let mut ns = Ns::identify(&mut h, 1);
        h.fill(1, &mut ns, 1);
        let f = std::fs::File::options().write(true).open(d.file("x.img")).unwrap();
        f.set_len(512 << 10).unwrap();
        let data = Data::prp(&mut h.ram, 8 * 4096);
        for (slba, blocks) in [(128, 1), (127, 2), (200, 8), (255, 1)] {
            for op in [io::READ, io::VERIFY, io::COMPARE] {
                let c = h.exec(1, Host::rw(op, &ns, slba, blocks).data(&data));
                assert_ne!(c.status, st::OK, "opcode {op:#x} {slba}+{blocks}");
                assert_ne!(c.code(), st::LBA_RANGE & 0x7ff, "the namespace is as large as ever");
            }
        }
        for at in 0..128 {
            let got = h.read(1, &ns, at, 1);
            ns.check(at, &got);
        }
        assert_eq!(h.csts(), 1);
    }
}

#[test]
fn idle_costs_nothing() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=1M --nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 4, 64);
    let mut nss = [Ns::identify(&mut h, 1), Ns::identify(&mut h, 2)];
    storm::run(&mut h, &mut nss, &light(200), &mut Rng::new(9));
    h.submit(0, Sqe::new(nvme::admin::AER));
    // Until the bounce buffers have been given back, too.
    std::thread::sleep(Duration::from_secs(2));
    let before = d.ticks();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(d.ticks() - before, 0, "clock ticks of an idle daemon");
    for ns in &mut nss {
        ns.verify(&mut h, 1);
    }
}

#[test]
fn sigusr1_tells_the_state() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 2, 64);
    h.submit(0, Sqe::new(nvme::admin::AER));
    let before = d.log().len();
    d.signal(Signal::USR1);
    let start = Instant::now();
    loop {
        let log = d.log()[before..].to_lowercase();
        if ["csts", "cc", "sq", "cq"].iter().all(|w| log.contains(w)) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(2), "no dump: {log}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(h.csts(), 1);
    // Without a client too.
    drop(h);
    d.signal(Signal::USR1);
    Client::attach_when_free(&d.socket());
}

#[test]
fn first_line_is_for_the_person() {
    let d = Daemon::start("");
    let start = Instant::now();
    while d.log().lines().count() == 0 {
        assert!(start.elapsed() < DEADLINE);
    }
    let log = d.log();
    let socket = d.socket();
    assert!(log.contains(socket.to_str().unwrap()), "{log}");
    assert!(log.contains("vfio-user-pci"), "QEMU arguments to paste: {log}");
}
