//! `cargo bench --bench footprint`: what idle devices cost, many of them on one machine.
//!
//! Starts daemons as separate processes and attaches a client to each as a guest's driver would: memory
//! mapped, controller enabled, an I/O queue pair used once. Then it waits and looks: time from exec to a
//! socket that answers, memory (less that of the clients and of the images, which is not the device's), and
//! processor time while nothing happens. Once with trapped doorbells and once with mapped ones, which have to
//! be looked at (see README.md).
//!
//! Arguments: `-- --devices N` (100), `--seconds N` (30).

use std::fs;
use std::time::{Duration, Instant};

use nvme_host::nvme::io;
use nvme_host::{Daemon, Data, Host, Sqe};
use rustix::process::{Resource, getrlimit, setrlimit};

struct Device {
    // Dropped first: the client leaves before its server ends.
    host: Host,
    daemon: Daemon,
}

fn main() {
    let number = |name: &str, default: u64| {
        let mut args = std::env::args().skip_while(|arg| arg != name).skip(1);
        args.next().map_or(default, |n| n.parse().unwrap_or_else(|_| panic!("{name} wants a number")))
    };
    let devices = number("--devices", 100);
    let rest = Duration::from_secs(number("--seconds", 30));
    // Each client has an eventfd for each interrupt vector.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("a limit of open files");
    println!(
        "{devices} idle devices, each a process with a client attached and an I/O queue; {rest:?} of rest"
    );
    for (name, args) in [("trap", "--nvme doorbells=trap"), ("mmap", "--nvme doorbells=mmap")] {
        measure(name, args, devices, rest);
    }
}

fn measure(name: &str, args: &str, devices: u64, rest: Duration) {
    let args = format!("{args} --nvme-ns drive=memory,size=64M");
    let mut started = Vec::new();
    let all: Vec<Device> = (0..devices)
        .map(|_| {
            let start = Instant::now();
            // Sleeps a millisecond between two looks at the folder.
            let daemon = Daemon::start(&args);
            started.push(start.elapsed());
            let host = attach(&daemon);
            Device { host, daemon }
        })
        .collect();
    // What the attaching left to be done, and the worker's way into its sleep.
    std::thread::sleep(Duration::from_secs(1));
    let ticks = |all: &[Device]| all.iter().map(|d| d.daemon.ticks()).collect::<Vec<_>>();
    let on_cpu = |all: &[Device]| all.iter().map(|d| on_cpu(&d.daemon)).sum::<Duration>();
    let before = ticks(&all);
    let exact = on_cpu(&all);
    std::thread::sleep(rest);
    let spent: Vec<u64> = ticks(&all).iter().zip(&before).map(|(after, before)| after - before).collect();
    let exact = on_cpu(&all) - exact;
    let memory = |field: &str| all.iter().map(|d| kib(&d.daemon, field)).collect::<Vec<_>>();
    println!("\ndoorbells={name}");
    started.sort();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    println!(
        "  exec to socket      median {:.1} ms, slowest {:.1} ms",
        ms(started[started.len() / 2]),
        ms(started[started.len() - 1])
    );
    for field in ["RssAnon", "RssFile", "RssShmem", "VmRSS"] {
        let mut each = memory(field);
        each.sort_unstable();
        println!(
            "  {field:<19} median {} KiB, most {} KiB, all together {:.1} MiB",
            each[each.len() / 2],
            each[each.len() - 1],
            each.iter().sum::<u64>() as f64 / 1024.0
        );
    }
    let shares: u64 = all.iter().map(|d| pss(&d.daemon)).sum();
    println!("  Pss                 all together {:.1} MiB", shares as f64 / 1024.0);
    println!(
        "  processor time      {} ticks of 10 ms in all, {} of the busiest, {} devices had none",
        spent.iter().sum::<u64>(),
        spent.iter().max().unwrap_or(&0),
        spent.iter().filter(|n| **n == 0).count()
    );
    println!(
        "  by the scheduler    {:.3} ms in all, {:.1} us per device and second",
        exact.as_secs_f64() * 1e3,
        exact.as_secs_f64() * 1e6 / devices as f64 / rest.as_secs_f64()
    );
    println!("  threads             {} each", all[0].daemon.threads());
    for Device { host, mut daemon } in all {
        drop(host);
        daemon.stop();
    }
}

/// As a driver does: interrupts, admin queue, one I/O queue pair of 128 entries, and one read through it.
fn attach(daemon: &Daemon) -> Host {
    let mut host = Host::attach_any(daemon);
    host.io_queues(1, 128);
    let data = Data::prp(&mut host.ram, 4096);
    let read = Sqe::new(io::READ).nsid(1).cdw(12, 7).data(&data);
    host.exec(1, read).ok();
    host
}

/// Time on a processor of all threads, to the nanosecond; ticks are a sample.
fn on_cpu(daemon: &Daemon) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("the process lives");
    let of_task = |task: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.filter_map(of_task).sum())
}

fn kib(daemon: &Daemon, field: &str) -> u64 {
    sum(&format!("/proc/{}/status", daemon.pid()), field)
}

/// Proportional: what is shared counts in parts.
fn pss(daemon: &Daemon) -> u64 {
    sum(&format!("/proc/{}/smaps_rollup", daemon.pid()), "Pss")
}

fn sum(file: &str, field: &str) -> u64 {
    let text = fs::read_to_string(file).expect("the process lives");
    let line = text.lines().find(|line| line.strip_prefix(field).is_some_and(|rest| rest.starts_with(':')));
    line.and_then(|line| line.split_whitespace().nth(1))
        .and_then(|n| n.parse().ok())
        .expect("a number of KiB")
}
