//! What a host or client repeats as fast as it can costs no more than once, however late a worker is.

use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::disk::{Lane, LaneKind, MemoryDisk};
use crate::memory::testing::Guest;
use crate::namespace::{CopyLimits, Identity, Namespace, Namespaces};
use crate::nvme_ctrl::worker::Poll;
use crate::subsystem::Subsystem;

struct Nobody;

impl InterruptSink for Nobody {
    fn raise(&self, _vector: u16) {}
}

fn controller(guest: &Guest, busy: &Arc<Mutex<()>>) -> Controller {
    let config = ControllerConfig {
        serial: "1".into(),
        model: "m".into(),
        firmware: "1".into(),
        subnqn: "nqn.2014-08.org.example:1".into(),
        vid: 1,
        ssvid: 1,
        mdts: 5,
        max_ioqpairs: 4,
        mqes: 63,
        aerl: 3,
        vectors: 2,
        ocfs: 0,
        cdfe: 0,
        iothreads: 2,
        doorbell_buffers: true,
        map_doorbells: false,
        poll: Poll::Adaptive,
    };
    let copy = CopyLimits { mssrl: 8, mcl: 8, msrc: 0 };
    let image = Arc::new(MemoryDisk::new(1 << 20).unwrap());
    let namespaces = Namespaces::new(vec![Namespace::new(1, image, 9, copy, Identity::default())], 1);
    let seat = Subsystem::new(namespaces, false).join(Arc::new(|| ())).unwrap();
    let busy = Arc::clone(busy);
    // A worker does not come back from its turn while the mutex is held.
    let lanes: crate::nvme_ctrl::LaneFactory = Arc::new(move || {
        let (mut lane, busy) = (Lane::new(LaneKind::Threads)?, Arc::clone(&busy));
        lane.look_at_done(move |_| drop(busy.lock()));
        Ok(lane)
    });
    Controller::new(config, seat, guest.space.epoch(), Arc::new(Nobody), &lanes.into(), Arc::new(|| ()))
        .unwrap()
}

fn until(controller: &mut Controller, done: impl Fn(&Controller) -> bool) {
    let start = Instant::now();
    while !done(controller) {
        assert!(start.elapsed() < Duration::from_secs(60), "it never comes");
        controller.on_messages();
        std::thread::yield_now();
    }
}

#[test]
fn a_late_worker_is_asked_once() {
    let (mut guest, busy) = (Guest::new(0, 0x4000), Arc::new(Mutex::new(())));
    let mut controller = controller(&guest, &busy);
    controller.regs.write(offset::AQA, &0x001f_001f_u32.to_le_bytes());
    let held = busy.lock().unwrap();
    // Each worker takes a turn, and does not come back.
    controller.fence();
    let cc = |controller: &mut Controller, value: u32| controller.bar_write(offset::CC, &value.to_le_bytes());
    for round in 0..1000 {
        for value in [0x46_0001, 0x46_0000, 0x46_4000, 0x46_0000, 0x46_4001, 0x46_0000] {
            cc(&mut controller, value);
        }
        controller.set_bus_master(round % 2 == 0);
        controller.fence();
        let epoch = guest.space.begin_epoch();
        controller.reset(epoch);
        controller.on_messages();
        // A reset and a fence for each worker, and one flush.
        assert!(controller.workers.awaited.len() <= 5, "{:?}", controller.workers.awaited);
    }
    drop(held);
    until(&mut controller, |controller| controller.is_fenced() && controller.is_quiet());
    until(&mut controller, |controller| controller.workers.awaited.is_empty());
    // And it works.
    controller.regs.write(offset::AQA, &0x001f_001f_u32.to_le_bytes());
    cc(&mut controller, 0x46_0001);
    assert_eq!(controller.regs.csts, csts::RDY);
}

/// A reset that comes with a shutdown does not make it forgotten.
#[test]
fn a_shutdown_outlives_the_reset_beside_it() {
    let (guest, busy) = (Guest::new(0, 0x4000), Arc::new(Mutex::new(())));
    let mut controller = controller(&guest, &busy);
    controller.regs.write(offset::AQA, &0x001f_001f_u32.to_le_bytes());
    controller.bar_write(offset::CC, &0x46_0001_u32.to_le_bytes());
    assert_eq!(controller.regs.csts, csts::RDY);
    controller.bar_write(offset::CC, &0x46_4000_u32.to_le_bytes());
    until(&mut controller, |controller| controller.regs.csts == csts::SHST_COMPLETE);
    controller.bar_write(offset::CC, &0x46_0001_u32.to_le_bytes());
    assert_eq!(controller.regs.csts, csts::RDY);
}
