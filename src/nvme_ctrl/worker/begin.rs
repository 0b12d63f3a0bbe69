//! From a submission to a command in a slot, or to its refusal.

use std::collections::VecDeque;
use std::time::Instant;

use super::rings::{Cq, Sq};
use super::slots::{Command, Slots};
use crate::block::Work;
use crate::copy::Bounce;
use crate::memory::DmaMap;
use crate::nvme_ctrl::error_log::Failed;
use crate::nvme_ctrl::io::{self, Context, Task};
use crate::spec::{Outcome, Sqe, Status};

/// Decodes and checks a command. One that is refused is noted in the Error Information log.
pub(super) fn start(
    context: Context<'_>,
    bounce: &Bounce,
    work: &Work,
    sqid: u16,
    sqe: &Sqe,
) -> Result<Task, Status> {
    let errors = &context.shared.errors;
    io::start(context, bounce, work, sqe).map_err(|status| errors.failed(Failed::of(sqid, sqe), status))
}

/// Puts a command into the slot that there is for it, or completes it where it was refused.
pub(super) fn begin(
    sq: &mut Sq,
    cq: &mut Cq,
    slots: &mut Slots,
    ready: &mut VecDeque<u32>,
    memory: &DmaMap,
    sqe: &Sqe,
    task: Result<Task, Status>,
) -> Result<(), String> {
    let (sqid, cid) = (sq.ring.qid, sqe.cid.get());
    match task {
        Ok(task) => {
            enter(sq, slots, ready, sqe, task, 0);
            Ok(())
        }
        Err(status) => {
            log::debug!("sqid {sqid} cid {cid:#x}: refused: {status:?}: {sqe:x?}");
            cq.post(&sq.ring, cid, Outcome::of(status), memory)
        }
    }
}

/// Puts a command into the slot that there is for it. `serial`: what laboratories know it by.
pub(super) fn enter(
    sq: &mut Sq,
    slots: &mut Slots,
    ready: &mut VecDeque<u32>,
    sqe: &Sqe,
    task: Task,
    serial: u64,
) {
    let memory = task.memory();
    sq.in_flight.commands += 1;
    sq.in_flight.memory += memory;
    let command = Command {
        sqid: sq.ring.qid,
        cqid: sq.ring.cqid,
        cid: sqe.cid.get(),
        opc: sqe.opc,
        nsid: sqe.nsid.get(),
        slba: sqe.slba(),
        since: Instant::now(),
        task,
        memory,
        serial,
        ready: true,
        orphan: false,
    };
    ready.extend(slots.insert(command));
}
