//! Partitions and file systems, looked at from inside after a fresh mount and from outside by other tools.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use guest_agent::pattern;

use crate::Outcome;
use crate::session::{Session, Skip};

const NSID: u32 = 3;
const FILE_BYTES: usize = 6 << 20;
/// First block and length of each partition, in MiB; mkfs.xfs wants 300.
const EXT4: (u64, u64) = (1, 200);
const XFS: (u64, u64) = (210, 400);

/// Makes both partitions, once; answers the node of number `n`.
fn partition(s: &Session, n: u32) -> anyhow::Result<String> {
    let node = s.node(NSID)?;
    let part = format!("{node}p{n}");
    s.guest.sh(&format!(
        "[ -e {part} ] || printf 'label: gpt\\nstart={}MiB,size={}MiB\\nstart={}MiB,size={}MiB\\n' | sfdisk -q --wipe always {node}",
        EXT4.0, EXT4.1, XFS.0, XFS.1
    ))?;
    // The node is made by the kernel a moment after the partition table was read.
    s.guest.sh(&format!("for i in $(seq 50); do [ -e {part} ] && break; sleep 0.1; done; [ -e {part} ]"))?;
    Ok(part)
}

/// mkfs, mount, write files, unmount, mount again, compare, unmount.
fn round_trip(s: &Session, part: &str, mkfs: &str, kind: &str) -> anyhow::Result<()> {
    let limit = Duration::from_secs(120);
    let one = pattern::bytes(0, FILE_BYTES, 11);
    let two = pattern::bytes(0, 12345, 12);
    s.guest.sh_within(
        &format!("{mkfs} {part} 2>&1; mkdir -p /mnt/{kind}; mount -t {kind} {part} /mnt/{kind}"),
        limit,
    )?;
    s.guest.put(&format!("/mnt/{kind}/one"), 0o644, &one)?;
    s.guest.put(&format!("/mnt/{kind}/deep/er/two"), 0o600, &two)?;
    s.guest.sh_within(
        &format!(
            "cd /mnt/{kind}; for i in $(seq 200); do echo $i > small$i; done; cp one three; rm one; sync; mv three one; \
             ln -s deep/er/two link; cd /; umount /mnt/{kind}; mount -t {kind} {part} /mnt/{kind}"
        ),
        limit,
    )?;
    ensure!(s.guest.get(&format!("/mnt/{kind}/one"))? == one, "{kind}: the big file came back different");
    ensure!(s.guest.get(&format!("/mnt/{kind}/link"))? == two, "{kind}: the small file came back different");
    let sum = s.guest.sh(&format!("cat /mnt/{kind}/small* | awk '{{s+=$1}} END {{print s}}'"))?;
    ensure!(sum.trim() == "20100", "{kind}: the 200 small files add up to {sum}");
    s.guest.sh_within(&format!("fstrim -v /mnt/{kind}; umount /mnt/{kind}"), limit)?;
    Ok(())
}

/// One partition of the image as a file of its own.
fn cut(s: &Session, (start, len): (u64, u64)) -> anyhow::Result<PathBuf> {
    use std::io::{Read, Seek};
    let mut image = fs::File::open(s.ns(NSID)?.image()?)?;
    image.seek(std::io::SeekFrom::Start(start << 20))?;
    let to = s.folder.file("partition.img");
    std::io::copy(&mut image.take(len << 20), &mut fs::File::create(&to)?)?;
    Ok(to)
}

fn outside(mut command: Command) -> anyhow::Result<()> {
    let out = command.output()?;
    ensure!(
        out.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(())
}

pub fn ext4(s: &Session) -> Outcome {
    let part = partition(s, 1)?;
    round_trip(s, &part, "mkfs.ext4 -q -F", "ext4")?;
    s.same_outside(NSID)?;
    let image = cut(s, EXT4)?;
    let mut check = s.environment.sysroot.command("usr/sbin/e2fsck");
    check.args(["-f", "-n"]).arg(&image);
    outside(check)?;
    let dumped = s.folder.file("dumped");
    let mut dump = s.environment.sysroot.command("usr/sbin/debugfs");
    dump.args(["-R", &format!("dump /one {}", dumped.display())]).arg(&image);
    outside(dump)?;
    ensure!(fs::read(&dumped)? == pattern::bytes(0, FILE_BYTES, 11), "the file in the image is another");
    fs::remove_file(image)?;
    Ok(None)
}

pub fn xfs(s: &Session) -> Outcome {
    let part = partition(s, 2)?;
    round_trip(s, &part, "mkfs.xfs -q -f", "xfs")?;
    s.same_outside(NSID)?;
    let image = cut(s, XFS)?;
    let mut check = s.environment.sysroot.command("usr/sbin/xfs_repair");
    check.arg("-n").arg(&image);
    outside(check)?;
    fs::remove_file(image)?;
    Ok(None)
}

/// The host's own kernel mounts what the guest made.
pub fn mounted_outside(s: &Session) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Skip::because("a loop mount needs root");
    }
    let part = partition(s, 1)?;
    if !s.guest.sh(&format!("blkid {part} || true"))?.contains("ext4") {
        round_trip(s, &part, "mkfs.ext4 -q -F", "ext4")?;
    }
    let image = cut(s, EXT4)?;
    let at = s.folder.file("mounted");
    fs::create_dir(&at)?;
    let mounted =
        Command::new("mount").args(["-o", "loop,ro"]).arg(&image).arg(&at).output().context("mount")?;
    if !mounted.status.success() {
        let why = String::from_utf8_lossy(&mounted.stderr).trim().to_owned();
        fs::remove_dir(&at)?;
        return Skip::because(&format!("this host cannot mount by loop: {why}"));
    }
    let read = fs::read(at.join("one"));
    let unmounted = Command::new("umount").arg(&at).status()?;
    ensure!(unmounted.success(), "umount {}", at.display());
    fs::remove_dir(&at)?;
    ensure!(read? == pattern::bytes(0, FILE_BYTES, 11), "the host reads another file than the guest wrote");
    fs::remove_file(image)?;
    Ok(None)
}
