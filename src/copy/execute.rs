//! Runs a plan by reading into bounce buffers and writing them out. A state machine without I/O.

use std::sync::Arc;

use super::bounce::{Bounce, Pool};
use super::cut::{Account, Cutter, Stretch};
use super::plan::CopyPlan;
use super::status::{Side, status};
use crate::backend::{BackendError, IoBuf, Op};
use crate::namespace::Namespace;
use crate::spec::Status;

/// Bounds of one Copy in execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecOptions {
    /// Bytes of one write at most; rounded down to blocks, one block at least.
    pub segment_bytes: u64,
    /// Operations in flight at most, one at least.
    pub window: u32,
    /// Bytes of bounce buffers at most, those kept for reuse included; two blocks at least.
    pub budget: u64,
}

impl Default for ExecOptions {
    /// Four segments of 1 MiB at a time; the wider window is for short ranges, whose reads are small.
    fn default() -> Self {
        Self { segment_bytes: 1 << 20, window: 16, budget: 4 << 20 }
    }
}

impl ExecOptions {
    /// The bounds that are kept for blocks of this size out of `bounce`: as asked for, but a gathered block (once in
    /// its own buffer, once in the joined one) always fits.
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

/// One Copy in execution.
///
/// The destination is cut into segments; each is read (in one piece, or gathered from short ranges into one buffer) and
/// then written at once. Under [`super::Overlap::Reject`] no segment reads what another writes, so they run in any
/// order.
///
/// FUA: when one write does it all, that write carries it; otherwise a Flush follows the last write, for one barrier is
/// cheaper than a device flush per segment. A Copy with such a barrier that fails reports range 0: until the barrier
/// nothing is known to be durable, and without that no range is done.
#[derive(Debug)]
pub struct CopyTask {
    plan: CopyPlan,
    options: ExecOptions,
    cutter: Cutter,
    account: Account,
    /// By slot; a slot is taken from the first read of a segment to the end of its write.
    segments: Vec<Option<Segment>>,
    /// The slot of the segment that has reads to come.
    filling: Option<usize>,
    /// By part number: what is in flight.
    parts: Vec<Option<Part>>,
    in_flight: u32,
    pool: Pool,
    /// The last poll found no bounce memory.
    starved: bool,
    barrier: Barrier,
    /// The failure that lies lowest in the destination, and where.
    failure: Option<(u64, Status)>,
    aborted: bool,
    finished: bool,
}

#[derive(Debug)]
struct Segment {
    to: Stretch,
    /// What will be written: absent while the one read or the write holds it.
    buf: Option<Box<[u8]>>,
    /// Several pieces, each read into a buffer of its own first.
    gathered: bool,
    reads_in_flight: u32,
}

#[derive(Clone, Copy, Debug)]
enum Part {
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
    pub fn new(plan: CopyPlan, options: ExecOptions, bounce: &Bounce) -> Self {
        let options = options.effective(plan.dst_ns.facts.block_size(), bounce);
        let one_write = plan.dst.len <= options.segment_bytes;
        Self {
            account: Account::new(&plan),
            options,
            cutter: Cutter::default(),
            segments: Vec::new(),
            filling: None,
            parts: Vec::new(),
            in_flight: 0,
            pool: Pool::new(bounce, options.budget),
            starved: false,
            barrier: if plan.fua && !one_write { Barrier::Pending } else { Barrier::NotNeeded },
            failure: None,
            aborted: false,
            finished: false,
            plan,
        }
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
        if !stopped {
            while self.in_flight < self.options.window && self.start_one(submit) {}
        }
        if self.in_flight > 0 || self.finished || self.starved {
            return None;
        }
        self.finished = true;
        Some(self.outcome())
    }

    /// Takes the end of a part, with the buffer of a Read or Write.
    pub fn done(&mut self, part: u32, result: Result<(), BackendError>, buf: Option<IoBuf>) {
        let Some(what) = self.parts.get_mut(part as usize).and_then(Option::take) else {
            debug_assert!(false, "part {part} is not in flight");
            return;
        };
        self.in_flight -= 1;
        let buf = match buf {
            Some(IoBuf::Pool(buf)) => Some(buf),
            _ => None,
        };
        match what {
            Part::Read { slot, to } => match result {
                Ok(()) => self.read_done(slot, to, buf),
                Err(error) => self.fail(to.start, status(Side::Source, &error)),
            },
            Part::Write { slot, to } => match result {
                Ok(()) => self.write_done(slot, to, buf),
                Err(error) => self.fail(to.start, status(Side::Destination, &error)),
            },
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

    /// Starts one operation, if there is one to start. Writes first: they give memory back.
    fn start_one(&mut self, submit: &mut impl FnMut(u32, &Arc<Namespace>, Op)) -> bool {
        self.start_write(submit) || self.start_read(submit) || self.start_barrier(submit)
    }

    fn start_write(&mut self, submit: &mut impl FnMut(u32, &Arc<Namespace>, Op)) -> bool {
        let filling = self.filling;
        let ready = self.segments.iter_mut().enumerate().find_map(|(slot, segment)| {
            let segment = segment.as_mut().filter(|s| Some(slot) != filling && s.reads_in_flight == 0)?;
            Some((slot, segment.to, segment.buf.take()?))
        });
        let Some((slot, to, buf)) = ready else {
            return false;
        };
        let part = self.part(Part::Write { slot, to });
        let op = Op::Write {
            offset: self.plan.dst.offset + to.start,
            buf: IoBuf::Pool(buf),
            fua: self.plan.fua && self.barrier == Barrier::NotNeeded,
        };
        submit(part, &self.plan.dst_ns, op);
        true
    }

    fn start_read(&mut self, submit: &mut impl FnMut(u32, &Arc<Namespace>, Op)) -> bool {
        let Some(slot) = self.filling.or_else(|| self.open_segment()) else {
            return false;
        };
        let Some(Some(segment)) = self.segments.get_mut(slot) else {
            return false;
        };
        let Some(piece) = self.cutter.piece(&self.plan, segment.to.end) else {
            return false;
        };
        let (to, offset, ns) = (piece.to, piece.offset, piece.ns.clone());
        let buf = match segment.buf.take_if(|_| !segment.gathered) {
            Some(whole) => whole,
            None => vec![0; to.len() as usize].into_boxed_slice(),
        };
        segment.reads_in_flight += 1;
        if to.end == segment.to.end {
            self.filling = None;
        }
        let part = self.part(Part::Read { slot, to });
        submit(part, &ns, Op::Read { offset, buf: IoBuf::Pool(buf) });
        true
    }

    /// Opens the next segment, if there is one and memory for it.
    fn open_segment(&mut self) -> Option<usize> {
        let to = self.cutter.segment(&self.plan, self.options.segment_bytes)?;
        let gathered = !self.cutter.is_one_piece(&self.plan, to);
        let buf = self.pool.reserve(reservation(to, gathered), to.len());
        if buf.is_none() {
            self.starved = true;
            return None;
        }
        let slot = free_slot(&mut self.segments);
        self.segments[slot] = Some(Segment { to, buf, gathered, reads_in_flight: 0 });
        self.filling = Some(slot);
        Some(slot)
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

    fn read_done(&mut self, slot: usize, to: Stretch, buf: Option<Box<[u8]>>) {
        let buf = buf.filter(|buf| buf.len() as u64 == to.len());
        let (Some(Some(segment)), Some(buf)) = (self.segments.get_mut(slot), buf) else {
            return self.fail(to.start, Status::INTERNAL_ERROR);
        };
        segment.reads_in_flight -= 1;
        if !segment.gathered {
            segment.buf = Some(buf);
            return;
        }
        let from = (to.start - segment.to.start) as usize;
        let place = segment.buf.as_mut().and_then(|joined| joined.get_mut(from..from + buf.len()));
        match place {
            Some(place) => place.copy_from_slice(&buf),
            None => return self.fail(to.start, Status::INTERNAL_ERROR),
        }
        if segment.reads_in_flight == 0 && self.filling != Some(slot) {
            self.pool.release(segment.to.len());
        }
    }

    fn write_done(&mut self, slot: usize, to: Stretch, buf: Option<Box<[u8]>>) {
        self.account.written(&self.plan, to);
        if let Some(place) = self.segments.get_mut(slot) {
            *place = None;
        }
        match buf {
            Some(buf) if buf.len() as u64 == to.len() => self.pool.keep(buf),
            _ => self.pool.release(to.len()),
        }
    }

    /// Keeps the failure that lies lowest: it is the one DW0 speaks of.
    fn fail(&mut self, at: u64, status: Status) {
        if self.failure.is_none_or(|(lowest, _)| at < lowest) {
            self.failure = Some((at, status));
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
                debug_assert!(self.pool.is_idle() && self.segments.iter().all(Option::is_none));
                Outcome { status: Status::SUCCESS, dw0: 0 }
            }
            (incomplete, Some((_, status))) => Outcome { status, dw0: incomplete.unwrap_or(0) },
            (Some(dw0), None) if self.aborted => Outcome { status: Status::ABORT_REQUESTED, dw0 },
            (Some(dw0), None) => Outcome { status: Status::INTERNAL_ERROR, dw0 },
        }
    }
}

/// Bytes that a segment may need at once: gathered, each byte lies in its piece's buffer and in the joined one.
fn reservation(to: Stretch, gathered: bool) -> u64 {
    if gathered { 2 * to.len() } else { to.len() }
}

/// The first free slot, made if need be.
fn free_slot<T>(slots: &mut Vec<Option<T>>) -> usize {
    slots.iter().position(Option::is_none).unwrap_or_else(|| {
        slots.push(None);
        slots.len() - 1
    })
}
