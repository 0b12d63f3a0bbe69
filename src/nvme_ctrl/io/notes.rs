//! What a laboratory is to know of a Copy besides its task.

use std::cell::{Cell, RefCell};

use crate::copy::{Reject, SourceRange};

/// Notes that are made while a Copy is started.
#[derive(Debug, Default)]
pub struct Notes {
    ranges: RefCell<Option<Vec<SourceRange>>>,
    why: Cell<Option<Reject>>,
}

impl Notes {
    /// Its source ranges have been read.
    pub(super) fn listed(&self, ranges: &[SourceRange]) {
        self.ranges.replace(Some(ranges.to_vec()));
    }

    /// It is refused.
    pub fn refused(&self, why: Reject) {
        self.why.set(Some(why));
    }

    /// The source ranges, if it got so far. They are here no more then.
    pub fn take_ranges(&self) -> Option<Vec<SourceRange>> {
        self.ranges.take()
    }

    /// Why it was refused, where one of Copy's own checks did that.
    pub fn why(&self) -> Option<Reject> {
        self.why.get()
    }
}
