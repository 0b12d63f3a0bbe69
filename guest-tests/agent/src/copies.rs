//! Copy commands in a loop: starting nvme-cli for each would cost a hundred times what the command does.
#![expect(unsafe_code, reason = "NVMe passthrough is an ioctl with pointers in its argument")]

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::ioctl::{Updater, ioctl, opcode};

/// `struct nvme_passthru_cmd` of linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
struct Passthrough {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

/// `NVME_IOCTL_IO_CMD`.
const IO_CMD: rustix::ioctl::Opcode = opcode::read_write::<Passthrough>(b'N', 0x43);
/// NVM command set: Copy.
const COPY: u8 = 0x19;
/// Bytes of a range descriptor of format 0.
const DESCRIPTOR: usize = 32;

/// What each command copies, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Namespace number of the device.
    pub nsid: u32,
    /// Bytes of a block.
    pub block: u64,
    /// Blocks in a range.
    pub blocks: u32,
    /// Ranges in a command.
    pub ranges: u32,
    /// Threads, each with one command in flight.
    pub threads: u32,
    /// How long.
    pub time: Duration,
}

/// Copies from the first half of the device to the second until the time is over; answers bytes copied and
/// the time it took.
pub fn run(path: &str, plan: Plan) -> anyhow::Result<(u64, Duration)> {
    let mut file = OpenOptions::new().read(true).write(true).open(path).with_context(|| path.to_owned())?;
    let half = file.seek(SeekFrom::End(0))? / plan.block.max(1) / 2;
    let each = u64::from(plan.blocks) * u64::from(plan.ranges);
    ensure!(plan.blocks > 0 && (1..=256).contains(&plan.ranges), "1 to 256 ranges of at least one block");
    ensure!(half >= each, "the device has less than two commands' worth of blocks");
    let start = Instant::now();
    let copied = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.threads)
            .map(|thread| {
                let file = &file;
                scope.spawn(move || one(file, plan, half, u64::from(thread), start))
            })
            .collect();
        threads.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?).sum()
    });
    let copied: anyhow::Result<u64> = copied;
    Ok((copied? * plan.block, start.elapsed()))
}

fn one(file: &File, plan: Plan, half: u64, thread: u64, start: Instant) -> anyhow::Result<u64> {
    let each = u64::from(plan.blocks) * u64::from(plan.ranges);
    let slots = half / each;
    let mut list = vec![0u8; DESCRIPTOR * plan.ranges as usize];
    let mut copied = 0;
    for turn in 0u64.. {
        // Threads take turns, so that no two commands in flight write the same blocks unless there is no room
        // for more.
        let slot = (turn * u64::from(plan.threads) + thread) % slots;
        for (n, entry) in list.chunks_mut(DESCRIPTOR).enumerate() {
            // Backwards within the slot: neighbouring ranges that follow each other could be taken for one.
            let range = u64::from(plan.ranges) - 1 - n as u64;
            let slba = slot * each + range * u64::from(plan.blocks);
            entry[8..16].copy_from_slice(&slba.to_le_bytes());
            entry[16..18].copy_from_slice(&u16::try_from(plan.blocks - 1)?.to_le_bytes());
        }
        copy(file, plan, half + slot * each, &mut list)?;
        copied += each;
        if start.elapsed() >= plan.time {
            break;
        }
    }
    Ok(copied)
}

fn copy(file: &File, plan: Plan, sdlba: u64, list: &mut [u8]) -> anyhow::Result<()> {
    let [a, b, c, d, e, f, g, h] = sdlba.to_le_bytes();
    let mut command = Passthrough {
        opcode: COPY,
        nsid: plan.nsid,
        addr: list.as_mut_ptr() as u64,
        data_len: u32::try_from(list.len())?,
        cdw10: u32::from_le_bytes([a, b, c, d]),
        cdw11: u32::from_le_bytes([e, f, g, h]),
        cdw12: plan.ranges - 1,
        ..Passthrough::default()
    };
    // SAFETY: the opcode belongs to this structure, which has the kernel's layout (checked by a test), and
    // `addr` and `data_len` describe `list`, which is borrowed for the whole call.
    let status = unsafe { ioctl(file, Status(Updater::<IO_CMD, Passthrough>::new(&mut command))) };
    match status.context("Copy ioctl")? {
        0 => Ok(()),
        status => bail!("Copy to block {sdlba} was refused: status {status:#x}"),
    }
}

/// The kernel answers the NVMe status as the ioctl's result, which [`Updater`] alone drops.
struct Status<'a>(Updater<'a, IO_CMD, Passthrough>);

// SAFETY: all but the result is left to `Updater`; the result is the plain number the system call returned.
unsafe impl rustix::ioctl::Ioctl for Status<'_> {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        self.0.opcode()
    }

    fn as_ptr(&mut self) -> *mut core::ffi::c_void {
        self.0.as_ptr()
    }

    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut core::ffi::c_void,
    ) -> rustix::io::Result<Self::Output> {
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_kernels_layout() {
        assert_eq!(size_of::<Passthrough>(), 72);
        assert_eq!(std::mem::offset_of!(Passthrough, addr), 24);
        assert_eq!(std::mem::offset_of!(Passthrough, cdw10), 40);
        assert_eq!(IO_CMD, 0xC048_4E43);
    }
}
