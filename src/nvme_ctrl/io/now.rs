//! Read and Write on an image that does them at once, such as memory: checked, found, moved, over. No slot, no task,
//! no pin, no allocation. And so a Read of a file, while that lies in the page cache.

use super::submission::Context;
use crate::block::{Direction, Work};
use crate::disk::{Cached, CachedRead, DiskError, Immediate, Inline};
use crate::memory::{self, Transient, prp, sgl};
use crate::namespace::{Access, ByteRange, Extent, Lbas, Namespace, admit};
use crate::nvme_ctrl::error_log::Failed;
use crate::nvme_ctrl::shared::{Shared, Tally};
use crate::spec::command::Psdt;
use crate::spec::commands::NvmCommand;
use crate::spec::{Outcome, Sqe, Status};
use crate::status;

/// A command that passed all its checks and is not begun.
pub struct Now<'a> {
    /// Where it came from.
    pub cid: u16,
    ns: &'a Namespace,
    range: ByteRange,
    data: Transient<'a>,
    direction: Direction,
    how: At<'a>,
}

/// How its image does it.
#[derive(Clone, Copy)]
enum At<'a> {
    Once(&'a dyn Immediate),
    /// It may have to wait after all.
    Cache(&'a dyn Cached),
}

/// Nothing unless it is a Read or Write that can be done at once; or a Read that may be, where `may_try` allows that to be
/// found out. Whatever is unusual about it or wrong with it is
/// left to [`super::start`], which says so.
pub fn now<'a>(context: Context<'a>, sqe: &Sqe, may_try: bool) -> Option<Now<'a>> {
    let Context { shared, namespaces, memory, .. } = context;
    let (direction, access, way) = match NvmCommand::of(sqe.opc)? {
        NvmCommand::Read => (Direction::Read, Access::Read, memory::Access::Write),
        NvmCommand::Write => (Direction::Write, Access::Write, memory::Access::Read),
        _ => return None,
    };
    let ns = &**namespaces.get(sqe.nsid.get()).ok()?;
    let how = match ns.disk.inline() {
        Inline::Immediate(disk) => At::Once(disk),
        Inline::Cached(disk) if may_try && direction == Direction::Read && disk.is_worth_a_try() => {
            At::Cache(disk)
        }
        _ => return None,
    };
    let lbas = Lbas { slba: sqe.slba(), nlb: sqe.nlb().count().into() };
    let Extent { data: range, if_allocated } = admit(ns, access, lbas, shared.cntlid).ok()?;
    // Longer ones are done slice by slice.
    let most = shared.limits.max_transfer().min(Work::TRANSFER);
    if sqe.fuse() != 0 || if_allocated || range.len > most {
        return None;
    }
    let len = usize::try_from(range.len).ok()?;
    let mut data = Transient::default();
    match sqe.psdt() {
        Psdt::Prp => {
            let page_size = shared.page_size() as usize;
            let (prp1, prp2) = (sqe.prp1.get(), sqe.prp2.get());
            prp::walk_into(memory, prp1, prp2, len, page_size, way, &mut data).ok()?;
        }
        Psdt::Sgl => memory.append(sgl::data_block(sqe.sgl(), len)?, len, way, &mut data).ok()?,
        Psdt::Reserved => return None,
    }
    Some(Now { cid: sqe.cid.get(), ns, range, data, direction, how })
}

impl Now<'_> {
    /// Bytes to move.
    pub fn bytes(&self) -> u64 {
        self.range.len
    }

    /// Begins to bring the image's memory near, for a Read that is done soon.
    pub fn prefetch(&self) {
        if let (Direction::Read, At::Once(disk)) = (self.direction, self.how) {
            disk.prefetch(self.range.offset, self.range.len);
        }
    }

    /// Is it to be [tried](Self::to_try), not [run](Self::run)?
    pub fn tries(&self) -> bool {
        matches!(self.how, At::Cache(_))
    }

    /// What is to be tried.
    pub fn to_try(&self) -> Option<CachedRead<'_>> {
        match self.how {
            At::Cache(disk) => Some(disk.read(self.range.offset, &self.data)),
            At::Once(_) => None,
        }
    }

    /// Its end after a [try](Self::to_try) that filled its buffer, counted in `tally`; nothing if its memory was lost on the
    /// way. Then it is as if it had not been tried: a Read may leave anything in its buffer until it ends.
    #[inline]
    pub fn filled(&self, tally: &Tally) -> Option<Outcome> {
        self.data.check().ok()?;
        tally.read_alone(self.range.len);
        Some(Outcome::of(Status::SUCCESS))
    }

    /// Does it, and counts it in `tally` if it succeeds. `shared` and the queue it came from are for the log if not.
    pub fn run(&self, tally: &Tally, shared: &Shared, sqid: u16) -> Outcome {
        let At::Once(disk) = self.how else { return Outcome::of(Status::INTERNAL_ERROR) };
        let result = match self.direction {
            Direction::Read => disk.read(self.range.offset, &self.data),
            Direction::Write => disk.write(self.range.offset, &self.data),
        };
        if let Err(error) = result {
            return self.failed(&error, shared, sqid);
        }
        // Guest memory that was lost on the way is not the image's failure.
        if self.data.check().is_err() {
            return self.failed(&DiskError::GuestMemory, shared, sqid);
        }
        match self.direction {
            Direction::Read => tally.read_alone(self.range.len),
            Direction::Write => tally.wrote_alone(self.range.len),
        }
        Outcome::of(Status::SUCCESS)
    }

    #[cold]
    fn failed(&self, error: &DiskError, shared: &Shared, sqid: u16) -> Outcome {
        log::debug!("{:?} of {:?} failed: {error}", self.direction, self.range);
        let command = if self.direction == Direction::Read { NvmCommand::Read } else { NvmCommand::Write };
        let failed = Failed {
            sqid,
            cid: self.cid,
            opc: command.opcode(),
            nsid: self.ns.nsid,
            slba: self.range.offset >> self.ns.facts.lbads,
        };
        Outcome::of(shared.errors.failed(failed, status::image(error, self.direction)))
    }
}
