//! A worker's queues, and what only it knows of them.

use std::time::Instant;

use super::interrupt::Owed;
use super::messages::Token;
use super::slots::Taken;
use crate::memory::{DmaError, DmaMap};
use crate::nvme_ctrl::doorbells::DoorbellValue;
use crate::nvme_ctrl::queue::{CompletionQueue, Post, SubmissionQueue};
use crate::spec::Outcome;

/// A submission queue and what only its worker knows of it.
#[derive(Debug)]
pub(super) struct Sq {
    pub ring: SubmissionQueue,
    /// Commands fetched and not yet ended.
    pub in_flight: Taken,
    /// The message to acknowledge when none is in flight; nothing is fetched from now on.
    pub deleting: Option<Token>,
    /// Tail.
    pub tail: DoorbellValue,
    /// The register when the shadow of the tail was last looked at.
    pub register: u32,
    /// What its event index says, if that is known.
    pub event: Option<u16>,
    /// A laboratory has nothing fetched from it until then.
    pub busy: Option<Instant>,
}

impl Sq {
    /// Does a laboratory have nothing fetched from it now?
    pub fn is_busy(&self) -> bool {
        self.busy.is_some_and(|until| Instant::now() < until)
    }
}

/// A completion queue and what is owed to its host.
#[derive(Debug)]
pub(super) struct Cq {
    pub ring: CompletionQueue,
    pub owed: Owed,
    /// Head. The ring has its value too.
    pub head: DoorbellValue,
    /// The register when the shadow of the head was last looked at.
    pub register: u32,
    /// What its event index says, if that is known.
    pub event: Option<u16>,
}

impl Cq {
    /// Writes a completion into the entry that was reserved for it, and owes its host an interrupt. What it says of a
    /// failure is for the log. Inlined, as is what it calls: it is a part of every command.
    #[inline]
    pub fn post(
        &mut self,
        sq: &SubmissionQueue,
        cid: u16,
        outcome: Outcome,
        memory: &DmaMap,
    ) -> Result<(), String> {
        self.write(sq, cid, outcome, memory)?;
        self.owed.post();
        Ok(())
    }

    /// As [`Self::post`], without the interrupt.
    #[inline]
    pub fn write(
        &mut self,
        sq: &SubmissionQueue,
        cid: u16,
        outcome: Outcome,
        memory: &DmaMap,
    ) -> Result<(), String> {
        let post = Post { sqid: sq.qid, sqhd: sq.head(), cid, status: outcome.status, dw0: outcome.dw0 };
        let posted: Result<(), DmaError> = self.ring.post(memory, &post);
        posted.map_err(|error| format!("completion queue {}: {error}", self.ring.qid))
    }
}
