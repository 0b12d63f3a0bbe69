//! Segments that are being bounced: each is filled by reads, in order, and then written.

use super::slots::Slots;
use crate::backend::{Buffer, Gather, IoBuf};
use crate::copy::cut::{Piece, Stretch, piece};
use crate::copy::plan::CopyPlan;

/// All segments between their first read and the end of their write.
#[derive(Debug, Default)]
pub(super) struct Segments {
    slots: Slots<Segment>,
    /// The slot of the segment that has reads to come, and where the next one starts. There is one such segment at most.
    filling: Option<(usize, u64)>,
}

#[derive(Debug)]
struct Segment {
    to: Stretch,
    /// What will be written: absent while the one read or the write holds it, or while it is gathered.
    buf: Option<Buffer>,
    /// The same while several reads fill it, each its part.
    gather: Option<Gather>,
    grouped: bool,
    reads_in_flight: u32,
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

    /// Begins a segment of `to` in a buffer as long as that. `gathered`: by several reads. `grouped`: its memory is its
    /// group's.
    pub fn open(&mut self, to: Stretch, buf: Buffer, gathered: bool, grouped: bool) {
        let (buf, gather) = if gathered { (None, Some(Gather::new(buf))) } else { (Some(buf), None) };
        let slot = self.slots.insert(Segment { to, buf, gather, grouped, reads_in_flight: 0 });
        self.filling = Some((slot, to.start));
    }

    /// Starts the next read of the segment that is being filled: its slot, what to read, and what into.
    #[inline]
    pub fn next_read<'a>(&mut self, plan: &'a CopyPlan) -> Result<Option<(usize, Piece<'a>, IoBuf)>, Broken> {
        let Some((slot, pos)) = self.filling else { return Ok(None) };
        let Some(segment) = self.slots.get_mut(slot) else { return Ok(None) };
        let Some(piece) = piece(plan, pos, segment.to.end) else { return Ok(None) };
        let to = piece.to;
        let buf = match &mut segment.gather {
            Some(gather) => gather.split(to.len() as usize).map(IoBuf::Part),
            None => segment.buf.take().map(IoBuf::Pool),
        };
        let buf = buf.ok_or(Broken(to.start))?;
        segment.reads_in_flight += 1;
        self.filling = (to.end < segment.to.end).then_some((slot, to.end));
        Ok(Some((slot, piece, buf)))
    }

    /// A read of `to` has succeeded; all of its segment.
    ///
    /// The buffer may have held another Copy's data, of whatever namespace. What makes that safe: a segment is written
    /// from a buffer all of whose bytes a successful read has overwritten, each of its own. So nothing but a success
    /// leads here, a short buffer or a strange one is refused, and what is gathered comes together of parts that all
    /// came back.
    #[inline]
    pub fn read_done(&mut self, slot: usize, to: Stretch, buf: Option<IoBuf>) -> Result<Stretch, Broken> {
        let broken = Broken(to.start);
        let buf = buf.filter(|buf| buf.len() as u64 == to.len()).ok_or(broken)?;
        let segment = self.slots.get_mut(slot).ok_or(broken)?;
        segment.reads_in_flight -= 1;
        let taken = match (buf, &mut segment.gather) {
            (IoBuf::Part(part), Some(gather)) => gather.join(part),
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
        if let Some(gather) = segment.gather.take_if(|_| complete) {
            segment.buf = Some(gather.whole().ok_or(broken)?);
        }
        Ok(segment.to)
    }

    /// Starts the write of a segment that has been read, if there is one that `may` be written: its slot, and what.
    #[inline]
    pub fn next_write(&mut self, may: impl Fn(Stretch) -> bool) -> Option<(usize, Stretch, Buffer)> {
        let filling = self.filling.map(|(slot, _)| slot);
        self.slots.iter_mut().find_map(|(slot, segment)| {
            let ready = Some(slot) != filling && segment.reads_in_flight == 0 && may(segment.to);
            Some((slot, segment.to, segment.buf.take_if(|_| ready)?))
        })
    }

    /// A segment has been written and is no more. Was its memory its group's?
    pub fn write_done(&mut self, slot: usize) -> bool {
        self.slots.remove(slot).is_some_and(|segment| segment.grouped)
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
        assert_eq!(segments.read_done(slot, first, Some(one)), Ok(WHOLE));
        assert!(segments.next_write(|_| true).is_none(), "a read is to come");
        let (_, second, two) = read(&mut segments, &plan).expect("two ranges");
        assert!(!segments.is_filling() && read(&mut segments, &plan).is_none());
        assert!(segments.next_write(|_| true).is_none(), "a read is in flight");
        assert_eq!(segments.read_done(slot, second, Some(two)), Ok(WHOLE));
        assert!(segments.next_write(|_| false).is_none(), "it may not be");
        let (slot, to, buf) = segments.next_write(|to| to == WHOLE).expect("now");
        assert_eq!((to, buf.len()), (WHOLE, 1536));
        assert!(segments.next_write(|_| true).is_none() && !segments.is_empty(), "it is being written");
        assert!(segments.write_done(slot) && segments.is_empty());
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
            assert!(segments.next_write(|_| true).is_none());
        }
        assert_eq!(Segments::default().read_done(3, to, pool(1024)), Err(Broken(0)));
    }
}
