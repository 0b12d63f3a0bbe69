//! A disk with a volatile cache, as a laboratory: remembers the writes of an image and what made them durable,
//! and says what a power cut could leave.
//!
//! A kill of the process cannot show a missing fdatasync, because the page cache survives it. This log sits
//! on the real calls ([`Tap`]), so what is tested is what the kernel was told.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Call, Tap};

/// What a disk writes whole: a power cut leaves all or nothing of it.
const SECTOR: usize = 512;

/// See the module docs. Holds the image in memory: for test images of some MiB.
#[derive(Debug, Default)]
pub struct VolatileLog {
    state: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    /// The image as it is certain to survive.
    base: Vec<u8>,
    /// Writes not yet in `base`, in the order they were issued.
    writes: VecDeque<Write>,
    /// Numbers calls and completions, in the order they happened.
    clock: u64,
}

#[derive(Debug)]
struct Write {
    ticket: u64,
    offset: usize,
    content: Content,
    completed: Option<u64>,
    durable: bool,
}

#[derive(Debug)]
enum Content {
    Data(Vec<u8>),
    Zeroes(usize),
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Content::Data(data) => data.len(),
            Content::Zeroes(len) => *len,
        }
    }

    /// Puts bytes `from..to` of the content to their place in `image`, as far as it reaches.
    fn apply(&self, image: &mut [u8], offset: usize, from: usize, to: usize) {
        let end = (offset + to).min(image.len());
        let Some(target) = image.get_mut(offset + from..end) else {
            return;
        };
        match self {
            Content::Data(data) => target.copy_from_slice(&data[from..from + target.len()]),
            Content::Zeroes(_) => target.fill(0),
        }
    }
}

impl VolatileLog {
    /// A log to be given to [`crate::disk::FileOptions::tap`]; it takes the image's content when it is opened.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// An image as a power cut now could leave it: all that was made durable, and of the rest what `seed`
    /// says, in whole writes or torn at sectors. The same seed says the same.
    pub fn power_cut(&self, seed: u64) -> Vec<u8> {
        let state = self.state();
        let mut image = state.base.clone();
        let mut random = SplitMix(seed);
        for write in &state.writes {
            let len = write.content.len();
            // Durable: all. Else a third each: nothing, all, some sectors.
            let fate = if write.durable { 1 } else { random.below(3) };
            match fate {
                0 => {}
                1 => write.content.apply(&mut image, write.offset, 0, len),
                _ => {
                    let mut from = 0;
                    while from < len {
                        // Sectors of the disk, not of the write.
                        let to = (from + SECTOR - (write.offset + from) % SECTOR).min(len);
                        if random.below(2) == 1 {
                            write.content.apply(&mut image, write.offset, from, to);
                        }
                        from = to;
                    }
                }
            }
        }
        image
    }

    /// Writes that a power cut now could lose.
    pub fn volatile_writes(&self) -> usize {
        self.state().writes.iter().filter(|w| !w.durable).count()
    }

    fn state(&self) -> MutexGuard<'_, Log> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Moves the durable head of the log to the base, so that the log does not grow for ever.
    fn fold(&mut self) {
        while let Some(write) = self.writes.front()
            && write.durable
        {
            let len = write.content.len();
            write.content.apply(&mut self.base, write.offset, 0, len);
            self.writes.pop_front();
        }
    }
}

impl Tap for VolatileLog {
    fn opened(&self, image: &File, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut base = vec![0; len];
        image.read_exact_at(&mut base, 0)?;
        *self.state() = Log { base, ..Log::default() };
        Ok(())
    }

    fn issued(&self, call: &Call, data: &[u8], source: &File) -> u64 {
        let content = |from, len| Content::Data(content(source, from, len));
        let mut state = self.state();
        let ticket = state.tick();
        let (offset, content) = match call {
            Call::Preadv { .. } | Call::Seek { .. } | Call::ExtentEnd { .. } | Call::Fdatasync => {
                return ticket;
            }
            Call::Pwritev { offset, .. } => (*offset, Content::Data(data.to_vec())),
            Call::CloneRange { from, offset, len } | Call::CopyRange { from, offset, len } => {
                (*offset, content(*from, *len))
            }
            // Both modes that are used make zeroes.
            Call::Fallocate { offset, len, .. } => (*offset, Content::Zeroes(*len as usize)),
        };
        state.writes.push_back(Write {
            ticket,
            offset: offset as usize,
            content,
            completed: None,
            durable: false,
        });
        ticket
    }

    fn completed(&self, ticket: u64, call: &Call, result: Result<u32, i32>) {
        let mut state = self.state();
        let now = state.tick();
        match (call, result) {
            (Call::Preadv { .. } | Call::Seek { .. } | Call::ExtentEnd { .. }, _)
            | (Call::Fdatasync, Err(_)) => return,
            (Call::Fdatasync, Ok(_)) => {
                for write in &mut state.writes {
                    // Only what was complete when the sync was issued is covered by it.
                    write.durable |= write.completed.is_some_and(|at| at < ticket);
                }
            }
            (
                Call::Fallocate { .. } | Call::CloneRange { .. } | Call::CopyRange { .. },
                Err(libc::EOPNOTSUPP | libc::EINVAL | libc::EXDEV | libc::ENOSYS),
            ) => {
                state.writes.retain(|write| write.ticket != ticket);
            }
            // Undefined: a power cut may leave any of it.
            (_, Err(_)) => return,
            (Call::Pwritev { .. } | Call::CopyRange { .. }, Ok(moved)) => {
                if let Some(write) = state.writes.iter_mut().find(|w| w.ticket == ticket) {
                    if let Content::Data(data) = &mut write.content {
                        data.truncate(moved as usize);
                    }
                    write.completed = Some(now);
                    write.durable = matches!(call, Call::Pwritev { dsync: true, .. });
                }
            }
            (Call::Fallocate { .. } | Call::CloneRange { .. }, Ok(_)) => {
                if let Some(write) = state.writes.iter_mut().find(|w| w.ticket == ticket) {
                    write.completed = Some(now);
                }
            }
        }
        state.fold();
    }
}

/// What a copy of this range would move; less where the file ends.
fn content(file: &File, from: u64, len: u64) -> Vec<u8> {
    // By another description: this one may be open for O_DIRECT, which wants aligned memory.
    let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
    let mut got = 0;
    while let (Ok(file), Some(left)) = (&file, data.get_mut(got..))
        && let Ok(more @ 1..) = file.read_at(left, from + got as u64)
    {
        got += more;
    }
    data.truncate(got);
    data
}

/// A small generator of reproducible numbers; nothing here depends on their quality.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not a copy.
    fn issued(log: &VolatileLog, call: &Call, data: &[u8]) -> u64 {
        log.issued(call, data, &File::open("/dev/null").expect("it opens"))
    }

    fn write(log: &VolatileLog, offset: u64, data: &[u8]) -> (u64, Call) {
        let call = Call::Pwritev { offset, dsync: false };
        (issued(log, &call, data), call)
    }

    fn log(len: u64) -> Arc<VolatileLog> {
        let log = VolatileLog::new();
        let file = tempfile::tempfile().expect("a file for the test");
        file.set_len(len).expect("it has a length");
        log.opened(&file, len).expect("it is read");
        log
    }

    #[test]
    fn a_sync_covers_what_was_complete_when_it_was_issued() {
        let log = log(2048);
        let (first, call) = write(&log, 0, &[1; 512]);
        let (second, _) = write(&log, 512, &[2; 512]);
        log.completed(first, &call, Ok(512));
        let sync = issued(&log, &Call::Fdatasync, &[]);
        log.completed(second, &call, Ok(512));
        let failed = issued(&log, &Call::Fdatasync, &[]);
        log.completed(failed, &Call::Fdatasync, Err(libc::EIO));
        assert_eq!(log.volatile_writes(), 2);
        log.completed(sync, &Call::Fdatasync, Ok(0));
        assert_eq!(log.volatile_writes(), 1);
        let cuts: Vec<_> = (0..64).map(|seed| log.power_cut(seed)).collect();
        assert!(cuts.iter().all(|cut| cut[..512] == [1; 512]));
        assert!(cuts.iter().any(|cut| cut[512..1024] == [2; 512]));
        assert!(cuts.iter().any(|cut| cut[512..1024] == [0; 512]));
        assert_eq!(log.power_cut(7), log.power_cut(7));
    }

    #[test]
    fn a_short_write_is_as_long_as_it_was_and_a_refused_one_is_none() {
        let log = log(1024);
        let (ticket, call) = write(&log, 0, &[1; 512]);
        log.completed(ticket, &call, Ok(100));
        let punch = Call::Fallocate { mode: 0, offset: 0, len: 1024 };
        let ticket = issued(&log, &punch, &[]);
        log.completed(ticket, &punch, Err(libc::EOPNOTSUPP));
        let sync = issued(&log, &Call::Fdatasync, &[]);
        log.completed(sync, &Call::Fdatasync, Ok(0));
        let cut = log.power_cut(1);
        assert_eq!((&cut[..100], &cut[100..]), (&[1; 100][..], &[0; 924][..]));
        assert_eq!(log.volatile_writes(), 0);
    }

    /// What is shared or copied between files is a write like any other.
    #[test]
    fn copies_are_writes() {
        let log = log(2048);
        let clone = Call::CloneRange { from: 0, offset: 0, len: 512 };
        let copy = Call::CopyRange { from: 0, offset: 1024, len: 1024 };
        let source = tempfile::tempfile().expect("a file for the test");
        source.write_all_at(&[3; 1024], 0).expect("it is written");
        let refused = log.issued(&clone, &[], &source);
        log.completed(refused, &clone, Err(libc::EXDEV));
        assert_eq!(log.volatile_writes(), 0);
        for (call, moved) in [(clone, 0), (copy, 512)] {
            let ticket = log.issued(&call, &[], &source);
            log.completed(ticket, &call, Ok(moved));
        }
        assert_eq!(log.volatile_writes(), 2);
        assert!((0..64).any(|seed| log.power_cut(seed)[..512] == [0; 512]));
        let sync = issued(&log, &Call::Fdatasync, &[]);
        log.completed(sync, &Call::Fdatasync, Ok(0));
        let cut = log.power_cut(1);
        let parts = [&cut[..512], &cut[512..1024], &cut[1024..1536], &cut[1536..]];
        assert_eq!(parts, [&[3; 512][..], &[0; 512], &[3; 512], &[0; 512]]);
    }

    /// Later durable data is not undone by older data that the cache wrote back, nor hidden by it.
    #[test]
    fn order_holds() {
        let log = log(512);
        let (old, call) = write(&log, 0, &[1; 512]);
        log.completed(old, &call, Ok(512));
        let dsync = Call::Pwritev { offset: 0, dsync: true };
        let new = issued(&log, &dsync, &[2; 256]);
        log.completed(new, &dsync, Ok(256));
        for seed in 0..64 {
            let cut = log.power_cut(seed);
            assert_eq!(cut[..256], [2; 256]);
            assert!(cut[256..] == [1; 256] || cut[256..] == [0; 256]);
        }
    }
}
