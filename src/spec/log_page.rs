//! Log pages.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Log page identifiers.
pub mod lid {
    /// Supported Log Pages.
    pub const SUPPORTED: u8 = 0x00;
    /// Error Information.
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information.
    pub const SMART: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE: u8 = 0x03;
    /// Changed Attached Namespace List.
    pub const CHANGED_NS: u8 = 0x04;
    /// Commands Supported and Effects.
    pub const EFFECTS: u8 = 0x05;
    /// Feature Identifiers Supported and Effects.
    pub const FEATURE_EFFECTS: u8 = 0x12;

    /// For people: the name of a log page.
    pub const fn name(lid: u8) -> &'static str {
        match lid {
            SUPPORTED => "Supported Log Pages",
            ERROR => "Error Information",
            SMART => "SMART / Health Information",
            FIRMWARE => "Firmware Slot Information",
            CHANGED_NS => "Changed Attached Namespace List",
            EFFECTS => "Commands Supported and Effects",
            FEATURE_EFFECTS => "Feature Identifiers Supported and Effects",
            _ => "unknown",
        }
    }
}

/// One entry of the Error Information log.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorEntry {
    /// Error Count: starts at 1; 0 is an empty entry.
    pub count: U64,
    /// SQID.
    pub sqid: U16,
    /// CID.
    pub cid: U16,
    /// Status in CQE form: phase tag in bit 0.
    pub status: U16,
    /// Parameter Error Location: byte in 7:0, bit in 10:8; FFFFh where there is none.
    pub location: U16,
    /// First LBA that had the error.
    pub lba: U64,
    /// NSID.
    pub nsid: U32,
    /// Vendor log page.
    pub vendor: u8,
    /// Transport type: 0 for PCIe before it was defined.
    pub trtype: u8,
    /// Command set.
    pub csi: u8,
    /// Opcode.
    pub opc: u8,
    /// Command specific information.
    pub command_specific: U64,
    /// Transport specific information.
    pub transport_specific: U16,
    reserved: [u8; 21],
    /// Log page version.
    pub version: u8,
}

const _: () = assert!(size_of::<ErrorEntry>() == 64);

/// Bits of Critical Warning, which are also those of Async Event Config that ask for their events.
pub mod warning {
    /// Available spare is below its threshold.
    pub const SPARE: u8 = 1;
    /// The temperature is at or beyond one of its thresholds.
    pub const TEMPERATURE: u8 = 1 << 1;
    /// The reliability of the subsystem is degraded.
    pub const RELIABILITY: u8 = 1 << 2;
    /// All media is read-only.
    pub const READ_ONLY: u8 = 1 << 3;
    /// The backup of volatile memory has failed.
    pub const BACKUP: u8 = 1 << 4;
    /// The Persistent Memory Region is read-only or unreliable.
    pub const PMR: u8 = 1 << 5;
}

/// SMART / Health Information.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Smart {
    /// Critical Warning.
    pub critical_warning: u8,
    /// Composite temperature in kelvin.
    pub temperature: U16,
    /// Available spare in percent.
    pub spare: u8,
    /// Available spare threshold in percent.
    pub spare_threshold: u8,
    /// Percentage used.
    pub used: u8,
    /// Endurance group critical warning summary.
    pub eg_summary: u8,
    reserved: [u8; 25],
    /// 1000 x 512 bytes read, rounded up.
    pub data_units_read: U128,
    /// 1000 x 512 bytes written, rounded up.
    pub data_units_written: U128,
    /// Read commands.
    pub host_reads: U128,
    /// Write commands.
    pub host_writes: U128,
    /// Minutes busy.
    pub busy_time: U128,
    /// Power cycles.
    pub power_cycles: U128,
    /// Power on hours.
    pub power_on_hours: U128,
    /// Unsafe shutdowns.
    pub unsafe_shutdowns: U128,
    /// Media errors.
    pub media_errors: U128,
    /// Error Information entries over the life of the controller.
    pub error_entries: U128,
    tail: [u8; 320],
}

const _: () = assert!(size_of::<Smart>() == 512);

impl Default for Smart {
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

/// Effects of a command (Commands Supported and Effects, one dword).
pub mod effect {
    /// CSUPP: supported.
    pub const CSUPP: u32 = 1;
    /// LBCC: may change logical block content.
    pub const LBCC: u32 = 1 << 1;
}
