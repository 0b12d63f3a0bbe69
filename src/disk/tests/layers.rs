//! Disks over disks.

use std::time::{Duration, Instant};

use super::conformance::{Rig, engines, folder, pool, raw};
use crate::disk::{Delay, Lane, MemoryDisk, Op, SharedDisk};

/// Over memory as over a file: all comes as it would, so much later, and what was submitted together is not
/// delayed one behind the other.
#[test]
fn a_delay() {
    let delay = Duration::from_millis(20);
    for kind in engines() {
        let folder = folder();
        let memory: SharedDisk = std::sync::Arc::new(MemoryDisk::new(1 << 20).expect("the memory is there"));
        let file: SharedDisk = std::sync::Arc::new(raw(&folder.path().join("image")));
        for disk in [memory, file] {
            let late = Delay::over(disk, delay).expect("the thread is made");
            let mut rig = Rig::new(late, Lane::new(kind).expect("the lane is made"));
            let start = Instant::now();
            let tags: Vec<_> = (0..50)
                .map(|n| rig.start(Op::Write { offset: n * 512, buf: pool(vec![n as u8; 512]), fua: false }))
                .collect();
            rig.poll();
            assert!(tags.iter().all(|tag| rig.take(*tag).is_none()));
            for tag in tags {
                rig.finish(tag).result.expect("it succeeds");
            }
            assert!(start.elapsed() >= delay);
            assert_eq!(rig.read(49 * 512, 512), [49; 512]);
        }
    }
}
