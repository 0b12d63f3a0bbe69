//! LBA view of a backend: format, identity, limits. Everything that turns blocks into bytes lives here.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::backend::SharedBackend;

/// Limits of one Copy command on one namespace (Identify Namespace bytes 74..=80).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyLimits {
    /// Maximum Single Source Range Length: blocks in one range, 1-based; never 0.
    pub mssrl: u16,
    /// Maximum Copy Length: blocks in all ranges together, 1-based; never 0.
    pub mcl: u32,
    /// Maximum Source Range Count, 0-based: `msrc + 1` ranges are allowed.
    pub msrc: u8,
}

/// What a Copy does when its source and destination overlap, where the specification leaves the choice: descriptor
/// formats 0h and 1h. In formats 2h and 3h such a Copy always ends with Overlapping I/O Range.
///
/// The default is not to refuse: hosts that use formats 0h and 1h know no such status from QEMU, whose Copy succeeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlap {
    /// As if every source were read before the first write: no range ever reads what another one wrote.
    #[default]
    Snapshot,
    /// Overlapping I/O Range.
    Reject,
    /// Range after range, each as if read as a whole before it is written: QEMU's result.
    InOrder,
}

/// The best way that a Copy may take; where it does not lead there, it takes the next one of this order: reflink,
/// offload, bounce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Whatever is known to be best for the images and the length: move memory, share blocks, let the kernel or a server
    /// copy where that pays, else bounce.
    #[default]
    Auto,
    /// Share the blocks.
    Reflink,
    /// copy_file_range.
    Offload,
    /// Read into memory and write, between memory namespaces too.
    Bounce,
}

/// How Copies to a namespace are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyPolicy {
    /// Overlap of source and destination.
    pub overlap: Overlap,
    /// The way of the bytes.
    pub method: Method,
}

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
    /// Bytes of a unit of allocation; `None` when nobody can tell which blocks are allocated, and then DULBE cannot be
    /// enabled. A unit written in part is allocated, and is deallocated only as a whole.
    pub allocation_unit: Option<u64>,
}

/// One attached namespace.
#[derive(Debug)]
pub struct Namespace {
    /// Its NSID, 1-based.
    pub nsid: u32,
    /// Where its bytes are.
    pub backend: SharedBackend,
    /// Format and limits.
    pub facts: Facts,
    /// Identifiers.
    pub identity: Identity,
    /// Error Recovery, DULBE: set by the control thread, read by workers when they start a command.
    dulbe: AtomicBool,
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
    /// A namespace over all whole blocks of `backend`.
    pub fn new(nsid: u32, backend: SharedBackend, lbads: u8, copy: CopyLimits, identity: Identity) -> Self {
        let facts = Facts {
            nsze: backend.len() >> lbads,
            lbads,
            ms: 0,
            read_only: backend.read_only(),
            copy,
            policy: CopyPolicy::default(),
            allocation_unit: backend.allocation_unit(),
        };
        Self { nsid, backend, facts, identity, dulbe: AtomicBool::new(false) }
    }

    /// Must Read, Compare, Verify and Copy fail on deallocated or unwritten blocks (Error Recovery, DULBE)?
    pub fn dulbe(&self) -> bool {
        self.dulbe.load(Ordering::Acquire)
    }

    /// For [`Self::dulbe`]. Nothing where [`Facts::allocation_unit`] is not known.
    pub fn set_dulbe(&self, on: bool) {
        self.dulbe.store(on && self.facts.allocation_unit.is_some(), Ordering::Release);
    }

    /// The same namespace with another way to do Copies to it.
    pub fn with_policy(mut self, policy: CopyPolicy) -> Self {
        self.facts.policy = policy;
        self
    }
}

/// The namespaces of a controller by NSID. NSIDs may have gaps; an NSID up to `nn` without a namespace is
/// inactive, above it is invalid.
#[derive(Debug)]
pub struct Namespaces {
    by_nsid: Vec<Option<std::sync::Arc<Namespace>>>,
}

/// Why an NSID names no namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoNamespace {
    /// 0, FFFFFFFFh or above NN.
    Invalid,
    /// A valid NSID that nothing is attached to.
    Inactive,
}

impl Namespaces {
    /// `nn` is the highest valid NSID (Identify Controller NN), at least the highest NSID in `list`.
    pub fn new(list: Vec<Namespace>, nn: u32) -> Self {
        let top = list.iter().map(|ns| ns.nsid).max().unwrap_or(0).max(nn) as usize;
        let mut by_nsid = vec![None; top];
        for ns in list {
            if let Some(slot) = (ns.nsid as usize).checked_sub(1).and_then(|i| by_nsid.get_mut(i)) {
                *slot = Some(std::sync::Arc::new(ns));
            }
        }
        Self { by_nsid }
    }

    /// Number of valid NSIDs (Identify Controller NN).
    pub fn nn(&self) -> u32 {
        self.by_nsid.len() as u32
    }

    /// The namespace behind an NSID.
    pub fn get(&self, nsid: u32) -> Result<&std::sync::Arc<Namespace>, NoNamespace> {
        let slot =
            (nsid as usize).checked_sub(1).and_then(|i| self.by_nsid.get(i)).ok_or(NoNamespace::Invalid)?;
        slot.as_ref().ok_or(NoNamespace::Inactive)
    }

    /// All attached namespaces, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &std::sync::Arc<Namespace>> {
        self.by_nsid.iter().flatten()
    }
}
