//! What a laboratory wants one command to meet, as a plain value: who runs the command carries it out.

use std::sync::Arc;
use std::time::Duration;

use super::bad_blocks::BadBlocks;
use super::lands::{Lands, Layout};
use super::until::Until;
use crate::spec::{Outcome, Status};

/// What is to become of a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Post {
    /// It is posted.
    #[default]
    Once,
    /// It is lost: the host never hears of the command's end.
    Never,
    /// It is posted, and once more if the completion queue has room.
    Twice,
    /// It is posted with this CID, which is not the command's.
    As(u16),
    /// It is posted, and no interrupt tells of it.
    Unannounced,
}

impl Post {
    /// This one, unless it is as it always is: then `next`.
    #[must_use]
    pub fn or(self, next: Self) -> Self {
        if self == Self::Once { next } else { self }
    }
}

/// What DW0 of a completion is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dw0 {
    /// This.
    Value(u32),
    /// Of a Copy that landed in part: how many ranges are complete, from the first one on. Of others 0.
    Complete,
}

/// How the end of a command is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bend {
    /// Its status, with DNR and CRD.
    pub status: Option<Status>,
    /// Its DW0.
    pub dw0: Option<Dw0>,
    /// More, whatever the Error Information log has of it.
    pub more: Option<bool>,
}

impl Bend {
    /// The outcome that takes the place of `outcome`, for data that landed like this.
    pub fn of(&self, outcome: Outcome, lands: &Lands, layout: Option<&Layout>) -> Outcome {
        let dw0 = match self.dw0 {
            Some(Dw0::Value(dw0)) => dw0,
            // A Copy that succeeds says 0, even if that is a lie.
            Some(Dw0::Complete) if self.status.is_none_or(Status::is_success) => 0,
            Some(Dw0::Complete) => layout.map_or(0, |layout| lands.complete_ranges(layout)),
            None if self.status.is_some() => 0,
            None => outcome.dw0,
        };
        Outcome { status: self.status.unwrap_or(outcome.status), dw0 }
    }
}

/// Bits of a command's data that are flipped on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flip {
    /// Where: bytes from the data's start.
    pub at: u64,
    /// Or from the start of this range of a Copy.
    pub range: Option<u32>,
    /// These bits.
    pub mask: Vec<u8>,
}

impl Flip {
    /// Flips what of it lies in `data`, which is the command's from byte `from` on.
    pub fn apply(&self, layout: &Layout, from: u64, data: &mut [u8]) {
        let start = self.range.map_or(Some(0), |range| layout.range(range).map(|(start, _)| start));
        let Some(start) = start.and_then(|start| start.checked_add(self.at)) else { return };
        for (mask, at) in self.mask.iter().zip(start..) {
            let byte = at.checked_sub(from).and_then(|at| data.get_mut(usize::try_from(at).ok()?));
            if let Some(byte) = byte {
                *byte ^= mask;
            }
        }
    }
}

/// Bytes of what an admin command sends that are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Where: bytes from the start of the data.
    pub at: usize,
    /// By these.
    pub bytes: Vec<u8>,
}

impl Edit {
    /// Replaces what of it lies in `data`.
    pub fn apply(&self, data: &mut [u8]) {
        let to = data.get_mut(self.at..).unwrap_or_default();
        for (to, byte) in to.iter_mut().zip(&self.bytes) {
            *to = *byte;
        }
    }
}

/// One range of a Copy that is written later than the others.
#[derive(Debug)]
pub struct LateRange {
    /// Which.
    pub range: u32,
    /// When.
    pub until: Until,
}

/// See the module docs. By default the command goes its way.
#[derive(Debug, Default)]
pub struct Script {
    /// What it waits for before it begins.
    pub begin: Until,
    /// It does nothing of what it says: it only ends.
    pub idle: bool,
    /// How much of its data lands.
    pub lands: Lands,
    /// A range of a Copy that is late.
    pub late: Option<LateRange>,
    /// Bits that are flipped.
    pub flip: Option<Flip>,
    /// Blocks that cannot be read.
    pub bad: Vec<Arc<BadBlocks>>,
    /// Bytes of an admin command's data that are replaced.
    pub edits: Vec<Edit>,
    /// How it ends.
    pub ending: Bend,
    /// What its end waits for before it is told.
    pub end: Until,
    /// How it is told.
    pub post: Post,
    /// An interrupt is raised when it is fetched, for no reason.
    pub spurious: bool,
    /// No command is taken from its queue for so long.
    pub busy: Option<Duration>,
    /// The controller goes fatal: why.
    pub fatal: Option<String>,
}

impl Script {
    /// Does it look at the bytes, so that they have to go through our memory?
    pub fn bends_data(&self) -> bool {
        self.lands != Lands::All || self.late.is_some() || self.flip.is_some() || !self.bad.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_says_what_it_was_told_and_no_more() {
        let good = Outcome { status: Status::SUCCESS, dw0: 7 };
        let layout = Layout::of_ranges(512, vec![512, 1024, 2048]);
        let two = Lands::Prefix { units: 2, blocks: 0 };
        assert_eq!(Bend::default().of(good, &Lands::All, None), good);
        let wrong = Bend { dw0: Some(Dw0::Value(1)), ..Bend::default() };
        assert_eq!(wrong.of(good, &Lands::All, None), Outcome { status: Status::SUCCESS, dw0: 1 });
        let failed = Bend { status: Some(Status::WRITE_FAULT), ..Bend::default() };
        assert_eq!(failed.of(good, &two, Some(&layout)), Outcome { status: Status::WRITE_FAULT, dw0: 0 });
        let honest = Bend { dw0: Some(Dw0::Complete), ..failed };
        assert_eq!(honest.of(good, &two, Some(&layout)).dw0, 2);
        assert_eq!(honest.of(good, &two, None).dw0, 0);
        let silent = Bend { status: Some(Status::SUCCESS), ..honest };
        assert_eq!(silent.of(good, &two, Some(&layout)), Outcome::of(Status::SUCCESS));
    }

    #[test]
    fn bits_are_flipped_in_whatever_piece_they_lie() {
        let layout = Layout::of_ranges(512, vec![512, 1024]);
        let flip = Flip { at: 3, range: Some(1), mask: vec![0xff, 0x0f] };
        let mut whole = vec![0; 1024];
        flip.apply(&layout, 0, &mut whole);
        assert_eq!((whole[514], whole[515], whole[516], whole[517]), (0, 0xff, 0x0f, 0));
        let (mut before, mut behind) = (vec![0; 516], vec![0; 508]);
        flip.apply(&layout, 0, &mut before);
        flip.apply(&layout, 516, &mut behind);
        assert_eq!([before, behind].concat(), whole);
        Flip { range: Some(2), ..flip }.apply(&layout, 0, &mut whole);
        assert_eq!(whole[515], 0xff, "there is no such range");
    }

    #[test]
    fn an_edit_ends_with_the_data() {
        let mut data = [0; 4];
        Edit { at: 3, bytes: vec![1, 2] }.apply(&mut data);
        Edit { at: 9, bytes: vec![3] }.apply(&mut data);
        assert_eq!(data, [0, 0, 0, 1]);
    }
}
