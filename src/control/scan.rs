//! Reads a namespace for the oracle, which judges what it holds.
//!
//! Commands go on meanwhile: of a block that one of them writes while it is read, nothing is said.

use std::time::{Duration, Instant};

use crate::disk::{Buffer, IoBuf, Lane, LaneKind, Op, Tag};
use crate::laboratory::oracle::{Judged, Oracle};
use crate::namespace::Namespace;

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;

/// How long an image may take for a piece.
const PATIENCE: Duration = Duration::from_secs(10);

/// Judges all blocks of `ns` that are watched; `None` when none is.
///
/// # Errors
/// The image cannot be read, or does not answer.
pub fn scan(oracle: &Oracle, ns: &Namespace) -> Result<Option<Judged>, String> {
    let mut lane = Lane::new(LaneKind::Threads).map_err(|error| format!("no threads to read by: {error}"))?;
    let mut all = Judged::default();
    let step = PIECE >> ns.facts.lbads;
    let mut slba = 0;
    while slba < ns.facts.nsze {
        let nlb = step.min(ns.facts.nsze - slba);
        let Some(look) = oracle.look(ns, slba, nlb) else {
            return Ok((slba > 0).then_some(all));
        };
        let bytes = read(ns, slba << ns.facts.lbads, nlb << ns.facts.lbads, &mut lane)?;
        all.add(look.at(bytes.ours().unwrap_or_default()));
        slba += nlb;
    }
    Ok(Some(all))
}

fn read(ns: &Namespace, offset: u64, len: u64, lane: &mut Lane) -> Result<IoBuf, String> {
    let failed = |why: &dyn std::fmt::Display| format!("{}, byte {offset}: {why}", ns.disk.name());
    let len = usize::try_from(len).map_err(|error| failed(&error))?;
    let deadline = Instant::now() + PATIENCE;
    ns.disk.start(Tag(0), Op::Read { offset, buf: IoBuf::Pool(Buffer::zeroed(len)) }, lane);
    let mut done = Vec::new();
    loop {
        lane.reap(&mut done);
        if let Some(done) = done.pop() {
            done.result.map_err(|error| failed(&error))?;
            return done.buf.ok_or_else(|| failed(&"its buffer is lost"));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(&"it does not answer"));
        }
        lane.wait(Some(left));
    }
}
