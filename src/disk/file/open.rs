//! Opens an image, or makes it: what lies at its path, its claim and lock, its length, and how it may be accessed.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::align::Alignment;
use super::backing::{self, Layer};
use super::cache::CacheMode;
use super::format::{self, Format, Remedy};
use super::image::Direct;
use super::lock::{self, LockError};
use crate::disk::Tap;

/// Images come in whole sectors of this many bytes.
const SECTOR: u64 = 512;
/// How long an image that is in use may still be that of a process that has just ended.
const LINGER: Duration = Duration::from_millis(500);

/// How to open a [`FileDisk`](super::FileDisk).
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Length in bytes. An absent file is created sparse with it; an existing image must have it.
    pub size: Option<u64>,
    /// Opened for reading only; writes are refused.
    pub read_only: bool,
    /// Keep others out, and respect their locks. `false` also opens a block device that is in use.
    pub locking: bool,
    /// Watches the calls made on the image.
    pub tap: Option<Arc<dyn Tap>>,
    /// How it is cached.
    pub cache: CacheMode,
    /// Give back the blocks of discarded ranges, and of zeroes where that is allowed.
    pub unmap: bool,
    /// Offsets and lengths of operations are multiples of this, in bytes, and so is the length of the image. A block of
    /// O_DIRECT that is no larger needs no watching for parts of it that are written at once.
    pub unit: u64,
    /// Its bytes are served as they are, even if they look like another format.
    pub raw: bool,
}

impl FileOptions {
    /// An existing image, for reading and writing, with locking.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        FileOptions {
            path: path.into(),
            size: None,
            read_only: false,
            locking: true,
            tap: None,
            cache: CacheMode::default(),
            unmap: true,
            unit: 1,
            raw: false,
        }
    }
}

/// Why an image cannot be opened, for people: path, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", .path.display())]
pub struct OpenError {
    /// Of the image.
    pub path: PathBuf,
    /// What is wrong.
    pub fault: OpenFault,
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum OpenFault {
    #[error("no such image; create it, or give size= and it is created")]
    Missing,
    #[error("no such image, and with readonly=on it is not created")]
    MissingReadOnly,
    #[error("the folder it should be created in does not exist; create it")]
    MissingFolder,
    #[error("is {0}; an image is a regular file or a block device")]
    NotAnImage(&'static str),
    #[error("not allowed to {0}")]
    Denied(&'static str),
    #[error("the medium can only be read; use readonly=on")]
    ReadOnlyMedium,
    #[error("lies on a file system that takes no writes; move it, or use drive=memory or readonly=on")]
    NoWrites,
    #[error("the device is in use, mounted perhaps; release it, or use locking=off at your own risk")]
    DeviceBusy,
    #[error("another process uses it ({0}); end that, or use locking=off at your own risk")]
    Locked(&'static str),
    #[error("cannot be locked: {0}; use locking=off if nobody else can use it")]
    CannotLock(io::Error),
    #[error(
        "is {is} bytes long, but size= says {wanted}; an image is never resized: leave size= out, or name another file"
    )]
    SizeDiffers { is: u64, wanted: u64 },
    #[error(
        "looks like {name}, and a guest would see and overwrite its raw bytes; {remedy}, or give format=raw if that is wanted"
    )]
    Format { name: &'static str, remedy: Remedy },
    #[error("its length of {len} bytes is no multiple of {block}, and its last {} bytes would be hidden; {remedy}", len % block)]
    UnevenLength { len: u64, block: u64, remedy: String },
    #[error("size= of {0} bytes is not possible; give a positive multiple of {SECTOR}")]
    BadSize(u64),
    #[error("is empty; give size= and it gets that length, unless it has readonly=on")]
    Empty,
    #[error(
        "its file system has no direct access (O_DIRECT); use cache=writeback, or move it to one that has"
    )]
    NoDirect,
    #[error(
        "its length of {len} bytes is no multiple of the {block} that direct access asks for here; lengthen it, for instance with truncate, or use cache=writeback"
    )]
    UnevenForDirect { len: u64, block: u64 },
    #[error("cannot {what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

/// What `what` failed with.
fn io<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> OpenFault {
    move |error| OpenFault::Io { what, source: error.into() }
}

/// An image that was found or made, locked and checked.
#[derive(Debug)]
pub(super) struct Opened {
    /// With O_DIRECT where `direct` is there.
    pub(super) file: File,
    /// Bytes.
    pub(super) len: u64,
    /// It was made, or was empty and was given its length.
    pub(super) created: bool,
    /// How it is accessed past the page cache, where the options ask for that.
    pub(super) direct: Option<Direct>,
    /// What is under it: claimed and locked as long as these are open.
    pub(super) beneath: Vec<File>,
}

/// Opens the image of `options`.
///
/// # Errors
/// Why it cannot be used; then nothing has changed, and what was made is gone.
pub(super) fn open(options: &FileOptions) -> Result<Opened, OpenError> {
    find(options).map_err(|fault| OpenError { path: options.path.clone(), fault })
}

fn find(options: &FileOptions) -> Result<Opened, OpenFault> {
    let path = &options.path;
    if let Some(size) = options.size
        && (size == 0 || size % SECTOR != 0 || i64::try_from(size).is_err())
    {
        return Err(OpenFault::BadSize(size));
    }
    let Some(kind) = kind_at(path)? else {
        let (held, size) = create(options)?;
        return make(options, held, size).inspect_err(|_| {
            let _ = std::fs::remove_file(path);
        });
    };
    let held = patiently(|| open_existing(options, kind))?;
    match options.size {
        Some(size) if kind == Kind::Regular && !options.read_only && length(&held.file)? == 0 => {
            make(options, held, size).inspect_err(|_| {
                // A name for nothing, as it was.
                let _ = OpenOptions::new().write(true).truncate(true).open(path);
            })
        }
        _ => check(options, held, false),
    }
}

/// Do both paths lead to the bytes of one image? For the images of one process, of which one could not be locked.
pub fn is_same_image(one: &Path, other: &Path) -> bool {
    let open = |path| kind_at(path).is_ok_and(|kind| kind.is_some()).then(|| File::open(path).ok()).flatten();
    open(one).zip(open(other)).is_some_and(|(one, other)| backing::is_same(&one, &other))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Regular,
    Block,
}

/// An image that nobody else can open, unless locking is off.
#[derive(Debug)]
struct Held {
    file: File,
    kind: Kind,
    beneath: Vec<File>,
}

/// What lies at `path`, asked before it is opened: opening a FIFO would wait for its other end.
fn kind_at(path: &Path) -> Result<Option<Kind>, OpenFault> {
    match std::fs::metadata(path) {
        Ok(meta) => kind_of(&meta).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io("look at it")(e)),
    }
}

fn kind_of(meta: &Metadata) -> Result<Kind, OpenFault> {
    let kind = meta.file_type();
    match () {
        () if kind.is_file() => Ok(Kind::Regular),
        () if kind.is_block_device() => Ok(Kind::Block),
        () if kind.is_dir() => Err(OpenFault::NotAnImage("a folder")),
        () if kind.is_char_device() => Err(OpenFault::NotAnImage("a character device")),
        () => Err(OpenFault::NotAnImage("a FIFO or socket")),
    }
}

/// Whoever was killed a moment ago may seem to be there still: the kernel gives back the files of a ring in its own time,
/// and with them locks and claims.
fn patiently<T>(open: impl Fn() -> Result<T, OpenFault>) -> Result<T, OpenFault> {
    let start = Instant::now();
    loop {
        match open() {
            Err(OpenFault::DeviceBusy | OpenFault::Locked(_)) if start.elapsed() < LINGER => {
                std::thread::sleep(LINGER / 20);
            }
            answer => return answer,
        }
    }
}

fn open_existing(options: &FileOptions, kind: Kind) -> Result<Held, OpenFault> {
    let claim = kind == Kind::Block && options.locking;
    let mut file = open_file(options, &options.path, !options.read_only, claim)?;
    if claim && options.read_only {
        // The claim has shown that nobody uses the device; kept, it would shut out other readers.
        drop(file);
        file = open_file(options, &options.path, false, false)?;
    }
    let meta = file.metadata().map_err(io("look at it"))?;
    if kind_of(&meta)? != kind {
        return Err(io("open it")(io::Error::other("it was replaced at that moment; try again")));
    }
    let beneath = lock_image(options, &file)?;
    Ok(Held { file, kind, beneath })
}

/// `claim`: of a block device (EBUSY when it is mounted or claimed).
fn open_file(options: &FileOptions, path: &Path, write: bool, claim: bool) -> Result<File, OpenFault> {
    // O_EXCL without O_CREAT is the claim.
    let flags = if claim { libc::O_EXCL } else { 0 };
    let opened = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
    opened.map_err(|e| open_fault(options, e))
}

/// An empty file, and the length it is to have.
fn create(options: &FileOptions) -> Result<(Held, u64), OpenFault> {
    let size = match options.size {
        Some(_) if options.read_only => return Err(OpenFault::MissingReadOnly),
        Some(size) => size,
        None => return Err(OpenFault::Missing),
    };
    let mut new = OpenOptions::new();
    let made = new.read(true).write(true).create_new(true).mode(0o600).open(&options.path);
    let file = made.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => OpenFault::MissingFolder,
        _ => open_fault(options, e),
    })?;
    let beneath = lock_image(options, &file)?;
    Ok((Held { file, kind: Kind::Regular, beneath }, size))
}

/// Gives an empty file its length.
fn make(options: &FileOptions, held: Held, size: u64) -> Result<Opened, OpenFault> {
    let durably = || {
        held.file.set_len(size)?;
        // Data made durable in a file whose name is not would be lost with the name.
        held.file.sync_all()?;
        let folder = options.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    durably().map_err(io("create it with this size"))?;
    check(options, held, true)
}

/// What is locked, if it can be an image.
fn check(options: &FileOptions, held: Held, created: bool) -> Result<Opened, OpenFault> {
    let Held { file, kind, beneath } = held;
    let len = length(&file)?;
    if !created && !options.raw {
        let harmless = |remedy| options.read_only && remedy == Remedy::ReadOnly;
        if let Some(Format { name, remedy, .. }) = format::of(&file, len).filter(|f| !harmless(f.remedy)) {
            return Err(OpenFault::Format { name, remedy });
        }
    }
    match options.size {
        _ if len == 0 => return Err(OpenFault::Empty),
        Some(wanted) if wanted != len => return Err(OpenFault::SizeDiffers { is: len, wanted }),
        _ => {}
    }
    let block = options.unit.max(SECTOR);
    if !len.is_multiple_of(block) {
        return Err(OpenFault::UnevenLength { len, block, remedy: tail_remedy(len, block, kind) });
    }
    if !options.read_only {
        takes_writes(&file)?;
    }
    if let Some(tap) = &options.tap {
        tap.opened(&file, len).map_err(io("read it for its tap"))?;
    }
    let direct = options.cache.is_direct().then(|| make_direct(options, &file, len)).transpose()?;
    Ok(Opened { file, len, created, direct, beneath })
}

fn length(mut file: &File) -> Result<u64, OpenFault> {
    file.seek(io::SeekFrom::End(0)).map_err(io("find its length"))
}

/// What to do about a part of a block at the end, which is never hidden: it may be what is wanted most.
fn tail_remedy(len: u64, block: u64, kind: Kind) -> String {
    let mut remedies = Vec::new();
    if kind == Kind::Regular {
        remedies.push(format!("lengthen it (truncate --size={})", len.next_multiple_of(block)));
    }
    if len.is_multiple_of(SECTOR) {
        remedies.push(format!("use logical_block_size={SECTOR}"));
    }
    remedies.join(", or ")
}

/// A write of nothing is refused where any write would be: by a device or a file system that is only read.
fn takes_writes(file: &File) -> Result<(), OpenFault> {
    use rustix::io::Errno;
    match rustix::io::pwrite(file, &[], 0) {
        Ok(_) => Ok(()),
        Err(Errno::PERM | Errno::ROFS) => Err(OpenFault::ReadOnlyMedium),
        Err(Errno::INVAL) => Err(OpenFault::NoWrites),
        Err(e) => Err(io("write to it")(e)),
    }
}

/// Locks an image and what is under it.
fn lock_image(options: &FileOptions, file: &File) -> Result<Vec<File>, OpenFault> {
    let mut beneath = Vec::new();
    if !options.locking {
        return Ok(beneath);
    }
    lock(file, options.read_only, false)?;
    for Layer { path, file, part } in backing::layers(file) {
        lock(&file, options.read_only, part)?;
        let is_device = file.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
        if is_device && !part {
            match open_file(options, &path, false, true) {
                Ok(claim) if !options.read_only => beneath.push(claim),
                Err(OpenFault::DeviceBusy) => return Err(OpenFault::DeviceBusy),
                _ => {}
            }
        }
        beneath.push(file);
    }
    Ok(beneath)
}

fn lock(file: &File, read_only: bool, part: bool) -> Result<(), OpenFault> {
    lock::lock(file, read_only, part).map_err(|e| match e {
        LockError::Conflict(why) => OpenFault::Locked(why),
        LockError::Io(source) => OpenFault::CannotLock(source),
    })
}

/// Turns to O_DIRECT what was opened, checked and locked without.
fn make_direct(options: &FileOptions, file: &File, len: u64) -> Result<Direct, OpenFault> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let align = Alignment::of(file).ok_or(OpenFault::NoDirect)?;
    let set = fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::DIRECT));
    set.map_err(|e| match e {
        rustix::io::Errno::INVAL => OpenFault::NoDirect,
        e => io("open it past the page cache")(e),
    })?;
    let block = align.block;
    if !len.is_multiple_of(block) {
        return Err(OpenFault::UnevenForDirect { len, block });
    }
    Ok(Direct { align, parts: !options.unit.is_multiple_of(block) })
}

fn open_fault(options: &FileOptions, error: io::Error) -> OpenFault {
    match error.raw_os_error() {
        Some(libc::EBUSY) => OpenFault::DeviceBusy,
        Some(libc::EACCES | libc::EPERM) => OpenFault::Denied(match options.read_only {
            true => "read it; change its mode or owner",
            false => "read and write it; change its mode or owner, or use readonly=on",
        }),
        Some(libc::EROFS) => OpenFault::ReadOnlyMedium,
        _ => io("open it")(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::disk::tests::conformance::folder;
    use crate::disk::tests::places::{LoopDevice, Mount};

    fn open(path: &Path, size: Option<u64>) -> Result<Opened, OpenError> {
        super::open(&FileOptions { size, ..FileOptions::new(path) })
    }

    #[test]
    fn an_absent_image_is_created_sparse() {
        let folder = folder();
        let path = folder.path().join("new");
        let image = open(&path, Some(1 << 40)).expect("it is created");
        assert_eq!(image.len, 1 << 40);
        let meta = std::fs::metadata(&path).expect("it is there");
        assert_eq!((meta.len(), meta.blocks()), (1 << 40, 0));
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        drop(image);
        assert_eq!(open(&path, None).expect("it opens").len, 1 << 40);
        open(&path, Some(1 << 40)).expect("the same size is no contradiction");
    }

    /// Each refusal names the file and what to do, and changes nothing.
    #[test]
    fn refusals() {
        let folder = folder();
        let file = |name: &str, len| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![1; len]).expect("the file is written");
            path
        };
        let absent = folder.path().join("absent");
        let nowhere = folder.path().join("no/where");
        let even = file("even", 1024);
        let uneven = file("uneven", 1000);
        let empty = file("empty", 0);
        let below_file = even.join("image");
        let refused = |path: &Path, size, remedy: &str| {
            let message = open(path, size).expect_err(remedy).to_string();
            assert!(message.starts_with(&path.display().to_string()), "{message}");
            assert!(message.contains(remedy), "{message}");
            assert!(!message.contains('\n'), "{message}");
        };
        refused(&absent, None, "give size=");
        refused(&absent, Some(1000), "multiple of 512");
        refused(&absent, Some(0), "multiple of 512");
        refused(&absent, Some(1 << 63), "not possible");
        refused(&absent, Some((1 << 63) - 512), "cannot create");
        refused(&nowhere, Some(512), "folder");
        refused(&even, Some(2048), "never resized");
        refused(&uneven, None, "multiple of 512");
        refused(&empty, None, "is empty");
        refused(&below_file, None, "Not a directory");
        refused(folder.path(), None, "is a folder");
        refused(Path::new("/dev/null"), None, "character device");
        assert!(!absent.exists() && !nowhere.exists());
        let len = |path: &Path| std::fs::metadata(path).expect("it is there").len();
        assert_eq!([len(&even), len(&uneven), len(&empty)], [1024, 1000, 0]);

        let read_only = FileOptions { size: Some(512), read_only: true, ..FileOptions::new(&absent) };
        let message = super::open(&read_only).expect_err("not created");
        assert!(message.to_string().contains("readonly=on"), "{message}");
        assert!(!absent.exists());
    }

    /// What direct access cannot serve is refused at once, with the remedy, and leaves nothing behind.
    #[test]
    fn refusals_of_direct_access() {
        let direct = |path: &Path, size| {
            let options = FileOptions { size, cache: CacheMode::None, ..FileOptions::new(path) };
            super::open(&options).map_err(|error| error.to_string())
        };
        // Whose file system does not say what it wants gets what is always right: whole pages.
        if let Ok(folder) = tempfile::tempdir_in("/dev/shm") {
            let path = folder.path().join("image");
            match direct(&path, Some(4096 + 512)) {
                Ok(_) => eprintln!("not tested: the tmpfs takes sectors"),
                Err(message) => {
                    assert!(message.contains("cache=writeback"), "{message}");
                    assert!(!path.exists(), "it was created, and goes");
                    std::fs::write(&path, [1; 512]).expect("it is written");
                    direct(&path, None).expect_err("refused");
                    assert!(path.exists(), "what was there stays");
                }
            }
        }
        // A file system of the kernel's own that has none.
        let pinned = folder();
        let Some(mount) = Mount::new(&["-t", "ramfs", "none"], pinned.path()) else { return };
        let refused = direct(&pinned.path().join("image"), Some(1 << 20));
        let buffered = open(&pinned.path().join("other"), Some(1 << 20)).map(drop);
        drop(mount);
        let message = refused.expect_err("ramfs has no direct access");
        assert!(message.contains("O_DIRECT") && message.contains("cache=writeback"), "{message}");
        buffered.expect("by the page cache it works");
    }

    #[test]
    fn a_fifo_is_refused_without_waiting_for_its_other_end() {
        let folder = folder();
        let path = folder.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .expect("the FIFO is made");
        let message = open(&path, None).expect_err("refused").to_string();
        assert!(message.contains("FIFO"), "{message}");
    }

    #[test]
    fn a_block_device_in_use_is_refused() {
        let folder = folder();
        let image = folder.path().join("image");
        let file = File::create(&image).expect("the image is made");
        file.set_len(1 << 20).expect("it has a length");
        let Some(device) = LoopDevice::new(&image) else { return };
        let opened = |read_only, locking| {
            super::open(&FileOptions { read_only, locking, ..FileOptions::new(device.path()) })
        };
        let first = opened(false, true).expect("it opens");
        assert_eq!(first.len, 1 << 20);
        for read_only in [false, true] {
            let refused = opened(read_only, true).expect_err("refused");
            assert!(matches!(refused.fault, OpenFault::DeviceBusy), "{refused}");
        }
        opened(false, false).expect("locking=off opens");
        drop(first);
        let reader = opened(true, true).expect("it is free again");
        opened(true, true).expect("readers share");
        let refused = opened(false, true).expect_err("a reader minds writers");
        assert!(matches!(refused.fault, OpenFault::Locked(_)), "{refused}");
        drop(reader);
        let differs = open(device.path(), Some(2 << 20)).expect_err("refused");
        assert!(matches!(differs.fault, OpenFault::SizeDiffers { is: 0x10_0000, .. }), "{differs}");
        // A file system's claim is the same as any other.
        let claim = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device.path());
        let claim = claim.expect("it is free again");
        for read_only in [false, true] {
            assert!(matches!(opened(read_only, true), Err(OpenError { fault: OpenFault::DeviceBusy, .. })));
        }
        drop(claim);
    }

    /// One server is killed, and the next one started at once.
    #[test]
    fn who_is_about_to_let_go_is_waited_for() {
        let folder = folder();
        let path = folder.path().join("image");
        let first = open(&path, Some(1 << 20)).expect("it opens");
        let letting_go = std::thread::spawn(move || {
            std::thread::sleep(LINGER / 4);
            drop(first);
        });
        open(&path, None).expect("it opens a moment later");
        letting_go.join().expect("no panic");
    }

    #[test]
    fn an_empty_file_is_a_new_image() {
        let folder = folder();
        let path = folder.path().join("image");
        File::create(&path).expect("it is made");
        let image = open(&path, Some(1 << 20)).expect("it is grown");
        assert!(image.len == 1 << 20 && image.created);
        drop(image);
        let image = open(&path, Some(1 << 20)).expect("it opens");
        assert!(!image.created);
        // Whoever may only read it does not grow it, and what fails leaves it empty.
        for (name, options) in [
            ("read only", FileOptions { read_only: true, ..FileOptions::new("") }),
            ("too large", FileOptions { size: Some((1 << 63) - 512), ..FileOptions::new("") }),
        ] {
            let path = folder.path().join(name);
            File::create(&path).expect("it is made");
            let size = options.size.or(Some(512));
            super::open(&FileOptions { path: path.clone(), size, ..options }).expect_err("refused");
            assert_eq!(std::fs::metadata(&path).expect("it is there").len(), 0, "{name}");
        }
    }

    /// Each with what to do; a new image is never one, nor is one that is said to be raw.
    #[test]
    fn other_formats_are_refused() {
        let folder = folder();
        let path = folder.path().join("image");
        for (magic, at, words) in [
            (&b"QFI\xfb\0\0\0\x03"[..], 0, &["qcow2", "qemu-img convert"][..]),
            (b"\x1f\x8b\x08\0", 0, &["gzip", "unpack"]),
            (b"conectix", 65536 - 512, &["vpc", "qemu-img convert"]),
            (b"CD001", 32769, &["ISO 9660", "readonly=on"]),
        ] {
            // One that is too short or has an odd length is the same.
            for len in [65536, at + magic.len()] {
                let mut bytes = vec![0; len.max(at + magic.len())];
                bytes[at..at + magic.len()].copy_from_slice(magic);
                std::fs::write(&path, &bytes).expect("it is written");
                if len == 65536 || at == 0 {
                    let message = open(&path, None).expect_err("refused").to_string();
                    for word in words.iter().chain(&["format=raw"]) {
                        assert!(message.contains(word), "{word}: {message}");
                    }
                    assert!(!message.contains("lengthen"), "{message}");
                }
                if len == 65536 {
                    let options = FileOptions::new(&path);
                    super::open(&FileOptions { raw: true, ..options.clone() }).expect("it opens");
                    let reader = super::open(&FileOptions { read_only: true, ..options });
                    assert_eq!(reader.is_ok(), words.contains(&"ISO 9660"));
                }
                assert!(std::fs::read(&path).expect("it is there") == bytes);
            }
        }
    }

    /// The same for blocks of 512 and of 4096 bytes: no byte is hidden.
    #[test]
    fn an_odd_tail_is_refused_whatever_the_block() {
        let folder = folder();
        let path = folder.path().join("image");
        let refusal = |len, unit| {
            File::create(&path).and_then(|file| file.set_len(len)).expect("it has a length");
            super::open(&FileOptions { unit, ..FileOptions::new(&path) }).err().map(|e| e.to_string())
        };
        for (len, unit) in [(1024, 512), (8192, 4096), (512, 1)] {
            assert_eq!(refusal(len, unit), None, "{len} {unit}");
        }
        for (len, unit, words) in [
            (1000, 512, &["last 488 bytes", "--size=1024"][..]),
            (4096 + 512, 4096, &["last 512 bytes", "--size=8192", "logical_block_size=512"]),
            (4096 + 1, 4096, &["last 1 bytes", "--size=8192"]),
        ] {
            let message = refusal(len, unit).expect("refused");
            for word in words {
                assert!(message.contains(word), "{word}: {message}");
            }
            assert_eq!(message.contains("logical_block_size=512"), words.len() == 3, "{message}");
        }
        let image = folder.path().join("device");
        File::create(&image).and_then(|file| file.set_len((1 << 20) + 512)).expect("it has a length");
        let Some(device) = LoopDevice::new(&image) else { return };
        let options = FileOptions { unit: 4096, ..FileOptions::new(device.path()) };
        let message = super::open(&options).expect_err("refused").to_string();
        assert!(message.contains("logical_block_size=512") && !message.contains("truncate"), "{message}");
        super::open(&FileOptions { unit: 512, ..options }).expect("it opens");
    }

    #[test]
    fn a_device_that_takes_no_writes_is_refused() {
        let folder = folder();
        let image = folder.path().join("image");
        File::create(&image).and_then(|file| file.set_len(1 << 20)).expect("it has a length");
        let Some(device) = LoopDevice::with(&["--read-only"], &image) else { return };
        let options = FileOptions::new(device.path());
        let refused = super::open(&options).expect_err("refused");
        assert!(matches!(refused.fault, OpenFault::ReadOnlyMedium), "{refused}");
        assert!(refused.to_string().contains("readonly=on"), "{refused}");
        super::open(&FileOptions { read_only: true, ..options }).expect("it opens for reading");
    }

    #[test]
    fn a_file_system_that_takes_no_writes_is_refused() {
        let folder = folder();
        let Some(_mount) = Mount::new(&["-t", "hugetlbfs", "none"], folder.path()) else { return };
        let path = folder.path().join("image");
        let refused = open(&path, Some(16 << 20)).expect_err("refused").to_string();
        assert!(refused.contains("takes no writes") && refused.contains("drive=memory"), "{refused}");
        assert!(!path.exists(), "it was created, and goes");
    }

    /// A loop device and its file, whichever is first; two parts of a file get on with each other.
    #[test]
    fn a_loop_device_and_its_file_exclude_each_other() {
        let folder = folder();
        let image = folder.path().join("image");
        File::create(&image).and_then(|file| file.set_len(4 << 20)).expect("it has a length");
        let (Some(one), Some(two)) = (LoopDevice::new(&image), LoopDevice::new(&image)) else { return };
        let part = |words: &[&str]| LoopDevice::with(words, &image).expect("one more");
        let first = part(&["--sizelimit", "1M"]);
        let second = part(&["--offset", "1M", "--sizelimit", "1M"]);
        let opened =
            |path: &Path, read_only| super::open(&FileOptions { read_only, ..FileOptions::new(path) });
        for (held, other) in [(&*image, one.path()), (one.path(), &*image), (one.path(), two.path())] {
            let held = opened(held, false).expect("it opens");
            for read_only in [false, true] {
                let refused = opened(other, read_only).expect_err("refused");
                assert!(matches!(refused.fault, OpenFault::Locked(_)), "{refused}");
            }
            drop(held);
            let _reader = opened(other, true).expect("it opens");
            opened(&image, true).expect("readers share");
        }
        let part = opened(first.path(), false).expect("it opens");
        let other = opened(second.path(), false).expect("another part");
        opened(&image, false).expect_err("the whole is refused");
        drop((part, other));
        let _whole = opened(&image, false).expect("it opens");
        opened(first.path(), false).expect_err("a part is refused");
    }

    #[test]
    fn an_overlay_and_its_upper_file_exclude_each_other() {
        let folder = folder();
        let place = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).expect("a folder is made");
            path
        };
        let (lower, upper, work, point) = (place("lower"), place("up per"), place("work"), place("point"));
        std::fs::create_dir(lower.join("sub")).expect("a folder is made");
        std::fs::write(lower.join("sub/image"), [0; 4096]).expect("it is written");
        let words =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let Some(_mount) = Mount::new(&["-t", "overlay", "overlay", "-o", &words], &point) else { return };
        let (over, under) = (point.join("sub/image"), upper.join("sub/image"));
        for turned in [false, true] {
            let (one, other) = if turned { (&under, &over) } else { (&over, &under) };
            let held = open(one, None).expect("it opens");
            let refused = open(other, None).expect_err("refused");
            assert!(matches!(refused.fault, OpenFault::Locked(_)), "{refused}");
            drop(held);
            open(other, None).expect("it is free");
        }
        assert!(is_same_image(&over, &under) && !is_same_image(&over, &lower.join("sub/image")));
    }
}
