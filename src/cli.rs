//! The words of the command line. What they mean is checked in [`crate::config`].

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use log::LevelFilter;

use crate::config::{self, Config, ConfigError, SocketArgs};
use crate::control::CtlArgs;
use crate::copy_log::CopyLogArgs;
use crate::plan::PlanArgs;

#[derive(Debug, Parser)]
#[command(
    name = "vfio-user-nvme",
    version,
    about = "An NVMe controller in a process of its own, which QEMU and others attach over vfio-user.",
    subcommand_required = true,
    arg_required_else_help = false
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a controller on a UNIX socket, or several that share their namespaces, until SIGTERM
    #[command(after_help = config::properties_help(), after_long_help = long_help())]
    Serve(Serve),
    /// See and change a device while it runs, by its control socket
    Ctl(CtlArgs),
    /// Check or show what serve --copy-log wrote
    CopyLog(Box<CopyLogArgs>),
    /// Print what would become of a Copy: its plan, or the rule that refuses it
    Plan(Box<PlanArgs>),
}

/// What is to be run.
#[derive(Debug)]
pub enum Run {
    /// `serve`
    Serve(Box<Config>),
    /// `ctl`
    Ctl(CtlArgs),
    /// `copy-log`
    CopyLog(Box<CopyLogArgs>),
    /// `plan`
    Plan(Box<PlanArgs>),
}

#[derive(Args, Debug)]
struct Serve {
    /// UNIX socket to listen on; each further one is another controller that shares the namespaces
    #[arg(long, value_name = "PATH", required_unless_present = "fd", conflicts_with = "fd")]
    socket: Vec<PathBuf>,

    /// Who may connect, as chmod has it; to write is to connect [default: 0600, with --socket-group 0660]
    #[arg(long, value_name = "MODE", conflicts_with = "fd")]
    socket_mode: Option<OsString>,

    /// The socket's group, by name or number
    #[arg(long, value_name = "GROUP", conflicts_with = "fd")]
    socket_group: Option<OsString>,

    /// Instead of --socket: the descriptor of a UNIX socket that listens already, as systemd passes it (3)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    fd: Option<OsString>,

    /// The controller
    #[arg(long, value_name = "NAME=VALUE,...")]
    nvme: Option<OsString>,

    /// A namespace; may be repeated. Without it there is one of 1 GiB in memory
    #[arg(long, value_name = "NAME=VALUE,...")]
    nvme_ns: Vec<OsString>,

    /// A UNIX socket by which its owner sees and changes the device while it runs (ctl)
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// A fault that commands are to meet, such as "op=copy nth=3 status=write-fault"; may be repeated (docs/faults.md)
    #[arg(long, value_name = "RULE")]
    fault: Vec<OsString>,

    /// A file for a record of each Copy: what it asked for, what was planned, what moved the bytes (copy-log)
    #[arg(long, value_name = "FILE")]
    copy_log: Option<PathBuf>,

    /// What to log, to standard error
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = level())]
    log: LevelFilter,
}

fn level() -> impl clap::builder::TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(["off", "error", "warn", "info", "debug", "trace"])
        .try_map(|name| name.parse::<LevelFilter>())
}

fn long_help() -> String {
    format!(
        "{}
Examples:
  vfio-user-nvme serve --socket /tmp/nvme.sock
        One namespace of 1 GiB in memory
  vfio-user-nvme serve --socket /tmp/nvme.sock --nvme serial=disk1 \\
      --nvme-ns drive=disk.img,size=10G,logical_block_size=4096 \\
      --nvme-ns drive=memory,size=1G,mssrl=128,mcl=1024
        A file, made if it is absent, and memory with its own Copy limits
Signals:
  SIGTERM, SIGINT, SIGQUIT or SIGHUP (but under nohup) drains, flushes and ends, a second one ends at once;
  SIGUSR1 writes the state of the controller to the log",
        config::properties_help()
    )
}

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Help or version was asked for: the text, for standard output.
    #[error("{0}")]
    Help(String),
    /// The words do not fit; one line.
    #[error("{0}")]
    Usage(String),
    /// The words fit, a value does not; one line.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl CliError {
    /// What clap has to say, without its usage block, which takes many lines; `see` is whose help a mistake points to.
    pub fn of_clap(error: &clap::Error, see: &str) -> Self {
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Self::Help(error.to_string()),
            _ => Self::Usage(format!("{}; see {see} --help", one_line(error))),
        }
    }

    /// Process exit code: 0 for help, 2 for a mistake.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Help(_) => 0,
            Self::Usage(_) | Self::Config(_) => ConfigError::EXIT_CODE,
        }
    }
}

/// Reads the arguments, the program's name first.
///
/// # Errors
///
/// A request for help counts as an error too: there is nothing to run.
pub fn parse<I, T>(args: I) -> Result<Run, CliError>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    // Whose help the mistake points to.
    let see = match args.get(1).and_then(|word| word.to_str()) {
        Some(word @ ("ctl" | "copy-log" | "plan")) => format!("vfio-user-nvme {word}"),
        _ => "vfio-user-nvme serve".to_owned(),
    };
    let cli = Cli::try_parse_from(args).map_err(|e| CliError::of_clap(&e, &see))?;
    Ok(match cli.command {
        Command::Serve(serve) => {
            let mut sockets = serve.socket.into_iter();
            let given = SocketArgs {
                path: sockets.next(),
                mode: serve.socket_mode,
                group: serve.socket_group,
                fd: serve.fd,
            };
            let (socket, listen) = given.check()?;
            let config = Config::new(socket, serve.nvme.as_deref(), &serve.nvme_ns, serve.log)?;
            let config = config.with_listen(listen).with_further_sockets(sockets.collect());
            let config = config.with_control(serve.control).with_faults(&serve.fault)?;
            Run::Serve(Box::new(config.with_copy_log(serve.copy_log)))
        }
        Command::Ctl(ctl) => Run::Ctl(ctl),
        Command::CopyLog(copy_log) => Run::CopyLog(copy_log),
        Command::Plan(plan) => Run::Plan(plan),
    })
}

/// clap's message without its usage block.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let said: Vec<_> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let said = said.join(" ");
    said.strip_prefix("error: ").unwrap_or(&said).to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::Drive;

    fn run(args: &[&str]) -> Result<Config, CliError> {
        match parse(["vfio-user-nvme"].iter().chain(args))? {
            Run::Serve(config) => Ok(*config),
            other => panic!("{other:?}"),
        }
    }

    fn usage(args: &[&str]) -> String {
        let error = run(args).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
        error.to_string()
    }

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn everything_given() {
        let config = run(&[
            "serve",
            "--socket",
            "/run/s",
            "--nvme",
            "serial=S,mdts=5",
            "--nvme-ns",
            "drive=a.img",
            "--nvme-ns=drive=memory,size=1M",
            "--log",
            "debug",
        ])
        .unwrap();
        assert_eq!(config.socket, PathBuf::from("/run/s"));
        assert_eq!((config.nvme.serial.as_str(), config.nvme.mdts), ("S", 5));
        assert_eq!(config.namespaces.len(), 2);
        assert_eq!(config.namespaces[1].drive, Drive::Memory { size: 1 << 20 });
        assert_eq!(config.log, LevelFilter::Debug);
    }

    #[test]
    fn log_is_info_by_default() {
        assert_eq!(run(&["serve", "--socket", "s"]).unwrap().log, LevelFilter::Info);
    }

    #[test]
    fn mistakes_are_one_line() {
        let see = "; see vfio-user-nvme serve --help";
        for (args, message) in [
            (
                &[][..],
                "'vfio-user-nvme' requires a subcommand but one was not provided [subcommands: serve, ctl, copy-log, plan, help]",
            ),
            (&["serve"], "the following required arguments were not provided: --socket <PATH>"),
            (
                &["serve", "--socket", "s", "--nvme", "a=1", "--nvme", "b=2"],
                "the argument '--nvme <NAME=VALUE,...>' cannot be used multiple times",
            ),
            (
                &["serve", "--socket", "s", "--log", "loud"],
                "invalid value 'loud' for '--log <LEVEL>' [possible values: off, error, warn, info, debug, trace]",
            ),
            (
                &["serve", "--socket", "s", "--nvme-n", "drive=a"],
                "unexpected argument '--nvme-n' found tip: a similar argument exists: '--nvme-ns'",
            ),
        ] {
            assert_eq!(usage(args), format!("{message}{see}"));
        }
        assert_eq!(
            usage(&["serve", "--socket", "s", "--nvme-ns", "drive=a,mssrl=0"]),
            "--nvme-ns mssrl=0: must be 1 to 65535; leave it out for 32768"
        );
    }

    #[test]
    fn help_and_version_are_no_mistakes() {
        for args in [&["--help"][..], &["--version"], &["serve", "--help"], &["serve", "-h"]] {
            assert_eq!(run(args).unwrap_err().exit_code(), 0);
        }
        assert_eq!(
            run(&["--version"]).unwrap_err().to_string(),
            concat!("vfio-user-nvme ", env!("CARGO_PKG_VERSION"), "\n")
        );
    }

    #[test]
    fn help_of_serve_has_every_property() {
        for flag in ["--help", "-h"] {
            let help = run(&["serve", flag]).unwrap_err().to_string();
            assert!(help.contains(config::properties_help().trim_end()), "{help}");
        }
    }
}
