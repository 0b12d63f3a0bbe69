//! LBA view of a disk: format, identity, limits. Everything that turns blocks into bytes lives here.
//!
//! A [`Namespace`] is a value: it is replaced, never changed. A command keeps the one that it was admitted
//! with, so what is in flight ends under the limits that it began under. What outlives such a change is its
//! [`Life`].

mod admit;
mod life;
mod limits;
mod table;

use std::sync::Arc;

pub use self::admit::{Access, Extent, Lbas, Refusal, admit, gate};
pub use self::life::{Cntlid, Life, MAX_CONTROLLERS};
pub use self::limits::{CopyLimits, CopyPolicy, Method, Overlap};
pub use self::table::{Cached, Namespaces, NoNamespace, Table};
use crate::disk::SharedDisk;

/// Names a namespace outlives its controller by (Identify Namespace, Namespace Identification Descriptors).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// EUI-64, 0 when there is none.
    pub eui64: u64,
    /// Namespace Globally Unique Identifier, zeroes when there is none.
    pub nguid: [u8; 16],
    /// UUID, zeroes when there is none.
    pub uuid: [u8; 16],
}

/// Plain facts of a namespace as the Copy planner and the command checks see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Namespace Size in blocks.
    pub nsze: u64,
    /// log2 of the data size of a block in bytes: 9 or 12.
    pub lbads: u8,
    /// Metadata bytes per block.
    pub ms: u16,
    /// Writes are refused.
    pub read_only: bool,
    /// Copy limits.
    pub copy: CopyLimits,
    /// How Copies to it are done.
    pub policy: CopyPolicy,
    /// Bytes of a unit of allocation; `None` when nobody can tell which blocks are allocated, and then DULBE
    /// cannot be enabled. A unit written in part is allocated, and is deallocated only as a whole.
    pub allocation_unit: Option<u64>,
}

/// One attached namespace. Cloned, with other values in some fields, it takes the place of the old one.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Its NSID, 1-based.
    pub nsid: u32,
    /// Where its bytes are.
    pub disk: SharedDisk,
    /// Format and limits.
    pub facts: Facts,
    /// Identifiers.
    pub identity: Identity,
    /// What every value of this namespace has in common.
    pub life: Arc<Life>,
}

/// A range of blocks that lies inside its namespace, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Facts {
    /// Bytes of a block.
    pub const fn block_size(&self) -> u64 {
        1 << self.lbads
    }

    /// `nlb` blocks (1-based count) from `slba`, in bytes; `None` when they do not lie in the namespace.
    ///
    /// The one place where an LBA meets a block size. A range inside `nsze` cannot overflow: the image's byte
    /// length fits 63 bits.
    pub fn bytes(&self, slba: u64, nlb: u64) -> Option<ByteRange> {
        let end = slba.checked_add(nlb)?;
        (end <= self.nsze).then(|| ByteRange { offset: slba << self.lbads, len: nlb << self.lbads })
    }
}

impl Namespace {
    /// A namespace over all whole blocks of `disk`.
    pub fn new(nsid: u32, disk: SharedDisk, lbads: u8, copy: CopyLimits, identity: Identity) -> Self {
        let facts = Facts {
            nsze: disk.len() >> lbads,
            lbads,
            ms: 0,
            read_only: disk.read_only(),
            copy,
            policy: CopyPolicy::default(),
            allocation_unit: disk.allocation_unit(),
        };
        Self { nsid, disk, facts, identity, life: Arc::default() }
    }

    /// Must Read, Compare, Verify and Copy by the host of this controller fail on deallocated or unwritten
    /// blocks (Error Recovery, DULBE)?
    pub fn dulbe(&self, by: Cntlid) -> bool {
        self.life.dulbe(by)
    }

    /// Sets what [`Self::dulbe`] says. Nothing where [`Facts::allocation_unit`] is not known.
    pub fn set_dulbe(&self, by: Cntlid, on: bool) {
        self.life.set_dulbe(by, on && self.facts.allocation_unit.is_some());
    }

    /// The same namespace with another way to do Copies to it.
    pub fn with_policy(mut self, policy: CopyPolicy) -> Self {
        self.facts.policy = policy;
        self
    }
}
