//! The guest's side of the harness: `init` when the kernel starts it, `serve` the command server, `tool`
//! block tools.

mod copies;
mod init;
mod serve;
mod tool;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    if std::process::id() == 1 {
        init::run();
    }
    let result = match words.as_slice() {
        ["serve"] => serve::run(),
        ["tool", rest @ ..] => tool::run(rest),
        _ => Err(anyhow::anyhow!("usage: guest-agent serve | guest-agent tool NAME ...")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
