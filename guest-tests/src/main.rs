//! `cargo guest`: set up, run, show.

use std::process::ExitCode;

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
    /// Our device and QEMU's own beside each other in one guest, as ratios
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let what = Arguments::parse().what;
    let result = undo::when_interrupted().and_then(|()| match what {
        What::Setup { all } => set_up(all),
        What::Run(options) => run::run(&options),
        What::Demo(options) => demo::run(&options),
        What::Bench(options) => bench::run(&options),
    });
    undo::settle();
    result.unwrap_or_else(|error| {
        let error = format!("{error:#}");
        eprintln!("cargo guest: {error}");
        setup::advice(&error).into_iter().for_each(|advice| eprintln!("{advice}"));
        ExitCode::FAILURE
    })
}

fn set_up(all: bool) -> anyhow::Result<ExitCode> {
    let kernels =
        if all { vec![setup::Kernel::Stable, setup::Kernel::Newest] } else { vec![setup::Kernel::Stable] };
    let environment = setup::setup(&kernels)?;
    println!("ready: {}, {}", environment.folder().display(), environment.versions()?);
    Ok(ExitCode::SUCCESS)
}
