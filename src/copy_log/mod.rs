//! `vfio-user-nvme copy-log`: what a copy log says, for tests and for people.
//!
//! `check` holds a log against what a kernel's block layer should have sent; `show` renders it as a table, or as a
//! page with pictures.

mod args;
mod check;
mod filled;
mod html;
mod input;
mod page;
mod show;
mod svg;
mod text;
mod tiles;

use std::process::ExitCode;

use clap::{Args, Subcommand};

pub use args::CheckArgs;
pub use show::{ShowArgs, words};

/// `copy-log`
#[derive(Args, Debug)]
pub struct CopyLogArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether the Copies are as they should be: exit code 0 yes, 1 no, 4 when that cannot be said
    Check(CheckArgs),
    /// Print a table of the Copies, or write a page with pictures
    Show(ShowArgs),
}

/// Does what is asked.
///
/// # Errors
/// The page cannot be written.
pub fn run(args: &CopyLogArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Check(args) => Ok(check::run(args)),
        Command::Show(args) => show::run(args),
    }
}

#[cfg(test)]
mod tests;
