//! Identify data structures.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::IDENTIFY_SIZE;

/// Controller or Namespace Structure values.
pub mod cns {
    /// Identify Namespace, NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Identify Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active Namespace ID list.
    pub const ACTIVE_LIST: u8 = 0x02;
    /// Namespace Identification Descriptor list.
    pub const DESCRIPTORS: u8 = 0x03;
    /// I/O command set specific Identify Namespace.
    pub const CSI_NAMESPACE: u8 = 0x05;
    /// I/O command set specific Identify Controller.
    pub const CSI_CONTROLLER: u8 = 0x06;
    /// Active Namespace ID list of a command set.
    pub const CSI_ACTIVE_LIST: u8 = 0x07;
    /// I/O command set independent Identify Namespace.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
}

/// Optional Admin Command Support (OACS) bits.
pub mod oacs {
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER_CONFIG: u16 = 1 << 8;
}

/// Optional NVM command support (ONCS) bits.
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1;
    /// Dataset Management.
    pub const DSM: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// Save and Select in Set and Get Features.
    pub const SAVE_SELECT: u16 = 1 << 4;
    /// Timestamp.
    pub const TIMESTAMP: u16 = 1 << 6;
    /// Verify.
    pub const VERIFY: u16 = 1 << 7;
    /// Copy.
    pub const COPY: u16 = 1 << 8;
    /// NVMCSA: for atomicity the write part of a Copy is one write command.
    pub const COPY_SINGLE_ATOMICITY: u16 = 1 << 9;
}

/// Namespace Features (NSFEAT) bits.
pub mod nsfeat {
    /// Deallocated or Unwritten Logical Block error supported.
    pub const DAE: u8 = 1 << 2;
    /// NPWG, NPWA, NPDG, NPDA and NOWS are defined.
    pub const OPTPERF: u8 = 1 << 4;
}

/// Identify Controller (CNS 01h).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the specification's field names are the documentation")]
pub struct IdentifyController {
    pub vid: U16,
    pub ssvid: U16,
    /// ASCII, space padded.
    pub sn: [u8; 20],
    pub mn: [u8; 40],
    pub fr: [u8; 8],
    pub rab: u8,
    pub ieee: [u8; 3],
    pub cmic: u8,
    /// 2^n pages of CAP.MPSMIN; 0 is unlimited.
    pub mdts: u8,
    pub cntlid: U16,
    pub ver: U32,
    /// Microseconds.
    pub rtd3r: U32,
    pub rtd3e: U32,
    pub oaes: U32,
    pub ctratt: U32,
    pub rrls: U16,
    pub bpcap: u8,
    reserved103: u8,
    pub nssl: U32,
    reserved108: [u8; 3],
    pub cntrltype: u8,
    pub fguid: [u8; 16],
    pub crdt: [U16; 3],
    reserved134: [u8; 119],
    pub nvmsr: u8,
    pub vwci: u8,
    pub mec: u8,
    pub oacs: U16,
    /// 0-based.
    pub acl: u8,
    /// 0-based.
    pub aerl: u8,
    pub frmw: u8,
    pub lpa: u8,
    /// 0-based.
    pub elpe: u8,
    /// 0-based.
    pub npss: u8,
    pub avscc: u8,
    pub apsta: u8,
    /// Kelvin.
    pub wctemp: U16,
    pub cctemp: U16,
    pub mtfa: U16,
    pub hmpre: U32,
    pub hmmin: U32,
    pub tnvmcap: U128,
    pub unvmcap: U128,
    pub rpmbs: U32,
    pub edstt: U16,
    pub dsto: u8,
    pub fwug: u8,
    /// 100 ms units.
    pub kas: U16,
    reserved322: [u8; 190],
    pub sqes: u8,
    pub cqes: u8,
    pub maxcmd: U16,
    pub nn: U32,
    pub oncs: U16,
    pub fuses: U16,
    pub fna: u8,
    pub vwc: u8,
    /// 0-based blocks.
    pub awun: U16,
    pub awupf: U16,
    pub icsvscc: u8,
    pub nwpc: u8,
    pub acwu: U16,
    pub ocfs: U16,
    pub sgls: U32,
    pub mnan: U32,
    reserved544: [u8; 224],
    /// NUL-terminated UTF-8.
    pub subnqn: [u8; 256],
    reserved1024: [u8; 1024],
    pub psd0: PowerState,
    reserved2080: [u8; 2016],
}

const _: () = {
    assert!(size_of::<IdentifyController>() == IDENTIFY_SIZE);
    assert!(std::mem::offset_of!(IdentifyController, cntrltype) == 111);
    assert!(std::mem::offset_of!(IdentifyController, oacs) == 256);
    assert!(std::mem::offset_of!(IdentifyController, kas) == 320);
    assert!(std::mem::offset_of!(IdentifyController, sqes) == 512);
    assert!(std::mem::offset_of!(IdentifyController, oncs) == 520);
    assert!(std::mem::offset_of!(IdentifyController, ocfs) == 534);
    assert!(std::mem::offset_of!(IdentifyController, subnqn) == 768);
    assert!(std::mem::offset_of!(IdentifyController, psd0) == 2048);
};

/// Power State Descriptor.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the specification's field names are the documentation")]
pub struct PowerState {
    /// Centiwatt.
    pub mp: U16,
    reserved2: u8,
    pub flags: u8,
    /// Microseconds.
    pub enlat: U32,
    pub exlat: U32,
    reserved12: [u8; 20],
}

/// LBA Format.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the specification's field names are the documentation")]
pub struct LbaFormat {
    pub ms: U16,
    /// log2 of bytes.
    pub lbads: u8,
    pub rp: u8,
}

/// Identify Namespace, NVM command set (CNS 00h).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the specification's field names are the documentation")]
pub struct IdentifyNamespace {
    /// Blocks.
    pub nsze: U64,
    pub ncap: U64,
    pub nuse: U64,
    pub nsfeat: u8,
    /// 0-based.
    pub nlbaf: u8,
    pub flbas: u8,
    pub mc: u8,
    pub dpc: u8,
    pub dps: u8,
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    pub dlfeat: u8,
    pub nawun: U16,
    pub nawupf: U16,
    pub nacwu: U16,
    pub nabsn: U16,
    pub nabo: U16,
    pub nabspf: U16,
    pub noiob: U16,
    pub nvmcap: U128,
    /// 0-based blocks, valid with NSFEAT.OPTPERF.
    pub npwg: U16,
    pub npwa: U16,
    pub npdg: U16,
    pub npda: U16,
    pub nows: U16,
    /// 1-based blocks.
    pub mssrl: U16,
    /// 1-based blocks.
    pub mcl: U32,
    /// 0-based.
    pub msrc: u8,
    reserved81: [u8; 11],
    pub anagrpid: U32,
    reserved96: [u8; 3],
    pub nsattr: u8,
    pub nvmsetid: U16,
    pub endgid: U16,
    pub nguid: [u8; 16],
    pub eui64: [u8; 8],
    pub lbaf: [LbaFormat; 64],
    reserved384: [u8; 3712],
}

const _: () = {
    assert!(size_of::<IdentifyNamespace>() == IDENTIFY_SIZE);
    assert!(std::mem::offset_of!(IdentifyNamespace, nvmcap) == 48);
    assert!(std::mem::offset_of!(IdentifyNamespace, npdg) == 68);
    assert!(std::mem::offset_of!(IdentifyNamespace, mssrl) == 74);
    assert!(std::mem::offset_of!(IdentifyNamespace, mcl) == 76);
    assert!(std::mem::offset_of!(IdentifyNamespace, msrc) == 80);
    assert!(std::mem::offset_of!(IdentifyNamespace, nsattr) == 99);
    assert!(std::mem::offset_of!(IdentifyNamespace, nguid) == 104);
    assert!(std::mem::offset_of!(IdentifyNamespace, lbaf) == 128);
};

/// Identify Controller of the NVM command set (CNS 06h, CSI 0).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the specification's field names are the documentation")]
pub struct NvmController {
    /// 2^n pages of CAP.MPSMIN; 0 is unlimited.
    pub vsl: u8,
    pub wzsl: u8,
    pub wusl: u8,
    /// Ranges of one Dataset Management command; 0 is 256.
    pub dmrl: u8,
    /// Blocks of one range.
    pub dmrsl: U32,
    /// Blocks of all ranges.
    pub dmsl: U64,
    reserved16: [u8; 4080],
}

const _: () = assert!(size_of::<NvmController>() == IDENTIFY_SIZE);

/// I/O command set independent Identify Namespace (CNS 08h).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the specification's field names are the documentation")]
pub struct IndependentNamespace {
    pub nsfeat: u8,
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    pub anagrpid: U32,
    pub nsattr: u8,
    reserved9: u8,
    pub nvmsetid: U16,
    pub endgid: U16,
    /// Bit 0: ready.
    pub nstat: u8,
    reserved15: [u8; 4081],
}

const _: () = {
    assert!(size_of::<IndependentNamespace>() == IDENTIFY_SIZE);
    assert!(std::mem::offset_of!(IndependentNamespace, nstat) == 14);
};

/// Namespace Identification Descriptor types.
pub mod nidt {
    /// EUI-64, 8 bytes.
    pub const EUI64: u8 = 1;
    /// NGUID, 16 bytes.
    pub const NGUID: u8 = 2;
    /// UUID, 16 bytes.
    pub const UUID: u8 = 3;
    /// Command Set Identifier, 1 byte.
    pub const CSI: u8 = 4;
}

/// An ASCII field: `text` cut or padded with spaces to the field's width; anything not printable becomes `?`.
pub fn ascii<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = if (0x20..0x7f).contains(&from) { from } else { b'?' };
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_is_space_padded_and_cut() {
        assert_eq!(&ascii::<6>("abc"), b"abc   ");
        assert_eq!(&ascii::<2>("abc"), b"ab");
    }
}
