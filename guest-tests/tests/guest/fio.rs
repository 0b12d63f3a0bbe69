//! fio writes, reads back and compares, on both block sizes, with both engines, on every queue.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::Outcome;
use crate::session::Session;

const LIMIT: Duration = Duration::from_secs(150);

fn verify(s: &Session, nsid: u32, engine: &str, sizes: &str) -> Outcome {
    let node = s.node(nsid)?;
    // Two jobs, one on each processor and so on each queue, in halves of their own.
    let out = s.guest.run(
        &[
            "fio",
            "--name=verify",
            &format!("--filename={node}"),
            &format!("--ioengine={engine}"),
            "--direct=1",
            "--rw=randwrite",
            sizes,
            "--iodepth=16",
            "--numjobs=2",
            "--cpus_allowed=0-1",
            "--cpus_allowed_policy=split",
            "--size=6m",
            "--offset_increment=16m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--group_reporting",
        ],
        LIMIT,
    )?;
    ensure!(out.code == 0, "fio: {}", out.all());
    s.same_outside(nsid)?;
    Ok(None)
}

pub fn io_uring_512(s: &Session) -> Outcome {
    verify(s, 1, "io_uring", "--bs=4k")
}

/// Unaligned sizes down to one block.
pub fn libaio_512(s: &Session) -> Outcome {
    verify(s, 1, "libaio", "--bsrange=512-64k")
}

pub fn io_uring_4096(s: &Session) -> Outcome {
    verify(s, 2, "io_uring", "--bs=4k")
}

pub fn libaio_4096(s: &Session) -> Outcome {
    verify(s, 2, "libaio", "--bsrange=4k-256k")
}

/// The kernel has an interrupt for each I/O queue, and the jobs above made each of them fire.
pub fn queues(s: &Session) -> Outcome {
    let count = |queue: u32| -> anyhow::Result<u64> {
        let line = s.guest.sh(&format!("grep nvme0q{queue}$ /proc/interrupts"))?;
        let fired = line.split_whitespace().skip(1).map_while(|w| w.parse::<u64>().ok()).sum();
        Ok(fired)
    };
    for queue in [1, 2] {
        let before = count(queue).with_context(|| format!("queue {queue} has no interrupt"))?;
        let cpu = queue - 1;
        s.guest.sh(&format!(
            "taskset {:x} dd if={} of=/dev/null bs=4k count=50 iflag=direct 2>&1",
            1 << cpu,
            s.node(1)?
        ))?;
        ensure!(
            count(queue)? >= before + 50,
            "50 reads on processor {cpu} did not come through queue {queue}"
        );
    }
    Ok(None)
}
