//! What the host fails to do reaches the guest as a status, and the operator as a line of the log.

use std::fs::File;

use crate::engines;
use crate::host::nvme::{io, st};
use crate::host::place::Mount;
use crate::host::*;

const READ_ERROR: u16 = 0x281;
const WRITE_FAULT: u16 = 0x280;
const CAPACITY: u16 = 0x081;

fn warnings(d: &Daemon, words: &[&str]) -> Vec<String> {
    let log = d.log();
    let all =
        log.lines().filter(|line| line.contains("WARN") && words.iter().all(|word| line.contains(word)));
    all.map(str::to_owned).collect()
}

fn cut(d: &Daemon, len: u64) {
    let file = File::options().write(true).open(d.file("x.img"));
    file.and_then(|file| file.set_len(len)).expect("the image is cut");
}

fn len(d: &Daemon) -> u64 {
    std::fs::metadata(d.file("x.img")).expect("it is there").len()
}

/// An image that is cut short under us is never lengthened by a write: the blocks that are lost would read as zeroes.
#[test]
fn a_truncated_image_is_not_grown_back() {
    for aio in engines() {
        let args = format!("--nvme-ns drive={{}}/x.img,size=1M,aio={aio},logical_block_size=4096");
        let mut d = Daemon::start(&args);
        let mut h = Host::with_queues(&d, 1, 16);
        let mut ns = Ns::identify(&mut h, 1);
        h.fill(1, &mut ns, 1);
        cut(&d, 512 << 10);
        let data = Data::prp(&mut h.ram, 4096);
        let write = |slba| Host::rw(io::WRITE, &ns, slba, 1).data(&data);
        // A Read shows it.
        h.exec(1, Host::rw(io::READ, &ns, 200, 1).data(&data)).is(READ_ERROR, "a lost block");
        for slba in [128, 200, 255] {
            h.exec(1, write(slba)).is(WRITE_FAULT, "a lost block");
        }
        let zero = |slba| Host::rw(io::WRITE_ZEROES, &ns, slba, 1);
        h.exec(1, zero(255)).is(WRITE_FAULT, "a lost block");
        h.exec(1, write(127)).ok();
        assert_eq!(len(&d), 512 << 10);
        for word in ["read", "write", "zeroing"] {
            let lines = warnings(&d, &[&format!("/x.img: {word} of "), "524288", "1048576"]);
            assert_eq!(lines.len(), 1, "{word}: {}", d.log());
        }
        // Whoever lengthens it again takes what is lost for zeroes.
        cut(&d, 1 << 20);
        h.exec(1, write(200)).ok();
        h.exec(1, Host::rw(io::READ, &ns, 255, 1).data(&data)).ok();
        // What promises durability shows it too.
        cut(&d, 512 << 10);
        h.exec(1, Sqe::new(io::FLUSH).nsid(1)).is(WRITE_FAULT, "what was written is lost");
        h.exec(1, write(255)).is(WRITE_FAULT, "a lost block");
        cut(&d, 1 << 20);
        h.exec(1, Sqe::new(io::FLUSH).nsid(1)).ok();
        cut(&d, 512 << 10);
        h.exec(1, write(255).fua()).is(WRITE_FAULT, "a lost block");
        assert_eq!(len(&d), 512 << 10);
        cut(&d, 1 << 20);
        drop(h);
        d.stop();
    }
}

/// One line at once, however many commands fail, and one at the end that counts the others.
#[test]
fn a_full_disk_is_said_once() {
    let Some(mount) = Mount::new("ext4", 16 << 20) else { return };
    let image = mount.path().join("full.img");
    let mut d = Daemon::start(&format!("--nvme-ns drive={},size=64M", image.display()));
    let mut h = Host::with_queues(&d, 1, 64);
    let ns = Ns::facts(&mut h, 1);
    let data = Data::prp(&mut h.ram, 64 << 10);
    let mut failed = 0;
    for slba in (0..ns.nsze).step_by(128) {
        let c = h.exec(1, Host::rw(io::WRITE, &ns, slba, 128).data(&data));
        if c.status != st::OK {
            c.is(CAPACITY, "the disk is full");
            failed += 1;
        }
    }
    assert!(failed > 100, "{failed}");
    let lines = warnings(&d, &["/full.img: write of 65536 bytes at byte ", "os error 28", "make room"]);
    assert!((1..=6).contains(&lines.len()), "{lines:?}");
    drop(h);
    d.stop();
    let counted: u64 = warnings(&d, &["/full.img: write", "more"])
        .iter()
        .filter_map(|line| {
            let words: Vec<&str> = line.split([' ', '(']).collect();
            let at = words.iter().position(|word| *word == "more")?;
            words[at - 1].parse::<u64>().ok()
        })
        .sum();
    assert_eq!(counted + lines.len() as u64, failed, "{}", d.log());
}
