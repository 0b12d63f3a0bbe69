//! Shadow doorbells, mapped doorbells, and what they cost when nobody rings.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::host::client::BAR0;
use crate::host::ctrl::{CFS, reg};
use crate::host::le::{u16_at, u32_at};
use crate::host::nvme::{self, admin, io, st};
use crate::host::storm::Storm;
use crate::host::*;

const SOON: Duration = Duration::from_millis(30);
const EVENT_BAD_VALUE: u32 = 0x01_01_00;

fn storm<'a>(sqs: &'a [u16], commands: usize) -> Storm<'a> {
    Storm { sqs, commands, depth: 60, max: 32 << 10, sgl: true, copy: true, cross: false }
}

fn config(shadow: u64, events: u64) -> Sqe {
    Sqe::new(admin::DOORBELL_BUFFER).prp(shadow, events)
}

fn flush(h: &mut Host, qid: u16) {
    h.exec(qid, Sqe::new(io::FLUSH).nsid(1)).ok();
}

fn offered(h: &mut Host) -> (bool, bool) {
    let id = h.identify(1, 0);
    let (c, log) = h.log(5, 0, 0, 4096);
    c.ok();
    (u16_at(&id, 256) & 1 << 8 != 0, u32_at(&log, 4 * usize::from(admin::DOORBELL_BUFFER)) & 1 != 0)
}

#[test]
fn offer_and_refusals() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    assert_eq!(offered(&mut h), (true, true));
    let (a, b) = (h.ram.pages(1), h.ram.pages(1));
    let mut by_sgl = config(a, b);
    by_sgl.0[1] |= 0x40;
    for (sqe, want, what) in [
        (config(a + 4, b), st::INVALID_FIELD, "PRP1 unaligned"),
        (config(a, b + 8), st::INVALID_FIELD, "PRP2 unaligned"),
        (config(a, a), st::INVALID_FIELD, "one page for both"),
        (by_sgl, st::INVALID_FIELD, "SGL"),
        (config(0xffff_ffff_ffff_f000, b), st::DATA_TRANSFER, "PRP1 not mapped"),
        (config(a, 0), st::DATA_TRANSFER, "PRP2 not mapped"),
    ] {
        h.admin(sqe).is(want, what);
        flush(&mut h, 1);
    }
    h.admin(config(a, b)).ok();
    drop(h);
    for off in ["dbcs=off", "doorbells=mmap"] {
        let d = Daemon::start(&format!("--nvme {off} --nvme-ns drive=memory,size=1M"));
        let mut h = Host::attach_any(&d);
        assert_eq!(offered(&mut h), (false, false), "{off}");
        h.admin(config(a, b)).is(st::INVALID_OPCODE, off);
    }
}

/// Memory the device may only read or only write does for neither page.
#[test]
fn pages_without_rights() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    let a = h.ram.pages(1);
    for (rights, iova) in [(1, 0x30_0000_0000_u64), (2, 0x31_0000_0000)] {
        let other = Ram::new(iova, 1 << 16);
        let p = other.pieces[0];
        let answer = h.client.dma_map(p.iova, p.len, rights, Some((other.fd(), p.offset)));
        assert!(matches!(answer, Answer::Done(..)));
        h.admin(config(p.iova, a)).is(st::DATA_TRANSFER, "shadow");
        if rights == 1 {
            h.admin(config(a, p.iova)).is(st::DATA_TRANSFER, "event indices");
        }
    }
    flush(&mut h, 1);
}

/// Queues of before are adopted, queues of after use the buffers at once; stale values in them hurt nobody.
#[test]
fn queues_before_and_after() {
    for poll in ["adaptive", "always"] {
        let d = Daemon::start(&format!(
            "--nvme iothreads=2,poll={poll} --nvme-ns drive=memory,size=1M --nvme-ns drive={{}}/x.img,size=1M"
        ));
        let mut h = Host::with_queues(&d, 2, 16);
        let mut nss = [Ns::identify(&mut h, 1), Ns::identify(&mut h, 2)];
        let mut rng = Rng::new(41);
        storm::run(&mut h, &mut nss, &storm(&[1, 2], 101), &mut rng);
        let (shadow, events) = (h.ram.pages(1), h.ram.pages(1));
        for page in [shadow, events] {
            h.ram.write(page, &[0x5a; 4096]);
        }
        h.admin(config(shadow, events)).ok();
        let now = h.ram.read(shadow, 4096);
        for q in 1..=2u16 {
            assert_eq!(u32_at(&now, 8 * usize::from(q)), u32::from(h.sqs[&q].ring.tail), "SQ {q}");
            assert_eq!(u32_at(&now, 8 * usize::from(q) + 4), u32::from(h.cqs[&q].ring.head), "CQ {q}");
        }
        h.bells = Bells::Shadow(h.ram.page(shadow), h.ram.page(events));
        storm::run(&mut h, &mut nss, &storm(&[1, 2], 600), &mut rng);
        for q in 3..=4 {
            h.create_cq(q, 9, (q == 3).then_some(q));
            h.create_sq(q, 9, q);
        }
        storm::run(&mut h, &mut nss, &storm(&[1, 2, 3, 4], 1200), &mut rng);
        // Gone and back with another size: a queue begins at 0 whatever its shadow holds.
        h.delete_sq(3).ok();
        h.delete_cq(3).ok();
        h.create_cq(3, 5, Some(1));
        h.create_sq(3, 7, 3);
        storm::run(&mut h, &mut nss, &storm(&[1, 2, 3, 4], 600), &mut rng);
        // A second pair of pages takes over.
        h.use_shadow_doorbells();
        storm::run(&mut h, &mut nss, &storm(&[1, 2, 3, 4], 600), &mut rng);
        for ns in &mut nss {
            ns.verify(&mut h, 4);
        }
        assert_eq!(h.csts(), 1);
    }
}

/// A worker that never sleeps is hardly ever rung for.
#[test]
fn a_busy_worker_needs_no_message() {
    let d = Daemon::start("--nvme poll=always --nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 1, 64);
    h.use_shadow_doorbells();
    std::thread::sleep(SOON);
    h.rung = 0;
    for _ in 0..630 {
        flush(&mut h, 1);
    }
    // Ten laps of both rings; the event indices are passed once in each.
    assert!(h.rung <= 24, "{} messages for 1260 doorbells", h.rung);
}

/// With shadow doorbells the register is a hint: its value is not looked at.
#[test]
fn the_shadow_is_the_truth() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    h.use_shadow_doorbells();
    flush(&mut h, 1);
    let cid = h.queue(1, Sqe::new(io::FLUSH).nsid(1));
    let tail = h.sqs[&1].ring.tail;
    for value in [tail, tail + 1, 0] {
        h.client.post(BAR0, reg::DOORBELLS + 8, &u32::from(value).to_le_bytes());
        std::thread::sleep(SOON);
        assert!(!h.pending(1), "the register alone moved the queue");
    }
    h.ring_sq(1);
    h.wait(1, cid).ok();
    // 31:16 are reserved.
    let cid = h.queue(1, Sqe::new(io::FLUSH).nsid(1));
    let tail = u32::from(h.sqs[&1].ring.tail);
    let Bells::Shadow(shadow, _) = &h.bells else { unreachable!() };
    shadow.word(2).store(0xabcd_0000 | tail, Ordering::Release);
    h.client.post(BAR0, reg::DOORBELLS + 8, &tail.to_le_bytes());
    h.wait(1, cid).ok();
    // What lies in the admin queue's places concerns nobody.
    let Bells::Shadow(shadow, _) = &h.bells else { unreachable!() };
    shadow.word(0).store(7, Ordering::Release);
    shadow.word(1).store(0xffff_ffff, Ordering::Release);
    for _ in 0..100 {
        h.get_feature(7).ok();
    }
}

/// Waits for an event and reads its log, which lets the next one through.
fn take_event(h: &mut Host, aer: u16, want: u32) -> u16 {
    let c = h.wait(0, aer);
    assert_eq!((c.status, c.dw0), (0, want));
    h.log(1, 0, 0, 64).0.ok();
    h.submit(0, Sqe::new(admin::AER))
}

#[test]
fn hostile_values() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 2, 16);
    h.use_shadow_doorbells();
    let mut aer = h.submit(0, Sqe::new(admin::AER));
    flush(&mut h, 1);
    for (word, bad) in [(2, 16), (2, 0xffff), (2, 0x1234_ffff), (3, 16), (3, 9), (3, 0xffff_ffff)] {
        let tail = u32::from(h.sqs[&1].ring.tail);
        let head = u32::from(h.cqs[&1].ring.head);
        let Bells::Shadow(shadow, _) = &h.bells else { unreachable!() };
        let good = shadow.word(word).swap(bad, Ordering::AcqRel);
        // A head is looked at when there is something to fetch.
        let cid = (word == 3).then(|| h.queue(1, Sqe::new(io::FLUSH).nsid(1)));
        let Bells::Shadow(shadow, _) = &h.bells else { unreachable!() };
        if word == 3 {
            shadow.word(2).store((tail + 1) % 16, Ordering::Release);
        }
        h.client.post(BAR0, reg::DOORBELLS + 8, &tail.to_le_bytes());
        aer = take_event(&mut h, aer, EVENT_BAD_VALUE);
        // Once only, however often it is seen.
        for _ in 0..5 {
            flush(&mut h, 2);
            h.client.post(BAR0, reg::DOORBELLS + 8, &tail.to_le_bytes());
        }
        std::thread::sleep(SOON);
        assert!(h.try_wait(0, aer, Duration::from_millis(1)).is_none(), "told twice");
        let Bells::Shadow(shadow, _) = &h.bells else { unreachable!() };
        shadow.word(word).store(if word == 3 { head } else { good }, Ordering::Release);
        if let Some(cid) = cid {
            h.wait(1, cid).ok();
        }
        flush(&mut h, 1);
    }
    // As fast as a processor can: the daemon goes on, and does not grow.
    let before = d.resident();
    let stop = AtomicBool::new(false);
    let Bells::Shadow(shadow, _) = std::mem::replace(&mut h.bells, Bells::Registers) else { unreachable!() };
    let (sq, cq) = (u32::from(h.sqs[&1].ring.tail), u32::from(h.cqs[&1].ring.head));
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (word, good) in [(2, sq), (3, cq)] {
                    shadow.word(word).store(0xffff, Ordering::Release);
                    shadow.word(word).store(good, Ordering::Release);
                }
            }
        });
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(500) {
            h.get_feature(7).ok();
            h.client.post(BAR0, reg::DOORBELLS + 8, &sq.to_le_bytes());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(d.resident() < before + (16 << 20), "it grew by {} KiB", (d.resident() - before) >> 10);
    assert_eq!(h.csts() & CFS, 0);
}

/// The memory of the buffers goes and comes back, while the queue is at work and while it rests.
#[test]
fn memory_of_the_buffers_goes() {
    for poll in ["adaptive", "always"] {
        let d = Daemon::start(&format!("--nvme poll={poll} --nvme-ns drive=memory,size=1M"));
        let mut h = Host::with_queues(&d, 2, 16);
        let mut nss = [Ns::identify(&mut h, 1)];
        let mut rng = Rng::new(8);
        let other = Ram::new(0x20_0000_0000, 1 << 16);
        let p = other.pieces[0];
        let map = |h: &mut Host| {
            let a = h.client.dma_map(p.iova, p.len, 3, Some((other.fd(), p.offset)));
            assert!(matches!(a, Answer::Done(..)));
        };
        map(&mut h);
        h.admin(config(p.iova, p.iova + 0x1000)).ok();
        let pages = || Bells::Shadow(other.page(p.iova), other.page(p.iova + 0x1000));
        for round in 0..20 {
            h.bells = pages();
            storm::run(&mut h, &mut nss, &storm(&[1, 2], 60), &mut rng);
            if round % 2 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            let start = Instant::now();
            let a = h.client.dma_unmap(p.iova, p.len);
            assert!(matches!(a, Answer::Done(..)), "{a:?}");
            assert!(start.elapsed() < Duration::from_millis(2500), "unmap took {:?}", start.elapsed());
            // Registers count, and go on where the shadows were; nobody looks at these any more.
            for word in 2..6 {
                other.page(p.iova).word(word).store(11, Ordering::Release);
            }
            h.bells = Bells::Registers;
            storm::run(&mut h, &mut nss, &storm(&[1, 2], 60), &mut rng);
            for (q, sq) in &h.sqs {
                other.page(p.iova).word(2 * usize::from(*q)).store(sq.ring.tail.into(), Ordering::Release);
            }
            for (q, cq) in &h.cqs {
                other
                    .page(p.iova)
                    .word(2 * usize::from(*q) + 1)
                    .store(cq.ring.head.into(), Ordering::Release);
            }
            map(&mut h);
        }
        h.bells = pages();
        nss[0].verify(&mut h, 1);
        // The file shrinks. What the queues' heads were is lost with it, but nothing else.
        other.truncate(0);
        h.bells = Bells::Registers;
        h.submit(1, Sqe::new(io::FLUSH).nsid(1));
        h.submit(2, Sqe::new(io::FLUSH).nsid(1));
        h.get_feature(7).ok();
        h.enable();
        h.io_queues(2, 16);
        storm::run(&mut h, &mut nss, &storm(&[1, 2], 200), &mut rng);
        nss[0].verify(&mut h, 2);
        assert_eq!(h.csts(), 1);
    }
}

#[test]
fn forgotten_on_reset() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 2, 16);
    let mut ns = Ns::identify(&mut h, 1);
    for round in 0..10 {
        let mark = h.ram.mark();
        let (shadow, events) = h.use_shadow_doorbells();
        h.fill(1, &mut ns, round);
        h.enable();
        h.ram.write(shadow, &[3; 4096]);
        h.ram.write(events, &[0x77; 4096]);
        h.io_queues(2, 8);
        ns.verify(&mut h, 1);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(h.ram.read(events, 4096), [0x77; 4096], "event indices written after the reset");
        assert_eq!(h.ram.read(shadow, 4096), [3; 4096]);
        if round % 2 == 0 {
            h.ram.release(mark);
        }
        h.enable();
        h.io_queues(2, 16);
    }
}

/// A full completion queue: the host that makes room rings, because it was asked to.
#[test]
fn a_full_completion_queue_asks_for_its_head() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::attach(&d);
    h.set_queue_count(1);
    h.create_cq(1, 3, None);
    h.create_sq(1, 64, 1);
    h.use_shadow_doorbells();
    for _ in 0..30 {
        let cids: Vec<u16> = (0..50).map(|_| h.queue(1, Sqe::new(io::FLUSH).nsid(1))).collect();
        h.ring_sq(1);
        std::thread::sleep(Duration::from_millis(1));
        for cid in cids {
            h.wait(1, cid).ok();
        }
    }
}

/// Ten seconds with shadow doorbells after a burst of work, and after the bounce buffers have been given back, a second
/// later: not one tick.
#[test]
fn idle_is_free() {
    let d =
        Daemon::start("--nvme iothreads=2 --nvme-ns drive=memory,size=1M --nvme-ns drive={}/x.img,size=1M");
    let mut h = Host::with_queues(&d, 4, 64);
    let mut nss = [Ns::identify(&mut h, 1), Ns::identify(&mut h, 2)];
    h.use_shadow_doorbells();
    storm::run(&mut h, &mut nss, &storm(&[1, 2, 3, 4], 3000), &mut Rng::new(2));
    std::thread::sleep(Duration::from_secs(2));
    let before = d.ticks();
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(d.ticks() - before, 0);
    flush(&mut h, 3);
}

/// A host thread with the protocol of a guest driver at random rhythms around the length of the worker's window: each
/// completion comes soon, whether the worker looks, arms, sleeps or wakes at that moment.
#[test]
fn no_wake_up_is_lost() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::attach(&d);
    h.set_queue_count(2);
    for q in 1..=2 {
        h.create_cq(q, 8, None);
        h.create_sq(q, 8, q);
    }
    h.use_shadow_doorbells();
    let mut rng = Rng::new(77);
    let start = Instant::now();
    let (mut commands, mut worst) = (0_u64, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(6) {
        let qid = 1 + (commands % 2) as u16;
        let count = rng.within(1, 4);
        for _ in 0..count {
            h.queue(qid, Sqe::new(io::FLUSH).nsid(1));
        }
        h.ring_sq(qid);
        commands += count;
        let rung = Instant::now();
        let mut got = 0;
        while got < count {
            match h.take(qid) {
                Some(c) => {
                    got += 1;
                    c.ok();
                }
                None => assert!(rung.elapsed() < Duration::from_secs(5), "lost after {commands} commands"),
            }
        }
        h.ring_cq(qid);
        h.forget(qid);
        worst = worst.max(rung.elapsed());
        // From no pause at all over the window's length to deep sleep.
        let pause = Duration::from_nanos(match rng.below(8) {
            0 => 0,
            1..=3 => rng.below(60_000),
            4..=6 => rng.below(800_000),
            _ => rng.below(2_000_000),
        });
        let until = Instant::now() + pause;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }
    eprintln!("{commands} commands, {} rung, the slowest took {worst:?}", h.rung);
}

// Mapped doorbells.

#[test]
fn mapped_doorbells() {
    for poll in ["adaptive", "always"] {
        let d = Daemon::start(&format!(
            "--nvme doorbells=mmap,poll={poll},iothreads=2 --nvme-ns drive=memory,size=1M --nvme-ns drive={{}}/x.img,size=1M"
        ));
        let mut h = Host::attach_any(&d);
        h.io_queues(3, 16);
        let mut nss = [Ns::identify(&mut h, 1), Ns::identify(&mut h, 2)];
        let mut rng = Rng::new(5);
        storm::run(&mut h, &mut nss, &storm(&[1, 2, 3], 1500), &mut rng);
        assert_eq!(h.rung, 0, "not one message");
        // Messages go to the same memory, both ways.
        let at = |index: u64| reg::DOORBELLS + 4 * index;
        let tail = u32::from(h.sqs[&2].ring.tail);
        assert_eq!(h.client.r32(at(4)), tail);
        let cid = h.queue(2, Sqe::new(io::FLUSH).nsid(1));
        h.client.w32(at(4), (tail + 1) % 16);
        h.wait(2, cid).ok();
        let Bells::Mapped(page) = &h.bells else { panic!("not mapped") };
        assert_eq!(page.word(4).load(Ordering::Acquire), (tail + 1) % 16);
        // A reset leaves zeroes, and what is scribbled there before the next enable is nobody's tail.
        h.disable();
        let Bells::Mapped(page) = &h.bells else { panic!("not mapped") };
        assert!((0..1024).all(|i| page.word(i).load(Ordering::Acquire) == 0));
        for i in 0..1024 {
            page.word(i).store(9, Ordering::Release);
        }
        h.enable();
        h.io_queues(3, 8);
        storm::run(&mut h, &mut nss, &storm(&[1, 2, 3], 300), &mut rng);
        for ns in &mut nss {
            ns.verify(&mut h, 1);
        }
        // The next client has a page of its own.
        let Bells::Mapped(old) = std::mem::replace(&mut h.bells, Bells::Registers) else { panic!() };
        drop(h);
        let mut h = Host::attach_any(&d);
        h.io_queues(3, 16);
        for i in 0..1024 {
            old.word(i).store(5, Ordering::Release);
        }
        storm::run(&mut h, &mut nss, &storm(&[1, 2, 3], 300), &mut rng);
        for ns in &mut nss {
            ns.verify(&mut h, 2);
        }
        assert_eq!(h.csts(), 1);
    }
}

#[test]
fn hostile_values_in_the_page() {
    let d = Daemon::start("--nvme doorbells=mmap --nvme-ns drive=memory,size=1M");
    let mut h = Host::attach_any(&d);
    h.io_queues(1, 16);
    flush(&mut h, 1);
    let mut aer = h.submit(0, Sqe::new(admin::AER));
    for (word, bad) in [(0, 32), (0, 0xffff_ffff), (1, 0x20), (1, 0xfff), (2, 16), (2, 0x1_ffff)] {
        let Bells::Mapped(page) = &h.bells else { panic!("not mapped") };
        let good = page.word(word).swap(bad, Ordering::AcqRel);
        // Without the admin queue nobody could be told anything new; so all is put right again first.
        std::thread::sleep(SOON);
        let Bells::Mapped(page) = &h.bells else { panic!("not mapped") };
        page.word(word).store(good, Ordering::Release);
        aer = take_event(&mut h, aer, EVENT_BAD_VALUE);
        flush(&mut h, 1);
    }
    // Noise on all doorbells at once. Phantom commands run, or a queue's memory is read where nothing was written: the
    // device may do anything to this host but fall over.
    let stop = AtomicBool::new(false);
    let Bells::Mapped(page) = std::mem::replace(&mut h.bells, Bells::Registers) else { panic!() };
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut rng = Rng::new(6);
            while !stop.load(Ordering::Relaxed) {
                page.word(rng.below(1024) as usize).store(rng.next() as u32, Ordering::Release);
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
    });
    h.bells = Bells::Mapped(page);
    h.enable();
    h.io_queues(1, 16);
    flush(&mut h, 1);
}

/// Where nobody tells the worker it looks 250 times a second; without queues not at all.
#[test]
fn mapped_and_idle() {
    let d = Daemon::start("--nvme doorbells=mmap --nvme-ns drive=memory,size=1M");
    let mut h = Host::cold(&d.socket());
    let before = d.ticks();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(d.ticks(), before, "not enabled, and it runs");
    h.bells = Bells::Mapped(h.client.map_doorbells().expect("mapped doorbells"));
    h.enable();
    h.io_queues(1, 16);
    flush(&mut h, 1);
    std::thread::sleep(SOON);
    let before = d.ticks();
    std::thread::sleep(Duration::from_secs(3));
    // 500 wake-ups a second of both threads together; a debug build on a busy machine takes its time for each.
    assert!(d.ticks() - before <= 30, "{} ticks in three idle seconds", d.ticks() - before);
    flush(&mut h, 1);
}

/// An Abort comes to a worker that has not looked at the doorbell of the command yet: it wakes the worker.
#[test]
fn an_abort_does_not_overtake_its_command() {
    for doorbells in ["trap", "mmap"] {
        let d = Daemon::start(&format!(
            "--nvme doorbells={doorbells} \
             --nvme-ns drive=memory,size=512M,logical_block_size=4096,mssrl=65535,mcl=1000000,msrc=255"
        ));
        let mut h = Host::attach_any(&d);
        h.io_queues(1, 16);
        let half = Ns::facts(&mut h, 1).nsze / 2;
        let list: Vec<u8> = (0..64).flat_map(|i| nvme::Range::new(i * 1024, 1024).bytes(0)).collect();
        let data = Data::prp(&mut h.ram, list.len());
        data.put(&h.ram, &list);
        let mut aborted = 0;
        for round in 0..12 {
            // Asleep for long, or on its way there.
            std::thread::sleep(Duration::from_millis(7 * (round % 3)));
            // A command before it, as something else to fetch.
            let flush = h.queue(1, Sqe::new(io::FLUSH).nsid(1));
            let cid = h.submit(1, nvme::copy(1, half, 64, 0).data(&data));
            let abort = h.exec(0, Sqe::new(admin::ABORT).cdw(10, u32::from(cid) << 16 | 1));
            h.drain(1);
            let over = h.try_wait(1, cid, Duration::ZERO);
            let c = over.expect("the Abort is over, and what it was for is not");
            assert_eq!(abort.dw0 & 1, u32::from(c.status == st::OK), "round {round}");
            h.wait(1, flush).ok();
            assert!(matches!(c.status, st::OK | st::ABORT_REQUESTED), "{c:?}");
            aborted += u32::from(c.status == st::ABORT_REQUESTED);
        }
        assert!(aborted > 0, "{doorbells}: no Abort came in time");
        // What was never there is still answered.
        let none = h.exec(0, Sqe::new(admin::ABORT).cdw(10, 0x7777 << 16 | 1));
        assert_eq!((none.status, none.dw0 & 1), (st::OK, 1));
    }
}
