//! The socket file: one client at a time, and no other file ever harmed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::client_fds::end;

/// Longest path a socket address holds, bytes: `sun_path` less its NUL.
const MAX_PATH: usize = 107;
/// Connections that may wait while one is refused after the other.
const BACKLOG: i32 = 8;
/// How often, and how long apart, another start in the same folder is waited for.
const FOLDER_TRIES: usize = 50;
const FOLDER_PAUSE: Duration = Duration::from_millis(20);

/// Why the socket cannot be made. Each text names the path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path does not fit a socket address.
    #[error("socket {path:?} has {length} bytes, a socket address holds {MAX_PATH}: choose a shorter path", length = path.as_os_str().len())]
    TooLong {
        /// As given.
        path: PathBuf,
    },
    /// Another process serves it.
    #[error("socket {path:?} is in use by another process: stop that one, or choose another path")]
    InUse {
        /// As given.
        path: PathBuf,
    },
    /// Something else lies there.
    #[error("{path:?} exists and is not a socket: choose another path, or remove it yourself")]
    NotASocket {
        /// As given.
        path: PathBuf,
    },
    /// The folder is missing.
    #[error("the folder of socket {path:?} does not exist: create it, or choose another path")]
    NoFolder {
        /// As given.
        path: PathBuf,
    },
    /// The descriptor of an inherited socket is not one.
    #[error(
        "descriptor {fd} {problem}; pass that of a UNIX stream socket that has a path and listens, as systemd does (--fd 3)"
    )]
    NotInherited {
        /// As given.
        fd: RawFd,
        /// What is wrong with it.
        problem: String,
    },
    /// Anything else.
    #[error("cannot {action} socket {path:?}: {source}; choose a path in a folder that this user may write")]
    Io {
        /// What was being done.
        action: &'static str,
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Who may connect to a socket that is made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits, at most 0777. To connect takes the right to write.
    pub mode: u32,
    /// The file's group, if not the one that new files have.
    pub group: Option<u32>,
}

impl Default for SocketAccess {
    /// The owner only: who can connect, owns the device's data.
    fn default() -> Self {
        Self { mode: 0o600, group: None }
    }
}

/// A listening socket and its file, which goes when this is dropped, if it is still ours.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the file this listener made; none of a socket that somebody else has made.
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Binds `path` and listens, non-blocking. A socket file on which nobody listens is replaced; nothing
    /// else is.
    ///
    /// # Errors
    /// [`ListenError`], for a person to read.
    pub fn bind(path: impl AsRef<Path>, access: SocketAccess) -> Result<Self, ListenError> {
        let path = path.as_ref();
        let failed =
            |action, errno: Errno| ListenError::Io { action, path: path.to_path_buf(), source: errno.into() };
        if path.as_os_str().len() > MAX_PATH {
            return Err(ListenError::TooLong { path: path.to_path_buf() });
        }
        if path.as_os_str().is_empty() {
            // The kernel would take it as a wish for an address without a file.
            return Err(failed("name", Errno::INVAL));
        }
        let address = SocketAddrUnix::new(path).map_err(|errno| failed("name", errno))?;
        // Held until we listen: without it, two starts could each take the other's fresh file,
        // bound and not yet listening, for a stale one.
        let _folder = lock_folder(path);
        let socket = new_socket().map_err(|errno| failed("create", errno))?;
        // The file inherits the mode of the unbound socket less the umask, so it is never open to
        // others, not even for the moment that bind-then-chmod would leave; and unlike umask this
        // touches no other thread.
        let owners = Mode::from_raw_mode(access.mode & 0o700);
        rustix::fs::fchmod(&socket, owners).map_err(|errno| failed("protect", errno))?;
        let bound = match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address)?;
                rustix::net::bind(&socket, &address)
            }
            other => other,
        };
        bound.map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => ListenError::NoFolder { path: path.to_path_buf() },
            Errno::ADDRINUSE => ListenError::InUse { path: path.to_path_buf() },
            errno => failed("bind", errno),
        })?;
        let identity = identity_of(path).map_err(|source| ListenError::Io {
            action: "look at",
            path: path.to_path_buf(),
            source,
        })?;
        let socket = UnixListener::from(socket);
        let listener = Listener { socket, path: path.to_path_buf(), identity: Some(identity) };
        listener.open_to(access).map_err(|errno| failed("set mode or group of", errno))?;
        rustix::net::listen(&listener.socket, BACKLOG).map_err(|errno| failed("listen on", errno))?;
        Ok(listener)
    }

    /// Takes over a socket that whoever started this process has bound and listens on, non-blocking. Its file
    /// is theirs, and stays.
    ///
    /// # Errors
    /// [`ListenError::NotInherited`]: the descriptor is none, or not of such a socket.
    pub fn inherit(fd: RawFd) -> Result<Self, ListenError> {
        let path = bound_path(fd)?;
        let socket = inherited(fd)?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(|errno| unfit(fd, errno))?;
        Ok(Listener { socket: UnixListener::from(socket), path, identity: None })
    }

    /// Gives the file its group, then its mode: nobody has more rights in between.
    fn open_to(&self, access: SocketAccess) -> Result<(), Errno> {
        // By a descriptor of the file we made: another one may lie there by now, or a link to one.
        let file =
            rustix::fs::open(&self.path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if self.identity != Some((stat.st_dev, stat.st_ino)) {
            return Err(Errno::STALE);
        }
        if let Some(group) = access.group {
            rustix::fs::chownat(&file, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
        }
        // Such a descriptor has no fchmod of its own.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(access.mode), AtFlags::empty())
    }

    /// If `vacant`, takes the connection that came first; otherwise closes all that wait, so that a second
    /// client learns of its mistake instead of hanging. Never waits.
    ///
    /// # Errors
    /// Those of accept, e.g. too many open files. A connection may still be waiting then, so a
    /// level-triggered caller should pause before it tries again.
    pub fn accept(&self, vacant: bool) -> io::Result<Option<UnixStream>> {
        loop {
            match self.socket.accept() {
                Ok((stream, _)) if vacant => return Ok(Some(stream)),
                Ok((stream, _)) => {
                    log::warn!("refused a second client on {:?}: one device, one client", self.path);
                    end(&stream);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// The socket's path, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identity_of(&self.path).is_ok_and(|identity| Some(identity) == self.identity) {
            // Nothing is lost if it stays: the next start finds nobody listening and replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

fn unfit(fd: RawFd, problem: impl std::fmt::Display) -> ListenError {
    ListenError::NotInherited { fd, problem: format!("is of no use: {problem}") }
}

/// A descriptor of our own for what `fd` is. The number is whatever somebody wrote on a command line, so it
/// is asked for as another process's would be: without `unsafe`, and without ending the life of what has that
/// number.
fn inherited(fd: RawFd) -> Result<OwnedFd, ListenError> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    pidfd_open(getpid(), PidfdFlags::empty())
        .and_then(|this| pidfd_getfd(this, fd, PidfdGetfdFlags::empty()))
        .map_err(|errno| unfit(fd, errno))
}

/// The path to which the inherited socket `fd` is bound.
///
/// # Errors
/// [`ListenError::NotInherited`]: it is not a UNIX stream socket that listens at a path.
pub fn bound_path(fd: RawFd) -> Result<PathBuf, ListenError> {
    let refuse = |problem: &str| ListenError::NotInherited { fd, problem: problem.to_owned() };
    let socket = inherited(fd)?;
    match sockopt::socket_domain(&socket) {
        Ok(AddressFamily::UNIX) => {}
        Ok(_) => return Err(refuse("is not a UNIX socket")),
        Err(Errno::NOTSOCK) => return Err(refuse("is not a socket")),
        Err(errno) => return Err(unfit(fd, errno)),
    }
    if sockopt::socket_type(&socket).map_err(|errno| unfit(fd, errno))? != SocketType::STREAM {
        return Err(refuse("is not a stream socket"));
    }
    if !sockopt::socket_acceptconn(&socket).map_err(|errno| unfit(fd, errno))? {
        return Err(refuse("is a socket that does not listen"));
    }
    let address = rustix::net::getsockname(&socket).map_err(|errno| unfit(fd, errno))?;
    let address = SocketAddrUnix::try_from(address).map_err(|errno| unfit(fd, errno))?;
    match address.path_bytes() {
        Some(path) if !path.is_empty() => Ok(PathBuf::from(OsStr::from_bytes(path))),
        _ => Err(refuse("is a socket without a path")),
    }
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// An advisory lock on the socket's folder, between starts of this program only. None where the file
/// system has no such locks or somebody holds one for long: then the file is bound without.
fn lock_folder(path: &Path) -> Option<OwnedFd> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty()).ok()?;
    for _ in 0..FOLDER_TRIES {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(folder),
            Err(Errno::AGAIN | Errno::INTR) => std::thread::sleep(FOLDER_PAUSE),
            Err(_) => return None,
        }
    }
    None
}

/// Removes the file at `path` if it is a socket on which nobody listens.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    let failed = |action, source| ListenError::Io { action, path: path.to_path_buf(), source };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket { path: path.to_path_buf() });
    }
    let probe = new_socket().map_err(|errno| failed("probe", errno.into()))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("replace the stale", error)),
            _ => Ok(()),
        },
        Err(Errno::NOENT) => Ok(()),
        // EAGAIN is a full backlog, EPROTOTYPE a socket of another type: somebody's, and alive.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(ListenError::InUse { path: path.to_path_buf() }),
        Err(errno) => Err(failed("probe", errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    fn bind(path: impl AsRef<Path>) -> Result<Listener, ListenError> {
        Listener::bind(path, SocketAccess::default())
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn only_the_owner_may_connect() {
        let folder = folder();
        let path = folder.path().join("s");
        let listener = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(listener.path(), path);
    }

    #[test]
    fn one_client_the_others_are_turned_away() {
        let folder = folder();
        let path = folder.path().join("s");
        let listener = bind(&path).unwrap();
        assert!(listener.accept(true).unwrap().is_none());
        let _first = UnixStream::connect(&path).unwrap();
        let mut second = UnixStream::connect(&path).unwrap();
        let _session = listener.accept(true).unwrap().unwrap();
        second.set_nonblocking(true).unwrap();
        assert_eq!(second.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "waits");
        let mut third = UnixStream::connect(&path).unwrap();
        assert!(listener.accept(false).unwrap().is_none());
        assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "closed");
        assert_eq!(third.read(&mut [0; 1]).unwrap(), 0, "closed");
    }

    #[test]
    fn the_file_goes_with_the_listener_if_it_is_still_ours() {
        let folder = folder();
        let path = folder.path().join("s");
        drop(bind(&path).unwrap());
        assert!(!path.exists());
        let listener = bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "somebody else's").unwrap();
        drop(listener);
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody else's");
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let folder = folder();
        let path = folder.path().join("s");
        // std leaves the file when the listener goes, as a killed process does.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        assert!(listener.accept(true).unwrap().is_some());
    }

    #[test]
    fn a_live_socket_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("s");
        let _live = UnixListener::bind(&path).unwrap();
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, ListenError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("/s\""), "{error}");
        UnixStream::connect(&path).unwrap();
        // A datagram socket refuses the probe in its own way.
        let other = folder.path().join("d");
        let _datagram = std::os::unix::net::UnixDatagram::bind(&other).unwrap();
        assert!(matches!(bind(&other).unwrap_err(), ListenError::InUse { .. }));
        assert!(other.exists());
    }

    #[test]
    fn no_other_file_is_ever_removed() {
        let folder = folder();
        let file = folder.path().join("image");
        std::fs::write(&file, "precious").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let dangling = folder.path().join("dangling");
        std::os::unix::fs::symlink(folder.path().join("nothing"), &dangling).unwrap();
        for path in [&file, &link, &dangling, &folder.path().to_path_buf()] {
            let error = bind(path).unwrap_err();
            assert!(matches!(error, ListenError::NotASocket { .. }), "{error}");
            assert!(std::fs::symlink_metadata(path).is_ok());
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn impossible_paths_are_explained() {
        let folder = folder();
        let long = folder.path().join("x".repeat(108));
        let error = bind(&long).unwrap_err();
        assert!(matches!(error, ListenError::TooLong { .. }), "{error}");
        let error = bind(folder.path().join("missing/s")).unwrap_err();
        assert!(matches!(error, ListenError::NoFolder { .. }), "{error}");
        let error = bind("").unwrap_err();
        assert!(matches!(error, ListenError::Io { action: "name", .. }), "{error}");
    }

    #[test]
    fn another_start_in_the_folder_is_waited_for_not_for_ever() {
        let folder = folder();
        let path = folder.path().join("s");
        let lock = lock_folder(&path).unwrap();
        let begun = Instant::now();
        let _listener = bind(&path).unwrap();
        assert!(begun.elapsed() >= FOLDER_PAUSE * FOLDER_TRIES as u32);
        drop(lock);
    }
}
