//! Submission and completion queue entries.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Status, ZeroBased};

/// Bytes of a submission queue entry.
pub const SQE_SIZE: usize = 64;
/// Bytes of a completion queue entry.
pub const CQE_SIZE: usize = 16;

/// Submission Queue Entry.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sqe {
    /// OPC.
    pub opc: u8,
    /// FUSE in 1:0, PSDT in 7:6.
    pub flags: u8,
    /// CID; all 16 bits matter, it is not bounded by the queue's depth.
    pub cid: U16,
    /// NSID.
    pub nsid: U32,
    /// CDW2.
    pub cdw2: U32,
    /// CDW3.
    pub cdw3: U32,
    /// MPTR.
    pub mptr: U64,
    /// PRP1, or the low half of an SGL descriptor.
    pub prp1: U64,
    /// PRP2, or the high half of an SGL descriptor.
    pub prp2: U64,
    /// CDW10.
    pub cdw10: U32,
    /// CDW11.
    pub cdw11: U32,
    /// CDW12.
    pub cdw12: U32,
    /// CDW13.
    pub cdw13: U32,
    /// CDW14.
    pub cdw14: U32,
    /// CDW15.
    pub cdw15: U32,
}

const _: () = assert!(size_of::<Sqe>() == SQE_SIZE);

/// PSDT: PRP or SGL for this transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Psdt {
    /// 00b.
    Prp,
    /// 01b (metadata pointer is a plain buffer) or 10b (it is an SGL segment).
    Sgl,
    /// 11b.
    Reserved,
}

impl Sqe {
    /// FUSE, 0 for a normal command.
    pub fn fuse(&self) -> u8 {
        self.flags & 3
    }

    /// PSDT.
    pub fn psdt(&self) -> Psdt {
        match self.flags >> 6 {
            0 => Psdt::Prp,
            1 | 2 => Psdt::Sgl,
            _ => Psdt::Reserved,
        }
    }

    /// SLBA (SDLBA of a Copy): CDW10 and CDW11.
    pub fn slba(&self) -> u64 {
        u64::from(self.cdw11.get()) << 32 | u64::from(self.cdw10.get())
    }

    /// NLB in CDW12 15:0.
    pub fn nlb(&self) -> ZeroBased {
        ZeroBased(self.cdw12.get() as u16)
    }

    /// FUA in CDW12 bit 30.
    pub fn fua(&self) -> bool {
        self.cdw12.get() & 1 << 30 != 0
    }

    /// The SGL descriptor that stands in place of the PRP entries.
    pub fn sgl(&self) -> [u8; 16] {
        let mut descriptor = [0; 16];
        let (low, high) = descriptor.split_at_mut(8);
        low.copy_from_slice(&self.prp1.get().to_le_bytes());
        high.copy_from_slice(&self.prp2.get().to_le_bytes());
        descriptor
    }
}

/// Completion Queue Entry.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cqe {
    /// DW0, command specific.
    pub dw0: U32,
    /// DW1, command specific.
    pub dw1: U32,
    /// SQHD: the submission queue's head after the fetch of this command.
    pub sqhd: U16,
    /// SQID.
    pub sqid: U16,
    /// CID.
    pub cid: U16,
    /// Phase in bit 0, status above.
    pub status: U16,
}

const _: () = assert!(size_of::<Cqe>() == CQE_SIZE);

impl Cqe {
    /// The status half-word: `status` above the phase tag.
    pub fn status_word(status: Status, phase: bool) -> u16 {
        status.0 << 1 | u16::from(phase)
    }
}

/// One range of Dataset Management.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes.
    pub cattr: U32,
    /// Length in blocks, 1-based; 0 is an empty range.
    pub nlb: U32,
    /// First block.
    pub slba: U64,
}

const _: () = assert!(size_of::<DsmRange>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_widen_before_one_is_added() {
        let sqe = Sqe { cdw12: 0xffff.into(), ..Sqe::default() };
        assert_eq!(sqe.nlb().count(), 65536);
    }

    #[test]
    fn status_word_carries_dnr_in_the_top_bit() {
        assert_eq!(Cqe::status_word(Status::INVALID_FIELD.dnr(), true), 0x8005);
    }
}
