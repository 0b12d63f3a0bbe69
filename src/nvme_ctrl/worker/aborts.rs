//! Aborts: of commands in flight, and of those that still lie in their queues.

use super::asked::Aborting;
use super::core::Core;
use super::fetch;
use super::messages::Token;

impl Core {
    /// Asks all commands that match (SQID, CID) to end early; the slot of one that may.
    pub(super) fn abort_matching(&mut self, matches: impl Fn(u16, u16) -> bool) -> Option<u32> {
        let mut aborting = None;
        for (index, command) in self.slots.iter_mut() {
            if matches(command.sqid, command.cid) {
                aborting = if command.task.abort() { Some(index) } else { aborting };
                if !std::mem::replace(&mut command.ready, true) {
                    self.ready.push_back(index);
                }
            }
        }
        aborting
    }

    /// Aborts a command in flight.
    fn abort_at_work(&mut self, sqid: u16, cid: u16, token: Token) {
        match self.abort_matching(|s, c| (s, c) == (sqid, cid)) {
            Some(index) => self.told.push((index, token)),
            None => self.ack(token, false),
        }
    }

    /// Does a command in flight go by this id?
    fn is_in_flight(&mut self, sqid: u16, cid: u16) -> bool {
        self.slots.iter_mut().any(|(_, command)| (command.sqid, command.cid) == (sqid, cid))
    }

    /// A command that the host has rung for and this worker has not fetched yet is fetched first, in its
    /// turn.
    pub(super) fn abort(&mut self, sqid: u16, cid: u16, token: Token) {
        let place = self.sqs.position(sqid);
        match place {
            Some(at) if !self.is_in_flight(sqid, cid) => {
                self.look_at_tail(at);
                let Some(sq) = self.sqs.get(at) else { return self.ack(token, false) };
                let tail = sq.tail.value();
                self.aborts.push(Aborting { sqid, cid, token, tail, left: sq.ring.left(tail) });
            }
            _ => {
                self.abort_at_work(sqid, cid, token);
            }
        }
    }

    /// Answers the Aborts whose commands have been fetched by now, or are not there, or cannot be fetched
    /// soon.
    pub(super) fn settle_aborts(&mut self) {
        for mut abort in std::mem::take(&mut self.aborts) {
            if self.is_in_flight(abort.sqid, abort.cid) {
                self.abort_at_work(abort.sqid, abort.cid, abort.token);
                continue;
            }
            let place = self.sqs.position(abort.sqid);
            let left = place.and_then(|at| self.sqs.get(at)).map_or(0, |sq| sq.ring.left(abort.tail));
            // More than before: the queue has gone past that tail.
            let passed = left == 0 || left > abort.left;
            if passed || !place.is_some_and(|at| fetch::queue_has_work(self, at)) {
                self.ack(abort.token, false);
                continue;
            }
            abort.left = left;
            self.aborts.push(abort);
        }
    }
}
