//! Admin commands that laboratories hold, and what they are to meet when they end. Each of them has its
//! completion entry reserved, so there are no more than that queue has.

use std::borrow::Cow;
use std::time::Instant;

use crate::laboratory::{Script, Until};
use crate::spec::{Outcome, Sqe};

/// A command that has not begun.
#[derive(Debug)]
pub struct Held {
    /// The command.
    pub sqe: Sqe,
    /// What it meets.
    pub script: Script,
}

/// See the module docs.
#[derive(Debug, Default)]
pub struct Scripted {
    held: Vec<Held>,
    /// By CID.
    running: Vec<(u16, Script)>,
    /// They have ended like this, and the host does not know yet.
    ended: Vec<(u16, Outcome, Script)>,
}

impl Scripted {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.held.len() + self.running.len() + self.ended.len()
    }

    /// Is a command held?
    pub fn any_held(&self) -> bool {
        !self.held.is_empty() || !self.ended.is_empty()
    }

    /// The command waits before it begins.
    pub fn hold(&mut self, sqe: Sqe, script: Script) {
        self.held.push(Held { sqe, script });
    }

    /// The command runs.
    pub fn runs(&mut self, cid: u16, script: Script) {
        self.running.push((cid, script));
    }

    /// The command has ended, and waits.
    pub fn hold_end(&mut self, cid: u16, outcome: Outcome, script: Script) {
        self.ended.push((cid, outcome, script));
    }

    /// What a command that runs is to meet, if anything. Told once.
    pub fn take_running(&mut self, cid: u16) -> Option<Script> {
        let at = self.running.iter().position(|(of, _)| *of == cid)?;
        Some(self.running.remove(at).1)
    }

    /// The first command that may begin now.
    pub fn next_to_begin(&mut self, now: Instant) -> Option<Held> {
        let at = self.held.iter().position(|held| held.script.begin.is_over(now))?;
        Some(self.held.remove(at))
    }

    /// The first command whose end may be told now.
    pub fn next_to_end(&mut self, now: Instant) -> Option<(u16, Outcome, Script)> {
        let at = self.ended.iter().position(|(_, _, script)| script.end.is_over(now))?;
        Some(self.ended.remove(at))
    }

    /// When one of them may go on by itself, if one does.
    pub fn due(&self) -> Option<Instant> {
        let begin = self.held.iter().map(|held| &held.script.begin);
        let end = self.ended.iter().map(|(_, _, script)| &script.end);
        begin.chain(end).filter_map(Until::due).min()
    }

    /// The data that `sqe` is to send.
    pub fn edit<'d>(&self, sqe: &Sqe, data: &'d [u8]) -> Cow<'d, [u8]> {
        let running = self.running.iter().find(|(cid, _)| *cid == sqe.cid.get());
        let mut data = Cow::Borrowed(data);
        for edit in running.map_or(&[][..], |(_, script)| &script.edits) {
            edit.apply(data.to_mut());
        }
        data
    }
}
