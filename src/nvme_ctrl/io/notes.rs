//! What a laboratory is to know of a command besides its task.

use std::cell::{Cell, RefCell};

use crate::copy::{Reject, SourceRange};
use crate::namespace::Lbas;

/// Notes that are made while a command is started.
#[derive(Debug, Default)]
pub struct Notes {
    ranges: RefCell<Option<Vec<SourceRange>>>,
    why: Cell<Option<Reject>>,
    freed: RefCell<Vec<Lbas>>,
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

    /// A Dataset Management deallocates these too.
    pub(super) fn frees(&self, lbas: Lbas) {
        self.freed.borrow_mut().push(lbas);
    }

    /// What a Dataset Management deallocates. It is here no more then.
    pub fn take_freed(&self) -> Vec<Lbas> {
        self.freed.take()
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
