//! Taking commands out of submission queues.

use std::time::Instant;

use super::core::Core;
use super::slots::Command;
use crate::nvme_ctrl::io::{self, Outcome};

/// Commands taken from one queue before the next one has its turn.
const BURST: usize = 32;

/// Fetches from every queue in turn, at most [`BURST`] each. True when a command was fetched.
pub(super) fn fetch(core: &mut Core) -> bool {
    let mut fetched = false;
    let queues = core.sqs.len();
    core.rotation = core.rotation.wrapping_add(1);
    for step in 0..queues {
        // A failure on the way forgets all queues, so the count is looked at anew.
        let at = core.rotation.wrapping_add(step) % queues;
        if let Some(cqid) = waiting(core, at) {
            // Once for all of them: the host's cache line.
            core.look_at_head(cqid);
        }
        for _ in 0..BURST {
            if at >= core.sqs.len() || !fetch_one(core, at) {
                break;
            }
            fetched = true;
        }
    }
    fetched
}

/// Could [`fetch`] do anything?
pub(super) fn has_work(core: &mut Core) -> bool {
    (0..core.sqs.len()).any(|at| can_fetch(core, at)) && !core.slots.is_full()
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
    let has_room = |core: &Core| core.cqs.iter().any(|cq| cq.ring.qid == cqid && cq.ring.has_room());
    if !has_room(core) {
        core.look_at_head(cqid);
    }
    has_room(core)
}

/// Fetches one command from queue `at`. False when there is none, or no room for it or its completion.
fn fetch_one(core: &mut Core, at: usize) -> bool {
    if core.slots.is_full() || !can_fetch(core, at) {
        return false;
    }
    // The table is looked at after the doorbell: a mapping the host made before ringing is in it.
    let memory = core.memory.load();
    let sq = &mut core.sqs[at];
    let (sqid, cqid) = (sq.ring.qid, sq.ring.cqid);
    let sqe = match sq.ring.fetch(memory) {
        Ok(sqe) => sqe,
        Err(error) => {
            core.fatal(&format!("submission queue {sqid}: {error}"));
            return false;
        }
    };
    let cid = sqe.cid.get();
    if let Some(cq) = core.cqs.iter_mut().find(|cq| cq.ring.qid == cqid) {
        cq.ring.reserve();
    }
    match io::start(&core.shared, memory, &core.bounce, &sqe) {
        Ok(task) => {
            sq.in_flight += 1;
            let command = Command {
                sqid,
                cqid,
                cid,
                opc: sqe.opc,
                nsid: sqe.nsid.get(),
                slba: sqe.slba(),
                since: Instant::now(),
                task,
                ready: false,
                orphan: false,
            };
            core.admit(command);
        }
        Err(status) => {
            log::debug!("sqid {sqid} cid {cid:#x}: refused: {status:?}: {sqe:x?}");
            core.post(sqid, cqid, cid, Outcome::of(status));
        }
    }
    true
}
