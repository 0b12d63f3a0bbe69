//! The executor on simulated images: any order of completions, any error, abort at any step.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{CopyTask, ExecOptions, Outcome, Written};
use crate::copy::Capabilities;
use crate::copy::bounce::Bounce;
use crate::copy::plan::{CopyPlan, PlannedRange, check_command, plan};
use crate::copy::range::SourceRange;
use crate::copy::testing::{command, namespace};
use crate::disk::{DiskError, IoBuf, Moved, Op};
use crate::namespace::Namespaces;
use crate::spec::Status;

pub(super) const BLOCK: u64 = 512;

pub(super) type Images = BTreeMap<u32, Vec<u8>>;

/// Images in which every block differs from every other and from zeroes.
pub(super) fn images(blocks: &[(u32, u64)]) -> Images {
    let fill = |nsid: u32, len: u64| {
        let mut image = vec![0; (len * BLOCK) as usize];
        for (lba, block) in image.chunks_mut(BLOCK as usize).enumerate() {
            block.fill(0xa0 | nsid as u8);
            block[..2].copy_from_slice(&[lba as u8, (lba >> 8) as u8]);
        }
        image
    };
    blocks.iter().map(|&(nsid, len)| (nsid, fill(nsid, len))).collect()
}

fn planned(images: &Images, sdlba: u64, fua: bool, ranges: &[(u32, u64, u32)]) -> CopyPlan {
    let list = images.iter().map(|(nsid, image)| namespace(*nsid, image.len() as u64 / BLOCK, 9)).collect();
    let namespaces = Namespaces::new(list, 2);
    let ranges: Vec<_> =
        ranges.iter().map(|&(snsid, slba, nlb)| SourceRange::plain(Some(snsid), slba, nlb)).collect();
    let mut command = command(1, sdlba, 2, ranges.len());
    command.cdw[2] |= u32::from(fua) << 30;
    let capabilities = Capabilities { ocfs: 4, cdfe: 4, ..Capabilities::default() };
    let checked = check_command(&command, &namespaces, capabilities).expect("sound");
    plan(&checked, &ranges, &namespaces).expect("sound")
}

/// What goes wrong and when.
#[derive(Clone, Debug, Default)]
struct Trouble {
    /// Numbers of the operations (in order of submission) that fail.
    fail: Vec<usize>,
    /// Completions before the abort.
    abort_after: Option<usize>,
}

/// A Copy whose sources with DULBE enabled have deallocated blocks.
mod probes {
    use super::*;

    /// Runs the Copy with `nsids` having DULBE enabled; probes of the ranges named by `dealloc` fail with
    /// Deallocated, those named by `broken` with EIO. The outcome, the ranges asked for, and how many other
    /// operations there were.
    fn ask(
        plan: &CopyPlan,
        nsids: &[u32],
        (dealloc, broken): (&[usize], &[usize]),
        abort_after: Option<usize>,
        seed: u64,
    ) -> (Outcome, Vec<usize>, usize) {
        let mut plan = plan.clone();
        for range in &mut plan.ranges {
            range.if_allocated = nsids.contains(&range.ns.nsid);
        }
        let plan = &plan;
        let mut task = task(plan.clone(), SMALL, &Bounce::default());
        let mut dice = Dice(seed | 1);
        let mut pending: Vec<(u32, Option<usize>, Op)> = Vec::new();
        let (mut asked, mut others, mut completions) = (Vec::new(), 0, 0);
        loop {
            if abort_after == Some(completions) {
                task.abort();
            }
            let outcome = task.poll(&mut |part, ns, op| {
                assert!(part < SMALL.window && pending.iter().all(|p| p.0 != part), "part numbers");
                let range = match op {
                    Op::Probe { offset, len } => {
                        assert_eq!(others, 0, "a probe after another operation");
                        let matches = |i: &usize| {
                            let range = &plan.ranges()[*i];
                            (range.ns.nsid, range.src.offset, range.src.len) == (ns.nsid, offset, len)
                        };
                        let range = (asked.last().map_or(0, |i| i + 1)..plan.ranges().len()).find(matches);
                        asked.push(range.expect("the next range"));
                        range
                    }
                    _ => {
                        assert!(pending.iter().all(|p| p.1.is_none()), "before all probes have ended");
                        others += 1;
                        None
                    }
                };
                pending.push((part, range, op));
            });
            if let Some(outcome) = outcome {
                assert!(pending.is_empty());
                return (outcome, asked, others);
            }
            let (part, range, op) = pending.swap_remove(dice.roll(pending.len()));
            let result = match range {
                Some(i) if dealloc.contains(&i) => Err(DiskError::Deallocated),
                Some(i) if broken.contains(&i) => Err(std::io::Error::from_raw_os_error(libc::EIO).into()),
                _ => Ok(()),
            };
            let buf = match op {
                Op::Read { buf, .. } | Op::Write { buf, .. } => Some(buf),
                _ => None,
            };
            task.done(part, result.map(|()| Moved::Plain), buf);
            completions += 1;
        }
    }

    fn three() -> (Images, Vec<(u32, u64, u32)>) {
        let ranges = (0..12).map(|i| (1 + i % 2, 100 + u64::from(i) * 9, 5)).collect();
        (images(&[(1, 400), (2, 400)]), ranges)
    }

    #[test]
    fn without_dulbe_nothing_is_asked() {
        let (images, ranges) = three();
        let plan = planned(&images, 0, true, &ranges);
        let (outcome, asked, others) = ask(&plan, &[], (&[0], &[]), None, 3);
        assert!(outcome.status.is_success() && asked.is_empty() && others > 12);
    }

    #[test]
    fn only_sources_that_have_it_are_asked() {
        let (images, ranges) = three();
        let plan = planned(&images, 0, false, &ranges);
        let (outcome, asked, others) = ask(&plan, &[2], (&[0, 2], &[]), None, 3);
        assert!(outcome.status.is_success() && others > 12);
        assert_eq!(asked, [1, 3, 5, 7, 9, 11]);
    }

    #[test]
    fn an_abort_among_the_probes_touches_nothing() {
        let (images, ranges) = three();
        let plan = planned(&images, 0, true, &ranges);
        for after in 0..12 {
            let (outcome, _, others) = ask(&plan, &[1, 2], (&[], &[]), Some(after), 7);
            assert_eq!((outcome, others), (Outcome { status: Status::ABORT_REQUESTED, dw0: 0 }, 0));
        }
    }

    #[test]
    fn a_probe_that_fails_is_a_read_error() {
        let (images, ranges) = three();
        let plan = planned(&images, 0, false, &ranges);
        for seed in 1..50 {
            let (outcome, _, others) = ask(&plan, &[1, 2], (&[5], &[3, 9]), None, seed * 7919);
            // Whether the probe of range 5 was out when that of range 3 failed does not matter: range 3 comes
            // first.
            assert_eq!(outcome, Outcome { status: Status::UNRECOVERED_READ, dw0: 0 });
            assert_eq!(others, 0);
        }
    }

    proptest! {
        /// Nothing is written, so DW0 is 0, in any order of completions.
        #[test]
        fn any_deallocated_block_stops_all(
            (images, sdlba, ranges) in copies(),
            fua in any::<bool>(),
            dulbe in prop::sample::subsequence(vec![1_u32, 2], 0..=2),
            dealloc in prop::collection::btree_set(0..14_usize, 0..4),
            seed in any::<u64>(),
        ) {
            let plan = planned(&images, sdlba, fua, &ranges);
            let dealloc: Vec<_> = dealloc.into_iter().filter(|i| *i < ranges.len()).collect();
            let (outcome, asked, others) = ask(&plan, &dulbe, (&dealloc, &[]), None, seed);
            if dealloc.iter().any(|i| dulbe.contains(&ranges[*i].0)) {
                    prop_assert_eq!(outcome, Outcome { status: Status(0x287), dw0: 0 });
                    prop_assert_eq!(others, 0);
            } else {
                    prop_assert_eq!(outcome.status, Status::SUCCESS);
                    let all = (0..ranges.len()).filter(|i| dulbe.contains(&ranges[*i].0));
                    prop_assert_eq!(asked, all.collect::<Vec<_>>());
            }
        }
    }
}

/// What was seen. All rules of execution have been asserted on the way.
#[derive(Debug)]
struct Seen {
    outcome: Outcome,
    images: Images,
    reads: usize,
    writes: usize,
    flushes: usize,
    completions: usize,
}

/// xorshift: an order of completions from a seed.
pub(super) struct Dice(pub u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % sides
    }
}

struct Pending {
    part: u32,
    nsid: u32,
    op: Op,
    /// Number in order of submission.
    number: usize,
    /// The image has been touched already: some operations take effect early, others at their completion.
    early: bool,
}

struct Simulator {
    before: Images,
    images: Images,
    plan: CopyPlan,
    fails: Vec<usize>,
    /// One write does it all.
    one_write: bool,
    /// The destination's blocks: written with success, and durable.
    written: Vec<bool>,
    durable: Vec<bool>,
    /// Blocks handed to a write so far.
    handed: Vec<bool>,
    /// What may be reported.
    errors: Vec<Status>,
}

impl Simulator {
    /// What a block of the destination must hold in the end, block by block from the images as they were.
    fn expected(&self, block: usize) -> &[u8] {
        let at = block as u64 * BLOCK;
        let range = self.plan.ranges().iter().rfind(|r| r.at <= at).expect("the ranges tile the destination");
        let from = (range.src.offset + at - range.at) as usize;
        &self.before[&range.ns.nsid][from..from + BLOCK as usize]
    }

    fn blocks(&self, offset: u64, len: usize) -> std::ops::Range<usize> {
        let first =
            (offset.checked_sub(self.plan.dst().offset).expect("inside the destination") / BLOCK) as usize;
        assert!(offset.is_multiple_of(BLOCK) && (len as u64).is_multiple_of(BLOCK) && len > 0);
        first..first + len / BLOCK as usize
    }

    /// What must hold of any operation when it is handed out.
    fn inspect(&mut self, nsid: u32, op: &Op, in_flight: usize) {
        match op {
            Op::Read { offset, buf } => {
                let end = *offset as usize + buf.len();
                let holds = |r: &PlannedRange| {
                    r.ns.nsid == nsid && r.src.offset <= *offset && *offset < r.src.offset + r.src.len
                };
                assert!(end <= self.images[&nsid].len() && self.plan.ranges().iter().any(holds));
            }
            Op::Write { offset, buf: IoBuf::Pool(buf), fua } => {
                assert_eq!(nsid, self.plan.dst_ns().nsid);
                assert_eq!(*fua, self.plan.fua() && self.one_write, "one barrier, or FUA on the only write");
                for (block, data) in self.blocks(*offset, buf.len()).zip(buf.chunks(BLOCK as usize)) {
                    // No content but the source's own can get here before its read has succeeded.
                    assert!(data == self.expected(block), "block {block} is written before it was read");
                    assert!(!self.handed[block], "block {block} is written twice");
                    self.handed[block] = true;
                }
            }
            Op::Flush => {
                assert!(self.plan.fua() && nsid == self.plan.dst_ns().nsid);
                assert!(in_flight == 0 && self.written.iter().all(|&w| w), "a barrier before the last write");
            }
            other => panic!("no business of a bounce copy: {other:?}"),
        }
    }

    fn act(&mut self, nsid: u32, op: &mut Op, fails: bool) {
        let image = self.images.get_mut(&nsid).expect("known");
        match op {
            Op::Read { buf, .. } if fails => buf.ours_mut().expect("a bounce buffer").fill(0xee),
            Op::Read { offset, buf } => {
                let buf = buf.ours_mut().expect("a bounce buffer");
                buf.copy_from_slice(&image[*offset as usize..*offset as usize + buf.len()]);
            }
            // What a failed write leaves behind is anybody's guess.
            Op::Write { offset, buf: IoBuf::Pool(buf), .. } if fails => {
                image[*offset as usize..*offset as usize + buf.len() / 2].fill(0xee);
            }
            Op::Write { offset, buf: IoBuf::Pool(buf), .. } => {
                image[*offset as usize..*offset as usize + buf.len()].copy_from_slice(buf);
            }
            _ => {}
        }
    }

    /// Ends an operation: what the task is told.
    fn complete(&mut self, mut pending: Pending, space: bool) -> (Result<(), DiskError>, Option<IoBuf>) {
        let fails = self.fails.contains(&pending.number);
        if !pending.early {
            self.act(pending.nsid, &mut pending.op, fails);
        }
        let errno = if space { libc::ENOSPC } else { libc::EIO };
        let error = || Err(DiskError::Io(std::io::Error::from_raw_os_error(errno)));
        let write_status = if space { Status::CAPACITY_EXCEEDED } else { Status::WRITE_FAULT };
        let result = if fails { error() } else { Ok(()) };
        match pending.op {
            Op::Read { buf, .. } => {
                if fails {
                    self.errors.push(Status::UNRECOVERED_READ);
                }
                (result, Some(buf))
            }
            Op::Write { offset, buf, fua } => {
                let IoBuf::Pool(data) = &buf else { panic!("a bounce buffer") };
                if fails {
                    self.errors.push(write_status);
                } else {
                    for block in self.blocks(offset, data.len()) {
                        self.written[block] = true;
                        self.durable[block] = fua;
                    }
                }
                (result, Some(buf))
            }
            _ => {
                if fails {
                    self.errors.push(write_status);
                } else {
                    self.durable.fill(true);
                }
                (result, None)
            }
        }
    }
}

/// Runs a plan to its end and asserts every rule of execution and the truth of the outcome.
fn run(plan: &CopyPlan, before: &Images, options: ExecOptions, seed: u64, trouble: &Trouble) -> Seen {
    let blocks = (plan.dst().len / BLOCK) as usize;
    let bounce = Bounce::new(1 << 20);
    let bounds = options.effective(BLOCK, &bounce);
    let mut sim = Simulator {
        before: before.clone(),
        images: before.clone(),
        plan: plan.clone(),
        fails: trouble.fail.clone(),
        one_write: plan.dst().len <= bounds.segment_bytes,
        written: vec![false; blocks],
        durable: vec![false; blocks],
        handed: vec![false; blocks],
        errors: Vec::new(),
    };
    let mut task = task(plan.clone(), options, &bounce);
    let mut dice = Dice(seed | 1);
    let mut pending: Vec<Pending> = Vec::new();
    let (mut reads, mut writes, mut flushes, mut number, mut completions) = (0, 0, 0, 0, 0);
    let (mut aborted, mut written) = (false, Vec::new());
    let outcome = loop {
        if trouble.abort_after == Some(completions) && !aborted {
            task.abort();
            aborted = true;
        }
        let stopped = aborted || !sim.errors.is_empty();
        let outcome = task.poll(&mut |part, ns, mut op| {
            assert!(!stopped, "nothing starts after an error or an abort");
            assert!(part < bounds.window && pending.iter().all(|p| p.part != part), "part numbers");
            sim.inspect(ns.nsid, &op, pending.len());
            match op {
                Op::Read { .. } => reads += 1,
                Op::Write { .. } => writes += 1,
                _ => flushes += 1,
            }
            let early = dice.roll(2) == 0;
            if early {
                let fails = sim.fails.contains(&number);
                sim.act(ns.nsid, &mut op, fails);
            }
            pending.push(Pending { part, nsid: ns.nsid, op, number, early });
            number += 1;
        });
        assert!(pending.len() <= bounds.window as usize && pending.len() == task.in_flight() as usize);
        let in_flight: usize = pending
            .iter()
            .map(|p| match &p.op {
                Op::Read { buf, .. } | Op::Write { buf, .. } => buf.len(),
                _ => 0,
            })
            .sum();
        assert!(in_flight as u64 <= task.bounce_bytes() && task.bounce_bytes() <= bounds.budget, "budget");
        assert_eq!(bounce.total() - bounce.left(), task.bounce_bytes());
        assert!(!task.is_starved(), "alone it never waits");
        if let Some(outcome) = outcome {
            assert!(pending.is_empty(), "complete with operations in flight");
            break outcome;
        }
        assert!(!pending.is_empty(), "nothing in flight and no end");
        // One or several completions between two polls.
        for _ in 0..=dice.roll(2) {
            if pending.is_empty() {
                break;
            }
            let mut next = pending.swap_remove(dice.roll(pending.len()));
            let part = std::mem::replace(&mut next.part, u32::MAX);
            let (result, buf) = sim.complete(next, dice.roll(2) == 0);
            written.extend(task.done(part, result.map(|()| Moved::Plain), buf));
            completions += 1;
            if trouble.abort_after == Some(completions) {
                break;
            }
        }
    };
    for _ in 0..3 {
        let again = task.poll(&mut |_, _, op| panic!("after the end: {op:?}"));
        assert_eq!(again, None, "completes once");
    }
    drop(task);
    assert_eq!(bounce.left(), bounce.total());
    judge(&sim, outcome, aborted);
    assert_eq!(blocks_of(&written, sim.written.len()), sim.written, "what is told to laboratories");
    Seen { outcome, images: sim.images, reads, writes, flushes, completions }
}

/// Which of so many blocks were told to be written.
pub(super) fn blocks_of(written: &[Written], blocks: usize) -> Vec<bool> {
    let mut told = vec![false; blocks];
    for Written { at, len, .. } in written {
        told[(at / BLOCK) as usize..((at + len) / BLOCK) as usize].fill(true);
    }
    told
}

/// Is the outcome the truth about the images?
fn judge(sim: &Simulator, outcome: Outcome, aborted: bool) {
    let plan = &sim.plan;
    // Outside the destination nothing has changed, ever.
    for (nsid, image) in &sim.images {
        let mut expected = sim.before[nsid].clone();
        if *nsid == plan.dst_ns().nsid {
            let dst = plan.dst().offset as usize..(plan.dst().offset + plan.dst().len) as usize;
            expected[dst.clone()].copy_from_slice(&image[dst]);
        }
        assert!(*image == expected, "namespace {nsid} changed outside the destination");
    }
    let holds = |block: usize| {
        let at = plan.dst().offset as usize + block * BLOCK as usize;
        sim.images[&plan.dst_ns().nsid][at..at + BLOCK as usize] == *sim.expected(block)
    };
    let range_blocks = |index: usize| {
        let range = &plan.ranges()[index];
        let first = (range.at / BLOCK) as usize;
        first..first + (range.src.len / BLOCK) as usize
    };
    let ranges = plan.ranges().len();
    let written = |index: usize| range_blocks(index).all(|block| sim.written[block]);
    let durable = |index: usize| range_blocks(index).all(|block| sim.durable[block]);
    if outcome.status.is_success() {
        assert_eq!(outcome, Outcome { status: Status::SUCCESS, dw0: 0 });
        assert!(sim.errors.is_empty());
        for index in 0..ranges {
            assert!(
                written(index) && range_blocks(index).all(holds),
                "range {index} is not what it should be"
            );
            assert!(durable(index) || !plan.fua(), "range {index} is not durable");
        }
        return;
    }
    let done = |index: usize| written(index) && (!plan.fua() || (sim.one_write && durable(index)));
    let lowest = (0..ranges).find(|&index| !done(index)).unwrap_or(0);
    assert_eq!(outcome.dw0 as usize, lowest, "DW0 with {:?}", outcome.status);
    assert!((0..lowest).all(|index| range_blocks(index).all(holds)), "a range below DW0 is not copied");
    if sim.errors.is_empty() {
        assert!(aborted);
        assert_eq!(outcome.status, Status::ABORT_REQUESTED);
    } else {
        assert!(sim.errors.contains(&outcome.status), "{:?}", outcome.status);
    }
}

fn task(plan: CopyPlan, options: ExecOptions, bounce: &Bounce) -> CopyTask {
    CopyTask::new(plan, options, bounce).expect("enough memory")
}

const SMALL: ExecOptions = ExecOptions { segment_bytes: 4 * BLOCK, window: 3, budget: 16 * BLOCK };

#[test]
fn a_range_is_cut_into_segments() {
    let images = images(&[(1, 64), (2, 64)]);
    let seen = run(&planned(&images, 20, false, &[(2, 1, 30)]), &images, SMALL, 7, &Trouble::default());
    assert_eq!((seen.reads, seen.writes, seen.flushes), (8, 8, 0));
}

#[test]
fn ranges_that_continue_each_other_are_one_read() {
    let images = images(&[(1, 64), (2, 64)]);
    let plan = planned(&images, 40, false, &[(2, 1, 1), (2, 2, 1), (2, 3, 2), (1, 5, 4)]);
    let seen = run(&plan, &images, SMALL, 7, &Trouble::default());
    assert_eq!((seen.reads, seen.writes), (2, 2));
    // Continuing in number only: the namespace is another.
    let plan = planned(&images, 40, false, &[(2, 1, 2), (1, 3, 2)]);
    let seen = run(&plan, &images, SMALL, 7, &Trouble::default());
    assert_eq!((seen.reads, seen.writes), (2, 1));
}

#[test]
fn short_ranges_share_a_write() {
    let images = images(&[(1, 600), (2, 600)]);
    let ranges: Vec<_> = (0..256).map(|i| (1 + (i % 2) as u32, i * 7 % 300, 1)).collect();
    let plan = planned(&images, 300, false, &ranges);
    let seen = run(&plan, &images, ExecOptions::default(), 7, &Trouble::default());
    assert_eq!((seen.reads, seen.writes), (256, 1));
}

#[test]
fn fua_is_on_the_only_write_or_in_one_barrier() {
    let images = images(&[(1, 64), (2, 64)]);
    let short = run(&planned(&images, 20, true, &[(2, 1, 4)]), &images, SMALL, 7, &Trouble::default());
    assert_eq!((short.writes, short.flushes), (1, 0));
    let long = run(&planned(&images, 20, true, &[(2, 1, 5)]), &images, SMALL, 7, &Trouble::default());
    assert_eq!((long.writes, long.flushes), (2, 1));
}

#[test]
fn a_failed_barrier_is_a_write_fault_of_all() {
    let images = images(&[(1, 64), (2, 64)]);
    let plan = planned(&images, 20, true, &[(2, 1, 4), (2, 30, 4)]);
    let seen = run(&plan, &images, SMALL, 6, &Trouble { fail: vec![4], abort_after: None });
    assert_eq!((seen.flushes, seen.outcome.dw0), (1, 0));
    assert!([0x280, 0x081].contains(&seen.outcome.status.0));
}

/// Whatever the order, the same blocks: the first source is named twice, the others overlap and touch.
const LIST: [(u32, u64, u32); 7] =
    [(2, 0, 9), (2, 0, 9), (1, 5, 3), (1, 6, 1), (2, 8, 2), (2, 10, 6), (1, 0, 1)];

#[test]
fn an_error_at_every_step() {
    let images = images(&[(1, 64), (2, 64)]);
    for fua in [false, true] {
        let plan = planned(&images, 20, fua, &LIST);
        for seed in 1..60 {
            let good = run(&plan, &images, SMALL, seed * 7919, &Trouble::default());
            let operations = good.reads + good.writes + good.flushes;
            for step in 0..operations {
                let trouble = Trouble { fail: vec![step], abort_after: None };
                let seen = run(&plan, &images, SMALL, seed * 7919, &trouble);
                assert!(!seen.outcome.status.is_success(), "operation {step} failed");
            }
        }
    }
}

#[test]
fn an_abort_at_every_step() {
    let images = images(&[(1, 64), (2, 64)]);
    for fua in [false, true] {
        let plan = planned(&images, 20, fua, &LIST);
        for seed in 1..60 {
            let good = run(&plan, &images, SMALL, seed * 104_729, &Trouble::default());
            for step in 0..=good.completions {
                let trouble = Trouble { fail: Vec::new(), abort_after: Some(step) };
                let seen = run(&plan, &images, SMALL, seed * 104_729, &trouble);
                // In between it may come too late: all writes are out, and all of them succeed.
                assert!(step > 0 || seen.outcome.status == Status::ABORT_REQUESTED);
                assert!(step < good.completions || seen.outcome.status.is_success());
            }
        }
    }
}

#[test]
fn an_abort_before_the_first_step_touches_nothing() {
    let images = images(&[(1, 64), (2, 64)]);
    let trouble = Trouble { fail: Vec::new(), abort_after: Some(0) };
    let seen = run(&planned(&images, 20, false, &LIST), &images, SMALL, 3, &trouble);
    assert_eq!(seen.outcome, Outcome { status: Status(0x007), dw0: 0 });
    assert!(seen.images == images && seen.reads == 0);
}

#[test]
fn the_status_is_that_of_the_lowest_failure() {
    let images = images(&[(1, 64), (2, 64)]);
    let plan = planned(&images, 20, false, &[(2, 0, 4), (2, 10, 4)]);
    let mut task = task(plan, SMALL, &Bounce::default());
    let mut parts = Vec::new();
    task.poll(&mut |part, _, op| parts.push((part, op)));
    let [(first, _), (second, Op::Read { offset, buf })] = <[_; 2]>::try_from(parts).expect("two reads")
    else {
        panic!("reads")
    };
    assert_eq!(offset, 10 * BLOCK);
    task.done(second, Err(DiskError::GuestMemory), Some(buf));
    task.done(first, Err(DiskError::Truncated), None);
    let outcome = task.poll(&mut |_, _, op| panic!("{op:?}"));
    assert_eq!(outcome, Some(Outcome { status: Status::UNRECOVERED_READ, dw0: 0 }));
}

#[test]
fn a_buffer_that_does_not_come_back_is_an_internal_error() {
    let images = images(&[(1, 64), (2, 64)]);
    for buf in [None, Some(IoBuf::Pool(vec![0; 5].into()))] {
        let mut task = task(planned(&images, 20, false, &[(2, 0, 4)]), SMALL, &Bounce::default());
        let mut parts = Vec::new();
        task.poll(&mut |part, _, _| parts.push(part));
        task.done(parts[0], Ok(Moved::Plain), buf);
        let outcome = task.poll(&mut |_, _, op| panic!("{op:?}"));
        assert_eq!(outcome, Some(Outcome { status: Status::INTERNAL_ERROR, dw0: 0 }));
    }
}

#[test]
fn a_buffer_serves_one_segment_after_the_other() {
    let images = images(&[(1, 64), (2, 64)]);
    let options = ExecOptions { window: 1, ..SMALL };
    let mut task = task(planned(&images, 20, false, &[(2, 0, 40)]), options, &Bounce::default());
    let mut places = std::collections::HashSet::new();
    for _ in 0..20 {
        let mut next = None;
        task.poll(&mut |part, _, op| next = Some((part, op)));
        let Some((part, Op::Read { buf, .. } | Op::Write { buf, .. })) = next else { panic!("{next:?}") };
        if let IoBuf::Pool(buf) = &buf {
            places.insert(buf.as_ptr());
        }
        task.done(part, Ok(Moved::Plain), Some(buf));
    }
    assert_eq!(places.len(), 1);
    assert!(task.poll(&mut |_, _, op| panic!("{op:?}")).is_some());
}

/// While a worker has other commands its Copies go segment by segment, and some time after the last of them
/// not any more.
#[test]
fn others_are_left_a_processor() {
    let images = images(&[(1, 600), (2, 600)]);
    let plan = || planned(&images, 0, false, &[(2, 0, 400)]);
    let bounce = Bounce::default();
    let first = |bounce: &Bounce| {
        let mut started = 0;
        task(plan(), SMALL, bounce).poll(&mut |_, _, _| started += 1);
        started
    };
    assert_eq!(first(&bounce), SMALL.window);
    bounce.others_are_at_work();
    assert_eq!(first(&bounce), 1);
    let mut copy = task(plan(), SMALL, &bounce);
    let mut most = Vec::new();
    for _ in 0..60 {
        let mut started = Vec::new();
        copy.poll(&mut |part, _, op| started.push((part, op)));
        most.push(started.len());
        for (part, op) in started {
            let (Op::Read { buf, .. } | Op::Write { buf, .. }) = op else { panic!("{op:?}") };
            copy.done(part, Ok(Moved::Plain), Some(buf));
        }
    }
    assert!(most[..16].iter().all(|count| *count == 1), "{most:?}");
    assert!(most[40..].contains(&(SMALL.window as usize)), "{most:?}");
}

#[test]
fn bounds_of_nothing_are_enough() {
    let zero = ExecOptions { segment_bytes: 0, window: 0, budget: 0 };
    let images = images(&[(1, 64), (2, 64)]);
    let seen = run(&planned(&images, 20, false, &LIST), &images, zero, 3, &Trouble::default());
    assert_eq!(seen.writes, 31);
}

/// Copies that want more than there is all come to their end, in any order, and never hold more than there
/// is.
#[test]
fn copies_share_the_bounce_memory() {
    let images = images(&[(1, 1200), (2, 1200)]);
    let scattered: Vec<_> = (0..250).map(|i| (2, i * 3, 1)).collect();
    let lists = [vec![(2, 0, 400)], scattered, vec![(2, 7, 100), (2, 300, 150)]];
    let options = ExecOptions { segment_bytes: 64 * BLOCK, window: 5, budget: 64 << 10 };
    let mut waited = 0;
    for seed in 1..12 {
        let bounce = Bounce::new(100_000);
        let mut dice = Dice(seed * 7919);
        let mut tasks: Vec<_> = (0..7)
            .map(|i| Some(task(planned(&images, 760, false, &lists[i % 3]), options, &bounce)))
            .collect();
        let (mut idle, mut pending) = (0, Vec::<(usize, u32, Op)>::new());
        while tasks.iter().any(Option::is_some) {
            let first = dice.roll(tasks.len());
            for i in 0..tasks.len() {
                let who = (first + i) % tasks.len();
                let Some(task) = &mut tasks[who] else { continue };
                if let Some(outcome) = task.poll(&mut |part, _, op| pending.push((who, part, op))) {
                    assert_eq!(outcome.status, Status::SUCCESS);
                    tasks[who] = None;
                }
            }
            let held: u64 = tasks.iter().flatten().map(CopyTask::bounce_bytes).sum();
            assert_eq!(held, bounce.total() - bounce.left());
            waited += tasks.iter().flatten().filter(|task| task.is_starved()).count();
            idle = if pending.is_empty() { idle + 1 } else { 0 };
            assert!(idle < 3, "all wait for each other");
            if pending.is_empty() {
                continue;
            }
            let (who, part, op) = pending.swap_remove(dice.roll(pending.len()));
            let (Op::Read { buf, .. } | Op::Write { buf, .. }) = op else { panic!("{op:?}") };
            tasks[who].as_mut().expect("it has something in flight").done(part, Ok(Moved::Plain), Some(buf));
        }
        assert_eq!(bounce.left(), bounce.total());
    }
    assert!(waited > 1000, "the memory was short");
}

#[test]
fn a_copy_that_waits_for_memory_can_be_aborted() {
    let images = images(&[(1, 600), (2, 600)]);
    let bounce = Bounce::new(64 << 10);
    let options = ExecOptions { segment_bytes: 32 << 10, window: 4, budget: 64 << 10 };
    let task = || task(planned(&images, 200, false, &[(2, 0, 300)]), options, &bounce);
    let (mut first, mut second) = (task(), task());
    let mut parts = Vec::new();
    assert_eq!(first.poll(&mut |part, _, _| parts.push(part)), None);
    assert_eq!(parts.len(), 2);
    assert_eq!(second.poll(&mut |_, _, op| panic!("no memory for {op:?}")), None);
    assert!(second.is_starved() && !first.is_starved());
    second.abort();
    let outcome = second.poll(&mut |_, _, op| panic!("aborted: {op:?}"));
    assert_eq!(outcome, Some(Outcome { status: Status::ABORT_REQUESTED, dw0: 0 }));
    assert!(!second.is_starved());
}

prop_compose! {
    /// A list whose sources in the destination's namespace lie on one side of the destination.
    fn copies()(
        dst_first in any::<bool>(),
        raw in prop::collection::vec((1..=2u32, 0..60u64, 1..20u32, 0..4u8), 1..14),
        gap in 0..3u64,
    ) -> (Images, u64, Vec<(u32, u64, u32)>) {
        let mut ranges: Vec<(u32, u64, u32)> = Vec::new();
        for (nsid, slba, nlb, kind) in raw {
            let range = match (kind, ranges.last()) {
                (0, Some(&(last, from, len))) => (last, from + u64::from(len), nlb), // continues the last one
                (1, Some(&last)) => last,                                            // the last one again
                _ => (nsid, slba, nlb),
            };
            // Sources stay below 400 blocks: 60, and thirteen continuations of less than 20.
            ranges.push(range);
        }
        let total: u64 = ranges.iter().map(|range| u64::from(range.2)).sum();
        let sdlba = if dst_first { gap } else { 400 + gap };
        if dst_first {
            for range in &mut ranges {
                range.1 += gap + total;
            }
        }
        let blocks = 400 + total + 2 * gap + 2;
        (images(&[(1, blocks), (2, blocks)]), sdlba, ranges)
    }
}

fn options() -> impl Strategy<Value = ExecOptions> {
    (0..8000u64, 0..7u32, 0..40_000u64).prop_map(|(segment_bytes, window, budget)| ExecOptions {
        segment_bytes,
        window,
        budget,
    })
}

fn troubles() -> impl Strategy<Value = Trouble> {
    let fail = prop_oneof![2 => Just(vec![]), 3 => prop::collection::vec(0..60usize, 1..5)];
    (fail, prop::option::of(0..60usize)).prop_map(|(fail, abort_after)| Trouble { fail, abort_after })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_order_ends_in_the_same_blocks(
        (images, sdlba, ranges) in copies(),
        fua in any::<bool>(),
        options in options(),
        seed in any::<u64>(),
    ) {
        let seen = run(&planned(&images, sdlba, fua, &ranges), &images, options, seed, &Trouble::default());
        prop_assert_eq!(seen.outcome.status, Status::SUCCESS);
    }

    #[test]
    fn any_trouble_is_told_as_it_is(
        (images, sdlba, ranges) in copies(),
        fua in any::<bool>(),
        options in options(),
        seed in any::<u64>(),
        trouble in troubles(),
    ) {
        run(&planned(&images, sdlba, fua, &ranges), &images, options, seed, &trouble);
    }
}
