//! `--nvme-ns`: one namespace and its image.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use uuid::Uuid;

use super::error::ConfigError;
use super::nvme::{NOT_YET, NvmeConfig, THE_VMMS, properties};
use super::table::{Default as Def, NotOurs, Property, Table};
use super::value::{self, Reject};
use super::{aio, identity};
use crate::disk::{CacheMode, HugePages, LaneKind};
use crate::namespace::{CopyPolicy, Method, Overlap};

/// Largest nsid and most namespaces, as in QEMU.
pub const NSID_MAX: u32 = 256;

/// Where the bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drive {
    /// Memory of this process, gone when it ends.
    Memory {
        /// Bytes; a multiple of the block size.
        size: u64,
    },
    /// A regular file or block device.
    File {
        /// As given.
        path: PathBuf,
        /// Bytes; a multiple of the block size. An image that is absent is created with this size, one that
        /// exists must have it. `None`: the image must exist.
        size: Option<u64>,
    },
}

/// A namespace as configured. All values are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NsConfig {
    /// The image.
    pub drive: Drive,
    /// 1 to [`NSID_MAX`], unique.
    pub nsid: u32,
    /// Bytes of a block: 512 or 4096.
    pub logical_block_size: u32,
    /// Identify MSSRL: blocks of one Copy source range, 1 to 65535, not 0-based.
    pub mssrl: u16,
    /// Identify MCL: blocks of one Copy, 1 or more, not 0-based.
    pub mcl: u32,
    /// Identify MSRC: source ranges of one Copy, 0-based, 0 to 255.
    pub msrc: u8,
    /// How Copies to it are done.
    pub copy: CopyPolicy,
    /// Namespace UUID, not nil.
    pub uuid: Uuid,
    /// Identify NGUID, most significant byte first; all zeroes: not reported.
    pub nguid: [u8; 16],
    /// Identify EUI64, most significant byte first; all zeroes: not reported.
    pub eui64: [u8; 8],
    /// The guest may not write and the image is opened for reading.
    pub readonly: bool,
    /// The image is locked against other processes.
    pub locking: bool,
    /// The engine for this image.
    pub aio: LaneKind,
    /// What pages memory may lie on; nothing to a file.
    pub hugepages: HugePages,
    /// How the image is cached; of no meaning for memory.
    pub cache: CacheMode,
    /// Deallocated blocks are given back; of no meaning for memory, which always does.
    pub discard: bool,
    /// The image is served as it is even if it looks like another format than raw; of no meaning for memory.
    pub raw: bool,
    /// A checksum of each block is kept of what the commands imply.
    pub oracle: bool,
}

/// What one `--nvme-ns` said so far; `None` where the default depends on something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NsDraft {
    drive: Option<OsString>,
    size: Option<u64>,
    /// `None`: the next free one.
    pub(super) nsid: Option<u32>,
    logical_block_size: u32,
    mssrl: u16,
    mcl: u32,
    msrc: u8,
    copy: CopyPolicy,
    uuid: Option<Uuid>,
    nguid: Option<[u8; 16]>,
    eui64: Option<[u8; 8]>,
    readonly: bool,
    locking: bool,
    aio: Option<LaneKind>,
    hugepages: Option<HugePages>,
    cache: CacheMode,
    discard: bool,
    raw: bool,
    oracle: bool,
}

impl Default for NsDraft {
    fn default() -> Self {
        Self {
            drive: None,
            size: None,
            nsid: None,
            logical_block_size: 512,
            // Not QEMU's 128/128/127: the kernel's copy offload as posted wants MSSRL to divide MCL,
            // MCL in bytes below 4 GiB and at most 127 ranges; within that, these are large.
            mssrl: 32768,
            mcl: 131_072,
            msrc: 126,
            copy: CopyPolicy::default(),
            uuid: None,
            nguid: None,
            eui64: None,
            readonly: false,
            locking: true,
            aio: None,
            hugepages: None,
            cache: CacheMode::default(),
            // Not QEMU's ignore: images are created sparse here, and what a guest gives back is to be given back.
            discard: true,
            raw: false,
            oracle: false,
        }
    }
}

impl NsDraft {
    /// The namespace there is when no `--nvme-ns` is given.
    pub(super) fn memory_1g() -> Self {
        Self { drive: Some("memory".into()), size: Some(1 << 30), ..Self::default() }
    }

    /// Fills in what depends on other settings and checks what depends on two.
    pub(super) fn finish(self, nsid: u32, nvme: &NvmeConfig) -> Result<NsConfig, ConfigError> {
        if let Some(size) = self.size
            && !size.is_multiple_of(u64::from(self.logical_block_size))
        {
            let block = u64::from(self.logical_block_size);
            let up = size.next_multiple_of(block);
            return Err(TABLE.refuse(
                "size",
                size.to_string(),
                Reject::with(
                    format!("is no multiple of logical_block_size {block}"),
                    format!("write size={up}"),
                ),
            ));
        }
        let drive = match (self.drive, self.size) {
            (None, _) => {
                return Err(ConfigError::Missing {
                    option: TABLE.option,
                    property: "drive",
                    example: "disk.img or drive=memory",
                });
            }
            (Some(d), Some(size)) if d == "memory" => Drive::Memory { size },
            (Some(d), None) if d == "memory" => {
                return Err(TABLE.refuse(
                    "drive",
                    d,
                    Reject::with("needs a size", "add size=1G (a file of that name: ./memory)"),
                ));
            }
            (Some(path), size) => Drive::File { path: path.into(), size },
        };
        if let (Drive::File { .. }, Some(given)) = (&drive, self.hugepages) {
            let given = if given == HugePages::Auto { "auto" } else { "off" };
            let reject =
                Reject::with("is for drive=memory: the kernel keeps the pages of files", "leave it out");
            return Err(TABLE.refuse("hugepages", given, reject));
        }
        if let Drive::Memory { .. } = drive {
            let of_files = |name, value: &str| {
                let reason = "is for files and devices, not for drive=memory";
                Err(TABLE.refuse(name, value, Reject::with(reason, "leave it out")))
            };
            if self.cache != CacheMode::default() {
                return of_files("cache", self.cache.word());
            }
            if !self.discard {
                return of_files("discard", "ignore");
            }
            if self.raw {
                return of_files("format", "raw");
            }
        }
        let serial = &nvme.serial;
        Ok(NsConfig {
            drive,
            nsid,
            logical_block_size: self.logical_block_size,
            mssrl: self.mssrl,
            mcl: self.mcl,
            msrc: self.msrc,
            copy: self.copy,
            uuid: self.uuid.unwrap_or_else(|| identity::uuid(serial, nsid)),
            nguid: self.nguid.unwrap_or_else(|| identity::nguid(serial, nsid)),
            eui64: self.eui64.unwrap_or_else(|| identity::eui64(serial, nsid)),
            readonly: self.readonly,
            locking: self.locking,
            aio: self.aio.unwrap_or(nvme.aio),
            hugepages: self.hugepages.unwrap_or_default(),
            cache: self.cache,
            discard: self.discard,
            raw: self.raw,
            oracle: self.oracle,
        })
    }
}

impl NsConfig {
    /// What works, but not with every host: for the log, one line each.
    pub(super) fn notes(&self) -> Vec<String> {
        let (nsid, mssrl, mcl, msrc) = (self.nsid, self.mssrl, self.mcl, self.msrc);
        let mut notes = Vec::new();
        if u64::from(mcl) * u64::from(self.logical_block_size) >= 1 << 32 {
            notes.push(format!(
                "namespace {nsid}: mcl={mcl} is 4 GiB or more; Linux copy offload as posted counts bytes in 32 bits"
            ));
        }
        if msrc > 126 {
            notes.push(format!(
                "namespace {nsid}: msrc={msrc} allows more than 127 ranges; Linux copy offload as posted fails with them"
            ));
        }
        if msrc == 0 {
            notes.push(format!(
                "namespace {nsid}: msrc=0 is one range; nvme-cli's copy test takes it for no Copy at all"
            ));
        }
        if self.cache.is_unsafe() {
            notes.push(format!(
                "namespace {nsid}: cache=unsafe: Flush and FUA do nothing; what the guest wrote may be lost with the host"
            ));
        }
        if !mcl.is_multiple_of(u32::from(mssrl)) {
            notes.push(format!(
                "namespace {nsid}: mssrl={mssrl} does not divide mcl={mcl}; Linux copy offload as posted splits such copies wrongly"
            ));
        }
        notes
    }
}

fn logical_block_size(given: &OsStr) -> Result<u32, Reject> {
    match value::size(given) {
        Ok(512) => Ok(512),
        Ok(4096) => Ok(4096),
        _ => Err(Reject::new("must be 512 or 4096")),
    }
}

fn overlap(given: &OsStr) -> Result<Overlap, Reject> {
    let known = given.to_str().and_then(Overlap::of);
    known.ok_or_else(|| Reject::new("must be snapshot, reject or in-order"))
}

fn method(given: &OsStr) -> Result<Method, Reject> {
    let known = given.to_str().and_then(Method::of);
    known.ok_or_else(|| Reject::new("must be auto, reflink, offload or bounce"))
}

fn huge_pages(given: &OsStr) -> Result<HugePages, Reject> {
    match given.to_str() {
        Some("auto") => Ok(HugePages::Auto),
        Some("off") => Ok(HugePages::Off),
        _ => Err(Reject::new("must be auto or off")),
    }
}

fn cache(given: &OsStr) -> Result<CacheMode, Reject> {
    let mode = CacheMode::ALL.iter().find(|(word, _)| given == *word);
    mode.map(|(_, mode)| *mode)
        .ok_or_else(|| Reject::new("must be writeback, none, writethrough, directsync or unsafe"))
}

fn discard(given: &OsStr) -> Result<bool, Reject> {
    match given.to_str() {
        Some("unmap") => Ok(true),
        Some("ignore") => Ok(false),
        _ => Err(Reject::new("must be unmap or ignore")),
    }
}

fn format(given: &OsStr) -> Result<(), Reject> {
    match given.to_str() {
        Some("raw") => Ok(()),
        _ => Err(Reject::with(
            "must be raw: other formats are not served",
            "convert the image (qemu-img convert -O raw)",
        )),
    }
}

/// `auto` or an id.
fn or_auto<T>(given: &OsStr, parse: impl Fn(&OsStr) -> Option<T>, shape: &str) -> Result<Option<T>, Reject> {
    if given == "auto" {
        return Ok(None);
    }
    parse(given).map(Some).ok_or_else(|| Reject::new(format!("must be {shape}, or auto")))
}

fn uuid(given: &OsStr) -> Option<Uuid> {
    Uuid::try_parse(given.to_str()?).ok().filter(|u| !u.is_nil())
}

/// Properties of `--nvme-ns`. Names and meanings are QEMU's; `size`, `readonly`, `locking` and `aio` belong
/// to QEMU's block layer there.
pub(super) const TABLE: Table<NsDraft> = Table {
    option: "--nvme-ns",
    properties: properties! {
        "drive" = "PATH|memory", Def::Required, "disk.img",
            "Image: a raw file or block device, or memory for RAM (a file of that name: ./memory)",
            |d, v| {
                if v.is_empty() {
                    return Err(Reject::new("must be a path or memory"));
                }
                d.drive = Some(v.to_owned());
                Ok(())
            };
        "size" = "SIZE", Def::Derived("the size of the image"), "1G",
            "Bytes, or with K, M, G, T (powers of 1024). Creates an absent image; never resizes; memory needs it",
            |d, v| { d.size = Some(value::size(v)?); Ok(()) };
        "nsid" = "0..256", Def::Value("0"), "3",
            "Namespace id; 0: the lowest that no --nvme-ns names",
            |d, v| {
                d.nsid = Some(value::number(v, 0..=NSID_MAX)?).filter(|&n| n != 0);
                Ok(())
            };
        "logical_block_size" = "512|4096", Def::Value("512"), "4096",
            "Bytes of a block",
            |d, v| { d.logical_block_size = logical_block_size(v)?; Ok(()) };
        "mssrl" = "1..65535", Def::Value("32768"), "128",
            "Copy: most blocks in one source range",
            |d, v| { d.mssrl = value::number(v, 1..=u16::MAX)?; Ok(()) };
        "mcl" = "1..4294967295", Def::Value("131072"), "1024",
            "Copy: most blocks in one command",
            |d, v| { d.mcl = value::number(v, 1..=u32::MAX)?; Ok(()) };
        "msrc" = "0..255", Def::Value("126"), "127",
            "Copy: most source ranges in one command, 0-based (126: 127 ranges)",
            |d, v| { d.msrc = value::number(v, 0..=u8::MAX)?; Ok(()) };
        "copy_overlap" = "snapshot|reject|in-order", Def::Value("snapshot"), "reject",
            "Copy onto its own sources, formats 0h and 1h: read all first, refuse, or range after range",
            |d, v| { d.copy.overlap = overlap(v)?; Ok(()) };
        "copy_method" = "auto|reflink|offload|bounce", Def::Value("auto"), "bounce",
            "Copy to here: share blocks, copy_file_range, or read and write; what fails falls to the next",
            |d, v| { d.copy.method = method(v)?; Ok(()) };
        "uuid" = "UUID", Def::Value("auto"), "7d444840-9dc0-11d1-b245-5ffdce74fad2",
            "Namespace UUID. auto: made from serial and nsid, the same at every start",
            |d, v| { d.uuid = or_auto(v, uuid, "a UUID that is not nil")?; Ok(()) };
        "nguid" = "HEX", Def::Value("auto"), "00112233445566778899aabbccddeeff",
            "Globally unique id, 32 hexadecimal digits; all zeroes: none. auto: as for uuid",
            |d, v| { d.nguid = or_auto(v, value::hex_bytes, "32 hexadecimal digits")?; Ok(()) };
        "eui64" = "HEX", Def::Value("auto"), "5254000000000001",
            "Extended unique id, 16 hexadecimal digits; all zeroes or 0: none. auto: as for uuid",
            |d, v| {
                let eui64 = |v: &OsStr| if v == "0" { Some([0; 8]) } else { value::hex_bytes(v) };
                d.eui64 = or_auto(v, eui64, "16 hexadecimal digits")?;
                Ok(())
            };
        "readonly" = "on|off", Def::Value("off"), "on",
            "The image is opened for reading only and the guest cannot write (memory stays all zero)",
            |d, v| { d.readonly = value::switch(v)?; Ok(()) };
        "oracle" = "on|off", Def::Value("off"), "on",
            "Keep a checksum of each block, 16 bytes for one, and name the first block that differs",
            |d, v| { d.oracle = value::switch(v)?; Ok(()) };
        "locking" = "on|off", Def::Value("on"), "off",
            "Lock the image against other processes, as QEMU does; off: two may destroy it together",
            |d, v| { d.locking = value::switch(v)?; Ok(()) };
        "aio" = "auto|io_uring|threads", Def::Derived("that of --nvme"), "threads",
            "How this image is read and written",
            |d, v| { d.aio = Some(aio(v)?); Ok(()) };
        "hugepages" = "auto|off", Def::Derived("auto"), "off",
            "Memory: huge pages for each 2 MiB of which an eighth was written, or none",
            |d, v| { d.hugepages = Some(huge_pages(v)?); Ok(()) };
        "cache" = "writeback|none|writethrough|directsync|unsafe", Def::Value("writeback"), "none",
            "As in QEMU. none: O_DIRECT; writethrough: every write durable; directsync: both; unsafe: no flushes",
            |d, v| { d.cache = cache(v)?; Ok(()) };
        "discard" = "unmap|ignore", Def::Value("unmap"), "ignore",
            "What becomes of deallocated blocks: given back to the file system, or kept as they are",
            |d, v| { d.discard = discard(v)?; Ok(()) };
        "format" = "raw", Def::Derived("raw, and refused if it looks like another format"), "raw",
            "Serve the image's bytes as they are, whatever they look like",
            |d, v| { format(v)?; d.raw = true; Ok(()) };
    },
    not_ours: &[
        NotOurs::neutral("eui64-default", "on", "leave it out: an eui64 is made unless eui64=0"),
        NotOurs::property("bus", "leave it out: there is one controller"),
        NotOurs::property("id", "leave it out"),
        NotOurs::property("bootindex", THE_VMMS),
        NotOurs::property("file.locking", "use locking="),
        NotOurs::neutral("shared", "off", NOT_YET),
        NotOurs::neutral("detached", "off", NOT_YET),
        NotOurs::neutral("ms", "0", NOT_YET),
        NotOurs::neutral("mset", "0", NOT_YET),
        NotOurs::neutral("pi", "0", NOT_YET),
        NotOurs::neutral("pil", "0", NOT_YET),
        NotOurs::neutral("pif", "0", NOT_YET),
        NotOurs::neutral("physical_block_size", "512", NOT_YET),
        NotOurs::neutral("min_io_size", "0", NOT_YET),
        NotOurs::neutral("opt_io_size", "0", NOT_YET),
        NotOurs::property("discard_granularity", NOT_YET),
        NotOurs::neutral("write-cache", "auto", NOT_YET),
        NotOurs::neutral("share-rw", "off", NOT_YET),
        NotOurs::neutral("atomic.nawun", "0", NOT_YET),
        NotOurs::neutral("atomic.nawupf", "0", NOT_YET),
        NotOurs::neutral("atomic.nabsn", "0", NOT_YET),
        NotOurs::neutral("atomic.nabspf", "0", NOT_YET),
        NotOurs::neutral("atomic.nabo", "0", NOT_YET),
        NotOurs::neutral("zoned", "off", NOT_YET),
        NotOurs::property("zoned.zone_size", NOT_YET),
        NotOurs::property("zoned.zone_capacity", NOT_YET),
        NotOurs::neutral("zoned.max_active", "0", NOT_YET),
        NotOurs::neutral("zoned.max_open", "0", NOT_YET),
        NotOurs::neutral("zoned.cross_read", "off", NOT_YET),
        NotOurs::neutral("zoned.descr_ext_size", "0", NOT_YET),
        NotOurs::neutral("zoned.numzrwa", "0", NOT_YET),
        NotOurs::neutral("zoned.zrwas", "0", NOT_YET),
        NotOurs::neutral("zoned.zrwafg", "0", NOT_YET),
        NotOurs::property("fdp.ruhs", NOT_YET),
        NotOurs::drive("file", None, "write drive=PATH"),
        NotOurs::drive("if", Some("none"), "leave it out"),
        NotOurs::drive("index", None, "leave it out"),
        NotOurs::drive("media", Some("disk"), "leave it out"),
        NotOurs::drive("snapshot", Some("off"), NOT_YET),
        NotOurs::drive("copy-on-read", Some("off"), NOT_YET),
        NotOurs::drive("detect-zeroes", Some("off"), NOT_YET),
        NotOurs::drive("werror", Some("report"), "leave it out: errors are always the guest's"),
        NotOurs::drive("rerror", Some("report"), "leave it out: errors are always the guest's"),
        NotOurs::drive("throttling.bps-total", None, NOT_YET),
        NotOurs::drive("throttling.iops-total", None, NOT_YET),
    ],
};

/// One `--nvme-ns LIST` to a draft.
pub(super) fn parse(list: &OsStr) -> Result<NsDraft, ConfigError> {
    let mut draft = NsDraft::default();
    TABLE.apply(&mut draft, list)?;
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::Path;

    use super::*;

    fn controller() -> NvmeConfig {
        super::super::nvme::parse(Some("serial=S,aio=threads".as_ref())).unwrap().finish(Path::new("/run/s"))
    }

    fn try_config(list: &OsStr) -> Result<NsConfig, ConfigError> {
        parse(list)?.finish(1, &controller())
    }

    fn config(list: &str) -> NsConfig {
        try_config(list.as_ref()).unwrap()
    }

    fn error(list: &str) -> String {
        try_config(list.as_ref()).unwrap_err().to_string()
    }

    #[test]
    fn table_and_code_agree() {
        TABLE.check(NsDraft::default);
    }

    #[test]
    fn defaults() {
        assert_eq!(
            config("drive=a.img"),
            NsConfig {
                drive: Drive::File { path: "a.img".into(), size: None },
                nsid: 1,
                logical_block_size: 512,
                mssrl: 32768,
                mcl: 131_072,
                msrc: 126,
                copy: CopyPolicy::default(),
                uuid: identity::uuid("S", 1),
                nguid: identity::nguid("S", 1),
                eui64: identity::eui64("S", 1),
                readonly: false,
                locking: true,
                aio: LaneKind::Threads,
                hugepages: HugePages::Auto,
                cache: CacheMode::Writeback,
                discard: true,
                raw: false,
                oracle: false,
            }
        );
        assert_eq!(config("drive=a.img").notes(), Vec::<String>::new());
        assert_eq!(config("drive=a.img,logical_block_size=4k").notes().len(), 0);
    }

    #[test]
    fn given_values() {
        let uuid = "7d444840-9dc0-11d1-b245-5ffdce74fad2";
        assert_eq!(
            config(&format!(
                "drive=a.img,cache=directsync,discard=ignore,format=raw,size=4K,logical_block_size=4096,mssrl=65535,mcl=4294967295,msrc=255,uuid={uuid},\
                 copy_overlap=in-order,copy_method=offload,\
                 nguid=00112233-4455-6677-8899-aabbccddeeff,eui64=0,readonly=on,locking=off,aio=io_uring"
            )),
            NsConfig {
                drive: Drive::File { path: "a.img".into(), size: Some(4096) },
                nsid: 1,
                logical_block_size: 4096,
                mssrl: 65535,
                mcl: u32::MAX,
                msrc: 255,
                copy: CopyPolicy { overlap: Overlap::InOrder, method: Method::Offload },
                uuid: Uuid::parse_str(uuid).unwrap(),
                nguid: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeffu128.to_be_bytes(),
                eui64: [0; 8],
                readonly: true,
                locking: false,
                aio: LaneKind::IoUring,
                hugepages: HugePages::Auto,
                cache: CacheMode::Directsync,
                discard: false,
                raw: true,
                oracle: false,
            }
        );
        assert_eq!(config("drive=memory,size=4K").drive, Drive::Memory { size: 4096 });
        assert_eq!(config("drive=memory,size=4K,hugepages=off").hugepages, HugePages::Off);
        assert_eq!(config("drive=a,cache=unsafe").notes().len(), 1);
        assert_eq!(config("drive=a,eui64=5254000000000001").eui64[0], 0x52);
        assert_eq!(
            config("drive=a,,b.img,size=1.5K").drive,
            Drive::File { path: "a,b.img".into(), size: Some(1536) }
        );
    }

    #[test]
    fn a_path_need_not_be_utf8() {
        let list = OsString::from_vec(b"drive=/\xff.img,size=512".to_vec());
        match try_config(&list).unwrap().drive {
            Drive::File { path, .. } => assert_eq!(path.as_os_str().as_bytes(), b"/\xff.img"),
            other => panic!("{other:?}"),
        }
        let list = OsString::from_vec(b"drive=a,size=\xff".to_vec());
        assert_eq!(
            try_config(&list).unwrap_err().to_string(),
            "--nvme-ns size=\u{fffd}: must be UTF-8 text; leave it out for the size of the image"
        );
    }

    #[test]
    fn messages() {
        for (list, message) in [
            ("drive=a,mssrl=0", "--nvme-ns mssrl=0: must be 1 to 65535; leave it out for 32768"),
            ("drive=a,mssrl=65536", "--nvme-ns mssrl=65536: must be 1 to 65535; leave it out for 32768"),
            ("drive=a,mcl=0", "--nvme-ns mcl=0: must be 1 to 4294967295; leave it out for 131072"),
            ("drive=a,msrc=256", "--nvme-ns msrc=256: must be 0 to 255; leave it out for 126"),
            (
                "drive=a,logical_block_size=1024",
                "--nvme-ns logical_block_size=1024: must be 512 or 4096; leave it out for 512",
            ),
            (
                "drive=a,copy_overlap=in_order",
                "--nvme-ns copy_overlap=in_order: must be snapshot, reject or in-order; leave it out for snapshot",
            ),
            (
                "drive=a,copy_method=clone",
                "--nvme-ns copy_method=clone: must be auto, reflink, offload or bounce; leave it out for auto",
            ),
            ("drive=a,nsid=257", "--nvme-ns nsid=257: must be 0 to 256; leave it out for 0"),
            (
                "drive=a,uuid=00000000-0000-0000-0000-000000000000",
                "--nvme-ns uuid=00000000-0000-0000-0000-000000000000: must be a UUID that is not nil, or auto; leave it out for auto",
            ),
            (
                "drive=a,nguid=12",
                "--nvme-ns nguid=12: must be 32 hexadecimal digits, or auto; leave it out for auto",
            ),
            (
                "drive=a,eui64=1",
                "--nvme-ns eui64=1: must be 16 hexadecimal digits, or auto; leave it out for auto",
            ),
            ("drive=a,readonly=1", "--nvme-ns readonly=1: must be on or off; leave it out for off"),
            ("drive=a,locking=auto", "--nvme-ns locking=auto: must be on or off; leave it out for on"),
            (
                "drive=a,aio=native",
                "--nvme-ns aio=native: must be auto, io_uring or threads; leave it out for that of --nvme",
            ),
            (
                "drive=memory,size=1G,hugepages=on",
                "--nvme-ns hugepages=on: must be auto or off; leave it out for auto",
            ),
            (
                "drive=a,hugepages=off",
                "--nvme-ns hugepages=off: is for drive=memory: the kernel keeps the pages of files; leave it out",
            ),
            (
                "drive=a,cache=on",
                "--nvme-ns cache=on: must be writeback, none, writethrough, directsync or unsafe; leave it out for writeback",
            ),
            (
                "drive=a,format=qcow2",
                "--nvme-ns format=qcow2: must be raw: other formats are not served; convert the image (qemu-img convert -O raw)",
            ),
            (
                "drive=memory,size=1M,format=raw",
                "--nvme-ns format=raw: is for files and devices, not for drive=memory; leave it out",
            ),
            ("drive=a,discard=on", "--nvme-ns discard=on: must be unmap or ignore; leave it out for unmap"),
            (
                "drive=memory,size=1M,cache=none",
                "--nvme-ns cache=none: is for files and devices, not for drive=memory; leave it out",
            ),
            ("size=1G", "--nvme-ns drive: missing; add drive=disk.img or drive=memory"),
            ("drive=", "--nvme-ns drive=(empty): must be a path or memory; for example drive=disk.img"),
            (
                "drive=memory",
                "--nvme-ns drive=memory: needs a size; add size=1G (a file of that name: ./memory)",
            ),
            (
                "drive=memory,size=1GB",
                "--nvme-ns size=1GB: is ambiguous between 1000 and 1024; write bytes or a number with K, M, G or T (powers of 1024), for example 1G",
            ),
            (
                "drive=a,size=1000",
                "--nvme-ns size=1000: is no multiple of logical_block_size 512; write size=1024",
            ),
            (
                "drive=a,size=4608,logical_block_size=4096",
                "--nvme-ns size=4608: is no multiple of logical_block_size 4096; write size=8192",
            ),
            (
                "drive=a,pi=1",
                "--nvme-ns pi: QEMU's property, not one of this device; leave it out, it is not supported yet",
            ),
            (
                "disk.img",
                "--nvme-ns disk.img: unknown property; valid: drive, size, nsid, logical_block_size, mssrl, mcl, msrc, copy_overlap, copy_method, uuid, nguid, eui64, readonly, oracle, locking, aio, hugepages, cache, discard, format",
            ),
            (
                "read-only=on",
                "--nvme-ns read-only: unknown property, did you mean readonly?; valid: drive, size, nsid, logical_block_size, mssrl, mcl, msrc, copy_overlap, copy_method, uuid, nguid, eui64, readonly, oracle, locking, aio, hugepages, cache, discard, format",
            ),
        ] {
            assert_eq!(error(list), message);
        }
    }

    /// A QEMU command line can be moved over where it asks for nothing that is not there.
    #[test]
    fn what_qemu_says_and_this_device_does_anyway() {
        for neutral in [
            "zoned=off",
            "zoned=false",
            "pi=0",
            "ms=0",
            "ms=0x0",
            "physical_block_size=512",
            "share-rw=off",
            "zoned.max_open=0",
            "if=none",
            "media=disk",
            "snapshot=off",
            "zoned=off,pi=0,ms=0,physical_block_size=512",
        ] {
            assert_eq!(config(&format!("{neutral},drive=a")), config("drive=a"), "{neutral}");
        }
        for (list, message) in [
            (
                "drive=a,zoned=on",
                "--nvme-ns zoned: QEMU's property, not one of this device; leave it out, it is not supported yet",
            ),
            (
                "drive=a,zoned",
                "--nvme-ns zoned: QEMU's property, not one of this device; leave it out, it is not supported yet",
            ),
            (
                "drive=a,ms=8",
                "--nvme-ns ms: QEMU's property, not one of this device; leave it out, it is not supported yet",
            ),
            (
                "file=a.img",
                "--nvme-ns file: a word of QEMU's -drive, not one of this device; write drive=PATH",
            ),
            (
                "drive=a,if=virtio",
                "--nvme-ns if: a word of QEMU's -drive, not one of this device; leave it out",
            ),
            (
                "drive=a,snapshot=on",
                "--nvme-ns snapshot: a word of QEMU's -drive, not one of this device; leave it out, it is not supported yet",
            ),
        ] {
            assert_eq!(error(list), message);
        }
    }

    #[test]
    fn notes() {
        assert_eq!(
            config("drive=a,mssrl=100,mcl=8388608,msrc=127").notes(),
            [
                "namespace 1: mcl=8388608 is 4 GiB or more; Linux copy offload as posted counts bytes in 32 bits",
                "namespace 1: msrc=127 allows more than 127 ranges; Linux copy offload as posted fails with them",
                "namespace 1: mssrl=100 does not divide mcl=8388608; Linux copy offload as posted splits such copies wrongly",
            ]
        );
        assert_eq!(config("drive=a,mcl=8355840").notes().len(), 0);
        let one = config("drive=a,msrc=0");
        assert_eq!((one.msrc, one.notes().len()), (0, 1));
    }
}
