//! A program that runs in the guest while we do something else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use guest_agent::wire::{Reply, Request};

use crate::channel::{Channel, Replies};
use crate::guest::{Guest, Output};

/// The program, from its start to its end.
#[derive(Debug)]
pub struct Job<'g> {
    guest: &'g Guest,
    replies: Replies,
    output: Output,
    ended: bool,
}

/// Standard input of a program in the guest. Outlives the [`Job`], so that a thread may wait for what comes
/// next.
#[derive(Debug)]
pub struct Input {
    channel: Arc<Channel>,
    job: u64,
}

/// As good as never.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl Input {
    /// Hands over the next bytes, none for the end of the input, and waits until the program has taken them:
    /// so no more than one piece of it is in the guest. False when nobody reads any more.
    ///
    /// # Errors
    /// When the guest is gone, or the program has ended.
    pub fn send(&self, bytes: &[u8]) -> anyhow::Result<bool> {
        let job = self.job;
        let replies = self.channel.request(|id| Request::Input { id, job }, bytes)?;
        Ok(matches!(replies.next(Instant::now() + NEVER)?, Some((Reply::Done { .. }, _))))
    }
}

impl<'g> Job<'g> {
    pub(crate) fn new(guest: &'g Guest, replies: Replies) -> Self {
        Self { guest, replies, output: Output::default(), ended: false }
    }

    /// Its standard input, if it was started with one.
    #[must_use]
    pub fn input(&self) -> Input {
        Input { channel: Arc::clone(self.guest.channel()), job: self.replies.id }
    }

    /// Standard output so far.
    #[must_use]
    pub fn stdout(&self) -> &[u8] {
        &self.output.stdout
    }

    /// Takes what comes until `until`; true when the program has ended.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn follow(&mut self, until: Instant) -> anyhow::Result<bool> {
        while !self.ended {
            match self.replies.next(until)? {
                None => return Ok(false),
                Some((Reply::Out { .. }, bytes)) => self.output.stdout.extend(bytes),
                Some((Reply::Err { .. }, bytes)) => self.output.stderr.extend(bytes),
                Some((Reply::Exit { code, .. }, _)) => {
                    self.output.code = code;
                    self.ended = true;
                }
                Some((other, _)) => bail!("unexpected reply {other:?}"),
            }
        }
        Ok(true)
    }

    /// Hands over what came since the last call, waiting until `until` at most; `None` after the end.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn take(&mut self, until: Instant) -> anyhow::Result<Option<(Vec<u8>, Vec<u8>)>> {
        if !self.ended && self.output.stdout.is_empty() && self.output.stderr.is_empty() {
            match self.replies.next(until)? {
                None => {}
                Some((Reply::Out { .. }, bytes)) => self.output.stdout = bytes,
                Some((Reply::Err { .. }, bytes)) => self.output.stderr = bytes,
                Some((Reply::Exit { code, .. }, _)) => {
                    self.output.code = code;
                    self.ended = true;
                }
                Some((other, _)) => bail!("unexpected reply {other:?}"),
            }
        }
        let (out, err) = (std::mem::take(&mut self.output.stdout), std::mem::take(&mut self.output.stderr));
        Ok((!self.ended || !out.is_empty() || !err.is_empty()).then_some((out, err)))
    }

    /// Exit code, once [`Self::take`] or [`Self::follow`] saw the end.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.ended.then_some(self.output.code)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When it does not come within `limit`; the program is killed then.
    pub fn finish(mut self, limit: Duration) -> anyhow::Result<Output> {
        if !self.follow(Instant::now() + limit).with_context(|| self.guest.logs())? {
            self.kill()?;
            self.follow(Instant::now() + Duration::from_secs(5))?;
            bail!("no end after {limit:?}; so far:\n{}\n{}", self.output.all(), self.guest.logs());
        }
        Ok(self.output)
    }

    /// Kills the program and its children in the guest.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn kill(&self) -> anyhow::Result<()> {
        let id = self.replies.id;
        drop(self.guest.channel().request(|_| Request::Kill { id }, &[])?);
        Ok(())
    }
}
