//! Commands in flight, in a slab that keeps its memory and grows to a fixed size.

use std::time::Instant;

use crate::backend::Tag;
use crate::nvme_ctrl::error_log::Failed;
use crate::nvme_ctrl::io::Task;

/// Commands one worker runs at once. More wait in their submission queues.
pub const SLOTS: usize = 1024;

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
    /// It is on the list of those to be polled.
    pub ready: bool,
    /// Its queue is gone: it runs to its end and posts nothing.
    pub orphan: bool,
}

impl Command {
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
}

impl Slots {
    /// Is there no room for another command?
    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.commands.len() == SLOTS
    }

    /// Commands that can be taken in.
    pub fn room(&self) -> usize {
        SLOTS - self.len()
    }

    /// Commands in flight.
    pub fn len(&self) -> usize {
        self.commands.len() - self.free.len()
    }

    /// Takes a command in; `None` when full.
    pub fn insert(&mut self, command: Command) -> Option<u32> {
        if self.is_full() {
            return None;
        }
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
