//! `guest demo`.
use clap::Args;
/// Options of `guest demo`.
#[derive(Debug, Args)]
pub struct Options {}
/// x
pub fn run(_: &Options) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("no")
}
