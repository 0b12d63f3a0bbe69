//! Arguments to a plan, a plan to a report, and both to an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use vfio_user_nvme::cli::CliError;
use vfio_user_nvme::config::ConfigError;
use vfio_user_nvme_bench::{BenchArgs, Plan, run};

#[derive(Debug, Parser)]
#[command(
    name = "vfio-user-nvme-bench",
    version,
    about = "Puts load on an NVMe controller over vfio-user, and measures it."
)]
struct Cli {
    #[command(flatten)]
    args: BenchArgs,
}

/// Reads the arguments, the program's name first.
fn parse<T: Into<std::ffi::OsString> + Clone>(args: impl IntoIterator<Item = T>) -> Result<Plan, CliError> {
    let cli = Cli::try_parse_from(args).map_err(|e| CliError::of_clap(&e, "vfio-user-nvme-bench"))?;
    Ok(cli.args.plan()?)
}

fn main() -> ExitCode {
    let plan = match parse(std::env::args_os()) {
        Ok(plan) => plan,
        Err(CliError::Help(text)) => {
            // A reader that has gone away (`--help | head`) is no fault.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(error.exit_code());
        }
    };
    match run(&plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(ConfigError::exit_code_of(&error))
        }
    }
}

/// Says why it ends. Standard error may take nothing, which changes no exit code.
fn complain(why: &str) {
    let _ = writeln!(std::io::stderr(), "error: {why}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn refused(args: &[&str]) -> CliError {
        parse(["vfio-user-nvme-bench"].iter().chain(args)).unwrap_err()
    }

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_are_one_line() {
        for (args, message) in [
            (
                &[][..],
                "the following required arguments were not provided: <SOCKET>; see vfio-user-nvme-bench --help",
            ),
            (
                &["s", "--limit", "disk"],
                "--limit disk: is no limit; use memory, memory:4k, floor, file:PATH or file:PATH,direct",
            ),
        ] {
            let error = refused(args);
            assert_eq!((error.to_string().as_str(), error.exit_code()), (message, 2));
        }
    }

    #[test]
    fn help_and_version_are_no_mistakes() {
        for args in [&["--help"][..], &["-h"], &["--version"]] {
            assert_eq!(refused(args).exit_code(), 0);
        }
        assert_eq!(
            refused(&["--version"]).to_string(),
            concat!("vfio-user-nvme-bench ", env!("CARGO_PKG_VERSION"), "\n")
        );
    }
}
