//! `cargo guest`: set up, run, show.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use guest_tests::{bench, demo, run, setup, undo};

/// A real Linux guest in a real QEMU with our NVMe device
#[derive(Debug, Parser)]
#[command(name = "cargo guest", bin_name = "cargo guest", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make the guest environment in the cache folder; does nothing when it is there
    Setup {
        /// The newest kernel (7.x) too
        #[arg(long)]
        all: bool,
    },
    /// Boot a kernel with the device and run a command, or give a shell
    Run(run::Options),
    /// Everything from nothing: boot, write, copy, prove
    Demo(demo::Options),
    /// The QEMU guests run in, with your arguments, in place of this program
    Qemu {
        /// QEMU's arguments
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Our device and QEMU's own beside each other in one guest, as ratios
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let runs = std::env::args_os().nth(1).is_some_and(|word| word == "run");
    let what = match Arguments::try_parse() {
        Ok(arguments) => arguments.what,
        // A command in the guest may end with clap's code, too.
        Err(error) if runs && error.use_stderr() => {
            let _ = error.print();
            return ExitCode::from(run::CANNOT);
        }
        Err(error) => error.exit(),
    };
    let result = undo::when_interrupted().and_then(|()| match what {
        What::Setup { all } => set_up(all),
        What::Run(options) => run::run(&options),
        What::Demo(options) => demo::run(&options),
        What::Qemu { arguments } => qemu(&arguments),
        What::Bench(options) => bench::run(&options),
    });
    undo::settle();
    result.unwrap_or_else(|error| {
        let text = format!("{error:#}");
        eprintln!("cargo guest: {text}");
        setup::advice(&text).into_iter().for_each(|advice| eprintln!("{advice}"));
        if runs { run::code(&error) } else { ExitCode::FAILURE }
    })
}

/// Comes back only when QEMU does not start.
fn qemu(arguments: &[String]) -> anyhow::Result<ExitCode> {
    let mut command = setup::setup(&[])?.qemu.command();
    Err(command.args(arguments).exec()).context("QEMU")
}

fn set_up(all: bool) -> anyhow::Result<ExitCode> {
    let kernels =
        if all { vec![setup::Kernel::Stable, setup::Kernel::Newest] } else { vec![setup::Kernel::Stable] };
    let environment = setup::setup(&kernels)?;
    println!("ready: {}, {}", environment.folder().display(), environment.versions()?);
    Ok(ExitCode::SUCCESS)
}
