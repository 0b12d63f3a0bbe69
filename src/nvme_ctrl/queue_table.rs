//! Which I/O queues exist, as the control thread knows it: enough to check doorbells and queue commands.

/// A submission queue that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqEntry {
    /// Entries, 1-based.
    pub size: u32,
    /// The completion queue it posts to.
    pub cqid: u16,
    /// Delete I/O Submission Queue is under way.
    pub deleting: bool,
}

/// A completion queue that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CqEntry {
    /// Entries, 1-based.
    pub size: u32,
    /// Delete I/O Completion Queue is under way.
    pub deleting: bool,
}

/// Queues by id, from 1.
#[derive(Debug)]
pub struct QueueTable {
    sqs: Vec<Option<SqEntry>>,
    cqs: Vec<Option<CqEntry>>,
}

impl QueueTable {
    /// Room for `pairs` I/O queue pairs.
    pub fn new(pairs: u16) -> Self {
        let places = usize::from(pairs) + 1;
        Self { sqs: vec![None; places], cqs: vec![None; places] }
    }

    /// Forgets all queues.
    pub fn clear(&mut self) {
        self.sqs.fill(None);
        self.cqs.fill(None);
    }

    /// Is `qid` one that an I/O queue could have?
    pub fn is_valid(&self, qid: u16) -> bool {
        qid != 0 && usize::from(qid) < self.sqs.len()
    }

    /// The submission queue `qid`.
    pub fn sq(&self, qid: u16) -> Option<SqEntry> {
        self.sqs.get(usize::from(qid)).copied().flatten()
    }

    /// The completion queue `qid`.
    pub fn cq(&self, qid: u16) -> Option<CqEntry> {
        self.cqs.get(usize::from(qid)).copied().flatten()
    }

    /// Sets or forgets the submission queue `qid`.
    pub fn set_sq(&mut self, qid: u16, entry: Option<SqEntry>) {
        if let Some(place) = self.sqs.get_mut(usize::from(qid)) {
            *place = entry;
        }
    }

    /// Sets or forgets the completion queue `qid`.
    pub fn set_cq(&mut self, qid: u16, entry: Option<CqEntry>) {
        if let Some(place) = self.cqs.get_mut(usize::from(qid)) {
            *place = entry;
        }
    }

    /// Does any submission queue post to `cqid`?
    pub fn is_bound(&self, cqid: u16) -> bool {
        self.sqs.iter().flatten().any(|sq| sq.cqid == cqid)
    }

    /// Is there any I/O queue?
    pub fn any(&self) -> bool {
        self.sqs.iter().any(Option::is_some) || self.cqs.iter().any(Option::is_some)
    }
}
