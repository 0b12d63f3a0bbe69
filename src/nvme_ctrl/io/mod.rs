//! I/O commands: decoded and checked completely, then run as state machines.
//!
//! [`start`] turns a submission into a [`Task`] or into the status it is refused with; nothing has changed by
//! then, unless the task says that it is over.

mod account;
mod bend;
mod bent;
mod compare;
mod copy;
mod copying;
mod dsm;
mod flush;
mod notes;
mod now;
mod rw;
mod submission;
mod task;
mod write_zeroes;

use crate::block::Work;
use crate::copy::Bounce;
use crate::spec::commands::NvmCommand;
use crate::spec::{Sqe, Status};
pub use bend::bend;
pub use bent::Bent;
pub use notes::Notes;
pub use now::{Now, now};
pub use submission::Context;
use submission::Submission;
pub use task::Task;

/// Decodes and checks one I/O command. A short Copy within memory is done by then ([`Task::Over`]). What it
/// took is charged to `work`.
///
/// # Errors
/// The status it is refused with.
pub fn start(context: Context<'_>, bounce: &Bounce, work: &Work, sqe: &Sqe) -> Result<Task, Status> {
    let Context { shared, namespaces, memory, watched } = context;
    let cmd = Submission { shared, namespaces, memory, bounce, work, watched, sqe };
    if sqe.fuse() != 0 {
        return Err(Status::INVALID_FIELD.dnr()); // FUSES is 0: no fused operation is supported
    }
    match NvmCommand::of(sqe.opc).ok_or(Status::INVALID_OPCODE.dnr())? {
        NvmCommand::Read => rw::read(&cmd),
        NvmCommand::Write => rw::write(&cmd),
        NvmCommand::Flush => flush::flush(&cmd),
        NvmCommand::Compare => compare::compare(&cmd),
        NvmCommand::Verify => compare::verify(&cmd),
        NvmCommand::WriteZeroes => write_zeroes::write_zeroes(&cmd),
        NvmCommand::Dsm => dsm::dsm(&cmd),
        NvmCommand::Copy => copy::copy(&cmd),
    }
}
