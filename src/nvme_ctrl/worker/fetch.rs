//! Taking commands out of submission queues, and doing at once what can be done at once.

use std::time::Instant;

use smallvec::SmallVec;

use super::begin::{begin, start};
use super::core::Core;
use super::rings::Sq;
use super::rotation::BURST;
use super::watched;
use crate::block::Work;
use crate::disk::CachedRead;
use crate::memory::DmaMap;
use crate::nvme_ctrl::io::{self, Context, Now, Task};
use crate::spec::Sqe;
use crate::spec::commands::NvmCommand;

/// Bytes moved for one queue before the next one has its turn, and what it takes to decode its commands; a
/// transfer that is begun is ended.
const BURST_BYTES: u64 = 512 << 10;

/// Commands that are looked at before the first of them is done: its data is on its way to the processor
/// while the others are decoded. No more, for the host shall have completions to work on while we work.
const AHEAD: usize = 4;

/// The same of Reads of files that are tried, which the lane makes with one call: what that costs is spread
/// over them. No more than this, nor than half of what waits, for the host shall have the others' completions
/// to work on.
const TRIES: usize = 16;

/// Bytes of such a batch, from which on it takes no more: long ones gain nothing by it.
const TRIES_BYTES: u64 = 64 << 10;

/// Fetches from every queue, at most a burst each, beginning with the one that has gone without for longest.
/// True when a command was fetched.
pub(super) fn fetch(core: &mut Core) -> bool {
    let mut fetched = false;
    let mut place = 0;
    for _ in 0..core.sqs.len() {
        // The others are the first in the next turn.
        if core.work.done() >= Work::FETCH {
            break;
        }
        // A failure on the way forgets all queues: then none is there.
        let Some(at) = core.rotation.get(place).and_then(|qid| core.sqs.position(qid)) else { break };
        let mut served = false;
        if let Some(cqid) = waiting(core, at) {
            // Once for all of them: the host's cache line.
            core.look_at_head(cqid);
            let done = if core.labs.is_some() { watched::burst(core, at) } else { burst(core, at) };
            match done {
                Ok(any) => {
                    served = any;
                    if any && let Some(cq) = core.cqs.find(cqid) {
                        cq.owed.sent(cq.ring.head(), Instant::now);
                    }
                }
                Err(why) => core.fatal(&why),
            }
        }
        fetched |= served;
        if served {
            core.rotation.served(place);
        } else {
            place += 1;
        }
    }
    fetched
}

/// Could [`fetch`] do anything?
pub(super) fn has_work(core: &mut Core) -> bool {
    (0..core.sqs.len()).any(|at| queue_has_work(core, at))
}

/// Could [`fetch`] do anything for the SQ at `at`?
pub(super) fn queue_has_work(core: &mut Core, at: usize) -> bool {
    let is_busy = core.labs.is_some() && core.sqs.get(at).is_some_and(Sq::is_busy);
    !is_busy && can_fetch(core, at) && (has_room(core, at) || needs_no_slot(core, at))
}

/// The completion queue of the SQ at `at`, if a command waits in that one.
fn waiting(core: &mut Core, at: usize) -> Option<u16> {
    let sq = core.sqs.get(at).filter(|sq| sq.deleting.is_none())?;
    if sq.ring.is_empty(sq.tail.value()) {
        core.look_at_tail(at);
    }
    let sq = core.sqs.get(at)?;
    (!sq.ring.is_empty(sq.tail.value())).then_some(sq.ring.cqid)
}

fn can_fetch(core: &mut Core, at: usize) -> bool {
    let Some(cqid) = waiting(core, at) else { return false };
    let has_room = |core: &mut Core| core.cqs.find(cqid).is_some_and(|cq| cq.ring.has_room());
    if !has_room(core) {
        core.look_at_head(cqid);
    }
    has_room(core)
}

/// Is there a slot for a command of the SQ at `at`, and memory?
fn has_room(core: &Core, at: usize) -> bool {
    core.sqs.get(at).is_some_and(|sq| core.slots.room(sq.in_flight, core.sqs.len()) > 0)
}

/// Can the next command of the SQ at `at` be done at once?
fn needs_no_slot(core: &mut Core, at: usize) -> bool {
    let Core { shared, memory, namespaces, sqs, labs: None, .. } = core else { return false };
    let memory = memory.load();
    let context = Context { shared, namespaces: namespaces.load(), memory, watched: None };
    let sqe = sqs.get(at).and_then(|sq| sq.ring.peek(memory).ok());
    sqe.is_some_and(|sqe| io::now(context, &sqe, false).is_some())
}

/// Fetches from the SQ at `at` until it is empty, its completion queue full, no slot left, or the burst over.
/// True when a command was fetched.
///
/// # Errors
/// A queue's memory is not there: what to say of the controller's end.
fn burst(core: &mut Core, at: usize) -> Result<bool, String> {
    let Core { shared, memory, namespaces, sqs, cqs, slots, ready, bounce, work, tally, lane, .. } = core;
    // The table is looked at after the doorbell: a mapping the host made before ringing is in it.
    let memory: &DmaMap = memory.load();
    let context = Context { shared, namespaces: namespaces.load(), memory, watched: None };
    let queues = sqs.len();
    let Some(sq) = sqs.get_mut(at) else { return Ok(false) };
    let Some(cq) = cqs.find(sq.ring.cqid) else { return Ok(false) };
    let (tail, sqid) = (sq.tail.value(), sq.ring.qid);
    let (mut fetched, mut bytes, mut stuck) = (0, 0, false);
    let mut room = slots.room(sq.in_flight, queues);
    // Of decoding.
    let decoding = Work::default();
    let mut batch: SmallVec<[Now<'_>; TRIES]> = SmallVec::new();
    // Of those in the batch that may fail: then they go the usual way.
    let mut tried: SmallVec<[Sqe; TRIES]> = SmallVec::new();
    let mut tries = None;
    loop {
        let (mut ahead, begun) = (AHEAD, bytes);
        while batch.len() < ahead
            && fetched < BURST
            && bytes < BURST_BYTES
            && !stuck
            && !sq.ring.is_empty(tail)
            && cq.ring.has_room()
        {
            let sqe = sq.ring.peek(memory).map_err(|error| format!("submission queue {sqid}: {error}"))?;
            // What is tried may need a slot after all; so may each that waits in the batch.
            let has_slot = tried.len() < room;
            let now = io::now(context, &sqe, has_slot);
            if now.is_none() && !has_slot {
                // It stays where it is, and is read anew when a slot is free.
                stuck = true;
                break;
            }
            sq.ring.advance();
            cq.ring.reserve();
            fetched += 1;
            if sqe.opc != NvmCommand::Copy.opcode() {
                bounce.others_are_at_work();
            }
            if let Some(now) = now {
                bytes += now.bytes();
                if now.tries() {
                    let tries = *tries.get_or_insert_with(|| {
                        // With this one.
                        let half = sq.ring.left(tail).div_ceil(2);
                        let tries = half.clamp(1, TRIES as u32);
                        sq.ring.prefetch(memory, tries - 1);
                        tries as usize
                    });
                    tried.push(sqe);
                    ahead = if bytes - begun < TRIES_BYTES { tries } else { 0 };
                } else {
                    now.prefetch();
                }
                batch.push(now);
                continue;
            }
            let task = start(context, bounce, &decoding, sqid, &sqe);
            bytes += decoding.take();
            if let Ok(Task::Over(outcome)) = task {
                cq.post(&sq.ring, sqe.cid.get(), outcome, memory)?;
                continue;
            }
            begin(sq, cq, slots, ready, memory, &sqe, task)?;
            room = slots.room(sq.in_flight, queues);
        }
        if batch.is_empty() {
            work.charge(bytes + fetched as u64 * Work::COMMAND);
            return Ok(fetched > 0);
        }
        if tried.is_empty() {
            for now in batch.drain(..) {
                cq.post(&sq.ring, now.cid, now.run(tally, shared, sqid), memory)?;
            }
            continue;
        }
        let mut filled: SmallVec<[bool; TRIES]> = SmallVec::new();
        let mut reads: SmallVec<[CachedRead<'_>; TRIES]> =
            batch.iter().filter(|now| now.tries()).filter_map(Now::to_try).collect();
        if reads.len() == tried.len() {
            lane.read_cached(&mut reads);
            filled.extend(reads.iter().map(CachedRead::is_filled));
        }
        filled.resize(tried.len(), false);
        drop(reads);
        let mut ends = tried.drain(..).zip(filled);
        for now in batch.drain(..) {
            let end = if now.tries() { ends.next() } else { None };
            let outcome = match end {
                None => now.run(tally, shared, sqid),
                Some((sqe, filled)) => match filled.then(|| now.filled(tally)).flatten() {
                    Some(outcome) => outcome,
                    None => {
                        let task = start(context, bounce, &decoding, sqid, &sqe);
                        begin(sq, cq, slots, ready, memory, &sqe, task)?;
                        room = slots.room(sq.in_flight, queues);
                        continue;
                    }
                },
            };
            cq.post(&sq.ring, now.cid, outcome, memory)?;
        }
    }
}
