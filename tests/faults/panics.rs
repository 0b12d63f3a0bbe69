//! A fault of our own in a worker: the process lives, the host is told by CSTS.CFS, and a reset makes all well again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vfio_user_nvme::disk::LaneKind;

use crate::device::{Device, folder, image, namespace};
use crate::doubles::{Hang, Job, Kind, panicking, plain};
use crate::host::ctrl::{CC_EN, CC_LINUX, CFS, RDY, reg};
use crate::host::nvme::io;
use crate::host::{Answer, Host, Ns, Ram};
use crate::with_each_lane;

const AT_ONCE: Duration = Duration::from_millis(2500);
const IMAGE: usize = 1 << 20;
const ON_DISK: u8 = 0xd1;

/// The next job of the kind that panics, when armed, does so.
#[derive(Clone, Default)]
struct Bomb(Arc<AtomicBool>);

impl Bomb {
    fn arm(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn went_off(&self) -> bool {
        !self.0.load(Ordering::SeqCst)
    }

    fn fuse(&self, kind: Kind) -> impl Fn(&Job) -> bool + Clone + Send + Sync + 'static {
        let armed = Arc::clone(&self.0);
        move |job| job.kind == kind && armed.swap(false, Ordering::SeqCst)
    }
}

fn device(kind: LaneKind, panics: Kind) -> (Device, Bomb) {
    let (bomb, folder) = (Bomb::default(), folder());
    let a = image(&folder, "a", &[ON_DISK; IMAGE], None);
    let doubles = panicking(plain(kind), bomb.fuse(panics));
    (Device::start(folder, "iothreads=2", vec![namespace(1, Arc::new(a))], doubles), bomb)
}

/// Every queue reads and writes.
fn works(host: &mut Host, salt: u64) {
    let mut ns = Ns::facts(host, 1);
    for qid in [1, 2] {
        host.write(qid, &mut ns, 100, 16, salt);
        assert!(host.read(qid, &ns, 100, 16) == ns.pattern(100, 16, salt));
    }
}

/// Sends a Read on queue `qid` that panics.
fn set_off(host: &mut Host, bomb: &Bomb, qid: u16, to: u64) {
    bomb.arm();
    host.submit(qid, Sqe::read(to));
    host.wait_csts(CFS, CFS);
    assert!(bomb.went_off());
}

struct Sqe;

impl Sqe {
    /// Blocks 0..8.
    fn read(to: u64) -> crate::host::Sqe {
        crate::host::Sqe::new(io::READ).nsid(1).lba(0, 8).prp(to, 0)
    }
}

#[test]
fn in_a_worker() {
    with_each_lane(|kind| {
        let (device, bomb) = device(kind, Kind::Read);
        let mut host = device.host(2);
        for round in 0..6 {
            let extra = Ram::new(0x20_0000_0000, 1 << 16);
            host.client.map_ram(&extra);
            set_off(&mut host, &bomb, 1 + round % 2, extra.base());
            // Nobody waits for the command that is lost.
            let start = Instant::now();
            for piece in &extra.pieces {
                assert!(matches!(host.client.dma_unmap(piece.iova, piece.len), Answer::Done(..)));
            }
            assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
            assert_eq!(host.csts() & CFS, CFS);
            match round / 2 {
                0 => {
                    let start = Instant::now();
                    host.client.reset();
                    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
                    assert_eq!(host.csts(), 0);
                    host.connect_interrupts();
                    host.enable();
                }
                1 => host.enable(),
                _ => {
                    drop(host);
                    host = Host::cold(&device.socket());
                    assert_eq!(host.csts(), 0);
                    host.enable();
                }
            }
            host.io_queues(2, 64);
            works(&mut host, round.into());
        }
        drop(host);
        device.ends_well();
    });
}

/// What the kernel still does for the worker that failed must end before the host is told that it has; and its
/// completion must not be taken for that of a new command.
#[test]
fn beside_a_hung_read() {
    with_each_lane(|kind| {
        let (bomb, hang, folder) = (Bomb::default(), Hang::default(), folder());
        let a = image(&folder, "a", &[ON_DISK; IMAGE], None);
        let holds = |job: &Job| job.kind == Kind::Read && job.range.0 == 512 << 10;
        let doubles = panicking(hang.disks(kind, holds), bomb.fuse(Kind::Read));
        let device = Device::start(folder, "", vec![namespace(1, Arc::new(a))], doubles);
        let mut host = device.host(2);
        let extra = Ram::new(0x20_0000_0000, 1 << 16);
        host.client.map_ram(&extra);
        host.submit(1, Sqe::read(extra.base()).lba(1024, 8));
        hang.wait_held(1);
        set_off(&mut host, &bomb, 2, extra.base() + 0x1000);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(500));
                hang.end();
            });
            let start = Instant::now();
            host.client.reset();
            let took = start.elapsed();
            assert!(took > Duration::from_millis(400), "reset in {took:?}, with a command in flight");
            assert!(took < Duration::from_millis(500) + AT_ONCE, "{took:?}");
        });
        let read = extra.read(extra.base(), 4096);
        assert!(read.iter().all(|b| *b == ON_DISK), "the command in flight ended before the answer");
        assert_eq!(host.csts(), 0);
        host.connect_interrupts();
        host.enable();
        host.io_queues(2, 64);
        works(&mut host, 1);
        drop(host);
        device.ends_well();
    });
}

/// A shutdown whose flush ends that badly still ends, and so does the service.
#[test]
fn in_a_flush() {
    with_each_lane(|kind| {
        let (mut device, bomb) = device(kind, Kind::Flush);
        let mut host = device.host(2);
        works(&mut host, 1);
        bomb.arm();
        host.client.w32(reg::CC, CC_LINUX | CC_EN | 1 << 14);
        host.wait_csts(3 << 2, 2 << 2);
        assert!(bomb.went_off());
        host.enable();
        host.io_queues(2, 64);
        works(&mut host, 2);
        assert_eq!(host.csts(), RDY);
        bomb.arm();
        let (success, took) = device.stop();
        assert!(success && bomb.went_off(), "a flush that was lost is made again");
        assert!(took < Duration::from_secs(5), "{took:?}");
        let ns_pattern = |at: usize| device.file("a")[at * 512..(at + 16) * 512].to_vec();
        assert!(ns_pattern(0) == [ON_DISK; 16 * 512]);
        assert!(ns_pattern(100) != [ON_DISK; 16 * 512]);
    });
}
