//! Compare and Verify: data is read into our memory, piece by piece, and looked at there.

use std::sync::Arc;

use super::{BlockError, Direction, Issue, Work};
use crate::disk::{Buffer, DiskError, IoBuf, Op};
use crate::memory::GuestBuf;
use crate::namespace::{ByteRange, Extent, Namespace};

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
    error: Option<BlockError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Due,
    InFlight,
    Over,
}

impl Inspect {
    /// Looks at all of `extent`: is it `expected`, or, without that, can it be read at all?
    pub fn new(ns: &Arc<Namespace>, extent: Extent, expected: Option<GuestBuf>) -> Self {
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
            error: None,
        }
    }

    /// Issues what can be issued now; how it ended, once everything has.
    pub fn poll(&mut self, work: &Work, issue: &mut Issue<'_>) -> Option<Result<(), BlockError>> {
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
        if left > 0 && self.error.is_none() {
            // Allocated only now, so that commands that wait for their turn cost nothing.
            let len = left.min(PIECE) as usize;
            let buf = self.buf.take().filter(|buf| buf.len() == len);
            self.busy = true;
            let buf = IoBuf::Pool(buf.unwrap_or_else(|| Buffer::zeroed(len)));
            issue(0, &self.ns, Op::Read { offset: self.range.offset + self.at, buf });
            return None;
        }
        Some(self.error.take().map_or(Ok(()), Err))
    }

    /// Takes the completion of its operation.
    pub fn done(&mut self, result: Result<(), DiskError>, buf: Option<IoBuf>) {
        self.busy = false;
        let probed = std::mem::replace(&mut self.probe, Probe::Over) == Probe::InFlight;
        let error = match (result, buf) {
            (Err(error), _) => BlockError::Image(error, Direction::Read),
            (Ok(()), _) if probed => return,
            (Ok(()), Some(IoBuf::Pool(data))) => {
                (self.buf, self.unseen) = (Some(data), true);
                return;
            }
            (Ok(()), _) => BlockError::Internal,
        };
        self.error.get_or_insert(error);
    }

    /// Not before it is polled: a worker counts what its polls take, and takes any number of completions in a
    /// turn.
    fn look_at_what_was_read(&mut self, work: &Work) {
        if !std::mem::take(&mut self.unseen) || self.error.is_some() {
            return;
        }
        if let Some(data) = self.buf.take() {
            self.error = self.look(&data).err();
            self.at += data.len() as u64;
            work.charge(data.len() as u64);
            self.buf = Some(data);
        }
    }

    /// Reads no more. True if there was something left to read.
    pub fn abort(&mut self) -> bool {
        let stops = self.at < self.range.len && self.error.is_none();
        if stops {
            (self.error, self.probe) = (Some(BlockError::Aborted), Probe::Over);
        }
        stops
    }

    /// Does it move or compare memory when it is polled?
    pub fn moves_memory(&self) -> bool {
        self.expected.is_some() || self.ns.disk.is_immediate()
    }

    /// Bytes that it has allocated, or will have.
    pub fn memory(&self) -> usize {
        self.range.len.min(PIECE) as usize + self.expected.as_ref().map_or(0, GuestBuf::heap)
    }

    fn look(&self, data: &[u8]) -> Result<(), BlockError> {
        let Some(expected) = &self.expected else { return Ok(()) };
        let mut page = [0; 4096];
        for (index, chunk) in data.chunks(page.len()).enumerate() {
            let page = &mut page[..chunk.len()];
            let at = self.at as usize + index * 4096;
            expected.copy_out(at, page).map_err(BlockError::Memory)?;
            if page != chunk {
                return Err(BlockError::Miscompare);
            }
        }
        Ok(())
    }
}
