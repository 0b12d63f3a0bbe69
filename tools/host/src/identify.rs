//! The fields of Identify data that hosts look at here.

use super::le::{u16_at, u32_at, u64_at};

/// CNS values.
pub mod cns {
    pub const NAMESPACE: u8 = 0;
    pub const CONTROLLER: u8 = 1;
}

/// OACS: Doorbell Buffer Config.
pub const OACS_DOORBELL_BUFFER: u16 = 1 << 8;
/// ONCS: Copy.
pub const ONCS_COPY: u16 = 1 << 8;

/// Identify Controller.
#[derive(Clone, Copy, Debug)]
pub struct CtrlFacts {
    /// Largest transfer in pages, as a power of two; 0: without limit.
    pub mdts: u8,
    pub oacs: u16,
    pub oncs: u16,
}

impl CtrlFacts {
    /// Of 4096 bytes.
    pub fn parse(id: &[u8]) -> CtrlFacts {
        CtrlFacts { mdts: id[77], oacs: u16_at(id, 256), oncs: u16_at(id, 520) }
    }
}

/// Identify Namespace.
#[derive(Clone, Copy, Debug)]
pub struct NsFacts {
    /// Blocks; 0: there is no such namespace.
    pub nsze: u64,
    /// Bytes of a block, as a power of two.
    pub lbads: u8,
    /// Bytes of metadata with each block.
    pub ms: u16,
    pub write_protected: bool,
    pub mssrl: u16,
    pub mcl: u32,
    /// Source ranges of a Copy, 0-based.
    pub msrc: u8,
}

impl NsFacts {
    /// Of 4096 bytes.
    pub fn parse(id: &[u8]) -> NsFacts {
        let lbaf = u32_at(id, 128 + 4 * usize::from(id[26] & 0xf));
        NsFacts {
            nsze: u64_at(id, 0),
            lbads: (lbaf >> 16) as u8,
            ms: lbaf as u16,
            write_protected: id[99] & 1 != 0,
            mssrl: u16_at(id, 74),
            mcl: u32_at(id, 76),
            msrc: id[80],
        }
    }
}
