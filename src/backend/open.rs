//! Opens an image, or makes it: what lies at its path, its claim and lock, its length, and how it may be accessed.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::CacheMode;
use super::align::Alignment;
use super::image_file::{Direct, Tap};
use super::lock::{self, LockError};

/// Images come in whole sectors of this many bytes.
const SECTOR: u64 = 512;
/// How long an image that is in use may still be that of a process that has just ended.
const LINGER: Duration = Duration::from_millis(500);

/// How to open a [`RawBackend`](super::RawBackend).
#[derive(Clone, Debug)]
pub struct RawOptions {
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
    /// Offsets and lengths of operations are multiples of this, in bytes. A block of O_DIRECT that is no larger needs
    /// no watching for parts of it that are written at once.
    pub unit: u64,
}

impl RawOptions {
    /// An existing image, for reading and writing, with locking.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        RawOptions {
            path: path.into(),
            size: None,
            read_only: false,
            locking: true,
            tap: None,
            cache: CacheMode::default(),
            unmap: true,
            unit: 1,
        }
    }
}

/// Why an image cannot be opened, for people: path, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum OpenError {
    #[error("{}: no such image; create it, or give size= and it is created", .path.display())]
    Missing { path: PathBuf },
    #[error("{}: no such image, and with readonly=on it is not created", .path.display())]
    MissingReadOnly { path: PathBuf },
    #[error("{}: the folder it should be created in does not exist; create it", .path.display())]
    MissingFolder { path: PathBuf },
    #[error("{}: is {what}; an image is a regular file or a block device", .path.display())]
    NotAnImage { path: PathBuf, what: &'static str },
    #[error("{}: not allowed to read and write it; change its mode or owner, or use readonly=on", .path.display())]
    Denied { path: PathBuf },
    #[error("{}: not allowed to read it; change its mode or owner", .path.display())]
    DeniedReadOnly { path: PathBuf },
    #[error("{}: the medium can only be read; use readonly=on", .path.display())]
    ReadOnlyMedium { path: PathBuf },
    #[error("{}: the device is in use, mounted perhaps; release it, or use locking=off at your own risk", .path.display())]
    DeviceBusy { path: PathBuf },
    #[error("{}: another process uses it ({why}); end that, or use locking=off at your own risk", .path.display())]
    Locked { path: PathBuf, why: &'static str },
    #[error("{}: cannot be locked: {source}; use locking=off if nobody else can use it", .path.display())]
    CannotLock { path: PathBuf, source: io::Error },
    #[error("{}: is {is} bytes long, but size= says {wanted}; an image is never resized: leave size= out, or name another file", .path.display())]
    SizeDiffers { path: PathBuf, is: u64, wanted: u64 },
    #[error("{}: its length of {len} bytes is no multiple of {SECTOR}; lengthen it, for instance with truncate", .path.display())]
    UnevenLength { path: PathBuf, len: u64 },
    #[error("{}: size= of {size} bytes is not possible; give a positive multiple of {SECTOR}", .path.display())]
    BadSize { path: PathBuf, size: u64 },
    #[error("{}: is empty; remove it and give size=, or lengthen it", .path.display())]
    Empty { path: PathBuf },
    #[error("{}: its file system has no direct access (O_DIRECT); use cache=writeback, or move it to one that has", .path.display())]
    NoDirect { path: PathBuf },
    #[error("{}: its length of {len} bytes is no multiple of the {block} that direct access asks for here; lengthen it, for instance with truncate, or use cache=writeback", .path.display())]
    UnevenForDirect { path: PathBuf, len: u64, block: u64 },
    #[error("{}: cannot {what}: {source}", .path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
}

/// An image that was found or made, locked and checked.
#[derive(Debug)]
pub(super) struct Opened {
    /// With O_DIRECT where `direct` is there.
    pub(super) file: File,
    /// Bytes.
    pub(super) len: u64,
    /// How it is accessed past the page cache, where the options ask for that.
    pub(super) direct: Option<Direct>,
}

/// Opens the image of `options`.
///
/// # Errors
/// Why it cannot be used; then nothing has changed, and what was made is gone.
pub(super) fn open(options: &RawOptions) -> Result<Opened, OpenError> {
    let path = &options.path;
    if let Some(size) = options.size
        && (size == 0 || size % SECTOR != 0 || i64::try_from(size).is_err())
    {
        return Err(OpenError::BadSize { path: path.clone(), size });
    }
    let existing = kind_of(path)?;
    let file = match existing {
        Some(kind) => patiently(|| open_existing(options, kind))?,
        None => create(options)?,
    };
    let opened = check(options, file);
    if opened.is_err() && existing.is_none() {
        let _ = std::fs::remove_file(path);
    }
    opened
}

/// What was opened and locked, if it can be an image.
fn check(options: &RawOptions, file: File) -> Result<Opened, OpenError> {
    let path = &options.path;
    let len = (&file).seek(io::SeekFrom::End(0)).map_err(|e| io_error(path, "find its length", e))?;
    match options.size {
        Some(wanted) if wanted != len => {
            return Err(OpenError::SizeDiffers { path: path.clone(), is: len, wanted });
        }
        _ if len == 0 => return Err(OpenError::Empty { path: path.clone() }),
        _ if len % SECTOR != 0 => {
            return Err(OpenError::UnevenLength { path: path.clone(), len });
        }
        _ => {}
    }
    if let Some(tap) = &options.tap {
        tap.opened(&file, len).map_err(|e| io_error(path, "read it for its tap", e))?;
    }
    let direct = options.cache.is_direct().then(|| make_direct(options, &file, len)).transpose()?;
    Ok(Opened { file, len, direct })
}

/// Turns to O_DIRECT what was opened, checked and locked without.
fn make_direct(options: &RawOptions, file: &File, len: u64) -> Result<Direct, OpenError> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let path = || options.path.clone();
    let refused = |e: rustix::io::Errno| match e {
        rustix::io::Errno::INVAL => OpenError::NoDirect { path: path() },
        e => io_error(&options.path, "open it past the page cache", e.into()),
    };
    let align = Alignment::of(file).ok_or_else(|| OpenError::NoDirect { path: path() })?;
    let flags = fcntl_getfl(file).map_err(refused)?;
    fcntl_setfl(file, flags | OFlags::DIRECT).map_err(refused)?;
    let block = align.block;
    if !len.is_multiple_of(block) {
        return Err(OpenError::UnevenForDirect { path: path(), len, block });
    }
    Ok(Direct { align, parts: !options.unit.is_multiple_of(block) })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Regular,
    Block,
}

/// What lies at `path`, asked before it is opened: opening a FIFO would wait for its other end.
fn kind_of(path: &Path) -> Result<Option<Kind>, OpenError> {
    let kind = match std::fs::metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(path, "look at it", e)),
    };
    let what = if kind.is_file() {
        return Ok(Some(Kind::Regular));
    } else if kind.is_block_device() {
        return Ok(Some(Kind::Block));
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "a FIFO or socket"
    };
    Err(OpenError::NotAnImage { path: path.to_owned(), what })
}

/// Whoever was killed a moment ago may seem to be there still: the kernel gives back the files of a ring in its own time,
/// and with them locks and claims.
fn patiently<T>(open: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let start = Instant::now();
    loop {
        match open() {
            Err(OpenError::DeviceBusy { .. } | OpenError::Locked { .. }) if start.elapsed() < LINGER => {
                std::thread::sleep(LINGER / 20);
            }
            answer => return answer,
        }
    }
}

fn open_existing(options: &RawOptions, kind: Kind) -> Result<File, OpenError> {
    let path = &options.path;
    let open = |exclusive: bool| {
        OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            // Without O_CREAT this claims a block device: EBUSY when it is mounted or claimed.
            .custom_flags(if exclusive { libc::O_EXCL } else { 0 })
            .open(path)
            .map_err(|e| open_error(options, e))
    };
    let claim = kind == Kind::Block && options.locking;
    let mut file = open(claim)?;
    if claim && options.read_only {
        // The claim has shown that nobody uses the device; kept, it would shut out other readers.
        drop(file);
        file = open(false)?;
    }
    take_lock(options, &file)?;
    Ok(file)
}

fn create(options: &RawOptions) -> Result<File, OpenError> {
    let path = &options.path;
    let size = match options.size {
        Some(_) if options.read_only => {
            return Err(OpenError::MissingReadOnly { path: path.clone() });
        }
        Some(size) => size,
        None => return Err(OpenError::Missing { path: path.clone() }),
    };
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(
        |e| match e.kind() {
            io::ErrorKind::NotFound => OpenError::MissingFolder { path: path.clone() },
            _ => open_error(options, e),
        },
    )?;
    take_lock(options, &file)?;
    let sized = file.set_len(size).and_then(|()| {
        // Data made durable in a file whose name is not would be lost with the name.
        file.sync_all()?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()
    });
    if let Err(e) = sized {
        let _ = std::fs::remove_file(path);
        return Err(io_error(path, "create it with this size", e));
    }
    Ok(file)
}

fn take_lock(options: &RawOptions, file: &File) -> Result<(), OpenError> {
    if !options.locking {
        return Ok(());
    }
    let path = options.path.clone();
    lock::lock(file, options.read_only).map_err(|e| match e {
        LockError::Conflict(why) => OpenError::Locked { path, why },
        LockError::Io(source) => OpenError::CannotLock { path, source },
    })
}

fn open_error(options: &RawOptions, error: io::Error) -> OpenError {
    let path = options.path.clone();
    match error.raw_os_error() {
        Some(libc::EBUSY) => OpenError::DeviceBusy { path },
        Some(libc::EACCES | libc::EPERM) if options.read_only => OpenError::DeniedReadOnly { path },
        Some(libc::EACCES | libc::EPERM) => OpenError::Denied { path },
        Some(libc::EROFS) => OpenError::ReadOnlyMedium { path },
        _ => io_error(&path, "open it", error),
    }
}

fn io_error(path: &Path, what: &'static str, source: io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), what, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::super::conformance::folder;
    use super::super::places::{LoopDevice, Mount};
    use super::*;

    fn open(path: &Path, size: Option<u64>) -> Result<Opened, OpenError> {
        super::open(&RawOptions { size, ..RawOptions::new(path) })
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
        refused(&empty, Some(512), "never resized");
        refused(&below_file, None, "Not a directory");
        refused(folder.path(), None, "is a folder");
        refused(Path::new("/dev/null"), None, "character device");
        assert!(!absent.exists() && !nowhere.exists());
        let len = |path: &Path| std::fs::metadata(path).expect("it is there").len();
        assert_eq!([len(&even), len(&uneven), len(&empty)], [1024, 1000, 0]);

        let read_only = RawOptions { size: Some(512), read_only: true, ..RawOptions::new(&absent) };
        let message = super::open(&read_only).expect_err("not created");
        assert!(message.to_string().contains("readonly=on"), "{message}");
        assert!(!absent.exists());
    }

    /// What direct access cannot serve is refused at once, with the remedy, and leaves nothing behind.
    #[test]
    fn refusals_of_direct_access() {
        let direct = |path: &Path, size| {
            let options = RawOptions { size, cache: CacheMode::None, ..RawOptions::new(path) };
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
            super::open(&RawOptions { read_only, locking, ..RawOptions::new(device.path()) })
        };
        let first = opened(false, true).expect("it opens");
        assert_eq!(first.len, 1 << 20);
        for read_only in [false, true] {
            let refused = opened(read_only, true).expect_err("refused");
            assert!(matches!(refused, OpenError::DeviceBusy { .. }), "{refused}");
        }
        opened(false, false).expect("locking=off opens");
        drop(first);
        let reader = opened(true, true).expect("it is free again");
        opened(true, true).expect("readers share");
        let refused = opened(false, true).expect_err("a reader minds writers");
        assert!(matches!(refused, OpenError::Locked { .. }), "{refused}");
        drop(reader);
        let differs = open(device.path(), Some(2 << 20)).expect_err("refused");
        assert!(matches!(differs, OpenError::SizeDiffers { is: 0x10_0000, .. }), "{differs}");
        // A file system's claim is the same as any other.
        let claim = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device.path());
        let claim = claim.expect("it is free again");
        for read_only in [false, true] {
            assert!(matches!(opened(read_only, true), Err(OpenError::DeviceBusy { .. })));
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
}
