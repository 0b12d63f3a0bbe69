//! Controller registers: enable, reset, shutdown, and what must end in CFS.

use crate::host::client::BAR0;
use crate::host::ctrl::{ADMIN_ENTRIES, CC_EN, CC_LINUX, CFS, RDY, reg};
use crate::host::nvme::{admin, io, st};
use crate::host::*;

const SHST: u32 = 0xc;

#[test]
fn capabilities() {
    let d = Daemon::start("");
    let mut c = d.client();
    let cap = c.r64(reg::CAP);
    assert!(cap & 0xffff >= 31, "MQES of {cap:#x}");
    assert_eq!(cap >> 16 & 1, 1, "CQR");
    assert_eq!(cap >> 17 & 3, 0, "AMS");
    assert_ne!(cap >> 24 & 0xff, 0, "TO 0 makes Linux give up at once");
    assert_eq!(cap >> 32 & 0xf, 0, "DSTRD");
    assert_eq!(cap >> 36 & 1, 0, "NSSRS");
    assert_eq!(cap >> 37 & 1, 1, "NVM command set");
    assert_eq!(cap >> 48 & 0xf, 0, "MPSMIN: Linux takes 4 KiB only");
    assert_eq!(cap >> 56 & 3, 0, "neither PMR nor CMB");
    let halves = u64::from(c.r32(4)) << 32 | u64::from(c.r32(0));
    assert_eq!(halves, cap);
    assert_eq!(c.r32(reg::VS), 0x0002_0000);
    // From 2.0 on: ready with media, and its time-out not below CAP.TO.
    assert_eq!(cap >> 59 & 1, 1, "CRWMS");
    assert!(u64::from(c.r32(0x68) & 0xffff) >= cap >> 24 & 0xff, "CRTO");
    for at in [0x18, 0x20, 0x38, reg::CMBSZ, 0x40, 0x58, 0x5c, 0x60, 0xe00, 0xe08, 0xffc] {
        assert_eq!(c.r32(at), 0, "register {at:#x}");
    }
    assert_eq!((c.r32(reg::CC), c.r32(reg::CSTS)), (0, 0));
    // Room for the doorbells of all queues that can exist.
    let h = &mut Host::with_client(c);
    h.enable();
    let n = u64::from(h.get_feature(0x07).dw0 & 0xffff) + 2;
    assert!(h.client.region_info(BAR0).size >= 0x1000 + n * 8);
}

#[test]
fn read_only_registers_and_odd_accesses() {
    let d = Daemon::start("");
    let mut c = d.client();
    let cap = c.r64(reg::CAP);
    for at in [reg::CAP, 4, reg::VS, reg::CSTS, 0x18, 0x38, 0x68, 0xe00] {
        let before = c.r32(at);
        c.w32(at, !before);
        assert_eq!(c.r32(at), before, "register {at:#x}");
    }
    assert_eq!(c.r64(reg::CAP), cap);
    // 8 bytes at once, as SPDK does.
    c.write(BAR0, reg::ASQ, &0x1234_5678_9abc_d000u64.to_le_bytes());
    assert_eq!(c.r64(reg::ASQ), 0x1234_5678_9abc_d000);
    c.w64(reg::ACQ, 0xfedc_ba98_7654_3000);
    assert_eq!(c.r64(reg::ACQ), 0xfedc_ba98_7654_3000);
    // Halves that nobody should use: no crash, no wrong neighbour.
    for (at, n) in [(0x15, 1), (0x16, 2), (0x26, 2), (0x2b, 4), (0x2e, 8), (0xfff, 4)] {
        c.region_write(BAR0, at, &vec![0xff; n]);
        c.region_read(BAR0, at, n as u32);
    }
    assert_eq!(c.r32(reg::VS), 0x0002_0000);
    assert_eq!(c.r32(reg::CSTS) & RDY, 0);
    // INTMS and INTMC are two views of one mask.
    c.w32(reg::INTMC, u32::MAX);
    c.w32(reg::INTMS, 0x5);
    c.w32(reg::INTMC, 0x1);
    let (a, b) = (c.r32(reg::INTMS), c.r32(reg::INTMC));
    assert_eq!(a, b);
    assert!(a == 4 || a == 0, "{a:#x} (undefined with MSI-X, but not garbage)");
    c.w32(reg::INTMC, u32::MAX);
}

/// CAP.CRMS says that the controller is ready with its media only: CC.CRIME is read-only and 0.
#[test]
fn ready_independent_of_media_cannot_be_chosen() {
    const CRIME: u32 = 1 << 24;
    let d = Daemon::start("");
    let mut h = Host::cold(&d.socket());
    let cap = h.client.r64(reg::CAP);
    assert_eq!((cap >> 59 & 3, h.client.r32(0x68) >> 16), (1, 0), "CRMS, CRTO.CRIMT");
    h.admin_queue();
    h.client.w32(reg::CC, CC_LINUX | CRIME);
    assert_eq!(h.client.r32(reg::CC), CC_LINUX);
    h.client.w32(reg::CC, CC_LINUX | CRIME | CC_EN);
    h.wait_csts(RDY | CFS, RDY);
    assert_eq!(h.client.r32(reg::CC), CC_LINUX | CC_EN);
}

#[test]
fn enable_disable_many_times() {
    let d = Daemon::start("");
    let mut h = Host::cold(&d.socket());
    for i in 0..50 {
        let mark = h.ram.mark();
        h.enable();
        assert_eq!(h.client.r32(reg::CC), CC_LINUX | CC_EN);
        let id = h.identify(1, 0);
        assert_eq!(id[111], 1, "round {i}");
        if i % 3 == 0 {
            h.io_queues(2, 8);
            let ns = Ns::facts(&mut h, 1);
            h.read(2, &ns, 0, 1);
        }
        h.disable();
        assert_eq!(h.csts(), 0);
        assert_eq!(h.client.r32(reg::CC), 0);
        h.ram.release(mark);
    }
}

#[test]
fn reset_keeps_the_admin_queue_registers() {
    let d = Daemon::start("");
    let mut h = Host::attach(&d);
    let before = (h.client.r32(reg::AQA), h.client.r64(reg::ASQ), h.client.r64(reg::ACQ));
    h.disable();
    let after = (h.client.r32(reg::AQA), h.client.r64(reg::ASQ), h.client.r64(reg::ACQ));
    assert_eq!(before, after);
    // And they still work: SQE 0 and phase 1 again.
    h.ram.write(before.1, &[0; 4096]);
    h.ram.write(before.2, &[0; 4096]);
    h.client.w32(reg::CC, CC_LINUX | CC_EN);
    h.wait_csts(RDY | CFS, RDY);
    let sqe = Sqe::new(admin::KEEP_ALIVE).cid(0x1234);
    h.ram.write(before.1, &sqe.0);
    h.client.w32(reg::DOORBELLS, 1);
    let start = std::time::Instant::now();
    loop {
        let c = h.ram.read(before.2, 16);
        if c[14] & 1 == 1 {
            assert_eq!(Cqe::parse(&c).cid, 0x1234);
            break;
        }
        assert!(start.elapsed() < DEADLINE);
    }
}

/// Sets up a legal enable, lets `spoil` break one thing, and expects CFS without RDY; then a clean enable works.
fn expect_cfs(h: &mut Host, what: &str, cc: u32, spoil: impl FnOnce(&mut Host)) {
    h.disable();
    h.admin_queue();
    spoil(h);
    h.client.w32(reg::CC, cc | CC_EN);
    let v = h.wait_csts(CFS, CFS);
    assert_eq!(v & RDY, 0, "{what}: CSTS {v:#x}");
    h.disable();
    // RDY was 0 before, so nobody waited for the reset's end yet.
    h.wait_csts(CFS | RDY, 0);
    assert_eq!(h.csts(), 0, "{what}: CFS goes with the reset");
    h.enable();
    h.get_feature(0x07).ok();
}

#[test]
fn bad_values_at_enable_are_fatal() {
    let d = Daemon::start("");
    let mut h = Host::cold(&d.socket());
    let good = u32::from(ADMIN_ENTRIES - 1);
    expect_cfs(&mut h, "AQA 0", CC_LINUX, |h| h.client.w32(reg::AQA, 0));
    expect_cfs(&mut h, "ASQS 0", CC_LINUX, |h| h.client.w32(reg::AQA, good << 16));
    expect_cfs(&mut h, "ACQS 0", CC_LINUX, |h| h.client.w32(reg::AQA, good));
    let mpsmax = (h.client.r64(reg::CAP) >> 52 & 0xf) as u32;
    expect_cfs(&mut h, "MPS", CC_LINUX | (mpsmax + 1) << 7, |_| ());
    expect_cfs(&mut h, "MPS 15", CC_LINUX | 15 << 7, |_| ());
    let css = h.client.r64(reg::CAP) >> 37;
    expect_cfs(&mut h, "CSS 001b", CC_LINUX | 1 << 4, |_| ());
    expect_cfs(&mut h, "CSS 101b", CC_LINUX | 5 << 4, |_| ());
    if css & 0x40 == 0 {
        expect_cfs(&mut h, "CSS 110b", CC_LINUX | 6 << 4, |_| ());
    }
    if css & 0x80 == 0 {
        expect_cfs(&mut h, "CSS 111b", CC_LINUX | 7 << 4, |_| ());
    }
    expect_cfs(&mut h, "AMS 001b", CC_LINUX | 1 << 11, |_| ());
    expect_cfs(&mut h, "AMS 010b", CC_LINUX | 2 << 11, |_| ());
}

/// The low 12 bits of ASQ and ACQ are reserved: either they do not stick, or such a value is fatal.
#[test]
fn unaligned_admin_queues() {
    let d = Daemon::start("");
    let mut h = Host::cold(&d.socket());
    for r in [reg::ASQ, reg::ACQ] {
        h.disable();
        h.admin_queue();
        let v = h.client.r64(r);
        h.client.w64(r, v | 0x10);
        let stuck = h.client.r64(r) != v;
        h.client.w32(reg::CC, CC_LINUX | CC_EN);
        if stuck {
            h.wait_csts(CFS | RDY, CFS);
        } else {
            h.wait_csts(CFS | RDY, RDY);
            h.get_feature(0x07).ok();
        }
        h.disable();
    }
}

#[test]
fn admin_queue_where_no_memory_is() {
    let d = Daemon::start("");
    let mut h = Host::cold(&d.socket());
    for (r, what) in [(reg::ASQ, "SQE fetch"), (reg::ACQ, "CQE write")] {
        h.disable();
        h.admin_queue();
        h.client.w64(r, 0xdead_0000);
        h.client.w32(reg::CC, CC_LINUX | CC_EN);
        // Whether it is seen now or at the first use.
        let v = h.wait_csts_any();
        if v & RDY != 0 {
            h.queue(0, Sqe::new(admin::KEEP_ALIVE));
            h.ring_sq(0);
            h.wait_csts(CFS, CFS);
        }
        assert_ne!(h.csts() & CFS, 0, "{what}");
        h.enable();
        h.get_feature(0x07).ok();
    }
}

/// An I/O queue's memory vanishes: fatal, and curable by a reset.
#[test]
fn io_queue_memory_unmapped() {
    let d = Daemon::start("");
    let mut h = Host::attach(&d);
    for sq_goes in [true, false] {
        let other = Ram::new(0x9_0000_0000, 1 << 20);
        h.client.map_ram(&other);
        let base = other.base();
        let here = h.ram.pages(1);
        let (sq, cq) = if sq_goes { (base, here) } else { (here, base) };
        h.set_queue_count(1);
        h.create_cq_at(1, 8, None, cq);
        h.admin(Host::create_sq_sqe(1, 8, sq, 1)).ok();
        for p in &other.pieces {
            let a = h.client.dma_unmap(p.iova, p.len);
            assert!(matches!(a, Answer::Done(..)));
        }
        h.ram.write(here, &[0; 4096]);
        h.doorbell(2, 1);
        h.wait_csts(CFS, CFS);
        h.enable();
    }
    h.io_queues(1, 8);
    let ns = Ns::facts(&mut h, 1);
    h.read(1, &ns, 0, 1);
}

#[test]
fn shutdown() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    let mut ns = Ns::identify(&mut h, 1);
    for shn in [1u32, 2] {
        h.write(1, &mut ns, 5, 3, u64::from(shn));
        h.client.w32(reg::CC, CC_LINUX | CC_EN | shn << 14);
        let v = h.wait_csts(SHST, 0x8);
        assert_eq!(v & CFS, 0);
        // As Linux does: EN to 0, SHST to 0, and up again.
        h.disable();
        assert_eq!(h.csts() & SHST, 0);
        h.enable();
        h.io_queues(1, 16);
        ns.verify(&mut h, 1);
    }
    // A shutdown of a controller that was never enabled is complete at once.
    h.disable();
    h.client.w32(reg::CC, CC_LINUX | 1 << 14);
    h.wait_csts(SHST, 0x8);
    h.client.w32(reg::CC, CC_LINUX);
    h.wait_csts(SHST, 0);
    h.enable();
}

/// After RDY is 0 nothing of the old life may touch guest memory.
#[test]
fn reset_while_io_is_in_flight() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=32M");
    let mut h = Host::attach(&d);
    for round in 0..10 {
        let mark = h.ram.mark();
        h.io_queues(2, 64);
        let ns = Ns::facts(&mut h, 1);
        let len = 128 * 1024;
        let blocks = (len / ns.lba) as u32;
        let bufs: Vec<Data> = (0..60).map(|_| Data::prp(&mut h.ram, len)).collect();
        for (i, b) in bufs.iter().enumerate() {
            let slba = (i as u64 * 7 % 200) * u64::from(blocks);
            h.queue(1 + (i as u16 & 1), Host::rw(io::READ, &ns, slba, blocks).data(b));
        }
        h.ring_sq(1);
        h.ring_sq(2);
        let cq = [h.cqs[&1].ring.base, h.cqs[&2].ring.base];
        if round % 2 == 0 {
            h.disable();
        } else {
            h.client.reset();
            h.cqs.clear();
        }
        let fill = vec![0x5a; len];
        for b in &bufs {
            b.put(&h.ram, &fill);
        }
        for q in cq {
            h.ram.write(q, &[0x5a; 1024]);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        for b in &bufs {
            assert!(b.get(&h.ram) == fill, "data written after the reset");
        }
        for q in cq {
            assert!(h.ram.read(q, 1024) == [0x5a; 1024], "a CQE after the reset");
        }
        if round % 2 == 1 {
            h.connect_interrupts();
        }
        h.ram.release(mark);
        h.enable();
    }
}

/// IOSQES and IOCQES are judged when a queue is made, not at enable.
#[test]
fn entry_sizes() {
    let d = Daemon::start("");
    let mut h = Host::cold(&d.socket());
    h.admin_queue();
    h.client.w32(reg::CC, CC_EN);
    let v = h.wait_csts_any();
    if v & CFS != 0 {
        return h.enable();
    }
    let base = h.ram.pages(1);
    let c = h.admin(Host::create_cq_sqe(1, 8, base, None));
    assert_ne!(c.status, st::OK);
    // They may be set while the controller runs.
    h.client.w32(reg::CC, CC_LINUX | CC_EN);
    assert_eq!(h.client.r32(reg::CC), CC_LINUX | CC_EN);
    h.create_cq(1, 8, None);
    h.create_sq(1, 8, 1);
    let ns = Ns::facts(&mut h, 1);
    h.read(1, &ns, 0, 1);
}
