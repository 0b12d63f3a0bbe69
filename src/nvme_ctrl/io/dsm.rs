//! Dataset Management (09h). Of its attributes only deallocate does anything; the hints are accepted.

use std::sync::Arc;

use smallvec::SmallVec;
use zerocopy::FromBytes;

use super::account::Account;
use super::submission::Submission;
use super::task::Task;
use crate::block::Work;
use crate::block::{Direction, Group};
use crate::disk::Op;
use crate::namespace::{self, Access, Lbas};
use crate::nvme_ctrl::transfer;
use crate::spec::Status;
use crate::spec::command::DsmRange;

/// CDW11 bit 2: deallocate.
const AD: u32 = 1 << 2;

pub(super) fn dsm(cmd: &Submission<'_>) -> Result<Task, Status> {
    let ns = cmd.namespace()?;
    namespace::gate(ns, Access::Write)?;
    let mut ops = SmallVec::new();
    if cmd.sqe.cdw11.get() & AD != 0 {
        let count = usize::from(cmd.sqe.cdw10.get() as u8) + 1;
        let list = transfer::fetch(
            cmd.memory,
            cmd.sqe,
            count * size_of::<DsmRange>(),
            cmd.shared.page_size(),
            true,
            cmd.work,
        )?;
        cmd.work.charge(count as u64 * Work::RANGE);
        // All ranges are checked before the first is given back. QEMU skips a bad range and reports success;
        // the specification has LBA Out of Range for it.
        for bytes in list.chunks_exact(size_of::<DsmRange>()) {
            let range = DsmRange::read_from_bytes(bytes).unwrap_or_default();
            let lbas = Lbas { slba: range.slba.get(), nlb: range.nlb.get().into() };
            let data = namespace::admit(ns, Access::Write, lbas, cmd.shared.cntlid)?.data;
            if data.len > 0 {
                if let Some(notes) = cmd.watched {
                    notes.frees(lbas);
                }
                ops.push((Arc::clone(ns), Op::Discard { offset: data.offset, len: data.len }));
            }
        }
    }
    let changes = !ops.is_empty();
    let group = Group::new(ops, Direction::Write);
    // What the host has read as deallocated must not come back with its old content.
    let group = if changes { group.volatile(ns) } else { group };
    Ok(Task::Group(group, Account::Nothing))
}
