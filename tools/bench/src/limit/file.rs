//! An io_uring loop straight on the image.
#![expect(unsafe_code, reason = "ring entries carry raw pointers the kernel uses later")]

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use anyhow::bail;
use io_uring::{IoUring, opcode, squeue, types};
use nvme_host::{Memory, Rng};
use vfio_user_nvme::config::ConfigError;

use crate::contest::Contestant;
use crate::cpu;
use crate::pattern::{Pattern, Step};
use crate::row::{FileLimit, Row};
use crate::tally::{Run, Tally, histogram};

/// Reads and writes of the same size, depth and pattern as the row's, one ring and thread for each queue.
#[derive(Debug)]
pub(crate) struct File {
    file: fs::File,
    what: FileLimit,
    span: u64,
    row: Row,
    buffers: Vec<Memory>,
    cpus: Vec<usize>,
    patience: Duration,
}

impl File {
    /// The first `span` bytes of the file.
    ///
    /// # Errors
    /// [`ConfigError`]: it cannot be opened, or is smaller.
    pub(crate) fn new(
        row: &Row,
        what: &FileLimit,
        span: u64,
        cpus: &[usize],
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let refuse = |problem: String| {
            ConfigError::bad_option("--limit", &what.path, problem, "name the image that the server serves")
        };
        let mut options = fs::OpenOptions::new();
        options.read(true).write(!row.rw.only_reads());
        if what.direct {
            options.custom_flags(libc::O_DIRECT);
        }
        let file = options.open(&what.path).map_err(|error| refuse(error.to_string()))?;
        let kind = file.metadata()?;
        // The length of a block device is not in its metadata.
        if !kind.file_type().is_block_device() && kind.len() < span {
            bail!(refuse(format!("has {} bytes, and {span} are used", kind.len())));
        }
        let len = row.bytes as usize * usize::from(row.depth);
        let buffers = (0..row.queues).map(|queue| {
            let buffer = Memory::private(len, false)?;
            buffer.fill(&mut Rng::numbered(queue.into()));
            io::Result::Ok(buffer)
        });
        let buffers = buffers.collect::<Result<_, _>>()?;
        Ok(Self { file, what: what.clone(), span, row: row.clone(), buffers, cpus: cpus.to_vec(), patience })
    }

    /// The entry of one step in buffer `slot`.
    fn entry(&self, buffer: &Memory, slot: u64, step: Step) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        let len = self.row.bytes as u32;
        let data = buffer.pointer(slot as usize * len as usize, len as usize);
        let entry = match step {
            Step::Write(piece) => opcode::Write::new(fd, data, len).offset(piece * self.row.bytes).build(),
            // There is no Copy: the options refuse it.
            Step::Read(piece) | Step::Copy { from: piece, .. } => {
                opcode::Read::new(fd, data, len).offset(piece * self.row.bytes).build()
            }
        };
        entry.user_data(slot)
    }

    fn work(&self, queue: usize, warm_up: Duration, measured: Duration) -> anyhow::Result<Tally> {
        cpu::pin(&self.cpus, queue)?;
        let Some(buffer) = self.buffers.get(queue) else { bail!("no buffer for queue {queue}") };
        let depth = u64::from(self.row.depth);
        let mut ring = ring(self.row.depth.into())?;
        let pieces = self.span / self.row.bytes;
        let mut pattern =
            Pattern::new(self.row.rw, self.row.mix, pieces, queue as u64, self.buffers.len() as u64);
        let mut latency = histogram();
        let mut since = vec![Duration::ZERO; self.row.depth.into()];
        let mut done = Vec::with_capacity(self.row.depth.into());
        let begun = Instant::now();
        let (mut from, mut commands, mut ending, mut outstanding) = (None, 0, false, 0_u64);
        let mut nanos = 0;
        done.extend(0..depth);
        loop {
            let now = begun.elapsed();
            if !ending {
                for slot in &done {
                    // SAFETY: the buffer lives until this function returns, which is when nothing is
                    // outstanding any more (`drain`); the descriptor too. The ring has as many entries as
                    // there are slots.
                    unsafe { ring.submission().push(&self.entry(buffer, *slot, pattern.next())) }?;
                    if let Some(since) = since.get_mut(*slot as usize) {
                        *since = now;
                    }
                }
                outstanding += done.len() as u64;
            }
            if outstanding == 0 {
                return Ok(Tally { commands, bytes: commands * self.row.bytes, nanos, latency });
            }
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    drain(&mut ring, outstanding);
                    bail!(error);
                }
            }
            let now = begun.elapsed();
            done.clear();
            let mut failed = None;
            for entry in ring.completion() {
                done.push(entry.user_data());
                if entry.result() != self.row.bytes as i32 {
                    failed = Some(entry.result());
                }
            }
            outstanding -= done.len() as u64;
            if let Some(result) = failed {
                drain(&mut ring, outstanding);
                let what = if result < 0 {
                    io::Error::from_raw_os_error(-result).to_string()
                } else {
                    format!("{result} bytes of {}", self.row.bytes)
                };
                bail!(ConfigError::bad_option(
                    "--limit",
                    &self.what.path,
                    what,
                    "see that file and --bs fit"
                ));
            }
            match from {
                None if now >= warm_up => from = Some(now),
                Some(from) if !ending => {
                    commands += done.len() as u64;
                    nanos = (now - from).as_nanos() as u64;
                    for since in done.iter().filter_map(|slot| since.get(*slot as usize)) {
                        latency.saturating_record((now - *since).as_nanos() as u64);
                    }
                    ending = now - from >= measured;
                }
                _ => {}
            }
            if now > warm_up + measured + self.patience {
                drain(&mut ring, outstanding);
                bail!("--limit {}: too slow to end within --timeout", self.what.path.display());
            }
        }
    }
}

/// A ring with all that makes one cheap, where the kernel has it.
fn ring(depth: u32) -> io::Result<IoUring> {
    let entries = depth.next_power_of_two();
    let best =
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().build(entries);
    best.or_else(|_| IoUring::new(entries))
}

/// Waits until the kernel lets go of the buffers.
fn drain(ring: &mut IoUring, mut outstanding: u64) {
    while outstanding > 0 && ring.submit_and_wait(1).is_ok() {
        outstanding = outstanding.saturating_sub(ring.completion().count() as u64);
    }
}

impl Contestant for File {
    fn name(&self) -> String {
        if self.what.direct { "limit file,direct" } else { "limit file" }.to_owned()
    }

    fn run(&mut self, warm_up: Duration, measured: Duration) -> anyhow::Result<Run> {
        let this = &*self;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..this.buffers.len())
                .map(|queue| scope.spawn(move || this.work(queue, warm_up, measured)))
                .collect();
            let tallies: Vec<_> = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked"))))
                .collect::<anyhow::Result<_>>()?;
            Ok(Run::of(&tallies))
        })
    }
}
