//! The one gate: whatever may refuse a command because of its namespace is asked here, by every path to its
//! blocks, the fast one included. A reason to refuse that is added here is obeyed everywhere.

use super::{ByteRange, Cntlid, Namespace};

/// What a command does to the blocks that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It looks at them: Read, Compare, Verify, the sources of a Copy.
    Read,
    /// It changes them, or what is known of them: Write, Write Zeroes, Dataset Management, the destination of
    /// a Copy.
    Write,
}

/// Blocks of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lbas {
    /// The first.
    pub slba: u64,
    /// How many, 1-based.
    pub nlb: u64,
}

/// Why not. What the host is told of it is its front-end's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The namespace takes no writes.
    WriteProtected,
    /// Blocks that the namespace does not have.
    OutOfRange,
}

/// Where an admitted command works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its blocks.
    pub data: ByteRange,
    /// It must fail unless all of them are allocated, and nobody has looked yet.
    pub if_allocated: bool,
}

/// May a command do this to the namespace at all, whichever blocks it names?
///
/// # Errors
/// Why not.
pub fn gate(ns: &Namespace, access: Access) -> Result<(), Refusal> {
    if access == Access::Write && ns.facts.read_only {
        return Err(Refusal::WriteProtected);
    }
    Ok(())
}

/// May a command of the host of `by` do this to these blocks? The gate is asked first.
///
/// # Errors
/// Why not.
pub fn admit(ns: &Namespace, access: Access, lbas: Lbas, by: Cntlid) -> Result<Extent, Refusal> {
    gate(ns, access)?;
    let data = ns.facts.bytes(lbas.slba, lbas.nlb).ok_or(Refusal::OutOfRange)?;
    Ok(Extent { data, if_allocated: access == Access::Read && ns.dulbe(by) })
}
