//! Work that is held up at any point of its way while its epoch ends: once that is answered, no byte of guest memory
//! changes and no interrupt comes, however late the work goes on.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vfio_user_nvme::disk::LaneKind;
use vfio_user_nvme::disk::{Call, Tap};

use crate::device::{Device, folder, image, memory, namespace};
use crate::doubles::{Halt, Hang, Kind, plain};
use crate::host::client::CONFIG;
use crate::host::ctrl::{CC_EN, CC_LINUX, CFS, RDY, find_capability, reg};
use crate::host::nvme::{admin, io, st};
use crate::host::{Answer, DEADLINE, Host, Ns, Ram, Sqe};
use crate::with_each_lane;

/// All answers of an end are there by then, however many there are: late work is waited for once, for 3 s. (Two such waits
/// are too long for QEMU, and a busy machine makes one longer.)
const IN_TIME: Duration = Duration::from_millis(5900);
/// An answer that waits for nothing; long because the machine may be busy.
const AT_ONCE: Duration = Duration::from_millis(2500);
/// Late work has long gone on by then.
const A_WHILE: Duration = Duration::from_millis(300);

const IMAGE: usize = 1 << 20;
const ON_DISK: u8 = 0xd1;
const EXTRA: u64 = 0x20_0000_0000;
/// All that a test here uses of the host's memory.
const USED: usize = 4 << 20;

/// Where the work is held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// A worker in a turn, with no command.
    Idle,
    /// A worker in a turn, before it fetches a Read of memory.
    Fetch,
    /// The same, where doorbells are shadowed.
    Shadow,
    /// A worker that moves the data of a Read of memory.
    Move,
    /// A worker that has the end of a Read of a file, and posts it.
    Post,
    /// A disk that has a Read.
    Transfer,
    /// A disk that has a Flush.
    Flush,
}

/// What ends the epoch, or keeps the device off the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Reset,
    FunctionLevelReset,
    /// Of the memory that the Read goes to.
    Unmap,
    Leave,
    BusMaster,
    D3hot,
}

const ENDS: [End; 6] =
    [End::Reset, End::FunctionLevelReset, End::Unmap, End::Leave, End::BusMaster, End::D3hot];

struct Rig {
    device: Device,
    halt: Halt,
    hang: Hang,
}

impl Rig {
    /// An image (namespace 1), memory whose reads can be held (2) and other memory (3).
    fn new(kind: LaneKind, point: Point) -> Rig {
        let (halt, hang, folder) = (Halt::default(), Hang::default(), folder());
        let a = image(&folder, "a", &[ON_DISK; IMAGE], None);
        let slow = if point == Point::Move { halt.memory(IMAGE as u64) } else { memory(IMAGE as u64) };
        let list = vec![namespace(1, Arc::new(a)), namespace(2, slow), namespace(3, memory(IMAGE as u64))];
        let doubles = match point {
            Point::Transfer => hang.disks(kind, |job| job.kind == Kind::Read && job.range.0 == 0),
            Point::Flush => hang.disks(kind, |job| job.kind == Kind::Flush),
            Point::Move => plain(kind),
            // Past the page cache's short way.
            Point::Post => halt.lanes(hang.disks(kind, |_| false), true),
            _ => halt.lanes(plain(kind), false),
        };
        Rig { device: Device::start(folder, "", list, doubles), halt, hang }
    }

    /// Begins what is held up; the command's CID.
    fn begin(&self, host: &mut Host, point: Point, to: u64) -> u16 {
        let nsid = if matches!(point, Point::Post | Point::Transfer | Point::Flush) { 1 } else { 2 };
        let read = Sqe::new(io::READ).nsid(nsid).lba(0, 8).prp(to, 0);
        if !matches!(point, Point::Transfer | Point::Flush) {
            self.halt.arm();
        }
        let cid = match point {
            Point::Idle => {
                // A doorbell that says nothing new; it wakes the worker.
                host.ring_cq(1);
                0
            }
            Point::Flush => host.submit(1, Sqe::new(io::FLUSH).nsid(1)),
            _ => host.submit(1, read),
        };
        match point {
            Point::Transfer | Point::Flush => self.hang.wait_held(1),
            _ => self.halt.wait_held(),
        }
        cid
    }

    fn let_go(&self) {
        self.halt.let_go();
        self.hang.end();
    }
}

/// Reads and writes all namespaces.
fn works(host: &mut Host) {
    host.enable();
    host.io_queues(1, 64);
    for nsid in 1..=3 {
        let mut ns = Ns::facts(host, nsid);
        host.write(1, &mut ns, 100, 16, nsid.into());
        assert!(host.read(1, &ns, 100, 16) == ns.pattern(100, 16, nsid.into()));
    }
}

/// The bytes of the host's memory that matter.
fn bytes(ram: &Ram) -> Vec<u8> {
    let len = USED.min((ram.end() - ram.base()) as usize);
    ram.read(ram.base(), len)
}

fn fired(host: &Host) -> u64 {
    (0..host.vectors.len()).map(|vector| host.fired(vector)).sum()
}

fn set_bus_master(host: &mut Host, on: bool) {
    let command = host.client.config16(4);
    let command = if on { command | 4 } else { command & !4 };
    host.client.write(CONFIG, 4, &command.to_le_bytes());
}

/// Initiates a function level reset.
fn reset_function(host: &mut Host) {
    let control = find_capability(&mut host.client, 0x10).expect("PCI Express") + 8;
    let value = host.client.config16(control) | 0x8000;
    host.client.write(CONFIG, control, &value.to_le_bytes());
}

fn set_power(host: &mut Host, state: u16) {
    let control = find_capability(&mut host.client, 0x01).expect("Power Management") + 4;
    host.client.write(CONFIG, control, &state.to_le_bytes());
}

fn held_up(kind: LaneKind, point: Point, end: End) {
    let case = format!("{kind}, {point:?}, {end:?}");
    let rig = Rig::new(kind, point);
    let mut host = rig.device.host(1);
    if point == Point::Shadow {
        host.use_shadow_doorbells();
    }
    let extra = Ram::new(EXTRA, 256 << 10);
    host.client.map_ram(&extra);
    // Asleep, so that it is woken by what is begun.
    std::thread::sleep(Duration::from_millis(20));
    let cid = rig.begin(&mut host, point, extra.base());

    let start = Instant::now();
    let mut left = None;
    match end {
        End::Reset => host.client.reset(),
        End::FunctionLevelReset => reset_function(&mut host),
        End::Unmap => {
            for piece in &extra.pieces {
                let answer = host.client.dma_unmap(piece.iova, piece.len);
                assert!(matches!(answer, Answer::Done(..)), "{case}: {answer:?}");
            }
        }
        End::Leave => {
            let Host { client, ram, .. } = host;
            drop(client);
            host = Host::cold(&rig.device.socket());
            left = Some(ram);
        }
        End::BusMaster => set_bus_master(&mut host, false),
        End::D3hot => set_power(&mut host, 3),
    }
    let took = start.elapsed();
    assert!(took < IN_TIME, "{case}: answered after {took:?}");
    let csts = host.csts();
    if end == End::Unmap
        && matches!(point, Point::Idle | Point::Fetch | Point::Shadow | Point::Move | Point::Flush)
    {
        assert_eq!(csts, RDY, "{case}: nobody has lost anything");
    }

    if matches!(end, End::Reset | End::FunctionLevelReset | End::Leave) {
        // Memory that nobody uses is given back at once, although the work is still held up.
        let fresh = Ram::new(2 * EXTRA, 256 << 10);
        host.client.map_ram(&fresh);
        let start = Instant::now();
        for piece in &fresh.pieces {
            let answer = host.client.dma_unmap(piece.iova, piece.len);
            assert!(matches!(answer, Answer::Done(..)), "{case}: {answer:?}");
        }
        assert!(start.elapsed() < AT_ONCE, "{case}: an unmap took {:?}", start.elapsed());
    }

    // Whose memory it is from now on.
    let mut rams = vec![&extra];
    rams.extend(&left);
    if end != End::Unmap {
        rams.push(&host.ram);
    }
    for (salt, ram) in (1..).zip(&rams) {
        // The client uses some for something else.
        ram.write(ram.base() + 0x1000, &[salt; 0x1000]);
    }
    fired(&host);
    let before: Vec<_> = rams.iter().map(|ram| bytes(ram)).collect();
    rig.let_go();
    std::thread::sleep(A_WHILE);
    let after: Vec<_> = rams.iter().map(|ram| bytes(ram)).collect();
    for (ram, (before, after)) in before.iter().zip(&after).enumerate() {
        let at = before.iter().zip(after).position(|(a, b)| a != b);
        assert_eq!(at, None, "{case}: memory {ram} was written");
    }
    if end != End::Unmap {
        assert_eq!(fired(&host), 0, "{case}: an interrupt");
    }

    match end {
        End::BusMaster => set_bus_master(&mut host, true),
        End::D3hot => set_power(&mut host, 0),
        _ => {}
    }
    if matches!(end, End::BusMaster | End::D3hot) && point == Point::Flush {
        assert_eq!(host.csts(), RDY, "{case}");
        host.wait(1, cid).ok();
        assert!(host.exec(1, Sqe::new(io::FLUSH).nsid(1)).status == st::OK);
    }
    host.client.reset();
    host.connect_interrupts();
    works(&mut host);
    drop(host);
    rig.device.ends_well();
}

/// All ends at once: most of it is waiting.
fn held_up_at(point: Point) {
    with_each_lane(|kind| {
        std::thread::scope(|scope| {
            for end in ENDS {
                std::thread::Builder::new()
                    .name(format!("{kind}, {point:?}, {end:?}"))
                    .spawn_scoped(scope, move || held_up(kind, point, end))
                    .expect("a thread");
            }
        });
    });
}

#[test]
fn a_worker_without_commands() {
    held_up_at(Point::Idle);
}

#[test]
fn a_worker_before_it_fetches() {
    held_up_at(Point::Fetch);
}

#[test]
fn a_worker_with_shadowed_doorbells() {
    held_up_at(Point::Shadow);
}

#[test]
fn a_worker_that_moves_data() {
    held_up_at(Point::Move);
}

#[test]
fn a_worker_that_posts() {
    held_up_at(Point::Post);
}

#[test]
fn a_transfer() {
    held_up_at(Point::Transfer);
}

#[test]
fn a_flush() {
    held_up_at(Point::Flush);
}

/// What a late write finds instead of the client's memory is nothing: the block keeps what it had.
#[test]
fn a_late_write_takes_no_zeroes_to_the_disk() {
    with_each_lane(|kind| {
        std::thread::scope(|scope| {
            for end in [End::Reset, End::Unmap, End::Leave] {
                scope.spawn(move || {
                    let (hang, folder) = (Hang::default(), folder());
                    let a = image(&folder, "a", &[ON_DISK; IMAGE], None);
                    let doubles = hang.disks(kind, |job| job.kind == Kind::Write);
                    let device = Device::start(folder, "", vec![namespace(1, Arc::new(a))], doubles);
                    let mut host = device.host(1);
                    let extra = Ram::new(EXTRA, 256 << 10);
                    host.client.map_ram(&extra);
                    extra.write(extra.base(), &[0x77; 0x4000]);
                    host.submit(1, Sqe::new(io::WRITE).nsid(1).lba(0, 8).prp(extra.base(), 0));
                    hang.wait_held(1);
                    match end {
                        End::Reset => host.client.reset(),
                        End::Leave => {
                            drop(host);
                            host = Host::cold(&device.socket());
                        }
                        _ => drop(host.client.dma_unmap(extra.pieces[0].iova, extra.pieces[0].len)),
                    }
                    hang.end();
                    drop(host);
                    device.file_after_the_end("a", |file| {
                        assert!(file[..4096].iter().all(|b| matches!(*b, ON_DISK | 0x77)), "{kind}, {end:?}");
                    });
                });
            }
        });
    });
}

/// Without Bus Master Enable, or in D3hot, the device leaves guest memory alone and raises nothing; afterwards it does all
/// that was asked of it meanwhile.
#[test]
fn off_the_bus_all_waits() {
    with_each_lane(|kind| {
        for shadow in [false, true] {
            for end in [End::BusMaster, End::D3hot] {
                let rig = Rig::new(kind, Point::Transfer);
                let mut host = rig.device.host(1);
                if shadow {
                    host.use_shadow_doorbells();
                }
                let (file, to) = (Ns::facts(&mut host, 1), host.ram.pages(3));
                host.exec(1, Host::rw(io::READ, &file, 8, 8).prp(to, 0)).ok();
                fired(&host);
                let off = |host: &mut Host| match end {
                    End::D3hot => set_power(host, 3),
                    _ => set_bus_master(host, false),
                };
                // A Read that is not over when it begins has its data before the answer.
                let slow = host.submit(1, Host::rw(io::READ, &file, 0, 8).prp(to + 0x1000, 0));
                rig.hang.wait_held(1);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        std::thread::sleep(A_WHILE);
                        rig.hang.end();
                    });
                    off(&mut host);
                });
                assert!(host.ram.read(to + 0x1000, 4096) == [ON_DISK; 4096]);
                fired(&host);
                let now = host.submit(1, Host::rw(io::READ, &file, 8, 8).prp(to + 0x2000, 0));
                let asked = host.submit(0, Sqe::new(admin::GET_FEATURES).cdw(10, 7));
                let before = bytes(&host.ram);
                std::thread::sleep(A_WHILE);
                assert!(bytes(&host.ram) == before, "{shadow}, {end:?}: memory was written");
                assert_eq!(fired(&host), 0, "{shadow}, {end:?}");
                assert_eq!(host.csts(), RDY);
                match end {
                    End::D3hot => set_power(&mut host, 0),
                    _ => set_bus_master(&mut host, true),
                }
                for (qid, cid) in [(1, slow), (1, now), (0, asked)] {
                    host.wait(qid, cid).ok();
                }
                assert!(host.ram.read(to + 0x2000, 4096) == [ON_DISK; 4096]);
                let mut ns = Ns::facts(&mut host, 3);
                host.write(1, &mut ns, 100, 16, 3);
                assert!(host.read(1, &ns, 100, 16) == ns.pattern(100, 16, 3));
                drop(host);
                rig.device.ends_well();
            }
        }
    });
}

/// A controller whose bus master was never enabled takes no command.
#[test]
fn no_bus_master_no_command() {
    let rig = Rig::new(LaneKind::Threads, Point::Transfer);
    let mut host = Host::cold(&rig.device.socket());
    set_bus_master(&mut host, false);
    host.enable();
    let cid = host.submit(0, Sqe::new(admin::GET_FEATURES).cdw(10, 7));
    let before = bytes(&host.ram);
    std::thread::sleep(A_WHILE);
    assert!(bytes(&host.ram) == before, "memory was written");
    assert_eq!((fired(&host), host.csts()), (0, RDY));
    set_bus_master(&mut host, true);
    host.wait(0, cid).ok();
}

/// Each fdatasync of an image hangs until it is let go.
#[derive(Debug, Default)]
struct Syncs {
    /// How many came, and how many may go.
    state: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl Syncs {
    fn came(&self) -> usize {
        self.state.lock().expect("nobody panics").0
    }

    fn wait(&self, count: usize) {
        let state = self.state.lock().expect("nobody panics");
        let waited = self.changed.wait_timeout_while(state, DEADLINE, |(came, _)| *came < count);
        assert!(!waited.expect("nobody panics").1.timed_out(), "the sync never came");
    }

    fn let_go(&self, count: usize) {
        self.state.lock().expect("nobody panics").1 += count;
        self.changed.notify_all();
    }
}

impl Tap for Syncs {
    fn issued(&self, call: &Call, _: &[u8], _: &std::fs::File) -> u64 {
        if matches!(call, Call::Fdatasync) {
            let mut state = self.state.lock().expect("nobody panics");
            state.0 += 1;
            let own = state.0;
            self.changed.notify_all();
            drop(self.changed.wait_while(state, |(_, go)| *go < own).expect("nobody panics"));
        }
        0
    }

    fn completed(&self, _: u64, _: &Call, _: Result<u32, i32>) {}
}

/// Shutdown Status speaks of the shutdown that was asked for last, and a host that asks again and again costs nothing.
#[test]
fn a_shutdown_is_complete_when_its_own_flush_is() {
    with_each_lane(|kind| {
        let (folder, syncs) = (folder(), Arc::new(Syncs::default()));
        let a = image(&folder, "a", &[ON_DISK; IMAGE], Some(syncs.clone()));
        let device = Device::start(folder, "", vec![namespace(1, Arc::new(a))], plain(kind));
        let mut host = device.host(1);
        let shutdown = CC_LINUX | CC_EN | 1 << 14;
        host.client.w32(reg::CC, shutdown);
        syncs.wait(1);
        for _ in 0..2000 {
            host.client.w32(reg::CC, CC_LINUX | CC_EN);
            assert_eq!(host.csts() & 3 << 2, 0);
            host.client.w32(reg::CC, shutdown);
        }
        syncs.let_go(1);
        syncs.wait(2);
        std::thread::sleep(A_WHILE);
        assert_eq!(host.csts() & 3 << 2, 1 << 2, "complete by the flush of an earlier shutdown");
        syncs.let_go(1);
        host.wait_csts(3 << 2, 2 << 2);
        std::thread::sleep(A_WHILE);
        assert_eq!(syncs.came(), 2, "those that waited shared one flush");
        syncs.let_go(usize::MAX / 2);
        drop(host);
        device.ends_well();
    });
}

/// What a failed enable left is gone at once when EN is cleared, although a worker is late.
#[test]
fn a_controller_that_was_never_ready_is_not_fatal_after_a_reset() {
    let rig = Rig::new(LaneKind::Threads, Point::Idle);
    let mut host = Host::cold(&rig.device.socket());
    let extra = Ram::new(EXTRA, 256 << 10);
    host.client.map_ram(&extra);
    rig.halt.arm();
    // The worker is told of it, and then takes a turn.
    host.client.dma_unmap(extra.pieces[0].iova, extra.pieces[0].len);
    rig.halt.wait_held();
    host.admin_queue();
    host.client.w32(reg::AQA, 0);
    host.client.w32(reg::CC, CC_LINUX | CC_EN);
    assert_eq!(host.csts(), CFS);
    host.client.w32(reg::CC, CC_LINUX);
    assert_eq!(host.csts(), 0, "the worker has not answered yet");
    rig.halt.let_go();
    works(&mut host);
}
