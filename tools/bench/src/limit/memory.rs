//! One thread that copies the blocks a memory namespace would copy, and does nothing else.

use std::time::{Duration, Instant};

use nvme_host::{Memory, Rng};

use crate::contest::Contestant;
use crate::cpu;
use crate::pattern::{Pattern, Step};
use crate::row::Row;
use crate::tally::{Run, Tally, histogram};

/// memcpy between a working set and as many buffers as commands would be in flight.
#[derive(Debug)]
pub(crate) struct Copying {
    set: Memory,
    buffers: Memory,
    row: Row,
    cpus: Vec<usize>,
    huge: bool,
}

impl Copying {
    /// A working set of `span` bytes.
    pub(crate) fn new(row: &Row, span: u64, huge: bool, cpus: &[usize]) -> anyhow::Result<Self> {
        let set = Memory::private(usize::try_from(span)?, huge)?;
        set.fill(&mut Rng::numbered(1));
        let buffers = row.bytes as usize * usize::from(row.depth) * usize::from(row.queues);
        // Small pages, as guest memory has them.
        let buffers = Memory::private(buffers, false)?;
        buffers.fill(&mut Rng::numbered(2));
        Ok(Self { set, buffers, row: row.clone(), cpus: cpus.to_vec(), huge })
    }

    fn copy(&self, warm_up: Duration, measured: Duration) -> Tally {
        let len = self.row.bytes as usize;
        let count = self.buffers.size() / len;
        let mut pattern =
            Pattern::new(self.row.rw, self.row.mix, self.set.size() as u64 / self.row.bytes, 0, 1);
        let at = |piece: u64| piece as usize * len;
        // One look at the clock for as many copies as a server would complete between two looks of the host.
        let batch = count.max(8);
        let begun = Instant::now();
        let (mut from, mut commands) = (None, 0);
        loop {
            for slot in 0..batch {
                let buffer = slot % count * len;
                match pattern.next() {
                    Step::Read(piece) => self.buffers.copy(buffer, &self.set, at(piece), len),
                    Step::Write(piece) => self.set.copy(at(piece), &self.buffers, buffer, len),
                    Step::Copy { from, to } => self.set.copy(at(to), &self.set, at(from), len),
                }
            }
            let now = begun.elapsed();
            match from {
                None if now >= warm_up => from = Some(now),
                None => {}
                Some(from) => {
                    commands += batch as u64;
                    if now - from >= measured {
                        let nanos = (now - from).as_nanos() as u64;
                        return Tally {
                            commands,
                            bytes: commands * self.row.bytes,
                            nanos,
                            latency: histogram(),
                        };
                    }
                }
            }
        }
    }
}

impl Contestant for Copying {
    fn name(&self) -> String {
        if self.huge { "limit memory" } else { "limit memory:4k" }.to_owned()
    }

    fn run(&mut self, warm_up: Duration, measured: Duration) -> anyhow::Result<Run> {
        let this = &*self;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                cpu::pin(&this.cpus, 0)?;
                Ok(Run::of(&[this.copy(warm_up, measured)]))
            });
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the copying thread panicked")))
        })
    }
}
