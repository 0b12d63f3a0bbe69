//! What the oracle says.

use std::collections::VecDeque;
use std::fmt;

use crate::laboratory::seam::CommandId;
use crate::spec::commands::nvm_name;

/// Writers that are remembered of a namespace, the newest: 1.5 MiB or so. Of older ones only that they were.
const REMEMBERED: usize = 32 << 10;

/// The command that a block was last written by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenBy {
    /// CNTLID of the controller it came to.
    pub controller: u16,
    /// Its place there.
    pub id: CommandId,
    /// Its opcode.
    pub opc: u8,
}

impl fmt::Display for WrittenBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CommandId { serial, sqid, cid } = self.id;
        let (name, controller) = (nvm_name(self.opc), self.controller);
        write!(f, "{name} (controller {controller} sqid {sqid} cid {cid:#x} serial {serial})")
    }
}

/// The newest writers by the stamp of their end.
#[derive(Default)]
pub(super) struct Writers(VecDeque<(u64, WrittenBy)>);

impl Writers {
    /// `stamp` is larger than all before.
    pub fn note(&mut self, stamp: u64, writer: WrittenBy) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((stamp, writer));
    }

    pub fn find(&self, stamp: u64) -> Option<WrittenBy> {
        let at = self.0.binary_search_by_key(&stamp, |(stamp, _)| *stamp).ok()?;
        self.0.get(at).map(|(_, writer)| *writer)
    }
}

/// Where what the commands imply comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// No command wrote it: as the image was made, or as it was first read.
    Start,
    /// This one wrote it.
    Command(WrittenBy),
    /// Some command wrote it, too long ago to be remembered.
    Older,
}

/// A block that does not hold what the commands imply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its namespace.
    pub nsid: u32,
    /// The block.
    pub lba: u64,
    /// Who wrote what it should hold.
    pub origin: Origin,
    /// It should hold zeroes.
    pub should_be_zero: bool,
    /// It holds zeroes.
    pub is_zero: bool,
    /// Another block near it that should hold what this one holds.
    pub belongs_to: Option<u64>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nsid {} LBA {:#x} should hold ", self.nsid, self.lba)?;
        f.write_str(if self.should_be_zero { "zeroes" } else { "the data" })?;
        match self.origin {
            Origin::Start => f.write_str(" that it began with")?,
            Origin::Command(writer) => write!(f, " of {writer}")?,
            Origin::Older => f.write_str(" of a command too old to be remembered")?,
        }
        match self.belongs_to {
            _ if self.is_zero => f.write_str(", and holds zeroes"),
            Some(lba) => write!(f, ", and holds what belongs to LBA {lba:#x}"),
            None => f.write_str(", and holds something else"),
        }
    }
}
