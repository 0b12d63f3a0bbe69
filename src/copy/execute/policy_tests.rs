//! Overlap policies and methods on simulated images, against a model that copies block by block: any order of
//! completions, any refusal of a shortcut, any error, abort at any step.

use proptest::prelude::*;

use super::pace::MEMORY_WINDOW;
use super::tests::{BLOCK, Dice, Images, blocks_of, images};
use super::{By, CopyTask, ExecOptions, Outcome};
use crate::copy::Capabilities;
use crate::copy::bounce::Bounce;
use crate::copy::plan::{CopyPlan, PlannedRange, check_command, plan};
use crate::copy::range::SourceRange;
use crate::copy::selection::best_method;
use crate::copy::testing::{command, special};
use crate::disk::{DiskError, How, IoBuf, Moved, Op, Ways};
use crate::namespace::{CopyPolicy, Method, Namespaces, Overlap};
use crate::spec::Status;

/// One Copy and the world it is done in.
#[derive(Clone, Debug)]
struct Case {
    policy: CopyPolicy,
    shortcuts: Ways,
    /// Blocks of each of the two namespaces.
    blocks: u64,
    sdlba: u64,
    /// SNSID, SLBA, blocks, FCO. All of namespace 1 and no FCO: format 0.
    ranges: Vec<(u32, u64, u32, bool)>,
    fua: bool,
    options: ExecOptions,
    /// Blocks that may be held.
    hold: u64,
}

impl Case {
    /// Within namespace 1, by bouncing.
    fn overlapping(overlap: Overlap, sdlba: u64, ranges: &[(u64, u32)]) -> Self {
        Self {
            policy: CopyPolicy { overlap, method: Method::Auto },
            shortcuts: Ways::default(),
            blocks: 400,
            sdlba,
            ranges: ranges.iter().map(|&(slba, nlb)| (1, slba, nlb, false)).collect(),
            fua: false,
            options: ExecOptions { segment_bytes: 4 * BLOCK, window: 4, budget: 32 * BLOCK },
            hold: 200,
        }
    }

    /// Two runs from namespace 2, 400 and 20 blocks, the first of them aligned in the middle.
    fn by(method: Method, shortcuts: Ways) -> Self {
        Self {
            policy: CopyPolicy { method, ..CopyPolicy::default() },
            shortcuts,
            blocks: 1000,
            sdlba: 11,
            ranges: vec![(2, 3, 200, false), (2, 203, 200, false), (2, 800, 20, false)],
            fua: false,
            options: ExecOptions { segment_bytes: 64 * BLOCK, window: 8, budget: 512 * BLOCK },
            hold: 0,
        }
    }

    fn images(&self) -> Images {
        images(&[(1, self.blocks), (2, self.blocks)])
    }

    fn plan(&self) -> CopyPlan {
        let list = [1, 2].map(|nsid| special(nsid, self.blocks, 9, self.shortcuts, self.policy));
        let namespaces = Namespaces::new(list.into(), 2);
        let own = self.ranges.iter().all(|range| range.0 == 1 && !range.3);
        let ranges: Vec<_> = self
            .ranges
            .iter()
            .map(|&(snsid, slba, nlb, fco)| SourceRange {
                fco,
                ..SourceRange::plain((!own).then_some(snsid), slba, nlb)
            })
            .collect();
        let mut command = command(1, self.sdlba, if own { 0 } else { 2 }, ranges.len());
        command.cdw[2] |= u32::from(self.fua) << 30;
        let checked = check_command(
            &command,
            &namespaces,
            Capabilities { ocfs: 5, cdfe: 4, ..Capabilities::default() },
        )
        .expect("sound");
        plan(&checked, &ranges, &namespaces).expect("sound")
    }

    /// What the destination must hold in the end: block by block, as the policy says, without any cleverness.
    fn expected(&self) -> Vec<u8> {
        let mut images = self.images();
        let before = images.clone();
        let block = |images: &Images, nsid: u32, lba: u64| {
            images[&nsid][(lba * BLOCK) as usize..((lba + 1) * BLOCK) as usize].to_vec()
        };
        let mut to = self.sdlba;
        for &(nsid, slba, nlb, _) in &self.ranges {
            let from = if self.policy.overlap == Overlap::InOrder { images.clone() } else { before.clone() };
            for lba in slba..slba + u64::from(nlb) {
                let data = block(&from, nsid, lba);
                images.get_mut(&1).expect("known")[(to * BLOCK) as usize..][..BLOCK as usize]
                    .copy_from_slice(&data);
                to += 1;
            }
        }
        images[&1][(self.sdlba * BLOCK) as usize..(to * BLOCK) as usize].to_vec()
    }

    /// Does one range read ahead of its place what is overwritten, and another one behind?
    fn reads_both_ways(&self) -> bool {
        let end = self.sdlba + self.ranges.iter().map(|range| u64::from(range.2)).sum::<u64>();
        let mut place = self.sdlba;
        let (mut ahead, mut behind) = (false, false);
        for &(_, slba, nlb, _) in &self.ranges {
            let meets = slba < end && self.sdlba < slba + u64::from(nlb);
            ahead |= meets && slba > place;
            behind |= meets && slba < place;
            place += u64::from(nlb);
        }
        ahead && behind
    }
}

/// What goes wrong and when.
#[derive(Clone, Debug, Default)]
struct Trouble {
    /// Operations, by order of submission, that fail.
    fail: Vec<usize>,
    /// That are refused, if they are shortcuts.
    refuse: Vec<usize>,
    abort_after: Option<usize>,
}

/// Bytes copied each way, and more. All rules have been asserted on the way.
#[derive(Debug, Default)]
struct Seen {
    outcome: Option<Outcome>,
    moved: u64,
    reflinked: u64,
    offloaded: u64,
    written: u64,
    pool_copied: u64,
    pool_copies: usize,
    /// Operations that move several pieces of memory.
    scattered: usize,
    reads: usize,
    writes: usize,
    operations: usize,
    completions: usize,
    /// Most bytes of bounce memory at any time.
    memory: u64,
    /// Destination blocks in the order in which their writes were handed out.
    order: Vec<usize>,
}

struct Pending {
    part: u32,
    nsid: u32,
    op: Op,
    number: usize,
    early: bool,
}

/// What an operation reads or writes: NSID, first byte, end.
type Extent = (u32, u64, u64);

/// What it reads, and what it writes.
fn extents(nsid: u32, op: &Op) -> (Vec<Extent>, Vec<Extent>) {
    match op {
        Op::Read { offset, buf } => (vec![(nsid, *offset, offset + buf.len() as u64)], vec![]),
        Op::Write { offset, buf, .. } => (vec![], vec![(nsid, *offset, offset + buf.len() as u64)]),
        Op::Copy { from, pieces, at, .. } => {
            (pieces_of(from, pieces), vec![(nsid, *at, at + len_of(pieces))])
        }
        _ => (vec![], vec![]),
    }
}

fn pieces_of(source: &crate::disk::SharedDisk, pieces: &[(u64, u64)]) -> Vec<Extent> {
    let source = source_nsid(source);
    pieces.iter().map(|(from, len)| (source, *from, from + len)).collect()
}

fn len_of(pieces: &[(u64, u64)]) -> u64 {
    pieces.iter().map(|(_, len)| len).sum()
}

/// The images have no names; the plan's namespaces hold them.
fn source_nsid(source: &crate::disk::SharedDisk) -> u32 {
    SOURCES.with(|sources| {
        let sources = sources.borrow();
        let found = sources.iter().find(|(_, disk)| std::sync::Arc::ptr_eq(disk, source));
        found.expect("a source of the plan").0
    })
}

thread_local! {
    static SOURCES: std::cell::RefCell<Vec<(u32, crate::disk::SharedDisk)>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn meet(a: &[Extent], b: &[Extent]) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.0 == b.0 && a.1 < b.2 && b.1 < a.2))
}

/// Which side of a failing pool copy fails.
fn reading_fails(number: usize) -> bool {
    number.is_multiple_of(2)
}

struct World {
    images: Images,
    expected: Vec<u8>,
    plan: CopyPlan,
    case: Case,
    /// Blocks written with success, and durable.
    written: Vec<bool>,
    durable: Vec<bool>,
    errors: Vec<Status>,
    refused: Vec<(u32, How)>,
    pool_copy_refused: Vec<u32>,
}

impl World {
    fn blocks(&self, offset: u64, len: u64) -> std::ops::Range<usize> {
        let at = offset.checked_sub(self.plan.dst().offset).expect("inside the destination");
        assert!(at.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) && len > 0);
        assert!(at + len <= self.plan.dst().len);
        (at / BLOCK) as usize..((at + len) / BLOCK) as usize
    }

    fn ranges_at(&self, blocks: &std::ops::Range<usize>) -> impl Iterator<Item = &PlannedRange> {
        let (start, end) = (blocks.start as u64 * BLOCK, blocks.end as u64 * BLOCK);
        self.plan.ranges().iter().filter(move |r| r.at < end && start < r.at + r.src.len)
    }

    fn inspect(&self, nsid: u32, op: &Op, pending: &[Pending]) {
        let (reads, writes) = extents(nsid, op);
        for other in pending {
            let (other_reads, other_writes) = extents(other.nsid, &other.op);
            assert!(
                !meet(&writes, &other_writes) && !meet(&writes, &other_reads) && !meet(&reads, &other_writes),
                "{op:?} races with {:?}",
                other.op
            );
        }
        match op {
            Op::Write { offset, buf: IoBuf::Pool(buf), .. } => {
                assert_eq!(nsid, 1);
                let blocks = self.blocks(*offset, buf.len() as u64);
                let at = blocks.start * BLOCK as usize;
                assert!(buf[..] == self.expected[at..at + buf.len()], "wrong data for {blocks:?}");
                assert!(blocks.clone().all(|block| !self.written[block]), "written twice");
                assert!(self.ranges_at(&blocks).all(|range| !range.fco), "no fast copy");
            }
            Op::Copy {
                from: source,
                pieces,
                at: offset,
                how: How::ReadWrite { or_kernel },
                buf,
                durable: _,
            } => {
                let Some(IoBuf::Pool(buf)) = buf else { panic!("a bounce buffer") };
                assert_eq!(nsid, 1);
                assert_eq!(*or_kernel, self.case.policy.method != Method::Bounce, "as the method allows");
                let from = source_nsid(source);
                assert!(self.case.shortcuts.read_write && !self.pool_copy_refused.contains(&from));
                let blocks = self.blocks(*offset, buf.len() as u64);
                let ExecOptions { segment_bytes, budget, .. } = self.case.options;
                assert!(buf.len() as u64 <= segment_bytes.max(budget / 2).max(BLOCK));
                assert_eq!(len_of(pieces), buf.len() as u64);
                assert!(blocks.clone().all(|block| !self.written[block]), "written twice");
                assert!(self.ranges_at(&blocks).all(|range| !range.fco), "no fast copy");
                // It reads when it likes: what lies there now must be what is wanted, until it ends.
                let at = blocks.start * BLOCK as usize;
                let data = pool_copied(&self.images[&from], pieces);
                assert!(data == self.expected[at..at + buf.len()], "wrong data for {blocks:?}");
                assert!(
                    !meet(&reads, &writes),
                    "its own write comes after its reads, those of others do not"
                );
            }
            Op::Copy { from: source, pieces, at: offset, how, buf: None, durable: false } => {
                assert_eq!(nsid, 1);
                let len = &len_of(pieces);
                let blocks = self.blocks(*offset, *len);
                assert!(blocks.clone().all(|block| !self.written[block]), "written twice");
                let from_nsid = source_nsid(source);
                assert!(!self.refused.contains(&(from_nsid, *how)), "{how:?} has been refused");
                if pieces.len() > 1 {
                    assert_eq!(*how, How::MemMove);
                    let at = blocks.start * BLOCK as usize;
                    let data = pool_copied(&self.images[&from_nsid], pieces);
                    assert!(data == self.expected[at..at + data.len()], "wrong data for {blocks:?}");
                    assert!(!meet(&reads, &writes), "no piece under the destination of another");
                }
                let from = &pieces[0].0;
                let (shortcuts, method) = (self.case.shortcuts, self.case.policy.method);
                match how {
                    How::MemMove => {
                        assert!(shortcuts.memmove && method == Method::Auto && *len <= 128 << 10);
                        assert!(self.ranges_at(&blocks).all(|range| !range.fco), "no fast copy");
                    }
                    How::Reflink => {
                        let align = shortcuts.reflink.expect("offered");
                        assert!(matches!(method, Method::Auto | Method::Reflink));
                        let end = self.case.blocks * BLOCK;
                        let ends = from + len == end && offset + len == end;
                        assert!(
                            from % align == 0 && offset % align == 0 && (len.is_multiple_of(align) || ends)
                        );
                        assert!(!meet(&reads, &writes), "no reflink onto itself");
                    }
                    How::Offload => {
                        assert!(shortcuts.offload && method != Method::Bounce);
                        assert!(method != Method::Auto || shortcuts.offload_pays && *len >= 64 << 10);
                        assert!(!meet(&reads, &writes) && *len <= 16 << 20);
                        assert!(self.ranges_at(&blocks).all(|range| !range.fco), "no fast copy");
                    }
                    How::ReadWrite { .. } => unreachable!("has a buffer"),
                }
            }
            Op::Read { buf: IoBuf::Pool(_) | IoBuf::Part(_), .. } => {}
            Op::Flush => {
                assert!(self.plan.fua() && pending.is_empty() && self.written.iter().all(|&w| w));
            }
            other => panic!("no business of a copy: {other:?}"),
        }
    }

    fn act(&mut self, nsid: u32, op: &mut Op, number: usize, fails: bool, refused: bool) {
        let fate = |image: &mut [u8]| {
            let half = image.len() / 2;
            image[..half].fill(0xee);
        };
        match op {
            Op::Read { buf, .. } if fails => buf.ours_mut().expect("a bounce buffer").fill(0xee),
            Op::Read { offset, buf } => {
                let buf = buf.ours_mut().expect("a bounce buffer");
                buf.copy_from_slice(&self.images[&nsid][*offset as usize..][..buf.len()]);
            }
            Op::Write { offset, buf: IoBuf::Pool(buf), .. } => {
                let place = &mut self.images.get_mut(&nsid).expect("known")[*offset as usize..][..buf.len()];
                if fails { fate(place) } else { place.copy_from_slice(buf) }
            }
            Op::Copy { .. } if refused => {}
            Op::Copy { buf: Some(buf), .. } if fails && reading_fails(number) => {
                buf.ours_mut().expect("a bounce buffer").fill(0xee);
            }
            Op::Copy { from, pieces, at, buf, .. } => {
                let data = pool_copied(&self.images[&source_nsid(from)], pieces);
                if let Some(buf) = buf {
                    buf.ours_mut().expect("a bounce buffer").copy_from_slice(&data);
                }
                let place = &mut self.images.get_mut(&nsid).expect("known")[*at as usize..][..data.len()];
                if fails { fate(place) } else { place.copy_from_slice(&data) }
            }
            _ => {}
        }
    }
}

fn pool_copied(image: &[u8], pieces: &[(u64, u64)]) -> Vec<u8> {
    pieces.iter().flat_map(|&(from, len)| &image[from as usize..(from + len) as usize]).copied().collect()
}

fn run(case: &Case, seed: u64, trouble: &Trouble) -> Seen {
    let plan = case.plan();
    SOURCES.with(|sources| {
        *sources.borrow_mut() =
            plan.ranges().iter().map(|range| (range.ns.nsid, range.ns.disk.clone())).collect();
    });
    let bounce = Bounce::holding(1 << 20, case.hold * BLOCK);
    let bounds = case.options.effective(BLOCK, &bounce);
    let window = if case.shortcuts.memmove { bounds.window.max(MEMORY_WINDOW) } else { bounds.window };
    let before = case.images();
    let mut task = match CopyTask::new(plan.clone(), case.options, &bounce) {
        Ok(task) => task,
        Err(reject) => {
            assert_eq!(reject.status, Status(0x4189));
            assert!(2 * case.hold * BLOCK < plan.dst().len, "no more than half of it need be held");
            assert!(case.reads_both_ways(), "refused without need");
            return Seen::default();
        }
    };
    let blocks = (plan.dst().len / BLOCK) as usize;
    let mut world = World {
        images: before.clone(),
        expected: case.expected(),
        plan,
        case: case.clone(),
        written: vec![false; blocks],
        durable: vec![false; blocks],
        errors: Vec::new(),
        refused: Vec::new(),
        pool_copy_refused: Vec::new(),
    };
    let mut dice = Dice(seed | 1);
    let mut pending: Vec<Pending> = Vec::new();
    let mut seen = Seen::default();
    let (mut aborted, mut written) = (false, Vec::new());
    let outcome = loop {
        if trouble.abort_after == Some(seen.completions) && !aborted {
            task.abort();
            aborted = true;
        }
        let stopped = aborted || !world.errors.is_empty();
        let mut moved = 0;
        let outcome = task.poll(&mut |part, ns, mut op| {
            assert!(!stopped, "nothing starts after an error or an abort");
            assert!(part < window && pending.iter().all(|p| p.part != part), "part numbers");
            world.inspect(ns.nsid, &op, &pending);
            match &op {
                Op::Read { .. } => seen.reads += 1,
                Op::Write { offset, buf, .. } => {
                    seen.writes += 1;
                    seen.written += buf.len() as u64;
                    seen.order.extend(world.blocks(*offset, buf.len() as u64));
                }
                Op::Copy { at, how: How::ReadWrite { .. }, pieces, .. } => {
                    seen.pool_copies += 1;
                    seen.pool_copied += len_of(pieces);
                    seen.order.extend(world.blocks(*at, len_of(pieces)));
                }
                Op::Copy { how, pieces, at, .. } => {
                    seen.order.extend(world.blocks(*at, len_of(pieces)));
                    seen.scattered += usize::from(pieces.len() > 1);
                    *match how {
                        How::Reflink => &mut seen.reflinked,
                        How::Offload => &mut seen.offloaded,
                        _ => &mut moved,
                    } += len_of(pieces);
                }
                _ => {}
            }
            let number = seen.operations;
            seen.operations += 1;
            let early = dice.roll(2) == 0;
            if early {
                let fails = trouble.fail.contains(&number);
                world.act(ns.nsid, &mut op, number, fails, trouble.refuse.contains(&number));
            }
            pending.push(Pending { part, nsid: ns.nsid, op, number, early });
        });
        assert!(moved <= 256 << 10, "a poll is short");
        seen.moved += moved;
        seen.memory = seen.memory.max(task.bounce_bytes());
        assert!(pending.len() == task.in_flight() as usize && pending.len() <= window as usize);
        let held: usize = pending
            .iter()
            .map(|p| match &p.op {
                Op::Read { buf, .. } | Op::Write { buf, .. } | Op::Copy { buf: Some(buf), .. } => buf.len(),
                _ => 0,
            })
            .sum();
        assert!(
            held as u64 <= task.bounce_bytes() && task.bounce_bytes() <= bounds.budget + case.hold * BLOCK,
            "budget"
        );
        assert_eq!(bounce.in_use(), task.bounce_bytes());
        assert!(!task.is_starved(), "alone it never waits");
        if let Some(outcome) = outcome {
            assert!(pending.is_empty(), "complete with operations in flight");
            break outcome;
        }
        assert!(!pending.is_empty(), "nothing in flight and no end");
        for _ in 0..=dice.roll(2) {
            if pending.is_empty() {
                break;
            }
            let mut next = pending.swap_remove(dice.roll(pending.len()));
            let direct = matches!(next.op, Op::Copy { .. });
            let refused = direct && trouble.refuse.contains(&next.number);
            let fails = !refused && trouble.fail.contains(&next.number);
            if !next.early {
                world.act(next.nsid, &mut next.op, next.number, fails, refused);
            }
            let moved = match next.op {
                Op::Copy { how: How::MemMove, .. } => Moved::MemMove,
                Op::Copy { how: How::Reflink, .. } => Moved::Shared,
                Op::Copy { how: How::Offload, .. } => Moved::KernelCopy,
                Op::Copy { how: How::ReadWrite { .. }, .. } => Moved::ReadWrite,
                _ => Moved::Plain,
            };
            let mut result = Ok(());
            if refused {
                result = Err(DiskError::NoWay);
            } else if fails {
                let error = DiskError::Io(std::io::Error::from_raw_os_error(libc::EIO));
                let pool_copy = matches!(next.op, Op::Copy { buf: Some(_), .. });
                result = Err(match error {
                    error if pool_copy && reading_fails(next.number) => {
                        DiskError::Source { at: 0, error: Box::new(error) }
                    }
                    error => error,
                });
            }
            let buf = match next.op {
                Op::Copy { from: source, at: offset, buf: Some(buf), durable: fua, .. } => {
                    if refused {
                        world.pool_copy_refused.push(source_nsid(&source));
                    } else if fails && reading_fails(next.number) {
                        world.errors.push(Status::UNRECOVERED_READ);
                    } else if fails {
                        world.errors.push(Status::WRITE_FAULT);
                    } else {
                        for block in world.blocks(offset, buf.len() as u64) {
                            (world.written[block], world.durable[block]) = (true, fua);
                        }
                    }
                    Some(buf)
                }
                Op::Read { buf, .. } => {
                    if fails {
                        world.errors.push(Status::UNRECOVERED_READ);
                    }
                    Some(buf)
                }
                Op::Write { offset, buf, fua } => {
                    if fails {
                        world.errors.push(Status::WRITE_FAULT);
                    } else {
                        for block in world.blocks(offset, buf.len() as u64) {
                            (world.written[block], world.durable[block]) = (true, fua);
                        }
                    }
                    Some(buf)
                }
                Op::Copy { from: source, at: offset, pieces, how, .. } => {
                    let blocks = world.blocks(offset, len_of(&pieces));
                    let fco = world.ranges_at(&blocks).any(|range| range.fco);
                    if refused {
                        world.refused.push((source_nsid(&source), how));
                        if fco {
                            world.errors.push(Status::FAST_COPY_NOT_POSSIBLE.dnr());
                        }
                    } else if fails {
                        if fco || how == How::MemMove {
                            world.errors.push(Status::WRITE_FAULT);
                        }
                    } else {
                        world.written[blocks].fill(true);
                    }
                    None
                }
                _ => {
                    if fails {
                        world.errors.push(Status::WRITE_FAULT);
                    } else {
                        world.durable.fill(true);
                    }
                    None
                }
            };
            let part = task.done(next.part, result.map(|()| moved), buf);
            assert!(part.is_none_or(|part| part.by == By::of(moved)));
            written.extend(part);
            seen.completions += 1;
            if trouble.abort_after == Some(seen.completions) {
                break;
            }
        }
    };
    assert_eq!(task.poll(&mut |_, _, op| panic!("after the end: {op:?}")), None);
    drop(task);
    assert_eq!(bounce.left(), bounce.total());
    judge(&world, &before, outcome, aborted);
    assert_eq!(blocks_of(&written, world.written.len()), world.written, "what is told to laboratories");
    seen.outcome = Some(outcome);
    seen
}

/// Is the outcome the truth about the images?
fn judge(world: &World, before: &Images, outcome: Outcome, aborted: bool) {
    let plan = &world.plan;
    let dst = plan.dst().offset as usize..(plan.dst().offset + plan.dst().len) as usize;
    let mut outside = world.images.clone();
    outside.get_mut(&1).expect("known")[dst.clone()].copy_from_slice(&before[&1][dst.clone()]);
    assert!(outside == *before, "changed outside the destination");
    let got = &world.images[&1][dst];
    let holds = |range: &PlannedRange| {
        let bytes = range.at as usize..(range.at + range.src.len) as usize;
        got[bytes.clone()] == world.expected[bytes]
    };
    let all = |range: &PlannedRange, flags: &[bool]| {
        flags[(range.at / BLOCK) as usize..((range.at + range.src.len) / BLOCK) as usize].iter().all(|&f| f)
    };
    if outcome.status.is_success() {
        assert_eq!(outcome.dw0, 0);
        assert!(world.errors.is_empty());
        assert!(plan.ranges().iter().all(holds), "not what it should be");
        assert!(plan.ranges().iter().all(|range| all(range, &world.written)));
        assert!(!plan.fua() || world.durable.iter().all(|&d| d), "not durable");
        return;
    }
    let done =
        |range: &PlannedRange| all(range, &world.written) && (!plan.fua() || all(range, &world.durable));
    let lowest = plan.ranges().iter().position(|range| !done(range)).unwrap_or(0);
    assert_eq!(outcome.dw0 as usize, lowest, "DW0 with {:?}", outcome.status);
    assert!(plan.ranges()[..lowest].iter().all(holds), "a range below DW0 is not copied");
    // A refusal for one stretch is one for all, those that must be shared included.
    let fco = |range: &PlannedRange| range.fco && !all(range, &world.written);
    let not_fast = outcome.status == Status::FAST_COPY_NOT_POSSIBLE.dnr()
        && world.refused.iter().any(|(_, how)| *how == How::Reflink)
        && plan.ranges().iter().any(fco);
    if not_fast {
    } else if world.errors.is_empty() {
        assert!(aborted);
        assert_eq!(outcome.status, Status::ABORT_REQUESTED);
    } else {
        assert!(world.errors.contains(&outcome.status), "{:?} of {:?}", outcome.status, world.errors);
    }
}

#[track_caller]
fn good(case: &Case) -> Seen {
    let mut last = None;
    for seed in 1..12 {
        let seen = run(case, seed * 7919, &Trouble::default());
        assert_eq!(seen.outcome, Some(Outcome { status: Status::SUCCESS, dw0: 0 }), "{case:?}");
        last = Some(seen);
    }
    last.expect("run")
}

const POLICIES: [Overlap; 2] = [Overlap::Snapshot, Overlap::InOrder];

/// Memory of this process and files.
const SIDES: [bool; 2] = [false, true];

fn memory(mut case: Case) -> Case {
    case.shortcuts.memmove = true;
    case
}

#[test]
fn one_range_is_a_memmove() {
    for overlap in POLICIES {
        for (from, to) in [(100, 101), (101, 100), (100, 103), (100, 100), (100, 139), (139, 100)] {
            let case = Case::overlapping(overlap, to, &[(from, 40)]);
            let seen = good(&case);
            assert_eq!((seen.reads, seen.writes), (10, 10));
            // By direction, and with no more memory than any other Copy needs.
            let mut case =
                Case { options: ExecOptions { budget: 8 * BLOCK, window: 1, ..case.options }, ..case };
            let seen = good(&case);
            let first = seen.order[0];
            assert_eq!(first, if from < to { 36 } else { 0 });
            case.options.segment_bytes = 1000 * BLOCK;
            good(&case);
            assert_eq!(good(&memory(case)).moved, 40 * BLOCK);
        }
    }
}

/// Peers' fault: a later range reads what an earlier one has written, with success.
#[test]
fn qemu_fault_2_a_snapshot_is_one() {
    for memmove in SIDES {
        for case in [
            Case::overlapping(Overlap::Snapshot, 300, &[(0, 8), (296, 8)]),
            Case::overlapping(Overlap::Snapshot, 300, &[(304, 4), (300, 4)]),
            Case::overlapping(Overlap::Snapshot, 300, &[(304, 4), (300, 4), (301, 7)]),
        ] {
            good(&if memmove { memory(case) } else { case });
        }
    }
}

/// And where that is asked for, in list order as the peer does it.
#[test]
fn in_order_reads_what_was_written() {
    let mut case = Case::overlapping(Overlap::InOrder, 100, &[(0, 8), (100, 8), (108, 8)]);
    let expected = case.expected();
    assert_eq!(expected[..8 * BLOCK as usize], expected[16 * BLOCK as usize..]);
    good(&case);
    good(&memory(case.clone()));
    case.policy.overlap = Overlap::Snapshot;
    assert_ne!(case.expected(), expected);
    good(&case);
}

/// SPDK: eight children at a time, of which the second reads what the first has written.
#[test]
fn spdk_fault_2_parallel_parts_of_one_overlapping_range() {
    for (from, to) in [(10, 14), (14, 10), (10, 11)] {
        let mut case = Case::overlapping(Overlap::Snapshot, to, &[(from, 200)]);
        case.options.window = 8;
        case.options.budget = 64 * BLOCK;
        let seen = good(&case);
        assert!(seen.memory > 8 * BLOCK, "in parallel all the same");
    }
}

/// SPDK: a split Copy that fails midway reports nothing of what it did.
#[test]
fn spdk_fault_8_dw0_is_true_in_the_middle() {
    let case = Case::overlapping(Overlap::Snapshot, 100, &[(0, 8), (20, 8), (103, 8), (60, 8)]);
    for seed in 1..20 {
        let operations = good(&case).operations;
        for step in 0..operations {
            let seen = run(&case, seed, &Trouble { fail: vec![step], ..Trouble::default() });
            assert!(!seen.outcome.expect("ran").status.is_success());
        }
    }
}

/// SPDK: every failure is an Internal Error. Here a medium's fault is one.
#[test]
fn spdk_fault_1_a_media_error_keeps_its_name() {
    let case = Case::by(Method::Auto, Ways::default());
    for step in 0..good(&case).operations {
        let seen = run(&case, 3, &Trouble { fail: vec![step], ..Trouble::default() });
        let status = seen.outcome.expect("ran").status;
        assert!([Status::UNRECOVERED_READ, Status::WRITE_FAULT].contains(&status), "{status:?}");
    }
}

/// SPDK and QEMU: FUA ignored.
#[test]
fn spdk_fault_5_fua_is_kept_by_every_method() {
    for shortcuts in [Ways::default(), Ways { memmove: true, ..Ways::default() }, by_the_file_system()] {
        good(&Case { fua: true, ..Case::by(Method::Auto, shortcuts) });
        let case = Case::overlapping(Overlap::Snapshot, 100, &[(104, 4), (100, 4), (90, 20)]);
        good(&Case { fua: true, shortcuts, ..case });
    }
}

/// QEMU: one Copy may allocate what its largest range may have.
#[test]
fn qemu_fault_14_memory_is_bounded() {
    let mut case = Case::overlapping(Overlap::Snapshot, 50, &[(150, 100), (50, 100)]);
    case.options.budget = 12 * BLOCK;
    case.hold = 100;
    assert!(good(&case).memory <= 112 * BLOCK);
}

#[test]
fn no_more_is_held_than_must_be() {
    for memmove in SIDES {
        for (held, ranges) in [
            // Two halves change places.
            (100, &[(100, 100), (0, 100)][..]),
            // By one block only, and by nearly half.
            (1, &[(1, 199), (0, 1)]),
            (99, &[(101, 99), (0, 101)]),
            // Nothing: all sources lie ahead of their places, as when a log is compacted; or all behind.
            (0, &[(1, 20), (40, 20), (70, 50), (180, 5)]),
            (0, &[(20, 30), (0, 70)]),
            // What reads behind its place, but not what is overwritten.
            (0, &[(30, 20), (300, 20), (60, 20)]),
        ] {
            let sdlba = if held == 0 && ranges[0].0 == 20 { 30 } else { 0 };
            let mut case = Case::overlapping(Overlap::Snapshot, sdlba, ranges);
            case.options.budget = 8 * BLOCK;
            case.hold = held;
            let case = if memmove { memory(case) } else { case };
            let seen = good(&case);
            assert!(seen.memory <= (held + 8) * BLOCK, "{ranges:?}");
            assert!(held == 0 || seen.memory >= held * BLOCK, "{ranges:?}");
        }
    }
}

#[test]
fn what_cannot_be_held_is_refused_before_anything_moves() {
    let case = Case::overlapping(Overlap::Snapshot, 0, &[(8, 8), (0, 8)]);
    for case in [memory(case.clone()), case] {
        let bounce = Bounce::holding(1 << 20, 8 * BLOCK - 1);
        let reject = CopyTask::new(case.plan(), case.options, &bounce).expect_err("no room");
        assert_eq!(reject.status, Status(0x4189), "DNR: it will be no less another time");
        let in_order =
            Case { policy: CopyPolicy { overlap: Overlap::InOrder, ..case.policy }, hold: 0, ..case.clone() };
        good(&in_order);
        good(&Case { hold: 8, ..case });
    }
}

/// The largest list, in which everything depends on everything: half of it is held.
#[test]
fn many_ranges_do_not_blow_up() {
    let mut ranges: Vec<(u64, u32)> = (0..256).map(|i| ((i * 167 + 5) % 256 * 128, 128)).collect();
    ranges.reverse();
    let mut case = Case::overlapping(Overlap::Snapshot, 0, &ranges);
    case.blocks = 256 * 128;
    case.options = ExecOptions::default();
    case.hold = case.blocks / 2;
    let seen = run(&case, 5, &Trouble::default());
    assert_eq!(seen.outcome, Some(Outcome { status: Status::SUCCESS, dw0: 0 }));
    // Every range reads the same whole destination.
    let ranges: Vec<(u64, u32)> = (0..200).map(|i| (i, 100)).collect();
    let mut case = Case::overlapping(Overlap::Snapshot, 0, &ranges);
    case.blocks = 20_000;
    case.hold = case.blocks;
    good(&case);
}

/// Copies that hold sources never wait for each other in a circle.
#[test]
fn copies_that_hold_sources_do_not_lock_each_other_out() {
    let mut case = Case::overlapping(Overlap::Snapshot, 0, &[(100, 100), (0, 100)]);
    case.options = ExecOptions { segment_bytes: 20 * BLOCK, window: 3, budget: 100 * BLOCK };
    for seed in 1..8 {
        let bounce = Bounce::holding(64 << 10, 150 * BLOCK);
        let mut dice = Dice(seed * 104_729);
        let mut tasks: Vec<_> = (0..6)
            .map(|_| Some(CopyTask::new(case.plan(), case.options, &bounce).expect("it fits")))
            .collect();
        let (mut idle, mut pending) = (0, Vec::<(usize, u32, Op)>::new());
        while tasks.iter().any(Option::is_some) {
            for (who, slot) in tasks.iter_mut().enumerate() {
                let Some(task) = slot else { continue };
                if let Some(outcome) = task.poll(&mut |part, _, op| pending.push((who, part, op))) {
                    assert_eq!(outcome.status, Status::SUCCESS);
                    *slot = None;
                }
            }
            idle = if pending.is_empty() { idle + 1 } else { 0 };
            assert!(idle < 8, "all wait for each other");
            if pending.is_empty() {
                continue;
            }
            let (who, part, op) = pending.swap_remove(dice.roll(pending.len()));
            let (Op::Read { buf, .. } | Op::Write { buf, .. }) = op else { panic!("{op:?}") };
            tasks[who].as_mut().expect("in flight").done(part, Ok(Moved::Plain), Some(buf));
        }
        assert_eq!(bounce.in_use(), 0);
    }
}

const RUN: u64 = 400 * BLOCK;
const SHORT: u64 = 20 * BLOCK;

/// Blocks can be shared, and copied by the file system.
fn by_the_file_system() -> Ways {
    Ways { reflink: Some(4096), offload: true, offload_pays: true, ..Ways::default() }
}

/// Which method takes how much, by method and what the images can.
#[test]
fn rungs() {
    let all = by_the_file_system();
    let tally = |method, shortcuts| {
        let seen = good(&Case::by(method, shortcuts));
        [seen.moved, seen.reflinked, seen.offloaded, seen.written]
    };
    let (head, tail) = (5 * BLOCK, 3 * BLOCK);
    let middle = RUN - head - tail;
    assert_eq!(tally(Method::Auto, all), [0, middle, 0, head + tail + SHORT]);
    assert_eq!(tally(Method::Reflink, all), [0, middle, head + tail + SHORT, 0]);
    assert_eq!(tally(Method::Offload, all), [0, 0, RUN + SHORT, 0]);
    assert_eq!(tally(Method::Bounce, all), [0, 0, 0, RUN + SHORT]);
    let no_reflink = Ways { reflink: None, ..all };
    assert_eq!(tally(Method::Auto, no_reflink), [0, 0, RUN, SHORT]);
    assert_eq!(tally(Method::Reflink, no_reflink), [0, 0, RUN + SHORT, 0]);
    let dear = Ways { offload_pays: false, ..no_reflink };
    assert_eq!(tally(Method::Auto, dear), [0, 0, 0, RUN + SHORT]);
    assert_eq!(tally(Method::Offload, dear), [0, 0, RUN + SHORT, 0]);
    let memory = Ways { memmove: true, ..Ways::default() };
    assert_eq!(tally(Method::Auto, memory), [RUN + SHORT, 0, 0, 0]);
    for method in [Method::Reflink, Method::Offload, Method::Bounce] {
        assert_eq!(tally(method, memory), [0, 0, 0, RUN + SHORT]);
    }
    assert_eq!(tally(Method::Auto, Ways { reflink: Some(1 << 20), ..dear }), [0, 0, 0, RUN + SHORT]);
}

#[test]
fn what_copy_file_range_does_is_said_as_it_is() {
    let say = |method, shortcuts| {
        best_method(&special(1, 8, 9, shortcuts, CopyPolicy { method, ..CopyPolicy::default() }))
    };
    let plain = Ways { offload: true, ..Ways::default() };
    let clones = Ways { reflink: Some(4096), offload_pays: true, offload_clones: true, ..plain };
    assert_eq!(say(Method::Auto, Ways { memmove: true, ..plain }), "memmove");
    assert_eq!(say(Method::Auto, plain), "read and write");
    assert_eq!(say(Method::Offload, plain), "copy_file_range");
    assert_eq!(say(Method::Auto, clones), "FICLONERANGE: blocks are shared");
    assert_eq!(say(Method::Offload, clones), "copy_file_range, which shares blocks on this file system");
    assert_eq!(say(Method::Bounce, clones), "read and write");
}

/// One operation for each bounced segment, however many ranges are in it; none where writes wait for others'
/// reads, nor of two sources; and reads and writes where the way is refused.
#[test]
fn segments_are_pool_copies() {
    let pool_copy = Ways { read_write: true, ..Ways::default() };
    let seen = good(&Case::by(Method::Auto, pool_copy));
    assert_eq!((seen.pool_copied, seen.pool_copies, seen.reads, seen.writes), (RUN + SHORT, 2, 0, 0));
    let scattered: Vec<_> = (0..256).map(|n| (2, 3 * n, 1, false)).collect();
    let case = Case { ranges: scattered, ..Case::by(Method::Bounce, pool_copy) };
    let seen = good(&case);
    assert_eq!((seen.pool_copies, seen.reads), (1, 0));
    let durable = good(&Case { fua: true, ..case.clone() });
    assert_eq!((durable.pool_copies, durable.operations), (1, 1), "its write is durable, no Flush follows");
    let mixed =
        Case { ranges: vec![(2, 0, 64, false), (2, 90, 30, false), (1, 500, 30, false)], ..case.clone() };
    let seen = good(&mixed);
    assert_eq!((seen.pool_copies, seen.reads, seen.writes), (1, 2, 1));
    let overlap = Case { shortcuts: pool_copy, ..Case::overlapping(Overlap::Snapshot, 10, &[(0, 40)]) };
    assert_eq!(good(&overlap).pool_copies, 0);
    for seed in 1..12 {
        let refuse = Trouble { refuse: (0..100).collect(), ..Trouble::default() };
        let seen = run(&case, seed, &refuse);
        assert_eq!(seen.outcome, Some(Outcome { status: Status::SUCCESS, dw0: 0 }));
        assert_eq!(seen.written, 256 * BLOCK);
    }
}

/// Which side failed decides the status.
#[test]
fn pool_copies_fail_on_either_side() {
    let pool_copy = Ways { read_write: true, ..Ways::default() };
    for (fail, status) in [(0, Status::UNRECOVERED_READ), (1, Status::WRITE_FAULT)] {
        let trouble = Trouble { fail: vec![fail], ..Trouble::default() };
        for seed in 1..12 {
            let outcome = run(&Case::by(Method::Auto, pool_copy), seed, &trouble).outcome;
            assert_eq!(outcome.map(|outcome| outcome.status), Some(status));
        }
    }
}

/// Source and destination not congruent: nothing is aligned, nothing is shared.
#[test]
fn a_run_out_of_step_is_not_shared() {
    let shortcuts = Ways { reflink: Some(4096), ..Ways::default() };
    let case = Case { sdlba: 12, ..Case::by(Method::Reflink, shortcuts) };
    assert_eq!(good(&case).reflinked, 0);
}

#[test]
fn a_refused_rung_falls_to_the_next_and_nothing_is_lost() {
    let all = by_the_file_system();
    for (method, shortcuts) in [
        (Method::Auto, all),
        (Method::Reflink, all),
        (Method::Offload, all),
        (Method::Auto, Ways { memmove: true, ..Ways::default() }),
    ] {
        for fua in [false, true] {
            let case = Case { fua, ..Case::by(method, shortcuts) };
            for refuse in [vec![0], vec![1], vec![0, 1], (0..30).collect()] {
                for seed in 1..10 {
                    let trouble = Trouble { refuse: refuse.clone(), ..Trouble::default() };
                    let seen = run(&case, seed * 7919, &trouble);
                    assert_eq!(seen.outcome, Some(Outcome { status: Status::SUCCESS, dw0: 0 }));
                }
            }
        }
    }
}

/// A shortcut that fails says neither which side nor where: reads and writes tell, or do it.
#[test]
fn a_shortcut_that_fails_is_bounced() {
    let shortcuts = Ways { reflink: Some(4096), ..Ways::default() };
    let case = Case { ranges: vec![(2, 3, 400, false)], ..Case::by(Method::Auto, shortcuts) };
    let direct = (0..4).find(|&step| {
        let seen = run(&case, 7, &Trouble { fail: vec![step], ..Trouble::default() });
        seen.outcome.is_some_and(|outcome| outcome.status.is_success())
    });
    assert!(direct.is_some(), "the reflink is among the first operations");
}

#[test]
fn fast_copy_only_is_fast_or_fails() {
    let shortcuts = Ways {
        reflink: Some(4096),
        offload: true,
        offload_pays: true,
        memmove: true,
        offload_clones: false,
        read_write: false,
    };
    let case = Case {
        ranges: vec![(2, 0, 8, false), (2, 64, 8, true), (2, 80, 3, false)],
        sdlba: 16,
        ..Case::by(Method::Auto, shortcuts)
    };
    let seen = good(&case);
    assert_eq!((seen.reflinked, seen.moved), (8 * BLOCK, 11 * BLOCK), "short, and shared all the same");
    for refuse in 0..3 {
        let seen = run(&case, 9, &Trouble { refuse: vec![refuse], ..Trouble::default() });
        let outcome = seen.outcome.expect("ran");
        if !outcome.status.is_success() {
            assert_eq!(outcome.status, Status(0x4186));
            assert!(outcome.dw0 <= 1);
            return;
        }
    }
    panic!("one of them was the reflink");
}

/// The first run is refused: what must be shared and comes later is not bounced for that, but fails.
#[test]
fn a_refusal_counts_for_all_that_must_be_fast() {
    let shortcuts = Ways { reflink: Some(4096), ..Ways::default() };
    let case = Case {
        ranges: vec![(2, 0, 200, false), (2, 400, 8, true), (2, 800, 200, false)],
        sdlba: 0,
        options: ExecOptions { window: 1, ..ExecOptions::default() },
        ..Case::by(Method::Auto, shortcuts)
    };
    good(&case);
    let seen = run(&case, 9, &Trouble { refuse: vec![0], ..Trouble::default() });
    let outcome = seen.outcome.expect("ran");
    assert_eq!((outcome.status, seen.written), (Status(0x4186), RUN / 2));
    assert_eq!(outcome.dw0, 1, "the first range is there, by reads and writes");
}

/// And when another Copy was refused between the check and the start, nothing moves at all.
#[test]
fn a_way_that_closes_before_the_start_refuses_the_copy() {
    let shortcuts = Ways { reflink: Some(4096), ..Ways::default() };
    let case = Case { ranges: vec![(2, 3, 8, false)], ..Case::by(Method::Auto, shortcuts) };
    let mut plan = case.plan();
    plan.ranges[0].fco = true;
    let reject = CopyTask::new(plan, case.options, &Bounce::default()).expect_err("not aligned");
    assert_eq!(reject.status, Status(0x4186));
}

/// The memory that a poll moves is bounded whatever the Copy is.
#[test]
fn a_poll_is_short() {
    let shortcuts = Ways { memmove: true, ..Ways::default() };
    let mut case =
        Case { ranges: vec![(2, 0, 8000, false)], blocks: 20_000, ..Case::by(Method::Auto, shortcuts) };
    case.options = ExecOptions::default();
    assert_eq!(good(&case).moved, 8000 * BLOCK);
    for method in [Method::Auto, Method::Bounce] {
        case.policy.method = method;
        let mut task = CopyTask::new(case.plan(), case.options, &Bounce::default()).expect("sound");
        let mut bytes = 0;
        task.poll(&mut |_, _, op| match op {
            Op::Read { buf, .. } => bytes += buf.len(),
            Op::Copy { pieces, .. } => bytes += len_of(&pieces) as usize,
            other => panic!("{other:?}"),
        });
        assert!(task.moves_memory() && bytes > 0 && bytes <= 256 << 10, "{method:?}: {bytes}");
    }
}

/// Short ranges in memory are moved many at a time, from each source apart.
#[test]
fn short_ranges_in_memory_are_one_operation() {
    let shortcuts = Ways { memmove: true, ..Ways::default() };
    let mut case = Case { blocks: 2000, sdlba: 0, ..Case::by(Method::Auto, shortcuts) };
    case.ranges = (0..256).map(|i| (2, i * 167 % 256 * 2, 1, false)).collect();
    let seen = good(&case);
    assert_eq!((seen.moved, seen.operations, seen.scattered), (256 * BLOCK, 1, 1));
    // More than a slice: cut where it ends, in the middle of a range.
    case.ranges = (0..20).map(|i| (2, 1900 - i * 30, 27, false)).collect();
    let seen = good(&case);
    assert_eq!((seen.moved, seen.operations, seen.scattered), (540 * BLOCK, 3, 3));
    // From two sources in turn.
    case.ranges = (0..6).map(|i| (1 + i / 2 % 2, 600 + 3 * u64::from(i), 1, false)).collect();
    let seen = good(&case);
    assert_eq!((seen.moved, seen.operations, seen.scattered), (6 * BLOCK, 3, 3));
}

fn shortcuts() -> impl Strategy<Value = Ways> {
    let reflink = prop_oneof![1 => Just(None), 2 => Just(Some(4096)), 1 => Just(Some(1024))];
    (prop::bool::weighted(0.3), reflink, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(memmove, reflink, offload, offload_pays, read_write)| Ways {
            memmove,
            reflink,
            offload,
            offload_pays,
            offload_clones: false,
            read_write,
        },
    )
}

fn options() -> impl Strategy<Value = ExecOptions> {
    (0..40u64, 0..7u32, 0..120u64).prop_map(|(segment, window, budget)| ExecOptions {
        segment_bytes: segment * BLOCK,
        window,
        budget: budget * BLOCK,
    })
}

fn method() -> impl Strategy<Value = Method> {
    prop_oneof![Just(Method::Auto), Just(Method::Reflink), Just(Method::Offload), Just(Method::Bounce)]
}

prop_compose! {
    /// Ranges of one namespace that lie on and about their destination; often they are each other's places.
    fn overlapping()(
        overlap in prop_oneof![2 => Just(Overlap::Snapshot), 1 => Just(Overlap::InOrder)],
        method in method(),
        shortcuts in shortcuts(),
        raw in prop::collection::vec((0..120u64, 1..30u32, 0..4u8), 1..12),
        sdlba in 0..60u64,
        fua in any::<bool>(),
        options in options(),
        hold in prop_oneof![3 => Just(400), 1 => 0..150u64],
    ) -> Case {
        let mut ranges: Vec<(u32, u64, u32, bool)> = Vec::new();
        let mut at = sdlba;
        for (slba, nlb, kind) in raw {
            let range = match (kind, ranges.last()) {
                (0, Some(&(_, from, len, _))) => (from + u64::from(len)).min(500),
                // The place where an earlier one went.
                (1, Some(_)) => sdlba + slba % (at - sdlba).max(1),
                (2, _) => at + slba % 20,
                _ => slba,
            };
            ranges.push((1, range, nlb, false));
            at += u64::from(nlb);
        }
        Case { policy: CopyPolicy { overlap, method }, shortcuts, blocks: 900, sdlba, ranges, fua, options, hold }
    }
}

prop_compose! {
    /// Ranges of another namespace, in step with the destination or not.
    fn apart()(
        method in method(),
        shortcuts in shortcuts(),
        raw in prop::collection::vec((0..600u64, prop_oneof![2 => 1..20u32, 1 => 120..300u32], 0..4u8), 1..8),
        sdlba in 0..40u64,
        fco in prop::bool::weighted(0.3),
        fua in any::<bool>(),
        options in options(),
    ) -> Case {
        let mut ranges: Vec<(u32, u64, u32, bool)> = Vec::new();
        let mut at = sdlba;
        for (slba, nlb, kind) in raw {
            let slba = match (kind, ranges.last()) {
                (0, Some(&(_, from, len, _))) => from + u64::from(len),
                (1 | 2, _) => slba / 8 * 8 + at % 8,
                _ => slba,
            };
            let align = shortcuts.reflink.unwrap_or(0) / BLOCK;
            let whole = align > 0
                && matches!(method, Method::Auto | Method::Reflink)
                && [slba, at, u64::from(nlb)].iter().all(|n| n % align == 0);
            ranges.push((2, slba, nlb, fco && whole));
            at += u64::from(nlb);
        }
        let policy = CopyPolicy { method, ..CopyPolicy::default() };
        Case { policy, shortcuts, blocks: 3000, sdlba, ranges, fua, options, hold: 0 }
    }
}

fn troubles() -> impl Strategy<Value = Trouble> {
    let steps = || prop_oneof![2 => Just(vec![]), 2 => prop::collection::vec(0..40usize, 1..6)];
    (steps(), steps(), prop::option::of(0..40usize)).prop_map(|(fail, refuse, abort_after)| Trouble {
        fail,
        refuse,
        abort_after,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn any_overlap_ends_as_its_policy_says(case in overlapping(), seed in any::<u64>()) {
        if let Some(outcome) = run(&case, seed, &Trouble::default()).outcome {
            prop_assert_eq!(outcome.status, Status::SUCCESS);
        }
    }

    #[test]
    fn trouble_with_overlap_is_told_as_it_is(case in overlapping(), seed in any::<u64>(), trouble in troubles()) {
        run(&case, seed, &trouble);
    }

    #[test]
    fn any_method_ends_in_the_same_blocks(case in apart(), seed in any::<u64>()) {
        let seen = run(&case, seed, &Trouble::default());
        prop_assert_eq!(seen.outcome, Some(Outcome { status: Status::SUCCESS, dw0: 0 }));
    }

    #[test]
    fn trouble_with_any_method_is_told_as_it_is(case in apart(), seed in any::<u64>(), trouble in troubles()) {
        run(&case, seed, &trouble);
    }
}
