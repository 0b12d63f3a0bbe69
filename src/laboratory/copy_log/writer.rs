//! The thread that writes a copy log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};

use super::file::LogFile;
use super::follow::Followers;
use super::queue::{Counts, Message};
use super::record::{CopyRecord, Dropped, Ending, Line, Opening, SCHEMA};
use super::text::Stamp;

/// Bytes of lines that are written together at least, while there are more.
const BATCH: usize = 64 << 10;

/// See the module docs.
pub(super) struct Writer {
    queue: Receiver<Message>,
    counts: Arc<Counts>,
    followers: Arc<Followers>,
    file: Option<LogFile>,
    /// For the file.
    batch: String,
    /// Copies that it tells of.
    in_batch: u64,
    copies: u64,
    dropped: u64,
}

/// The first line of a log.
pub(super) fn opening() -> Line {
    Line::Log(Opening { schema: SCHEMA, version: env!("CARGO_PKG_VERSION").to_owned(), time: Stamp::now() })
}

impl Writer {
    pub fn new(
        queue: Receiver<Message>,
        counts: Arc<Counts>,
        followers: Arc<Followers>,
        file: Option<LogFile>,
    ) -> Self {
        Self { queue, counts, followers, file, batch: String::new(), in_batch: 0, copies: 0, dropped: 0 }
    }

    /// Writes what comes until it is told that no more will come.
    pub fn run(mut self) {
        if self.file.is_some() {
            self.write(&opening(), 0, false);
            self.flush();
        }
        while let Ok(message) = self.queue.recv() {
            let mut next = Ok(message);
            loop {
                match next {
                    Ok(Message::Copy(record, bytes)) => {
                        self.counts.taken(bytes);
                        self.copy(record);
                    }
                    Ok(Message::End(done)) => {
                        self.end();
                        return drop(done);
                    }
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
                if self.batch.len() >= BATCH {
                    self.flush();
                }
                next = self.queue.try_recv();
            }
            self.tell_dropped();
            self.flush();
        }
    }

    fn copy(&mut self, mut record: Box<CopyRecord>) {
        self.tell_dropped();
        self.copies += 1;
        self.counts.copies.store(self.copies, Ordering::Relaxed);
        record.number = self.copies;
        self.write(&Line::Copy(record), 1, true);
    }

    fn tell_dropped(&mut self) {
        let count = self.counts.take_dropped();
        if count > 0 {
            self.dropped = self.dropped.saturating_add(count);
            self.counts.told.store(self.dropped, Ordering::Relaxed);
            let why = "they came faster than they were written".to_owned();
            self.write(&Line::Dropped(Dropped { count, why, time: Stamp::now() }), count, true);
        }
    }

    fn end(&mut self) {
        self.tell_dropped();
        let ending = Ending { copies: self.copies, dropped: self.dropped, time: Stamp::now() };
        self.write(&Line::End(ending), 0, true);
        self.flush();
        self.followers.end();
        let missing = self.file.as_ref().map_or(0, LogFile::missing);
        if missing > 0 {
            log::error!("the copy log ends without its last {missing} Copies");
        }
    }

    /// A line that tells of so many Copies, to the file and `all` who follow.
    fn write(&mut self, line: &Line, copies: u64, all: bool) {
        let Ok(text) = serde_json::to_string(line) else {
            debug_assert!(false, "{line:?}");
            return;
        };
        if self.file.is_some() {
            self.batch.push_str(&text);
            self.batch.push('\n');
            self.in_batch += copies;
        }
        if all {
            self.followers.tell(&text.into(), copies);
        }
    }

    fn flush(&mut self) {
        if let Some(file) = &mut self.file
            && !self.batch.is_empty()
        {
            file.write(self.batch.as_bytes(), self.in_batch);
        }
        self.batch.clear();
        self.in_batch = 0;
    }
}
