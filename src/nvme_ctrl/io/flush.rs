//! Flush (00h): one namespace, or all of them by the broadcast NSID (Identify Controller VWC 2:1 = 11b).

use std::sync::Arc;

use super::account::Account;
use super::submission::Submission;
use super::task::Task;
use crate::block::{Direction, Group};
use crate::disk::Op;
use crate::spec::{NSID_BROADCAST, Status};

pub(super) fn flush(cmd: &Submission<'_>) -> Result<Task, Status> {
    let ops = if cmd.sqe.nsid.get() == NSID_BROADCAST {
        cmd.namespaces.iter().map(|ns| (Arc::clone(ns), Op::Flush)).collect()
    } else {
        std::iter::once((Arc::clone(cmd.namespace()?), Op::Flush)).collect()
    };
    Ok(Task::Group(Group::new(ops, Direction::Write), Account::Nothing))
}
