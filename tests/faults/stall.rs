//! A disk that hangs: what has to wait for commands in flight is answered in time all the same, and nothing is written
//! to memory that the client has been told is its own again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vfio_user_nvme::disk::LaneKind;
use vfio_user_nvme::disk::{CacheMode, Call, Tap, VolatileLog};

use crate::device::{Device, folder, image, image_by, memory, namespace};
use crate::doubles::{Hang, Job, Kind, Nap, plain};
use crate::host::client::{cmd, message, unmap_body};
use crate::host::ctrl::{CC_EN, CC_LINUX, CFS, RDY, reg};
use crate::host::nvme::{Range, admin, copy, io, st};
use crate::host::{Answer, DEADLINE, Data, Host, Ns, Ram, Sqe};
use crate::with_each_lane;

/// QEMU gives up on an answer after this, and the guest is lost.
const QEMU_GIVES_UP: Duration = Duration::from_secs(5);
/// An answer that waits for nothing; long because the machine may be busy.
const AT_ONCE: Duration = Duration::from_secs(1);
/// A wait that would have ended long ago if it were not for the hung command.
const A_WHILE: Duration = Duration::from_millis(300);

const IMAGE: usize = 1 << 20;
/// What the image is full of.
const ON_DISK: u8 = 0xd1;
/// What the client keeps in pages that are its own.
const OWN: u8 = 0x5a;
/// Where the memory lies that the hung command uses.
const EXTRA: u64 = 0x20_0000_0000;

/// Reads from block 0.
fn first_block(job: &Job) -> bool {
    job.kind == Kind::Read && job.range.0 == 0
}

/// An image (namespace 1) in which reads of block 0 hang, one beside it (2) and a memory namespace (3).
fn device(kind: LaneKind, nvme: &str) -> (Device, Hang) {
    device_with_tap(kind, nvme, None)
}

/// `tap` watches namespace 2.
fn device_with_tap(kind: LaneKind, nvme: &str, tap: Option<Arc<dyn Tap>>) -> (Device, Hang) {
    let (hang, folder) = (Hang::default(), folder());
    let files = [("a", None), ("b", tap)].map(|(name, tap)| image(&folder, name, &[ON_DISK; IMAGE], tap));
    let [a, b] = files.map(Arc::new);
    let list = vec![namespace(1, a), namespace(2, b), namespace(3, memory(IMAGE as u64))];
    let doubles = hang.disks(kind, first_block);
    (Device::start(folder, nvme, list, doubles), hang)
}

/// Memory beside the host's own, full of [`OWN`], mapped.
fn extra(host: &mut Host) -> Ram {
    let extra = Ram::new(EXTRA, 256 << 10);
    give_back(&extra);
    host.client.map_ram(&extra);
    extra
}

/// The client uses its pages for something else.
fn give_back(ram: &Ram) {
    ram.write(ram.base(), &vec![OWN; (ram.end() - ram.base()) as usize]);
}

#[track_caller]
fn is_own(ram: &Ram) {
    let bytes = ram.read(ram.base(), (ram.end() - ram.base()) as usize);
    let at = bytes.iter().position(|b| *b != OWN);
    assert_eq!(at, None, "the client's memory was written");
}

/// A Read of blocks 0..8 to guest address `to` that hangs; its CID.
fn hung_read(host: &mut Host, hang: &Hang, to: u64) -> u16 {
    let ns = Ns::facts(host, 1);
    let cid = host.submit(1, Host::rw(io::READ, &ns, 0, 8).prp(to, 0));
    hang.wait_held(1);
    cid
}

#[track_caller]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

/// Unmaps the piece `index` of `ram`; how long the answer took.
#[track_caller]
fn unmap(host: &mut Host, ram: &Ram, index: usize) -> Duration {
    let piece = ram.pieces[index];
    let (answer, took) = timed(|| host.client.dma_unmap(piece.iova, piece.len));
    assert!(matches!(answer, Answer::Done(..)), "{answer:?}");
    took
}

#[track_caller]
fn in_time(took: Duration) {
    assert!(took > Duration::from_secs(2), "answered after {took:?}, with a command in flight");
    assert!(took < QEMU_GIVES_UP - AT_ONCE, "answered after {took:?}");
}

/// Sets EN, and sees that the controller does not become ready before `end` is called.
fn ready_only_after(host: &mut Host, end: impl FnOnce()) {
    host.admin_queue();
    host.client.w32(reg::CC, CC_LINUX | CC_EN);
    let start = Instant::now();
    while start.elapsed() < A_WHILE {
        assert_eq!(host.csts() & RDY, 0, "ready while a command of the time before is in flight");
        std::thread::sleep(Duration::from_millis(5));
    }
    end();
    assert_eq!(host.wait_csts(RDY, RDY), RDY);
}

/// All namespaces work.
fn works(host: &mut Host) {
    host.enable();
    host.io_queues(2, 64);
    for nsid in 1..=3 {
        let mut ns = Ns::facts(host, nsid);
        for qid in [1, 2] {
            host.write(qid, &mut ns, 100, 16, u64::from(nsid));
            assert!(host.read(qid, &ns, 100, 16) == ns.pattern(100, 16, nsid.into()));
        }
    }
}

#[test]
fn unmap_during_a_hung_read() {
    with_each_lane(|kind| {
        let (device, hang) = device(kind, "iothreads=2");
        let mut host = device.host(2);
        let extra = extra(&mut host);
        let target = extra.pieces[1];
        hung_read(&mut host, &hang, target.iova + 0x1000);
        let since = Instant::now();

        // The rest of the device lives on: other blocks, other namespaces, other queues, other memory.
        for (qid, nsid, slba) in [(1, 1, 8), (1, 2, 0x80), (1, 3, 0), (2, 1, 8), (2, 2, 0x80), (2, 3, 0)] {
            let ns = Ns::facts(&mut host, nsid);
            let content = if nsid == 3 { 0 } else { ON_DISK };
            assert!(host.read(qid, &ns, slba, 8).iter().all(|b| *b == content));
        }
        let took = unmap(&mut host, &extra, 0);
        assert!(took < AT_ONCE, "an unmap of memory that nobody uses took {took:?}");
        assert_eq!(host.csts(), RDY);

        in_time(unmap(&mut host, &extra, 1));
        assert_eq!(host.csts() & CFS, CFS);
        give_back(&extra);

        // The host's way out of CFS, while the disk still hangs.
        let ((), took) = timed(|| host.client.reset());
        in_time(took);
        host.connect_interrupts();
        ready_only_after(&mut host, || {
            std::thread::sleep(Duration::from_secs(10).saturating_sub(since.elapsed()));
            is_own(&extra);
            hang.end();
        });
        works(&mut host);
        is_own(&extra);
        drop(host);
        device.ends_well();
    });
}

/// A client that hangs up while it is owed an answer is gone at once: the next one does not wait for that answer.
#[test]
fn hang_up_while_an_answer_is_owed() {
    with_each_lane(|kind| {
        let (device, hang) = device(kind, "");
        let mut host = device.host(1);
        let extra = extra(&mut host);
        hung_read(&mut host, &hang, extra.base());
        let body = unmap_body(extra.base(), extra.pieces[0].len);
        host.client.send_raw(&message(1, cmd::DMA_UNMAP, 0, &body), &[]).expect("sent");
        // The next message is not taken before the answer: the unmap is under way when the client hangs up.
        std::thread::sleep(A_WHILE);
        drop(host);
        let (next, took) = timed(|| Host::cold(&device.socket()));
        assert!(took < AT_ONCE, "let in after {took:?}");
        hang.end();
        drop(next);
        device.ends_well();
    });
}

/// What a client left in the page of doorbells is not there for the next one, whatever still hangs.
#[test]
fn the_next_client_finds_no_doorbells_of_the_last() {
    with_each_lane(|kind| {
        let (device, hang) = device(kind, "doorbells=mmap");
        let mut host = device.host(1);
        let page = host.client.map_doorbells().expect("mapped");
        let to = host.ram.base();
        hung_read(&mut host, &hang, to);
        // None of a queue that is there.
        (200..1024).for_each(|index| page.word(index).store(0x5ec7e7, Ordering::Release));
        drop(host);
        let mut next = Host::cold(&device.socket());
        let page = next.client.map_doorbells().expect("mapped");
        let left = (0..1024).filter(|index| page.word(*index).load(Ordering::Acquire) != 0).count();
        assert_eq!(left, 0, "doorbells of the last client");
        hang.end();
        drop(next);
        device.ends_well();
    });
}

/// A disk that is slow, but not too slow: the unmap waits for it, and nothing is lost.
#[test]
fn unmap_waits_for_a_slow_read() {
    with_each_lane(|kind| {
        let (device, hang) = device(kind, "");
        let mut host = device.host(2);
        let extra = extra(&mut host);
        let cid = hung_read(&mut host, &hang, extra.base());
        let slow = Duration::from_millis(700);
        let took = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(slow);
                hang.end();
            });
            unmap(&mut host, &extra, 0)
        });
        assert!(took > slow - Duration::from_millis(100) && took < slow + AT_ONCE, "{took:?}");
        assert!(
            extra.read(extra.base(), 4096).iter().all(|b| *b == ON_DISK),
            "the data came before the answer"
        );
        host.wait(1, cid).ok();
        assert_eq!(host.csts(), RDY);
        drop(host);
        device.ends_well();
    });
}

#[test]
fn unmap_with_nothing_in_flight() {
    with_each_lane(|kind| {
        let folder = folder();
        let a = image(&folder, "a", &[ON_DISK; IMAGE], None);
        let device = Device::start(folder, "iothreads=4", vec![namespace(1, Arc::new(a))], plain(kind));
        let mut host = device.host(4);
        let ns = Ns::facts(&mut host, 1);
        for round in 0..20 {
            let extra = extra(&mut host);
            let sqe = Host::rw(io::READ, &ns, 0, 8).prp(extra.base(), 0);
            host.exec(1 + round % 4, sqe).ok();
            for piece in 0..4 {
                let took = unmap(&mut host, &extra, piece);
                assert!(took < AT_ONCE, "{took:?}");
            }
            // Memory that is gone fails the command and nothing else.
            host.exec(1, sqe).is(st::DATA_TRANSFER, "a read to memory that was unmapped");
        }
    });
}

/// Commands that hang hold all slots of the worker that their queues may have; those that memory does at once need none, whether it was awake when
/// they came or asleep.
#[test]
fn memory_goes_on_while_every_slot_hangs() {
    with_each_lane(|kind| {
        let (device, hang) = device(kind, "");
        let mut host = Host::cold(&device.socket());
        host.enable();
        host.set_queue_count(3);
        for (qid, size) in [(1, 1024), (2, 1024), (3, 64)] {
            host.create_cq(qid, size, Some(qid));
            host.create_sq(qid, size, qid);
        }
        let (file, mut ram) = (Ns::facts(&mut host, 1), Ns::identify(&mut host, 3));
        let page = host.ram.pages(1);
        let hung = Host::rw(io::READ, &file, 0, 8).prp(page, 0);
        // More than there are slots: the last ones stay in their queues. Of 1024 slots the first queue has the half that
        // is for who comes first, the second one its part of the other half.
        for (qid, count, held) in [(1, 1023, 512), (2, 400, 512 + 256)] {
            for _ in 0..count {
                host.queue(qid, hung);
            }
            host.ring_sq(qid);
            hang.wait_held(held);
        }
        for round in 0..10 {
            host.write(3, &mut ram, round, 1, round);
            assert_eq!(host.read(3, &ram, round, 1), ram.at(round, 1));
            std::thread::sleep(Duration::from_millis(2));
        }
        hang.end();
        let mut left = 1023 + 400;
        while left > 0 {
            left -= host.drain(1) + host.drain(2);
        }
        host.forget(1);
        host.forget(2);
        drop(host);
        device.ends_well();
    });
}

#[test]
fn reset_during_a_hung_read() {
    with_each_lane(|kind| {
        let (device, hang) = device(kind, "");
        let mut host = device.host(2);
        let extra = extra(&mut host);
        hung_read(&mut host, &hang, extra.base());
        let ((), took) = timed(|| host.client.reset());
        in_time(took);
        give_back(&extra);
        assert_eq!(host.csts() & RDY, 0);
        host.connect_interrupts();
        ready_only_after(&mut host, || hang.end());
        is_own(&extra);
        works(&mut host);
        // The memory is still mapped, and of use.
        let ns = Ns::facts(&mut host, 1);
        host.exec(1, Host::rw(io::READ, &ns, 8, 8).prp(extra.base() + 0x1000, 0)).ok();
        assert!(extra.read(extra.base() + 0x1000, 4096).iter().all(|b| *b == ON_DISK));
        extra.write(extra.base() + 0x1000, &[OWN; 4096]);
        is_own(&extra);
        drop(host);
        device.ends_well();
    });
}

/// A Copy that still asks for its sources (DULBE) ends by an Abort or a reset without a write.
#[test]
fn a_copy_whose_probe_hangs() {
    with_each_lane(|kind| {
        for aborted in [true, false] {
            let (hang, folder) = (Hang::default(), folder());
            let a = Arc::new(image(&folder, "a", &[ON_DISK; IMAGE], None));
            let doubles = hang.disks(kind, |job| job.kind == Kind::Probe && job.range.0 == 0);
            let device = Device::start(folder, "", vec![namespace(1, a)], doubles);
            let mut host = device.host(1);
            host.admin(Sqe::new(admin::SET_FEATURES).nsid(1).cdw(10, 5).cdw(11, 1 << 16)).ok();
            // Sources that differ from the destination.
            let mut ns = Ns::facts(&mut host, 1);
            host.write(1, &mut ns, 0, 100, 1);
            let before = device.file("a");
            let data = Data::prp(&mut host.ram, 64);
            data.put(&host.ram, &[Range::new(0, 8).bytes(0), Range::new(64, 8).bytes(0)].concat());
            let cid = host.submit(1, copy(1, 500, 2, 0).data(&data));
            hang.wait_held(1);
            if aborted {
                let abort = host.submit(0, Sqe::new(admin::ABORT).cdw(10, u32::from(cid) << 16 | 1));
                assert_eq!(host.try_wait(0, abort, A_WHILE), None, "nobody knows yet how it will end");
                hang.end();
                assert_eq!(host.wait(0, abort).ok().dw0 & 1, 0, "it was aborted");
                let done = host.wait(1, cid);
                done.is(st::ABORT_REQUESTED, "copy");
                assert_eq!(done.dw0, 0);
            } else {
                host.client.w32(reg::CC, CC_LINUX);
                std::thread::sleep(A_WHILE);
                assert_eq!(host.csts(), RDY, "the reset is over although a probe is in flight");
                hang.end();
                host.wait_csts(RDY, 0);
                host.enable();
                host.io_queues(1, 64);
            }
            assert!(device.file("a") == before, "nothing was written");
            host.send(1, copy(1, 500, 1, 0), &Range::new(0, 8).bytes(0)).ok();
            assert!(device.file("a") != before);
            drop(host);
            device.ends_well();
        }
    });
}

/// A Copy of so many blocks, the first write of which hangs; its CID on queue 1.
fn copy_whose_writes_hang(kind: LaneKind, blocks: u32) -> (Hang, Device, Host, u16) {
    let (hang, folder) = (Hang::default(), folder());
    let a = Arc::new(image(&folder, "a", &vec![ON_DISK; 32 << 20], None));
    let writes = |job: &Job| matches!(job.kind, Kind::Write | Kind::ReadWrite);
    let device = Device::start(folder, "", vec![namespace(1, a)], hang.disks(kind, writes));
    let mut host = device.host(1);
    let data = Data::prp(&mut host.ram, 32);
    data.put(&host.ram, &Range::new(0, blocks).bytes(0));
    let cid = host.submit(1, copy(1, 32768, 1, 0).data(&data));
    hang.wait_held(1);
    (hang, device, host, cid)
}

/// What a Copy does becomes known when it is over, and then the Abort says it: one that was past stopping has not been
/// aborted. A host that is told that it was finds its completion, and nothing is written any more.
#[test]
fn an_abort_says_what_became_of_a_copy() {
    with_each_lane(|kind| {
        for (blocks, aborted) in [(16, false), (16384, true)] {
            let (hang, device, mut host, cid) = copy_whose_writes_hang(kind, blocks);
            let sqe = Sqe::new(admin::ABORT).cdw(10, u32::from(cid) << 16 | 1);
            // Each of several is told.
            let aborts = [host.submit(0, sqe), host.submit(0, sqe)];
            for abort in aborts {
                assert_eq!(host.try_wait(0, abort, A_WHILE), None, "nobody knows yet how it will end");
            }
            host.get_feature(7).ok();
            hang.end();
            for abort in aborts {
                assert_eq!(host.wait(0, abort).ok().dw0 & 1, u32::from(!aborted), "{kind}: {blocks} blocks");
            }
            assert_eq!(host.drain(1), 1, "it is over before its Abort is");
            let done = host.wait(1, cid);
            assert_eq!(done.status, if aborted { st::ABORT_REQUESTED } else { st::OK });
            drop(host);
            device.ends_well();
        }
    });
}

/// The host deletes the queue of a Copy: what becomes of that has a status of its own.
#[test]
fn a_copy_whose_queue_goes() {
    with_each_lane(|kind| {
        let (hang, device, mut host, cid) = copy_whose_writes_hang(kind, 16384);
        let deletion = host.submit(0, Sqe::new(admin::DELETE_SQ).cdw(10, 1));
        assert_eq!(host.try_wait(0, deletion, A_WHILE), None, "its command is in flight");
        hang.end();
        host.wait(0, deletion).ok();
        assert_eq!(host.drain(1), 1, "it is over before its queue is");
        host.wait(1, cid).is(st::SQ_DELETION, "copy");
        drop(host);
        device.ends_well();
    });
}

/// A reset with nothing in flight, or whose command ends in time, is no affair.
#[test]
fn reset_in_time() {
    with_each_lane(|kind| {
        let (device, hang) = device(kind, "iothreads=2");
        let mut host = device.host(2);
        let ((), took) = timed(|| host.client.reset());
        assert!(took < AT_ONCE, "{took:?}");
        host.connect_interrupts();
        host.enable();
        host.io_queues(2, 64);
        let extra = extra(&mut host);
        hung_read(&mut host, &hang, extra.base());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(500));
                hang.end();
            });
            let ((), took) = timed(|| host.client.reset());
            assert!(
                took > Duration::from_millis(400) && took < Duration::from_millis(500) + AT_ONCE,
                "{took:?}"
            );
        });
        assert_eq!(host.csts(), 0);
        host.connect_interrupts();
        works(&mut host);
        drop(host);
        device.ends_well();
    });
}

/// CC.EN 1 to 0 and back without a reset of the function: RDY goes and comes only when the command has ended.
#[test]
fn disable_during_a_hung_read() {
    with_each_lane(|kind| {
        let (device, hang) = device(kind, "");
        let mut host = device.host(1);
        let extra = extra(&mut host);
        hung_read(&mut host, &hang, extra.base());
        host.client.w32(reg::CC, CC_LINUX);
        std::thread::sleep(A_WHILE);
        assert_eq!(host.csts(), RDY, "the reset is over although a command is in flight");
        hang.end();
        host.wait_csts(RDY, 0);
        assert_eq!(host.csts(), 0);
        works(&mut host);
        drop(host);
        device.ends_well();
    });
}

#[test]
fn disconnect_during_a_hung_read() {
    with_each_lane(|kind| {
        let (device, hang) = device(kind, "iothreads=2");
        let mut host = device.host(2);
        let old = extra(&mut host);
        hung_read(&mut host, &hang, old.base());
        drop(host);
        let (mut host, took) = timed(|| Host::cold(&device.socket()));
        assert!(took < 2 * AT_ONCE, "the next client was let in after {took:?}");
        assert_eq!(host.csts(), 0);
        // The same addresses, other pages.
        let fresh = extra(&mut host);
        let took = unmap(&mut host, &fresh, 0);
        assert!(took < AT_ONCE, "the hung command's memory is not this client's: {took:?}");
        ready_only_after(&mut host, || hang.end());
        is_own(&fresh);
        works(&mut host);
        is_own(&fresh);
        drop(host);
        device.ends_well();
    });
}

/// The next client resets the device, as QEMU does when it starts, while the last one's command still hangs.
#[test]
fn next_client_resets_during_a_hung_read() {
    with_each_lane(|kind| {
        let (device, hang) = device(kind, "");
        let mut host = device.host(1);
        let old = extra(&mut host);
        hung_read(&mut host, &hang, old.base());
        drop(host);
        let mut host = Host::cold(&device.socket());
        let ((), took) = timed(|| host.client.reset());
        in_time(took);
        host.connect_interrupts();
        ready_only_after(&mut host, || hang.end());
        works(&mut host);
        drop(host);
        device.ends_well();
    });
}

/// A worker that is slow to learn that its queues are gone finds none of the next client's memory at their addresses,
/// and what it makes of that is no concern of the next client.
#[test]
fn queues_vanish_under_a_slow_worker() {
    with_each_lane(|kind| {
        let (nap, folder) = (Nap::default(), folder());
        let a = image(&folder, "a", &[ON_DISK; IMAGE], None);
        let device = Device::start(folder, "", vec![namespace(1, Arc::new(a))], nap.lanes(kind));
        for _ in 0..3 {
            let mut host = device.host(1);
            let ns = Ns::facts(&mut host, 1);
            let to = host.ram.pages(1);
            nap.take(A_WHILE);
            host.submit(1, Host::rw(io::READ, &ns, 0, 8).prp(to, 0));
            nap.wait();
            drop(host);
            let mut host = Host::cold(&device.socket());
            assert_eq!(host.csts(), 0);
            std::thread::sleep(2 * A_WHILE);
            assert_eq!(host.csts(), 0);
            assert!(
                host.ram.read(host.ram.base(), 1 << 20) == [0; 1 << 20],
                "memory of the next client was written"
            );
            host.enable();
        }
        device.ends_well();
    });
}

/// Bounded; and what was acknowledged before is made durable all the same.
#[test]
fn stop_during_a_hung_read() {
    with_each_lane(|kind| {
        let log = VolatileLog::new();
        let (mut device, hang) = device_with_tap(kind, "", Some(log.clone()));
        let mut host = device.host(1);
        let extra = extra(&mut host);
        let mut ns = Ns::facts(&mut host, 2);
        host.write(1, &mut ns, 0, 16, 1);
        hung_read(&mut host, &hang, extra.base());
        assert_ne!(log.volatile_writes(), 0);
        let (success, took) = device.stop();
        assert!(!success, "commands were cut off");
        assert!(took > Duration::from_secs(9) && took < Duration::from_secs(12), "{took:?}");
        assert_eq!(log.volatile_writes(), 0);
        assert!(device.file("b")[..16 * 512] == ns.pattern(0, 16, 1));
        host.client.wait_closed();
        hang.end();
    });
}

#[test]
fn stop_waits_for_a_slow_read() {
    with_each_lane(|kind| {
        let (mut device, hang) = device(kind, "");
        let mut host = device.host(1);
        let extra = extra(&mut host);
        hung_read(&mut host, &hang, extra.base());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(1));
                hang.end();
            });
            let (success, took) = device.stop();
            assert!(success);
            assert!(took > Duration::from_millis(900) && took < DEADLINE / 3, "{took:?}");
        });
    });
}

/// Reads of block 0 hang in the kernel until they are let go.
#[derive(Debug, Default)]
struct HangingReads {
    /// Reads that came, and: they may go.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl HangingReads {
    fn wait_held(&self) {
        let state = self.state.lock().expect("nobody panics");
        let waited = self.changed.wait_timeout_while(state, DEADLINE, |(held, _)| *held == 0);
        let (state, late) = waited.expect("nobody panics");
        drop(state);
        assert!(!late.timed_out(), "the read never came");
    }

    fn end(&self) {
        self.state.lock().expect("nobody panics").1 = true;
        self.changed.notify_all();
    }
}

impl Tap for HangingReads {
    fn issued(&self, call: &Call, _: &[u8], _: &std::fs::File) -> u64 {
        if *call == (Call::Preadv { offset: 0 }) {
            let mut state = self.state.lock().expect("nobody panics");
            state.0 += 1;
            self.changed.notify_all();
            drop(self.changed.wait_while(state, |(_, go)| !*go).expect("nobody panics"));
        }
        0
    }
    fn completed(&self, _: u64, _: &Call, _: Result<u32, i32>) {}
}

/// The kernel has the pages of a direct transfer themselves, which nobody can take away: the client is told that its
/// memory is not its own yet. Through the page cache it is.
#[test]
fn unmap_during_a_direct_read_that_hangs() {
    with_each_lane(|kind| {
        for (cache, held) in [(CacheMode::None, true), (CacheMode::Writeback, false)] {
            let (folder, hang) = (folder(), Arc::new(HangingReads::default()));
            let a = image_by(&folder, "a", &[ON_DISK; IMAGE], Some(hang.clone()), cache);
            let list = vec![
                namespace(1, Arc::new(a)),
                namespace(2, memory(IMAGE as u64)),
                namespace(3, memory(IMAGE as u64)),
            ];
            let device = Device::start(folder, "", list, plain(kind));
            let mut host = device.host(2);
            let extra = extra(&mut host);
            let ns = Ns::facts(&mut host, 1);
            host.submit(1, Host::rw(io::READ, &ns, 0, 8).prp(extra.base(), 0));
            hang.wait_held();
            let piece = extra.pieces[0];
            let (answer, took) = timed(|| host.client.dma_unmap(piece.iova, piece.len));
            in_time(took);
            match answer {
                Answer::Refused(_) => assert!(held, "{cache:?}: refused"),
                Answer::Done(..) => assert!(!held, "{cache:?}: the kernel has the pages"),
                other @ Answer::Closed => panic!("{other:?}"),
            }
            assert_eq!(host.csts() & CFS, CFS);
            hang.end();
            // As after any other hung command.
            host.client.reset();
            host.connect_interrupts();
            works(&mut host);
            drop(host);
            device.ends_well();
        }
    });
}
