//! Arguments to configuration, configuration to a running device, device to an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use vfio_user_nvme::cli::{self, CliError, Run};
use vfio_user_nvme::config::{Config, ConfigError};
use vfio_user_nvme::{control, copy_log, logging, plan, server};

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

fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(failure) = error.downcast_ref::<control::CtlFailure>() {
        return failure.exit_code();
    }
    if let Some(none) = error.downcast_ref::<plan::NoQuestion>() {
        return none.exit_code();
    }
    ConfigError::exit_code_of(error)
}
