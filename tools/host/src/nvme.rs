//! Commands and completions as bytes.

use super::data::Data;
use super::le::{put16, put32, put64, u16_at, u32_at};

pub mod admin {
    pub const DELETE_SQ: u8 = 0x00;
    pub const CREATE_SQ: u8 = 0x01;
    pub const GET_LOG: u8 = 0x02;
    pub const DELETE_CQ: u8 = 0x04;
    pub const CREATE_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const AER: u8 = 0x0c;
    pub const KEEP_ALIVE: u8 = 0x18;
    pub const DOORBELL_BUFFER: u8 = 0x7c;
}

pub mod io {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DSM: u8 = 0x09;
    pub const VERIFY: u8 = 0x0c;
    pub const COPY: u8 = 0x19;
}

/// Statuses as they stand in a CQE shifted right by one: SC 7:0, SCT 10:8, DNR 14.
pub mod st {
    pub const DNR: u16 = 0x4000;
    pub const OK: u16 = 0;
    pub const INVALID_OPCODE: u16 = 0x4001;
    pub const INVALID_FIELD: u16 = 0x4002;
    /// Without DNR: the memory may be there the next time.
    pub const DATA_TRANSFER: u16 = 0x0004;
    pub const ABORT_REQUESTED: u16 = 0x0007;
    pub const SQ_DELETION: u16 = 0x0008;
    pub const INVALID_NS: u16 = 0x400b;
    pub const SEQUENCE: u16 = 0x400c;
    pub const SGL_SEGMENT: u16 = 0x400d;
    pub const SGL_COUNT: u16 = 0x400e;
    pub const SGL_LENGTH: u16 = 0x400f;
    pub const SGL_TYPE: u16 = 0x4011;
    pub const PRP_OFFSET: u16 = 0x4013;
    pub const WRITE_PROTECTED: u16 = 0x4020;
    pub const LBA_RANGE: u16 = 0x4080;
    pub const CQ_INVALID: u16 = 0x4100;
    pub const QID_INVALID: u16 = 0x4101;
    pub const QUEUE_SIZE: u16 = 0x4102;
    pub const AER_LIMIT: u16 = 0x4105;
    pub const VECTOR_INVALID: u16 = 0x4108;
    pub const LOG_PAGE_INVALID: u16 = 0x4109;
    pub const QUEUE_DELETION: u16 = 0x410c;
    pub const READ_ONLY_RANGE: u16 = 0x4182;
    pub const SIZE_LIMIT: u16 = 0x4183;
    pub const INCOMPATIBLE_NS: u16 = 0x4185;
    pub const NOT_FAST: u16 = 0x0186;
    pub const OVERLAP: u16 = 0x4187;
    /// Without DNR: it may be written meanwhile.
    pub const DEALLOCATED: u16 = 0x0287;
    pub const COMPARE_FAILURE: u16 = 0x4285;
}

#[derive(Clone, Copy)]
pub struct Sqe(pub [u8; 64]);

impl Sqe {
    pub fn new(opcode: u8) -> Sqe {
        let mut b = [0; 64];
        b[0] = opcode;
        Sqe(b)
    }

    /// Byte 1: FUSE and PSDT.
    pub fn flags(mut self, v: u8) -> Sqe {
        self.0[1] = v;
        self
    }

    pub fn cid(mut self, cid: u16) -> Sqe {
        put16(&mut self.0, 2, cid);
        self
    }

    pub fn nsid(self, nsid: u32) -> Sqe {
        self.cdw(1, nsid)
    }

    pub fn cdw(mut self, n: usize, v: u32) -> Sqe {
        put32(&mut self.0, 4 * n, v);
        self
    }

    pub fn prp(mut self, prp1: u64, prp2: u64) -> Sqe {
        put64(&mut self.0, 24, prp1);
        put64(&mut self.0, 32, prp2);
        self
    }

    pub fn data(mut self, d: &Data) -> Sqe {
        self.0[24..40].copy_from_slice(&d.dptr);
        self.0[1] = (self.0[1] & 0x3f) | d.psdt << 6;
        self
    }

    /// SLBA, and NLB from a count of blocks (1 to 65536).
    pub fn lba(self, slba: u64, blocks: u32) -> Sqe {
        let dw12 = u32_at(&self.0, 48) & 0xffff_0000;
        assert!((1..=0x1_0000).contains(&blocks));
        self.cdw(10, slba as u32).cdw(11, (slba >> 32) as u32).cdw(12, dw12 | (blocks - 1))
    }

    pub fn fua(self) -> Sqe {
        let dw12 = u32_at(&self.0, 48);
        self.cdw(12, dw12 | 1 << 30)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cqe {
    pub dw0: u32,
    pub dw1: u32,
    pub sqhd: u16,
    pub sqid: u16,
    pub cid: u16,
    /// Without the phase bit, and without M.
    pub status: u16,
    /// M (More): the Error Information log has an entry of this command.
    pub more: bool,
}

impl Cqe {
    pub fn parse(b: &[u8]) -> Cqe {
        Cqe {
            dw0: u32_at(b, 0),
            dw1: u32_at(b, 4),
            sqhd: u16_at(b, 8),
            sqid: u16_at(b, 10),
            cid: u16_at(b, 12),
            status: (u16_at(b, 14) >> 1) & !0x2000,
            more: u16_at(b, 14) & 0x4000 != 0,
        }
    }

    /// Status code and type only, for cases where DNR is the controller's choice.
    pub fn code(&self) -> u16 {
        self.status & 0x7ff
    }

    #[track_caller]
    pub fn ok(&self) -> &Cqe {
        self.is(st::OK, "")
    }

    #[track_caller]
    pub fn is(&self, status: u16, what: &str) -> &Cqe {
        assert_eq!(self.status, status, "{what}: status {:#06x}, want {status:#06x} ({self:?})", self.status);
        self
    }
}

/// One source range of a Copy, format 0 or 2.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub snsid: u32,
    pub slba: u64,
    /// 1 to 65536.
    pub blocks: u32,
    pub sopt: u16,
}

impl Range {
    pub fn new(slba: u64, blocks: u32) -> Range {
        Range { snsid: 0, slba, blocks, sopt: 0 }
    }

    pub fn of(snsid: u32, slba: u64, blocks: u32) -> Range {
        Range { snsid, ..Range::new(slba, blocks) }
    }

    /// 32 bytes; SNSID only where the format has it.
    pub fn bytes(&self, format: u8) -> [u8; 32] {
        let mut b = [0; 32];
        if format == 2 {
            put32(&mut b, 0, self.snsid);
            put16(&mut b, 22, self.sopt);
        }
        put64(&mut b, 8, self.slba);
        put16(&mut b, 16, (self.blocks - 1) as u16);
        b
    }
}

/// The Copy command without its data pointer.
pub fn copy(nsid: u32, sdlba: u64, ranges: usize, format: u8) -> Sqe {
    assert!((1..=256).contains(&ranges));
    Sqe::new(io::COPY)
        .nsid(nsid)
        .cdw(10, sdlba as u32)
        .cdw(11, (sdlba >> 32) as u32)
        .cdw(12, (ranges as u32 - 1) | u32::from(format) << 8)
}
