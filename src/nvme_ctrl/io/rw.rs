//! Read (02h) and Write (01h).

use super::group::{Account, Group};
use super::{Command, Task};
use crate::disk::{IoBuf, Op};
use crate::memory;
use crate::namespace::Access;
use crate::nvme_ctrl::status::Direction;
use crate::nvme_ctrl::transfer;
use crate::spec::Status;

pub(super) fn read(cmd: &Command<'_>) -> Result<Task, Status> {
    let ns = cmd.namespace()?;
    cmd.check_transfer(ns)?;
    let extent = cmd.admit(ns, Access::Read)?;
    let range = extent.data;
    let buf = IoBuf::Guest(data(cmd, range.len, memory::Access::Write)?);
    let op = Op::Read { offset: range.offset, buf };
    let group = Group::one(ns, op, Direction::Read, Account::Read(range.len));
    Ok(Task::Group(if extent.if_allocated { group.if_allocated(ns, range) } else { group }))
}

pub(super) fn write(cmd: &Command<'_>) -> Result<Task, Status> {
    let ns = cmd.namespace()?;
    cmd.check_transfer(ns)?;
    let range = cmd.admit(ns, Access::Write)?.data;
    let buf = IoBuf::Guest(data(cmd, range.len, memory::Access::Read)?);
    let fua = cmd.durable();
    let op = Op::Write { offset: range.offset, buf, fua };
    let group = Group::one(ns, op, Direction::Write, Account::Wrote(range.len));
    Ok(Task::Group(if fua { group } else { group.volatile(ns) }))
}

/// The data pointer of a transfer of `len` bytes, at most MDTS.
pub(super) fn data(cmd: &Command<'_>, len: u64, access: memory::Access) -> Result<memory::GuestBuf, Status> {
    let len = usize::try_from(len).map_err(|_| Status::INVALID_FIELD.dnr())?;
    transfer::resolve(cmd.memory, cmd.sqe, len, cmd.shared.page_size(), access, true, cmd.work)
}
