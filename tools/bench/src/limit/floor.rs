//! Two threads on two CPUs: one hands over 64 bytes, the other copies a block and answers 16. What is left
//! when a server has nothing to do but that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use nvme_host::memory::PAGE;
use nvme_host::{Memory, Rng};

use crate::contest::Contestant;
use crate::cpu;
use crate::pattern::{Pattern, Step};
use crate::row::Row;
use crate::tally::{Run, Tally, histogram};

/// Offset of the 64 bytes; their last dword is the ticket.
const COMMAND: usize = 0;
/// Offset of the 16 bytes, a page further: no line is shared, nor fetched along.
const ANSWER: usize = PAGE;
/// Offset of the block.
const BLOCK: usize = 2 * PAGE;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Floor {
    set: Memory,
    shared: Memory,
    row: Row,
    cpus: Vec<usize>,
    patience: Duration,
}

impl Floor {
    /// A working set of `span` bytes.
    pub(crate) fn new(row: &Row, span: u64, cpus: &[usize], patience: Duration) -> anyhow::Result<Self> {
        let set = Memory::private(usize::try_from(span)?, true)?;
        set.fill(&mut Rng::numbered(1));
        let shared = Memory::private(2 * PAGE + row.bytes as usize, false)?;
        shared.fill(&mut Rng::numbered(2));
        Ok(Self { set, shared, row: row.clone(), cpus: cpu::pair(cpus), patience })
    }

    /// The server's part.
    fn answer(&self, over: &AtomicBool) -> anyhow::Result<()> {
        cpu::pin(&self.cpus, 1)?;
        let ticket = self.shared.word(COMMAND + 60);
        let mut last = 0;
        while !over.load(Ordering::Relaxed) {
            let now = ticket.load(Ordering::Acquire);
            if now == last {
                std::hint::spin_loop();
                continue;
            }
            last = now;
            let mut command = [0; 60];
            self.shared.read(COMMAND, &mut command);
            let piece = command.get(40..48).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
            let piece = std::hint::black_box(piece.unwrap_or_default()) as usize;
            let len = self.row.bytes as usize;
            self.shared.copy(BLOCK, &self.set, piece * len, len);
            self.shared.write(ANSWER, &[0; 12]);
            self.shared.word(ANSWER + 12).store(now, Ordering::Release);
        }
        Ok(())
    }

    /// The host's part.
    fn ask(&self, warm_up: Duration, measured: Duration) -> anyhow::Result<Tally> {
        cpu::pin(&self.cpus, 0)?;
        let mut latency = histogram();
        let mut pattern =
            Pattern::new(self.row.rw, self.row.mix, self.set.size() as u64 / self.row.bytes, 0, 1);
        let (ticket, answer) = (self.shared.word(COMMAND + 60), self.shared.word(ANSWER + 12));
        let (mut command, mut next) = ([0; 60], 0_u32);
        let begun = Instant::now();
        let (mut before, mut from, mut commands) = (Duration::ZERO, None, 0);
        loop {
            let (Step::Read(piece) | Step::Write(piece) | Step::Copy { to: piece, .. }) = pattern.next();
            command[40..48].copy_from_slice(&piece.to_le_bytes());
            self.shared.write(COMMAND, &command);
            next = if next == u32::MAX { 1 } else { next + 1 };
            ticket.store(next, Ordering::Release);
            let mut looks = 0_u32;
            while answer.load(Ordering::Acquire) != next {
                std::hint::spin_loop();
                looks = looks.wrapping_add(1);
                let waited =
                    if looks.is_multiple_of(4096) { begun.elapsed() - before } else { Duration::ZERO };
                ensure!(waited < self.patience, "the second thread of the floor gets no CPU");
            }
            let now = begun.elapsed();
            match from {
                None if now >= warm_up => from = Some(now),
                None => {}
                Some(from) => {
                    commands += 1;
                    latency.saturating_record((now - before).as_nanos() as u64);
                    if now - from >= measured {
                        let nanos = (now - from).as_nanos() as u64;
                        return Ok(Tally { commands, bytes: commands * self.row.bytes, nanos, latency });
                    }
                }
            }
            before = now;
        }
    }
}

impl Contestant for Floor {
    fn name(&self) -> String {
        "limit floor".to_owned()
    }

    fn run(&mut self, warm_up: Duration, measured: Duration) -> anyhow::Result<Run> {
        let (this, over) = (&*self, &AtomicBool::new(false));
        // Both tickets at the value the answering thread begins with.
        this.shared.clear(COMMAND, 2 * PAGE);
        std::thread::scope(|scope| {
            let answers = scope.spawn(|| this.answer(over));
            let asks = scope.spawn(|| {
                let tally = this.ask(warm_up, measured);
                over.store(true, Ordering::Relaxed);
                tally
            });
            let panicked = || anyhow::anyhow!("a thread of the floor panicked");
            let tally = asks.join().map_err(|_| panicked())?;
            // A partner that could not begin is the reason why nobody answered.
            answers.join().map_err(|_| panicked())??;
            Ok(Run::of(&[tally?]))
        })
    }
}
