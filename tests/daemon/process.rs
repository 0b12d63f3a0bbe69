//! What the process is given by whoever starts it: limits, signals, standard streams.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::engines;
use crate::host::client::irq;
use crate::host::ctrl::reg;
use crate::host::nvme::{io, st};
use crate::host::*;

/// Lowers a limit of the running daemon.
fn limit(d: &Daemon, what: Resource, most: u64) {
    let pid = Pid::from_raw(d.pid() as i32).unwrap();
    prlimit(Some(pid), what, Rlimit { current: Some(most), maximum: Some(most) }).expect("prlimit");
}

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

#[test]
fn a_file_size_limit_is_a_status() {
    for aio in engines() {
        let d = Daemon::start(&format!("--nvme-ns drive={{}}/x.img,size=4M,aio={aio}"));
        limit(&d, Resource::Fsize, 1 << 20);
        let mut h = Host::with_queues(&d, 1, 16);
        let mut ns = Ns::identify(&mut h, 1);
        h.write(1, &mut ns, 0, 8, 1);
        let data = Data::prp(&mut h.ram, 4096);
        let c = h.exec(1, Host::rw(io::WRITE, &ns, 4096, 8).data(&data));
        assert_ne!(c.status, st::OK, "{aio}");
        h.write(1, &mut ns, 16, 8, 1);
        ns.verify(&mut h, 1);
    }
}

/// An inherited soft limit of descriptors is no limit of vectors.
#[test]
fn the_soft_limit_of_descriptors_is_raised() {
    let d = Daemon::start_by(r#"ulimit -S -n 64; exec "$@""#, "--nvme max_ioqpairs=200,msix_qsize=201");
    let mut c = d.client();
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    for vector in 0..201 {
        let a = c.set_irqs(irq::MSIX, irq::EVENTFD | irq::TRIGGER, vector, 1, &[eventfd.as_fd()]);
        assert!(matches!(a, Answer::Done(..)), "vector {vector}: {a:?}");
    }
    assert_eq!(c.r32(reg::VS), 0x0002_0000);
}

#[test]
fn every_signal_that_asks_for_an_end_drains_and_flushes() {
    // Tests that run under nohup hand on that SIGHUP is ignored, and then it rightly ends nothing.
    let script = r#"exec env --default-signal=HUP "$@""#;
    for signal in [Signal::HUP, Signal::QUIT] {
        let mut d = Daemon::start_by(script, "--nvme-ns drive={}/x.img,size=1M");
        d.signal(signal);
        assert_eq!(d.wait(DEADLINE).code(), Some(0), "{signal:?}: {}", d.log());
        assert!(!d.socket().exists(), "{signal:?}: the socket file is left behind");
    }
}

#[test]
fn other_signals_end_nothing() {
    let d = Daemon::start("");
    let mut c = d.client();
    for signal in [Signal::USR2, Signal::PIPE, Signal::ALARM, Signal::VTALARM, Signal::PROF, Signal::IO] {
        d.signal(signal);
        assert_eq!(c.r32(reg::VS), 0x0002_0000, "{signal:?}");
    }
}

/// Who starts it may not want to read its line, or have no room for it.
#[test]
fn a_standard_output_that_takes_nothing() {
    for script in [
        r#"exec "$@" >&-"#,
        r#"exec "$@" >/dev/full"#,
        r#"exec "$@" 2>&-"#,
        r#"exec "$@" 2>/dev/full"#,
        r#"exec "$@" >&- 2>&- <&-"#,
    ] {
        let mut d = Daemon::start_by(script, "--nvme-ns drive={}/x.img,size=1M");
        let mut c = d.client();
        assert_eq!(c.r32(reg::VS), 0x0002_0000, "{script}");
        d.stop();
        assert!(std::fs::read(d.file("x.img")).unwrap().iter().all(|byte| *byte == 0), "{script}");
    }
}

/// A pipe that nobody reads is full soon.
#[test]
fn a_standard_error_that_nobody_reads_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut reader = std::fs::File::options().read(true).custom_flags(nonblock).open(&pipe).unwrap();
    // At trace every message is a line, and none of them is held back.
    let script = format!(r#"exec "$@" 2>{}"#, pipe.display());
    let mut d = Daemon::start_by(&script, "--log trace");
    let mut h = Host::with_queues(&d, 2, 16);
    let flood = |h: &mut Host| {
        for _ in 0..200 {
            for _ in 0..100 {
                h.client.post(client::BAR0, reg::INTMS, &0u32.to_le_bytes());
            }
            assert_eq!(h.csts(), 1);
        }
    };
    flood(&mut h);
    // Once somebody reads, the log goes on, and says what is missing.
    let start = Instant::now();
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("lines of the log are lost") {
        assert!(start.elapsed() < DEADLINE, "{} bytes of the log say nothing of a loss", text.len());
        let _ = reader.read_to_end(&mut text);
        assert_eq!(h.csts(), 1);
    }
    flood(&mut h);
    // Nor does its end wait for a reader.
    let start = Instant::now();
    d.stop();
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

/// What a guest can provoke at will is said a few times; then how often it was.
#[test]
fn a_flood_of_one_kind_is_a_few_lines() {
    let d = Daemon::start("");
    let mut h = Host::with_queues(&d, 1, 16);
    let floods = 5000;
    for n in 0..floods {
        h.client.post(client::BAR0, 0x1000 + 8 * 60, &1u32.to_le_bytes()); // no such queue
        h.client.post(client::BAR0, 0x1003, &[1, 2, 3]);
        if n % 64 == 0 {
            assert_eq!(h.csts(), 1);
        }
    }
    assert_eq!(h.csts(), 1);
    let log = d.log();
    let lines = log.lines().filter(|line| line.contains("guest ")).count();
    assert!((2..60).contains(&lines), "{lines} lines: {log}");
    // Other kinds are heard meanwhile.
    drop(h);
    Client::attach_when_free(&d.socket());
    let start = Instant::now();
    while d.log().matches("a client has connected").count() < 2 || !d.log().contains(" more like this") {
        assert!(start.elapsed() < DEADLINE, "{}", d.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    // All of them are accounted for, at the latest when it ends.
    let mut d = d;
    d.stop();
    let log = d.log();
    let more: u64 = log
        .lines()
        .filter(|line| line.contains("does not exist"))
        .map(|line| {
            let more = line
                .split_once(" more like this")
                .map_or("0", |(before, _)| before.rsplit('(').next().unwrap());
            1 + more.parse::<u64>().unwrap()
        })
        .sum();
    assert_eq!(more, floods, "{log}");
}

/// Who came, that it went, and what became of its data.
#[test]
fn the_log_tells_of_clients_and_of_the_end() {
    let mut d = Daemon::start("--nvme-ns drive={}/x.img,size=1M");
    drop(d.client());
    let me = format!("process {}, user {}", std::process::id(), rustix::process::getuid().as_raw());
    let c = Client::attach_when_free(&d.socket());
    d.stop();
    drop(c);
    let log = d.log();
    let mut lines = log.lines();
    for (what, who) in [
        ("a client has connected: ", true),
        ("the client has gone: ", true),
        ("the next client may come", false),
        ("a client has connected: ", true),
        ("asked to end; a client is attached", false),
        ("drained", false),
        ("flushed", false),
        ("the client is let go: ", true),
    ] {
        let told = lines.any(|line| line.contains(what) && (!who || line.contains(&me)));
        assert!(told, "{what:?}, in this order, is not in: {log}");
    }
}

/// As under nohup: who has a signal ignored for us means it.
#[test]
fn an_ignored_hangup_stays_ignored() {
    let d = Daemon::start_by(r#"trap '' HUP; exec "$@""#, "");
    let mut c = d.client();
    d.signal(Signal::HUP);
    assert_eq!(c.r32(reg::VS), 0x0002_0000);
}
