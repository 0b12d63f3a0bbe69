//! `vfio-user-nvme plan`: what would become of a Copy. No guest, no image: namespaces are what is said of them.

mod args;
mod imagined;
mod input;
mod print;
mod question;
mod range;

use std::io::{self, Write as _};
use std::process::ExitCode;

pub use args::PlanArgs;
use imagined::namespaces;
use input::question;
pub use question::{NoQuestion, Question};

use crate::copy::{self, Bounce, CopyPlan, CopyTask, ExecOptions, Reject};

/// The Copy is refused.
const REFUSED: u8 = 1;

/// What would become of it cannot be said.
const CANNOT: u8 = 4;

/// Prints the plan, or the refusal and the rule that made it.
///
/// # Errors
/// The words ask no question, or what they name cannot be had.
pub fn run(args: PlanArgs) -> Result<ExitCode, NoQuestion> {
    let question = question(args)?;
    let Some(answer) = answer(&question) else {
        let why = "its ranges are not known, for it was refused before they were read; by these namespaces it is not";
        let _ = writeln!(io::stderr(), "cannot: {why}");
        return Ok(ExitCode::from(CANNOT));
    };
    // A reader that has gone is no fault.
    let _ = io::stdout().write_all(print::text(&question, &answer).as_bytes());
    Ok(if answer.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

/// Plans the Copy as a controller would. `None`: it is not refused by what is known of it, and that is not all.
fn answer(question: &Question) -> Option<Result<CopyPlan, Reject>> {
    if question.is_fused {
        return Some(Err(Reject::FUSED));
    }
    let namespaces = namespaces(&question.namespaces, question.assume);
    let checked = match copy::check_command(&question.command, &namespaces, question.capabilities) {
        Ok(checked) => checked,
        Err(reject) => return Some(Err(reject)),
    };
    let plan = copy::plan(&checked, question.ranges.as_deref()?, &namespaces);
    // What is found out when it begins.
    let begin = |plan: CopyPlan| {
        CopyTask::new(plan.clone(), ExecOptions::default(), &Bounce::default()).map(|_| plan)
    };
    Some(plan.and_then(begin))
}

#[cfg(test)]
mod tests;
