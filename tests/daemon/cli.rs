//! The command line: a mistake costs one line that names option, value and remedy, and exit code 2.

use std::path::Path;

use crate::host::daemon::run;
use crate::host::*;

/// Runs `serve` with a socket in a fresh folder; `{}` stands for that folder.
#[track_caller]
fn fails(dir: &Path, args: &str, names: &[&str]) {
    let place = dir.to_str().unwrap();
    let socket = format!("{place}/s");
    let args = args.replace("{}", place);
    let mut all = vec!["serve", "--socket", &socket];
    all.extend(args.split_whitespace());
    fails_raw(&all, names);
    assert!(!Path::new(&socket).exists(), "{args}: a socket file is left");
}

#[track_caller]
fn fails_raw(all: &[&str], names: &[&str]) {
    let o = run(all);
    let text = String::from_utf8_lossy(&o.stderr);
    assert_eq!(o.status.code(), Some(2), "{all:?}: {text}");
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "{all:?}: one line, not {text}");
    for n in names {
        assert!(text.contains(n), "{all:?}: {n:?} is not named in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn namespace_options() {
    let t = tempfile::tempdir().unwrap();
    let d = t.path();
    std::fs::write(d.join("odd.img"), vec![0; 1000]).unwrap();
    std::fs::write(d.join("m.img"), vec![0; 1 << 20]).unwrap();
    std::fs::write(d.join("empty.img"), b"").unwrap();
    std::fs::write(d.join("tail.img"), vec![0; 4608]).unwrap();
    for (args, names) in [
        ("drive=memory,sise=1M", &["--nvme-ns", "sise"][..]),
        ("drive=memory,size=1M,frobnicate=on", &["frobnicate"]),
        ("size=1M", &["--nvme-ns", "drive"]),
        ("drive=memory,size=12parsecs", &["size", "12parsecs"]),
        ("drive=memory,size=-1", &["size", "-1"]),
        ("drive=memory,size=0", &["size", "0"]),
        ("drive=memory,size=1000", &["size", "1000"]),
        ("drive=memory,size=99999999999999999999", &["size"]),
        ("drive=memory,size=16777216T", &["size"]),
        ("drive=memory,size=1M,logical_block_size=1000", &["logical_block_size", "1000"]),
        ("drive=memory,size=1M,logical_block_size=0", &["logical_block_size"]),
        ("drive=memory,size=1M,mssrl=0", &["mssrl", "0"]),
        ("drive=memory,size=1M,mssrl=65536", &["mssrl", "65536"]),
        ("drive=memory,size=1M,mcl=0", &["mcl", "0"]),
        ("drive=memory,size=1M,mcl=4294967296", &["mcl", "4294967296"]),
        ("drive=memory,size=1M,msrc=-1", &["msrc", "-1"]),
        ("drive=memory,size=1M,msrc=256", &["msrc", "256"]),
        ("drive=memory,size=1M,msrc=many", &["msrc", "many"]),
        ("drive=memory,size=1M,nsid=257", &["nsid", "257"]),
        ("drive=memory,size=1M,nsid=4294967295", &["nsid", "4294967295"]),
        ("drive=memory,size=1M,readonly=perhaps", &["readonly", "perhaps"]),
        ("drive=memory,size=1M,aio=magic", &["aio", "magic"]),
        ("drive=memory,size=1M,size=2M", &["size"]),
        ("drive={}/none.img", &["none.img", "size"]),
        ("drive={}/none.img,readonly=on,size=1M", &["none.img"]),
        ("drive={}/no/such/folder/x.img,size=1M", &["no/such/folder/x.img"]),
        ("drive={}/m.img,size=2M", &["m.img", "size"]),
        ("drive={}/odd.img", &["odd.img"]),
        ("drive={}/empty.img", &["empty.img", "size="]),
        ("drive={}/empty.img,size=1M,readonly=on", &["empty.img", "readonly=on"]),
        (
            "drive={}/tail.img,logical_block_size=4096",
            &["tail.img", "last 512 bytes", "logical_block_size=512"],
        ),
        ("drive={}", &["drive"]),
        ("drive=/dev/null", &["/dev/null"]),
    ] {
        fails(d, &format!("--nvme-ns {args}"), names);
    }
    assert_eq!(std::fs::metadata(d.join("m.img")).unwrap().len(), 1 << 20);
    assert!(!d.join("none.img").exists());
    fails(d, "--nvme-ns drive=memory,size=1M,nsid=2 --nvme-ns drive=memory,size=1M,nsid=2", &["nsid", "2"]);
    // Both are named: no other process has it.
    std::os::unix::fs::symlink(d.join("m.img"), d.join("link.img")).unwrap();
    fails(
        d,
        "--nvme-ns drive={}/m.img,nsid=7 --nvme-ns drive={}/link.img,nsid=8",
        &["link.img: ", "namespace 7", "/m.img", "readonly=on"],
    );
}

/// Served as raw by mistake it would be destroyed; said to be raw it is served as it is.
#[test]
fn an_image_of_another_format() {
    let t = tempfile::tempdir().unwrap();
    let image = t.path().join("x.qcow2");
    let bytes = [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 1016]].concat();
    std::fs::write(&image, &bytes).unwrap();
    let named = ["x.qcow2", "qcow2", "format=raw", "qemu-img convert"];
    fails(t.path(), "--nvme-ns drive={}/x.qcow2", &named);
    fails(t.path(), "--nvme-ns drive={}/x.qcow2,readonly=on,size=1M", &named);
    fails(t.path(), "--nvme-ns drive={}/x.qcow2,format=qcow2", &["format=qcow2", "raw", "qemu-img convert"]);
    assert_eq!(std::fs::read(&image).unwrap(), bytes);
    let d = Daemon::start(&format!("--nvme-ns drive={},format=raw", image.display()));
    let mut h = Host::attach(&d);
    assert_eq!(Ns::facts(&mut h, 1).nsze, 2);
}

/// Who looks at the log of a device sees what it is made of.
#[test]
fn the_log_names_each_namespace() {
    let t = tempfile::tempdir().unwrap();
    std::fs::write(t.path().join("old.img"), vec![0; 1 << 20]).unwrap();
    std::fs::write(t.path().join("empty.img"), b"").unwrap();
    let d = Daemon::start_in(
        t,
        "--nvme-ns drive={}/new.img,size=1M,mssrl=7,mcl=70,msrc=3,cache=writethrough \
         --nvme-ns drive={}/old.img,readonly=on,logical_block_size=4096 \
         --nvme-ns drive={}/empty.img,size=2M --nvme-ns drive=memory,size=64K",
    );
    let log = d.log_with("namespace 4: ", 1);
    let line = |nsid| {
        let mut lines = log.lines().filter(|line| line.contains(&format!("namespace {nsid}: ")));
        let line = lines.next().unwrap_or_else(|| panic!("namespace {nsid} is not in {log}"));
        assert_eq!(lines.next(), None, "one line each");
        line
    };
    for (nsid, words) in [
        (
            1,
            &["/new.img", "created", "1048576 bytes", "512", "mssrl=7", "mcl=70", "msrc=3", "writethrough"][..],
        ),
        (2, &["/old.img", "1048576 bytes", "4096", "readonly=on", "mssrl=32768", "cache=writeback"]),
        (3, &["/empty.img", "created", "2097152 bytes"]),
        (4, &["memory", "65536 bytes", "Copy"]),
    ] {
        for word in words {
            assert!(line(nsid).contains(word), "{word} is not in {}", line(nsid));
        }
        assert_eq!(line(nsid).contains("created"), words.contains(&"created"), "{}", line(nsid));
        assert_eq!(line(nsid).contains("readonly"), nsid == 2, "{}", line(nsid));
    }
}

#[test]
fn controller_options() {
    let t = tempfile::tempdir().unwrap();
    for (args, names) in [
        ("serial=x,colour=red", &["--nvme", "colour"][..]),
        ("serial=123456789012345678901", &["serial"]),
        ("serial=x,mdts=300", &["mdts", "300"]),
        ("serial=x,mdts=lots", &["mdts", "lots"]),
        ("serial=x,max_ioqpairs=0", &["max_ioqpairs", "0"]),
        ("serial=x,max_ioqpairs=70000", &["max_ioqpairs", "70000"]),
        ("serial=x,cdfe=0x10000", &["cdfe", "0x10000"]),
        ("serial=x,cdfe=0x20", &["cdfe", "0x20"]),
        ("serial=x,aerl=256", &["aerl", "256"]),
    ] {
        fails(t.path(), &format!("--nvme {args}"), names);
    }
    fails(t.path(), "--nvme-nz drive=memory", &["--nvme-nz"]);
    fails_raw(&["serve"], &["--socket"]);
    fails_raw(&["frob"], &["frob"]);
}

#[test]
fn help_and_version() {
    for args in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        let o = run(args);
        assert_eq!(o.status.code(), Some(0), "{args:?}: {o:?}");
        assert!(!o.stdout.is_empty());
    }
    let o = run(&["serve", "--help"]);
    let text = String::from_utf8_lossy(&o.stdout);
    for word in [
        "--socket",
        "--socket-mode",
        "--socket-group",
        "--fd",
        "--nvme",
        "--nvme-ns",
        "--log",
        "drive",
        "size",
        "logical_block_size",
        "mssrl",
        "mcl",
        "msrc",
        "readonly",
        "locking",
        "aio",
        "serial",
        "mdts",
        "max_ioqpairs",
        "cdfe",
    ] {
        assert!(text.contains(word), "--help does not tell of {word}");
    }
}

#[test]
fn socket_that_cannot_be() {
    let d = Daemon::start("");
    let socket = d.socket();
    let s = socket.to_str().unwrap();
    fails_raw(&["serve", "--socket", s], &["--socket", s]);
    // The one that was there is still served.
    let mut c = d.client();
    assert_eq!(c.r32(0x8), 0x0002_0000);
    let t = tempfile::tempdir().unwrap();
    let missing = t.path().join("no/folder/s");
    fails_raw(&["serve", "--socket", missing.to_str().unwrap()], &["no/folder/s"]);
    let long = t.path().join("x".repeat(120));
    fails_raw(&["serve", "--socket", long.to_str().unwrap()], &["--socket"]);
    // A file of somebody's that is no socket is not ours to delete.
    let file = t.path().join("precious");
    std::fs::write(&file, "data").unwrap();
    fails_raw(&["serve", "--socket", file.to_str().unwrap()], &["precious"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"data");
}

#[test]
fn image_in_use() {
    let d = Daemon::start("--nvme-ns drive={}/x.img,size=1M");
    let t = tempfile::tempdir().unwrap();
    let image = d.file("x.img");
    let image = image.to_str().unwrap();
    fails(t.path(), &format!("--nvme-ns drive={image}"), &[image, "locking=off"]);
    fails(t.path(), &format!("--nvme-ns drive={image},readonly=on"), &[image]);
    // Whoever says so gets it.
    let mut off = Daemon::start(&format!("--nvme-ns drive={image},locking=off"));
    off.client();
    off.stop();
    let mut d = d;
    d.stop();
    // Two readers get on with each other.
    let one = Daemon::start(&format!("--nvme-ns drive={image},readonly=on"));
    let two = Daemon::start(&format!("--nvme-ns drive={image},readonly=on"));
    one.client();
    two.client();
    fails(t.path(), &format!("--nvme-ns drive={image}"), &[image]);
}

#[test]
fn sizes_take_suffixes() {
    let d = Daemon::start(
        "--nvme-ns drive=memory,size=65536 --nvme-ns drive=memory,size=64K --nvme-ns drive=memory,size=2M \
         --nvme-ns drive=memory,size=1G --nvme-ns drive=memory,size=16G --nvme-ns drive={}/x.img,size=4T",
    );
    let mut h = Host::attach(&d);
    for (nsid, size) in [(1, 65536u64), (2, 65536), (3, 2 << 20), (4, 1 << 30), (5, 16 << 30), (6, 4 << 40)] {
        let ns = Ns::facts(&mut h, nsid);
        assert_eq!(ns.nsze * ns.lba as u64, size, "namespace {nsid}");
    }
    assert!(d.resident() < 100 << 20);
}

/// A thread's name, and the processors it may use as the kernel lists them.
fn binding(task: &std::path::Path) -> (String, String) {
    let status = std::fs::read_to_string(task.join("status")).unwrap();
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    (field("Name:"), field("Cpus_allowed_list:"))
}

#[test]
fn workers_are_bound_to_their_processors_and_nobody_else_is() {
    let (_, all) = binding(std::path::Path::new("/proc/self"));
    let first = all.split([',', '-']).next().unwrap();
    let last = all.rsplit([',', '-']).next().unwrap();
    let d = Daemon::start(&format!("--nvme iothreads=3,iothread-cpus={last}:{first},aio=threads"));
    let want = ["worker0", "worker1", "worker2"].into_iter().zip([last, first, last]);
    let want: Vec<_> = want.map(|(name, cpu)| (name.to_owned(), cpu.to_owned())).collect();
    let start = std::time::Instant::now();
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", d.pid())).unwrap();
        let mut threads: Vec<_> = tasks.map(|task| binding(&task.unwrap().path())).collect();
        threads.sort();
        let (workers, others): (Vec<_>, Vec<_>) =
            threads.into_iter().partition(|(name, _)| name.starts_with("worker"));
        if workers == want && others.iter().all(|(_, cpus)| *cpus == all) {
            return;
        }
        // A thread that a worker has just started has its name and its processors for a moment.
        assert!(start.elapsed() < DEADLINE, "{workers:?}, {others:?}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
