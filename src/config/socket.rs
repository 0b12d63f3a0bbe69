//! The socket: its path, who may connect, or the descriptor it is inherited by.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::PathBuf;

use nix::unistd::Group;

use super::ConfigError;
use crate::vfio_user::{SocketAccess, bound_path};

/// Mode of a socket that is given a group: the group is meant to connect.
const GROUPS: u32 = 0o660;

/// Where the socket comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// It is made, and may be connected to by these.
    Bind(SocketAccess),
    /// It listens already, on this descriptor.
    Inherited(RawFd),
}

impl Default for Listen {
    fn default() -> Self {
        Self::Bind(SocketAccess::default())
    }
}

/// The values of `--socket`, `--socket-mode`, `--socket-group` and `--fd`; the first or the last is there.
#[derive(Debug, Default)]
pub struct SocketArgs {
    /// `--socket`
    pub path: Option<PathBuf>,
    /// `--socket-mode`
    pub mode: Option<OsString>,
    /// `--socket-group`
    pub group: Option<OsString>,
    /// `--fd`
    pub fd: Option<OsString>,
}

impl SocketArgs {
    /// The socket's path, as given or as the inherited one has it, and where it comes from.
    ///
    /// # Errors
    /// A value that cannot be used.
    pub fn check(self) -> Result<(PathBuf, Listen), ConfigError> {
        if let Some(given) = &self.fd {
            let fd = parse_fd(given)?;
            let path = bound_path(fd)
                .map_err(|error| ConfigError::Unusable { prefix: "--fd: ", text: error.to_string() })?;
            return Ok((path, Listen::Inherited(fd)));
        }
        let group = self.group.as_deref().map(parse_group).transpose()?;
        let default = if group.is_some() { GROUPS } else { SocketAccess::default().mode };
        let mode = self.mode.as_deref().map_or(Ok(default), parse_mode)?;
        Ok((self.path.unwrap_or_default(), Listen::Bind(SocketAccess { mode, group })))
    }
}

fn parse_fd(given: &OsStr) -> Result<RawFd, ConfigError> {
    let fd = given.to_str().and_then(|text| text.parse().ok()).filter(|fd| *fd >= 0);
    fd.ok_or_else(|| {
        ConfigError::bad_option("--fd", given, "is no descriptor", "give its number, systemd's first is 3")
    })
}

fn parse_mode(given: &OsStr) -> Result<u32, ConfigError> {
    let mode = given.to_str().and_then(|text| u32::from_str_radix(text, 8).ok());
    mode.filter(|mode| *mode <= 0o777).ok_or_else(|| {
        let problem = "must be octal, at most 0777";
        ConfigError::bad_option(
            "--socket-mode",
            given,
            problem,
            "for example 0660: owner and group may connect",
        )
    })
}

fn parse_group(given: &OsStr) -> Result<u32, ConfigError> {
    let refuse = |problem: String| {
        ConfigError::bad_option(
            "--socket-group",
            given,
            problem,
            "give a name that getent group knows, or a number",
        )
    };
    let name = given.to_str().ok_or_else(|| refuse("is no name of a group".into()))?;
    if let Ok(gid) = name.parse()
        && gid != u32::MAX
    {
        return Ok(gid);
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(refuse("is no group here".into())),
        Err(errno) => Err(refuse(format!("cannot be looked up ({errno})"))),
    }
}
