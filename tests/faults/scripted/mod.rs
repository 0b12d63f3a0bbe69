//! Fault rules as a host meets them. Every act of docs/faults.md, and every condition that needs a device.

mod admin;
mod copies;
mod data;
mod ends;
mod registers;
mod rules;
mod time;

use std::sync::Arc;
use std::time::Duration;

use vfio_user_nvme::disk::LaneKind;
use vfio_user_nvme::laboratory::Laboratory;
use vfio_user_nvme::laboratory::faults::{Faults, Rule, RuleReport};

use crate::device::{Device, folder, image, memory, namespace};
use crate::doubles::plain;
use crate::host::nvme::{Range, copy, io};
use crate::host::{Cqe, DEADLINE, Data, Host, Ns, Sqe};

/// A device with two namespaces of 1 MiB, full of a pattern, a host with `queues`, and the rules.
struct Rig {
    device: Device,
    host: Host,
    ns: Vec<Ns>,
    faults: Arc<Faults>,
}

impl Rig {
    /// Two namespaces in memory.
    fn new(queues: u16) -> Self {
        Self::with(queues, LaneKind::Threads, false)
    }

    /// Namespaces in memory or files.
    fn with(queues: u16, kind: LaneKind, files: bool) -> Self {
        let (folder, laboratory) = (folder(), Laboratory::with(Vec::new()));
        let mut doubles = plain(kind);
        doubles.parts.laboratory = Arc::clone(&laboratory);
        let namespaces = [1, 2].map(|nsid| {
            let disk = if files {
                Arc::new(image(&folder, &nsid.to_string(), &vec![0; 1 << 20], None))
            } else {
                memory(1 << 20)
            };
            namespace(nsid, disk)
        });
        // Format 2h without asking, so that a Copy may have two namespaces.
        let device = Device::start(folder, "iothreads=2,cdfe=0x4", namespaces.into(), doubles);
        let mut host = device.host(queues);
        let ns = [1, 2].map(|nsid| {
            let mut ns = Ns::identify(&mut host, nsid);
            host.fill(1, &mut ns, 1);
            ns
        });
        Self { device, host, ns: ns.into(), faults: Faults::new(laboratory) }
    }

    #[track_caller]
    fn add(&self, rule: &str) -> String {
        let rule = Rule::parse(rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
        self.faults.add(rule, DEADLINE).expect("it may be added")
    }

    fn rule(&self, name: &str) -> RuleReport {
        self.faults.list().into_iter().find(|rule| rule.name == name).expect("the rule is there")
    }

    fn fired(&self, name: &str) -> u64 {
        self.rule(name).fired
    }

    fn write(&mut self, slba: u64, blocks: u32, salt: u64) -> Cqe {
        let bytes = self.ns[0].pattern(slba, blocks, salt);
        self.host.send(1, Sqe::new(io::WRITE).nsid(1).lba(slba, blocks), &bytes)
    }

    fn read(&mut self, slba: u64, blocks: u32) -> Cqe {
        let mark = self.host.ram.mark();
        let to = Data::prp(&mut self.host.ram, blocks as usize * 512);
        let cqe = self.host.exec(1, Sqe::new(io::READ).nsid(1).lba(slba, blocks).data(&to));
        self.host.ram.release(mark);
        cqe
    }

    fn copy(&mut self, sdlba: u64, ranges: &[Range]) -> Cqe {
        let list: Vec<u8> = ranges.iter().flat_map(|range| range.bytes(0)).collect();
        self.host.send(1, copy(1, sdlba, ranges.len(), 0), &list)
    }

    /// What a Copy within namespace 1 that is not bent leaves in the shadow, of the blocks that `lands` says of, counted
    /// from the destination's start.
    fn copied(&mut self, sdlba: u64, ranges: &[Range], lands: impl Fn(u64) -> bool) {
        let ns = &mut self.ns[0];
        let bytes: Vec<u8> =
            ranges.iter().flat_map(|range| ns.at(range.slba, range.blocks).to_vec()).collect();
        for (at, block) in bytes.chunks(ns.lba).enumerate().filter(|(at, _)| lands(*at as u64)) {
            ns.set(sdlba + at as u64, block);
        }
    }

    /// The device is well: all data as the host thinks, without any rule, and it ends.
    #[track_caller]
    fn ends_well(mut self) {
        self.faults.clear(None, DEADLINE);
        for ns in &mut self.ns {
            ns.verify(&mut self.host, 1);
        }
        self.device.ends_well();
    }
}

const MS: Duration = Duration::from_millis(1);
