//! Fetching under the eyes of a laboratory. No command is done at once and none goes without a slot, for the laboratory
//! is to see each of them begin and end.

use super::begin::begin;
use super::core::Core;
use super::rotation::BURST;
use crate::block::Work;
use crate::laboratory::{CommandId, Fate};
use crate::memory::DmaMap;
use crate::nvme_ctrl::io::{self, Context, Task};
use crate::spec::Outcome;

/// As [`fetch`](super::fetch), from one queue.
///
/// # Errors
/// A queue's memory is not there: what to say of the controller's end.
pub(super) fn burst(core: &mut Core, at: usize) -> Result<bool, String> {
    let Core { shared, memory, namespaces, sqs, cqs, slots, ready, bounce, work, lab, .. } = core;
    let Some(lab) = lab else { return Ok(false) };
    // The table is looked at after the doorbell: a mapping the host made before ringing is in it.
    let memory: &DmaMap = memory.load();
    let context = Context { shared, namespaces: namespaces.load(), memory, at_once: false };
    let queues = sqs.len();
    let Some(sq) = sqs.get_mut(at) else { return Ok(false) };
    let Some(cq) = cqs.find(sq.ring.cqid) else { return Ok(false) };
    let (tail, sqid) = (sq.tail.value(), sq.ring.qid);
    let mut fetched = 0;
    while fetched < BURST
        && work.done() < Work::FETCH
        && slots.room(sq.in_flight, queues) > 0
        && !sq.ring.is_empty(tail)
        && cq.ring.has_room()
    {
        let sqe = sq.ring.fetch(memory).map_err(|error| format!("submission queue {sqid}: {error}"))?;
        cq.ring.reserve();
        fetched += 1;
        work.charge(Work::COMMAND);
        bounce.others_are_at_work();
        let id = CommandId { sqid, cid: sqe.cid.get() };
        let ns = context.namespaces.get(sqe.nsid.get()).ok();
        let task = match lab.fetched(id, &sqe, ns.map(|ns| &**ns)) {
            Fate::Pass => io::start(context, bounce, work, &sqe),
            Fate::End(status) => Err(status),
        };
        if let Ok(Task::Copy(copy)) = &task {
            lab.planned(id, copy.plan());
        }
        let task = task.unwrap_or_else(|status| Task::Over(Outcome::of(status)));
        begin(sq, cq, slots, ready, memory, &sqe, Ok(task))?;
    }
    Ok(fetched > 0)
}
