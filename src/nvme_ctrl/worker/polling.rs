//! Commands in flight go on: the ends of their operations come in, and they are polled.

use super::asked::FLUSH_SLOTS;
use super::core::Core;
use super::slots::{tag, untag};
use crate::block::{Issue, Work};
use crate::disk::Done;
use crate::laboratory::Lab;
use crate::nvme_ctrl::io::Bent;

impl Core {
    pub(super) fn complete(&mut self, completion: Done) {
        let (index, part) = untag(completion.tag);
        if index >= FLUSH_SLOTS {
            self.flushed(index, completion.result.is_ok());
            return;
        }
        if let Some(command) = self.slots.get_mut(index) {
            if let Err(error) = &completion.result {
                log::debug!("operation {part} of cid {:#x} failed: {error}", command.cid);
            }
            let written = command.task.done(part, completion.result, completion.buf);
            if let (Some(written), Some(labs)) = (written, &mut self.labs) {
                labs.moved(command.id(), written);
            }
            self.make_ready(index);
            // Whatever ended may have given bounce memory back.
            self.feed_starved();
        }
    }

    /// Polls what is to be polled, as far as this turn goes.
    pub(super) fn poll_all(&mut self) {
        let most = self.work.done() + Work::POLLS;
        while self.work.done() < most
            && let Some(index) = self.ready.pop_front()
        {
            match self.slots.get_mut(index) {
                Some(command) if command.task.moves_memory() => self.moving.push_back(index),
                Some(_) => self.poll(index),
                None => {}
            }
        }
        // Between these, commands are fetched and all others go on: nothing waits for more than a poll and a
        // little.
        let most = self.work.done() + Work::MOVES;
        while self.work.done() < most
            && let Some(index) = self.moving.pop_front()
        {
            self.poll_moving(index);
        }
    }

    /// Polls a command that moves memory. What that did is done: if it was all, the command ends now, so that
    /// the host hears of it while the next one is under way.
    fn poll_moving(&mut self, index: u32) {
        self.poll(index);
        let mut done = std::mem::take(&mut self.done);
        self.lane.take_done(&mut done);
        for completion in done.drain(..) {
            self.complete(completion);
        }
        self.done = done;
        if self.slots.get_mut(index).is_some_and(|command| command.task.is_over()) {
            self.ready.retain(|ready| *ready != index);
            self.poll(index);
        }
    }

    fn poll(&mut self, index: u32) {
        let Some(command) = self.slots.get_mut(index) else { return };
        command.ready = false;
        let (lane, work) = (&mut self.lane, &self.work);
        work.charge(Work::COMMAND);
        let issue: &mut Issue<'_> = &mut |part, ns, op| {
            let tag = tag(index, part);
            work.charge_op(ns, &op);
            ns.disk.start(tag, op, lane);
        };
        match command.task.poll(&self.shared, work, issue) {
            Some(outcome) if self.off_bus && !command.orphan => {
                // With its task go its pins.
                command.task.end(outcome);
                self.unposted.push((index, outcome));
            }
            Some(outcome) => self.end(index, outcome),
            None if command.task.is_starved() => self.starved.push_back(index),
            None if command.task.bent().is_some_and(Bent::is_held) => self.held.push(index),
            None => {}
        }
    }
}
