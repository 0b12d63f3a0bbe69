//! `guest bench`: our device and QEMU's own in one guest, on equal images, in turn.
//!
//! One boot for both, so that guest, host and weather are the same; in turn, so that what drifts hits both
//! alike.

mod html;
mod rows;
mod stats;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use guest_agent::pattern;
use serde_json::{Value, json};

use crate::accel::{self, Wanted};
use crate::case::Folder;
use crate::daemon::{self, Daemon};
use crate::guest::{BOOT_LIMIT, Guest};
use crate::progress;
use crate::setup::{self, Kernel, Qemu};
use crate::undo::Undo;
use crate::vm::{Nvme, QemuNs, QemuNvme, Vm};
use rows::{BLOCK, ROWS, Row, Target};
use stats::Summary;

/// Options of `guest bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Runs of every row on each device
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Boots to spread the runs over: a guest by translation is faster or slower from boot to boot
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    boots: u32,
    /// Seconds of one run on one device
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// A look, not a measurement: 3 runs of 0.3 s on images of 128 MiB
    #[arg(long)]
    quick: bool,
    /// MiB of each image
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=65536))]
    size: u32,
    /// Folder of the images, which should be on a disk and not in memory; target/guest-bench if there is none
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
    /// Only rows whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Virtual processors; each has a queue of each device
    #[arg(long, default_value_t = 4)]
    cpus: u32,
    /// auto (KVM if it can run the guest), kvm or tcg
    #[arg(long, default_value = "auto")]
    accel: Wanted,
    /// More properties of our controller
    #[arg(long, value_name = "NAME=VALUE,...")]
    nvme: Vec<String>,
    /// More properties of our namespace
    #[arg(long, value_name = "NAME=VALUE,...")]
    nvme_ns: Vec<String>,
    /// More properties of QEMU's controller
    #[arg(long, value_name = "NAME=VALUE,...")]
    qemu_nvme: Vec<String>,
}

/// What both controllers are told: the same transfer size and queues. Linux makes a queue pair for each
/// processor.
const CONTROLLER: &str = "mdts=7,mqes=1023,max_ioqpairs=64";
/// What both namespaces are told.
const NAMESPACE: &str = "mssrl=2048,mcl=32768,msrc=127";
const OURS: &str = "BENCHOURS";
const QEMUS: &str = "BENCHQEMU";

/// One row with all its runs.
#[derive(Debug, Clone)]
struct Measured {
    row: Row,
    ours: Vec<f64>,
    qemu: Vec<f64>,
}

impl Measured {
    /// Run number `run` (0-based) on both devices, which are ours and QEMU's.
    fn run(&mut self, guest: &Guest, targets: &[Target; 2], run: u32, time: Duration) -> anyhow::Result<()> {
        let [ours, qemu] = targets;
        // Every other run the other way round: who comes second meets the writeback of what the first wrote.
        let swapped = run % 2 == 1;
        let order = if swapped { [qemu, ours] } else { [ours, qemu] };
        let [first, second] = self.row.measure(guest, order, time).with_context(|| self.row.name)?;
        let (own, theirs) = if swapped { (second, first) } else { (first, second) };
        self.ours.push(own);
        self.qemu.push(theirs);
        Ok(())
    }

    fn summaries(&self) -> (Summary, Summary) {
        (Summary::of(&self.ours), Summary::of(&self.qemu))
    }

    /// Median by median.
    fn ratio(&self) -> f64 {
        let (ours, qemu) = self.summaries();
        ours.median / qemu.median
    }

    fn verdict(&self) -> &'static str {
        let (ours, qemu) = self.summaries();
        stats::verdict(&ours, &qemu)
    }

    fn json(&self) -> Value {
        let (ours, qemu) = self.summaries();
        json!({
            "row": self.row.name,
            "unit": self.row.unit,
            "ours": {"runs": self.ours, "summary": ours.json()},
            "qemu": {"runs": self.qemu, "summary": qemu.json()},
            "ratio": self.ratio(),
            "verdict": self.verdict(),
        })
    }
}

/// Under which circumstances it was measured.
#[derive(Debug, Clone)]
struct Facts {
    words: Vec<(&'static str, String)>,
}

impl Facts {
    fn lines(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.words.iter().cloned()
    }
}

/// Does it: table on standard output, progress on standard error, files in target/guest-bench.
///
/// # Errors
/// Text for a human.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    ensure!(options.seconds >= 0.1 && options.seconds <= 3600.0, "--seconds: 0.1 to 3600");
    ensure!(options.cpus >= 4, "--cpus: 4 at least, one for each of the four jobs");
    let rows: Vec<Row> = ROWS.into_iter().filter(|r| r.name.contains(&options.only)).collect();
    ensure!(!rows.is_empty(), "no row's name contains {:?}", options.only);
    let environment = setup::setup(&[Kernel::Stable])?;
    let out = daemon::target()?.join("guest-bench");
    fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let images = Images::new(options.images.as_deref().unwrap_or(&out))?;
    let mut folder = Folder::new("bench")?;
    let result = compare(options, &environment, &folder, &images, &rows);
    let (facts, measured) = result.inspect_err(|_| folder.keep_and_say())?;
    print!("{}", table(&facts, &measured));
    let report = json!({
        "facts": facts.lines().collect::<std::collections::BTreeMap<_, _>>(),
        "rows": measured.iter().map(Measured::json).collect::<Vec<_>>(),
    });
    let (json, page) = (out.join("bench.json"), out.join("bench.html"));
    fs::write(&json, serde_json::to_string_pretty(&report)? + "\n")?;
    fs::write(&page, html::page(&facts, &measured))?;
    println!("\n{}\n{}", json.display(), page.display());
    Ok(ExitCode::SUCCESS)
}

/// The two images; gone when dropped.
struct Images {
    ours: PathBuf,
    qemu: PathBuf,
    /// Removes their folder.
    _undo: Undo,
}

impl Images {
    fn new(parent: &Path) -> anyhow::Result<Self> {
        // Not those of a second benchmark that runs at the same time.
        let folder = std::path::absolute(parent)?.join(format!("images-{}", std::process::id()));
        let undo = Undo::removes(&folder);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { ours: folder.join("ours.img"), qemu: folder.join("qemu.img"), _undo: undo })
    }

    /// Every byte is written and on the disk before anything is measured.
    fn write(&self, mib: u32) -> anyhow::Result<()> {
        for path in [&self.ours, &self.qemu] {
            let mut file = fs::File::create(path).with_context(|| path.display().to_string())?;
            for n in 0..u64::from(mib) {
                file.write_all(&pattern::bytes(n << 20, 1 << 20, 1))?;
            }
            file.sync_all()?;
        }
        Ok(())
    }
}

fn compare(
    options: &Options,
    environment: &setup::Environment,
    folder: &Folder,
    images: &Images,
    rows: &[Row],
) -> anyhow::Result<(Facts, Vec<Measured>)> {
    let (runs, seconds, size) =
        if options.quick { (3, 0.3, 128) } else { (options.runs, options.seconds, options.size) };
    let program = daemon::optimized()?;
    progress::say(&format!("writing two images of {size} MiB"));
    images.write(size)?;
    let aio = best_aio(&environment.qemu, &images.qemu)?;
    let mut controller = vec![format!("serial={OURS},{CONTROLLER},aio={aio}")];
    controller.extend(options.nvme.iter().cloned());
    let mut namespace = format!("drive={},logical_block_size={BLOCK},{NAMESPACE}", escaped(&images.ours));
    for more in &options.nvme_ns {
        namespace.push_str(&format!(",{more}"));
    }
    let mut qemus = vec![format!("serial={QEMUS}"), CONTROLLER.to_owned()];
    qemus.extend(options.qemu_nvme.iter().cloned());
    let qemus = QemuNvme {
        controller: qemus,
        namespaces: vec![QemuNs {
            drive: images.qemu.clone(),
            properties: vec![
                format!("logical_block_size={BLOCK},physical_block_size={BLOCK}"),
                NAMESPACE.to_owned(),
            ],
            readonly: false,
        }],
        aio: Some(aio.to_owned()),
    };
    let kernel = Kernel::Stable;
    let mut vm = Vm {
        cpus: options.cpus,
        accel: accel::choose(options.accel, environment)?,
        ..Vm::new(environment.kernel(kernel), environment.initramfs(Some(kernel), None)?)
    };
    let mut measured: Vec<Measured> =
        rows.iter().map(|&row| Measured { row, ours: vec![], qemu: vec![] }).collect();
    let boots = options.boots.min(runs);
    let mut known = None;
    for boot in 0..boots {
        let daemon = Daemon::start_program(
            &program,
            folder.path(),
            &controller,
            std::slice::from_ref(&namespace),
            &[],
        )?;
        vm.nvme = Nvme::Several(vec![Nvme::VfioUser(daemon.socket().to_owned()), Nvme::Qemu(qemus.clone())]);
        progress::say("booting the guest");
        let guest = Guest::boot(&environment.qemu, &vm, folder.path(), BOOT_LIMIT)?;
        let targets = [target(&guest, "ours", OURS)?, target(&guest, "qemu", QEMUS)?];
        known = Some((guest.kernel().to_owned(), queues(&guest)?));
        for run in share(runs, boots, boot) {
            progress::say(&format!("run {} of {runs}", run + 1));
            for m in &mut measured {
                m.run(&guest, &targets, run, Duration::from_secs_f64(seconds))?;
            }
        }
        let warnings = guest.warnings()?;
        ensure!(warnings.is_empty(), "kernel warnings in the guest:\n{}", warnings.join("\n"));
        guest.poweroff()?;
        let status = daemon.terminate(Duration::from_secs(15))?;
        ensure!(status.success(), "the daemon ended with {status}");
    }
    let (kernel, queues) = known.context("no boot")?;
    let facts = Facts {
        words: vec![
            ("guest", format!("Linux {kernel}, {} processors, {:?}", options.cpus, vm.accel)),
            ("QEMU", format!("{} ({})", environment.qemu.version(), environment.qemu.origin())),
            ("images", format!("raw, {size} MiB, written before, page cache (cache=writeback)")),
            ("aio of both", aio.to_owned()),
            ("more for ours", [&options.nvme[..], &options.nvme_ns].concat().join(" ")),
            ("more for QEMU's", options.qemu_nvme.join(" ")),
            ("runs", format!("{runs} of {seconds} s on each device, alternating, boots: {boots}")),
            ("queues", queues),
        ],
    };
    Ok((facts, measured))
}

/// The numbers of the runs that are made in this boot: the first boots have one more where they cannot be
/// equal.
fn share(runs: u32, boots: u32, boot: u32) -> std::ops::Range<u32> {
    let first = |boot: u32| boot * (runs / boots) + boot.min(runs % boots);
    first(boot)..first(boot + 1)
}

/// The namespace of the controller with this serial number: names change from boot to boot.
fn target(guest: &Guest, name: &'static str, serial: &str) -> anyhow::Result<Target> {
    let script = format!(
        "for d in /sys/class/block/nvme*n*; do [ \"$(cat $d/device/serial | tr -d ' ')\" = {serial} ] && \
         case ${{d##*/}} in *c*) ;; *) echo $(cat $d/nsid) ${{d##*/}};; esac; done; true"
    );
    let found = guest.sh(&script)?;
    let (nsid, node) = found
        .trim()
        .split_once(' ')
        .with_context(|| format!("the guest has no disk of {serial}: {found:?}"))?;
    ensure!(!node.contains('\n'), "more than one disk of {serial}: {found}");
    Ok(Target { name, node: format!("/dev/{node}"), nsid: nsid.parse()? })
}

/// I/O queues the guest's kernel made, for each controller: they must be equal.
fn queues(guest: &Guest) -> anyhow::Result<String> {
    let mut counts = Vec::new();
    for controller in ["nvme0", "nvme1"] {
        let listed = guest.sh(&format!("grep -c '{controller}q[1-9]' /proc/interrupts"))?;
        counts.push(listed.trim().to_owned());
    }
    ensure!(counts[0] == counts[1], "the controllers have different numbers of I/O queues: {counts:?}");
    Ok(format!("{} I/O queues each", counts[0]))
}

/// The fastest way to read and write an image in the page cache that this QEMU and this kernel have; the
/// daemon has both, too.
fn best_aio(qemu: &Qemu, image: &Path) -> anyhow::Result<&'static str> {
    // `native` needs O_DIRECT, so it is no candidate here.
    for aio in ["io_uring", "threads"] {
        let mut command = qemu.command();
        command.args(["-machine", "none", "-nodefaults", "-display", "none", "-monitor", "stdio", "-drive"]);
        command.arg(format!("if=none,id=d,format=raw,cache=writeback,aio={aio},file={}", escaped(image)));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        if opens(command)? {
            return Ok(aio);
        }
    }
    anyhow::bail!("QEMU opens {} in no way", image.display())
}

/// Does QEMU come up with this, and leave when asked?
fn opens(mut command: Command) -> anyhow::Result<bool> {
    let mut child = command.spawn().context("QEMU")?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may have ended already; then the status says so.
        let _ = stdin.write_all(b"quit\n");
    }
    Ok(child.wait()?.success())
}

fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn table(facts: &Facts, measured: &[Measured]) -> String {
    let mut text = String::new();
    for (name, fact) in facts.lines().filter(|(_, fact)| !fact.is_empty()) {
        text.push_str(&format!("{name}: {fact}\n"));
    }
    text.push_str(&format!(
        "\n{:<36}{:>6}  {:>24}  {:>24}  {:>6}\n",
        "medians (quartiles)", "unit", "ours", "QEMU", "ratio"
    ));
    for m in measured {
        let cell = |s: &Summary| format!("{:.0} ({:.0}-{:.0})", s.median, s.low, s.high);
        let (ours, qemu) = m.summaries();
        text.push_str(&format!(
            "{:<36}{:>6}  {:>24}  {:>24}  {:>6.2}  {}\n",
            m.row.name,
            m.row.unit,
            cell(&ours),
            cell(&qemu),
            m.ratio(),
            m.verdict()
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_row_with_ratio_and_verdict() {
        let facts = Facts { words: vec![("guest", "Linux".into()), ("more", String::new())] };
        let m = Measured { row: ROWS[1], ours: vec![20.0, 22.0, 21.0], qemu: vec![10.0, 11.0, 12.0] };
        let text = table(&facts, &[m]);
        let last = text.lines().last().unwrap();
        assert!(last.starts_with(ROWS[1].name) && last.contains("1.91") && last.ends_with("ahead"), "{last}");
        assert!(!text.contains("more:"));
    }

    #[test]
    fn each_run_is_made_in_one_boot() {
        let all = |runs, boots| (0..boots).map(|boot| share(runs, boots, boot)).collect::<Vec<_>>();
        assert_eq!(share(9, 1, 0), 0..9);
        assert_eq!(all(9, 3), [0..3, 3..6, 6..9]);
        assert_eq!(all(5, 3), [0..2, 2..4, 4..5]);
        assert_eq!(all(3, 3), [0..1, 1..2, 2..3]);
    }

    #[test]
    fn images_are_equal_written_and_gone_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::new(dir.path()).unwrap();
        images.write(2).unwrap();
        let (a, b) = (fs::read(&images.ours).unwrap(), fs::read(&images.qemu).unwrap());
        assert!(a == b && a.len() == 2 << 20 && a.chunks(512).all(|c| c.iter().any(|&x| x != 0)));
        drop(images);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
