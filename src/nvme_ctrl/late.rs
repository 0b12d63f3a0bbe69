//! What laboratories have the answers in CSTS wait for.

use std::time::Instant;

use crate::laboratory::Until;

/// See the module docs. Nothing, unless a laboratory says otherwise.
#[derive(Debug, Default)]
pub struct LateAnswers {
    /// CSTS.RDY after CC.EN went to 1.
    pub enable: Until,
    /// And after it went to 0.
    pub disable: Until,
    /// CSTS.SHST after CC.SHN.
    pub shutdown: Until,
    /// CFS stays when the reset is over, and so does RDY.
    pub broken: bool,
    /// The reset is done, and waits.
    pub drained: bool,
    /// How the flush for the shutdown ended, which is done, and waits.
    pub flushed: Option<bool>,
}

impl LateAnswers {
    /// When one of them may be given, if that comes by itself.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let all = [&self.enable, &self.disable, &self.shutdown];
        all.into_iter().filter(|until| !until.is_over(now)).filter_map(Until::due).min()
    }
}
