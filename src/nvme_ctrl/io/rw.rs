//! Read (02h) and Write (01h).

use super::account::Account;
use super::submission::Submission;
use super::task::Task;
use crate::block::{Direction, Group};
use crate::disk::{IoBuf, Op};
use crate::memory;
use crate::namespace::Access;
use crate::nvme_ctrl::transfer;
use crate::spec::Status;

pub(super) fn read(cmd: &Submission<'_>) -> Result<Task, Status> {
    let ns = cmd.namespace()?;
    cmd.check_transfer(ns)?;
    let extent = cmd.admit(ns, Access::Read)?;
    let range = extent.data;
    let buf = IoBuf::Guest(data(cmd, range.len, memory::Access::Write)?);
    let op = Op::Read { offset: range.offset, buf };
    let group = Group::one(ns, op, Direction::Read);
    let group = if extent.if_allocated { group.if_allocated(ns, range) } else { group };
    Ok(Task::Group(group, Account::Read(range.len)))
}

pub(super) fn write(cmd: &Submission<'_>) -> Result<Task, Status> {
    let ns = cmd.namespace()?;
    cmd.check_transfer(ns)?;
    let range = cmd.admit(ns, Access::Write)?.data;
    let buf = IoBuf::Guest(data(cmd, range.len, memory::Access::Read)?);
    let fua = cmd.durable();
    let op = Op::Write { offset: range.offset, buf, fua };
    let group = Group::one(ns, op, Direction::Write);
    let group = if fua { group } else { group.volatile(ns) };
    Ok(Task::Group(group, Account::Wrote(range.len)))
}

/// The data pointer of a transfer of `len` bytes, at most MDTS.
pub(super) fn data(
    cmd: &Submission<'_>,
    len: u64,
    access: memory::Access,
) -> Result<memory::GuestBuf, Status> {
    let len = usize::try_from(len).map_err(|_| Status::INVALID_FIELD.dnr())?;
    transfer::resolve(cmd.memory, cmd.sqe, len, cmd.shared.page_size(), access, true, cmd.work)
}
