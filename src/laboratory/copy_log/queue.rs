//! From the workers to the thread that writes: bounded, and never waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};

use super::record::{CopyRecord, MovedRecord, RangeRecord, StretchRecord};

/// Records that may wait to be written.
const RECORDS: usize = 8192;

/// Bytes that those may have: of 100 000 short ones, or a thousand of 256 ranges.
const BYTES: usize = 64 << 20;

/// What the writer is told.
pub(super) enum Message {
    /// To be written. How many bytes it was counted with.
    Copy(Box<CopyRecord>, usize),
    /// No more will come; to be dropped when all is written.
    End(Sender<()>),
}

/// How much waits, and what did not get in.
#[derive(Debug, Default)]
pub(super) struct Counts {
    bytes: AtomicUsize,
    dropped: AtomicU64,
    /// Written, over all time.
    pub copies: AtomicU64,
    /// Dropped and told, over all time.
    pub told: AtomicU64,
}

impl Counts {
    /// A record has been taken out.
    pub fn taken(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Copies that were written, and those that were dropped.
    pub fn all(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.copies), load(&self.told).saturating_add(load(&self.dropped)))
    }

    /// Copies that were dropped since this was asked last.
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

/// Where records go in.
#[derive(Clone)]
pub(super) struct Outlet {
    sender: SyncSender<Message>,
    counts: Arc<Counts>,
}

/// Both ends.
pub(super) fn queue() -> (Outlet, Receiver<Message>, Arc<Counts>) {
    let (sender, receiver) = sync_channel(RECORDS);
    let counts = Arc::new(Counts::default());
    (Outlet { sender, counts: Arc::clone(&counts) }, receiver, counts)
}

impl Outlet {
    /// Sends a record, or counts it as dropped where that would have to wait.
    pub fn send(&self, record: Box<CopyRecord>) {
        let bytes = weight(&record);
        let before = self.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= BYTES;
        if !fits || self.sender.try_send(Message::Copy(record, bytes)).is_err() {
            self.counts.taken(bytes);
            self.lost();
        }
    }

    /// What has become of all.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// A Copy has no record.
    pub fn lost(&self) {
        self.counts.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Says that no more will come; `None` while there is no room to say so. What comes back ends when all is written.
    pub fn end(&self) -> Option<Receiver<()>> {
        let (done, all_done) = std::sync::mpsc::channel();
        self.sender.try_send(Message::End(done)).ok().map(|()| all_done)
    }
}

/// Bytes of memory that a record takes, about.
fn weight(record: &CopyRecord) -> usize {
    let ranges = record.ranges.as_ref().map_or(0, Vec::len) * size_of::<RangeRecord>();
    let steps = record.plan.iter().flat_map(|plan| &plan.steps);
    let stretches: usize = steps.map(|step| 1 + step.held.len() + step.stretches.len()).sum();
    let stretch = size_of::<StretchRecord>() + 16;
    size_of::<CopyRecord>() + ranges + stretches * stretch + record.moved.len() * size_of::<MovedRecord>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let (outlet, queue, counts) = queue();
        for _ in 0..RECORDS + 5 {
            outlet.send(Box::default());
        }
        assert_eq!((counts.take_dropped(), counts.take_dropped()), (5, 0));
        assert!(outlet.end().is_none(), "there is no room for that either");
        let Ok(Message::Copy(_, bytes)) = queue.recv() else { panic!("a record") };
        counts.taken(bytes);
        let done = outlet.end().expect("there is room");
        drop(queue);
        assert!(done.recv().is_err(), "nobody is left to wait for");
    }

    #[test]
    fn bytes_are_bounded_too_and_come_back() {
        let (outlet, queue, counts) = queue();
        let large =
            || CopyRecord { ranges: Some(vec![RangeRecord::default(); 256]), ..CopyRecord::default() };
        let most = BYTES / weight(&large());
        assert!(most < RECORDS);
        for _ in 0..most + 3 {
            outlet.send(Box::new(large()));
        }
        assert_eq!(counts.take_dropped(), 3);
        while let Ok(Message::Copy(_, bytes)) = queue.try_recv() {
            counts.taken(bytes);
        }
        assert_eq!(counts.bytes.load(Ordering::Relaxed), 0);
    }
}
