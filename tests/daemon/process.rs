//! What the process is given by whoever starts it: limits, signals, standard streams.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::engines;
use crate::host::nvme::io;
use crate::host::*;

const NOBODY: u32 = 65534;

/// A daemon that is not root's: root may have as many threads as it likes.
fn start_as_nobody(args: &str) -> Daemon {
    let script = if rustix::process::getuid().is_root() {
        // Its program may lie where nobody else may look for it.
        &format!(
            r#"chmod 777 . log; exec 9<"$1"; shift
               exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups /proc/self/fd/9 "$@""#
        )
    } else {
        r#"exec "$@""#
    };
    Daemon::start_by(script, args)
}

/// Of a daemon started by [`start_as_nobody`]; its own user may do this.
fn allow_no_more_threads(d: &Daemon) {
    let mut command = Command::new("prlimit");
    if rustix::process::getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let done =
        command.arg(format!("--pid={}", d.pid())).arg("--nproc=1:1").output().expect("prlimit of util-linux");
    assert!(done.status.success(), "{done:?}");
}

/// A write that waits needs a thread of the kernel, a copy and a probe one of ours. Where none can be made
/// any more the work is done by those there are.
#[test]
fn no_further_thread_can_be_made() {
    for aio in engines() {
        let d = start_as_nobody(&format!("--nvme-ns drive={{}}/x.img,size=16M,aio={aio}"));
        allow_no_more_threads(&d);
        let mut h = Host::with_queues(&d, 2, 64);
        let mut ns = Ns::identify(&mut h, 1);
        h.fill(1, &mut ns, 1);
        // More at a time than any thread does, and what no page cache holds.
        let bytes = ns.pattern(0, 64, 2);
        let data = Data::prp(&mut h.ram, bytes.len());
        data.put(&h.ram, &bytes);
        let cids: Vec<_> =
            (0..32).map(|i| h.queue(1, Host::rw(io::WRITE, &ns, i * 64, 64).data(&data))).collect();
        h.ring_sq(1);
        for (i, cid) in cids.into_iter().enumerate() {
            h.wait(1, cid).ok();
            ns.set(i as u64 * 64, &bytes);
        }
        let range = nvme::Range::new(128, 1024).bytes(0);
        h.send(1, nvme::copy(1, 8192, 1, 0), &range).ok();
        let copied = ns.at(128, 1024).to_vec();
        ns.set(8192, &copied);
        h.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
        h.exec(1, Sqe::new(io::WRITE_ZEROES).nsid(1).lba(0, 64)).ok();
        ns.set(0, &vec![0; 64 * ns.lba]);
        ns.verify(&mut h, 1);
    }
}
