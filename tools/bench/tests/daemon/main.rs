//! The load generator against the daemon: that it measures what it says, never how fast.

use std::path::Path;
use std::process::Output;

use nvme_host::daemon::{run_program, start_program};
use nvme_host::nvme::io;
use nvme_host::*;
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_vfio-user-nvme-bench");
const SHORT: &str = "--seconds 0.02 --warm-up 0.01 --runs 1";

fn bench(socket: &Path, args: &str) -> Output {
    let mut all = vec![socket.to_str().unwrap()];
    all.extend(args.split_whitespace());
    run_program(BENCH.as_ref(), &all)
}

/// The JSON of a run that succeeds.
#[track_caller]
fn results(socket: &Path, args: &str) -> Value {
    let o = bench(socket, &format!("{args} --json -"));
    assert!(o.status.success(), "{args}: {o:?}");
    serde_json::from_slice(&o.stdout).unwrap_or_else(|e| panic!("{args}: {e}: {o:?}"))
}

#[track_caller]
fn fails(socket: &Path, args: &str, code: i32, names: &[&str]) {
    let o = bench(socket, &format!("{args} {SHORT}"));
    let text = String::from_utf8_lossy(&o.stderr);
    assert_eq!(o.status.code(), Some(code), "{args}: {text}");
    assert_eq!(text.lines().count(), 1, "{args}: {text}");
    for name in names {
        assert!(text.contains(name), "{args}: {name:?} is not named in: {text}");
    }
}

#[track_caller]
fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {value:#}"))
}

/// The first run of the first contestant of the only row is one.
#[track_caller]
fn is_plausible(report: &Value, bytes: f64) {
    let run = report.pointer("/rows/0/contestants/0/runs/0").unwrap_or_else(|| panic!("{report:#}"));
    let (commands, iops) = (number(run, "/commands"), number(run, "/iops"));
    assert!(commands >= 1.0 && iops > 0.0, "{run:#}");
    assert!((number(run, "/bytes_per_second") / iops / bytes - 1.0).abs() < 1e-6, "{run:#}");
    let at = |name: &str| number(run, &format!("/latency_ns/{name}"));
    let latencies = ["min", "median", "p90", "p99", "p99_9", "max"].map(at);
    assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{run:#}");
}

#[test]
fn every_load_with_every_doorbell() {
    for (nvme, bells) in [("dbcs=off", "trap"), ("dbcs=on", "shadow"), ("doorbells=mmap", "mmap")] {
        let d = Daemon::start(&format!("--nvme {nvme} --nvme-ns drive=memory,size=1M"));
        for rw in ["read", "write", "randread", "randwrite", "randrw --mix 70", "copy"] {
            let args =
                format!("--rw {rw} --bs 8k --depth 3 --queues 2 --destroy-data --doorbells {bells} {SHORT}");
            let report = results(&d.socket(), &args);
            is_plausible(&report, 8192.0);
            let name = report.pointer("/rows/0/contestants/0/name").unwrap().as_str().unwrap();
            assert!(name.ends_with(&format!("({bells})")), "{name}");
        }
        let report = results(&d.socket(), &format!("--no-posted-writes {SHORT}"));
        let name = report.pointer("/rows/0/contestants/0/name").unwrap().as_str().unwrap();
        assert!(name.ends_with(&format!("({bells})")), "auto takes the best there is: {name}");
    }
}

#[test]
fn what_is_written_is_there() {
    let d = Daemon::start("--nvme-ns drive=memory,size=3M");
    let report = results(&d.socket(), &format!("--fill --destroy-data --span 2M {SHORT}"));
    is_plausible(&report, 4096.0);
    assert_eq!(number(&report, "/span"), f64::from(2 << 20));
    // A span that no large power of two divides is filled to its end as well.
    results(&d.socket(), &format!("--fill --destroy-data --span 2100k {SHORT}"));
    // The first eight bytes of each 4 KiB, which is what divides that, are their own block address; past the
    // span nothing is written.
    let mut h = Host::with_queues(&d, 1, 16);
    let ns = Ns::facts(&mut h, 1);
    for (slba, written) in [(0, true), (8, true), (4096, true), (4192, true), (4200, false)] {
        let data = h.read(1, &ns, slba, 8);
        assert_eq!(data[..8], slba.to_le_bytes().map(|b| if written { b } else { 0 }), "{slba}");
        assert_eq!(data[8..].iter().any(|b| *b != 0), written, "{slba}");
    }
}

#[test]
fn a_read_load_leaves_data_alone_and_a_write_load_stays_in_its_span() {
    let d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let mut h = Host::with_queues(&d, 1, 16);
    let mut ns = Ns::identify(&mut h, 1);
    h.fill(1, &mut ns, 7);
    drop(h);
    results(&d.socket(), SHORT);
    results(&d.socket(), &format!("--rw randwrite --bs 4k --span 64k --destroy-data {SHORT}"));
    let mut h = Host::with_queues(&d, 1, 16);
    let (head, tail) = (h.read(1, &ns, 0, 128), h.read(1, &ns, 128, 128));
    assert_ne!(head, ns.at(0, 128));
    assert_eq!(tail, ns.at(128, 128));
    h.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
}

#[test]
fn two_servers_and_limits_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("i.img"), vec![1; 1 << 20]).unwrap();
    let image = dir.path().join("i.img").display().to_string();
    let a = Daemon::start(&format!("--nvme-ns drive={image},size=1M"));
    let b = Daemon::start("--nvme-ns drive=memory,size=4M --nvme doorbells=mmap,poll=always");
    let args = format!(
        "--against {} --limit memory --limit memory:4k --limit floor --limit file:{image} --depth 1 --pause-others \
         --runs 3 --seconds 0.01 --warm-up 0",
        b.socket().display()
    );
    let report = results(&a.socket(), &args);
    is_plausible(&report, 4096.0);
    assert_eq!(number(&report, "/span"), f64::from(1 << 20), "the smaller of both");
    let contestants = report.pointer("/rows/0/contestants").unwrap().as_array().unwrap();
    assert_eq!(contestants.len(), 6);
    assert!(
        contestants.iter().all(|c| c.pointer("/runs").unwrap().as_array().unwrap().len() == 3),
        "{report:#}"
    );
    let ratios = report.pointer("/rows/0/ratios").unwrap().as_array().unwrap();
    let to: Vec<_> = ratios.iter().map(|r| r.pointer("/to").unwrap().as_str().unwrap()).collect();
    assert_eq!(to[1..], ["limit memory", "limit memory:4k", "limit floor", "limit file"]);
    let first = number(&report, "/rows/0/contestants/0/iops/median");
    let second = number(&report, "/rows/0/contestants/1/iops/median");
    assert!((number(&ratios[0], "/iops/median") / (first / second) - 1.0).abs() < 1e-9, "{report:#}");
    assert!(a.alive() && b.alive(), "nobody is left stopped or dead");
    assert!(results(&b.socket(), SHORT).is_object());
}

/// Whatever ends the measuring process.
#[test]
fn no_server_is_left_stopped() {
    let servers = [(); 2].map(|()| Daemon::start("--nvme-ns drive=memory,size=1M"));
    let stopped = |daemon: &Daemon| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    };
    let wait = |what: &str, until: &dyn Fn() -> bool| {
        let start = std::time::Instant::now();
        while !until() {
            assert!(start.elapsed() < DEADLINE, "{what}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    };
    let sockets = servers.each_ref().map(|server| server.socket().display().to_string());
    let args = [&sockets[0], "--against", &sockets[1], "--pause-others", "--seconds", "60"];
    let mut bench = start_program(BENCH.as_ref(), &args);
    wait("nobody is stopped", &|| servers.iter().any(stopped));
    bench.kill().unwrap();
    bench.wait().unwrap();
    wait("a server stays stopped", &|| !servers.iter().any(stopped));
    assert!(results(&servers[0].socket(), SHORT).is_object());
}

#[test]
fn a_suite_is_some_rows_and_a_table() {
    let d = Daemon::start("--nvme-ns drive=memory,size=2M");
    let json = d.file("out.json");
    let o = bench(&d.socket(), &format!("--suite memory --destroy-data {SHORT} --json {}", json.display()));
    let table = String::from_utf8_lossy(&o.stdout);
    assert!(o.status.success() && o.stderr.is_empty(), "{o:?}");
    for row in
        ["randread, 4 KiB, depth 32, 1 queue", "read, 128 KiB, depth 32", "randwrite, 4 KiB", "limit floor"]
    {
        assert!(table.contains(row), "{row}: {table}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report.pointer("/rows").unwrap().as_array().unwrap().len(), 5);
}

#[test]
fn mistakes_name_option_value_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("i.img"), vec![0; 1 << 20]).unwrap();
    let d = Daemon::start_in(
        dir,
        "--nvme dbcs=off,max_ioqpairs=2,mdts=3 --nvme-ns drive=memory,size=1M,mssrl=8,mcl=8,logical_block_size=4096 \
         --nvme-ns drive={}/i.img,readonly=on",
    );
    let s = d.socket();
    for (args, names) in [
        ("--span 2M", &["--span 2097152", "1048576 bytes"][..]),
        ("--nsid 3", &["--nsid 3", "no such namespace"]),
        ("--nsid 2 --rw randwrite --destroy-data", &["--nsid 2", "read-only"]),
        ("--nsid 2 --fill --destroy-data", &["--nsid 2", "read-only"]),
        ("--rw write", &["--rw write", "--destroy-data"]),
        ("--bs 512", &["--bs 512", "4096"]),
        ("--bs 64k", &["--bs 65536", "MDTS", "32768"]),
        ("--bs 64k --rw copy --destroy-data", &["--bs 65536", "MSSRL", "8 blocks"]),
        ("--bs 1M --span 512k", &["--bs 1048576", "MDTS"]),
        ("--queues 3", &["--queues 3", "has 2"]),
        ("--doorbells mmap", &["--doorbells mmap", "doorbells=mmap"]),
        ("--doorbells shadow", &["--doorbells shadow", "dbcs=off"]),
        ("--limit file:/nowhere/image", &["--limit /nowhere/image", "No such file"]),
        ("--json /nowhere/out", &["--json /nowhere/out", "No such file"]),
        ("--against /nowhere/s", &["--against /nowhere/s", "start the server"]),
        ("--cpus 1000", &["--cpus 1000", "name CPUs"]),
    ] {
        fails(&s, args, 2, names);
    }
    fails(Path::new("/nowhere/s"), "", 2, &["SOCKET /nowhere/s", "start the server first"]);
    // None of them left the device in a state that the next one minds.
    results(&s, SHORT);
}

/// A server that says nothing, one that hangs up, one that answers rubbish.
#[test]
fn hostile_servers_end_the_run() {
    use std::io::{Read as _, Write as _};
    type Serve = fn(std::os::unix::net::UnixStream);
    let cases: [(Serve, &str); 3] = [
        (|mut s| drop(s.read_to_end(&mut Vec::new())), "no answer within --timeout"),
        (drop, "hung up"),
        (
            |mut s| {
                let _ = s.read(&mut [0; 256]);
                let _ = s.write_all(&[0xff; 64]);
                let _ = s.read_to_end(&mut Vec::new());
            },
            "a reply of 4294967295 bytes",
        ),
    ];
    for (serve, message) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                serve(socket.unwrap());
            }
        });
        fails(&path, "--timeout 0.2", 1, &[message, "lets no client in"]);
    }
}

#[test]
fn a_server_that_dies_is_noticed() {
    let mut d = Daemon::start("--nvme-ns drive=memory,size=1M");
    let socket = d.socket();
    let bench = std::thread::spawn(move || bench(&socket, "--seconds 30 --warm-up 0 --runs 1 --timeout 9"));
    // Killed under load: as soon as its memory is in use.
    let start = std::time::Instant::now();
    while d.threads() < 2 || d.ticks() < 5 {
        assert!(start.elapsed() < DEADLINE, "no load");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    d.kill();
    let o = bench.join().unwrap();
    let text = String::from_utf8_lossy(&o.stderr);
    assert_eq!(o.status.code(), Some(1), "{text}");
    assert!(text.contains("hung up"), "{text}");
}
