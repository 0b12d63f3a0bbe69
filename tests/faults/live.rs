//! Namespaces that change while a host uses them: it is told, sees the new value, and has it obeyed from then on.

use std::sync::atomic::{AtomicBool, Ordering};

use vfio_user_nvme::disk::LaneKind;
use vfio_user_nvme::namespace::{Namespace, Namespaces, NoNamespace};

use crate::device::{Device, folder, memory, namespace};
use crate::doubles::plain;
use crate::host::nvme::{Range, copy, io, st};
use crate::host::{Cqe, Host, Ns, Sqe};

/// Feature 0Bh and its Attached Namespace Attribute Notices.
const ASYNC_EVENT: (u8, u32) = (0x0b, 1 << 8);
const ASYNC_EVENT_REQUEST: u8 = 0x0c;
const CHANGED_NS: u8 = 0x04;
/// Notice, Attached Namespace Attribute Changed, log 04h.
const NAMESPACE_CHANGED: u32 = 0x04_00_02;

fn device() -> Device {
    let namespaces = vec![namespace(1, memory(1 << 20)), namespace(2, memory(1 << 20))];
    Device::start(folder(), "iothreads=2", namespaces, plain(LaneKind::Threads))
}

fn set_mssrl(namespaces: &Namespaces, mssrl: u16) -> Result<Namespaces, NoNamespace> {
    let mut ns = Namespace::clone(namespaces.get(1)?);
    ns.facts.copy.mssrl = mssrl;
    namespaces.with(ns)
}

/// A Copy of 64 blocks.
fn copied(host: &mut Host) -> Cqe {
    host.send(1, copy(1, 1000, 1, 0), &Range::new(0, 64).bytes(0))
}

#[test]
fn mssrl_changes_under_load() {
    let device = device();
    let mut host = device.host(2);
    host.set_feature(ASYNC_EVENT.0, ASYNC_EVENT.1).ok();
    let event = host.submit(0, Sqe::new(ASYNC_EVENT_REQUEST));
    let change =
        |mssrl| device.subsystem.change(|namespaces| set_mssrl(namespaces, mssrl)).expect("it changes");
    copied(&mut host).ok();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for mssrl in (100..200).cycle().take_while(|_| !stop.load(Ordering::SeqCst)) {
                change(mssrl);
            }
        });
        // Whatever the limit is just then, all of these fit.
        for _ in 0..200 {
            copied(&mut host).ok();
        }
        stop.store(true, Ordering::SeqCst);
    });
    change(63);
    copied(&mut host).is(st::SIZE_LIMIT, "64 blocks are one too many");
    assert_eq!(Ns::facts(&mut host, 1).mssrl, 63);
    assert_eq!(Ns::facts(&mut host, 2).mssrl, 32768);
    assert_eq!(host.wait(0, event).dw0, NAMESPACE_CHANGED);
    let (_, log) = host.log(CHANGED_NS, 0xffff_ffff, 0, 4096);
    assert_eq!((&log[..4], &log[4..8]), (&[1, 0, 0, 0][..], &[0; 4][..]));
    let (_, log) = host.log(CHANGED_NS, 0xffff_ffff, 0, 4096);
    assert_eq!(log, [0; 4096], "it was read");
    device.ends_well();
}

#[test]
fn a_namespace_goes_and_comes() {
    let device = device();
    let mut host = device.host(1);
    let verify = || Sqe::new(io::VERIFY).nsid(2).lba(0, 8);
    host.exec(1, verify()).ok();
    device.subsystem.change(|now| Ok::<_, ()>(now.without(2))).expect("it goes");
    host.exec(1, verify()).is(st::INVALID_FIELD, "an inactive namespace");
    assert_eq!(host.identify(2, 0)[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    device.subsystem.change(|now| now.with(namespace(2, memory(1 << 20)))).expect("it comes");
    host.exec(1, verify()).ok();
    // Events were never asked for, but the log is kept.
    let (_, log) = host.log(CHANGED_NS, 0xffff_ffff, 0, 8);
    assert_eq!(log, [2, 0, 0, 0, 0, 0, 0, 0]);
    device.ends_well();
}
