//! Guest cases: a real QEMU, real kernels, the daemon. One boot serves many cases, which run in the order of
//! this file.
//!
//! `VFIO_USER_NVME_GUEST_DEVICE=qemu-nvme` runs what applies on QEMU's own device instead, to tell our faults
//! from theirs.

mod across;
mod control;
mod copy;
mod faults;
mod files;
mod fio;
mod life;
mod newest;
mod nvme_cli;
mod probe;
mod reset;
mod run;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use guest_tests::Kernel;
use guest_tests::device::Kind;
use guest_tests::nvme_cli::Tree;
use guest_tests::vm::Nvme;
use guest_tests::{setup, undo};
use libtest_mimic::{Arguments, Failed, Trial};
use session::{Shared, Skip, main_session, newest_session};

/// Ends well, or says why it cannot be tried here.
type Outcome = anyhow::Result<Option<Skip>>;

/// Which device the cases run on.
fn kind() -> Kind {
    static KIND: OnceLock<Kind> = OnceLock::new();
    *KIND.get_or_init(|| {
        let word = std::env::var("VFIO_USER_NVME_GUEST_DEVICE").unwrap_or_default();
        if word.is_empty() { Kind::Daemon } else { word.parse().expect("VFIO_USER_NVME_GUEST_DEVICE") }
    })
}

/// Far above what any case needs on a busy machine; a case that hangs must not hang the suite.
const DEADLINE: Duration = Duration::from_secs(240);

/// What is made once and may take long: environment, agent, daemon, the verdict on KVM. No case's deadline
/// pays for it, and a kernel that cannot be had fails the cases on it alone.
fn ready(kernel: Kernel) -> Result<(), Failed> {
    static READY: OnceLock<BTreeMap<Kernel, Result<(), String>>> = OnceLock::new();
    let ready = READY.get_or_init(|| {
        let told = |made: anyhow::Result<()>| {
            made.map_err(|error| {
                let text = format!("{error:#}");
                let advice = setup::advice(&text).unwrap_or_default();
                format!("{text}\n{advice}")
            })
        };
        let common = told(prepare_all());
        let each = |kernel| (kernel, common.clone().and_then(|()| told(prepare(kernel))));
        let made = [Kernel::Stable, Kernel::Newest].map(each).into();
        // A report on a failure begins with what it happened on.
        if let Ok(versions) = session::environment(Kernel::Stable).and_then(|e| e.versions()) {
            println!("{versions}");
        }
        made
    });
    ready[&kernel].clone().map_err(Failed::from)
}

fn prepare(kernel: Kernel) -> anyhow::Result<()> {
    let environment = session::environment(kernel)?;
    session::machine(&environment, kernel, Nvme::None).map(drop)
}

fn prepare_all() -> anyhow::Result<()> {
    if Tree::named()?.is_some() {
        setup::python()?;
    }
    if kind() == Kind::Daemon {
        guest_tests::daemon::prepare()?;
    }
    Ok(())
}

fn trial(name: &str, kernel: Kernel, body: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    let own = name.to_owned();
    Trial::test(name, move || {
        ready(kernel)?;
        let (done, result) = channel();
        std::thread::spawn(move || {
            let _ = done.send(body());
        });
        match result.recv_timeout(DEADLINE) {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(Skip(why)))) => {
                println!("skipped {own}: {why}");
                Ok(())
            }
            Ok(Err(error)) => Err(Failed::from(format!("{error:#}"))),
            Err(RecvTimeoutError::Timeout) => {
                // Without its processes the case cannot hang on; the guest it shares is then made anew.
                guest_tests::child::kill_all();
                let last = result.recv_timeout(Duration::from_secs(10));
                let told = last
                    .ok()
                    .and_then(Result::err)
                    .map_or(String::new(), |e| format!("; it was here: {e:#}"));
                Err(Failed::from(format!("not done after {DEADLINE:?}{told}")))
            }
            Err(RecvTimeoutError::Disconnected) => Err(Failed::from("the case panicked")),
        }
    })
}

/// A case on a shared guest, with its name.
type Case = (&'static str, fn(&session::Session) -> Outcome);

/// Cases on one shared guest; the guest goes when the last of them is done.
fn shared(kernel: Kernel, make: fn() -> anyhow::Result<session::Session>, cases: &[Case]) -> Vec<Trial> {
    let shared = Arc::new(Shared::new(make));
    cases
        .iter()
        .map(|&(name, case)| {
            let shared = Arc::clone(&shared);
            trial(name, kernel, move || shared.run(name, case))
        })
        .collect()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each guest has two processors already; more than one at a time only makes all of them slow.
    arguments.test_threads.get_or_insert(1);
    let mut trials = shared(
        Kernel::Stable,
        main_session,
        &[
            ("probe::clean", probe::clean),
            ("probe::identify", probe::identify),
            ("probe::namespaces", probe::namespaces),
            ("probe::logs_and_features", probe::logs_and_features),
            ("probe::readonly_namespace", probe::readonly),
            ("idle::no_processor_time", probe::idle),
            ("idle::unwritten_memory_costs_nothing", probe::unwritten_memory),
            ("copy::limits_512", copy::limits_512),
            ("copy::limits_4096", copy::limits_4096),
            ("copy::default_limits", copy::default_limits),
            ("copy::largest_limits", copy::largest_limits),
            ("copy::out_of_range", copy::out_of_range),
            ("copy::across_namespaces", across::enabled_by_the_host),
            ("copy::in_a_loop", copy::in_a_loop),
            ("nvme_cli::own_copy_test", nvme_cli::copy_test),
            ("fio::io_uring_512", fio::io_uring_512),
            ("fio::libaio_512", fio::libaio_512),
            ("fio::io_uring_4096", fio::io_uring_4096),
            ("fio::libaio_4096", fio::libaio_4096),
            ("fio::every_queue_is_used", fio::queues),
            ("files::ext4", files::ext4),
            ("files::xfs", files::xfs),
            ("files::ext4_mounted_outside", files::mounted_outside),
            ("reset::rescan_under_load", reset::rescan),
            ("reset::controller_under_load", reset::controller),
        ],
    );
    trials.extend(shared(
        Kernel::Newest,
        newest_session,
        &[
            ("newest::clean", probe::clean),
            ("newest::identify", probe::identify),
            ("newest::copy", newest::copy),
            ("newest::copy_across_namespaces", across::enabled_by_the_device),
        ],
    ));
    trials.extend(shared(
        Kernel::Stable,
        faults::session,
        &[
            ("faults::do_not_retry", faults::do_not_retry),
            ("faults::retry", faults::retry),
            ("faults::aborted_in_time", faults::aborted_in_time),
            ("faults::reset_when_an_abort_fails", faults::reset_when_an_abort_fails),
            ("faults::lost_completion", faults::lost_completion),
            ("faults::lost_interrupt", faults::lost_interrupt),
            ("faults::spurious_interrupt", faults::spurious_interrupt),
            ("faults::wrong_command_id", faults::wrong_command_id),
            ("faults::slow_but_in_time", faults::slow_but_in_time),
            ("faults::controller_fatal", faults::controller_fatal),
            ("faults::admin_command_hangs", faults::admin_command_hangs),
            ("faults::slow_reset", faults::slow_reset),
            ("faults::bad_blocks", faults::bad_blocks),
            ("faults::silent_corruption", faults::silent_corruption),
            ("faults::partial_copy", faults::partial_copy),
            ("faults::identify_says_otherwise", faults::identify_says_otherwise),
            ("faults::never_ready", faults::never_ready),
        ],
    ));
    trials.extend([
        trial("life::reboot_and_second_guest", Kernel::Stable, life::reboot_and_second_guest),
        trial("life::kill_keeps_acknowledged_writes", Kernel::Stable, life::kill),
        trial("control::live", Kernel::Stable, control::live),
        trial("demo", Kernel::Stable, life::demo),
        trial("run::command", Kernel::Stable, run::command),
        trial("run::warning", Kernel::Stable, run::warning),
        trial("run::panic", Kernel::Stable, run::panic),
        trial("run::other_ends", Kernel::Stable, run::other_ends),
        trial("run::shell", Kernel::Stable, run::shell),
        trial("run::interrupted", Kernel::Stable, run::interrupted),
    ]);
    if let Err(error) = undo::when_interrupted() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    undo::settle();
    let left = children();
    if !left.is_empty() {
        eprintln!("processes were left behind: {left:?}");
        return ExitCode::FAILURE;
    }
    if conclusion.has_failed() { ExitCode::from(101) } else { ExitCode::SUCCESS }
}

/// Process numbers of our own children.
fn children() -> BTreeSet<u32> {
    let me = std::process::id().to_string();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        (fields.split(' ').nth(1)? == me).then_some(pid)
    })
    .collect()
}
