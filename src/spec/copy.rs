//! The Copy command (NVM Command Set, opcode 19h): its dwords and its source range descriptors.

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Sqe;

/// An 8-bit field in which 0 means one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ZeroBased8(pub u8);

impl ZeroBased8 {
    /// What the field counts: 1..=256.
    pub const fn count(self) -> u16 {
        self.0 as u16 + 1
    }
}

/// A 16-bit field in which 0 means one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct ZeroBased16(pub U16);

impl ZeroBased16 {
    /// The field as the host wrote it.
    pub const fn new(raw: u16) -> Self {
        Self(U16::new(raw))
    }

    /// What the field counts: 1..=65536, which is why it is wider than the field.
    pub const fn count(self) -> u32 {
        self.0.get() as u32 + 1
    }
}

/// What a Copy command says, as dwords: all of the SQE that the Copy planner reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyCommand {
    /// NSID, the destination namespace.
    pub nsid: u32,
    /// CDW10 to CDW15.
    pub cdw: [u32; 6],
}

impl CopyCommand {
    /// Of a submission queue entry whose opcode is Copy.
    pub fn of(sqe: &Sqe) -> Self {
        let cdw = [sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15];
        Self { nsid: sqe.nsid.get(), cdw: cdw.map(U32::get) }
    }

    /// Starting Destination LBA, CDW10 and CDW11.
    pub const fn sdlba(&self) -> u64 {
        self.cdw[0] as u64 | (self.cdw[1] as u64) << 32
    }

    /// Number of Ranges, CDW12 7:0.
    pub const fn nr(&self) -> ZeroBased8 {
        ZeroBased8(self.cdw[2] as u8)
    }

    /// Descriptor Format, CDW12 11:8.
    pub const fn desfmt(&self) -> u8 {
        (self.cdw[2] >> 8 & 0xf) as u8
    }

    /// Protection Information of the read part, CDW12 15:12: PRACT, guard, application tag, reference tag.
    pub const fn prinfor(&self) -> u8 {
        (self.cdw[2] >> 12 & 0xf) as u8
    }

    /// Command Extension Type, CDW12 19:16.
    pub const fn cetype(&self) -> u8 {
        (self.cdw[2] >> 16 & 0xf) as u8
    }

    /// Directive Type of the write part, CDW12 23:20.
    pub const fn dtype(&self) -> u8 {
        (self.cdw[2] >> 20 & 0xf) as u8
    }

    /// Storage Tag Check of the write part, CDW12 bit 24.
    pub const fn stcw(&self) -> bool {
        self.cdw[2] & 1 << 24 != 0
    }

    /// Storage Tag Check of the read part, CDW12 bit 25.
    pub const fn stcr(&self) -> bool {
        self.cdw[2] & 1 << 25 != 0
    }

    /// Protection Information of the write part, CDW12 29:26: as [`Self::prinfor`].
    pub const fn prinfow(&self) -> u8 {
        (self.cdw[2] >> 26 & 0xf) as u8
    }

    /// Force Unit Access, CDW12 bit 30: the destination is durable before the completion.
    pub const fn fua(&self) -> bool {
        self.cdw[2] & 1 << 30 != 0
    }

    /// Limited Retry, CDW12 bit 31: a hint.
    pub const fn lr(&self) -> bool {
        self.cdw[2] & 1 << 31 != 0
    }

    /// Command Extension Value, CDW13 15:0; means nothing while CETYPE is 0.
    pub const fn cev(&self) -> u16 {
        self.cdw[3] as u16
    }

    /// Directive Specific, CDW13 31:16; means nothing while DTYPE is 0.
    pub const fn dspec(&self) -> u16 {
        (self.cdw[3] >> 16) as u16
    }

    /// Lower dword of the write part's initial reference tag, CDW14.
    pub const fn lbtl(&self) -> u32 {
        self.cdw[4]
    }

    /// Application tag of the write part, CDW15 15:0.
    pub const fn lbat(&self) -> u16 {
        self.cdw[5] as u16
    }

    /// Application tag mask of the write part, CDW15 31:16.
    pub const fn lbatm(&self) -> u16 {
        (self.cdw[5] >> 16) as u16
    }
}

/// SOPT bit 15: Fast Copy Only. The other bits are reserved.
pub const SOPT_FCO: u16 = 1 << 15;

/// Source range descriptor, formats 0h and 2h. In 0h `snsid` and `sopt` are reserved.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Range32 {
    /// 3:0 Source Namespace Identifier.
    pub snsid: U32,
    /// 7:4
    pub reserved4: U32,
    /// 15:8 Starting LBA.
    pub slba: U64,
    /// 17:16 Number of Logical Blocks.
    pub nlb: ZeroBased16,
    /// 18: Command Extension Type in 3:0, the rest reserved.
    pub cetype: u8,
    /// 19
    pub reserved19: u8,
    /// 21:20 Command Extension Value.
    pub cev: U16,
    /// 23:22 Source Options.
    pub sopt: U16,
    /// 27:24 Expected Initial Logical Block Tag.
    pub elbt: U32,
    /// 29:28 Expected Logical Block Application Tag.
    pub elbat: U16,
    /// 31:30 Expected Logical Block Application Tag Mask.
    pub elbatm: U16,
}

/// Source range descriptor, formats 1h and 3h. In 1h `snsid` and `sopt` are reserved.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Range40 {
    /// 3:0 Source Namespace Identifier.
    pub snsid: U32,
    /// 7:4
    pub reserved4: U32,
    /// 15:8 Starting LBA.
    pub slba: U64,
    /// 17:16 Number of Logical Blocks.
    pub nlb: ZeroBased16,
    /// 18: Command Extension Type in 3:0, the rest reserved.
    pub cetype: u8,
    /// 19
    pub reserved19: u8,
    /// 21:20 Command Extension Value.
    pub cev: U16,
    /// 23:22 Source Options.
    pub sopt: U16,
    /// 25:24
    pub reserved24: U16,
    /// 35:26 Expected Initial Logical Block Tag, most significant byte first: the only big-endian field here.
    pub elbt: [u8; 10],
    /// 37:36 Expected Logical Block Application Tag.
    pub elbat: U16,
    /// 39:38 Expected Logical Block Application Tag Mask.
    pub elbatm: U16,
}

const _: () = assert!(size_of::<Range32>() == 32 && size_of::<Range40>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dwords_come_apart() {
        let command = CopyCommand {
            nsid: 1,
            cdw: [0x89ab_cdef, 0x0123_4567, 0, 0xaaaa_bbbb, 0xdead_beef, 0x1111_2222],
        };
        assert_eq!(command.sdlba(), 0x0123_4567_89ab_cdef);
        assert_eq!((command.dspec(), command.cev()), (0xaaaa, 0xbbbb));
        assert_eq!(command.lbtl(), 0xdead_beef);
        assert_eq!((command.lbatm(), command.lbat()), (0x1111, 0x2222));
    }

    #[test]
    fn each_field_of_cdw12_has_its_own_bits() {
        let of = |cdw12| {
            let c = CopyCommand { nsid: 0, cdw: [0, 0, cdw12, 0, 0, 0] };
            let flags = u8::from(c.stcw()) | u8::from(c.stcr()) << 1 | u8::from(c.fua()) << 2;
            let flags = flags | u8::from(c.lr()) << 3;
            [c.nr().0, c.desfmt(), c.prinfor(), c.cetype(), c.dtype(), c.prinfow(), flags]
        };
        assert_eq!(of(0x0000_00ff), [0xff, 0, 0, 0, 0, 0, 0]);
        assert_eq!(of(0x0000_0f00), [0, 0xf, 0, 0, 0, 0, 0]);
        assert_eq!(of(0x0000_f000), [0, 0, 0xf, 0, 0, 0, 0]);
        assert_eq!(of(0x000f_0000), [0, 0, 0, 0xf, 0, 0, 0]);
        assert_eq!(of(0x00f0_0000), [0, 0, 0, 0, 0xf, 0, 0]);
        assert_eq!(of(0x3c00_0000), [0, 0, 0, 0, 0, 0xf, 0]);
        assert_eq!(of(0x0100_0000), [0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(of(0x0200_0000), [0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(of(0x4000_0000), [0, 0, 0, 0, 0, 0, 4]);
        assert_eq!(of(0x8000_0000), [0, 0, 0, 0, 0, 0, 8]);
    }

    #[test]
    fn zero_based_counts_do_not_wrap() {
        assert_eq!((ZeroBased8(0).count(), ZeroBased8(0xff).count()), (1, 256));
        assert_eq!((ZeroBased16::new(0).count(), ZeroBased16::new(0xffff).count()), (1, 65536));
    }
}
