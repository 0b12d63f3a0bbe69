//! Controller registers in BAR0 (section "Controller Properties").

/// Register offsets in bytes.
pub mod offset {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: u64 = 0x00;
    /// Version.
    pub const VS: u64 = 0x08;
    /// Interrupt Mask Set.
    pub const INTMS: u64 = 0x0c;
    /// Interrupt Mask Clear.
    pub const INTMC: u64 = 0x10;
    /// Controller Configuration.
    pub const CC: u64 = 0x14;
    /// Controller Status.
    pub const CSTS: u64 = 0x1c;
    /// Admin Queue Attributes.
    pub const AQA: u64 = 0x24;
    /// Admin Submission Queue Base Address, 8 bytes.
    pub const ASQ: u64 = 0x28;
    /// Admin Completion Queue Base Address, 8 bytes.
    pub const ACQ: u64 = 0x30;
    /// Controller Ready Timeouts.
    pub const CRTO: u64 = 0x68;
    /// First doorbell.
    pub const DOORBELLS: u64 = 0x1000;
}

/// Bytes between doorbells (CAP.DSTRD is 0).
pub const DOORBELL_STRIDE: u64 = 4;

/// The version this controller reports: 2.0.0.
pub const VERSION: u32 = 0x0002_0000;

/// Worst-case time of an RDY transition in 500 ms units (CAP.TO and CRTO.CRWMT): 15 s. Never 0: Linux would
/// not wait at all.
pub const READY_TIMEOUT: u8 = 30;

/// CAP of this controller for a Maximum Queue Entries Supported of `mqes` (0-based).
pub const fn cap(mqes: u16) -> u64 {
    const CQR: u64 = 1 << 16;
    const CSS_NVM: u64 = 1 << 37;
    const MPSMAX_64K: u64 = 4 << 52;
    const CRWMS: u64 = 1 << 59;
    mqes as u64 | CQR | (READY_TIMEOUT as u64) << 24 | CSS_NVM | MPSMAX_64K | CRWMS
}

/// CAP.MPSMAX: pages of up to 64 KiB.
pub const MPSMAX: u8 = 4;

/// Controller Configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cc(pub u32);

impl Cc {
    /// CRIME, which is read-only and 0 where CAP.CRMS offers one ready mode only.
    const CRIME: u32 = 1 << 24;

    /// What the register holds after a write of `value`.
    pub const fn written(value: u32) -> Self {
        Self(value & !Self::CRIME)
    }

    /// EN.
    pub const fn en(self) -> bool {
        self.0 & 1 != 0
    }

    /// CSS: 0 selects the NVM command set.
    pub const fn css(self) -> u8 {
        (self.0 >> 4 & 7) as u8
    }

    /// MPS: pages are 2^(12 + MPS) bytes.
    pub const fn mps(self) -> u8 {
        (self.0 >> 7 & 0xf) as u8
    }

    /// AMS: 0 is round robin.
    pub const fn ams(self) -> u8 {
        (self.0 >> 11 & 7) as u8
    }

    /// SHN: 0 none, 1 normal, 2 abrupt.
    pub const fn shn(self) -> u8 {
        (self.0 >> 14 & 3) as u8
    }

    /// IOSQES: log2 of the I/O submission queue entry size.
    pub const fn iosqes(self) -> u8 {
        (self.0 >> 16 & 0xf) as u8
    }

    /// IOCQES: log2 of the I/O completion queue entry size.
    pub const fn iocqes(self) -> u8 {
        (self.0 >> 20 & 0xf) as u8
    }

    /// Bytes of a memory page.
    pub const fn page_size(self) -> u64 {
        4096 << self.mps()
    }
}

/// Controller Status bits.
pub mod csts {
    /// RDY.
    pub const RDY: u32 = 1;
    /// CFS.
    pub const CFS: u32 = 1 << 1;
    /// SHST mask.
    pub const SHST: u32 = 3 << 2;
    /// SHST: shutdown processing occurring.
    pub const SHST_OCCURRING: u32 = 1 << 2;
    /// SHST: shutdown processing complete.
    pub const SHST_COMPLETE: u32 = 2 << 2;
}
