//! What laboratories have the answers in CSTS wait for.

use std::time::Instant;

use crate::laboratory::Gate;

/// See the module docs. Open, each of them, unless a laboratory says otherwise.
#[derive(Debug, Default)]
pub struct Gates {
    /// CSTS.RDY after CC.EN went to 1.
    pub enable: Gate,
    /// And after it went to 0.
    pub disable: Gate,
    /// CSTS.SHST after CC.SHN.
    pub shutdown: Gate,
    /// CFS stays when the reset is over, and so does RDY.
    pub broken: bool,
    /// The reset is done but for its gate.
    pub drained: bool,
    /// How the flush for the shutdown ended, which is done but for its gate.
    pub flushed: Option<bool>,
}

impl Gates {
    /// When one of them opens by itself, if one does.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let all = [&self.enable, &self.disable, &self.shutdown];
        all.into_iter().filter(|gate| !gate.is_open(now)).filter_map(Gate::due).min()
    }
}
