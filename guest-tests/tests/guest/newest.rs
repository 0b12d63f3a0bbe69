//! The newest kernel.

use guest_tests::nvme::{self, Copy};

use crate::Outcome;
use crate::copy::Target;
use crate::session::Session;

pub fn copy(s: &Session) -> Outcome {
    let mut t = Target::fill(s, 1, 400)?;
    let half = t.model.blocks() / 2;
    t.accept(s, &Copy::new(half, &[(0, 128), (500, 127), (9, 1)]), None)?;
    t.refuse(s, &Copy::new(half, &[(0, 129)]), nvme::SIZE_LIMIT)?;
    t.check(s)?;
    Ok(None)
}
