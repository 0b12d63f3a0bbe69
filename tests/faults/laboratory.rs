//! The seam of a laboratory: what it drops, doubles and refuses is what the host sees.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vfio_user_nvme::copy::CopyPlan;
use vfio_user_nvme::disk::LaneKind;
use vfio_user_nvme::laboratory::{CommandId, Fate, Lab, Post};
use vfio_user_nvme::namespace::Namespace;
use vfio_user_nvme::nvme_ctrl::WorkerParts;
use vfio_user_nvme::spec::{Outcome, Sqe, Status};

use crate::device::{Device, folder, memory, namespace};
use crate::doubles::plain;
use crate::host::nvme::{Range, copy, io};
use crate::host::{self, DEADLINE, Host, Ns};

/// Loses the completions of Flush, doubles those of Verify, refuses Write Zeroes, and notes the Copies that it sees planned.
#[derive(Clone, Default)]
struct ByOpcode {
    posts: HashMap<CommandId, Post>,
    planned: Arc<Mutex<Vec<(usize, u64)>>>,
}

impl Lab for ByOpcode {
    fn fetched(&mut self, id: CommandId, sqe: &Sqe, ns: Option<&Namespace>) -> Fate {
        assert!(ns.is_none_or(|ns| ns.nsid == 1));
        match sqe.opc {
            io::FLUSH => self.posts.insert(id, Post::Never),
            io::VERIFY => self.posts.insert(id, Post::Twice),
            io::WRITE_ZEROES => return Fate::End(Status::WRITE_FAULT),
            _ => None,
        };
        Fate::Pass
    }

    fn planned(&mut self, _: CommandId, plan: &CopyPlan) {
        self.planned.lock().unwrap().push((plan.ranges().len(), plan.dst().len / 512));
    }

    fn ended(&mut self, id: CommandId, _: &mut Outcome) -> Post {
        self.posts.remove(&id).unwrap_or(Post::Once)
    }
}

fn device() -> (Device, Host, ByOpcode) {
    let lab = ByOpcode::default();
    let each = lab.clone();
    let parts = WorkerParts {
        lab: Some(Arc::new(move || Box::new(each.clone()) as Box<dyn Lab>)),
        ..plain(LaneKind::Threads).parts
    };
    let device = Device::start(folder(), "iothreads=1", vec![namespace(1, memory(1 << 20))], parts);
    let host = device.host(1);
    (device, host, lab)
}

fn command(opcode: u8) -> host::Sqe {
    host::Sqe::new(opcode).nsid(1).lba(8, 8)
}

#[test]
fn a_completion_is_dropped() {
    let (device, mut host, _) = device();
    // More of them than the queue has entries: a lost completion holds none.
    for _ in 0..100 {
        let lost = host.submit(1, command(io::FLUSH));
        let to = host.ram.pages(1);
        host.exec(1, command(io::READ).prp(to, 0)).ok();
        assert!(host.try_wait(1, lost, Duration::ZERO).is_none());
        host.forget(1);
    }
    device.ends_well();
}

#[test]
fn a_completion_comes_twice() {
    let (device, mut host, _) = device();
    host.submit(1, command(io::VERIFY));
    // Taken by hand, for the host would complain of the second.
    for which in ["first", "second"] {
        let start = Instant::now();
        while !host.pending(1) {
            assert!(start.elapsed() < DEADLINE, "no {which} completion");
        }
        if which == "first" {
            host.take(1).expect("it is pending").ok();
        }
    }
    device.ends_well();
}

#[test]
fn a_refused_command_has_changed_nothing() {
    let (device, mut host, _) = device();
    let mut ns = Ns::identify(&mut host, 1);
    host.fill(1, &mut ns, 1);
    assert_eq!(host.exec(1, command(io::WRITE_ZEROES)).code(), 0x280);
    ns.verify(&mut host, 1);
    device.ends_well();
}

/// Short ones too, which without a laboratory are done where they are fetched.
#[test]
fn every_copy_is_seen() {
    let (device, mut host, lab) = device();
    for ranges in [vec![Range::new(0, 8)], vec![Range::new(0, 8), Range::new(64, 600)]] {
        let list: Vec<u8> = ranges.iter().flat_map(|range| range.bytes(0)).collect();
        host.send(1, copy(1, 1000, ranges.len(), 0), &list).ok();
    }
    assert_eq!(*lab.planned.lock().unwrap(), [(1, 8), (2, 608)]);
    device.ends_well();
}
