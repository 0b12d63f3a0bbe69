//! What the words of a rule said, before it is known whether they fit together.

use std::time::Duration;

use super::matches::DwordMatch;
use super::ops::Ops;
use super::rule::{FlipAt, Hold, HoldAt};
use super::values::Window;
use crate::laboratory::lands::Lands;
use crate::laboratory::script::{Edit, Post};
use crate::spec::Status;

/// What was given so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub name: Option<String>,
    pub ops: Option<Ops>,
    pub queue: Option<u16>,
    pub nsid: Option<u32>,
    pub lba: Option<Window>,
    pub start: Option<u64>,
    pub nr_sectors: Option<u64>,
    pub source: Option<Window>,
    pub range: Option<u8>,
    pub dwords: Vec<DwordMatch>,
    pub count: Option<i64>,
    pub times: Option<u64>,
    pub every: Option<u64>,
    pub skip: Option<u64>,
    pub nth: Option<u64>,
    pub below: Option<u64>,
    pub seed: Option<u64>,
    pub depth: Option<usize>,
    pub file: Option<String>,
    pub after: Option<String>,
    pub status: Option<Status>,
    pub dnr: bool,
    pub more: Option<bool>,
    pub crd: Option<u8>,
    pub dw0: Option<u32>,
    pub partial: Option<Partial>,
    pub torn: Option<u64>,
    pub flip: Option<FlipAt>,
    pub bad: bool,
    pub holds: Vec<Hold>,
    pub place: Option<HoldAt>,
    pub posts: Vec<Post>,
    pub spurious: bool,
    pub busy: Option<Duration>,
    pub cfs: bool,
    pub edits: Vec<Edit>,
}

/// How much of a command's data lands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Partial {
    Lands(Lands),
    /// All of it, and DW0 says that only so many ranges did.
    Beyond(u32),
}
