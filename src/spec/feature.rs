//! Feature identifiers (Set Features, Get Features).

/// Arbitration.
pub const ARBITRATION: u8 = 0x01;
/// Power Management.
pub const POWER_MANAGEMENT: u8 = 0x02;
/// Temperature Threshold.
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
/// Error Recovery, namespace specific.
pub const ERROR_RECOVERY: u8 = 0x05;
/// Volatile Write Cache.
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
/// Number of Queues.
pub const NUMBER_OF_QUEUES: u8 = 0x07;
/// Interrupt Coalescing.
pub const INTERRUPT_COALESCING: u8 = 0x08;
/// Interrupt Vector Configuration.
pub const INTERRUPT_VECTOR: u8 = 0x09;
/// Write Atomicity Normal.
pub const WRITE_ATOMICITY: u8 = 0x0a;
/// Asynchronous Event Configuration.
pub const ASYNC_EVENT: u8 = 0x0b;
/// Timestamp.
pub const TIMESTAMP: u8 = 0x0e;
/// Keep Alive Timer.
pub const KEEP_ALIVE: u8 = 0x0f;
/// Host Behavior Support.
pub const HOST_BEHAVIOR: u8 = 0x16;

/// Bytes of the Host Behavior Support structure.
pub const HOST_BEHAVIOR_SIZE: usize = 512;

/// Get Features SEL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// 0.
    Current,
    /// 1.
    Default,
    /// 2.
    Saved,
    /// 3: DW0 tells saveable (bit 0), namespace specific (1), changeable (2).
    Capabilities,
}

impl Select {
    /// From CDW10 10:8.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Current),
            1 => Some(Self::Default),
            2 => Some(Self::Saved),
            3 => Some(Self::Capabilities),
            _ => None,
        }
    }
}

/// Asynchronous Event Configuration: the notices, besides the SMART warnings in 7:0. The bits are those of
/// Identify Controller OAES too.
pub mod notice {
    /// Attached Namespace Attribute Notices.
    pub const NAMESPACE: u32 = 1 << 8;
}
