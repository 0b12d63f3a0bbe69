//! How much a worker does in one turn. It looks at its queues, its messages and its completions once a turn,
//! so a turn has to be short, whatever a host asks for: about a millisecond at most.
//!
//! Everything that takes a worker's own time charges what it costs. What is left of a turn is asked before
//! the next command is fetched or polled, never the clock; so one command may go beyond, and has to be short
//! by itself: [`Work::SLICE`] for what is done in slices, [`Work::TRANSFER`] for transfers, the bounds of a list
//! for what decodes one.

use std::cell::Cell;

use crate::disk::{How, IoBuf, Op};
use crate::memory::GuestBuf;
use crate::namespace::Namespace;

/// Work done in a turn, in bytes: of memory that is moved in the same time. 1 MiB are some 200 us.
#[derive(Debug, Default)]
pub struct Work(Cell<u64>);

impl Work {
    /// Of one turn, to fetch commands and to do at once what can be: enough for all queues of a host that
    /// uses four of them with the longest transfers, or 64 with short ones.
    pub const FETCH: u64 = 2 << 20;
    /// Of one turn, to poll commands that are ready.
    pub const POLLS: u64 = 1 << 20;
    /// Of one turn, to poll those that move memory. One is polled in any case, and more where they are short,
    /// so that they are announced together: to raise an interrupt can cost as much.
    pub const MOVES: u64 = 64 << 10;
    /// Of one poll at most.
    pub const SLICE: u64 = 128 << 10;
    /// Of a transfer that is not cut into slices: what MDTS allows by default, for most hosts use no more. A
    /// slice of a longer one, which costs pins, a list of pieces and a poll, is as long.
    pub const TRANSFER: u64 = 512 << 10;
    /// A command that is fetched, or polled.
    pub const COMMAND: u64 = 2 << 10;
    /// A descriptor of an SGL, or one of the pieces it leads to.
    pub const DESCRIPTOR: u64 = 256;
    /// A range of a list that is checked and laid out.
    pub const RANGE: u64 = 512;
    /// What is given back with one call of the kernel, which takes its pages one by one.
    const GIVEN_BACK: u64 = 16;
    /// What is looked up in a map of pages.
    const LOOKED_UP: u64 = 64;

    /// So much has been done.
    pub fn charge(&self, units: u64) {
        self.0.set(self.0.get().saturating_add(units));
    }

    /// What has been done in all.
    pub fn done(&self) -> u64 {
        self.0.get()
    }

    /// What has been done, which counts no more.
    pub fn take(&self) -> u64 {
        self.0.take()
    }

    /// A turn begins.
    pub fn reset(&self) {
        self.0.set(0);
    }

    /// `op` is handed to the image of `ns`.
    pub fn charge_op(&self, ns: &Namespace, op: &Op) {
        let immediate = ns.disk.is_immediate();
        self.charge(match op {
            // The disk moves them.
            Op::Read { .. } | Op::Write { .. } if ns.disk.is_direct() => Self::COMMAND,
            Op::Read { buf, .. } | Op::Write { buf, .. } => {
                let pieces = if let IoBuf::Guest(buf) = buf { buf.iovecs().len() } else { 1 };
                buf.len() as u64 + pieces as u64 * Self::DESCRIPTOR
            }
            Op::Copy { pieces, how: How::MemMove, .. } => {
                let len: u64 = pieces.iter().map(|(_, len)| len).sum();
                len + (pieces.len() as u64 - 1) * Self::DESCRIPTOR
            }
            Op::WriteZeroes { len, unmap: false, .. } if immediate => *len,
            Op::WriteZeroes { len, .. } | Op::Discard { len, .. } if immediate => len / Self::GIVEN_BACK,
            Op::Probe { len, .. } if immediate => len / Self::LOOKED_UP,
            // Threads do them.
            _ => Self::COMMAND,
        });
    }
}

/// As much of an operation as an image that does it at once may do in one go; `rest` keeps what is left, if
/// anything is. Nothing for an operation that is no longer than that, or is short by its nature.
pub fn slice(ns: &Namespace, rest: &mut Op) -> Option<Op> {
    if !ns.disk.is_immediate() {
        return None;
    }
    match rest {
        Op::Read { offset, buf: IoBuf::Guest(buf) } => {
            let (offset, buf) = slice_transfer(offset, buf)?;
            Some(Op::Read { offset, buf })
        }
        Op::Write { offset, buf: IoBuf::Guest(buf), fua } => {
            let (offset, buf) = slice_transfer(offset, buf)?;
            Some(Op::Write { offset, buf, fua: *fua })
        }
        Op::WriteZeroes { offset, len, unmap, fua } => {
            // Pages go back to the system many at a time, whole huge pages where they lie on some.
            let most = if *unmap { Work::SLICE * Work::GIVEN_BACK } else { Work::SLICE };
            let (offset, len) = slice_range(offset, len, most)?;
            Some(Op::WriteZeroes { offset, len, unmap: *unmap, fua: *fua })
        }
        Op::Discard { offset, len } => {
            let (offset, len) = slice_range(offset, len, Work::SLICE * Work::GIVEN_BACK)?;
            Some(Op::Discard { offset, len })
        }
        _ => None,
    }
}

/// Slices end where one that began at 0 would, so that none ends within a page.
fn slice_range(offset: &mut u64, len: &mut u64, most: u64) -> Option<(u64, u64)> {
    let now = most - *offset % most;
    if *len <= now {
        return None;
    }
    let at = *offset;
    (*offset, *len) = (at + now, *len - now);
    Some((at, now))
}

fn slice_transfer(offset: &mut u64, buf: &mut GuestBuf) -> Option<(u64, IoBuf)> {
    let most = usize::try_from(Work::TRANSFER).ok().filter(|most| buf.len() > *most)?;
    let at = *offset;
    *offset += Work::TRANSFER;
    Some((at, IoBuf::Guest(buf.split_front(most))))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::MemoryDisk;
    use crate::namespace::{CopyLimits, Identity};

    #[test]
    fn slices_end_with_whole_pages_and_are_all_there_is() {
        let image = Arc::new(MemoryDisk::new(64 << 20).expect("memory"));
        let limits = CopyLimits { mssrl: 1, mcl: 1, msrc: 0 };
        let ns = Namespace::new(1, image, 9, limits, Identity::default());
        for (offset, len) in
            [(0, 512), (512, 5 << 20), (0, 64 << 20), (3 << 20, 1 << 20), ((2 << 20) - 512, 1024)]
        {
            for op in [
                Op::Discard { offset, len },
                Op::WriteZeroes { offset, len, unmap: false, fua: true },
                Op::WriteZeroes { offset, len, unmap: true, fua: false },
            ] {
                let most =
                    if matches!(op, Op::WriteZeroes { unmap: false, .. }) { 128 << 10 } else { 2 << 20 };
                let (mut rest, mut at) = (op, offset);
                loop {
                    let next = slice(&ns, &mut rest);
                    let is_last = next.is_none();
                    let op = next.as_ref().unwrap_or(&rest);
                    let (Op::Discard { offset: from, len } | Op::WriteZeroes { offset: from, len, .. }) = op
                    else {
                        panic!("{op:?}")
                    };
                    assert!(*from == at && *len > 0 && *len <= most, "{op:?} at {at}");
                    at += len;
                    if is_last {
                        break;
                    }
                    assert!(at.is_multiple_of(most), "{op:?}");
                }
                assert_eq!(at, offset + len);
            }
        }
    }

    #[test]
    fn what_a_turn_has_done_adds_up() {
        let work = Work::default();
        work.charge(3);
        work.charge(u64::MAX);
        assert_eq!(work.done(), u64::MAX);
        work.reset();
        assert_eq!(work.done(), 0);
    }
}
