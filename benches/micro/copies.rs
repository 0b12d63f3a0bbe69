//! A Copy command from its bytes to a task that is ready to run.

use std::hint::black_box;
use std::sync::Arc;

use criterion::Criterion;
use vfio_user_nvme::copy::{Bounce, Capabilities, CopyTask, ExecOptions, OCFS, check_command, plan};
use vfio_user_nvme::disk::MemoryDisk;
use vfio_user_nvme::namespace::{CopyLimits, Identity, Namespace, Namespaces};
use vfio_user_nvme::spec::copy::CopyCommand;

/// Blocks of a range.
const NLB: u64 = 8;
/// Blocks of the namespace, of 512 bytes.
const BLOCKS: u64 = 1 << 20;
/// First block of the destination.
const SDLBA: u64 = BLOCKS / 2;

/// A range list of format 0h.
fn list(starts: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; 32 * starts.len()];
    for (entry, slba) in bytes.chunks_exact_mut(32).zip(starts) {
        entry[8..16].copy_from_slice(&slba.to_le_bytes());
        entry[16..18].copy_from_slice(&(NLB as u16 - 1).to_le_bytes());
    }
    bytes
}

/// Checks, decodes and plans a Copy of 1, 16 and 256 ranges: in order with gaps, in disorder, and onto
/// themselves.
pub fn planner(criterion: &mut Criterion) {
    let disk = Arc::new(MemoryDisk::new(BLOCKS * 512).expect("memory"));
    let limits = CopyLimits { mssrl: u16::MAX, mcl: u32::MAX, msrc: u8::MAX };
    let namespaces = Namespaces::new(vec![Namespace::new(1, disk, 9, limits, Identity::default())], 1);
    let capabilities = Capabilities { ocfs: OCFS, cdfe: 0, ..Capabilities::default() };
    let bounce = Bounce::default();
    let mut group = criterion.benchmark_group("copy plan");
    for count in [1_u64, 16, 256] {
        let sorted: Vec<u64> = (0..count).map(|n| n * 2 * NLB).collect();
        // 167 has no factor in common with the counts.
        let shuffled: Vec<u64> = (0..count).map(|n| sorted[(n * 167 % count) as usize]).collect();
        // Each source lies under the destination of the range before: half of every block moves on by one.
        let overlapping: Vec<u64> = (0..count).map(|n| SDLBA + n * NLB - NLB / 2).collect();
        for (name, starts) in [("sorted", sorted), ("shuffled", shuffled), ("overlapping", overlapping)] {
            let bytes = list(&starts);
            let command = CopyCommand { nsid: 1, cdw: [SDLBA as u32, 0, count as u32 - 1, 0, 0, 0] };
            group.bench_function(format!("{count} {name}"), |b| {
                // What is made is freed outside the time.
                b.iter_with_large_drop(|| {
                    let checked = check_command(black_box(&command), &namespaces, capabilities);
                    let checked = checked.expect("a good command");
                    let ranges = checked.decode(black_box(&bytes)).expect("a good list");
                    let plan = plan(&checked, &ranges, &namespaces).expect("a good plan");
                    CopyTask::new(plan, ExecOptions::default(), &bounce).expect("it can be done")
                });
            });
        }
    }
    group.finish();
}
