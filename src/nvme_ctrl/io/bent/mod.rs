//! A command that meets a laboratory's [`Script`]: it is held, its data bent, its end another. A state
//! machine around the one that carries the command out, of which that one knows nothing.

mod kind;
mod pieces;

use std::sync::Arc;
use std::time::Instant;

pub use self::kind::{Data, Direction};
use self::pieces::Pieces;
use crate::block::{Issue, Work};
use crate::copy::Written;
use crate::disk::{DiskError, IoBuf, Moved, Op};
use crate::laboratory::{Post, Script, Until};
use crate::namespace::Namespace;
use crate::nvme_ctrl::shared::Shared;
use crate::spec::{Outcome, Status};

/// What carries a command out.
pub trait Machine {
    /// Issues what can be issued now. `Some` once everything has ended.
    fn poll(&mut self, shared: &Shared, work: &Work, issue: &mut Issue<'_>) -> Option<Outcome>;
    /// Takes the completion of operation `part`.
    fn done(&mut self, part: u32, result: Result<Moved, DiskError>, buf: Option<IoBuf>) -> Option<Written>;
    /// Asks it to end early. True when it may.
    fn abort(&mut self) -> bool;
    /// Does a poll spend the worker's own time on moving bytes?
    fn moves_memory(&self) -> bool;
    /// Bytes that it has allocated, or will have.
    fn memory(&self) -> usize;
    /// Does it wait for bounce memory that others hold?
    fn is_starved(&self) -> bool;
}

/// See the module docs.
#[derive(Debug)]
pub struct Bent<M> {
    machine: M,
    script: Script,
    stage: Stage,
    data: Option<Data>,
    /// Where the script looks at the data.
    pieces: Option<Pieces>,
    /// Nothing is held any more.
    aborted: bool,
    /// Its status is the script's.
    forced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has not begun.
    Begin,
    Run,
    /// It has ended like this, and its host does not know yet.
    End(Outcome),
}

impl<M: Machine> Bent<M> {
    /// `machine`'s command is to meet `script`. `data`: what the command moves, where that is known.
    pub fn new(machine: M, mut script: Script, data: Option<Data>) -> Self {
        let bends = script.bends_data() && !script.idle;
        let pieces = data.as_ref().filter(|_| bends).map(|data| Pieces::new(data.clone(), &mut script));
        Self { machine, script, stage: Stage::Begin, data, pieces, aborted: false, forced: false }
    }

    /// As the machine's.
    pub fn poll(&mut self, shared: &Shared, work: &Work, issue: &mut Issue<'_>) -> Option<Outcome> {
        if self.stage == Stage::Begin {
            if self.aborted {
                return Some(Outcome::of(Status::ABORT_REQUESTED));
            }
            if !self.script.begin.is_over(Instant::now()) {
                return None;
            }
            self.script.begin = Until::Now;
            self.stage = Stage::Run;
        }
        if self.stage == Stage::Run {
            let outcome = self.run(shared, work, issue)?;
            self.stage = Stage::End(self.bend(outcome));
        }
        let Stage::End(outcome) = self.stage else { return None };
        (self.aborted || self.script.end.is_over(Instant::now())).then_some(outcome)
    }

    fn run(&mut self, shared: &Shared, work: &Work, issue: &mut Issue<'_>) -> Option<Outcome> {
        let Self { machine, script, pieces, .. } = self;
        if script.idle {
            return Some(Outcome::of(Status::SUCCESS));
        }
        let Some(pieces) = pieces else { return machine.poll(shared, work, issue) };
        loop {
            let mut take = |part: u32, ns: &Arc<Namespace>, op: Op| pieces.take(part, ns, op);
            let outcome = machine.poll(shared, work, &mut take);
            if outcome.is_some() {
                return outcome;
            }
            let over = pieces.take_over();
            if over.is_empty() {
                pieces.issue(Instant::now(), issue);
                return None;
            }
            for (part, result, buf) in over {
                machine.done(part, result, buf);
            }
        }
    }

    fn bend(&mut self, outcome: Outcome) -> Outcome {
        // Who was aborted on the way has not done what the script says.
        if self.aborted && outcome.status == Status::ABORT_REQUESTED {
            return outcome;
        }
        self.forced = self.script.ending.status.is_some();
        self.script.ending.of(outcome, &self.script.lands, self.data.as_ref().map(|data| &data.layout))
    }

    /// As the machine's.
    pub fn done(
        &mut self,
        part: u32,
        result: Result<Moved, DiskError>,
        buf: Option<IoBuf>,
    ) -> Option<Written> {
        let Some(pieces) = &mut self.pieces else { return self.machine.done(part, result, buf) };
        let whole = pieces.done(part, result, buf)?;
        let written = self.machine.done(whole.part, whole.result, whole.buf);
        written.filter(|_| whole.landed)
    }

    /// As the machine's. What is held goes on, or ends.
    pub fn abort(&mut self) -> bool {
        self.aborted = true;
        match self.stage {
            Stage::Begin => true,
            Stage::Run => {
                if let Some(pieces) = &mut self.pieces {
                    pieces.hold_no_more();
                }
                self.machine.abort()
            }
            Stage::End(_) => false,
        }
    }

    /// Does it wait for something that no operation's end brings?
    pub fn is_held(&self) -> bool {
        match self.stage {
            Stage::Begin | Stage::End(_) => !self.aborted,
            Stage::Run => self.pieces.as_ref().is_some_and(Pieces::is_held),
        }
    }

    /// Has it come?
    pub fn may_go_on(&self, now: Instant) -> bool {
        self.until().is_none_or(|until| self.aborted || until.is_over(now))
    }

    /// When it comes by itself, if it does.
    pub fn due(&self) -> Option<Instant> {
        self.until().and_then(Until::due)
    }

    fn until(&self) -> Option<&Until> {
        match self.stage {
            Stage::Begin => Some(&self.script.begin),
            Stage::Run => self.pieces.as_ref().map(Pieces::until),
            Stage::End(_) => Some(&self.script.end),
        }
    }

    /// What is to become of its completion.
    pub fn post(&self) -> Post {
        // One that was aborted before it began has met nothing.
        if self.stage == Stage::Begin { Post::Once } else { self.script.post }
    }

    /// More, if the script says what it is to be.
    pub fn more(&self) -> Option<bool> {
        self.script.ending.more.filter(|_| self.forced)
    }

    /// Is its status the script's?
    pub fn is_forced(&self) -> bool {
        self.forced
    }

    /// Does a poll spend the worker's own time on moving bytes?
    pub fn moves_memory(&self) -> bool {
        !self.script.idle && self.machine.moves_memory()
    }

    /// Bytes that it has allocated, or will have.
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.machine.memory()
    }

    /// Does it wait for bounce memory that others hold?
    pub fn is_starved(&self) -> bool {
        self.stage == Stage::Run && self.machine.is_starved()
    }

    /// It has ended and is not told yet: `machine` takes the place of what held guest memory.
    pub fn let_go(&mut self, machine: M) {
        self.machine = machine;
        self.pieces = None;
    }
}
