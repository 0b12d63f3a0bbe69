//! Namespaces without images.

use std::io::{Error, ErrorKind};

use crate::disk::{Disk, DiskError, Done, Handle, Lane, Op, Tag, Ways};
use crate::laboratory::copy_log::NamespaceRecord;
use crate::namespace::{CopyLimits, CopyPolicy, Identity, Namespace, Namespaces};

/// What is taken for granted of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assume {
    /// Their file system shares blocks of 4096 bytes.
    #[default]
    Shares,
    /// It copies without sharing, and that pays, as with a server that does it.
    Copies,
    /// Neither.
    Nothing,
}

impl Assume {
    /// As it is said on the command line.
    pub const ALL: [(&'static str, Self); 3] =
        [("shares", Self::Shares), ("copies", Self::Copies), ("nothing", Self::Nothing)];

    fn ways(self) -> Ways {
        let none = Ways::default();
        match self {
            Self::Shares => {
                Ways { reflink: Some(4096), offload: true, offload_pays: true, offload_clones: true, ..none }
            }
            Self::Copies => Ways { offload: true, offload_pays: true, ..none },
            Self::Nothing => none,
        }
    }
}

/// A namespace of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imagined {
    /// What is known of it.
    pub facts: NamespaceRecord,
    /// It lies in memory of the device.
    pub is_memory: bool,
}

/// An image that has a size, and of which something is assumed.
#[derive(Debug)]
struct Image {
    len: u64,
    read_only: bool,
    kind: Kind,
    ways: Ways,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    File,
}

impl Disk for Image {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&self, tag: Tag, op: Op, lane: &mut Lane) {
        let error = Error::new(ErrorKind::Unsupported, "there is no image");
        lane.done(Done { tag, result: Err(DiskError::Io(error)), buf: op.into_buf() });
    }

    fn handle(&self) -> Handle<'_> {
        Handle::of(&self.kind)
    }

    fn ways_from(&self, source: &Handle<'_>) -> Ways {
        match (source.get::<Kind>(), &self.kind) {
            (Some(Kind::Memory), Kind::Memory) => Ways { memmove: true, ..Ways::default() },
            (Some(Kind::File), Kind::File) => self.ways,
            _ => Ways::default(),
        }
    }

    fn name(&self) -> &str {
        match self.kind {
            Kind::Memory => "memory",
            Kind::File => "file",
        }
    }
}

/// The namespaces of a question, as a planner takes them. All NSIDs up to the highest that a controller may have are valid.
pub(super) fn namespaces(all: &[Imagined], assume: Assume) -> Namespaces {
    Namespaces::new(all.iter().map(|one| namespace(one, assume)).collect(), crate::config::NSID_MAX)
}

fn namespace(Imagined { facts, is_memory }: &Imagined, assume: Assume) -> Namespace {
    let lbads = facts.logical_block_size.checked_ilog2().unwrap_or(9) as u8;
    let image = Image {
        len: facts.nsze << lbads,
        read_only: facts.readonly,
        kind: if *is_memory { Kind::Memory } else { Kind::File },
        ways: assume.ways(),
    };
    let limits = CopyLimits { mssrl: facts.mssrl, mcl: facts.mcl, msrc: facts.msrc };
    let policy = CopyPolicy { overlap: facts.copy_overlap.0, method: facts.copy_method.0 };
    let mut ns = Namespace::new(facts.nsid, std::sync::Arc::new(image), lbads, limits, Identity::default());
    ns.facts.ms = facts.ms;
    ns.with_policy(policy)
}
