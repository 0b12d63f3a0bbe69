//! Namespaces as clients see them, in the words of the command line.

use serde::Serialize;

use super::wire::Refusal;
use crate::namespace::{Namespace, Namespaces};

/// No namespace of this NSID is attached; those that are.
pub fn not_attached(namespaces: &Namespaces, nsid: u32) -> Refusal {
    let nsids: Vec<_> = namespaces.iter().map(|ns| ns.nsid.to_string()).collect();
    let expected =
        if nsids.is_empty() { "an attached namespace; there is none".into() } else { nsids.join(", ") };
    Refusal::new(format!("no namespace {nsid} is attached"), format!("nsid: {expected}"))
}

/// One namespace.
#[derive(Debug, Serialize)]
pub struct NamespaceView {
    nsid: u32,
    /// A host can reach it.
    attached: bool,
    /// Path of the image, or memory.
    drive: String,
    /// Bytes.
    size: u64,
    logical_block_size: u64,
    /// Identify NSZE, in blocks.
    nsze: u64,
    readonly: bool,
    mssrl: u16,
    mcl: u32,
    msrc: u8,
    copy_overlap: &'static str,
    copy_method: &'static str,
}

impl NamespaceView {
    /// Which it is.
    pub fn nsid(&self) -> u32 {
        self.nsid
    }

    /// What `ns` is now.
    pub fn of(ns: &Namespace, attached: bool) -> Self {
        let facts = &ns.facts;
        Self {
            nsid: ns.nsid,
            attached,
            drive: ns.disk.name().to_owned(),
            size: facts.nsze << facts.lbads,
            logical_block_size: facts.block_size(),
            nsze: facts.nsze,
            readonly: facts.read_only,
            mssrl: facts.copy.mssrl,
            mcl: facts.copy.mcl,
            msrc: facts.copy.msrc,
            copy_overlap: facts.policy.overlap.word(),
            copy_method: facts.policy.method.word(),
        }
    }
}
