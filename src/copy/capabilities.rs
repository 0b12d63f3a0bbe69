//! Which Copies a host may ask for at all.

use super::range::Layout;
use crate::namespace::Cntlid;

/// What the controller offers and the host has enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Identify Controller OCFS: formats the controller advertises; bit n for format n.
    pub ocfs: u16,
    /// Effective CDFE (Host Behavior Support): formats 2 and up that are enabled. Bits 0 and 1 mean nothing.
    pub cdfe: u16,
    /// Whose host it is.
    pub cntlid: Cntlid,
}

impl Capabilities {
    pub(super) fn allow(&self, layout: &Layout) -> bool {
        let bit = 1 << layout.desfmt;
        self.ocfs & bit != 0 && (!layout.cross || self.cdfe & bit != 0)
    }
}
