//! Runs a plan: by shortcuts where there are any, else by reading into bounce buffers and writing them out. A
//! state machine without I/O.
//!
//! How large a segment is and whether one more may start is asked in pace.rs alone; what comes next, of stages.rs; what
//! is in memory, of segments.rs; what the host is told, of accounting.rs.

mod accounting;
mod pace;
mod parts;
mod segments;
mod slots;
mod stages;

#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::bounce::{Bounce, Pool};
use super::checks::rule;
use super::cut::{Piece, Stretch, one_source, piece};
use super::plan::{CopyPlan, PlannedRange, Reject};
use super::probe::Probes;
use super::selection::{Choice, Selection, Span};
use super::written::{By, Written};
use crate::block::Direction;
use crate::disk::{Buffer, DiskError, How, IoBuf, Moved, Op, Pieces};
use crate::namespace::Namespace;
use crate::spec::Status;
use crate::status;

use accounting::Accounting;
use pace::Pace;
use parts::{Part, Parts};
use segments::{Broken, Segments};
use stages::{Next, NoMemory, Stages, Writable};

pub use crate::spec::Outcome;
pub use pace::ExecOptions;

/// One Copy in execution.
///
/// The destination is cut into segments. Each is copied by one operation, where a shortcut leads there, or bounced:
/// read (in one piece, or gathered from short ranges into one buffer) and then written at once; or both as one pool
/// copy, an operation that a thread of the lane does. Segments run in any order, unless sources overlap the
/// destination: then the order of [`order`](super::order) holds, only memory is moved directly, and there are no pool
/// copies, because writes wait for the reads of segments before them.
///
/// The stretch of a shortcut that is refused is copied by what is chosen next, all of it. A shortcut that fails
/// does not say whether its source or its destination is at fault: the stretch is bounced, which succeeds or tells.
#[derive(Debug)]
pub struct CopyTask {
    plan: CopyPlan,
    pace: Pace,
    selection: Selection,
    /// Where a source has DULBE enabled: every range is asked for before anything else starts.
    probes: Option<Probes>,
    stages: Stages,
    segments: Segments,
    parts: Parts,
    pool: Pool,
    /// The last poll found no bounce memory.
    starved: bool,
    accounting: Accounting,
    finished: bool,
}

/// Takes an operation that starts: its part number, the namespace it is for, and itself.
trait Submit: FnMut(u32, &Arc<Namespace>, Op) {}

impl<F: FnMut(u32, &Arc<Namespace>, Op)> Submit for F {}

/// One operation has been handed out.
struct Started;

impl CopyTask {
    /// A task that has done nothing yet. Its bounds are [`ExecOptions::effective`] for the destination's blocks; its
    /// memory comes out of `bounce`, which all Copies of a worker share.
    ///
    /// # Errors
    /// Insufficient Resources: source and destination overlap in a way that takes more memory than [`Bounce`] has for it,
    /// now and whenever it is tried again. Fast Copy Not Possible: it was when the plan was made, and has been refused to
    /// another Copy since.
    pub fn new(plan: CopyPlan, options: ExecOptions, bounce: &Bounce) -> Result<Self, Reject> {
        let selection = Selection::new(&plan);
        let pace = Pace::new(options, &plan, &selection, bounce);
        let stages = Stages::new(&plan, &selection);
        if stages.most_held() > bounce.most_held() {
            return Err(Reject {
                status: Status::INSUFFICIENT_RESOURCES.dnr(),
                range: None,
                rule: rule::OVERLAP_MEMORY,
                what: "more sources are overwritten before they are read than memory can hold",
            });
        }
        if stages.any_slow_fco(&plan) {
            return Err(Reject {
                status: Status::FAST_COPY_NOT_POSSIBLE.dnr(),
                range: None,
                rule: rule::FAST_COPY,
                what: "fast copy only, and no fast copy is possible any more",
            });
        }
        Ok(Self {
            probes: Probes::of(&plan),
            segments: Segments::default(),
            parts: Parts::default(),
            pool: Pool::new(bounce, pace.budget()),
            starved: false,
            accounting: Accounting::new(&plan, stages.is_one_write(&selection, &pace)),
            finished: false,
            stages,
            selection,
            pace,
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
        self.starved = false;
        self.pace.begin_poll();
        if !self.accounting.is_stopped() {
            while self.pace.may_start(self.parts.in_flight())
                && let Some(Started) = self.start(submit)
            {}
        }
        if !self.parts.is_empty() || self.finished || self.starved {
            return None;
        }
        self.finished = true;
        let outcome = self.accounting.outcome();
        debug_assert!(
            !outcome.status.is_success()
                || self.segments.is_empty() && (self.accounting.is_aborted() || self.pool.is_idle())
        );
        Some(outcome)
    }

    /// Takes the end of a part, with the buffer of a Read, Write or PoolCopy. What of the destination was written by that.
    pub fn done(
        &mut self,
        part: u32,
        result: Result<Moved, DiskError>,
        buf: Option<IoBuf>,
    ) -> Option<Written> {
        let Some(what) = self.parts.end(part) else {
            debug_assert!(false, "part {part} is not in flight");
            return None;
        };
        let written = what.writes().zip(result.as_ref().ok());
        let written = written.map(|(to, moved)| Written { at: to.start, len: to.len(), by: By::of(*moved) });
        match (what, result.map(drop)) {
            (Part::Probe { .. }, Ok(())) => {}
            (Part::Probe { at }, Err(error)) => self.fail(at, status::image(&error, Direction::Read)),
            (Part::Read { slot, to }, Ok(())) => self.read_done(slot, to, buf),
            (Part::Read { to, .. }, Err(error)) => {
                self.fail(to.start, status::image(&error, Direction::Read))
            }
            (Part::Write { slot, to }, Ok(())) => self.write_done(slot, to),
            (Part::Write { to, .. }, Err(error)) => {
                self.fail(to.start, status::image(&error, Direction::Write))
            }
            (Part::Direct { to, .. }, Ok(())) => self.accounting.written(&self.plan, to),
            (Part::Direct { how, to }, Err(error)) => self.direct_failed(how, to, &error),
            (Part::PoolCopy { nsid, to }, result) => self.pool_copy_done(nsid, to, result),
            (Part::Flush, Ok(())) => self.accounting.end_barrier(),
            (Part::Flush, Err(error)) => self.fail(0, status::image(&error, Direction::Write)),
        }
        written
    }

    /// Starts nothing more; the outcome comes when all that is in flight has come back. Too late for a Copy that is
    /// complete by then: that one succeeds.
    pub fn abort(&mut self) {
        self.accounting.abort();
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> u32 {
        self.parts.in_flight()
    }

    /// Waits for bounce memory that other Copies hold, with nothing of its own in flight.
    pub fn is_starved(&self) -> bool {
        self.starved && self.parts.is_empty()
    }

    /// Bytes of bounce memory held or reserved: at most the budget, and what [`Bounce`] has for held sources.
    pub fn bounce_bytes(&self) -> u64 {
        self.pool.in_use()
    }

    /// Bytes of memory that it has for what it knows, whatever it moves.
    pub fn heap(&self) -> usize {
        // Of each range the plan, its account, and a span or a stretch.
        self.plan.ranges.len() * (size_of::<PlannedRange>() + size_of::<u64>() + size_of::<Span>())
    }

    /// Does a poll spend the poller's own time on moving bytes (some 50 us at most)? Such tasks take turns with all
    /// other work of a worker.
    pub fn moves_memory(&self) -> bool {
        self.selection.any_memory()
    }

    /// Is there nothing left to do but to be polled for the outcome?
    pub fn is_over(&self) -> bool {
        self.parts.is_empty() && !self.finished && self.accounting.is_certain()
    }

    /// What it does.
    pub fn plan(&self) -> &CopyPlan {
        &self.plan
    }

    /// Bytes that all ranges have together.
    pub fn len(&self) -> u64 {
        self.plan.dst.len
    }

    /// Never: a Copy has a block at least.
    pub fn is_empty(&self) -> bool {
        self.plan.dst.len == 0
    }

    /// Starts one operation, if there is one to start. Probes before all else; writes before reads: they give memory
    /// back.
    fn start(&mut self, submit: &mut impl Submit) -> Option<Started> {
        if self.probes.is_some() {
            let probe = self.start_probe(submit);
            if probe.is_some() || !self.parts.is_empty() {
                return probe;
            }
            self.probes = None;
        }
        self.start_write(submit)
            .or_else(|| self.start_read(submit))
            .or_else(|| self.start_next(submit))
            .or_else(|| self.start_barrier(submit))
    }

    /// In list order, so that once one has failed all that come before it have been asked for too.
    fn start_probe(&mut self, submit: &mut impl Submit) -> Option<Started> {
        let PlannedRange { ns, src, at, .. } = self.probes.as_mut()?.next(&self.plan)?;
        let part = self.parts.begin(Part::Probe { at: *at });
        submit(part, ns, Op::Probe { offset: src.offset, len: src.len });
        Some(Started)
    }

    fn start_write(&mut self, submit: &mut impl Submit) -> Option<Started> {
        let writable = match self.stages.writable() {
            Writable::Last if self.parts.any_direct() => Writable::InTurn,
            writable => writable,
        };
        let (slot, to, buf) = self.segments.next_write(writable)?;
        if self.selection.is_memory(self.plan.dst_ns.nsid, true) {
            self.pace.spend(to.len());
        }
        let part = self.parts.begin(Part::Write { slot, to });
        let op = Op::Write {
            offset: self.plan.dst.offset + to.start,
            buf: IoBuf::Pool(buf),
            fua: self.accounting.writes_are_durable(&self.plan),
        };
        submit(part, &self.plan.dst_ns, op);
        Some(Started)
    }

    /// The next read of the segment that is being filled.
    fn start_read(&mut self, submit: &mut impl Submit) -> Option<Started> {
        match self.segments.next_read(&self.plan) {
            Ok(next) => {
                let (slot, Piece { ns, offset, to }, buf) = next?;
                if self.selection.is_memory(ns.nsid, false) {
                    self.pace.spend(to.len());
                }
                let part = self.parts.begin(Part::Read { slot, to });
                submit(part, ns, Op::Read { offset, buf });
                Some(Started)
            }
            Err(Broken(at)) => {
                self.fail(at, Status::INTERNAL_ERROR);
                None
            }
        }
    }

    /// Begins the next segment.
    fn start_next(&mut self, submit: &mut impl Submit) -> Option<Started> {
        if self.segments.is_filling() {
            return None;
        }
        let next = self.next()?;
        if let Some(at) = next.slow_fco(&self.plan) {
            // The choice was refused meanwhile, for another stretch.
            self.fail(at, Status::FAST_COPY_NOT_POSSIBLE.dnr());
            return None;
        }
        match next.choice {
            Choice::Direct(how) => self.start_direct(how, next, submit),
            Choice::Bounce if !self.may_bounce(&next) => None,
            Choice::Bounce => match self.as_pool_copy(next.to) {
                Some((ns, pieces)) => self.start_pool_copy(next, &ns, pieces, submit),
                None => {
                    self.open(next)?;
                    self.start_read(submit)
                }
            },
        }
    }

    fn next(&mut self) -> Option<Next> {
        let idle = self.parts.is_empty() && self.segments.is_empty();
        let next = self.stages.next(&self.plan, &self.selection, &self.pace, &mut self.pool, idle);
        next.unwrap_or_else(|NoMemory| {
            self.starved = true;
            None
        })
    }

    fn may_bounce(&self, next: &Next) -> bool {
        let (bytes, in_flight) = (next.to.len(), self.parts.in_flight());
        if next.held {
            return self.pace.may_hold(bytes, in_flight);
        }
        self.pace.may_bounce(bytes, in_flight, &self.pool, &self.selection)
    }

    /// In one operation without a buffer.
    fn start_direct(&mut self, how: How, next: Next, submit: &mut impl Submit) -> Option<Started> {
        let to = next.to;
        let is_move = how == How::MemMove;
        let may = is_move || self.pace.may_ask_file_system(self.parts.by_file_system());
        // In an ordered stage one at a time: what was refused is still to be read, and nothing may have overwritten it.
        if !may || !self.stages.is_free() && !self.parts.is_empty() {
            return None;
        }
        let (ns, pieces) = one_source(&self.plan, to)?;
        self.stages.take(next);
        if is_move {
            self.pace.spend(to.len());
        }
        let part = self.parts.begin(Part::Direct { how, to });
        let (from, at) = (ns.disk.clone(), self.plan.dst.offset + to.start);
        let op = Op::Copy { from, pieces, at, how, buf: None, durable: false };
        submit(part, &self.plan.dst_ns, op);
        Some(Started)
    }

    /// The source of a stretch and what to read there, if one pool copy can do it: all of it comes from one source.
    fn as_pool_copy(&self, to: Stretch) -> Option<(Arc<Namespace>, Pieces)> {
        let first = piece(&self.plan, to.start, to.end)?;
        if !self.selection.is_pool_copy(first.ns.nsid) || !self.stages.is_free() {
            return None;
        }
        let (ns, pieces) = one_source(&self.plan, to)?;
        Some((ns.clone(), pieces))
    }

    /// Reads and write in one operation.
    fn start_pool_copy(
        &mut self,
        next: Next,
        ns: &Namespace,
        pieces: Pieces,
        submit: &mut impl Submit,
    ) -> Option<Started> {
        let to = next.to;
        let buf = self.memory(to.len())?;
        self.stages.take(next);
        let part = self.parts.begin(Part::PoolCopy { nsid: ns.nsid, to });
        let op = Op::Copy {
            from: ns.disk.clone(),
            pieces,
            at: self.plan.dst.offset + to.start,
            how: How::ReadWrite { or_kernel: self.selection.may_offload() },
            buf: Some(IoBuf::Pool(buf)),
            durable: self.accounting.writes_are_durable(&self.plan),
        };
        submit(part, &self.plan.dst_ns, op);
        Some(Started)
    }

    /// Opens a segment to be bounced, if there is memory for it.
    fn open(&mut self, next: Next) -> Option<()> {
        let Next { to, held, .. } = next;
        let gathered = piece(&self.plan, to.start, to.end).is_none_or(|piece| piece.to != to);
        let buf = if held { self.pool.buffer(to.len()) } else { self.memory(to.len())? };
        self.segments.open(to, buf, gathered, held);
        self.stages.take(next);
        Some(())
    }

    /// Memory for an ordinary segment.
    fn memory(&mut self, bytes: u64) -> Option<Buffer> {
        let buf = self.pool.reserve(bytes);
        self.starved |= buf.is_none();
        buf
    }

    fn start_barrier(&mut self, submit: &mut impl Submit) -> Option<Started> {
        if !self.accounting.begin_barrier() {
            return None;
        }
        let part = self.parts.begin(Part::Flush);
        submit(part, &self.plan.dst_ns, Op::Flush);
        Some(Started)
    }

    fn read_done(&mut self, slot: usize, to: Stretch, buf: Option<IoBuf>) {
        if let Err(Broken(at)) = self.segments.read_done(slot, to, buf) {
            self.fail(at, Status::INTERNAL_ERROR);
        }
    }

    fn write_done(&mut self, slot: usize, to: Stretch) {
        self.accounting.written(&self.plan, to);
        if self.segments.write_done(slot) {
            self.pool.let_go(to.len());
        } else {
            self.pool.release(to.len());
        }
    }

    fn pool_copy_done(&mut self, nsid: u32, to: Stretch, result: Result<(), DiskError>) {
        self.pool.release(to.len());
        match result {
            Ok(()) => self.accounting.written(&self.plan, to),
            Err(DiskError::NoWay) => {
                self.selection.refuse(nsid, How::ReadWrite { or_kernel: false });
                self.stages.bounce(to);
            }
            Err(error) => {
                let read = if let DiskError::Source { at, .. } = error { at } else { 0 };
                self.fail(to.start + read, status::image(&error, Direction::Write));
            }
        }
    }

    fn direct_failed(&mut self, how: How, to: Stretch, error: &DiskError) {
        let fco = self.plan.ranges_in(to).find(|range| range.fco).map(|range| range.at.max(to.start));
        if matches!(error, DiskError::NoWay) {
            if let Some(piece) = piece(&self.plan, to.start, to.end) {
                self.selection.refuse(piece.ns.nsid, how);
            }
            match fco {
                Some(at) => self.fail(at, Status::FAST_COPY_NOT_POSSIBLE.dnr()),
                None => self.stages.retry(to, &self.plan, &self.selection),
            }
        } else if how == How::MemMove || fco.is_some() {
            self.fail(to.start, status::image(error, Direction::Write));
        } else {
            self.stages.bounce(to);
        }
    }

    fn fail(&mut self, at: u64, status: Status) {
        self.accounting.fail(at, status);
    }
}
