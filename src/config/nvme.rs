//! `--nvme`: the controller.

use std::ffi::OsStr;
use std::path::Path;

use super::error::ConfigError;
use super::table::{Default as Def, NotOurs, Property, Table};
use super::value::{self, Reject};
use super::{Doorbells, Poll, aio, identity};
use crate::disk::LaneKind;

/// The controller as configured. All values are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeConfig {
    /// Identify SN: 1 to 20 printable ASCII characters, not padded.
    pub serial: String,
    /// Identify MN: 1 to 40 printable ASCII characters, not padded.
    pub model: String,
    /// Identify FR: 1 to 8 printable ASCII characters, not padded.
    pub firmware_version: String,
    /// Identify MDTS: log2 of the largest transfer in units of 4 KiB, 1 to 11 (8 MiB, more than Linux sends).
    pub mdts: u8,
    /// I/O queue pairs, 1 to 511.
    pub max_ioqpairs: u16,
    /// CAP.MQES: entries of the largest queue, 0-based, 1 to 65535.
    pub mqes: u16,
    /// Identify AERL: Asynchronous Event Requests outstanding, 0-based.
    pub aerl: u8,
    /// MSI-X vectors, 1 to 2048.
    pub msix_qsize: u16,
    /// Identify OCFS, Copy descriptor formats offered: bit n is format n, of 0 to 3; bit 0 is set.
    pub ocfs: u16,
    /// Copy descriptor formats that count as enabled whatever the host set: bit n is format n, of 2 to 4.
    pub cdfe: u16,
    /// Identify SUBNQN: UTF-8, 222 bytes at most.
    pub subnqn: String,
    /// PCI vendor id.
    pub vendor_id: u16,
    /// PCI device id.
    pub device_id: u16,
    /// Worker threads, 1 to 16.
    pub iothreads: u16,
    /// The processor of each worker, beginning anew where the list ends; empty: any.
    pub iothread_cpus: Vec<u16>,
    /// Engine of namespaces that name none.
    pub aio: LaneKind,
    /// Doorbell Buffer Config is offered. Without effect where doorbells are mapped.
    pub dbcs: bool,
    /// How doorbells get here.
    pub doorbells: Doorbells,
    /// How workers wait for them.
    pub poll: Poll,
}

/// What `--nvme` said so far; `None` where the default depends on something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NvmeDraft {
    serial: Option<String>,
    model: String,
    firmware_version: String,
    mdts: u8,
    max_ioqpairs: u16,
    mqes: u16,
    aerl: u8,
    msix_qsize: Option<u16>,
    ocfs: u16,
    cdfe: u16,
    subnqn: Option<String>,
    vendor_id: u16,
    device_id: u16,
    iothreads: u16,
    iothread_cpus: Vec<u16>,
    aio: LaneKind,
    dbcs: bool,
    doorbells: Doorbells,
    poll: Poll,
}

/// Identify FR has 8 bytes.
const FIRMWARE_VERSION: &str = {
    let version = env!("CARGO_PKG_VERSION");
    assert!(version.len() <= 8);
    version
};

impl Default for NvmeDraft {
    fn default() -> Self {
        Self {
            serial: None,
            model: "vfio-user-nvme".into(),
            firmware_version: FIRMWARE_VERSION.into(),
            mdts: 7,
            max_ioqpairs: 64,
            // Linux asks for 1024 entries at most; QEMU's 2047 would only cost memory for slots.
            mqes: 1023,
            aerl: 3,
            msix_qsize: None,
            ocfs: 0xf,
            cdfe: 0,
            subnqn: None,
            // Not QEMU's 1b36:0010, for which Linux ignores EUI64, NGUID and UUID. We own no vendor id;
            // 1234 is assigned to nobody who makes NVMe, and no driver has a quirk for the pair.
            vendor_id: 0x1234,
            device_id: 0x4e56,
            iothreads: 1,
            iothread_cpus: Vec::new(),
            aio: LaneKind::Auto,
            dbcs: true,
            doorbells: Doorbells::Trap,
            poll: Poll::Adaptive,
        }
    }
}

impl NvmeDraft {
    /// Fills in what depends on other settings.
    pub(super) fn finish(self, socket: &Path) -> NvmeConfig {
        let serial = self.serial.unwrap_or_else(|| identity::serial(socket));
        NvmeConfig {
            subnqn: self.subnqn.unwrap_or_else(|| identity::subnqn(&serial)),
            serial,
            model: self.model,
            firmware_version: self.firmware_version,
            mdts: self.mdts,
            max_ioqpairs: self.max_ioqpairs,
            mqes: self.mqes,
            aerl: self.aerl,
            // One for each I/O queue pair and one for the admin queue.
            msix_qsize: self.msix_qsize.unwrap_or(self.max_ioqpairs + 1),
            ocfs: self.ocfs,
            cdfe: self.cdfe,
            vendor_id: self.vendor_id,
            device_id: self.device_id,
            iothreads: self.iothreads,
            iothread_cpus: self.iothread_cpus,
            aio: self.aio,
            dbcs: self.dbcs,
            doorbells: self.doorbells,
            poll: self.poll,
        }
    }
}

/// Copy descriptor formats that a host must enable: 2h, 3h and 4h (Host Behavior Support, CDFE).
const CDFE_MASK: u16 = 0b1_1100;

fn cdfe(given: &OsStr) -> Result<u16, Reject> {
    match value::number(given, 0..=u16::MAX) {
        Ok(mask) if mask & !CDFE_MASK == 0 => Ok(mask),
        _ => Err(Reject::new(
            "must be a mask of bits 2 to 4 (formats 2h, 3h, 4h), for example 0x4 for format 2h",
        )),
    }
}

/// Formats 0h to 3h. Without 0h no kernel and no tool could copy at all.
fn ocfs(given: &OsStr) -> Result<u16, Reject> {
    match value::number(given, 0..=0xf) {
        Ok(mask) if mask & 1 != 0 => Ok(mask),
        _ => Err(Reject::new(
            "must be a mask of bits 0 to 3 (formats 0h to 3h) with bit 0 set, for example 0x5",
        )),
    }
}

/// Linux takes up to 222 bytes.
const NQN_MAX: usize = 222;

fn nqn(given: &OsStr) -> Result<String, Reject> {
    let text = value::text(given)?;
    if text.len() > NQN_MAX || !text.starts_with("nqn.") || text.chars().any(char::is_control) {
        return Err(Reject::new(format!("must begin with nqn. and have at most {NQN_MAX} bytes")));
    }
    Ok(text.to_owned())
}

macro_rules! properties {
    ($($name:literal = $values:literal, $default:expr, $example:literal, $help:literal, $set:expr;)*) => {
        &[$(Property {
            name: $name,
            values: $values,
            default: $default,
            example: $example,
            help: $help,
            set: $set,
        }),*]
    };
}
pub(super) use properties;

/// Properties of `--nvme`. Names and meanings are QEMU's; `ocfs`, `cdfe`, `subnqn`, `iothreads`, `iothread-cpus`, `aio`,
/// `doorbells` and `poll` are ours.
pub(super) const TABLE: Table<NvmeDraft> = Table {
    option: "--nvme",
    properties: properties! {
        "serial" = "TEXT", Def::Derived("one made from the socket's path"), "deadbeef",
            "Serial number, up to 20 characters. Namespace ids and NQN follow from it: disks keep their names",
            |d, v| { d.serial = Some(value::identify_text(v, 20)?); Ok(()) };
        "model" = "TEXT", Def::Value("vfio-user-nvme"), "My Drive",
            "Model number, up to 40 characters",
            |d, v| { d.model = value::identify_text(v, 40)?; Ok(()) };
        "firmware-version" = "TEXT", Def::Value(FIRMWARE_VERSION), "2.0",
            "Firmware revision, up to 8 characters",
            |d, v| { d.firmware_version = value::identify_text(v, 8)?; Ok(()) };
        // 8 MiB is the most that Linux sends. More pieces than one vectored call takes (1024) are moved by several.
        "mdts" = "1..11", Def::Value("7"), "5",
            "Largest transfer: 4 KiB times 2 to this power (7: 512 KiB)",
            |d, v| { d.mdts = value::number(v, 1..=11)?; Ok(()) };
        // 511 pairs and the admin pair are the 512 whose doorbells fill one page, which can be mapped.
        "max_ioqpairs" = "1..511", Def::Value("64"), "4",
            "I/O queue pairs; Linux uses one for each CPU",
            |d, v| { d.max_ioqpairs = value::number(v, 1..=511)?; Ok(()) };
        "mqes" = "1..65535", Def::Value("1023"), "2047",
            "Entries of the largest queue, 0-based (1023: 1024 entries)",
            |d, v| { d.mqes = value::number(v, 1..=u16::MAX)?; Ok(()) };
        "aerl" = "0..255", Def::Value("3"), "7",
            "Asynchronous Event Requests outstanding, 0-based",
            |d, v| { d.aerl = value::number(v, 0..=u8::MAX)?; Ok(()) };
        // With 0 no event could ever be reported.
        "msix_qsize" = "1..2048", Def::Derived("max_ioqpairs + 1"), "9",
            "MSI-X vectors",
            |d, v| { d.msix_qsize = Some(value::number(v, 1..=2048)?); Ok(()) };
        "ocfs" = "MASK", Def::Value("0xf"), "0x5",
            "Copy formats offered: 0x1 0h, always; 0x2 1h, 0x4 2h, 0x8 3h, or a sum",
            |d, v| { d.ocfs = ocfs(v)?; Ok(()) };
        "cdfe" = "MASK", Def::Value("0"), "0x4",
            "Copy formats that count as enabled whatever the host sets: 0x4 2h, 0x8 3h, 0x10 4h, or a sum",
            |d, v| { d.cdfe = cdfe(v)?; Ok(()) };
        "subnqn" = "NQN", Def::Derived("one made from the serial"), "nqn.2026-11.org.example:disk1",
            "NVMe Qualified Name of the subsystem, whole",
            |d, v| { d.subnqn = Some(nqn(v)?); Ok(()) };
        "x-pci-vendor-id" = "ID", Def::Value("0x1234"), "0x1b36",
            "PCI vendor id. With 1b36:0010 Linux ignores the namespace ids",
            |d, v| { d.vendor_id = value::pci_id(v)?; Ok(()) };
        "x-pci-device-id" = "ID", Def::Value("0x4e56"), "0x10",
            "PCI device id",
            |d, v| { d.device_id = value::pci_id(v)?; Ok(()) };
        "iothreads" = "1..16", Def::Value("1"), "2",
            "Worker threads; the queues are dealt out among them",
            |d, v| { d.iothreads = value::number(v, 1..=16)?; Ok(()) };
        "iothread-cpus" = "LIST", Def::Derived("any"), "2-3",
            "Processor of each worker, as 2-3 or 0:4:6-7; a list that is too short begins anew",
            |d, v| { d.iothread_cpus = value::processors(v)?; Ok(()) };
        "aio" = "auto|io_uring|threads", Def::Value("auto"), "threads",
            "How files are read and written. auto: io_uring if the kernel allows, else threads",
            |d, v| { d.aio = aio(v)?; Ok(()) };
        "dbcs" = "on|off", Def::Value("on"), "off",
            "Offer shadow doorbells (Doorbell Buffer Config); never with doorbells=mmap",
            |d, v| { d.dbcs = value::switch(v)?; Ok(()) };
        "doorbells" = "trap|mmap", Def::Value("trap"), "mmap",
            "trap: by messages, free when idle. mmap: clients map them (SPDK must), they are polled",
            |d, v| { d.doorbells = Doorbells::parse(v)?; Ok(()) };
        "poll" = "adaptive|always", Def::Value("adaptive"), "always",
            "adaptive: look while it pays, then sleep (mmap: for 4 ms). always: a processor per worker",
            |d, v| { d.poll = Poll::parse(v)?; Ok(()) };
    },
    not_ours: &[
        NotOurs::property("drive", "give it to --nvme-ns"),
        NotOurs::property("nqn", "QEMU prefixes it; write the whole name with subnqn="),
        NotOurs::property("num_queues", "use max_ioqpairs, which leaves out the admin pair"),
        NotOurs::neutral("use-intel-id", "off", "use x-pci-vendor-id and x-pci-device-id"),
        NotOurs::property("subsys", NOT_YET),
        NotOurs::neutral("msix-exclusive-bar", "on", "leave it out: MSI-X always has its own BAR"),
        NotOurs::property("vsl", NOT_YET),
        NotOurs::neutral("cmb_size_mb", "0", NOT_YET),
        NotOurs::neutral("legacy-cmb", "off", NOT_YET),
        NotOurs::property("pmrdev", NOT_YET),
        NotOurs::neutral("ioeventfd", "off", NOT_YET),
        NotOurs::neutral("ctratt.mem", "off", NOT_YET),
        NotOurs::neutral("atomic.dn", "off", NOT_YET),
        NotOurs::neutral("atomic.awun", "0", NOT_YET),
        NotOurs::neutral("atomic.awupf", "0", NOT_YET),
        NotOurs::neutral("ocp", "off", NOT_YET),
        NotOurs::neutral("smart_critical_warning", "0", NOT_YET),
        NotOurs::neutral("zoned.zasl", "0", NOT_YET),
        NotOurs::property("zoned.auto_transition", NOT_YET),
        NotOurs::neutral("sriov_max_vfs", "0", NOT_YET),
        NotOurs::neutral("sriov_vq_flexible", "0", NOT_YET),
        NotOurs::neutral("sriov_vi_flexible", "0", NOT_YET),
        NotOurs::neutral("sriov_max_vi_per_vf", "0", NOT_YET),
        NotOurs::neutral("sriov_max_vq_per_vf", "0", NOT_YET),
        NotOurs::neutral("spdm_port", "0", NOT_YET),
        NotOurs::property("spdm_trans", NOT_YET),
        NotOurs::property("logical_block_size", "give it to --nvme-ns"),
        NotOurs::property("id", THE_VMMS),
        NotOurs::property("bus", THE_VMMS),
        NotOurs::property("addr", THE_VMMS),
        NotOurs::property("bootindex", THE_VMMS),
        NotOurs::neutral("multifunction", "off", THE_VMMS),
        NotOurs::property("romfile", THE_VMMS),
    ],
};

/// Remedy for what may come.
pub(super) const NOT_YET: &str = "leave it out, it is not supported yet";
/// Remedy for what concerns the slot and not the device.
pub(super) const THE_VMMS: &str = "give it to -device vfio-user-pci in QEMU";

/// `--nvme LIST` to a draft.
pub(super) fn parse(list: Option<&OsStr>) -> Result<NvmeDraft, ConfigError> {
    let mut draft = NvmeDraft::default();
    if let Some(list) = list {
        TABLE.apply(&mut draft, list)?;
    }
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(list: &str) -> NvmeConfig {
        parse(Some(list.as_ref())).unwrap().finish(Path::new("/run/s"))
    }

    fn error(list: &str) -> String {
        parse(Some(list.as_ref())).unwrap_err().to_string()
    }

    #[test]
    fn table_and_code_agree() {
        TABLE.check(NvmeDraft::default);
    }

    #[test]
    fn defaults() {
        let c = parse(None).unwrap().finish(Path::new("/run/s"));
        assert_eq!(c, config(""));
        assert_eq!((c.mdts, c.max_ioqpairs, c.mqes), (7, 64, 1023));
        assert_eq!((c.msix_qsize, c.aerl), (65, 3));
        assert_eq!(c.serial, identity::serial(Path::new("/run/s")));
        assert_eq!(c.subnqn, identity::subnqn(&c.serial));
        assert_eq!((c.ocfs, c.cdfe), (0xf, 0));
    }

    #[test]
    fn given_values() {
        let c = config(
            "serial=a,,b,model=M 1,firmware-version=9,mdts=5,max_ioqpairs=511,mqes=1,aerl=0,\
             ocfs=5,cdfe=28,subnqn=nqn.2026-11.org.example:x,x-pci-vendor-id=0x1b36,\
             x-pci-device-id=0x11,iothreads=16,iothread-cpus=1:4-5,aio=io_uring,dbcs=off,doorbells=mmap,poll=always",
        );
        assert_eq!(
            c,
            NvmeConfig {
                serial: "a,b".into(),
                model: "M 1".into(),
                firmware_version: "9".into(),
                mdts: 5,
                max_ioqpairs: 511,
                mqes: 1,
                aerl: 0,
                msix_qsize: 512,
                ocfs: 5,
                cdfe: 0x1c,
                subnqn: "nqn.2026-11.org.example:x".into(),
                vendor_id: 0x1b36,
                device_id: 0x11,
                iothreads: 16,
                iothread_cpus: vec![1, 4, 5],
                aio: LaneKind::IoUring,
                dbcs: false,
                doorbells: Doorbells::Mmap,
                poll: Poll::Always,
            }
        );
        assert_eq!(config("max_ioqpairs=4,msix_qsize=2048").msix_qsize, 2048);
        assert_eq!(config("serial=S").subnqn, identity::subnqn("S"));
    }

    #[test]
    fn messages() {
        for (list, message) in [
            ("mdts=0", "--nvme mdts=0: must be 1 to 11; leave it out for 7"),
            ("mdts=12", "--nvme mdts=12: must be 1 to 11; leave it out for 7"),
            ("mqes=0", "--nvme mqes=0: must be 1 to 65535; leave it out for 1023"),
            ("max_ioqpairs=512", "--nvme max_ioqpairs=512: must be 1 to 511; leave it out for 64"),
            (
                "msix_qsize=2049",
                "--nvme msix_qsize=2049: must be 1 to 2048; leave it out for max_ioqpairs + 1",
            ),
            ("iothreads=17", "--nvme iothreads=17: must be 1 to 16; leave it out for 1"),
            (
                "iothread-cpus=3-1",
                "--nvme iothread-cpus=3-1: must be processors 0 to 1023 and ranges of them with colons between, for example 0:2-3; leave it out for any",
            ),
            ("aerl=256", "--nvme aerl=256: must be 0 to 255; leave it out for 3"),
            (
                "ocfs=0x4",
                "--nvme ocfs=0x4: must be a mask of bits 0 to 3 (formats 0h to 3h) with bit 0 set, for example 0x5; leave it out for 0xf",
            ),
            (
                "ocfs=0x11",
                "--nvme ocfs=0x11: must be a mask of bits 0 to 3 (formats 0h to 3h) with bit 0 set, for example 0x5; leave it out for 0xf",
            ),
            (
                "cdfe=0x3",
                "--nvme cdfe=0x3: must be a mask of bits 2 to 4 (formats 2h, 3h, 4h), for example 0x4 for format 2h; leave it out for 0",
            ),
            (
                "serial=123456789012345678901",
                "--nvme serial=123456789012345678901: must be 1 to 20 printable ASCII characters with no space at either end; leave it out for one made from the socket's path",
            ),
            (
                "subnqn=x",
                "--nvme subnqn=x: must begin with nqn. and have at most 222 bytes; leave it out for one made from the serial",
            ),
            (
                "x-pci-vendor-id=0xffff",
                "--nvme x-pci-vendor-id=0xffff: must be 0x1 to 0xfffe, written with 0x; leave it out for 0x1234",
            ),
            ("aio=native", "--nvme aio=native: must be auto, io_uring or threads; leave it out for auto"),
            ("doorbells=shadow", "--nvme doorbells=shadow: must be trap or mmap; leave it out for trap"),
            ("poll=on", "--nvme poll=on: must be adaptive or always; leave it out for adaptive"),
            ("drive=a.img", "--nvme drive: QEMU's property, not one of this device; give it to --nvme-ns"),
            (
                "addr=3",
                "--nvme addr: QEMU's property, not one of this device; give it to -device vfio-user-pci in QEMU",
            ),
            (
                "ocp=on",
                "--nvme ocp: QEMU's property, not one of this device; leave it out, it is not supported yet",
            ),
            ("mdts", "--nvme mdts: has no value; write mdts=5"),
            ("mdts=7,mdts=8", "--nvme mdts=8: given a second time in one list; keep one of them"),
            ("=7", "--nvme =7: has no property name; write name=value, and a comma inside a value twice"),
            (",", "--nvme ,: has no property name; write name=value, and a comma inside a value twice"),
        ] {
            assert_eq!(error(list), message);
        }
    }

    #[test]
    fn an_unknown_name_gets_the_nearest_and_all() {
        let message = error("max-ioqpair=3");
        assert!(
            message.starts_with(
                "--nvme max-ioqpair: unknown property, did you mean max_ioqpairs?; valid: serial, model, "
            ),
            "{message}"
        );
        assert!(message.ends_with(", iothreads, iothread-cpus, aio, dbcs, doorbells, poll"), "{message}");
        assert!(error("colour=red").starts_with("--nvme colour: unknown property; valid: "));
    }
}
