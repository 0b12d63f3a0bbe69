//! Block tools: what a shell in the guest cannot do fast, or not with the page cache out of the way.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use guest_agent::pattern::{self, Random, Sum};

use crate::copies;

const CHUNK: usize = 1 << 20;
const ALIGN: usize = 4096;

/// Runs one tool; numbers are decimal bytes.
///
/// * `fill PATH OFFSET LEN SEED` writes the pattern
/// * `check PATH OFFSET LEN SEED [FROM]` compares with the pattern of the bytes that start at FROM (default OFFSET)
/// * `sum PATH [OFFSET LEN]` prints the sum in hexadecimal
/// * `acked PATH BLOCK LEN SEED` writes random blocks for ever and prints `block seed` once each is acknowledged
/// * `copies PATH NSID BLOCK BLOCKS RANGES THREADS MILLISECONDS` issues Copy commands and prints `bytes microseconds`
/// * `kmsg FROM` prints the kernel's messages from that sequence number on: `sequence priority text`
pub fn run(words: &[&str]) -> anyhow::Result<()> {
    match words {
        ["fill", path, offset, len, seed] => fill(path, num(offset)?, num(len)?, num(seed)?),
        ["check", path, offset, len, seed] => check(path, num(offset)?, num(len)?, num(seed)?, num(offset)?),
        ["check", path, offset, len, seed, from] => {
            check(path, num(offset)?, num(len)?, num(seed)?, num(from)?)
        }
        ["sum", path] => sum(path, 0, u64::MAX),
        ["sum", path, offset, len] => sum(path, num(offset)?, num(len)?),
        ["acked", path, block, len, seed] => acked(path, num(block)?, num(len)?, num(seed)?),
        ["copies", path, nsid, block, blocks, ranges, threads, milliseconds] => {
            let small = |word: &str| -> anyhow::Result<u32> { Ok(num(word)?.try_into()?) };
            let plan = copies::Plan {
                nsid: small(nsid)?,
                block: num(block)?,
                blocks: small(blocks)?,
                ranges: small(ranges)?,
                threads: small(threads)?,
                time: Duration::from_millis(num(milliseconds)?),
            };
            let (bytes, took) = copies::run(path, plan)?;
            println!("{bytes} {}", took.as_micros());
            Ok(())
        }
        ["kmsg", from] => kmsg(num(from)?),
        _ => bail!("unknown tool or wrong arguments: {words:?}"),
    }
}

fn num(word: &str) -> anyhow::Result<u64> {
    word.parse().with_context(|| format!("not a number: {word}"))
}

fn open(path: &str, write: bool) -> anyhow::Result<File> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let open = |flags| OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
    // tmpfs knows no O_DIRECT on older kernels; the data is in memory anyway.
    open(direct).or_else(|_| open(0)).with_context(|| format!("open {path}"))
}

/// A buffer whose start is aligned for O_DIRECT, without unsafe code: more than needed, from the right place
/// on.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, start }
    }

    fn get(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

/// Calls `each` with position and length of every part of `offset..offset+len`.
fn parts(
    offset: u64,
    len: u64,
    mut each: impl FnMut(u64, usize) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut at = offset;
    let mut left = len;
    while left > 0 {
        let n = left.min(CHUNK as u64);
        if !each(at, usize::try_from(n)?)? {
            break;
        }
        at += n;
        left -= n;
    }
    Ok(())
}

fn fill(path: &str, offset: u64, len: u64, seed: u64) -> anyhow::Result<()> {
    let file = open(path, true)?;
    let mut buf = Aligned::new(CHUNK);
    parts(offset, len, |at, n| {
        pattern::fill(buf.get(n), at, seed);
        file.write_all_at(buf.get(n), at).with_context(|| format!("write at {at}"))?;
        Ok(true)
    })
}

fn check(path: &str, offset: u64, len: u64, seed: u64, from: u64) -> anyhow::Result<()> {
    let file = open(path, false)?;
    let mut buf = Aligned::new(CHUNK);
    let mut want = vec![0; CHUNK];
    parts(offset, len, |at, n| {
        file.read_exact_at(buf.get(n), at).with_context(|| format!("read at {at}"))?;
        pattern::fill(&mut want[..n], at - offset + from, seed);
        let got = buf.get(n);
        if let Some(wrong) = (0..n).find(|&i| got[i] != want[i]) {
            bail!("byte {} is {:#04x}, not {:#04x}", at + wrong as u64, got[wrong], want[wrong]);
        }
        Ok(true)
    })
}

fn sum(path: &str, offset: u64, len: u64) -> anyhow::Result<()> {
    let file = open(path, false)?;
    let mut buf = Aligned::new(CHUNK);
    let mut sum = Sum::default();
    let mut total = 0;
    parts(offset, len, |at, n| {
        let mut have = 0;
        while have < n {
            let got = file
                .read_at(&mut buf.get(n)[have..], at + have as u64)
                .with_context(|| format!("read at {at}"))?;
            if got == 0 {
                break;
            }
            have += got;
        }
        sum.update(buf.get(have));
        total += have as u64;
        Ok(have == n)
    })?;
    ensure!(len == u64::MAX || total == len, "{path} ends after {total} bytes");
    println!("{:016x}", sum.finish());
    Ok(())
}

fn acked(path: &str, block: u64, len: u64, seed: u64) -> anyhow::Result<()> {
    let file = open(path, true)?;
    let size = usize::try_from(block)?;
    ensure!(block > 0 && len >= block, "need at least one block");
    let mut buf = Aligned::new(size);
    let mut random = Random::new(seed);
    let mut out = std::io::stdout().lock();
    for turn in 0u64.. {
        let at = random.below(len / block) * block;
        pattern::fill(buf.get(size), at, seed + turn);
        file.write_all_at(buf.get(size), at).with_context(|| format!("write at {at}"))?;
        writeln!(out, "{at} {}", seed + turn)?;
        out.flush()?;
    }
    Ok(())
}

fn kmsg(from: u64) -> anyhow::Result<()> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut file =
        OpenOptions::new().read(true).custom_flags(nonblock).open("/dev/kmsg").context("open /dev/kmsg")?;
    let mut record = vec![0; 16 << 10];
    loop {
        let n = match file.read(&mut record) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            // EPIPE: records were overwritten while we read; the next read goes on behind the gap.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => continue,
            Err(e) => return Err(e).context("read /dev/kmsg"),
        };
        let text = String::from_utf8_lossy(&record[..n]);
        let Some((head, rest)) = text.split_once(';') else { continue };
        let mut fields = head.split(',');
        let priority: u64 = fields.next().and_then(|f| f.parse().ok()).unwrap_or(0);
        let sequence: u64 = fields.next().and_then(|f| f.parse().ok()).unwrap_or(0);
        // User space may write here too (facility above 0); only the kernel's own words count.
        if sequence >= from && priority >> 3 == 0 {
            println!("{sequence} {} {}", priority & 7, rest.lines().next().unwrap_or_default());
        }
    }
}
