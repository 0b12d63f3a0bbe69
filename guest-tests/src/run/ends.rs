//! How a run may end, as exit codes: a script, and `git bisect run` most of all, must tell a bad kernel from
//! a bad set-up.

use std::fmt;
use std::process::ExitCode;

use crate::died::Died;

/// Something of ours failed.
const HARNESS: u8 = 121;
/// The kernel warned, and that was to be a fault.
const WARNED: u8 = 122;
/// The guest died or never came up.
const DIED: u8 = 123;
/// The time was over: the code of timeout(1).
const TIMED_OUT: u8 = 124;
/// Nothing was tried: `git bisect run` takes it as "skip this one".
pub const CANNOT: u8 = 125;

/// For `--help`.
pub(super) const HELP: &str = "Exit codes: the command's or the shell's own; else
  121  the harness failed
  122  the guest's kernel warned (--fail-on-warning)
  123  the guest died: panic, QEMU or the device ended, no agent heard
  124  --timeout is over
  125  nothing was tried: an option, a file, the environment or the device is not right (git bisect run skips)
  127  the guest has no such command";

/// Why nothing was tried.
#[derive(Debug)]
pub(super) struct Cannot(pub(super) anyhow::Error);

impl fmt::Display for Cannot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Cannot {}

/// What failed before the guest was up: its own death, a limit of the user's, or else that nothing was tried.
pub(super) fn before(error: anyhow::Error) -> anyhow::Error {
    if error.is::<Died>() || error.is::<TimedOut>() { error } else { Cannot(error).into() }
}

/// A time limit of the user's is over.
#[derive(Debug)]
pub(super) struct TimedOut(pub(super) String);

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TimedOut {}

/// The kernel warned.
#[derive(Debug)]
pub(super) struct Warned(pub(super) Vec<String>);

impl fmt::Display for Warned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest's kernel warned:\n{}", self.0.join("\n"))
    }
}

impl std::error::Error for Warned {}

/// The exit code of a run that failed with `error`.
#[must_use]
pub fn code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(number(error))
}

fn number(error: &anyhow::Error) -> u8 {
    if error.is::<Cannot>() {
        CANNOT
    } else if error.is::<TimedOut>() {
        TIMED_OUT
    } else if error.is::<Died>() {
        DIED
    } else if error.is::<Warned>() {
        WARNED
    } else {
        HARNESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_a_code_whatever_is_said_about_it() {
        let died = anyhow::Error::from(Died::new(std::path::Path::new("/nowhere"), "QEMU ended"));
        let all = [
            (anyhow::anyhow!("x"), 121),
            (Warned(vec![]).into(), 122),
            (died.context("during the command"), 123),
            (TimedOut("x".into()).into(), 124),
            (Cannot(anyhow::anyhow!("x")).into(), 125),
        ];
        for (error, code) in all {
            assert_eq!(number(&error), code, "{error:#}");
            assert!(HELP.contains(&format!("\n  {code}  ")));
        }
    }
}
