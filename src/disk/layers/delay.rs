//! A disk that takes its time: every operation begins so much later.

use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use crate::disk::{Disk, DiskError, Done, Inbox, Lane, Op, SharedDisk, Tag};

/// See the module docs.
#[derive(Debug)]
pub struct Delay {
    disk: SharedDisk,
    delay: Duration,
    /// To the thread that keeps the time.
    later: Sender<(Instant, Inbox, Tag, Op)>,
}

impl Delay {
    /// Over any disk, by `delay`.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn over(disk: SharedDisk, delay: Duration) -> std::io::Result<Self> {
        let (later, waiting) = channel::<(Instant, Inbox, Tag, Op)>();
        let inner = disk.clone();
        std::thread::Builder::new().name("delay".to_owned()).spawn(move || {
            // In order: all wait as long.
            for (due, inbox, tag, op) in waiting {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let disk = inner.clone();
                inbox.run(move |lane| disk.submit(tag, op, lane));
            }
        })?;
        Ok(Delay { disk, delay, later })
    }
}

impl Disk for Delay {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn submit(&self, tag: Tag, op: Op, lane: &mut Lane) {
        let sent = self.later.send((Instant::now() + self.delay, lane.inbox(), tag, op));
        if let Err(gone) = sent {
            let error = std::io::Error::other("the thread that keeps the time is gone");
            lane.done(Done { tag, result: Err(DiskError::Io(error)), buf: gone.0.3.into_buf() });
        }
    }

    fn name(&self) -> &str {
        self.disk.name()
    }
}
