//! The vfio-user messages that QEMU, SPDK and cloud-hypervisor send, with their oddities.

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use rustix::event::{EventfdFlags, eventfd};

use crate::host::client::{
    Answer, BAR0, CONFIG, Client, NO_REPLY, QEMU_VERSION_JSON, access, cmd, irq, message, unmap_body,
    version_body,
};
use crate::host::ctrl::{find_capability, pci_ids, reg};
use crate::host::le::{put32, u16_at, u32_at};
use crate::host::*;

const EEXIST: u32 = 17;
/// The last page of the address space.
const LAST_PAGE: u64 = !0xfff;

#[test]
fn version_as_qemu_asks() {
    let d = Daemon::start("");
    let mut c = Client::connect(&d.socket());
    let (major, minor, json) = c.version(0, Some(QEMU_VERSION_JSON));
    assert_eq!((major, minor), (0, 0));
    // QEMU receives the answer into its own request's 214 bytes.
    assert!(json.len() + 1 + 4 + 16 <= 214, "{json}");
    let v: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let caps = v["capabilities"].as_object().expect("capabilities");
    let fds = caps["max_msg_fds"].as_u64().unwrap();
    assert!((1..=16).contains(&fds), "{json}");
    assert!(caps["max_data_xfer_size"].as_u64().unwrap() <= 64 << 20);
    if let Some(m) = caps.get("max_dma_maps") {
        assert!((1..=65535).contains(&m.as_u64().unwrap()));
    }
}

#[test]
fn version_without_json_as_spdk_asks() {
    let d = Daemon::start("");
    let mut c = Client::connect(&d.socket());
    let (major, minor, _) = c.version(1, None);
    assert_eq!(major, 0);
    assert!(minor <= 1);
    assert_eq!(c.info().1, 9);
}

/// SPDK's client must map the doorbells. Where it cannot, it looks the device over, leaves without having touched a
/// register, and says no more than that there is an error; so we say what to do.
#[test]
fn spdk_is_told_that_it_needs_mapped_doorbells() {
    const MEMORY: u64 = 0x2000_0000_0000;
    for (args, told) in [("", true), ("--nvme doorbells=mmap", false)] {
        let d = Daemon::start(args);
        let ram = Ram::new(MEMORY, 2 << 20);
        let mut c = Client::connect(&d.socket());
        c.version(1, None);
        for region in 0..c.info().1 {
            let Answer::Done(info, fds) = c.region_info_argsz(region, 4064) else { panic!("{region}") };
            let mapped = u32_at(&info, 4) & 4 != 0;
            assert_eq!((mapped, fds.len()), (!told && region == BAR0, usize::from(mapped)));
        }
        c.map_ram(&ram);
        for piece in &ram.pieces {
            let body = unmap_body(piece.iova, piece.len);
            assert_eq!(c.must(cmd::DMA_UNMAP, &body, &[ram.fd()]), body);
        }
        drop(c);
        // The next one is let in when the last has gone. It touches a register, and is told nothing.
        let mut c = d.client();
        let log = d.log_with("doorbells=mmap", usize::from(told));
        assert_eq!(log.matches("doorbells=mmap").count(), usize::from(told), "{log}");
        c.map_ram(&ram);
        c.config16(0);
        drop(c);
        d.client();
        assert_eq!(d.log().matches("doorbells=mmap").count(), usize::from(told), "{}", d.log());
    }
}

#[test]
fn version_comes_first_and_once() {
    let d = Daemon::start("");
    let mut c = Client::connect(&d.socket());
    let mut b = [0; 16];
    put32(&mut b, 0, 16);
    assert!(c.ask(cmd::GET_INFO, &b, &[]).not_done());

    let mut c = Client::attach_when_free(&d.socket());
    let again = c.ask(cmd::VERSION, &version_body(0, None), &[]);
    assert!(again.not_done(), "{again:?}");

    let mut c = Client::attach_when_free(&d.socket());
    assert_eq!(c.info().1, 9);
}

#[test]
fn version_that_cannot_be_spoken() {
    let d = Daemon::start("");
    let bodies: [&[u8]; 6] = [
        &[],
        &[0, 0],
        &[7, 0, 0, 0],
        b"\0\0\0\0{\"capabilities\":{}}",
        b"\0\0\0\0{\"capabilities\":\0",
        b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":\"x\"}}\0",
    ];
    for (i, b) in bodies.iter().enumerate() {
        let mut c = Client::connect(&d.socket());
        let a = c.ask(cmd::VERSION, b, &[]);
        // A missing NUL and an odd value may be forgiven; the others cannot be understood.
        assert!(a.not_done() || matches!(i, 3 | 5), "{i}: {a:?}");
        drop(c);
        Client::attach_when_free(&d.socket());
    }
}

#[test]
fn device_regions_and_interrupts() {
    let d = Daemon::start("");
    let mut c = d.client();
    let (flags, regions, irqs) = c.info();
    assert_eq!(flags & 3, 3, "reset and PCI");
    assert_eq!((regions, irqs), (9, 5));

    let bar0 = c.region_info(BAR0);
    assert_eq!(bar0.flags & 3, 3);
    assert!(bar0.size >= 0x2000 && bar0.size.is_power_of_two(), "{bar0:?}");
    let config = c.region_info(CONFIG);
    assert_eq!(config.flags & 3, 3);
    assert_eq!(config.size, 4096);
    let msix = c.region_info(4);
    assert!(msix.size >= 4096, "MSI-X lives in BAR 4");
    assert_eq!(msix.flags & 4, 0, "the MSI-X table must not be mapped");
    for i in [1, 2, 3, 5, 6, 8] {
        let r = c.region_info(i);
        assert_eq!((r.size, r.flags), (0, 0), "region {i}");
    }
    for i in 0..9 {
        let r = c.region_info(i);
        assert!(r.argsz >= 32);
        assert!(r.flags & 8 == 0 || r.cap_offset >= 32, "{r:?}");
        // SPDK asks with 4064 bytes, and QEMU a second time with what the first answer named.
        for argsz in [4064, r.argsz] {
            let Answer::Done(body, fds) = c.region_info_argsz(i, argsz) else {
                panic!("region {i} argsz {argsz}");
            };
            assert!(fds.len() <= 1 && body.len() <= argsz as usize);
            assert_eq!(u32_at(&body, 8), i);
        }
    }
    assert!(c.region_info_argsz(9, 32).refused());
    assert!(c.region_info_argsz(u32::MAX, 32).refused());

    let msix = c.irq_info(irq::MSIX);
    assert!(msix.count >= 2 && msix.count <= 2048);
    assert_eq!(msix.flags & 1, 1, "eventfd");
    assert_eq!(msix.flags & 8, 0, "NORESIZE loses interrupts in QEMU");
    assert_eq!(c.irq_info(0).count, 0, "no INTx");
    assert_eq!(c.irq_info(1).count, 0, "no MSI");
    let mut b = [0; 16];
    put32(&mut b, 0, 16);
    put32(&mut b, 8, 5);
    assert!(c.ask(cmd::GET_IRQ_INFO, &b, &[]).refused());
}

#[test]
fn configuration_space() {
    let d = Daemon::start("");
    let mut c = d.client();
    let all = c.read(CONFIG, 0, 4096);
    assert_eq!(all[9..12], [0x02, 0x08, 0x01], "class code: NVMe");
    assert_eq!(all[0x0e] & 0x7f, 0, "header type");
    assert_eq!(all[0x3d], 0, "interrupt pin");
    let ids = pci_ids(&mut c);
    assert_ne!(ids, (0x1b36, 0x0010), "Linux ignores namespace ids there");
    assert!(ids.0 != 0 && ids.0 != 0xffff);

    for n in [1u32, 2, 4] {
        for at in (0..256).step_by(n as usize) {
            let part = c.read(CONFIG, at, n);
            assert_eq!(part, all[at as usize..at as usize + n as usize], "{at:#x}");
        }
    }

    let msix = find_capability(&mut c, 0x11).expect("MSI-X");
    let size = u16_at(&c.read(CONFIG, msix + 2, 2), 0) & 0x7ff;
    assert_eq!(u32::from(size) + 1, c.irq_info(irq::MSIX).count);
    let table = u32_at(&c.read(CONFIG, msix + 4, 4), 0);
    let pba = u32_at(&c.read(CONFIG, msix + 8, 4), 0);
    assert_eq!((table & 7, pba & 7), (4, 4), "both in BAR 4");
    let bar4 = c.region_info(4).size;
    assert!(u64::from(table & !7) + 16 * (u64::from(size) + 1) <= bar4);
    assert!(u64::from(pba & !7) < bar4);
    find_capability(&mut c, 0x10).expect("PCI Express");
    find_capability(&mut c, 0x01).expect("power management");

    // Sizing a BAR: all ones written, the size's bits stay zero; the type bits are constant.
    for (bar, at) in [(0, 0x10u64), (4, 0x20)] {
        let size = c.region_info(bar).size;
        let before = u32_at(&c.read(CONFIG, at, 4), 0);
        c.write(CONFIG, at, &[0xff; 4]);
        let sized = u32_at(&c.read(CONFIG, at, 4), 0);
        assert_eq!(sized & 0xf, before & 0xf);
        assert_eq!(u64::from(!(sized & !0xf)) + 1, size, "BAR {bar}");
        c.write(CONFIG, at, &before.to_le_bytes());
    }
    // A ROM register that keeps what is written makes QEMU invent a ROM.
    c.write(CONFIG, 0x30, &0xffff_f800u32.to_le_bytes());
    assert_eq!(c.read(CONFIG, 0x30, 4), [0; 4]);
    // Read-only fields stay.
    c.write(CONFIG, 0, &[0; 4]);
    assert_eq!(pci_ids(&mut c), ids);
    // Posted, of any width.
    c.post(CONFIG, 0x3c, &[0x5a]);
    assert_eq!(c.read(CONFIG, 0x3c, 1), [0x5a]);
    c.post(CONFIG, 4, &[0x06, 0x04]);
    assert_eq!(c.config16(4) & 0x406, 0x406);
    // QEMU writes to the read-only registers beyond, too.
    c.write(CONFIG, 0x100, &[0xff; 16]);
    c.write(CONFIG, 4092, &[0xff; 4]);
}

#[test]
fn accesses_outside_a_region_harm_nobody() {
    let d = Daemon::start("");
    let mut c = d.client();
    let size = c.region_info(BAR0).size;
    // cloud-hypervisor cannot read an error reply here, so either answer is fine; silence or a hang-up is not.
    for (region, offset, count) in [
        (BAR0, size, 4),
        (BAR0, size - 2, 4),
        (BAR0, u64::MAX - 3, 8),
        (CONFIG, 4096, 4),
        (1, 0, 4),
        (6, 0, 4),
        (8, 0, 1),
        (9, 0, 4),
        (77, 0, 4),
        (u32::MAX, 0, 4),
        (BAR0, 0, 0),
        (BAR0, 1, 2),
        (BAR0, 3, 7),
        (BAR0, reg::DOORBELLS, 4),
    ] {
        match c.region_read(region, offset, count) {
            Answer::Done(b, _) => assert_eq!(b.len(), 16 + count as usize),
            Answer::Refused(_) => {}
            Answer::Closed => panic!("region {region} {offset:#x}+{count}"),
        }
        let a = c.region_write(region, offset, &vec![0; count as usize]);
        assert!(!matches!(a, Answer::Closed), "{region} {offset:#x}+{count}");
        c.post(region, offset, &vec![0; count as usize]);
        assert_eq!(c.r32(reg::VS), 0x0002_0000);
    }
    // More than max_data_xfer_size, and a count that is not what follows.
    for (count, body) in [(u32::MAX, 0), (2 << 20, 0), (8, 4), (4, 8)] {
        let mut b = access(BAR0, 0, count).to_vec();
        b.resize(16 + body, 0);
        let a = c.ask(cmd::REGION_WRITE, &b, &[]);
        assert!(a.not_done(), "write of {count} with {body} bytes: {a:?}");
        c = Client::attach_when_free_after(a, c, &d.socket());
        let a = c.region_read(BAR0, 0, count.max(2 << 20));
        assert!(a.not_done(), "read of {count}: {a:?}");
        c = Client::attach_when_free_after(a, c, &d.socket());
    }
}

#[test]
fn several_messages_in_one_packet_and_one_in_several() {
    let d = Daemon::start("");
    let mut c = d.client();
    let mut all = Vec::new();
    for id in 0..50 {
        all.extend(message(id, cmd::REGION_READ, 0, &access(BAR0, reg::VS, 4)));
    }
    c.send_raw(&all, &[]).unwrap();
    for id in 0..50 {
        let r = c.recv().unwrap().expect("open");
        assert_eq!((r.id, r.error), (id, None));
        assert_eq!(u32_at(&r.body, 16), 0x0002_0000);
    }
    let m = message(7, cmd::REGION_READ, 0, &access(BAR0, reg::VS, 4));
    for b in &m {
        c.send_raw(&[*b], &[]).unwrap();
    }
    assert_eq!(c.recv().unwrap().unwrap().id, 7);
    // A posted write between two reads, in one packet, split in the middle of the last message.
    let mut w = access(CONFIG, 0x3c, 1).to_vec();
    w.push(0x77);
    let mut all = message(1, cmd::REGION_READ, 0, &access(CONFIG, 0x3c, 1));
    all.extend(message(2, cmd::REGION_WRITE, NO_REPLY, &w));
    all.extend(message(3, cmd::REGION_READ, 0, &access(CONFIG, 0x3c, 1)));
    let (head, tail) = all.split_at(all.len() - 9);
    c.send_raw(head, &[]).unwrap();
    assert_eq!(c.recv().unwrap().unwrap().id, 1);
    c.send_raw(tail, &[]).unwrap();
    let r = c.recv().unwrap().unwrap();
    assert_eq!((r.id, r.body[16]), (3, 0x77));
}

#[test]
fn memory_maps() {
    let d = Daemon::start("");
    let mut c = d.client();
    let ram = Ram::new(0x10_0000, 1 << 20);
    let fd = Some((ram.fd(), 0));
    // QEMU maps before it asks for anything else, firmware read-only and without descriptor.
    assert!(matches!(c.dma_map(0x10_0000, 1 << 20, 3, fd), Answer::Done(..)));
    assert!(matches!(c.dma_map(0xc_0000, 0x2_0000, 1, None), Answer::Done(..)));
    assert!(matches!(c.dma_map(0xfffc_0000, 0x4_0000, 1, None), Answer::Done(..)));
    // The device's own BAR, seen as RAM.
    assert!(matches!(c.dma_map(0xfe00_0000, 0x1000, 3, None), Answer::Done(..)));

    for (iova, len) in [
        (0x10_0000, 1u64 << 20),
        (0x10_0000, 0x1000),
        (0xf_f000, 0x2000),
        (0x1f_f000, 0x2000),
        (0x11_0000, 0x1000),
        (0xf_0000, 4 << 20),
        (0xc_0000, 0x1000),
    ] {
        match c.dma_map(iova, len, 3, fd) {
            Answer::Refused(e) => assert_eq!(e, EEXIST, "{iova:#x}+{len:#x}"),
            other => panic!("overlap {iova:#x}+{len:#x}: {other:?}"),
        }
    }
    let past_end = Some((ram.fd(), 0xf_f000));
    let wraps = Some((ram.fd(), LAST_PAGE));
    for (what, a) in [
        ("size 0", c.dma_map(0x100_0000, 0, 3, fd)),
        ("address wraps", c.dma_map(LAST_PAGE, 0x2000, 3, fd)),
        ("beyond the file", c.dma_map(0x100_0000, 2 << 20, 3, fd)),
        ("offset beyond", c.dma_map(0x100_0000, 0x2000, 3, past_end)),
        ("offset wraps", c.dma_map(0x100_0000, 0x2000, 3, wraps)),
        ("offset unaligned", c.dma_map(0x100_0000, 0x1000, 3, Some((ram.fd(), 17)))),
        ("unmap of nothing", c.dma_unmap(0x500_0000, 0x1000)),
        ("unmap of a part", c.dma_unmap(0x10_0000, 0x1000)),
        ("unmap wraps", c.dma_unmap(LAST_PAGE, 0x2000)),
        ("too short", c.ask(cmd::DMA_MAP, &[0; 16], &[])),
        ("unmap too short", c.ask(cmd::DMA_UNMAP, &[0; 8], &[])),
    ] {
        assert!(a.refused(), "{what}: {a:?}");
    }
    // A pipe is not memory.
    let (r, _w) = rustix::pipe::pipe().unwrap();
    assert!(c.dma_map(0x100_0000, 0x1000, 3, Some((r.as_fd(), 0))).refused());

    let body = unmap_body(0x10_0000, 1 << 20);
    assert_eq!(c.must(cmd::DMA_UNMAP, &body, &[]), body);
    // SPDK attaches the descriptor once more.
    assert!(matches!(c.dma_map(0x10_0000, 1 << 20, 3, fd), Answer::Done(..)));
    assert_eq!(c.must(cmd::DMA_UNMAP, &body, &[ram.fd()]), body);
    // Firmware: unmapped and mapped again in pieces, over and over.
    let before = d.open_files();
    for _ in 0..100 {
        for i in 0..4 {
            let at = 0x10_0000 + i * 0x4_0000;
            let a = c.dma_map(at, 0x4_0000, 3, Some((ram.fd(), i * 0x4_0000)));
            assert!(matches!(a, Answer::Done(..)));
        }
        for i in 0..4 {
            let a = c.dma_unmap(0x10_0000 + i * 0x4_0000, 0x4_0000);
            assert!(matches!(a, Answer::Done(..)));
        }
    }
    assert!(d.open_files() <= before + 2, "descriptors pile up");
}

#[test]
fn number_of_maps_is_bounded() {
    let d = Daemon::start("");
    let mut c = d.client();
    let mut refused = 0;
    for i in 0..70_000u64 {
        match c.dma_map(i * 0x2000, 0x1000, 3, None) {
            Answer::Done(..) => {}
            Answer::Refused(_) => {
                refused += 1;
                break;
            }
            Answer::Closed => panic!("hung up at {i}"),
        }
    }
    assert_eq!(refused, 1, "65535 is what QEMU stops at");
    assert_eq!(c.r32(reg::VS), 0x0002_0000);
}

#[test]
fn interrupts_are_set_as_qemu_sets_them() {
    let d = Daemon::start("");
    let mut c = d.client();
    let count = c.irq_info(irq::MSIX).count;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let fd = eventfd(0, flags).unwrap();
    let on = irq::EVENTFD | irq::TRIGGER;
    let off = irq::NONE | irq::TRIGGER;
    let done = |a: Answer, what: &str| assert!(matches!(a, Answer::Done(..)), "{what}: {a:?}");
    done(c.set_irqs(0, off, 0, 0, &[]), "INTx off");
    done(c.set_irqs(irq::MSIX, on, 0, 1, &[]), "enabled, no vector");
    done(c.set_irqs(irq::MSIX, on, 1, 1, &[fd.as_fd()]), "vector 1");
    done(c.set_irqs(irq::MSIX, on, 1, 1, &[fd.as_fd()]), "vector 1 again");
    done(c.set_irqs(irq::MSIX, on, 1, 1, &[]), "vector 1 de-assigned");
    done(c.set_irqs(irq::MSIX, on, 0, 2, &[fd.as_fd(), fd.as_fd()]), "two");
    done(c.set_irqs(irq::MSIX, off, 0, 0, &[]), "all off");

    for (what, a) in [
        ("start past the end", c.set_irqs(irq::MSIX, on, count, 1, &[fd.as_fd()])),
        ("count past the end", c.set_irqs(irq::MSIX, on, count - 1, 2, &[fd.as_fd(), fd.as_fd()])),
        ("start wraps", c.set_irqs(irq::MSIX, on, u32::MAX, 2, &[fd.as_fd(), fd.as_fd()])),
        ("count wraps", c.set_irqs(irq::MSIX, on, 1, u32::MAX, &[fd.as_fd()])),
        ("fewer descriptors", c.set_irqs(irq::MSIX, on, 0, 2, &[fd.as_fd()])),
        ("two kinds of data", c.set_irqs(irq::MSIX, on | irq::NONE, 0, 1, &[fd.as_fd()])),
        ("two actions", c.set_irqs(irq::MSIX, on | irq::MASK, 0, 1, &[fd.as_fd()])),
        ("no action", c.set_irqs(irq::MSIX, irq::EVENTFD, 0, 1, &[fd.as_fd()])),
        ("no such index", c.set_irqs(5, on, 0, 1, &[fd.as_fd()])),
        ("no such index, far", c.set_irqs(u32::MAX, on, 0, 1, &[fd.as_fd()])),
        ("bool without data", c.set_irqs(irq::MSIX, irq::BOOL | irq::TRIGGER, 0, 1, &[])),
        ("too short", c.ask(cmd::SET_IRQS, &[20, 0, 0, 0], &[])),
    ] {
        assert!(a.refused(), "{what}: {a:?}");
    }
    // Index 3 as QEMU does, whatever its count is.
    let n = c.irq_info(3).count;
    if n == 1 {
        done(c.set_irqs(3, on, 0, 1, &[fd.as_fd()]), "ERR");
    }
}

/// Trigger by the client itself (loopback): the eventfd fires, a de-assigned one does not.
#[test]
fn trigger_reaches_the_eventfd() {
    let d = Daemon::start("");
    let h = &mut Host::attach(&d);
    let c = &mut h.client;
    let off = irq::NONE | irq::TRIGGER;
    for v in 0..2 {
        let mut b = [0; 8];
        let _ = rustix::io::read(&h.vectors[v], &mut b);
    }
    let a = c.set_irqs(irq::MSIX, off, 1, 1, &[]);
    if a.refused() {
        return; // optional
    }
    assert_eq!(h.fired(1), 1);
    assert_eq!(h.fired(0), 0);
    // "start n, count 1, no descriptors" must hit n and only n.
    let on = irq::EVENTFD | irq::TRIGGER;
    h.client.set_irqs(irq::MSIX, on, 1, 1, &[]);
    h.client.set_irqs(irq::MSIX, off, 0, 2, &[]);
    assert_eq!(h.fired(1), 0);
    assert_eq!(h.fired(0), 1);
}

/// A descriptor that is no eventfd and blocks: the daemon must not.
#[test]
fn blocking_descriptor_as_interrupt() {
    let d = Daemon::start("");
    let mut h = Host::with_queues(&d, 1, 8);
    let (_r, w) = rustix::pipe::pipe().unwrap();
    let on = irq::EVENTFD | irq::TRIGGER;
    let a = h.client.set_irqs(irq::MSIX, on, 0, 1, &[w.as_fd()]);
    if a.refused() {
        return;
    }
    // 64 KiB of pipe are 8192 interrupts.
    h.cqs.get_mut(&0).unwrap().vector = None;
    for _ in 0..9000 {
        h.get_feature(0x07).ok();
    }
}

#[test]
fn device_reset_is_a_controller_reset_with_defaults() {
    let d = Daemon::start("");
    let mut h = Host::with_queues(&d, 2, 16);
    let mut ns = Ns::facts(&mut h, 1);
    h.write(1, &mut ns, 0, 1, 7);
    h.client.reset();
    for r in [reg::CC, reg::CSTS, reg::AQA] {
        assert_eq!(h.client.r32(r), 0, "register {r:#x}");
    }
    assert_eq!((h.client.r64(reg::ASQ), h.client.r64(reg::ACQ)), (0, 0));
    let command = h.client.config16(4);
    assert_eq!(command & 0x6, 0, "memory and bus master are off");
    // The machine reset again, then the guest boots.
    h.client.reset();
    h.cqs.clear();
    h.sqs.clear();
    h.connect_interrupts();
    h.enable();
    h.io_queues(2, 16);
    assert_eq!(h.read(2, &ns, 0, 1), ns.pattern(0, 1, 7), "data stays");
}

#[test]
fn one_client_at_a_time() {
    let d = Daemon::start("");
    let mut first = d.client();
    for _ in 0..20 {
        let mut second = Client::connect(&d.socket());
        let a = second.ask(cmd::VERSION, &version_body(0, None), &[]);
        assert!(a.not_done(), "a second client got in: {a:?}");
        assert_eq!(first.r32(reg::VS), 0x0002_0000);
    }
    drop(first);
    let mut third = Client::attach_when_free(&d.socket());
    assert_eq!(third.r32(reg::VS), 0x0002_0000);
}

#[test]
fn socket_is_the_owners_alone() {
    let mut d = Daemon::start("");
    let m = std::fs::metadata(d.socket()).unwrap();
    assert_eq!(m.permissions().mode() & 0o777, 0o600);
    d.client();
    d.stop();
}

#[test]
fn stale_socket_file_is_replaced() {
    let mut d = Daemon::start("");
    d.kill();
    assert!(d.socket().exists());
    d.again();
    let mut c = Client::attach_when_free(&d.socket());
    assert_eq!(c.r32(reg::VS), 0x0002_0000);
}
