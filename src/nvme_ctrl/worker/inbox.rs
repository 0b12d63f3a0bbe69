//! What a worker does about each message of the control thread.

use arc_swap::Cache;

use super::core::Core;
use super::interrupt::Owed;
use super::messages::{Fence, ToWorker};
use super::rings::{Cq, Sq};
use super::slots::Taken;
use crate::logging::ASKED_FOR;
use crate::memory::Epoch;
use crate::nvme_ctrl::doorbells::DoorbellValue;
use crate::spec::commands::nvm_name;

impl Core {
    /// Takes one message of the control thread.
    pub fn message(&mut self, message: ToWorker) {
        match message {
            ToWorker::Begin(epoch) => self.memory = Cache::new(epoch),
            ToWorker::CreateCq(ring) => {
                self.cqs.push(Cq {
                    ring,
                    owed: Owed::default(),
                    head: DoorbellValue::default(),
                    register: 0,
                    event: None,
                });
            }
            ToWorker::CreateSq(ring) => {
                let tail = DoorbellValue::default();
                self.rotation.push(ring.qid);
                self.sqs.push(Sq {
                    ring,
                    in_flight: Taken::default(),
                    deleting: None,
                    tail,
                    register: 0,
                    event: None,
                    busy: None,
                });
            }
            ToWorker::DeleteSq(qid, token) => match self.sqs.find(qid) {
                Some(sq) => {
                    sq.deleting = Some(token);
                    self.abort_matching(|sqid, _| sqid == qid);
                    self.end_deleted_queue(qid);
                }
                None => self.ack(token, false),
            },
            ToWorker::DeleteCq(qid, token) => {
                self.cqs.remove(qid);
                self.ack(token, true);
            }
            ToWorker::Abort(sqid, cid, token) => self.abort(sqid, cid, token),
            ToWorker::Fence(token, fence) => {
                self.fence(fence);
                self.ack(token, true);
            }
            ToWorker::Reset(token) => {
                self.forget_queues();
                self.memory = Cache::new(Epoch::default());
                self.off_bus = false;
                self.resetting = Some(token);
                self.post_unposted();
                self.abort_matching(|_, _| true);
                self.end_reset();
            }
            ToWorker::Flush(token) => self.flush(token),
            ToWorker::Laboratory(change) => change.apply(&mut self.labs),
            ToWorker::Dump => self.dump(),
            ToWorker::Inspect(reply) => reply.send(self.state()),
            ToWorker::Drained(reply) => {
                self.draining = Some(reply.taken());
                self.end_drain();
            }
            ToWorker::Stop => self.stopping = true,
        }
    }

    #[cold]
    fn fence(&mut self, fence: Fence) {
        self.memory.load();
        // Whoever waits for the end of an older table waits for no doorbell.
        self.namespaces.load();
        self.shadow.configure(fence.buffers);
        if !fence.bus_master {
            self.off_bus = true;
            self.leave_buffers();
            return;
        }
        self.find_buffers();
        self.off_bus = false;
        self.post_unposted();
    }

    /// Completes what ended off the bus.
    #[cold]
    fn post_unposted(&mut self) {
        for (index, outcome) in std::mem::take(&mut self.unposted) {
            self.end(index, outcome);
        }
    }

    fn dump(&mut self) {
        for cq in self.cqs.iter() {
            log::info!(target: ASKED_FOR, "{:?}", cq.ring);
        }
        for sq in self.sqs.iter() {
            let Sq { ring, tail, event, in_flight, .. } = sq;
            log::info!(target: ASKED_FOR, "{ring:?}, {tail:?}, event {event:?}, in flight: {in_flight:?}");
        }
        for (index, command) in self.slots.iter_mut() {
            log::info!(
                target: ASKED_FOR,
                "in flight [{index}]: {} nsid {} slba {:#x} sqid {} cid {:#x} for {:?}{}{}",
                nvm_name(command.opc),
                command.nsid,
                command.slba,
                command.sqid,
                command.cid,
                command.since.elapsed(),
                if command.task.is_starved() { ", waiting for memory" } else { "" },
                if command.orphan { ", its queue is gone" } else { "" }
            );
        }
    }
}
