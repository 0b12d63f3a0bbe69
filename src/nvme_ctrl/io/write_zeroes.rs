//! Write Zeroes (08h). No data crosses the bus, so MDTS does not bound it (WZSL is 0: no limit).

use super::account::Account;
use super::submission::Submission;
use super::task::Task;
use crate::block::{Direction, Group};
use crate::disk::Op;
use crate::namespace::Access;
use crate::spec::Status;

/// CDW12 bit 25: the host would like the blocks deallocated. They read as zeroes either way (DLFEAT).
const DEAC: u32 = 1 << 25;

pub(super) fn write_zeroes(cmd: &Submission<'_>) -> Result<Task, Status> {
    let ns = cmd.namespace()?;
    let range = cmd.admit(ns, Access::Write)?.data;
    let unmap = cmd.sqe.cdw12.get() & DEAC != 0;
    let fua = cmd.durable();
    let op = Op::WriteZeroes { offset: range.offset, len: range.len, unmap, fua };
    let group = Group::one(ns, op, Direction::Write);
    let group = if fua { group } else { group.volatile(ns) };
    Ok(Task::Group(group, Account::Nothing))
}
