//! In which order an overlapping Copy is done, so that no source is read after it was overwritten.
//!
//! A segment may be written when every read of what it overwrites is done. Read as a graph (an edge from each segment to
//! those it reads), a segment comes after its readers; segments that read each other in a circle are a true cycle, of
//! which some must be held in memory. The destination is contiguous, so what a piece reads is a run of neighbouring
//! segments, and as a piece is no longer than a segment, the edges are about as many as the segments.

use std::collections::VecDeque;

use super::cut::{Piece, Stretch, piece, pieces};
use super::plan::{CopyPlan, PlannedRange};
use crate::namespace::Overlap;

/// Part of a Copy that is done before the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub to: Stretch,
    /// Some of it is a source of it.
    pub ordered: bool,
}

/// The plan in stages: one, but for ranges that must follow each other and do not fit into one.
///
/// Under [`Overlap::InOrder`] a range begins a new stage when it reads what an earlier one of its stage writes. Within a
/// stage no range does, so that to the stage a snapshot of the sources is what they hold in list order.
pub(super) fn stages(plan: &CopyPlan) -> Vec<Stage> {
    let source = |range: &PlannedRange| plan.in_dst(&range.ns, range.src.offset, range.src.len);
    let mut stretches = Vec::new();
    let mut to = Stretch { start: 0, end: 0 };
    for range in &plan.ranges {
        if plan.dst_ns.facts.policy.overlap == Overlap::InOrder
            && source(range).is_some_and(|read| read.meets(to))
        {
            stretches.push(to);
            to = Stretch { start: range.at, end: range.at };
        }
        to.end = range.at + range.src.len;
    }
    stretches.push(to);
    let ordered = |to| plan.ranges_in(to).filter_map(source).any(|read| read.meets(to));
    stretches.into_iter().map(|to| Stage { to, ordered: ordered(to) }).collect()
}

/// How finely and with how much memory a stage may be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes of a segment at most.
    pub segment: u64,
    /// Every segment is one piece: for ways that read and write at once.
    pub one_piece: bool,
    /// Bytes of a block: no segment is cut finer.
    pub block: u64,
    /// Bytes of memory for a group.
    pub budget: u64,
}

/// Segments that are done together: first all of `held` are read, then `rest` follows in its order, and each of them is
/// written as soon as it may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    pub held: Vec<Stretch>,
    pub rest: Vec<Stretch>,
    /// Bytes of memory that must be there before anything is read, so that the group never waits for memory while it
    /// holds some; 0 when nothing is held.
    pub need: u64,
    held_bytes: u64,
    /// Bytes of the largest segment.
    largest: u64,
}

impl Group {
    /// A group that holds some of a cycle.
    fn cycle(held: Vec<Stretch>, rest: Vec<Stretch>) -> Self {
        let largest = held.iter().chain(&rest).map(|segment| segment.len()).max().unwrap_or(0);
        let held_bytes = held.iter().map(|segment| segment.len()).sum();
        Self { held, rest, need: 0, held_bytes, largest }
    }

    /// The least memory it is done with: what is held, and room for one segment to be read while another is written.
    fn least(&self) -> u64 {
        self.held_bytes + 2 * self.largest
    }

    pub fn get(&self, index: usize) -> Option<Stretch> {
        self.held.iter().chain(&self.rest).nth(index).copied()
    }

    pub fn len(&self) -> usize {
        self.held.len() + self.rest.len()
    }

    fn all(&self) -> impl Iterator<Item = Stretch> {
        self.held.iter().chain(&self.rest).copied()
    }
}

/// A cycle is cut no finer than into so many segments: 64 MiB in blocks of 512. That is 20 ms of a worker's time, and
/// only for a host that asks for it.
const FINEST: usize = 1 << 17;

/// The order of an ordered stage. `None`: its cycles need more memory than there is.
pub(super) fn schedule(plan: &CopyPlan, to: Stretch, bounds: Bounds) -> Option<VecDeque<Group>> {
    let mut segments = Vec::new();
    let mut rest = to;
    while rest.start < rest.end {
        let mut segment = rest.first(bounds.segment);
        if bounds.one_piece {
            segment = piece(plan, segment.start, segment.end)?.to;
        }
        rest.start = segment.end;
        segments.push(segment);
    }
    let mut order = Order { plan, bounds, groups: VecDeque::new() };
    match piece(plan, to.start, to.end) {
        // One run: a memmove.
        Some(run) if run.to == to => {
            if run.offset < plan.dst.offset + to.start {
                segments.reverse();
            }
            order.groups.push_back(Group { rest: segments, ..Group::default() });
        }
        _ => order.sort(&segments)?,
    }
    Some(order.groups)
}

struct Order<'a> {
    plan: &'a CopyPlan,
    bounds: Bounds,
    groups: VecDeque<Group>,
}

impl Order<'_> {
    /// Appends `segments` (ascending) in an order that works, cut finer where that saves memory.
    fn sort(&mut self, segments: &[Stretch]) -> Option<()> {
        let graph = Graph::new(self.plan, segments);
        let mut search = vec![Seen::default(); segments.len()];
        for component in graph.components() {
            if let [one] = component[..] {
                self.push(segments[one as usize]);
                continue;
            }
            let (held, rest) = graph.untangle(&component, segments, &mut search);
            let stretches = |nodes: Vec<u32>| nodes.into_iter().map(|n| segments[n as usize]).collect();
            let group = Group::cycle(stretches(held), stretches(rest));
            if group.least() <= self.bounds.budget {
                self.push_group(group);
                continue;
            }
            let mut finer: Vec<Stretch> = group.all().flat_map(|segment| self.halves(segment)).collect();
            finer.sort_unstable_by_key(|segment| segment.start);
            if finer.len() == component.len() || finer.len() > FINEST {
                return None;
            }
            self.sort(&finer)?;
        }
        Some(())
    }

    fn halves(&self, segment: Stretch) -> impl Iterator<Item = Stretch> + use<> {
        let blocks = segment.len() / self.bounds.block;
        let middle = segment.start + blocks.div_ceil(2) * self.bounds.block;
        let halves = [Stretch { end: middle, ..segment }, Stretch { start: middle, ..segment }];
        halves.into_iter().filter(|half| half.start < half.end)
    }

    fn push(&mut self, segment: Stretch) {
        match self.groups.back_mut() {
            Some(last) if last.held.is_empty() => last.rest.push(segment),
            _ => self.groups.push_back(Group { rest: vec![segment], ..Group::default() }),
        }
    }

    /// Cycles that fit into memory together are done together.
    fn push_group(&mut self, mut group: Group) {
        let budget = self.bounds.budget;
        match self.groups.back_mut().filter(|last| !last.held.is_empty()) {
            Some(last)
                if last.held_bytes + group.held_bytes + 2 * last.largest.max(group.largest) <= budget =>
            {
                last.held.append(&mut group.held);
                last.rest.append(&mut group.rest);
                last.held_bytes += group.held_bytes;
                last.largest = last.largest.max(group.largest);
            }
            _ => self.groups.push_back(group),
        }
        if let Some(last) = self.groups.back_mut() {
            last.need = budget.min(last.held_bytes + 8 * last.largest);
        }
    }
}

/// The segments that overlap a stretch, as indices; `segments` ascend and do not overlap.
fn covering(segments: &[Stretch], read: Stretch) -> std::ops::Range<usize> {
    let first = segments.partition_point(|segment| segment.end <= read.start);
    let end = segments.partition_point(|segment| segment.start < read.end);
    first..end.max(first)
}

/// Edges from each segment to the others that it reads.
struct Graph {
    /// By segment: where its edges begin in `targets`; one entry more, for the end.
    first: Vec<u32>,
    targets: Vec<u32>,
}

impl Graph {
    fn new(plan: &CopyPlan, segments: &[Stretch]) -> Self {
        let (mut first, mut targets) = (Vec::with_capacity(segments.len() + 1), Vec::new());
        for (index, segment) in segments.iter().enumerate() {
            first.push(targets.len() as u32);
            for piece in pieces(plan, *segment) {
                if let Some(read) = plan.in_dst(piece.ns, piece.offset, piece.to.len()) {
                    targets.extend(
                        covering(segments, read).filter(|&other| other != index).map(|other| other as u32),
                    );
                }
            }
        }
        first.push(targets.len() as u32);
        Self { first, targets }
    }

    /// The `edge`th target of `node`.
    fn target(&self, node: u32, edge: u32) -> Option<u32> {
        let at = self.first[node as usize] + edge;
        (at < self.first[node as usize + 1]).then(|| self.targets[at as usize])
    }

    /// The strongly connected components (Tarjan), readers before what they read.
    fn components(&self) -> Vec<Vec<u32>> {
        const NEW: u32 = u32::MAX;
        let nodes = self.first.len() - 1;
        let mut number = vec![NEW; nodes];
        let mut low = vec![0; nodes];
        let mut on_stack = vec![false; nodes];
        let (mut stack, mut path) = (Vec::new(), Vec::<(u32, u32)>::new());
        let (mut count, mut components) = (0, Vec::new());
        for root in 0..nodes as u32 {
            if number[root as usize] == NEW {
                path.push((root, 0));
            }
            while let Some((node, edge)) = path.last_mut() {
                let (node, at) = (*node, *node as usize);
                if *edge == 0 {
                    (number[at], low[at], on_stack[at]) = (count, count, true);
                    count += 1;
                    stack.push(node);
                }
                let target = self.target(node, *edge);
                *edge += 1;
                match target.map(|target| target as usize) {
                    Some(target) if number[target] == NEW => path.push((target as u32, 0)),
                    Some(target) if on_stack[target] => low[at] = low[at].min(number[target]),
                    Some(_) => {}
                    None => {
                        path.pop();
                        if let Some((parent, _)) = path.last() {
                            low[*parent as usize] = low[*parent as usize].min(low[at]);
                        }
                        if low[at] == number[at] {
                            let mut component = Vec::new();
                            while let Some(member) = stack.pop() {
                                on_stack[member as usize] = false;
                                component.push(member);
                                if member == node {
                                    break;
                                }
                            }
                            components.push(component);
                        }
                    }
                }
            }
        }
        components.reverse();
        components
    }

    /// Which segments of a component to hold so that the others can be ordered, and that order.
    ///
    /// Every cycle has an edge that leads back to where a depth-first search came from. To hold either end of all such
    /// edges breaks all cycles; the cheaper ends are taken. (The least set is hard to find. Runs, rotations and
    /// exchanges, which are what hosts do, have one such edge for each cycle.)
    fn untangle(&self, component: &[u32], segments: &[Stretch], seen: &mut [Seen]) -> (Vec<u32>, Vec<u32>) {
        component.iter().for_each(|&n| seen[n as usize].state = State::New);
        let mut order = Vec::with_capacity(component.len());
        let root = component.iter().copied().min().unwrap_or(0);
        let mut path = vec![(root, 0)];
        while let Some((node, edge)) = path.last_mut() {
            let node = *node;
            seen[node as usize].state = State::OnPath;
            let target = self.target(node, *edge);
            *edge += 1;
            match target {
                Some(target) => match seen[target as usize].state {
                    State::New => path.push((target, 0)),
                    State::OnPath => {
                        seen[node as usize].leads_back = true;
                        seen[target as usize].led_back_to = true;
                    }
                    State::Elsewhere => {}
                },
                None => {
                    seen[node as usize].state = State::Elsewhere;
                    order.push(node);
                    path.pop();
                }
            }
        }
        order.reverse();
        let cost = |held: fn(&Seen) -> bool| -> u64 {
            let held = order.iter().filter(|&&n| held(&seen[n as usize]));
            held.map(|&n| segments[n as usize].len()).sum()
        };
        let held: fn(&Seen) -> bool = if cost(|seen| seen.leads_back) < cost(|seen| seen.led_back_to) {
            |seen| seen.leads_back
        } else {
            |seen| seen.led_back_to
        };
        order.into_iter().partition(|&node| held(&seen[node as usize]))
    }
}

/// What a depth-first search knows of a segment.
#[derive(Clone, Copy, Default)]
struct Seen {
    state: State,
    leads_back: bool,
    led_back_to: bool,
}

#[derive(Clone, Copy, Default)]
enum State {
    /// In another component, or done with.
    #[default]
    Elsewhere,
    New,
    OnPath,
}

/// Which segments may be written: for each, how many pieces that read it are still to be read.
#[derive(Debug)]
pub(super) struct Gates {
    segments: Vec<Stretch>,
    waiting: Vec<u32>,
}

impl Gates {
    pub fn new(plan: &CopyPlan, groups: &VecDeque<Group>) -> Self {
        let mut segments: Vec<Stretch> = groups.iter().flat_map(Group::all).collect();
        segments.sort_unstable_by_key(|segment| segment.start);
        let mut gates = Self { waiting: vec![0; segments.len()], segments };
        for at in 0..gates.segments.len() {
            let segment = gates.segments[at];
            for piece in pieces(plan, segment) {
                gates.each(plan, segment, &piece, |waiting| *waiting += 1);
            }
        }
        gates
    }

    /// May the segment be written?
    pub fn is_open(&self, segment: Stretch) -> bool {
        let at = self.segments.partition_point(|other| other.start < segment.start);
        self.waiting.get(at) == Some(&0)
    }

    /// A piece of a segment has been read.
    pub fn read(&mut self, plan: &CopyPlan, segment: Stretch, piece: &Piece<'_>) {
        self.each(plan, segment, piece, |waiting| *waiting = waiting.saturating_sub(1));
    }

    fn each(&mut self, plan: &CopyPlan, segment: Stretch, piece: &Piece<'_>, change: impl Fn(&mut u32)) {
        let Some(read) = plan.in_dst(piece.ns, piece.offset, piece.to.len()) else { return };
        for at in covering(&self.segments, read) {
            if self.segments[at] != segment {
                change(&mut self.waiting[at]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{namespace, special};
    use super::*;
    use crate::backend::Shortcuts;
    use crate::namespace::{ByteRange, CopyPolicy, Namespace};

    const BLOCK: u64 = 512;

    fn bytes(start: u64, end: u64) -> Stretch {
        Stretch { start: start * BLOCK, end: end * BLOCK }
    }

    /// A Copy within one namespace to block `sdlba`, of ranges given as first block and blocks.
    fn planned(ns: Namespace, sdlba: u64, ranges: &[(u64, u64)]) -> CopyPlan {
        let dst_ns = Arc::new(ns);
        let mut at = 0;
        let ranges: Vec<_> = ranges
            .iter()
            .map(|&(slba, nlb)| {
                let src = ByteRange { offset: slba * BLOCK, len: nlb * BLOCK };
                at += src.len;
                PlannedRange { ns: dst_ns.clone(), src, at: at - src.len, fco: false, if_allocated: false }
            })
            .collect();
        let dst = ByteRange { offset: sdlba * BLOCK, len: at };
        CopyPlan { dst_ns, dst, ranges, fua: false }
    }

    /// In list order a stage ends where one reads what another has written, and nowhere else: not where they touch.
    #[test]
    fn stages_end_where_they_must() {
        let stages = |ranges: &[(u64, u64)]| -> Vec<_> {
            let policy = CopyPolicy { overlap: Overlap::InOrder, ..CopyPolicy::default() };
            let plan = planned(special(1, 400, 9, Shortcuts::default(), policy), 100, ranges);
            stages(&plan).into_iter().map(|stage| (stage.to, stage.ordered)).collect()
        };
        assert_eq!(stages(&[(0, 8), (20, 8)]), [(bytes(0, 16), false)]);
        assert_eq!(stages(&[(0, 8), (100, 8)]), [(bytes(0, 8), false), (bytes(8, 16), false)]);
        assert_eq!(stages(&[(0, 8), (107, 8)]), [(bytes(0, 8), false), (bytes(8, 16), true)]);
        // Its own place, or what comes behind it.
        for slba in [108, 110, 116] {
            assert_eq!(stages(&[(0, 8), (slba, 8), (0, 8)]), [(bytes(0, 24), true)], "{slba}");
        }
        assert_eq!(stages(&[(100, 8), (0, 8)]), [(bytes(0, 16), true)]);
        // Just before the destination and just behind it.
        assert_eq!(stages(&[(92, 8), (116, 8)]), [(bytes(0, 16), false)]);
        assert_eq!(
            stages(&[(0, 8), (100, 4), (108, 4), (104, 4)]),
            [(bytes(0, 8), false), (bytes(8, 12), false), (bytes(12, 20), false)]
        );
    }

    /// Segments of `segment` blocks, `budget` blocks of memory; of each group what is held, the rest, and the need.
    fn groups(ranges: &[(u64, u64)], segment: u64, budget: u64) -> Option<Vec<(usize, usize, u64)>> {
        let plan = planned(namespace(1, 1 << 20, 9), 0, ranges);
        let bounds =
            Bounds { segment: segment * BLOCK, one_piece: false, block: BLOCK, budget: budget * BLOCK };
        let groups = schedule(&plan, Stretch { start: 0, end: plan.dst.len }, bounds)?;
        let mut all: Vec<_> = groups.iter().flat_map(Group::all).collect();
        all.sort_unstable_by_key(|segment| segment.start);
        assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start), "{all:?}");
        for group in &groups {
            assert!((0..group.len()).all(|index| group.get(index).is_some()), "{group:?}");
            assert_eq!(group.get(group.len()), None);
            // What is held, one segment that is read and one that is written.
            let held: u64 = group.held.iter().map(|segment| segment.len()).sum();
            let largest = group.all().map(Stretch::len).max().unwrap_or(0);
            let least = if held == 0 { 0 } else { held + 2 * largest };
            assert!(least <= group.need && group.need <= bounds.budget, "{least} {group:?}");
        }
        let sizes = groups.iter().map(|group| (group.held.len(), group.rest.len(), group.need / BLOCK));
        Some(sizes.collect())
    }

    /// Each two that exchange places are a cycle. As many as fit are held at once, with memory to go on in parallel.
    #[test]
    fn cycles_share_memory() {
        let exchanges = [(4, 4), (0, 4), (12, 4), (8, 4), (20, 4), (16, 4)];
        let groups = |budget| groups(&exchanges, 4, budget).expect("there is enough");
        assert_eq!(groups(100), [(3, 3, 3 * 4 + 8 * 4)]);
        assert_eq!(groups(20), [(3, 3, 20)]);
        assert_eq!(groups(19), [(2, 2, 19), (1, 1, 19)]);
        assert_eq!(groups(16), [(2, 2, 16), (1, 1, 16)]);
        assert_eq!(groups(15), [(1, 1, 15), (1, 1, 15), (1, 1, 15)]);
        assert_eq!(groups(12), [(1, 1, 12), (1, 1, 12), (1, 1, 12)]);
        // Cut in halves, with room for three of them at once.
        assert_eq!(groups(11), [(3, 3, 11), (3, 3, 11)]);
    }

    /// What is in no cycle waits for none of its memory, and is one group as far as no cycle comes between.
    #[test]
    fn what_is_free_is_apart_from_cycles() {
        let ranges = [(4, 4), (0, 4), (1000, 8), (20, 4), (16, 4), (2000, 4)];
        let budget = 100;
        assert_eq!(
            groups(&ranges, 4, budget),
            Some(vec![(0, 1, 0), (1, 1, 4 + 8 * 4), (0, 2, 0), (1, 1, 4 + 8 * 4)])
        );
    }

    /// One that many read, or one that reads many: that one is held.
    #[test]
    fn the_cheaper_ends_are_held() {
        let read_by_many = [(4, 1), (8, 1), (12, 2), (0, 4), (0, 4), (0, 4)];
        let reader_of_many = [(4, 12), (0, 1), (5, 1), (10, 2)];
        for ranges in [&read_by_many[..], &reader_of_many] {
            assert_eq!(groups(ranges, 4, 100), Some(vec![(1, 3, 4 + 8 * 4)]), "{ranges:?}");
        }
    }

    /// A cycle through everything is cut until it fits, but not for ever.
    #[test]
    fn cycles_are_cut_to_an_end() {
        let rotated = |blocks| groups(&[(1, blocks - 1), (0, 1)], 2048, 3);
        assert_eq!(rotated(FINEST as u64), Some(vec![(1, FINEST - 1, 3)]));
        assert_eq!(rotated(2 * FINEST as u64), None);
        assert_eq!(groups(&[(1, 15), (0, 1)], 4, 2), None, "no block is cut");
    }
}
