//! Operations on images that are left out, cut, delayed or changed on their way, and their ends put together
//! again.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::kind::{Data, Direction};
use crate::block::Issue;
use crate::disk::{Buffer, DiskError, IoBuf, Moved, Op};
use crate::laboratory::{BadBlocks, Flip, Lands, LateRange, Script, Until};
use crate::namespace::Namespace;

/// Pieces in flight at once, as of a command with many ranges.
const WINDOW: usize = 32;

/// The end of an operation that its machine asked for.
#[derive(Debug)]
pub struct Whole {
    /// As the machine numbers it.
    pub part: u32,
    /// How it ended.
    pub result: Result<Moved, DiskError>,
    /// Its buffer.
    pub buf: Option<IoBuf>,
    /// All of it went where it was to go.
    pub landed: bool,
    /// Pieces that are not over.
    left: usize,
    /// A read goes to a buffer of ours first: the host's, and where in the data it begins.
    host: Option<(IoBuf, u64)>,
}

#[derive(Debug)]
struct Piece {
    whole: usize,
    ns: Arc<Namespace>,
    op: Op,
}

/// What is known of a piece that was issued.
#[derive(Debug)]
struct Issued {
    whole: usize,
    /// Blocks that it writes: of which namespace, the first, and how many.
    heals: Option<(u32, u64, u64)>,
}

/// See the module docs.
#[derive(Debug)]
pub struct Pieces {
    data: Data,
    lands: Lands,
    late: LateRange,
    flip: Option<Flip>,
    bad: Vec<Arc<BadBlocks>>,
    wholes: Vec<Option<Whole>>,
    issued: Vec<Option<Issued>>,
    in_flight: usize,
    todo: VecDeque<Piece>,
    /// Pieces of the range that is late.
    held: VecDeque<Piece>,
    over: Vec<(u32, Result<Moved, DiskError>, Option<IoBuf>)>,
}

impl Pieces {
    /// Of a command with this data; what is said of it is taken out of `script`.
    pub fn new(data: Data, script: &mut Script) -> Self {
        Self {
            data,
            lands: script.lands.clone(),
            late: script.late.take().unwrap_or(LateRange { range: u32::MAX, until: Until::Now }),
            flip: script.flip.take(),
            bad: std::mem::take(&mut script.bad),
            wholes: Vec::new(),
            issued: Vec::new(),
            in_flight: 0,
            todo: VecDeque::new(),
            held: VecDeque::new(),
            over: Vec::new(),
        }
    }

    /// What the late range waits for.
    pub fn until(&self) -> &Until {
        &self.late.until
    }

    /// Does something wait for that?
    pub fn is_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Nothing waits any more.
    pub fn hold_no_more(&mut self) {
        self.late.until = Until::Now;
    }

    /// Takes an operation of the machine.
    pub fn take(&mut self, part: u32, ns: &Arc<Namespace>, op: Op) {
        match op {
            Op::Read { offset, buf } if self.is_bad(ns, offset, buf.len() as u64) => {
                let error = DiskError::Io(io::Error::from_raw_os_error(libc::EIO));
                self.over.push((part, Err(error), Some(buf)));
            }
            Op::Read { offset, buf: buf @ IoBuf::Guest(_) } if self.data.direction == Direction::ToHost => {
                self.read(part, ns, offset, buf);
            }
            // The bytes are to come through our memory: a Copy has another way.
            Op::Copy { buf, .. } => self.over.push((part, Err(DiskError::NoWay), buf)),
            Op::Write { .. } | Op::WriteZeroes { .. } | Op::Discard { .. }
                if self.data.direction == Direction::ToImage =>
            {
                self.write(part, ns, op);
            }
            Op::Discard { .. } if self.lands != Lands::All => self.over.push((part, Ok(Moved::Plain), None)),
            op => {
                let whole = self.open(part, 1, true);
                self.todo.push_back(Piece { whole, ns: Arc::clone(ns), op });
            }
        }
    }

    fn is_bad(&self, ns: &Namespace, offset: u64, len: u64) -> bool {
        let (first, end) = (offset >> ns.facts.lbads, (offset + len).div_ceil(ns.facts.block_size()));
        self.bad.iter().any(|bad| bad.is_read(ns.nsid, first, end - first))
    }

    /// Through a buffer of ours.
    fn read(&mut self, part: u32, ns: &Arc<Namespace>, offset: u64, buf: IoBuf) {
        let ours = IoBuf::Pool(Buffer::zeroed(buf.len()));
        let whole = self.open(part, 1, true);
        if let Some(Some(whole)) = self.wholes.get_mut(whole) {
            whole.host = Some((buf, offset.saturating_sub(self.data.start)));
        }
        self.todo.push_back(Piece { whole, ns: Arc::clone(ns), op: Op::Read { offset, buf: ours } });
    }

    /// Those parts of it that land.
    fn write(&mut self, part: u32, ns: &Arc<Namespace>, op: Op) {
        let Some((offset, len)) = op.range() else {
            return self.over.push((part, Ok(Moved::Plain), op.into_buf()));
        };
        let from = offset.saturating_sub(self.data.start);
        let stretches = self.lands.stretches(&self.data.layout, from, from + len);
        let landed = stretches.iter().all(|stretch| stretch.2);
        let late = self.data.layout.range(self.late.range).unwrap_or((0, 0));
        let lands = stretches.into_iter().filter(|stretch| stretch.2);
        // Cut where the late range begins and ends.
        let parts: Vec<(u64, u64)> = lands
            .flat_map(|(start, end, _)| {
                let cut = |at: u64| at.clamp(start, end);
                [(start, cut(late.0)), (cut(late.0), cut(late.1)), (cut(late.1), end)]
            })
            .filter(|(start, end)| start < end)
            .collect();
        let is_late = |start: u64| (late.0..late.1).contains(&start);
        let whole = self.open(part, parts.len(), landed);
        let mut failed = None;
        for (start, end) in parts {
            match self.part_of(&op, start - from, end - start, start) {
                Ok(op) => {
                    let piece = Piece { whole, ns: Arc::clone(ns), op };
                    if is_late(start) { self.held.push_back(piece) } else { self.todo.push_back(piece) }
                }
                Err(error) => failed = Some(error),
            }
        }
        let Some(Some(open)) = self.wholes.get_mut(whole) else { return };
        open.buf = op.into_buf();
        if let Some(error) = failed {
            // Guest memory is gone: what of it was cut before goes no further either.
            self.todo.retain(|piece| piece.whole != whole);
            self.held.retain(|piece| piece.whole != whole);
            open.result = Err(error);
            open.left = 0;
        }
        if open.left == 0 {
            self.close(whole);
        }
    }

    /// `len` bytes of what `op` writes, from byte `skip` of it on, which is byte `at` of the data.
    fn part_of(&self, op: &Op, skip: u64, len: u64, at: u64) -> Result<Op, DiskError> {
        Ok(match op {
            Op::Write { offset, buf, fua } => {
                let mut data = Buffer::zeroed(len as usize);
                copy_out(buf, skip as usize, &mut data)?;
                if let Some(flip) = &self.flip {
                    flip.apply(&self.data.layout, at, &mut data);
                }
                Op::Write { offset: offset + skip, buf: IoBuf::Pool(data), fua: *fua }
            }
            Op::WriteZeroes { offset, unmap, fua, .. } => {
                Op::WriteZeroes { offset: offset + skip, len, unmap: *unmap, fua: *fua }
            }
            Op::Discard { offset, .. } => Op::Discard { offset: offset + skip, len },
            _ => return Err(DiskError::Truncated),
        })
    }

    fn open(&mut self, part: u32, left: usize, landed: bool) -> usize {
        let whole = Whole { part, result: Ok(Moved::Plain), buf: None, landed, left, host: None };
        insert(&mut self.wholes, whole)
    }

    /// It is over, without an operation of its own.
    fn close(&mut self, whole: usize) {
        if let Some(Whole { part, result, buf, .. }) = self.wholes.get_mut(whole).and_then(Option::take) {
            self.over.push((part, result, buf));
        }
    }

    /// Operations that are over without ever having been issued.
    pub fn take_over(&mut self) -> Vec<(u32, Result<Moved, DiskError>, Option<IoBuf>)> {
        std::mem::take(&mut self.over)
    }

    /// Issues what may be issued.
    pub fn issue(&mut self, now: Instant, issue: &mut Issue<'_>) {
        if !self.held.is_empty() && self.late.until.is_over(now) {
            self.todo.append(&mut self.held);
        }
        while self.in_flight < WINDOW
            && let Some(Piece { whole, ns, op }) = self.todo.pop_front()
        {
            let heals = heals(&ns, &op).filter(|_| !self.bad.is_empty());
            let part = insert(&mut self.issued, Issued { whole, heals });
            self.in_flight += 1;
            issue(part as u32, &ns, op);
        }
    }

    /// Takes the end of a piece. What it belonged to, if that is over now.
    pub fn done(&mut self, part: u32, result: Result<Moved, DiskError>, buf: Option<IoBuf>) -> Option<Whole> {
        let Issued { whole: at, heals } = self.issued.get_mut(part as usize)?.take()?;
        self.in_flight -= 1;
        if let (Ok(_), Some((nsid, first, count))) = (&result, heals) {
            self.bad.iter().for_each(|bad| bad.heal(nsid, first, count));
        }
        let whole = self.wholes.get_mut(at)?.as_mut()?;
        let mut result = result;
        match (whole.host.take(), buf) {
            (Some((host, from)), Some(IoBuf::Pool(data))) => {
                if result.is_ok() {
                    result = to_host(&self.data, &self.lands, self.flip.as_ref(), &host, from, data)
                        .map(|()| Moved::Plain);
                }
                whole.buf = Some(host);
            }
            (Some((host, _)), _) => whole.buf = Some(host),
            // Of a piece that was cut the buffer is ours, and no longer needed.
            (None, buf) => whole.buf = whole.buf.take().or(buf),
        }
        match result {
            Ok(moved) if whole.result.is_ok() => whole.result = Ok(moved),
            Ok(_) => {}
            Err(error) => whole.result = Err(error),
        }
        whole.left -= 1;
        if whole.left > 0 { None } else { self.wholes.get_mut(at)?.take() }
    }
}

/// What was read, as far as it lands.
fn to_host(
    data: &Data,
    lands: &Lands,
    flip: Option<&Flip>,
    host: &IoBuf,
    from: u64,
    mut read: Buffer,
) -> Result<(), DiskError> {
    if let Some(flip) = flip {
        flip.apply(&data.layout, from, &mut read);
    }
    for (start, end, lands) in lands.stretches(&data.layout, from, from + read.len() as u64) {
        let (start, end) = ((start - from) as usize, (end - from) as usize);
        if let (true, IoBuf::Guest(host), Some(bytes)) = (lands, host, read.get(start..end)) {
            host.copy_in(start, bytes).map_err(|_| DiskError::GuestMemory)?;
        }
    }
    Ok(())
}

fn copy_out(buf: &IoBuf, skip: usize, to: &mut [u8]) -> Result<(), DiskError> {
    match (buf, buf.ours()) {
        (IoBuf::Guest(guest), _) => guest.copy_out(skip, to).map_err(|_| DiskError::GuestMemory),
        (_, Some(ours)) => {
            let from = ours.get(skip..skip + to.len()).ok_or(DiskError::Truncated)?;
            to.copy_from_slice(from);
            Ok(())
        }
        (_, None) => Err(DiskError::Truncated),
    }
}

/// Whole blocks that an operation writes.
fn heals(ns: &Namespace, op: &Op) -> Option<(u32, u64, u64)> {
    let (offset, len) = op.range().filter(|_| op.is_write())?;
    let first = offset.div_ceil(ns.facts.block_size());
    let end = (offset + len) >> ns.facts.lbads;
    Some((ns.nsid, first, end.saturating_sub(first)))
}

/// Puts `value` into the first free place.
fn insert<T>(slots: &mut Vec<Option<T>>, value: T) -> usize {
    match slots.iter().position(Option::is_none) {
        Some(at) => {
            if let Some(slot) = slots.get_mut(at) {
                *slot = Some(value);
            }
            at
        }
        None => {
            slots.push(Some(value));
            slots.len() - 1
        }
    }
}
