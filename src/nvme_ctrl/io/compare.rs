//! Compare (05h) and Verify (0Ch).

use super::account::Account;
use super::rw;
use super::submission::Submission;
use super::task::Task;
use crate::block::Inspect;
use crate::memory;
use crate::namespace::Access;
use crate::spec::Status;

pub(super) fn compare(cmd: &Submission<'_>) -> Result<Task, Status> {
    let ns = cmd.namespace()?;
    cmd.check_transfer(ns)?;
    let extent = cmd.admit(ns, Access::Read)?;
    let expected = rw::data(cmd, extent.data.len, memory::Access::Read)?;
    let inspect = Inspect::new(ns, extent, Some(expected));
    Ok(Task::Inspect(inspect, Account::Read(extent.data.len)))
}

pub(super) fn verify(cmd: &Submission<'_>) -> Result<Task, Status> {
    let ns = cmd.namespace()?;
    let extent = cmd.admit(ns, Access::Read)?;
    Ok(Task::Inspect(Inspect::new(ns, extent, None), Account::Verified(extent.data.len)))
}
