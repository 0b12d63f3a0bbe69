//! Segments that are being bounced: each is filled by reads, in order, and then written.

use super::slots::Slots;
use super::stages::Writable;
use crate::copy::cut::{Piece, Stretch, piece};
use crate::copy::plan::CopyPlan;
use crate::disk::{Buffer, IoBuf, SplitBuffer};

/// All segments between their first read and the end of their write.
#[derive(Debug, Default)]
pub(super) struct Segments {
    slots: Slots<Segment>,
    /// The slot of the segment that has reads to come, and where the next one starts. There is one such
    /// segment at most.
    filling: Option<(usize, u64)>,
    /// Segments opened so far.
    opened: u64,
}

#[derive(Debug)]
struct Segment {
    to: Stretch,
    /// What will be written: absent while the one read or the write holds it, or while it is gathered.
    buf: Option<Buffer>,
    /// The same while several reads fill it, each its part.
    split: Option<SplitBuffer>,
    held: bool,
    reads_in_flight: u32,
    /// How many were opened before it.
    number: u64,
}

/// A segment that is not as it should be: a buffer that did not come back, or another one. Where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub u64);

impl Segments {
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Has the segment that was opened last reads to come?
    pub fn is_filling(&self) -> bool {
        self.filling.is_some()
    }

    /// Begins a segment of `to` in a buffer as long as that. `gathered`: by several reads. `held`: written
    /// after all others of its stage.
    pub fn open(&mut self, to: Stretch, buf: Buffer, gathered: bool, held: bool) {
        let (buf, split) = if gathered { (None, Some(SplitBuffer::new(buf))) } else { (Some(buf), None) };
        let slot =
            self.slots.insert(Segment { to, buf, split, held, reads_in_flight: 0, number: self.opened });
        self.opened += 1;
        self.filling = Some((slot, to.start));
    }

    /// Starts the next read of the segment that is being filled: its slot, what to read, and what into.
    #[inline]
    pub fn next_read<'a>(&mut self, plan: &'a CopyPlan) -> Result<Option<(usize, Piece<'a>, IoBuf)>, Broken> {
        let Some((slot, pos)) = self.filling else { return Ok(None) };
        let Some(segment) = self.slots.get_mut(slot) else { return Ok(None) };
        let Some(piece) = piece(plan, pos, segment.to.end) else { return Ok(None) };
        let to = piece.to;
        let buf = match &mut segment.split {
            Some(split) => split.split(to.len() as usize).map(IoBuf::Part),
            None => segment.buf.take().map(IoBuf::Pool),
        };
        let buf = buf.ok_or(Broken(to.start))?;
        segment.reads_in_flight += 1;
        self.filling = (to.end < segment.to.end).then_some((slot, to.end));
        Ok(Some((slot, piece, buf)))
    }

    /// A read of `to` has succeeded.
    ///
    /// The buffer may have held another Copy's data, of whatever namespace. What makes that safe: a segment
    /// is written from a buffer all of whose bytes a successful read has overwritten, each of its own. So
    /// nothing but a success leads here, a short buffer or a strange one is refused, and what is gathered
    /// comes together of parts that all came back.
    #[inline]
    pub fn read_done(&mut self, slot: usize, to: Stretch, buf: Option<IoBuf>) -> Result<(), Broken> {
        let broken = Broken(to.start);
        let buf = buf.filter(|buf| buf.len() as u64 == to.len()).ok_or(broken)?;
        let segment = self.slots.get_mut(slot).ok_or(broken)?;
        segment.reads_in_flight -= 1;
        let taken = match (buf, &mut segment.split) {
            (IoBuf::Part(part), Some(split)) => split.join(part),
            (IoBuf::Pool(buf), None) => {
                segment.buf = Some(buf);
                true
            }
            _ => false,
        };
        if !taken {
            return Err(broken);
        }
        let complete =
            segment.reads_in_flight == 0 && self.filling.is_none_or(|(filling, _)| filling != slot);
        if let Some(split) = segment.split.take_if(|_| complete) {
            segment.buf = Some(split.whole().ok_or(broken)?);
        }
        Ok(())
    }

    /// Starts the write of a segment that has been read, if there is one that may be written: its slot, and
    /// what.
    #[inline]
    pub fn next_write(&mut self, writable: Writable) -> Option<(usize, Stretch, Buffer)> {
        let filling = self.filling.map(|(slot, _)| slot);
        let unread = if writable == Writable::All { u64::MAX } else { self.first_unread() };
        self.slots.iter_mut().find_map(|(slot, segment)| {
            let in_turn = match (writable, segment.held) {
                (Writable::All, _) => true,
                (_, false) => segment.number < unread,
                (Writable::InTurn, true) => false,
                (Writable::Last, true) => unread == u64::MAX,
            };
            let ready = in_turn && Some(slot) != filling && segment.reads_in_flight == 0;
            Some((slot, segment.to, segment.buf.take_if(|_| ready)?))
        })
    }

    /// The number of the first segment that is not read to its end.
    fn first_unread(&self) -> u64 {
        // The one that is being filled was opened last.
        let filling = self.filling.map_or(u64::MAX, |_| self.opened - 1);
        let unread = self.slots.iter().filter(|segment| segment.reads_in_flight > 0);
        unread.map(|segment| segment.number).min().unwrap_or(u64::MAX).min(filling)
    }

    /// A segment has been written and is no more. Was it held?
    pub fn write_done(&mut self, slot: usize) -> bool {
        self.slots.remove(slot).is_some_and(|segment| segment.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::testing::{copy_of, namespace};

    const WHOLE: Stretch = Stretch { start: 0, end: 1536 };

    /// Two blocks and one, from two places of one source.
    fn plan() -> CopyPlan {
        copy_of(namespace(2, 64, 9), namespace(1, 64, 9), &[(5120, 1024), (0, 512)], false)
    }

    fn read(segments: &mut Segments, plan: &CopyPlan) -> Option<(usize, Stretch, IoBuf)> {
        let (slot, piece, buf) = segments.next_read(plan).expect("whole")?;
        assert_eq!(buf.len() as u64, piece.to.len());
        Some((slot, piece.to, buf))
    }

    #[test]
    fn it_is_written_when_all_reads_have_come_back() {
        let plan = plan();
        let mut segments = Segments::default();
        segments.open(WHOLE, Buffer::zeroed(1536), true, true);
        let (slot, first, one) = read(&mut segments, &plan).expect("two ranges");
        assert!(segments.is_filling());
        assert_eq!(segments.read_done(slot, first, Some(one)), Ok(()));
        assert!(segments.next_write(Writable::All).is_none(), "a read is to come");
        let (_, second, two) = read(&mut segments, &plan).expect("two ranges");
        assert!(!segments.is_filling() && read(&mut segments, &plan).is_none());
        assert!(segments.next_write(Writable::All).is_none(), "a read is in flight");
        assert_eq!(segments.read_done(slot, second, Some(two)), Ok(()));
        let (slot, to, buf) = segments.next_write(Writable::All).expect("now");
        assert_eq!((to, buf.len()), (WHOLE, 1536));
        assert!(segments.next_write(Writable::All).is_none() && !segments.is_empty(), "it is being written");
        assert!(segments.write_done(slot) && segments.is_empty());
    }

    /// Of three, the first of which is held: in the order in which they were opened, whenever their reads
    /// end.
    #[test]
    fn segments_are_written_in_turn_and_what_is_held_last() {
        let plan = plan();
        let mut segments = Segments::default();
        let block = |n: u64| Stretch { start: n * 512, end: (n + 1) * 512 };
        let mut reads: Vec<_> = (0..3)
            .map(|n| {
                segments.open(block(n), Buffer::zeroed(512), false, n == 0);
                read(&mut segments, &plan)
            })
            .collect();
        let mut end_read = |segments: &mut Segments, n: usize| {
            let (slot, to, buf) = reads[n].take().expect("in flight");
            segments.read_done(slot, to, Some(buf)).expect("its own");
        };
        let written = |segments: &mut Segments, writable| {
            segments.next_write(writable).map(|(slot, to, _)| (to.start / 512, segments.write_done(slot)))
        };
        end_read(&mut segments, 2);
        assert_eq!(written(&mut segments, Writable::Last), None, "two before it are not read");
        end_read(&mut segments, 0);
        assert_eq!(written(&mut segments, Writable::Last), None, "one before it is not read");
        end_read(&mut segments, 1);
        assert_eq!(written(&mut segments, Writable::InTurn), Some((1, false)));
        assert_eq!(written(&mut segments, Writable::InTurn), Some((2, false)));
        assert_eq!(written(&mut segments, Writable::InTurn), None);
        assert_eq!(written(&mut segments, Writable::Last), Some((0, true)));
    }

    #[test]
    fn what_is_not_its_own_buffer_is_refused() {
        let plan = plan();
        let to = Stretch { start: 0, end: 1024 };
        let pool = |len| Some(IoBuf::Pool(Buffer::zeroed(len)));
        for (gathered, back) in [(false, None), (false, pool(512)), (true, None), (true, pool(1024))] {
            let mut segments = Segments::default();
            segments.open(
                if gathered { WHOLE } else { to },
                Buffer::zeroed(if gathered { 1536 } else { 1024 }),
                gathered,
                false,
            );
            let (slot, to, _) = read(&mut segments, &plan).expect("a read");
            assert_eq!(segments.read_done(slot, to, back), Err(Broken(0)));
            assert!(segments.next_write(Writable::All).is_none());
        }
        assert_eq!(Segments::default().read_done(3, to, pool(1024)), Err(Broken(0)));
    }
}
