//! Garbage, half messages, floods: the daemon drops the client, not itself.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::host::client::{BAR0, Client, access, cmd, message, version_body};
use crate::host::ctrl::reg;
use crate::host::le::put32;
use crate::host::*;

fn well(d: &Daemon) {
    let mut c = Client::attach_when_free(&d.socket());
    assert_eq!(c.r32(reg::VS), 0x0002_0000);
}

#[test]
fn garbage() {
    let d = Daemon::start("");
    let mut rng = Rng::new(666);
    for round in 0..60 {
        let mut c =
            if round % 2 == 0 { Client::connect(&d.socket()) } else { Client::attach_when_free(&d.socket()) };
        let len = rng.within(1, 3000) as usize;
        let _ = c.send_raw(&rng.bytes(len), &[]);
        drop(c);
    }
    well(&d);
}

/// Headers that are nearly right.
#[test]
fn bad_headers() {
    let d = Daemon::start("");
    let good = message(1, cmd::REGION_READ, 0, &access(BAR0, reg::VS, 4));
    let changed = |at: usize, v: u32| {
        let mut m = good.clone();
        put32(&mut m, at, v);
        m
    };
    for (what, m) in [
        ("size 0", changed(4, 0)),
        ("size 15", changed(4, 15)),
        ("size 16 but a body", changed(4, 16)),
        ("size of 4 GiB", changed(4, u32::MAX)),
        ("size of 2 MiB", changed(4, 2 << 20)),
        ("a reply", changed(8, 1)),
        ("an error reply", changed(8, 0x21)),
        ("type 15", changed(8, 0xf)),
        ("command 0", changed(0, 1)),
        ("command 99", changed(0, 99 << 16 | 1)),
        ("command FFFFh", changed(0, 0xffff_0001)),
        ("DMA_READ from a client", changed(0, 11 << 16 | 1)),
    ] {
        let mut c = Client::attach_when_free(&d.socket());
        c.set_deadline(Duration::from_millis(200));
        let _ = c.send_raw(&m, &[]);
        // An error reply, a hang-up, or patience for the rest: all fine, as long as the next one is served.
        match c.recv() {
            Ok(Some(r)) => assert!(r.error.is_some(), "{what}: {r:?}"),
            Ok(None) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock, "{what}: {e}"),
        }
        drop(c);
        well(&d);
    }
}

/// Random bodies under every command number, in one session as long as it lasts.
#[test]
fn random_bodies() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut rng = Rng::new(1234);
    let ram = Ram::new(0x1000, 1 << 16);
    let before = d.resident();
    let mut c = Client::attach_when_free(&d.socket());
    for _ in 0..3000 {
        let command = rng.below(20) as u16;
        let len = match rng.below(4) {
            0 => rng.below(8),
            1 => rng.below(64),
            2 => 16 + rng.below(32),
            _ => rng.below(300),
        } as usize;
        let mut body = rng.bytes(len);
        // Small numbers reach further than random ones.
        for b in body.iter_mut() {
            if rng.chance(2) {
                *b = rng.below(3) as u8;
            }
        }
        let fds: Vec<BorrowedFd<'_>> = match rng.below(8) {
            0 => vec![ram.fd()],
            1 => vec![ram.fd(); 3],
            _ => vec![],
        };
        let a = c.ask(command, &body, &fds);
        if matches!(a, Answer::Closed) {
            c = Client::attach_when_free(&d.socket());
        }
    }
    drop(c);
    well(&d);
    assert!(d.resident() < before + (32 << 20), "the daemon grows");
    assert!(d.open_files() < 64, "{} descriptors", d.open_files());
}

/// Random register and doorbell writes, posted, while the controller is on.
#[test]
fn random_register_writes() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut rng = Rng::new(4321);
    for _ in 0..10 {
        let mut h = Host::with_queues(&d, 2, 8);
        for _ in 0..400 {
            let at = if rng.chance(2) { 0x1000 + rng.below(16) * 4 } else { rng.below(0x70) };
            let len = *rng.pick(&[1usize, 2, 4, 4, 4, 8]);
            let mut v = rng.bytes(len);
            if rng.chance(2) {
                v[1..].fill(0);
            }
            h.client.post(BAR0, at, &v);
        }
        h.client.r32(reg::CSTS);
        // Whatever that made of it: a device reset cures it.
        h.client.reset();
        h.cqs.clear();
        h.sqs.clear();
        h.connect_interrupts();
        h.enable();
        h.io_queues(2, 8);
        let ns = Ns::facts(&mut h, 1);
        h.read(2, &ns, 0, 1);
    }
}

/// Random SQEs on a well set up controller, with data pointers that lead somewhere.
#[test]
fn random_commands() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M --nvme-ns drive={}/x.img,size=1M");
    let mut rng = Rng::new(99);
    let mut h = Host::attach(&d);
    h.set_queue_count(1);
    h.create_cq(1, 64, None);
    h.create_sq(1, 64, 1);
    let page = h.ram.pages(16);
    let mut aers = 0;
    for i in 0..4000u64 {
        let admin = rng.chance(3);
        let mut s = Sqe(rng.bytes(64).try_into().unwrap());
        s.0[0] = if rng.chance(4) { rng.next() as u8 } else { rng.below(0x1a) as u8 };
        s.0[1] &= if rng.chance(4) { 0xff } else { 0x40 };
        s = s.nsid(if rng.chance(8) { rng.next() as u32 } else { rng.below(4) as u32 });
        for n in 10..16 {
            s = match rng.below(4) {
                0 => s,
                1 => s.cdw(n, rng.next() as u32),
                _ => s.cdw(n, rng.below(10) as u32),
            };
        }
        if rng.chance(2) {
            let at = page + rng.below(16) * 4096 + rng.below(8) * 4;
            s.0[24..32].copy_from_slice(&at.to_le_bytes());
            s.0[32..40].copy_from_slice(&(page + rng.below(17) * 4096).to_le_bytes());
            if rng.chance(2) {
                let words: Vec<u8> =
                    (0..512).flat_map(|_| (page + rng.below(16) * 4096).to_le_bytes()).collect();
                h.ram.write(page + i % 16 * 4096, &words);
            }
        }
        if admin {
            // Not what would take the test's own queues away, or what never answers.
            match s.0[0] {
                0x00 | 0x04 => s = s.cdw(10, 0x7fff),
                0x01 | 0x05 => s = s.cdw(10, 0xffff_0000 | rng.below(3) as u32),
                0x0c => {
                    aers += 1;
                    if aers > 4 {
                        continue;
                    }
                    h.submit(0, s);
                    continue;
                }
                _ => {}
            }
            h.exec(0, s);
        } else {
            h.exec(1, s);
        }
    }
    assert_eq!(h.csts(), 1);
    assert!(d.resident() < 200 << 20);
}

/// A message that never ends, from a client that stays: the daemon serves signals, and the next client after it.
#[test]
fn half_a_message() {
    let mut d = Daemon::start("");
    let m = message(1, cmd::REGION_READ, 0, &access(BAR0, 0, 4));
    for n in [1, 8, 15, 16, 17, 31] {
        let mut c = Client::attach_when_free(&d.socket());
        c.send_raw(&m[..n], &[]).unwrap();
        drop(c);
        well(&d);
        let mut c = Client::attach_when_free(&d.socket());
        c.send_raw(&m[..n], &[]).unwrap();
        c.shutdown_write();
        c.wait_closed();
    }
    let before = d.ticks();
    let mut c = Client::attach_when_free(&d.socket());
    c.send_raw(&m[..20], &[]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(d.ticks() - before < 10, "busy waiting for the rest");
    d.stop();
}

/// A client that asks and never reads the answers.
#[test]
fn deaf_client() {
    let mut d = Daemon::start("");
    let mut c = d.client();
    let m = message(1, cmd::REGION_READ, 0, &access(BAR0, 0, 4096));
    let flags = rustix::fs::fcntl_getfl(c.socket()).unwrap();
    rustix::fs::fcntl_setfl(c.socket(), flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    // Until the socket is full in both directions, or we are thrown out.
    for _ in 0..100_000 {
        if c.send_raw(&m, &[]).is_err() {
            break;
        }
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(d.resident() < 100 << 20, "answers pile up");
    assert!(d.alive());
    drop(c);
    well(&d);
    d.stop();
}

/// One that asks for the doorbells' descriptor again and again and takes none of them.
#[test]
fn deaf_client_of_descriptors() {
    let d = Daemon::start("--nvme doorbells=mmap");
    let mut c = d.client();
    let mut body = [0; 32];
    put32(&mut body, 0, 4096);
    let m = message(1, cmd::GET_REGION_INFO, 0, &body);
    let flags = rustix::fs::fcntl_getfl(c.socket()).unwrap();
    rustix::fs::fcntl_setfl(c.socket(), flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    let before = d.open_files();
    // Until nothing more is taken for a while.
    let mut taken = Instant::now();
    while taken.elapsed() < Duration::from_millis(200) {
        match c.send_raw(&m, &[]) {
            Ok(()) => taken = Instant::now(),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert!(d.open_files() < before + 32, "{before} -> {} descriptors", d.open_files());
    drop(c);
    well(&d);
}

/// Who connects and does not say VERSION keeps nobody out for long; whoever comes meanwhile waits at the door. After
/// it, silence is legal: a virtual machine may stand still for a day.
#[test]
fn silent_client() {
    let d = Daemon::start("");
    let version = message(1, cmd::VERSION, 0, &version_body(0, None));
    for said in [0, 10, version.len() - 1] {
        let mut silent = Client::connect(&d.socket());
        silent.send_raw(&version[..said], &[]).unwrap();
        let mut next = Client::attach(&d.socket());
        assert_eq!(next.r32(reg::VS), 0x0002_0000);
        silent.wait_closed();
        drop(next);
        drop(d.client());
    }
    let mut idle = d.client();
    std::thread::sleep(Duration::from_secs(3));
    let mut second = Client::connect(&d.socket());
    assert!(second.ask(cmd::VERSION, &version_body(0, None), &[]).not_done(), "a second client got in");
    assert_eq!(idle.r32(reg::VS), 0x0002_0000);
}

/// Descriptors where none belong, and more than were agreed on.
#[test]
fn descriptor_flood() {
    let d = Daemon::start("");
    let ram = Ram::new(0, 1 << 16);
    let before = {
        let _c = Client::attach_when_free(&d.socket());
        d.open_files()
    };
    let read = message(1, cmd::REGION_READ, 0, &access(BAR0, reg::VS, 4));
    for n in [1, 2, 16, 17, 40, 64] {
        for _ in 0..5 {
            let mut c = Client::attach_when_free(&d.socket());
            let _ = c.send_raw(&read, &vec![ram.fd(); n]);
            let _ = c.recv();
        }
    }
    // On the very first message.
    let mut c = Client::connect(&d.socket());
    let _ = c.send_raw(&message(1, cmd::VERSION, 0, &version_body(0, None)), &[ram.fd(), ram.fd()]);
    let _ = c.recv();
    drop(c);
    let _c = Client::attach_when_free(&d.socket());
    assert!(d.open_files() <= before, "{} -> {}", before, d.open_files());
}

/// Come, do half of something, go: nothing is left behind.
#[test]
fn many_short_visits() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    drop(Host::with_queues(&d, 2, 8));
    well(&d);
    let before = (d.open_files(), d.threads());
    for i in 0..60 {
        match i % 4 {
            0 => drop(Client::connect(&d.socket())),
            1 => drop(Client::attach_when_free(&d.socket())),
            2 => drop(Host::cold(&d.socket())),
            _ => drop(Host::with_queues(&d, 2, 8)),
        }
    }
    well(&d);
    std::thread::sleep(Duration::from_millis(20));
    assert!(d.open_files() <= before.0, "descriptors {} -> {}", before.0, d.open_files());
    assert!(d.threads() <= before.1, "threads {} -> {}", before.1, d.threads());
}
