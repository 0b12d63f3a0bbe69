//! The loop: keeps one queue full and takes the time of every command.
//!
//! Commands are made before the run and differ only in opcode and block address, the clock is read once for
//! each batch of completions, and a batch of commands rings once: what is measured is the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use hdrhistogram::Histogram;
use nvme_host::memory::PAGE;
use nvme_host::nvme::{Range, copy, io};
use nvme_host::ring::SQE;
use nvme_host::{Memory, Rng, Sqe};
use vfio_user_nvme::spec::Status;
use vfio_user_nvme::spec::commands::nvm_name;

use super::controller::IOVA;
use super::pattern::{Pattern, Step};
use super::queue::QueuePair;
use super::tally::{Tally, histogram};

/// Looks at an empty queue before the thread lets others have its CPU, and between two looks at the clock.
const LOOKS: u32 = 4096;

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// After a warm-up that does not count, and then this long.
    Time {
        /// Not counted.
        warm_up: Duration,
        /// Counted.
        measured: Duration,
    },
    /// After so many commands, all of which count.
    Commands(u64),
}

/// What is done with the first bytes of each piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// Nothing.
    Ignore,
    /// Writes put the piece's block address there.
    Put,
    /// Reads must find it there.
    Check,
}

/// What all commands of one queue have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commands {
    pub(crate) nsid: u32,
    /// Bytes each.
    pub(crate) bytes: u64,
    /// Bytes of a block.
    pub(crate) block: u64,
    pub(crate) depth: u16,
}

/// One command's place.
#[derive(Debug)]
struct Slot {
    sqe: [u8; SQE],
    /// When it was handed over, in nanoseconds since the run began.
    since: u64,
    busy: bool,
    /// Offset in memory of the data; of the range descriptor, for Copy.
    data: usize,
}

/// One queue and its commands.
#[derive(Debug)]
pub(crate) struct Load {
    pair: QueuePair,
    memory: Arc<Memory>,
    slots: Vec<Slot>,
    commands: Commands,
    pub(crate) stamp: Stamp,
    patience: Duration,
    done: Vec<u16>,
}

/// Bytes of memory one queue's commands need.
pub(crate) fn data_room(depth: u16, bytes: u64, copy: bool) -> usize {
    let each = if copy { PAGE } else { bytes as usize + list_room(bytes) };
    usize::from(depth) * each.next_multiple_of(PAGE)
}

/// Bytes of the PRP list of a transfer of whole pages.
fn list_room(bytes: u64) -> usize {
    let pages = (bytes as usize).div_ceil(PAGE);
    // A full list page gives its last entry to the next; counted generously.
    if pages <= 2 { 0 } else { (pages * 8).next_multiple_of(PAGE) + pages * 8 / PAGE * PAGE }
}

impl Load {
    /// `at` is where [`data_room`] bytes of `memory` begin.
    pub(crate) fn new(
        pair: QueuePair,
        memory: Arc<Memory>,
        at: usize,
        commands: Commands,
        is_copy: bool,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let each = data_room(1, commands.bytes, is_copy);
        let mut rng = Rng::numbered(at as u64);
        let blocks = u32::try_from(commands.bytes / commands.block)?;
        ensure!((1..=65536).contains(&blocks), "{blocks} blocks are no command");
        let mut slots = Vec::new();
        for cid in 0..commands.depth {
            let data = at + usize::from(cid) * each;
            let prp1 = IOVA + data as u64;
            let sqe = if is_copy {
                memory.write(data, &Range::new(0, blocks).bytes(0));
                copy(commands.nsid, 0, 1, 0).prp(prp1, 0)
            } else {
                for word in (0..commands.bytes as usize).step_by(8) {
                    memory.write(data + word, &rng.next().to_le_bytes());
                }
                let prp2 = prp2(&memory, data, commands.bytes as usize);
                Sqe::new(io::READ).nsid(commands.nsid).lba(0, blocks).prp(prp1, prp2)
            };
            slots.push(Slot { sqe: sqe.cid(cid).0, since: 0, busy: false, data });
        }
        let done = Vec::with_capacity(slots.len());
        Ok(Self { pair, memory, slots, commands, stamp: Stamp::Ignore, patience, done })
    }

    /// Runs until its end or until `stop`; then nothing is outstanding.
    ///
    /// # Errors
    /// A command that failed or did not end; a completion of no command. The queue is unusable then.
    pub(crate) fn run(
        &mut self,
        mut pattern: Pattern,
        until: Until,
        stop: &AtomicBool,
    ) -> anyhow::Result<Tally> {
        let mut latency = histogram();
        let begun = Instant::now();
        let clock = || begun.elapsed().as_nanos() as u64;
        let (mut from, length, mut left) = match until {
            Until::Time { warm_up, measured } => (nanos(warm_up), nanos(measured), u64::MAX),
            Until::Commands(count) => (0, u64::MAX, count),
        };
        let mut measuring = matches!(until, Until::Commands(_));
        let (mut counted, mut end) = (0, 0);
        let mut ending = false;
        let mut outstanding = 0;
        for cid in 0..self.commands.depth {
            if left > 0 {
                left -= 1;
                self.start(cid, pattern.next(), 0);
                outstanding += 1;
            }
        }
        self.pair.submit()?;
        let (mut empty, mut last) = (0_u32, 0);
        while outstanding > 0 {
            self.reap()?;
            let got = self.done.len();
            if got == 0 {
                empty += 1;
                std::hint::spin_loop();
                if empty.is_multiple_of(LOOKS) {
                    let now = clock();
                    if now.saturating_sub(last) > nanos(self.patience) {
                        bail!(self.late());
                    }
                    ensure!(!stop.load(Ordering::Relaxed) || ending, "stopped");
                    std::thread::yield_now();
                }
                continue;
            }
            (empty, outstanding) = (0, outstanding - got);
            let now = clock();
            last = now;
            if measuring && !ending {
                self.record(&mut latency, now);
                counted += got as u64;
                end = now;
                ending = now - from >= length;
            } else if !measuring && now >= from {
                (measuring, from, end) = (true, now, now);
            }
            ending |= stop.load(Ordering::Relaxed);
            if !ending && left > 0 {
                for index in 0..got {
                    let Some(cid) = self.done.get(index).copied().filter(|_| left > 0) else { break };
                    left -= u64::from(left != u64::MAX);
                    self.start(cid, pattern.next(), now);
                    outstanding += 1;
                }
                self.pair.submit()?;
            }
            self.pair.release()?;
        }
        Ok(Tally { commands: counted, bytes: counted * self.commands.bytes, nanos: end - from, latency })
    }

    /// Puts the next command of a slot into the ring.
    fn start(&mut self, cid: u16, step: Step, now: u64) {
        let Some(slot) = self.slots.get_mut(usize::from(cid)) else { return };
        let blocks = self.commands.bytes / self.commands.block;
        let slba = match step {
            Step::Read(piece) => {
                slot.sqe[0] = io::READ;
                piece * blocks
            }
            Step::Write(piece) => {
                slot.sqe[0] = io::WRITE;
                piece * blocks
            }
            Step::Copy { from, to } => {
                self.memory.write(slot.data + 8, &(from * blocks).to_le_bytes());
                to * blocks
            }
        };
        slot.sqe[40..48].copy_from_slice(&slba.to_le_bytes());
        if self.stamp == Stamp::Put {
            self.memory.write(slot.data, &slba.to_le_bytes());
        }
        slot.since = now;
        slot.busy = true;
        self.pair.push(&slot.sqe);
    }

    /// Takes all completions there are into `done`.
    fn reap(&mut self) -> anyhow::Result<()> {
        self.done.clear();
        while let Some(taken) = self.pair.pop() {
            let (cid, status) = (taken.cid(), Status(taken.status()));
            let Some(slot) = self.slots.get_mut(usize::from(cid)).filter(|slot| slot.busy) else {
                bail!("a completion of command {cid}, which is not outstanding");
            };
            slot.busy = false;
            ensure!(status.is_success(), "{}: status {status:?}", describe(slot, &self.commands));
            if self.stamp == Stamp::Check {
                let mut stamp = [0; 8];
                self.memory.read(slot.data, &mut stamp);
                ensure!(
                    stamp == slot.sqe[40..48],
                    "{}: the data are not those that were written",
                    describe(slot, &self.commands)
                );
            }
            self.done.push(cid);
            if self.done.len() == self.slots.len() {
                break;
            }
        }
        Ok(())
    }

    fn record(&self, latency: &mut Histogram<u64>, now: u64) {
        for slot in self.done.iter().filter_map(|cid| self.slots.get(usize::from(*cid))) {
            latency.saturating_record(now.saturating_sub(slot.since));
        }
    }

    /// The error of a queue in which nothing moves: names the oldest command.
    fn late(&self) -> anyhow::Error {
        let oldest = self.slots.iter().filter(|slot| slot.busy).min_by_key(|slot| slot.since);
        let oldest = oldest.map(|slot| describe(slot, &self.commands)).unwrap_or_default();
        anyhow::anyhow!("{oldest}: no completion within --timeout ({} s)", self.patience.as_secs_f64())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// PRP2 of `bytes` whose first page begins at `data`; the list, if one is needed, is written right behind
/// them.
fn prp2(memory: &Memory, data: usize, bytes: usize) -> u64 {
    let pages = bytes.div_ceil(PAGE);
    let page = |n: usize| IOVA + (data + n * PAGE) as u64;
    match pages {
        0 | 1 => 0,
        2 => page(1),
        _ => {
            let list = data + pages * PAGE;
            let mut at = list;
            for n in 1..pages {
                // The last entry of a page leads to the next page, if more than one address is left.
                if at % PAGE == PAGE - 8 && n + 1 < pages {
                    memory.write(at, &(IOVA + at as u64 + 8).to_le_bytes());
                    at += 8;
                }
                memory.write(at, &page(n).to_le_bytes());
                at += 8;
            }
            IOVA + list as u64
        }
    }
}

fn describe(slot: &Slot, commands: &Commands) -> String {
    let [opc, ..] = slot.sqe;
    let slba =
        slot.sqe.get(40..48).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).unwrap_or_default();
    format!(
        "{} of {} blocks at {slba} of namespace {}",
        nvm_name(opc),
        commands.bytes / commands.block,
        commands.nsid
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use nvme_host::memory::HUGE;
    use nvme_host::{Bells, Page};

    use super::*;
    use crate::pattern::Rw;
    use crate::queue::QueueBells;

    /// A device in this thread's neighbour: answers each command with what `answer` says, or not.
    fn against(
        commands: u64,
        answer: impl Fn(u64) -> Option<(u16, Status)> + Send + 'static,
    ) -> anyhow::Result<Tally> {
        let (memory, _file) = Memory::shared(HUGE, false).unwrap();
        let memory = Arc::new(memory);
        let page = Page::within(Arc::new(Memory::private(PAGE, false).unwrap()), 0);
        let (sq, cq, data, entries) = (0, PAGE, 2 * PAGE, 8);
        let bells = QueueBells { bells: Bells::Mapped(page.clone()), words: [0, 1], trap: None };
        let pair = QueuePair::new(Arc::clone(&memory), sq, cq, entries, bells);
        let what = Commands { nsid: 1, bytes: 4096, block: 512, depth: 4 };
        let patience = Duration::from_millis(300);
        let mut load = Load::new(pair, Arc::clone(&memory), data, what, false, patience).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let device = std::thread::spawn(move || {
            let mut count = 0_u64;
            while !over.load(Ordering::Relaxed) {
                let tail = u64::from(page.word(0).load(Ordering::Acquire));
                while count % u64::from(entries) != tail {
                    let slot = (count % u64::from(entries)) as usize;
                    let mut sqe = [0; SQE];
                    memory.read(sq + slot * SQE, &mut sqe);
                    if let Some((cid, status)) = answer(count) {
                        let cid = u16::from_le_bytes([sqe[2], sqe[3]]).wrapping_add(cid);
                        let phase = u32::from((count / u64::from(entries)).is_multiple_of(2));
                        let dword = u32::from(status.0) << 17 | phase << 16 | u32::from(cid);
                        memory.word(cq + slot * 16 + 12).store(dword, Ordering::Release);
                    }
                    count += 1;
                }
                std::thread::yield_now();
            }
        });
        let never = AtomicBool::new(false);
        let pattern = Pattern::new(Rw::RandRead, 0, 16, 0, 1);
        let result = load.run(pattern, Until::Commands(commands), &never);
        stop.store(true, Ordering::Relaxed);
        device.join().unwrap();
        result
    }

    #[test]
    fn every_command_is_counted_once() {
        for commands in [1, 3, 4, 5, 100] {
            let tally = against(commands, |_| Some((0, Status::SUCCESS))).unwrap();
            assert_eq!((tally.commands, tally.bytes), (commands, commands * 4096));
            assert_eq!(tally.latency.len(), commands);
        }
    }

    #[test]
    fn a_bad_status_a_lost_command_and_a_wrong_one_end_the_run() {
        let error =
            against(100, |n| Some((0, if n == 50 { Status::UNRECOVERED_READ } else { Status::SUCCESS })));
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("Read of 8 blocks at ") && error.contains("Unrecovered Read"), "{error}");
        let error = against(100, |n| (n != 50).then_some((0, Status::SUCCESS))).unwrap_err().to_string();
        assert!(
            error.starts_with("Read of 8 blocks at ") && error.contains("no completion within"),
            "{error}"
        );
        let error = against(100, |n| Some((if n == 50 { 4 } else { 0 }, Status::SUCCESS))).unwrap_err();
        assert!(error.to_string().contains("which is not outstanding"), "{error}");
    }

    #[test]
    fn prp_lists_reach_every_page() {
        for pages in [1, 2, 3, 512, 513, 514, 600, 1024] {
            let bytes = pages * PAGE;
            let (memory, _file) =
                Memory::shared((bytes + list_room(bytes as u64)).next_multiple_of(HUGE), false).unwrap();
            let prp2 = prp2(&memory, 0, bytes);
            let word = |address: u64| {
                let mut bytes = [0; 8];
                memory.read((address - IOVA) as usize, &mut bytes);
                u64::from_le_bytes(bytes)
            };
            let mut found = Vec::new();
            let mut at = prp2;
            while found.len() + 1 < pages && pages > 2 {
                let last = at % PAGE as u64 == PAGE as u64 - 8;
                if last && found.len() + 2 < pages {
                    at = word(at);
                    assert_eq!(at % PAGE as u64, 0);
                }
                found.push(word(at));
                at += 8;
            }
            assert!(at <= prp2 + list_room(bytes as u64) as u64, "{pages}");
            if pages == 2 {
                found.push(prp2);
            }
            let expected: Vec<_> = (1..pages).map(|n| IOVA + (n * PAGE) as u64).collect();
            assert_eq!(found, expected, "{pages}");
        }
    }
}
