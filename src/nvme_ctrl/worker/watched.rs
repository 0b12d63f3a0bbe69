//! Fetching under the eyes of laboratories. No command is done at once and none goes without a slot, for they are to see
//! each of them begin and end.

use std::time::Instant;

use super::begin::enter;
use super::core::Core;
use super::rotation::BURST;
use crate::block::Work;
use crate::copy::{Reject, rule};
use crate::laboratory::{Accepted, CommandId, Fate, Fetched, HostData, Lab, Labs, Script};
use crate::memory::{Access, DmaMap, GuestBuf};
use crate::namespace::Namespace;
use crate::nvme_ctrl::io::{self, Context, Notes, Task};
use crate::nvme_ctrl::shared::Shared;
use crate::nvme_ctrl::transfer;
use crate::spec::commands::NvmCommand;
use crate::spec::{Outcome, Sqe, Status};

/// As [`fetch`](super::fetch), from one queue.
///
/// # Errors
/// A queue's memory is not there: what to say of the controller's end.
pub(super) fn burst(core: &mut Core, at: usize) -> Result<bool, String> {
    let Core { shared, memory, namespaces, sqs, cqs, slots, ready, bounce, work, labs, serial, .. } = core;
    let Some(labs) = labs else { return Ok(false) };
    // The table is looked at after the doorbell: a mapping the host made before ringing is in it.
    let memory: &DmaMap = memory.load();
    let namespaces = namespaces.load();
    let queues = sqs.len();
    let Some(sq) = sqs.get_mut(at) else { return Ok(false) };
    let Some(cq) = cqs.find(sq.ring.cqid) else { return Ok(false) };
    let (tail, sqid) = (sq.tail.value(), sq.ring.qid);
    if sq.is_busy() {
        return Ok(false);
    }
    sq.busy = None;
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
        *serial += 1;
        let id = CommandId { serial: *serial, sqid, cid: sqe.cid.get() };
        let notes = Notes::default();
        let context = Context { shared, namespaces, memory, watched: Some(&notes) };
        let ns = namespaces.get(sqe.nsid.get()).ok();
        let depth = sq.in_flight.commands + 1;
        let fate = labs.fetched(id, Fetched { sqe: &sqe, ns: ns.map(|ns| &**ns), depth });
        let (task, script) = match fate {
            Fate::Pass => (io::start(context, bounce, work, &sqe), None),
            Fate::End(status) => {
                notes.refused(by_laboratory(status));
                (Err(status), None)
            }
            Fate::Script(script) if script.idle => {
                let status = script.ending.status.unwrap_or(Status::SUCCESS);
                notes.refused(by_laboratory(status));
                (Err(status), Some(script))
            }
            Fate::Script(script) => (io::start(context, bounce, work, &sqe), Some(script)),
        };
        let planned = if sqe.opc == NvmCommand::Copy.opcode() {
            tell(labs, id, &sqe, &notes, &task)
        } else {
            Fate::Pass
        };
        let task = task.unwrap_or_else(|status| Task::Over(Outcome::of(status)));
        let (task, script) = match (script, planned) {
            (Some(script), _) | (None, Fate::Script(script)) => (task, Some(script)),
            (None, Fate::Pass) => (task, None),
            (None, Fate::End(status)) => {
                labs.refused(id, &by_laboratory(status));
                (Task::Over(Outcome::of(status)), None)
            }
        };
        if let (Some(ns), false) = (ns, matches!(task, Task::Over(_))) {
            let data = || host_data(shared, memory, work, &sqe, ns);
            labs.accepted(id, Accepted { sqe: &sqe, ns, data: &data, freed: &notes.take_freed() });
        }
        let Some(mut script) = script else {
            enter(sq, slots, ready, &sqe, task, id.serial);
            continue;
        };
        let Script { spurious, busy, fatal, .. } = &mut *script;
        if let (true, Some(vector)) = (*spurious, cq.ring.vector) {
            shared.interrupts.raise(vector);
        }
        sq.busy = busy.map(|time| Instant::now() + time);
        let fatal = fatal.take();
        let task = io::bend(task, *script, &sqe, ns.map(|ns| &**ns), bounce);
        enter(sq, slots, ready, &sqe, task, id.serial);
        if let Some(why) = fatal {
            return Err(why);
        }
        if sq.busy.is_some() {
            break;
        }
    }
    Ok(fetched > 0)
}

impl HostData for GuestBuf {
    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        self.copy_out(offset, into).is_ok()
    }
}

/// The host's memory of a Read or a Write, looked up once more: the task's own goes with its operation.
fn host_data(
    shared: &Shared,
    memory: &DmaMap,
    work: &Work,
    sqe: &Sqe,
    ns: &Namespace,
) -> Option<Box<dyn HostData>> {
    let access = match NvmCommand::of(sqe.opc)? {
        NvmCommand::Read => Access::Write,
        NvmCommand::Write => Access::Read,
        _ => return None,
    };
    let len = usize::try_from(u64::from(sqe.nlb().count()) << ns.facts.lbads).ok()?;
    let buf = transfer::resolve(memory, sqe, len, shared.page_size(), access, true, work).ok()?;
    // What fell into a bit bucket cannot be looked at.
    (!buf.discards()).then(|| Box::new(buf) as Box<dyn HostData>)
}

/// What has become of a Copy so far. What they want of one that is planned.
fn tell(labs: &mut Labs, id: CommandId, sqe: &Sqe, notes: &Notes, task: &Result<Task, Status>) -> Fate {
    if let Some(ranges) = notes.take_ranges() {
        labs.listed(id, &ranges);
    }
    match task {
        Ok(Task::Copy(copy)) => return labs.planned(id, copy.plan()),
        Ok(_) => {}
        Err(status) => labs.refused(id, &notes.why().unwrap_or_else(|| before_copy(sqe, *status))),
    }
    Fate::Pass
}

/// What a laboratory answered.
fn by_laboratory(status: Status) -> Reject {
    Reject { status, range: None, rule: rule::LABORATORY, what: "a laboratory refused it" }
}

/// Refused by what is asked of every command.
fn before_copy(sqe: &Sqe, status: Status) -> Reject {
    if sqe.fuse() != 0 {
        return Reject { status, ..Reject::FUSED };
    }
    Reject { status, range: None, rule: rule::OTHER, what: "refused before its own checks" }
}
