//! A controller as whoever runs it sees it from outside.

use serde::Serialize;

/// What it is at, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControllerView {
    /// Identify Controller CNTLID.
    pub cntlid: u16,
    /// CC.EN: a host has enabled it.
    pub enabled: bool,
    /// CSTS.RDY: it takes commands.
    pub ready: bool,
    /// CSTS.CFS: it cannot go on before it is reset.
    pub fatal: bool,
}
