//! Compare (05h) and Verify (0Ch): data is read into our memory, piece by piece, and looked at there.

use std::sync::Arc;

use super::{Command, Issue, Outcome, Task, rw};
use crate::disk::{Buffer, DiskError, IoBuf, Op};
use crate::memory::{self, GuestBuf};
use crate::namespace::{Access, ByteRange, Extent, Namespace};
use crate::nvme_ctrl::shared::Shared;
use crate::nvme_ctrl::status::{self, Direction};
use crate::nvme_ctrl::work::Work;
use crate::spec::Status;

/// Bytes read at a time. Bounds the memory of a command, whatever its length (a Verify has no limit, VSL is
/// 0), and with it that of a worker: 64 MiB when every slot holds such a command.
const PIECE: u64 = 64 << 10;

/// See the module docs.
#[derive(Debug)]
pub struct Inspect {
    ns: Arc<Namespace>,
    range: ByteRange,
    /// What the data must equal; `None` for Verify, which only wants it readable.
    expected: Option<GuestBuf>,
    /// Bytes looked at so far.
    at: u64,
    buf: Option<Buffer>,
    /// `buf` has been read and not yet looked at.
    unseen: bool,
    /// An operation is in flight.
    busy: bool,
    /// DULBE: it is asked first whether all blocks are allocated.
    probe: Probe,
    status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Due,
    InFlight,
    Over,
}

pub(super) fn compare(cmd: &Command<'_>) -> Result<Task, Status> {
    let ns = cmd.namespace()?;
    cmd.check_transfer(ns)?;
    let extent = cmd.admit(ns, Access::Read)?;
    let expected = rw::data(cmd, extent.data.len, memory::Access::Read)?;
    Ok(Task::Inspect(Inspect::new(ns, extent, Some(expected))))
}

pub(super) fn verify(cmd: &Command<'_>) -> Result<Task, Status> {
    let ns = cmd.namespace()?;
    Ok(Task::Inspect(Inspect::new(ns, cmd.admit(ns, Access::Read)?, None)))
}

impl Inspect {
    fn new(ns: &Arc<Namespace>, extent: Extent, expected: Option<GuestBuf>) -> Self {
        let probe = if extent.if_allocated { Probe::Due } else { Probe::Over };
        let ns = Arc::clone(ns);
        Self {
            ns,
            range: extent.data,
            expected,
            at: 0,
            buf: None,
            unseen: false,
            busy: false,
            probe,
            status: Status::SUCCESS,
        }
    }

    pub(super) fn poll(&mut self, shared: &Shared, work: &Work, issue: &mut Issue<'_>) -> Option<Outcome> {
        if self.busy {
            return None;
        }
        self.look_at_what_was_read(work);
        if self.probe == Probe::Due {
            (self.busy, self.probe) = (true, Probe::InFlight);
            issue(0, &self.ns, Op::Probe { offset: self.range.offset, len: self.range.len });
            return None;
        }
        let left = self.range.len - self.at;
        if left > 0 && self.status.is_success() {
            // Allocated only now, so that commands that wait for their turn cost nothing.
            let len = left.min(PIECE) as usize;
            let buf = self.buf.take().filter(|buf| buf.len() == len);
            self.busy = true;
            let buf = IoBuf::Pool(buf.unwrap_or_else(|| Buffer::zeroed(len)));
            issue(0, &self.ns, Op::Read { offset: self.range.offset + self.at, buf });
            return None;
        }
        if self.status.is_success() {
            match self.expected {
                Some(_) => shared.counters.read(self.range.len),
                None => shared.counters.verified(self.range.len),
            }
        }
        Some(Outcome::of(self.status))
    }

    pub(super) fn done(&mut self, result: Result<(), DiskError>, buf: Option<IoBuf>) {
        self.busy = false;
        let probed = std::mem::replace(&mut self.probe, Probe::Over) == Probe::InFlight;
        if self.status == Status::ABORT_REQUESTED {
            return;
        }
        self.status = match (result, buf) {
            (Err(error), _) => status::backend(&error, Direction::Read),
            (Ok(()), _) if probed => Status::SUCCESS,
            (Ok(()), Some(IoBuf::Pool(data))) => {
                (self.buf, self.unseen) = (Some(data), true);
                Status::SUCCESS
            }
            (Ok(()), _) => Status::INTERNAL_ERROR,
        };
    }

    /// Not before it is polled: a worker counts what its polls take, and takes any number of completions in a
    /// turn.
    fn look_at_what_was_read(&mut self, work: &Work) {
        if !std::mem::take(&mut self.unseen) || !self.status.is_success() {
            return;
        }
        if let Some(data) = self.buf.take() {
            self.status = self.look(&data);
            self.at += data.len() as u64;
            work.charge(data.len() as u64);
            self.buf = Some(data);
        }
    }

    /// Reads no more. True if there was something left to read.
    pub(super) fn abort(&mut self) -> bool {
        let stops = self.at < self.range.len && self.status.is_success();
        if stops {
            (self.status, self.probe) = (Status::ABORT_REQUESTED, Probe::Over);
        }
        stops
    }

    /// Does it move or compare memory when it is polled?
    pub(super) fn moves_memory(&self) -> bool {
        self.expected.is_some() || self.ns.backend.is_immediate()
    }

    pub(super) fn memory(&self) -> usize {
        self.range.len.min(PIECE) as usize + self.expected.as_ref().map_or(0, GuestBuf::heap)
    }

    fn look(&self, data: &[u8]) -> Status {
        let Some(expected) = &self.expected else { return Status::SUCCESS };
        let mut page = [0; 4096];
        for (index, chunk) in data.chunks(page.len()).enumerate() {
            let page = &mut page[..chunk.len()];
            let at = self.at as usize + index * 4096;
            if let Err(error) = expected.copy_out(at, page) {
                return error.into();
            }
            if page != chunk {
                return Status::COMPARE_FAILURE.dnr();
            }
        }
        Status::SUCCESS
    }
}
