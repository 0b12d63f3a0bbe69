//! Scripted faults as Linux's driver meets them: time-out, Abort, reset, retry, DNR; and the device well afterwards.
//!
//! One boot with time-outs of 2 s. Rules come and go by the control socket.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use guest_tests::Kernel;
use guest_tests::device::Kind;
use guest_tests::nvme::Copy;

use crate::session::{Ns, Session, Skip};
use crate::{Outcome, kind};

const BLOCK: usize = 512;
const SIZE: u64 = 16 << 20;
/// Where cases write: the first MiB of it is left to the check that all is well.
const AT: u64 = 4 << 20;
const LEN: u64 = 64 << 10;
/// For a reset, and what comes before it.
const RECOVERY: Duration = Duration::from_secs(40);

/// The guest of these cases.
pub fn session() -> anyhow::Result<Session> {
    let append = ["nvme_core.io_timeout=2", "nvme_core.admin_timeout=2"];
    Session::boot_with("faults", Kernel::Stable, &["serial=GUEST0004"], &append, |folder| {
        vec![Ns::new(folder, "ns1.img", SIZE, BLOCK, (128, 256, 7))]
    })
}

/// Rules in force, and what they did.
struct Rules<'s> {
    session: &'s Session,
    count: usize,
}

impl<'s> Rules<'s> {
    fn add(session: &'s Session, rules: &[&str]) -> anyhow::Result<Self> {
        // What was said before is not these rules' doing.
        session.guest.messages()?;
        for rule in rules {
            session.ctl(&["fault", "add", rule])?;
        }
        Ok(Self { session, count: rules.len() })
    }

    /// How often each of them fired; they are gone then.
    fn fired(self) -> anyhow::Result<Vec<u64>> {
        let listed = self.session.ctl(&["fault", "list"])?;
        self.session.ctl(&["fault", "clear", "all"])?;
        let rules = listed["rules"].as_array().context("a list of rules")?;
        ensure!(rules.len() == self.count, "{listed}");
        rules.iter().map(|rule| rule["fired"].as_u64().context("a count")).collect()
    }
}

/// `rules` are in force while `act` is done. All of them fire, the kernel says each of `said`, and the device is well
/// afterwards.
fn meets(s: &Session, rules: &[&str], said: &[&str], act: impl FnOnce() -> anyhow::Result<()>) -> Outcome {
    if kind() == Kind::QemuNvme {
        return Skip::because("QEMU's own device has no fault rules");
    }
    let force = Rules::add(s, rules)?;
    act().with_context(|| format!("under {rules:?}"))?;
    let mut heard = Vec::new();
    let until = Instant::now() + RECOVERY;
    // Some of it is said after the command's end.
    let missing = loop {
        heard.extend(s.guest.messages()?.into_iter().map(|message| message.text));
        let missing = said.iter().find(|words| !heard.iter().any(|text| text.contains(**words)));
        if missing.is_none() || Instant::now() > until {
            break missing;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    ensure!(missing.is_none(), "the kernel does not say {missing:?} but\n{}", heard.join("\n"));
    let fired = force.fired()?;
    ensure!(fired.iter().all(|count| *count > 0), "{rules:?} fired {fired:?}");
    well(s)?;
    Ok(None)
}

/// The controller is live, writes arrive, and the guest reads what the image holds.
fn well(s: &Session) -> anyhow::Result<()> {
    let until = Instant::now() + RECOVERY;
    while state(s)? != "live" {
        ensure!(Instant::now() < until, "the controller is {}", state(s)?);
        std::thread::sleep(Duration::from_millis(100));
    }
    let node = s.node(1)?;
    let seed = s.guest.sh("cut -d. -f1 /proc/uptime")?;
    s.guest.tool(&["fill", &node, "0", &LEN.to_string(), seed.trim()])?;
    s.guest.tool(&["check", &node, "0", &LEN.to_string(), seed.trim()])?;
    s.same_outside(1)?;
    // What the recovery said is looked at by `meets`; from here on nothing is said.
    s.guest.messages()?;
    Ok(())
}

fn state(s: &Session) -> anyhow::Result<String> {
    Ok(s.guest.sh("cat /sys/class/nvme/nvme*/state 2>/dev/null || echo gone")?.trim().to_owned())
}

fn fill(s: &Session, seed: u64) -> anyhow::Result<()> {
    s.guest.tool(&["fill", &s.node(1)?, &AT.to_string(), &LEN.to_string(), &seed.to_string()]).map(drop)
}

fn check(s: &Session, seed: u64) -> anyhow::Result<()> {
    s.guest.tool(&["check", &s.node(1)?, &AT.to_string(), &LEN.to_string(), &seed.to_string()]).map(drop)
}

/// One command: a direct read of 4 KiB at `AT`, which must fail or not.
fn read_one(s: &Session, succeeds: bool) -> anyhow::Result<()> {
    let script = format!("dd if={} of=/dev/null bs=4096 count=1 skip={} iflag=direct", s.node(1)?, AT / 4096);
    let out = s.guest.run(&["/bin/sh", "-c", &script], RECOVERY)?;
    ensure!((out.code == 0) == succeeds, "{script}: exit code {}\n{}", out.code, out.all());
    Ok(())
}

fn write_one(s: &Session) -> anyhow::Result<()> {
    let script = format!(
        "dd if=/dev/zero of={} bs=4096 count=1 seek={} oflag=direct conv=notrunc",
        s.node(1)?,
        AT / 4096
    );
    s.guest.sh_within(&script, RECOVERY).map(drop)
}

pub fn do_not_retry(s: &Session) -> Outcome {
    fill(s, 1)?;
    // Once would be enough for a driver that tries again.
    meets(s, &["op=read status=MEDIUM dnr times=1"], &["critical medium error"], || read_one(s, false))
}

pub fn retry(s: &Session) -> Outcome {
    fill(s, 2)?;
    let force = |rules| meets(s, rules, &[], || read_one(s, true));
    force(&["op=read status=internal-error times=2"])?;
    // With more failures than the driver makes attempts it gives up.
    meets(s, &["op=read status=internal-error times=6"], &["I/O error"], || read_one(s, false))
}

pub fn aborted_in_time(s: &Session) -> Outcome {
    meets(s, &["op=write times=1 stall"], &["timeout, aborting", "Abort status: 0x0"], || write_one(s))
}

pub fn reset_when_an_abort_fails(s: &Session) -> Outcome {
    let rules = ["op=write times=1 stall", "op=abort status=success dw0=1"];
    meets(s, &rules, &["timeout, aborting", "timeout, reset controller"], || write_one(s))
}

pub fn lost_completion(s: &Session) -> Outcome {
    meets(s, &["op=write times=1 drop"], &["timeout, aborting", "timeout, reset controller"], || write_one(s))
}

pub fn lost_interrupt(s: &Session) -> Outcome {
    meets(s, &["op=write times=1 irq=lost"], &["timeout, completion polled"], || write_one(s))
}

pub fn spurious_interrupt(s: &Session) -> Outcome {
    meets(s, &["op=write times=1 irq=spurious"], &[], || write_one(s))
}

pub fn wrong_command_id(s: &Session) -> Outcome {
    meets(s, &["op=write times=1 cid=0xffff"], &["invalid id", "timeout, reset controller"], || write_one(s))
}

pub fn slow_but_in_time(s: &Session) -> Outcome {
    let rules = ["op=write times=3 delay=500ms", "op=read every_nth=3 reorder=2", "op=write nth=5 busy=1s"];
    meets(s, &rules, &[], || {
        let script = format!(
            "fio --name=slow --filename={} --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --bs=4k \
             --offset={AT} --size=4m --verify=crc32c --verify_fatal=1 --verify_backlog=64",
            s.node(1)?
        );
        s.guest.sh_within(&script, RECOVERY * 2).map(drop)
    })
}

pub fn controller_fatal(s: &Session) -> Outcome {
    meets(s, &["op=write times=1 cfs"], &["controller is down; will reset"], || write_one(s))
}

/// An admin command that hangs: the driver resets at once, for it aborts none.
pub fn admin_command_hangs(s: &Session) -> Outcome {
    meets(s, &["op=identify times=1 stall"], &["timeout"], || {
        let out = s.guest.run(&["nvme", "id-ctrl", "/dev/nvme0"], RECOVERY)?;
        ensure!(out.code != 0, "it succeeds: {}", out.all());
        Ok(())
    })
}

pub fn slow_reset(s: &Session) -> Outcome {
    let start = Instant::now();
    let reset = || s.guest.sh_within("echo 1 > /sys/class/nvme/nvme0/reset_controller", RECOVERY).map(drop);
    meets(s, &["op=disable delay=3s times=1"], &[], reset)?;
    ensure!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
    let start = Instant::now();
    meets(s, &["op=enable delay=3s times=1"], &[], reset)?;
    ensure!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
    Ok(None)
}

/// The driver gives the controller up; found again on the bus, it is well.
pub fn never_ready(s: &Session) -> Outcome {
    meets(s, &["op=enable stall times=1"], &["Device not ready"], || {
        s.guest.run(&["/bin/sh", "-c", "echo 1 > /sys/class/nvme/nvme0/reset_controller"], RECOVERY)?;
        let until = Instant::now() + RECOVERY;
        while state(s)? == "resetting" || state(s)? == "connecting" {
            ensure!(Instant::now() < until, "the driver does not give up: {}", state(s)?);
            std::thread::sleep(Duration::from_millis(200));
        }
        // It may have unbound the device by now, which is there all the same.
        s.guest.sh("for d in /sys/bus/pci/devices/*; do \
             if [ $(cat $d/class) = 0x010802 ]; then echo 1 > $d/remove; fi; done")?;
        s.guest.sh_within("echo 1 > /sys/bus/pci/rescan", RECOVERY)?;
        let until = Instant::now() + RECOVERY;
        while s.node(1).is_err() {
            ensure!(Instant::now() < until, "no namespace after the rescan; the controller is {}", state(s)?);
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    })
}

pub fn bad_blocks(s: &Session) -> Outcome {
    fill(s, 3)?;
    let first = AT / BLOCK as u64;
    let rule = format!("nsid=1 lba={first}-{} bad", first + 7);
    meets(s, &[&rule], &["critical medium error"], || {
        read_one(s, false)?;
        write_one(s)?;
        read_one(s, true)
    })
}

pub fn silent_corruption(s: &Session) -> Outcome {
    fill(s, 4)?;
    let rule = format!("op=read lba={} xor=01@100", AT / BLOCK as u64 + 3);
    meets(s, &[&rule], &[], || {
        if check(s, 4).is_ok() {
            bail!("a bit was flipped, and the guest reads what it wrote");
        }
        Ok(())
    })?;
    check(s, 4)?;
    Ok(None)
}

/// A Copy that fails at its second range has written the first, and nothing else.
pub fn partial_copy(s: &Session) -> Outcome {
    if kind() == Kind::QemuNvme {
        return Skip::because("QEMU's own device has no fault rules");
    }
    let (to, ranges) = (20_000, [(AT / BLOCK as u64, 16), (AT / BLOCK as u64 + 50, 8)]);
    fill(s, 5)?;
    let image = s.ns(1)?.image()?.to_owned();
    let before = std::fs::read(&image)?;
    meets(s, &["op=copy range=1 status=write-fault dnr"], &[], || {
        let refused = Copy::new(to, &ranges).run(&s.guest, &s.node(1)?)?;
        let Err(status) = refused else { bail!("the Copy succeeds") };
        ensure!(status.0 & 0x47ff == 0x4280, "{status:?}");
        let after = std::fs::read(&image)?;
        let at = |block: u64| usize::try_from(block).unwrap_or(usize::MAX) * BLOCK;
        let (start, source) = (at(to), at(ranges[0].0));
        ensure!(
            after[start..start + 16 * BLOCK] == before[source..source + 16 * BLOCK],
            "range 0 is not copied"
        );
        ensure!(
            after[start + 16 * BLOCK..start + 24 * BLOCK] == before[start + 16 * BLOCK..start + 24 * BLOCK]
        );
        Ok(())
    })
}

/// The driver goes by what Identify says.
pub fn identify_says_otherwise(s: &Session) -> Outcome {
    let limit = |s: &Session| -> anyhow::Result<String> {
        let node = s.node(1)?;
        let name = node.trim_start_matches("/dev/");
        Ok(s.guest.sh(&format!("cat /sys/block/{name}/queue/max_hw_sectors_kb"))?.trim().to_owned())
    };
    let mdts = || -> anyhow::Result<String> {
        let said = s.guest.sh("nvme id-ctrl /dev/nvme0 | sed -n 's/^mdts *: *//p'")?;
        Ok(said.trim().to_owned())
    };
    let before = (limit(s)?, mdts()?);
    ensure!(before.0 != "64" && before.1 != "4", "it is {before:?} anyway");
    // MDTS 4: 64 KiB. The kernel looks at its namespaces anew after the reset, in its own time.
    meets(s, &["op=identify cdw10=1/0xff payload=77:04"], &[], || {
        s.guest.sh_within("echo 1 > /sys/class/nvme/nvme0/reset_controller", RECOVERY)?;
        let until = Instant::now() + RECOVERY;
        while limit(s)? != "64" {
            ensure!(Instant::now() < until, "it is {} KiB, before {before:?}", limit(s)?);
            std::thread::sleep(Duration::from_millis(100));
        }
        ensure!(mdts()? == "4", "MDTS is {}", mdts()?);
        Ok(())
    })?;
    // The device is itself again. The kernel is not: resets only ever lower its limit, until it probes anew.
    ensure!(mdts()? == before.1, "MDTS is {} afterwards, before {before:?}", mdts()?);
    Ok(None)
}
