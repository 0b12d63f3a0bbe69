//! A Copy command and its range list: the planner's verdict against one made block by block, then the execution of
//! what was planned against a model of the images.

use std::cell::RefCell;
use std::sync::Arc;

use vfio_user_nvme::copy::{Bounce, Capabilities, CopyTask, ExecOptions, check_command, plan};
use vfio_user_nvme::disk::{IoBuf, Lane, LaneKind, MemoryDisk, Op, Tag};
use vfio_user_nvme::namespace::{CopyLimits, CopyPolicy, Identity, Namespace, Namespaces, Overlap};
use vfio_user_nvme::spec::copy::CopyCommand;

struct Ns {
    nsid: u32,
    lbads: u8,
    blocks: u64,
    mssrl: u64,
    mcl: u64,
    ranges: usize,
}

const fn ns(nsid: u32, lbads: u8, blocks: u64, mssrl: u64, mcl: u64, ranges: usize) -> Ns {
    Ns { nsid, lbads, blocks, mssrl, mcl, ranges }
}

const NSS: [Ns; 4] = [
    ns(1, 9, 300, 65535, 1 << 20, 256),
    ns(2, 9, 100, 16, 40, 4),
    ns(4, 12, 64, 32, 64, 128),
    ns(5, 9, 64, 8, 30, 1),
];
/// Highest valid NSID; 3 and 6 are inactive.
const NN: u32 = 6;

struct World {
    namespaces: Namespaces,
    lane: Lane,
    images: Vec<Vec<u8>>,
}

impl World {
    fn new() -> World {
        let mut list = Vec::new();
        let mut images = Vec::new();
        for n in &NSS {
            let bytes = n.blocks << n.lbads;
            let disk = MemoryDisk::new(bytes).expect("memory");
            let copy = CopyLimits { mssrl: n.mssrl as u16, mcl: n.mcl as u32, msrc: (n.ranges - 1) as u8 };
            let image: Vec<u8> =
                (0..bytes).map(|i| ((i >> 9) as u8).wrapping_mul(31) ^ i as u8 ^ n.nsid as u8).collect();
            let policy = CopyPolicy { overlap: Overlap::Reject, ..CopyPolicy::default() };
            let ns = Namespace::new(n.nsid, Arc::new(disk), n.lbads, copy, Identity::default());
            list.push(ns.with_policy(policy));
            images.push(image);
        }
        let mut world = World {
            namespaces: Namespaces::new(list, NN),
            lane: Lane::new(LaneKind::Threads).expect("a lane"),
            images,
        };
        for i in 0..NSS.len() {
            let buf = IoBuf::Pool(world.images[i].clone().into());
            world.submit(i, Op::Write { offset: 0, buf, fua: false });
        }
        world
    }

    fn submit(&mut self, i: usize, op: Op) -> Option<IoBuf> {
        let ns = self.namespaces.get(NSS[i].nsid).expect("it is there");
        ns.disk.start(Tag(0), op, &mut self.lane);
        let mut done = Vec::new();
        self.lane.take_done(&mut done);
        let done = done.pop().expect("memory answers at once");
        done.result.expect("a good operation");
        done.buf
    }

    fn image(&mut self, i: usize) -> Vec<u8> {
        let buf = IoBuf::Pool(vec![0; self.images[i].len()].into());
        match self.submit(i, Op::Read { offset: 0, buf }) {
            Some(IoBuf::Pool(b)) => b.to_vec(),
            _ => panic!("the buffer does not come back"),
        }
    }
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

fn le(b: &[u8]) -> u64 {
    b.iter().rev().fold(0, |v, x| v << 8 | u64::from(*x))
}

/// Byte 0: CDFE. Byte 1: OCFS. Byte 2: bit 0, numbers of the list as they are. Then NSID (1 byte), CDW10 to CDW15, and
/// the list, zeroes where it ends early.
pub fn run(data: &[u8]) {
    if data.len() < 28 {
        return;
    }
    let (head, list) = data.split_at(28);
    let mut cdw = [0; 6];
    for (to, from) in cdw.iter_mut().zip(head[4..].chunks(4)) {
        *to = le(from) as u32;
    }
    let nsid = match head[3] {
        255 => u32::MAX,
        n => u32::from(n),
    };
    let command = CopyCommand { nsid, cdw };
    let capabilities =
        Capabilities { ocfs: u16::from(head[1]), cdfe: u16::from(head[0]), ..Capabilities::default() };
    let nr = (cdw[2] & 0xff) as usize + 1;
    let format = cdw[2] >> 8 & 0xf;
    let entry = if format % 2 == 0 { 32 } else { 40 };
    let mut list = list.to_vec();
    list.resize(nr * entry, 0);
    if head[2] & 1 == 0 {
        // Near the truth: SNSID below 8, SLBA below 512, NLB below 32.
        for e in list.chunks_mut(entry) {
            e[0] &= 7;
            e[1..8].fill(0);
            e[9] &= 1;
            e[10..16].fill(0);
            e[16] &= 31;
            e[17] = 0;
            e[18] &= 0x10;
            e[19] = 0;
        }
    }
    WORLD.with_borrow_mut(|world| one(world, &command, capabilities, format, &list));
}

fn one(world: &mut World, command: &CopyCommand, capabilities: Capabilities, format: u32, list: &[u8]) {
    let want = verdict(command, capabilities, format, list);
    let made = check_command(command, &world.namespaces, capabilities).and_then(|checked| {
        assert!(checked.list_len() <= list.len());
        assert!(
            list.len() < 33 || checked.decode(&list[..checked.list_len() - 1]).is_err(),
            "a list that is one byte short"
        );
        let ranges = checked.decode(list)?;
        plan(&checked, &ranges, &world.namespaces)
    });
    let plan = match (made, want) {
        (Err(reject), None) => {
            assert!(!reject.status.is_success());
            return;
        }
        (Ok(plan), Some(moves)) => {
            apply(world, command, &moves);
            plan
        }
        (Ok(_), None) => panic!("planned, and must be refused: {command:x?}"),
        (Err(reject), Some(_)) => panic!("refused, and must be planned: {reject:?}"),
    };
    execute(world, plan);
    for (i, n) in NSS.iter().enumerate() {
        assert!(world.image(i) == world.images[i], "namespace {}", n.nsid);
    }
}

/// (source namespace, its block) for each destination block from SDLBA on; `None` when any rule forbids it.
fn verdict(
    command: &CopyCommand,
    capabilities: Capabilities,
    format: u32,
    list: &[u8],
) -> Option<Vec<(usize, u64)>> {
    let find = |nsid: u32| NSS.iter().position(|n| n.nsid == nsid);
    let to = find(command.nsid)?;
    let dst = &NSS[to];
    let dw12 = command.cdw[2];
    let offered = u32::from(capabilities.ocfs) >> format & 1 == 1;
    let enabled = format < 2 || u32::from(capabilities.cdfe) >> format & 1 == 1;
    // Formats 1 and 3 are for wide guards, which no namespace here has.
    if !offered || !enabled || !matches!(format, 0 | 2) || dw12 >> 16 & 0xff != 0 {
        return None;
    }
    let nr = (dw12 & 0xff) as usize + 1;
    if nr > dst.ranges {
        return None;
    }
    let sdlba = u64::from(command.cdw[0]) | u64::from(command.cdw[1]) << 32;
    let mut moves = Vec::new();
    for e in list.chunks_exact(32).take(nr) {
        let (snsid, sopt) = (le(&e[..4]) as u32, le(&e[22..24]));
        let from = if format == 2 {
            // Fast copy only cannot be; the other bits are reserved.
            if sopt != 0 {
                return None;
            }
            find(snsid)?
        } else {
            if snsid != 0 || sopt != 0 {
                return None;
            }
            to
        };
        let (slba, nlb) = (le(&e[8..16]), le(&e[16..18]) + 1);
        if e[18] != 0 || e[19] != 0 || le(&e[4..8]) != 0 {
            return None;
        }
        let source = &NSS[from];
        if source.lbads != dst.lbads || nlb > source.mssrl {
            return None;
        }
        for k in 0..nlb {
            let block = slba.checked_add(k)?;
            if block >= source.blocks {
                return None;
            }
            moves.push((from, block));
        }
    }
    let total = moves.len() as u64;
    if total > dst.mcl || sdlba.checked_add(total)? > dst.blocks {
        return None;
    }
    let written = sdlba..sdlba + total;
    let overlap = moves.iter().any(|&(from, block)| from == to && written.contains(&block));
    (!overlap).then_some(moves)
}

fn apply(world: &mut World, command: &CopyCommand, moves: &[(usize, u64)]) {
    let to = NSS.iter().position(|n| n.nsid == command.nsid).expect("it was found");
    let size = 1 << NSS[to].lbads;
    let data: Vec<u8> = moves
        .iter()
        .flat_map(|&(from, block)| world.images[from][block as usize * size..][..size].to_vec())
        .collect();
    let at = command.cdw[0] as usize * size;
    world.images[to][at..at + data.len()].copy_from_slice(&data);
}

fn execute(world: &mut World, plan: vfio_user_nvme::copy::CopyPlan) {
    let bounce = Bounce::new(1 << 20);
    let mut task =
        CopyTask::new(plan, ExecOptions::default(), &bounce).expect("no overlap, so no cycle to buffer");
    for _ in 0..100_000 {
        let mut inline = Vec::new();
        let lane = &mut world.lane;
        let outcome = task.poll(&mut |part, ns, op| ns.disk.start(Tag(part.into()), op, lane));
        world.lane.take_done(&mut inline);
        if let Some(outcome) = outcome {
            assert!(outcome.status.is_success(), "{:?}", outcome.status);
            assert_eq!(outcome.dw0, 0);
            return;
        }
        for done in inline {
            task.done(done.tag.0 as u32, done.result, done.buf);
        }
    }
    panic!("the Copy never ends");
}
