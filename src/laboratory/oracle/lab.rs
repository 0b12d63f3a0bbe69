//! The oracle at one worker: what its commands begin and end to the ledgers.
//!
//! A write begins before its first byte can move and ends when its last one has, so that the ledgers never
//! take for past or to come what is under way. Of a command whose end never comes, because its worker failed,
//! the blocks stay in flight: nothing is said of them any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::copies::{CopySource, Expected};
use super::ledger::{Span, Tick};
use super::registry::{Held, Oracle, Watched};
use super::sum::Sum;
use super::verdict::WrittenBy;
use crate::copy::SourceRange;
use crate::laboratory::script::Post;
use crate::laboratory::seam::{Accepted, CommandId, HostData, Lab};
use crate::laboratory::tools::{Place, Tool};
use crate::namespace::{Lbas, Namespace, Overlap};
use crate::spec::commands::NvmCommand;
use crate::spec::copy::CopyCommand;
use crate::spec::{Outcome, Sqe};

/// The tool that has the oracle told.
pub fn tool(oracle: &Arc<Oracle>) -> Tool {
    let oracle = Arc::clone(oracle);
    Tool::for_workers("oracle", Arc::new(move |place| Box::new(Witness::new(place, Arc::clone(&oracle)))))
}

/// See the module docs.
struct Witness {
    place: Place,
    oracle: Arc<Oracle>,
    /// By serial number.
    open: BTreeMap<u64, InFlight>,
    /// Of the Copy that is being started.
    listed: Option<(u64, Vec<SourceRange>)>,
}

/// A command in flight.
struct InFlight {
    watched: Arc<Watched>,
    opc: u8,
    what: What,
    /// Of the memory of what it holds.
    _held: Held,
}

enum What {
    Read {
        since: Tick,
        span: Span,
        data: Box<dyn HostData>,
    },
    /// `sums`: what its host's memory held when it began; empty where it is not known.
    Write {
        began: Tick,
        span: Span,
        data: Option<Box<dyn HostData>>,
        sums: Vec<Option<Sum>>,
    },
    /// `zeroes`: what it leaves, if that is known.
    Clear {
        began: Tick,
        spans: Vec<Span>,
        zeroes: bool,
    },
    Copy {
        expected: Expected,
        elsewhere: Vec<Option<Arc<Watched>>>,
    },
}

impl Witness {
    fn new(place: Place, oracle: Arc<Oracle>) -> Self {
        Self { place, oracle, open: BTreeMap::new(), listed: None }
    }

    /// What a command does, from what its submission says alone.
    fn opened(
        &mut self,
        id: CommandId,
        command: &Accepted<'_>,
        watched: &Arc<Watched>,
    ) -> Option<(What, Held)> {
        let Accepted { sqe, ns, data, freed } = command;
        let span = Span { slba: sqe.slba(), nlb: sqe.nlb().count().into() };
        Some(match NvmCommand::of(sqe.opc)? {
            NvmCommand::Read => {
                let held = self.oracle.hold(span.nlb)?;
                let since = watched.ledger().now();
                (What::Read { since, span, data: data()? }, held)
            }
            NvmCommand::Write => {
                let held = self.oracle.hold(span.nlb);
                let data = held.as_ref().and_then(|_| data());
                let sums = data.as_deref().map_or_else(Vec::new, |data| watched.sums(data, span));
                let began = watched.ledger().begin(&[span]);
                (What::Write { began, span, data, sums }, held.unwrap_or_default())
            }
            NvmCommand::WriteZeroes => {
                let (spans, zeroes) = (vec![span], true);
                let began = watched.ledger().begin(&spans);
                (What::Clear { began, spans, zeroes }, Held::default())
            }
            NvmCommand::Dsm => {
                let span = |lbas: &Lbas| Span { slba: lbas.slba, nlb: lbas.nlb };
                let spans: Vec<_> = freed.iter().map(span).collect();
                let zeroes = ns.disk.unmaps();
                let began = watched.ledger().begin(&spans);
                (What::Clear { began, spans, zeroes }, Held::default())
            }
            NvmCommand::Copy => {
                let ranges = self.listed.take().filter(|(serial, _)| *serial == id.serial)?.1;
                self.copy(sqe, ns, watched, &ranges)
            }
            NvmCommand::Flush | NvmCommand::Compare | NvmCommand::Verify => return None,
        })
    }

    fn copy(&self, sqe: &Sqe, ns: &Namespace, watched: &Watched, ranges: &[SourceRange]) -> (What, Held) {
        let nlb = ranges.iter().map(|range| u64::from(range.nlb)).sum();
        let to = Span { slba: CopyCommand::of(sqe).sdlba(), nlb };
        let Some(held) = self.oracle.hold(nlb) else {
            let began = watched.ledger().begin(&[to]);
            return (What::Clear { began, spans: vec![to], zeroes: false }, Held::default());
        };
        let (mut sources, mut sums, mut elsewhere) = (Vec::new(), Vec::new(), Vec::new());
        for range in ranges {
            let blocks = Span { slba: range.slba, nlb: range.nlb.into() };
            let own = range.snsid.is_none_or(|nsid| nsid == ns.nsid);
            let other = range.snsid.filter(|_| !own).and_then(|nsid| self.oracle.of_nsid(nsid));
            let since = other.as_ref().map_or(Tick::default(), |other| {
                let ledger = other.ledger();
                sums.extend(blocks.each().map(|lba| ledger.sum(lba)));
                ledger.now()
            });
            if !own && other.is_none() {
                sums.extend(blocks.each().map(|_| None));
            }
            sources.push(CopySource { own, blocks, since });
            elsewhere.push(other);
        }
        let in_order = ns.facts.policy.overlap == Overlap::InOrder;
        let expected = Expected::begin(&mut watched.ledger(), sources, to, in_order, sums);
        (What::Copy { expected, elsewhere }, held)
    }

    fn end(&self, id: CommandId, open: InFlight, outcome: &Outcome) {
        let InFlight { watched, opc, what, .. } = open;
        let writer = WrittenBy { controller: self.place.cntlid.get(), id, opc };
        let success = outcome.status.is_success();
        match what {
            What::Read { since, span, data } => {
                if success {
                    let found = watched.sums(&*data, span);
                    watched.judge(since, span, &found);
                }
            }
            What::Write { began, span, data, sums } => {
                // A host may change its memory meanwhile. Which of both was written is not known then.
                let now = data.as_deref().map_or_else(Vec::new, |data| watched.sums(data, span));
                watched.ledger().end(began, &[span], writer, |lba| {
                    let index = (lba - span.slba) as usize;
                    let (before, after) = (sums.get(index)?, now.get(index)?);
                    before.filter(|_| success && before == after)
                });
            }
            What::Clear { began, spans, zeroes } => {
                let mut ledger = watched.ledger();
                let zero = ledger.zero();
                ledger.end(began, &spans, writer, |_| (success && zeroes).then_some(zero));
            }
            What::Copy { mut expected, elsewhere } => {
                if !success {
                    expected.keep(outcome.dw0 as usize);
                }
                for (at, other) in elsewhere.iter().enumerate() {
                    if let Some(other) = other {
                        expected.doubt_elsewhere(at, &other.ledger());
                    }
                }
                let mut ledger = watched.ledger();
                expected.doubt(&ledger);
                ledger.end(expected.began, &[expected.to], writer, |lba| expected.sum(lba));
            }
        }
    }
}

impl Lab for Witness {
    fn listed(&mut self, id: CommandId, ranges: &[SourceRange]) {
        self.listed = Some((id.serial, ranges.to_vec()));
    }

    fn accepted(&mut self, id: CommandId, command: Accepted<'_>) {
        let Some(watched) = self.oracle.of(command.ns) else { return };
        if let Some((what, held)) = self.opened(id, &command, &watched) {
            self.open.insert(id.serial, InFlight { watched, opc: command.sqe.opc, what, _held: held });
        }
    }

    fn over(&mut self, id: CommandId, outcome: &Outcome, _: Option<Post>) {
        if let Some(open) = self.open.remove(&id.serial) {
            self.end(id, open, outcome);
        }
    }

    fn failed(&mut self) {
        self.open.clear();
    }
}
