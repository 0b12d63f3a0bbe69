//! Commands in flight, in a slab that keeps its memory and grows to a fixed size.

use std::time::Instant;

use crate::disk::Tag;
use crate::laboratory::CommandId;
use crate::nvme_ctrl::error_log::Failed;
use crate::nvme_ctrl::io::Task;

/// Commands one worker runs at once. More wait in their submission queues.
pub const SLOTS: usize = 1024;

/// Bytes that its commands may have allocated together, but for one more of each queue. 256 that compare, or
/// have a list of 4096 pieces each, or twice as many Copies of 256 ranges; others wait in their submission
/// queues too.
pub const MEMORY: usize = 16 << 20;

/// What some commands in flight take up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// Commands.
    pub commands: usize,
    /// Bytes that they have allocated.
    pub memory: usize,
}

/// One command in flight.
#[derive(Debug)]
pub struct Command {
    /// SQID.
    pub sqid: u16,
    /// The queue its completion goes to.
    pub cqid: u16,
    /// CID.
    pub cid: u16,
    /// Opcode.
    pub opc: u8,
    /// NSID.
    pub nsid: u32,
    /// CDW10 and CDW11.
    pub slba: u64,
    /// When it was fetched.
    pub since: Instant,
    /// Its state machine.
    pub task: Task,
    /// Bytes it was counted with.
    pub memory: usize,
    /// What the laboratory knows it by, 0 if none saw it fetched.
    pub serial: u64,
    /// It is on the list of those to be polled.
    pub ready: bool,
    /// Its queue is gone: it runs to its end and posts nothing.
    pub orphan: bool,
}

impl Command {
    /// The command as laboratories know it.
    pub fn id(&self) -> CommandId {
        CommandId { serial: self.serial, sqid: self.sqid, cid: self.cid }
    }

    /// The command as the Error Information log names it.
    pub fn failed(&self) -> Failed {
        Failed { sqid: self.sqid, cid: self.cid, opc: self.opc, nsid: self.nsid, slba: self.slba }
    }
}

/// The slab.
#[derive(Debug, Default)]
pub struct Slots {
    /// As many as were ever in flight at once.
    commands: Vec<Option<Command>>,
    free: Vec<u32>,
    memory: usize,
}

impl Slots {
    /// Commands that can be taken in of one queue of `queues`, whose commands have `own`.
    ///
    /// Half of what there is goes to who comes first, the other half in equal parts to all queues but the
    /// largest one: so no queue waits for the commands of another, however many and however slow they are.
    pub fn room(&self, own: Taken, queues: usize) -> usize {
        let left = SLOTS - self.len();
        let Some(others) = queues.checked_sub(1).filter(|others| *others > 0) else {
            return if self.memory < MEMORY { left } else { 0 };
        };
        if self.memory >= MEMORY / 2 && own.memory >= MEMORY / 2 / others {
            return 0;
        }
        let reserved = (SLOTS / 2 / others).saturating_sub(own.commands);
        left.min(reserved.max((SLOTS / 2).saturating_sub(self.len())))
    }

    /// Commands in flight.
    pub fn len(&self) -> usize {
        self.commands.len() - self.free.len()
    }

    /// Takes a command in; `None` when full.
    pub fn insert(&mut self, command: Command) -> Option<u32> {
        if self.free.is_empty() && self.commands.len() == SLOTS {
            return None;
        }
        self.memory += command.memory;
        let Some(index) = self.free.pop() else {
            self.commands.push(Some(command));
            return Some(self.commands.len() as u32 - 1);
        };
        *self.commands.get_mut(index as usize)? = Some(command);
        Some(index)
    }

    /// The command in `index`.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut Command> {
        self.commands.get_mut(index as usize)?.as_mut()
    }

    /// Takes the command out of `index`.
    pub fn remove(&mut self, index: u32) -> Option<Command> {
        let command = self.commands.get_mut(index as usize)?.take()?;
        self.free.push(index);
        self.memory -= command.memory;
        Some(command)
    }

    /// All commands in flight with their indices.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Command)> {
        self.commands.iter_mut().enumerate().filter_map(|(i, c)| Some((i as u32, c.as_mut()?)))
    }
}

/// The tag of operation `part` of the command in slot `index`.
pub fn tag(index: u32, part: u32) -> Tag {
    Tag(u64::from(index) << 32 | u64::from(part))
}

/// Slot and part of a tag.
pub fn untag(tag: Tag) -> (u32, u32) {
    ((tag.0 >> 32) as u32, tag.0 as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Outcome, Status};

    fn command(memory: usize) -> Command {
        Command {
            sqid: 1,
            cqid: 1,
            cid: 0,
            opc: 0,
            nsid: 0,
            slba: 0,
            since: Instant::now(),
            task: Task::Over(Outcome::of(Status::SUCCESS)),
            memory,
            serial: 0,
            ready: false,
            orphan: false,
        }
    }

    fn taken(commands: usize, memory: usize) -> Taken {
        Taken { commands, memory }
    }

    #[test]
    fn one_queue_may_have_all_and_two_may_not() {
        let mut slots = Slots::default();
        assert_eq!((slots.room(taken(0, 0), 1), slots.room(taken(0, 0), 3)), (SLOTS, SLOTS / 2));
        for _ in 0..SLOTS / 2 {
            slots.insert(command(0));
        }
        let own = taken(SLOTS / 2, 0);
        assert_eq!((slots.room(own, 1), slots.room(own, 2), slots.room(own, 5)), (SLOTS / 2, 0, 0));
        assert_eq!((slots.room(taken(0, 0), 2), slots.room(taken(28, 0), 5)), (SLOTS / 2, 100));
        for _ in 0..SLOTS / 2 - 10 {
            slots.insert(command(0));
        }
        assert_eq!((slots.room(taken(0, 0), 2), slots.room(taken(128, 0), 5)), (10, 0));
    }

    #[test]
    fn memory_is_shared_as_slots_are_and_comes_back() {
        let mut slots = Slots::default();
        let large = slots.insert(command(MEMORY / 2)).expect("room");
        assert_eq!(
            (slots.room(taken(1, MEMORY / 2), 1), slots.room(taken(1, MEMORY / 2), 2)),
            (SLOTS - 1, 0)
        );
        assert!(slots.room(taken(0, 0), 2) > 0 && slots.room(taken(1, MEMORY / 4), 3) == 0);
        slots.insert(command(MEMORY / 2));
        assert_eq!(slots.room(taken(2, MEMORY), 1), 0);
        slots.remove(large);
        assert_eq!(slots.room(taken(1, MEMORY / 2), 1), SLOTS - 1);
    }
}
