//! The seam of a laboratory: what it drops, doubles and refuses is what the host sees.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vfio_user_nvme::copy::{CopyPlan, Reject, SourceRange, Written};
use vfio_user_nvme::disk::LaneKind;
use vfio_user_nvme::laboratory::{CommandId, Fate, Fetched, Lab, Laboratory, Post, Tool};
use vfio_user_nvme::nvme_ctrl::WorkerParts;
use vfio_user_nvme::spec::{Outcome, Status};

use crate::device::{Device, folder, image, memory, namespace};
use crate::doubles::{Hang, Kind, plain};
use crate::host::ctrl::{CC_LINUX, reg};
use crate::host::nvme::{Range, copy, io};
use crate::host::{self, DEADLINE, Host, Ns};

/// Loses the completions of Flush, doubles those of Verify, refuses Write Zeroes, and notes the Copies that it sees planned.
#[derive(Clone, Default)]
struct ByOpcode {
    posts: HashMap<CommandId, Post>,
    planned: Arc<Mutex<Vec<(usize, u64)>>>,
}

impl Lab for ByOpcode {
    fn fetched(&mut self, id: CommandId, Fetched { sqe, ns, .. }: Fetched<'_>) -> Fate {
        assert!(ns.is_none_or(|ns| ns.nsid == 1));
        match sqe.opc {
            io::FLUSH => self.posts.insert(id, Post::Never),
            io::VERIFY => self.posts.insert(id, Post::Twice),
            io::WRITE_ZEROES => return Fate::End(Status::WRITE_FAULT),
            _ => None,
        };
        Fate::Pass
    }

    fn planned(&mut self, _: CommandId, plan: &CopyPlan) -> Fate {
        self.planned.lock().unwrap().push((plan.ranges().len(), plan.dst().len / 512));
        Fate::Pass
    }

    fn ended(&mut self, id: CommandId, _: &mut Outcome) -> Post {
        self.posts.remove(&id).unwrap_or(Post::Once)
    }
}

fn device() -> (Device, Host, ByOpcode) {
    let lab = ByOpcode::default();
    let each = lab.clone();
    let parts = WorkerParts {
        laboratory: Laboratory::with(vec![Tool::for_workers(
            "by opcode",
            Arc::new(move |_| Box::new(each.clone())),
        )]),
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

/// Notes all that it is told, with the serial number of the command.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<(u64, String)>>>);

impl Notes {
    fn note(&self, id: CommandId, what: impl Into<String>) {
        self.0.lock().unwrap().push((id.serial, what.into()));
    }

    fn tool(&self) -> Tool {
        let each = self.clone();
        Tool::for_workers("notes", Arc::new(move |_| Box::new(each.clone())))
    }

    /// What was noted, when the last of it is as `last`.
    fn take(&self, last: &str) -> Vec<(u64, String)> {
        let start = Instant::now();
        loop {
            let mut notes = self.0.lock().unwrap();
            if notes.last().is_some_and(|(_, what)| what == last) {
                return std::mem::take(&mut *notes);
            }
            assert!(start.elapsed() < DEADLINE, "{notes:?}, and never {last}");
            drop(notes);
            std::thread::yield_now();
        }
    }
}

impl Lab for Notes {
    fn fetched(&mut self, id: CommandId, _: Fetched<'_>) -> Fate {
        self.note(id, "fetched");
        Fate::Pass
    }

    fn listed(&mut self, id: CommandId, ranges: &[SourceRange]) {
        self.note(id, format!("listed {}", ranges.len()));
    }

    fn planned(&mut self, id: CommandId, plan: &CopyPlan) -> Fate {
        self.note(id, format!("planned {}", plan.dst().len));
        Fate::Pass
    }

    fn refused(&mut self, id: CommandId, why: &Reject) {
        self.note(id, format!("refused {} {:?}", why.rule, why.range));
    }

    fn moved(&mut self, id: CommandId, Written { at, len, by }: Written) {
        self.note(id, format!("moved {at}+{len} {}", by.word()));
    }

    fn ended(&mut self, id: CommandId, _: &mut Outcome) -> Post {
        self.note(id, "ended");
        Post::Once
    }

    fn over(&mut self, id: CommandId, outcome: &Outcome, post: Option<Post>) {
        self.note(id, format!("over {:#x} {post:?}", outcome.status.0));
    }
}

const WELL: &str = "over 0x0 Some(Once)";

/// One namespace in a file whose reads of block 0 hang, and the laboratory of the device.
fn hanging(on: Vec<Tool>) -> (Device, Host, Hang, Arc<Laboratory>) {
    let (hang, folder, laboratory) = (Hang::default(), folder(), Laboratory::with(on));
    let file = Arc::new(image(&folder, "a", &[7; 1 << 20], None));
    let mut doubles = hang.disks(LaneKind::Threads, |job| job.kind == Kind::Read && job.range.0 == 0);
    doubles.parts.laboratory = Arc::clone(&laboratory);
    let device = Device::start(folder, "iothreads=2", vec![namespace(1, file)], doubles);
    let host = device.host(2);
    (device, host, hang, laboratory)
}

fn hung_read(host: &mut Host, hang: &Hang) -> u16 {
    let to = host.ram.pages(1);
    let cid = host.submit(1, host::Sqe::new(io::READ).nsid(1).lba(0, 8).prp(to, 0));
    hang.wait_held(1);
    cid
}

fn send_copy(host: &mut Host, sdlba: u64, ranges: &[Range]) -> host::Cqe {
    let list: Vec<u8> = ranges.iter().flat_map(|range| range.bytes(0)).collect();
    host.send(1, copy(1, sdlba, ranges.len(), 0), &list)
}

#[test]
fn all_of_a_copy_is_told() {
    let notes = Notes::default();
    let parts =
        WorkerParts { laboratory: Laboratory::with(vec![notes.tool()]), ..plain(LaneKind::Threads).parts };
    let device = Device::start(folder(), "iothreads=1", vec![namespace(1, memory(1 << 20))], parts);
    let mut host = device.host(1);
    let told = |notes: &Notes, last: &str| -> Vec<String> {
        let all = notes.take(last);
        assert!(all.iter().all(|(serial, _)| *serial == all[0].0), "{all:?}");
        all.into_iter().map(|(_, what)| what).collect()
    };
    send_copy(&mut host, 1000, &[Range::new(0, 8), Range::new(64, 8)]).ok();
    let moved = "moved 0+8192 memmove";
    assert_eq!(told(&notes, WELL), ["fetched", "listed 2", "planned 8192", moved, "ended", WELL]);
    send_copy(&mut host, 1000, &[Range::new(0, 8), Range::new(1 << 20, 8)]);
    let over = "over 0x6080 Some(Once)";
    assert_eq!(told(&notes, over), ["fetched", "listed 2", "refused source-bounds Some(1)", "ended", over]);
    host.exec(1, copy(9, 0, 1, 0));
    let over = "over 0x600b Some(Once)";
    assert_eq!(told(&notes, over), ["fetched", "refused nsid-invalid None", "ended", over]);
    let list = host.ram.pages(1);
    host.exec(1, copy(1, 0, 1, 0).flags(1).prp(list, 0));
    let over = "over 0x6002 Some(Once)";
    assert_eq!(told(&notes, over), ["fetched", "refused fused None", "ended", over]);
    device.ends_well();
}

/// Put on while a command is in flight that it never saw, taken off while one is that it did.
#[test]
fn laboratories_come_and_go_while_the_device_runs() {
    let (device, mut host, hang, laboratory) = hanging(Vec::new());
    let notes = Notes::default();
    let unseen = hung_read(&mut host, &hang);
    assert!(laboratory.put(notes.tool(), DEADLINE), "no worker waits for a command");
    send_copy(&mut host, 1000, &[Range::new(8, 8)]).ok();
    let first = notes.take(WELL);
    assert_eq!((first[0].0, first.last().expect("its end").1.as_str()), (1, WELL));
    hang.end();
    host.wait(1, unseen).ok();
    assert_eq!(notes.take(WELL), [(0, "ended".into()), (0, WELL.into())], "it is no command that it saw");
    assert!(laboratory.take("notes", DEADLINE));
    send_copy(&mut host, 1000, &[Range::new(8, 8)]).ok();
    assert_eq!(notes.0.lock().unwrap().len(), 0);
    // As many as there may be, and the counts go on where they were.
    assert!(laboratory.put(notes.tool(), DEADLINE));
    send_copy(&mut host, 1000, &[Range::new(8, 8)]).ok();
    assert_eq!(notes.take(WELL)[0].0, 2);
    device.ends_well();
}

#[test]
fn a_command_whose_queue_is_gone_is_over_and_nobody_is_told() {
    let notes = Notes::default();
    let (device, mut host, hang, _) = hanging(vec![notes.tool()]);
    hung_read(&mut host, &hang);
    host.client.w32(reg::CC, CC_LINUX);
    hang.end();
    assert_eq!(notes.take("over 0x0 None"), [(1, "fetched".into()), (1, "over 0x0 None".into())]);
    device.ends_well();
}
