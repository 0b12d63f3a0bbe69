//! Runs a plan: by shortcuts where the ladder has them, else by reading into bounce buffers and writing them out. A
//! state machine without I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use super::bounce::{Bounce, Pool};
use super::cut::{Account, Piece, Stretch, piece, pieces};
use super::ladder::{Ladder, SLICE, Span, Way};
use super::order::{self, Bounds, Gates, Group};
use super::plan::{CopyPlan, PlannedRange, Reject};
use super::probe::Probes;
use super::status::{Side, status};
use crate::backend::{BackendError, Buffer, Gather, IoBuf, Op, Pieces, Shortcut};
use crate::namespace::Namespace;
use crate::spec::Status;

/// Bounds of one Copy in execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecOptions {
    /// Bytes of one write at most; rounded down to blocks, one block at least.
    pub segment_bytes: u64,
    /// Operations in flight at most, one at least.
    pub window: u32,
    /// Bytes of bounce buffers in use at most; two blocks at least.
    pub budget: u64,
}

/// Bytes of ordinary segments in flight. What a ring does at once (a read from the page cache) is done in the worker's
/// time, between one look at the other queues and the next: 1 MiB is some 250 us. Only cycles, which must be held
/// whole, use all of the budget.
const PACE: u64 = 1 << 20;

/// Bytes of a segment that goes past the page cache: each is a request to a device, which large ones suit better. A
/// power of two, and so whole blocks.
const DIRECT_SEGMENT: u64 = 1 << 20;

/// Bytes of a segment that is relayed, which takes a thread's time and not the worker's: ext4 goes through all blocks of
/// a folio for each write to it, and folios have 1 MiB and more. A power of two.
const RELAY_SEGMENT: u64 = 1 << 20;

impl Default for ExecOptions {
    /// Four segments of 256 KiB at a time; the wider window is for short ranges, whose reads are small.
    fn default() -> Self {
        Self { segment_bytes: 256 << 10, window: 16, budget: 4 << 20 }
    }
}

impl ExecOptions {
    /// The bounds that are kept for blocks of this size out of `bounce`: as asked for, but two segments always fit, so
    /// that one can be read while another is written.
    pub fn effective(self, block_size: u64, bounce: &Bounce) -> Self {
        let budget = self.budget.max(2 * block_size).min(bounce.total());
        let segment = self.segment_bytes.min(budget / 2);
        Self {
            segment_bytes: (segment - segment % block_size).max(block_size),
            window: self.window.max(1),
            budget,
        }
    }
}

/// The end of a Copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For the CQE.
    pub status: Status,
    /// CQE DW0: 0 on success, else the lowest-numbered range that is not completely copied.
    pub dw0: u32,
}

/// Operations of the file system in flight at most: each may take long and a thread of the engine.
const FILE_SYSTEM_WINDOW: u32 = 4;

/// Operations handed out in one poll at least, where they are done at once: more of them wait for nothing but a turn of
/// the worker each.
pub(super) const MEMORY_WINDOW: u32 = 64;

/// Bytes of memory moved in one poll at most: 30 to 50 us, after which a worker looks at its other commands.
const POLL: u64 = 2 * SLICE;

/// One Copy in execution.
///
/// The destination is cut into segments. Each is copied by one operation, where a shortcut leads there, or bounced:
/// read (in one piece, or gathered from short ranges into one buffer) and then written at once, or relayed, which is the
/// same in one operation. Segments run in any order, unless sources overlap the destination: then the order of [`order`]
/// holds, only memory is moved directly, and nothing is relayed, because writes wait for the reads of others.
///
/// A shortcut that is refused changes nothing, and its stretch is copied by the next rung of the ladder. One that fails
/// does not say whether its source or its destination is at fault: the stretch is bounced, which succeeds or tells.
///
/// FUA: when one write does it all, that write carries it; otherwise a Flush follows the last write, for one barrier is
/// cheaper than a device flush per segment. A Copy with such a barrier that fails reports range 0: until the barrier
/// nothing is known to be durable, and without that no range is done.
#[derive(Debug)]
pub struct CopyTask {
    plan: CopyPlan,
    options: ExecOptions,
    /// [`ExecOptions::segment_bytes`] where it is relayed.
    relay_bytes: u64,
    ladder: Ladder,
    /// Where a source has DULBE enabled: every range is asked for before anything else starts.
    probes: Option<Probes>,
    /// What is still to be opened; the first is under way.
    stages: VecDeque<Stage>,
    account: Account,
    /// By slot; a slot is taken from the first read of a segment to the end of its write.
    segments: Vec<Option<Segment>>,
    /// The slot of the segment that has reads to come, and where the next one starts.
    filling: Option<(usize, u64)>,
    /// By part number: what is in flight.
    parts: Vec<Option<Part>>,
    in_flight: u32,
    /// Of these, by the file system.
    file_system: u32,
    pool: Pool,
    /// The last poll found no bounce memory.
    starved: bool,
    /// Bytes of memory that this poll may still move.
    allowance: u64,
    barrier: Barrier,
    /// The failure that lies lowest in the destination, and where.
    failure: Option<(u64, Status)>,
    aborted: bool,
    finished: bool,
}

/// Part of a Copy that is complete before the next one begins.
#[derive(Debug)]
enum Stage {
    /// In any order.
    Free(VecDeque<Span>),
    /// As segments read what others write.
    Ordered(Ordered),
}

#[derive(Debug)]
struct Ordered {
    groups: VecDeque<Group>,
    /// The next segment of the first group.
    next: usize,
    gates: Gates,
    /// What the first group has of its memory; `None` before it was claimed.
    claimed: Option<u64>,
    /// Refused by the shortcut, to be bounced.
    again: Vec<Stretch>,
}

/// The next segment.
#[derive(Clone, Copy, Debug)]
struct Next {
    to: Stretch,
    way: Way,
    /// Its memory is its group's.
    grouped: bool,
}

#[derive(Debug)]
struct Segment {
    to: Stretch,
    /// What will be written: absent while the one read or the write holds it, or while it is gathered.
    buf: Option<Buffer>,
    /// The same while several reads fill it, each its part.
    gather: Option<Gather>,
    grouped: bool,
    reads_in_flight: u32,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    /// Asks whether the source of the range that goes to `at` is allocated.
    Probe {
        at: u64,
    },
    /// Fills `to` of the segment in a slot.
    Read {
        slot: usize,
        to: Stretch,
    },
    /// Writes the segment in a slot.
    Write {
        slot: usize,
        to: Stretch,
    },
    Direct {
        how: Shortcut,
        to: Stretch,
    },
    /// Of a source.
    Relay {
        nsid: u32,
        to: Stretch,
    },
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barrier {
    NotNeeded,
    Pending,
    InFlight,
    Done,
}

impl CopyTask {
    /// A task that has done nothing yet. Its bounds are [`ExecOptions::effective`] for the destination's blocks; its
    /// memory comes out of `bounce`, which all Copies of a worker share.
    ///
    /// # Errors
    /// Insufficient Resources: source and destination overlap in cycles which need more memory than the budget. Fast
    /// Copy Not Possible: it was when the plan was made, and has been refused to another Copy since.
    pub fn new(plan: CopyPlan, options: ExecOptions, bounce: &Bounce) -> Result<Self, Reject> {
        let block = plan.dst_ns.facts.block_size();
        let mut options = options.effective(block, bounce);
        let ladder = Ladder::new(&plan);
        if ladder.any_memory() {
            options.segment_bytes = options.segment_bytes.min(SLICE);
            options.window = options.window.max(MEMORY_WINDOW);
        }
        if plan.dst_ns.backend.is_direct() {
            let segment = DIRECT_SEGMENT.min(options.budget / 2);
            options.segment_bytes = options.segment_bytes.max(segment - segment % block);
        }
        let relay = RELAY_SEGMENT.min(options.budget / 2);
        let relay_bytes = options.segment_bytes.max(relay - relay % block);
        let stages = stages(&plan, &ladder, options, block).ok_or(Reject {
            status: Status::INSUFFICIENT_RESOURCES,
            range: None,
            what: "sources and destination overlap in cycles beyond the bounce budget",
        })?;
        let slow = stages.iter().filter_map(|stage| match stage {
            Stage::Free(spans) => Some(spans),
            Stage::Ordered(_) => None,
        });
        if slow.flatten().any(|span| slow_fco(&plan, span.to, span.way).is_some()) {
            return Err(Reject {
                status: Status::FAST_COPY_NOT_POSSIBLE.dnr(),
                range: None,
                what: "fast copy only, and no fast copy is possible any more",
            });
        }
        let probes = Probes::of(&plan);
        let barrier = plan.fua && !is_one_write(&stages, &ladder, options, relay_bytes);
        Ok(Self {
            account: Account::new(&plan),
            options,
            relay_bytes,
            ladder,
            probes,
            stages,
            segments: Vec::new(),
            filling: None,
            parts: Vec::new(),
            in_flight: 0,
            file_system: 0,
            pool: Pool::new(bounce, options.budget),
            starved: false,
            allowance: 0,
            barrier: if barrier { Barrier::Pending } else { Barrier::NotNeeded },
            failure: None,
            aborted: false,
            finished: false,
            plan,
        })
    }

    /// Hands out what can start now: `submit(part, namespace, operation)`, at most a window of it. Part numbers are
    /// below the window and unique among those in flight. A completion that is there at once is given to [`Self::done`]
    /// after this returns.
    ///
    /// Returns the outcome exactly once, when nothing is in flight any more. `None` with nothing in flight
    /// ([`Self::is_starved`]): all bounce memory is with other Copies; poll again when one of them has got further.
    pub fn poll(&mut self, submit: &mut impl FnMut(u32, &Arc<Namespace>, Op)) -> Option<Outcome> {
        let stopped = self.failure.is_some() || self.aborted;
        self.starved = false;
        self.allowance = POLL;
        if self.probes.is_some() {
            while !stopped && self.in_flight < self.options.window && self.start_probe(submit) {}
            if self.in_flight == 0 {
                self.probes = None;
            }
        }
        if !stopped && self.probes.is_none() {
            while self.in_flight < self.options.window && self.allowance >= SLICE && self.start_one(submit) {}
        }
        if self.in_flight > 0 || self.finished || self.starved {
            return None;
        }
        self.finished = true;
        Some(self.outcome())
    }

    /// Takes the end of a part, with the buffer of a Read, Write or Relay.
    pub fn done(&mut self, part: u32, result: Result<(), BackendError>, buf: Option<IoBuf>) {
        let Some(what) = self.parts.get_mut(part as usize).and_then(Option::take) else {
            debug_assert!(false, "part {part} is not in flight");
            return;
        };
        self.in_flight -= 1;
        match what {
            Part::Probe { at } => {
                if let Err(error) = result {
                    self.fail(at, status(Side::Source, &error));
                }
            }
            Part::Read { slot, to } => match result {
                Ok(()) => self.read_done(slot, to, buf),
                Err(error) => self.fail(to.start, status(Side::Source, &error)),
            },
            Part::Write { slot, to } => match result {
                Ok(()) => self.write_done(slot, to),
                Err(error) => self.fail(to.start, status(Side::Destination, &error)),
            },
            Part::Direct { how, to } => {
                self.file_system -= u32::from(how != Shortcut::MemMove);
                match result {
                    Ok(()) => {
                        self.was_read(to, to);
                        self.account.written(&self.plan, to);
                    }
                    Err(error) => self.direct_failed(how, to, &error),
                }
            }
            Part::Relay { nsid, to } => self.relayed(nsid, to, result),
            Part::Flush => match result {
                Ok(()) => self.barrier = Barrier::Done,
                Err(error) => self.fail(0, status(Side::Destination, &error)),
            },
        }
    }

    /// Starts nothing more; the outcome comes when all that is in flight has come back. Too late for a Copy that is
    /// complete by then: that one succeeds.
    pub fn abort(&mut self) {
        self.aborted = true;
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Waits for bounce memory that other Copies hold, with nothing of its own in flight.
    pub fn is_starved(&self) -> bool {
        self.starved && self.in_flight == 0
    }

    /// Bytes of bounce memory held or reserved, at most the budget.
    pub fn bounce_bytes(&self) -> u64 {
        self.pool.held()
    }

    /// Does a poll spend the poller's own time on moving bytes (some 50 us at most)? Such tasks take turns with all
    /// other work of a worker.
    pub fn moves_memory(&self) -> bool {
        self.ladder.any_memory()
    }

    /// Is there nothing left to do but to be polled for the outcome?
    pub fn is_over(&self) -> bool {
        let complete = self.barrier != Barrier::Pending && self.account.first_incomplete().is_none();
        self.in_flight == 0 && !self.finished && (complete || self.failure.is_some() || self.aborted)
    }

    /// Bytes that all ranges have together.
    pub fn len(&self) -> u64 {
        self.plan.dst.len
    }

    /// Never: a Copy has a block at least.
    pub fn is_empty(&self) -> bool {
        self.plan.dst.len == 0
    }

    /// In list order, so that once one has failed all that come before it have been asked for too.
    fn start_probe(&mut self, submit: &mut impl FnMut(u32, &Arc<Namespace>, Op)) -> bool {
        let Some(range) = self.probes.as_mut().and_then(|probes| probes.next(&self.plan)) else {
            return false;
        };
        let PlannedRange { ns, src, at, .. } = range.clone();
        let part = self.part(Part::Probe { at });
        submit(part, &ns, Op::Probe { offset: src.offset, len: src.len });
        true
    }

    /// Starts one operation, if there is one to start. Writes first: they give memory back.
    fn start_one(&mut self, submit: &mut impl FnMut(u32, &Arc<Namespace>, Op)) -> bool {
        self.start_write(submit)
            || self.start_read(submit)
            || self.start_next(submit)
            || self.start_barrier(submit)
    }

    fn start_write(&mut self, submit: &mut impl FnMut(u32, &Arc<Namespace>, Op)) -> bool {
        let filling = self.filling.map(|(slot, _)| slot);
        let gates = match self.stages.front() {
            Some(Stage::Ordered(ordered)) => Some(&ordered.gates),
            _ => None,
        };
        let ready = self.segments.iter_mut().enumerate().find_map(|(slot, segment)| {
            let segment = segment.as_mut().filter(|s| Some(slot) != filling && s.reads_in_flight == 0)?;
            if gates.is_some_and(|gates| !gates.is_open(segment.to)) {
                return None;
            }
            Some((slot, segment.to, segment.buf.take()?))
        });
        let Some((slot, to, buf)) = ready else {
            return false;
        };
        let part = self.part(Part::Write { slot, to });
        self.spend(self.plan.dst_ns.nsid, true, to.len());
        let op = Op::Write {
            offset: self.plan.dst.offset + to.start,
            buf: IoBuf::Pool(buf),
            fua: self.plan.fua && self.barrier == Barrier::NotNeeded,
        };
        submit(part, &self.plan.dst_ns, op);
        true
    }

    /// The next read of the segment that is being filled.
    fn start_read(&mut self, submit: &mut impl FnMut(u32, &Arc<Namespace>, Op)) -> bool {
        let Some((slot, pos)) = self.filling else {
            return false;
        };
        let Some(Some(segment)) = self.segments.get_mut(slot) else {
            return false;
        };
        let Some(piece) = piece(&self.plan, pos, segment.to.end) else {
            return false;
        };
        let (to, offset, ns) = (piece.to, piece.offset, piece.ns.clone());
        let buf = match &mut segment.gather {
            Some(gather) => gather.split(to.len() as usize).map(IoBuf::Part),
            None => segment.buf.take().map(IoBuf::Pool),
        };
        let Some(buf) = buf else {
            self.fail(to.start, Status::INTERNAL_ERROR);
            return false;
        };
        segment.reads_in_flight += 1;
        self.filling = (to.end < segment.to.end).then_some((slot, to.end));
        let part = self.part(Part::Read { slot, to });
        self.spend(ns.nsid, false, to.len());
        submit(part, &ns, Op::Read { offset, buf });
        true
    }

    /// Begins the next segment.
    fn start_next(&mut self, submit: &mut impl FnMut(u32, &Arc<Namespace>, Op)) -> bool {
        if self.filling.is_some() {
            return false;
        }
        let Some(next) = self.next() else {
            return false;
        };
        if let Some(at) = slow_fco(&self.plan, next.to, next.way) {
            // The way was refused meanwhile, for another stretch.
            self.fail(at, Status::FAST_COPY_NOT_POSSIBLE.dnr());
            return false;
        }
        match next.way {
            Way::Direct(how) => self.start_direct(how, next, submit),
            Way::Bounce if !next.grouped && self.must_wait(next.to.len()) => false,
            Way::Bounce => match self.relay(next.to) {
                Some((ns, pieces)) => self.start_relay(next, &ns, pieces, submit),
                None => self.open(next) && self.start_read(submit),
            },
        }
    }

    /// The source of a stretch and what to read there, if it can be relayed: all of it from one source.
    fn relay(&self, to: Stretch) -> Option<(Arc<Namespace>, Pieces)> {
        let first = piece(&self.plan, to.start, to.end)?;
        if !self.ladder.relays(first.ns.nsid) || !matches!(self.stages.front(), Some(Stage::Free(_))) {
            return None;
        }
        let read = |next: Piece<'_>| (next.ns.nsid == first.ns.nsid).then_some((next.offset, next.to.len()));
        let pieces = pieces(&self.plan, to).map(read).collect::<Option<Pieces>>()?;
        Some((first.ns.clone(), pieces))
    }

    fn start_relay(
        &mut self,
        next: Next,
        ns: &Arc<Namespace>,
        pieces: Pieces,
        submit: &mut impl FnMut(u32, &Arc<Namespace>, Op),
    ) -> bool {
        let Some(buf) = self.memory(next.to.len()) else {
            return false;
        };
        self.take(next);
        let part = self.part(Part::Relay { nsid: ns.nsid, to: next.to });
        let op = Op::Relay {
            source: ns.backend.clone(),
            pieces,
            offset: self.plan.dst.offset + next.to.start,
            buf: IoBuf::Pool(buf),
            fua: self.plan.fua && self.barrier == Barrier::NotNeeded,
            offload: self.ladder.may_offload(),
        };
        submit(part, &self.plan.dst_ns, op);
        true
    }

    fn start_direct(
        &mut self,
        how: Shortcut,
        next: Next,
        submit: &mut impl FnMut(u32, &Arc<Namespace>, Op),
    ) -> bool {
        let to = next.to;
        if how != Shortcut::MemMove && self.file_system >= FILE_SYSTEM_WINDOW {
            return false;
        }
        if let Some(Stage::Ordered(ordered)) = self.stages.front()
            && !ordered.gates.is_open(to)
        {
            return false;
        }
        let Some(op) = self.direct(how, to) else {
            return false;
        };
        self.take(next);
        self.file_system += u32::from(how != Shortcut::MemMove);
        if how == Shortcut::MemMove {
            self.allowance = self.allowance.saturating_sub(to.len());
        }
        let part = self.part(Part::Direct { how, to });
        submit(part, &self.plan.dst_ns, op);
        true
    }

    fn direct(&self, how: Shortcut, to: Stretch) -> Option<Op> {
        let mut rest = pieces(&self.plan, to);
        let first = rest.next()?;
        let (source, offset, len) = (first.ns.backend.clone(), self.plan.dst.offset + to.start, to.len());
        if first.to == to {
            return Some(Op::CopyFrom { source, from: first.offset, offset, len, how });
        }
        let all = [first].into_iter().chain(rest);
        let pieces = all.map(|piece| (piece.offset, piece.to.len())).collect();
        Some(Op::MoveFrom { source, pieces, offset, len })
    }

    /// Opens a segment to be bounced, if there is memory for it.
    fn open(&mut self, next: Next) -> bool {
        let to = next.to;
        let gathered = piece(&self.plan, to.start, to.end).is_none_or(|piece| piece.to != to);
        let bytes = to.len();
        let buf = if next.grouped {
            let claimed = match self.stages.front_mut() {
                Some(Stage::Ordered(Ordered { claimed: Some(claimed), .. })) if *claimed >= bytes => claimed,
                _ => return false,
            };
            *claimed -= bytes;
            self.pool.buffer(bytes)
        } else {
            match self.memory(bytes) {
                Some(buf) => buf,
                None => return false,
            }
        };
        let slot = free_slot(&mut self.segments);
        let grouped = next.grouped;
        let (buf, gather) = if gathered { (None, Some(Gather::new(buf))) } else { (Some(buf), None) };
        self.segments[slot] = Some(Segment { to, buf, gather, grouped, reads_in_flight: 0 });
        self.filling = Some((slot, to.start));
        self.take(next);
        true
    }

    /// Never with nothing in flight, so that a completion comes and this is asked again.
    fn must_wait(&self, bytes: u64) -> bool {
        let pace = match () {
            // No processor is spent on them.
            () if self.plan.dst_ns.backend.is_direct() => self.options.budget,
            // Two at a time keep two processors busy, one each.
            () if self.pool.is_crowded() => self.options.segment_bytes,
            () if self.ladder.relays_all() => 2 * self.relay_bytes,
            () => PACE,
        };
        self.in_flight > 0 && self.pool.held().saturating_add(bytes) > pace
    }

    /// Memory for an ordinary segment.
    fn memory(&mut self, bytes: u64) -> Option<Buffer> {
        let buf = self.pool.reserve(bytes);
        self.starved |= buf.is_none();
        buf
    }

    /// What comes next. `None`: nothing, or nothing yet.
    fn next(&mut self) -> Option<Next> {
        let idle = self.in_flight == 0 && self.segments.iter().all(Option::is_none);
        loop {
            let next = match self.stages.front_mut()? {
                Stage::Free(spans) => {
                    let bounce = bounce_bytes(&self.ladder, self.options, self.relay_bytes);
                    next_free(spans, &self.plan, &self.ladder, bounce)
                }
                Stage::Ordered(ordered) => {
                    let moved = self.ladder.allows(self.plan.dst_ns.nsid, Shortcut::MemMove);
                    match ordered.next(idle, moved, &mut self.pool) {
                        Ok(next) => next,
                        Err(NoMemory) => {
                            self.starved = true;
                            return None;
                        }
                    }
                }
            };
            if next.is_some() || !self.front_is_empty() || !idle {
                return next;
            }
            self.stages.pop_front();
        }
    }

    fn front_is_empty(&self) -> bool {
        match self.stages.front() {
            Some(Stage::Free(spans)) => spans.is_empty(),
            Some(Stage::Ordered(ordered)) => ordered.groups.is_empty() && ordered.again.is_empty(),
            None => true,
        }
    }

    /// `next` is under way.
    fn take(&mut self, next: Next) {
        match self.stages.front_mut() {
            Some(Stage::Free(spans)) => {
                if let Some(front) = spans.front_mut() {
                    front.to.start = next.to.end;
                    if front.to.start >= front.to.end {
                        spans.pop_front();
                    }
                }
            }
            Some(Stage::Ordered(ordered)) => {
                if ordered.again.last() == Some(&next.to) {
                    ordered.again.pop();
                } else {
                    ordered.next += 1;
                }
            }
            None => {}
        }
    }

    fn start_barrier(&mut self, submit: &mut impl FnMut(u32, &Arc<Namespace>, Op)) -> bool {
        if self.barrier != Barrier::Pending || self.account.first_incomplete().is_some() {
            return false;
        }
        self.barrier = Barrier::InFlight;
        let part = self.part(Part::Flush);
        submit(part, &self.plan.dst_ns, Op::Flush);
        true
    }

    /// The buffer may have held another Copy's data, of whatever namespace. What makes that safe: a segment is written
    /// from a buffer all of whose bytes a successful read has overwritten, each of its own. So nothing but a success
    /// leads here, a short buffer or a strange one is refused, and what is gathered comes together of parts that all
    /// came back.
    fn read_done(&mut self, slot: usize, to: Stretch, buf: Option<IoBuf>) {
        let buf = buf.filter(|buf| buf.len() as u64 == to.len());
        let (Some(Some(segment)), Some(buf)) = (self.segments.get_mut(slot), buf) else {
            return self.fail(to.start, Status::INTERNAL_ERROR);
        };
        segment.reads_in_flight -= 1;
        let whole = segment.to;
        let taken = match (buf, &mut segment.gather) {
            (IoBuf::Part(part), Some(gather)) => gather.join(part),
            (IoBuf::Pool(buf), None) => {
                segment.buf = Some(buf);
                true
            }
            _ => false,
        };
        if !taken {
            return self.fail(to.start, Status::INTERNAL_ERROR);
        }
        let complete =
            segment.reads_in_flight == 0 && self.filling.is_none_or(|(filling, _)| filling != slot);
        if let Some(gather) = segment.gather.take_if(|_| complete) {
            segment.buf = gather.whole();
            if segment.buf.is_none() {
                return self.fail(to.start, Status::INTERNAL_ERROR);
            }
        }
        self.was_read(whole, to);
    }

    /// A piece of a segment needs its source no more.
    fn was_read(&mut self, segment: Stretch, to: Stretch) {
        if let Some(Stage::Ordered(ordered)) = self.stages.front_mut()
            && let Some(piece) = piece(&self.plan, to.start, to.end)
        {
            ordered.gates.read(&self.plan, segment, &piece);
        }
    }

    fn write_done(&mut self, slot: usize, to: Stretch) {
        self.account.written(&self.plan, to);
        let grouped = match self.segments.get_mut(slot).and_then(Option::take) {
            Some(segment) => segment.grouped,
            None => false,
        };
        self.give_back(grouped, to.len());
    }

    fn relayed(&mut self, nsid: u32, to: Stretch, result: Result<(), BackendError>) {
        self.pool.release(to.len());
        match result {
            Ok(()) => self.account.written(&self.plan, to),
            Err(BackendError::NoShortcut) => {
                self.ladder.refuse_relay(nsid);
                match self.stages.front_mut() {
                    Some(Stage::Free(spans)) => spans.push_front(Span { to, way: Way::Bounce }),
                    _ => self.fail(to.start, Status::INTERNAL_ERROR),
                }
            }
            Err(error) => {
                let read = if let BackendError::Source { at, .. } = error { at } else { 0 };
                self.fail(to.start + read, status(Side::Destination, &error));
            }
        }
    }

    fn give_back(&mut self, grouped: bool, bytes: u64) {
        match self.stages.front_mut() {
            Some(Stage::Ordered(Ordered { claimed: Some(claimed), .. })) if grouped => *claimed += bytes,
            _ => self.pool.release(bytes),
        }
    }

    fn direct_failed(&mut self, how: Shortcut, to: Stretch, error: &BackendError) {
        let fco = self.plan.ranges_in(to).find(|range| range.fco).map(|range| range.at.max(to.start));
        if matches!(error, BackendError::NoShortcut) {
            if let Some(piece) = piece(&self.plan, to.start, to.end) {
                self.ladder.refuse(piece.ns.nsid, how);
            }
            if let Some(at) = fco {
                return self.fail(at, Status::FAST_COPY_NOT_POSSIBLE.dnr());
            }
        } else if how == Shortcut::MemMove || fco.is_some() {
            return self.fail(to.start, status(Side::Destination, error));
        }
        match self.stages.front_mut() {
            Some(Stage::Free(spans)) if matches!(error, BackendError::NoShortcut) => {
                for span in self.ladder.spans(&self.plan, to).into_iter().rev() {
                    spans.push_front(span);
                }
            }
            Some(Stage::Free(spans)) => spans.push_front(Span { to, way: Way::Bounce }),
            Some(Stage::Ordered(ordered)) => ordered.again.push(to),
            None => self.fail(to.start, Status::INTERNAL_ERROR),
        }
    }

    /// Keeps the failure that lies lowest: it is the one DW0 speaks of.
    fn fail(&mut self, at: u64, status: Status) {
        if self.failure.is_none_or(|(lowest, _)| at < lowest) {
            self.failure = Some((at, status));
        }
    }

    fn spend(&mut self, nsid: u32, is_dst: bool, bytes: u64) {
        if self.ladder.is_memory(nsid, is_dst) {
            self.allowance = self.allowance.saturating_sub(bytes);
        }
    }

    fn part(&mut self, part: Part) -> u32 {
        let number = free_slot(&mut self.parts);
        self.parts[number] = Some(part);
        self.in_flight += 1;
        number as u32
    }

    fn outcome(&self) -> Outcome {
        let incomplete = match self.barrier {
            Barrier::NotNeeded | Barrier::Done => self.account.first_incomplete(),
            Barrier::Pending | Barrier::InFlight => Some(0),
        };
        match (incomplete, self.failure) {
            (None, None) => {
                debug_assert!(
                    self.segments.iter().all(Option::is_none) && (self.aborted || self.pool.is_idle())
                );
                Outcome { status: Status::SUCCESS, dw0: 0 }
            }
            (incomplete, Some((_, status))) => Outcome { status, dw0: incomplete.unwrap_or(0) },
            (Some(dw0), None) if self.aborted => Outcome { status: Status::ABORT_REQUESTED, dw0 },
            (Some(dw0), None) => Outcome { status: Status::INTERNAL_ERROR, dw0 },
        }
    }
}

/// Where in a stretch that is not to be shared a range begins that must be.
fn slow_fco(plan: &CopyPlan, to: Stretch, way: Way) -> Option<u64> {
    let fco = plan.ranges_in(to).find(|range| range.fco)?;
    (way != Way::Direct(Shortcut::Reflink)).then(|| fco.at.max(to.start))
}

/// The stages of a plan; `None` when cycles do not fit into the budget.
fn stages(plan: &CopyPlan, ladder: &Ladder, options: ExecOptions, block: u64) -> Option<VecDeque<Stage>> {
    let moved = ladder.allows(plan.dst_ns.nsid, Shortcut::MemMove);
    let bounds = Bounds { segment: options.segment_bytes, one_piece: moved, block, budget: options.budget };
    let stage = |stage: order::Stage| {
        if !stage.ordered {
            return Some(Stage::Free(ladder.spans(plan, stage.to).into()));
        }
        let groups = order::schedule(plan, stage.to, bounds)?;
        let gates = Gates::new(plan, &groups);
        Some(Stage::Ordered(Ordered { groups, next: 0, gates, claimed: None, again: Vec::new() }))
    };
    order::stages(plan).into_iter().map(stage).collect()
}

/// Does one bounced segment do it all?
fn is_one_write(stages: &VecDeque<Stage>, ladder: &Ladder, options: ExecOptions, relay_bytes: u64) -> bool {
    let bounce = bounce_bytes(ladder, options, relay_bytes);
    match stages.front() {
        _ if stages.len() != 1 => false,
        Some(Stage::Free(spans)) => matches!(
            spans.front(),
            Some(span) if spans.len() == 1 && span.way == Way::Bounce && span.to.len() <= bounce
        ),
        Some(Stage::Ordered(ordered)) => {
            ordered.groups.iter().map(Group::len).sum::<usize>() == 1 && !ladder.any_memory()
        }
        None => false,
    }
}

/// Largest bounced segment where the order is free.
fn bounce_bytes(ladder: &Ladder, options: ExecOptions, relay_bytes: u64) -> u64 {
    if ladder.relays_all() { relay_bytes } else { options.segment_bytes }
}

/// The next segment of the first span; `bounce`: bytes of one that is bounced. Spans whose way has been refused meanwhile
/// get another one.
fn next_free(spans: &mut VecDeque<Span>, plan: &CopyPlan, ladder: &Ladder, bounce: u64) -> Option<Next> {
    loop {
        let span = *spans.front()?;
        if let Way::Direct(how) = span.way
            && !piece(plan, span.to.start, span.to.end).is_some_and(|run| ladder.allows(run.ns.nsid, how))
        {
            spans.pop_front();
            for span in ladder.spans(plan, span.to).into_iter().rev() {
                spans.push_front(span);
            }
            continue;
        }
        let to = span.to.first(ladder.segment(span.way, bounce));
        return Some(Next { to, way: span.way, grouped: false });
    }
}

struct NoMemory;

impl Ordered {
    /// The next segment. `idle`: nothing is in flight or in memory. `moved`: memory is moved directly.
    fn next(&mut self, idle: bool, moved: bool, pool: &mut Pool) -> Result<Option<Next>, NoMemory> {
        if let Some(&to) = self.again.last() {
            return Ok(Some(Next { to, way: Way::Bounce, grouped: self.claimed.is_some() }));
        }
        loop {
            let Some(group) = self.groups.front() else { return Ok(None) };
            let holds = !group.held.is_empty();
            if let Some(to) = group.get(self.next) {
                if holds && self.claimed.is_none() {
                    if !idle {
                        return Ok(None);
                    }
                    if !pool.claim(group.need) {
                        return Err(NoMemory);
                    }
                    self.claimed = Some(group.need);
                }
                let direct = moved && self.next >= group.held.len();
                let way = if direct { Way::Direct(Shortcut::MemMove) } else { Way::Bounce };
                return Ok(Some(Next { to, way, grouped: holds }));
            }
            if holds {
                if !idle {
                    return Ok(None);
                }
                pool.release(group.need);
                self.claimed = None;
            }
            self.groups.pop_front();
            self.next = 0;
        }
    }
}

/// The first free slot, made if need be.
fn free_slot<T>(slots: &mut Vec<Option<T>>) -> usize {
    slots.iter().position(Option::is_none).unwrap_or_else(|| {
        slots.push(None);
        slots.len() - 1
    })
}
