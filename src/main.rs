//! Arguments to configuration, configuration to a running device, device to an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use vfio_user_nvme::cli::{self, CliError, Run};
use vfio_user_nvme::config::{Config, ConfigError};
use vfio_user_nvme::{bench, control, copy_log, logging, plan, server};

fn main() -> ExitCode {
    let run = match cli::parse(std::env::args_os()) {
        Ok(run) => run,
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
    let result = match run {
        Run::Serve(config) => serve(*config),
        Run::Bench(plan) => bench::run(&plan).map(|()| ExitCode::SUCCESS),
        Run::CopyLog(args) => copy_log::run(&args),
        Run::Plan(args) => plan::run(*args).map_err(Into::into),
        Run::Ctl(args) => control::ctl(args).map(|()| ExitCode::SUCCESS).map_err(Into::into),
    };
    result.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        ExitCode::from(exit_code(&error))
    })
}

fn serve(config: Config) -> anyhow::Result<ExitCode> {
    logging::install(config.log);
    for note in config.notes() {
        log::warn!("{note}");
    }
    let result = server::run(config);
    logging::end();
    result
}

/// Says why it ends. Standard error may take nothing, which changes no exit code.
fn complain(why: &str) {
    let _ = writeln!(std::io::stderr(), "error: {why}");
}

/// A mistake in the set-up that shows only when it is used (a missing image, a socket in use) ends as one
/// in the arguments does.
fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(failure) = error.downcast_ref::<control::CtlFailure>() {
        return failure.exit_code();
    }
    if let Some(none) = error.downcast_ref::<plan::NoQuestion>() {
        return none.exit_code();
    }
    if error.chain().any(|cause| cause.is::<ConfigError>()) { ConfigError::EXIT_CODE } else { 1 }
}
